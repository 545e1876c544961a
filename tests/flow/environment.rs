//! Which of the caller's variables arrive where.

use postern_tests::{finish, for_each_user, stdout, text};

const RULES: &str = "prefix_rule(['printenv', 'A_TOKEN'], execution = 'unsandboxed')\n\
                     prefix_rule(['printenv', 'B_TOKEN'], execution = 'network')\n\
                     prefix_rule(['printenv', 'C_TOKEN'], execution = 'network', env_keep = ['C_TOKEN'])\n";

#[test]
fn a_sandboxed_shell_has_no_secret_and_an_unsandboxed_command_has_all() {
    for_each_user(|world| {
        let rules = world.write("r.rules", RULES);
        let script = "print shell ${(ok)parameters[(I)[A-C]_TOKEN]} $EDITOR; printenv A_TOKEN; printenv B_TOKEN; \
                      printenv C_TOKEN; A_TOKEN=mine printenv A_TOKEN; grep -ls canary /proc/*/environ; print end";
        let run = |arguments: &[&str]| {
            let mut command = world.postern();
            command.env("EDITOR", "vi").args(arguments).arg("--rules").arg(&rules);
            for name in ["A_TOKEN", "B_TOKEN", "C_TOKEN"] {
                command.env(name, "canary");
            }
            let output = finish(command.args(["--", "-fc", script]));
            (stdout(&output), text(&output.stderr))
        };
        let (out, error) = run(&[]);
        assert_eq!(out, "shell vi\ncanary\ncanary\ncanary\nend", "{error}");
        let records = world.records();
        let changed = records.iter().filter(|line| line["env"]["dropped"][0] == "A_TOKEN").count();
        assert_eq!(changed, 1, "what the shell sets by that name is dropped, and said");
        let config = world.write("c.toml", "[shell_environment]\nexclude = []\n");
        let (out, error) = run(&["--config", config.to_str().unwrap()]);
        assert!(out.starts_with("shell A_TOKEN B_TOKEN C_TOKEN vi\n"), "{out}{error}");
    });
}

#[test]
fn postern_env_says_what_arrives_and_why() {
    for_each_user(|world| {
        let config = world.write(
            "c.toml",
            "[shell_environment]\ninclude = ['SSH_KEYS']\nset = { PAGER = 'cat' }\nexclude = ['*KEY*', 'X_*']\n",
        );
        let mut command = world.postern();
        command.env("SSH_KEYS", "1").env("API_KEY", "canary").env("X_Y", "1");
        let output = finish(command.arg("env").arg("--config").arg(&config));
        let said = stdout(&output);
        for line in [
            "given     SSH_KEYS  (include SSH_KEYS)",
            "withheld  API_KEY  (exclude *KEY*)",
            "withheld  X_Y  (exclude X_*)",
            "given     PAGER  (set)",
            "given     HOME  (inherited)",
        ] {
            assert!(said.contains(line), "{line}: {said}");
        }
        assert!(!said.contains("canary"));
        let bad = world.write("bad.toml", "[shell_environment]\nexclude = ['[']\n");
        let output = finish(world.postern().arg("env").arg("--config").arg(bad));
        assert!(
            text(&output.stderr).contains("bad.toml: shell_environment.exclude: "),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn here_documents_have_a_place_in_every_sandbox() {
    for_each_user(|world| {
        let config =
            world.write("c.toml", "[permissions.t.filesystem]\n':root' = 'read'\n':tmpdir' = 'write'\n");
        let config = config.to_str().unwrap();
        let script = "print ${TMPPREFIX/#$TMPDIR/own}; cat << E; cat <<< two; cat =(print three)\none\nE\n";
        for (arguments, place) in [
            (["--sandbox", "workspace-write"].as_slice(), "/tmp/zsh"),
            (&["--sandbox", "read-only"], "/dev/shm/zsh"),
            (&["--config", config, "--profile", "t"], "own/zsh"),
        ] {
            let output = finish(world.postern().args(arguments).args(["--", "-fc", script]));
            assert_eq!(stdout(&output), format!("{place}\none\ntwo\nthree"), "{}", text(&output.stderr));
        }
        let mut command = world.postern();
        command.env("TMPPREFIX", "/said").args(["--sandbox", "read-only", "--", "-fc", "print $TMPPREFIX"]);
        assert_eq!(stdout(&finish(&mut command)), "/said");
    });
}
