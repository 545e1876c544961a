//! Postern's own files: records, rules, configuration, the installation, the runtime directory.

use postern_tests::{finish, for_each_user, prefix, stdout, text};
use serde_json::json;

use crate::attack::{Attacks, attack, attack_of_root};

#[test]
fn records_are_neither_read_nor_written() {
    for_each_user(|world| {
        let _first = world.session("", "print there is a record");
        assert!(!world.records().is_empty());
        let state = world.root.join("state/postern");
        attack(
            world,
            &json!({ "state": state }),
            &[
                ("list", "os.listdir(state)"),
                ("read", "open(f'{state}/records.db', 'rb').read()"),
                ("write", "open(f'{state}/records.db', 'r+b').close()"),
                (
                    "a journal beside it",
                    "open(f'{state}/records.db-journal', 'w').close(); os.unlink(f'{state}/records.db-journal')",
                ),
                ("what waits for it", "os.listdir(f'{state}/pending')"),
                ("a session's journal", "n = f'{state}/pending/x'; open(n, 'w').close(); os.unlink(n)"),
                ("move", "os.rename(state, new); os.rename(new, state)"),
                ("move what holds it", "os.rename(f'{root}/state', new); os.rename(new, f'{root}/state')"),
                ("by the root of the process", "os.listdir(f'/proc/self/root{state}')"),
                ("mode", "os.chmod(state, 0o700)"),
            ],
        );
        let verified = finish(world.postern().args(["log", "verify"]));
        assert!(verified.status.success(), "{}", text(&verified.stderr));
    });
}

#[test]
fn rules_and_configuration_and_the_installation_are_not_written() {
    for_each_user(|world| {
        let own = world.root.join("home/.config/postern");
        std::fs::create_dir_all(own.join("rules")).unwrap();
        let config = world.write("home/.config/postern/config.toml", "");
        let rule = world.write("home/.config/postern/rules/a.rules", "");
        // One that every user may write, as the user's own installation would be.
        let installed = world.root.join("installed");
        let copied = std::process::Command::new("cp").arg("-a").arg(prefix()).arg(&installed).status();
        assert!(copied.unwrap().success());
        world.own();
        let given = json!({ "config": config, "rule": rule, "own_files": own, "installed": installed });
        let list = [
            ("configuration", "open(config, 'a').close()"),
            ("a rule", "open(rule, 'a').close()"),
            ("another rule", "n = f'{own_files}/rules/b.rules'; open(n, 'w').close(); os.unlink(n)"),
            ("no rule", "os.rename(rule, new); os.rename(new, rule)"),
            ("another directory", "os.rename(own_files, new); os.rename(new, own_files)"),
            (
                "the shell",
                "os.rename(f'{installed}/libexec/postern/zsh', new); os.rename(new, f'{installed}/libexec/postern/zsh')",
            ),
            (
                "the spawner",
                "n = f'{installed}/libexec/postern/postern-spawner'; os.rename(n, new); os.rename(new, n)",
            ),
            (
                "a module of the shell",
                "n = f'{installed}/lib/postern/x.so'; open(n, 'w').close(); os.unlink(n)",
            ),
            ("the front", "n = f'{installed}/bin/postern'; os.chmod(n, 0o755); os.utime(n)"),
        ];
        let attacks = Attacks::new(world, &given, &list);
        attacks.outside(true);
        attacks.inside(|command| {
            finish(world.plain_command(installed.join("bin/posternsh")).args(["-fc", command]))
        });
    });
}

#[test]
fn a_configuration_of_the_machine_is_not_written() {
    for_each_user(|world| {
        // A file without a name, for nothing is to be left there.
        let list = [("where it would be", "os.close(os.open('/etc', os.O_TMPFILE | os.O_RDWR))")];
        attack_of_root(world, &json!({}), &list);
    });
}

#[test]
fn temporary_directories_hold_nothing_of_posterns() {
    for_each_user(|world| {
        // `:slash_tmp` is open to every session, so that nothing may lie there that decides anything:
        // of this session there is its TMPDIR, and that is empty.
        let script = "for name in $TMPDIR/*(ND) /tmp/*${TMPDIR:t}*(ND) /run/*postern*(N) /run/user/*/*postern*(N); do print $name; done";
        let output = world.session("", &format!("[[ -d $TMPDIR ]] && print ${{TMPDIR}}; {script}"));
        let out = stdout(&output);
        let lines: Vec<_> = out.lines().collect();
        assert!(lines.len() == 2 && lines[0] == lines[1], "{lines:?} {}", text(&output.stderr));
    });
}
