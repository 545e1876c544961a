//! By way of skills: one's own, somebody's by another path, with options in front, with a helper.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use postern_tests::{World, finish, for_each_user, stdout, text};

#[test]
fn a_skill_gives_nothing_to_what_is_not_its_script() {
    for_each_user(|world| {
        let directory = world.outside.join("skills/tool");
        std::fs::create_dir_all(directory.join("scripts")).unwrap();
        std::fs::write(
            directory.join("SKILL.md"),
            format!(
                "---\nname: tool\ndescription: d\npermissions:\n  file_system: {{read: [/], write: [{}]}}\n---\n",
                world.outside.join("out").display()
            ),
        )
        .unwrap();
        std::fs::create_dir(world.outside.join("out")).unwrap();
        let script = directory.join("scripts/run.sh");
        std::fs::write(&script, "#!/bin/bash\n. \"$(dirname \"$0\")/helper.sh\"\n").unwrap();
        std::fs::write(directory.join("scripts/helper.sh"), "echo helped\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        world.own();
        let target = world.outside.join("out/x");
        let evil = format!("touch {} && echo escaped", target.display());
        // Each is asked about or not: nothing here is approved, so that what gets out got out by itself.
        let tries = [
            // A skill of one's own, where skills are looked for.
            "mkdir -p .agents/skills/x/scripts && print ok; mkdir -p ~/.agents/skills/x/scripts && print ok"
                .to_owned(),
            // The script's helper, changed.
            format!("print '{evil}' > {}/scripts/helper.sh", directory.display()),
            format!("mv {0} {0}.old", directory.display()),
            // The script by a link beside a helper of one's own.
            format!("ln -s {} run.sh; print '{evil}' > helper.sh; ./run.sh; bash run.sh", script.display()),
            format!("mkdir d; ln -s {0}/scripts d/scripts; d/scripts/run.sh", directory.display()),
            // Its name, somewhere else.
            format!(
                "mkdir -p skills/tool/scripts; print '#!/bin/bash\n{evil}' > skills/tool/scripts/run.sh; chmod +x skills/tool/scripts/run.sh; skills/tool/scripts/run.sh"
            ),
            // Options, another interpreter, and hooks of the interpreter in front of it.
            format!(
                "print '{evil}' > rc; bash --rcfile rc -i {0}; bash --init-file rc {0}",
                script.display()
            ),
            format!(
                "print '{evil}' > rc; BASH_ENV=$PWD/rc bash {0}; BASH_ENV=$PWD/rc {0}; ENV=$PWD/rc sh {0}",
                script.display()
            ),
            format!("cp /bin/bash .; ./bash {}", script.display()),
            format!("bash -c '{evil}' {}", script.display()),
            format!("bash {0}/../../../../../../{1}", script.display(), "tmp/x.sh"),
            format!(
                "print '{evil}' > $TMPDIR/x.sh; bash {}/scripts/../../../../../../../../..$TMPDIR/x.sh",
                directory.display()
            ),
            format!("ARGV0={0} bash -c '{evil}'", script.display()),
        ];
        for script in tries {
            let mut command = world.postern();
            command.args(["--on-prompt", "wait:1"]).arg("--skills").arg(world.outside.join("skills"));
            let output = finish(command.args(["--", "-fc", &script]).stderr(Stdio::piped()));
            let out = stdout(&output);
            assert!(
                !out.contains("escaped") && !out.contains("ok"),
                "{script}: {out} {}",
                text(&output.stderr)
            );
            assert!(!target.exists(), "{script}");
        }
        assert!(world.records().iter().all(|line| line["approval"]["decision"] != "approved"));
    });
}

#[test]
fn what_the_turn_denies_no_skill_and_no_wish_opens() {
    for_each_user(|world| {
        world.write("outside/secret", "hush\n");
        let config = format!(
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n'{0}' = 'none'\n",
            world.outside.display()
        );
        let config = world.write("c.toml", config);
        let more = format!(
            r#"{{"fileSystem":{{"read":["{}/secret","{}"]}}}}"#,
            world.outside.display(),
            world.root.display()
        );
        let more = world.write("more.json", more);
        let mut command = world.postern();
        command.arg("exec").arg("--config").arg(config).arg("--additional-permissions").arg(more);
        command.args(["--", "cat"]).arg(world.outside.join("secret"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        postern_tests::eventually("it is approved", || {
            let listed = finish(world.postern().args(["approve", "--list", "--json"]));
            let line = stdout(&listed);
            let id = line.split("\"waiting\":[{").nth(1).and_then(|rest| rest.split("\"id\":\"").nth(1));
            let Some(id) = id.and_then(|rest| rest.split('"').next()) else { return false };
            finish(world.postern().args(["approve", id, "--once"])).status.success()
        });
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "", "{}", text(&output.stderr));
        assert!(!output.status.success());
    });
}

/// A skill that may write `outside/out`, whose scripts do nothing; and the directory of these.
fn harmless(world: &World) -> std::path::PathBuf {
    let directory = world.outside.join("skills/tool");
    let scripts = directory.join("scripts");
    std::fs::create_dir_all(&scripts).unwrap();
    std::fs::create_dir(world.outside.join("out")).unwrap();
    std::fs::write(
        directory.join("SKILL.md"),
        format!(
            "---\nname: tool\ndescription: d\npermissions:\n  file_system: {{read: [/], write: [{}]}}\n---\n",
            world.outside.join("out").display()
        ),
    )
    .unwrap();
    for (name, interpreter) in [
        ("x.sh", "/bin/sh"),
        ("x.bash", "/bin/bash"),
        ("x.py", "/usr/bin/python3"),
        ("x.pl", "/usr/bin/perl"),
    ] {
        std::fs::write(scripts.join(name), format!("#!{interpreter}\n0;\n")).unwrap();
        std::fs::set_permissions(scripts.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    world.own();
    scripts
}

/// Runs a script in a session in which everything that is asked is approved; how often that was.
fn approved(world: &World, script: &str) -> usize {
    let mut command = world.postern();
    command.arg("--skills").arg(world.outside.join("skills")).args(["--", "-fc", script]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut approved = 0;
    postern_tests::eventually(script, || {
        let ended = child.try_wait().unwrap().is_some();
        let line = stdout(&finish(world.postern().args(["approve", "--list", "--json"])));
        let id = line.split("\"waiting\":[{").nth(1).and_then(|rest| rest.split("\"id\":\"").nth(1));
        if let Some(id) = id.and_then(|rest| rest.split('"').next()) {
            approved += usize::from(finish(world.postern().args(["approve", id, "--once"])).status.success());
        }
        ended
    });
    approved
}

/// Each marks something where nothing defends, and nothing in a session, approved or not. `asks` is
/// whether it counts as the skill's script at all.
fn nothing_of_it_is_the_skills(table: &[(&str, bool)]) {
    for_each_user(|world| {
        let scripts = harmless(world);
        let mark = world.outside.join("out/mark");
        let marks = format!(": > {}", mark.display());
        world.write("ws/rc", &marks);
        for name in ["sitecustomize", "evil"] {
            world.write(&format!("ws/{name}.py"), format!("open('{}', 'w')", mark.display()));
        }
        world.write("ws/Evil.pm", format!("open(my $f, '>', '{}'); 1;", mark.display()));
        for (line, asks) in table {
            let script =
                line.replace("SKILL", &scripts.display().to_string()).replace("MARKS", &marks) + "; true";
            let plain = world.plain(postern_tests::prefix().join("libexec/postern/zsh"), &["-fc", &script]);
            assert!(mark.exists(), "{line}: {}", text(&plain.stderr));
            std::fs::remove_file(&mark).unwrap();
            assert_eq!(approved(world, &script), usize::from(*asks), "{line}");
            assert!(!mark.exists(), "{line}");
        }
    });
}

#[test]
fn not_even_an_approved_script_of_a_skill_runs_what_the_asker_put_in_front_of_it() {
    nothing_of_it_is_the_skills(&[
        ("BASH_ENV=$PWD/rc SKILL/x.bash", true),
        ("BASH_ENV=$PWD/rc bash SKILL/x.bash", true),
        ("PYTHONPATH=$PWD SKILL/x.py", true),
        ("PYTHONPATH=$PWD python3 SKILL/x.py", true),
        ("PERL5LIB=$PWD PERL5OPT=-MEvil SKILL/x.pl", true),
        ("PERL5LIB=$PWD PERL5OPT=-MEvil perl SKILL/x.pl", true),
        ("ENV=$PWD/rc sh -i +m SKILL/x.sh", false),
        ("bash -c 'MARKS' SKILL/x.bash", false),
        ("bash --rcfile rc -i SKILL/x.bash; bash --rcfile rc -i < SKILL/x.bash", false),
        ("print 'MARKS' | bash -s SKILL/x.bash", false),
        ("bash -O extglob -c 'MARKS' SKILL/x.bash", false),
        ("bash rc SKILL/x.bash", false),
        ("(exec -a SKILL/x.bash bash rc)", false),
        ("env -S \"bash -c 'MARKS'\" SKILL/x.bash", false),
        ("env BASH_ENV=$PWD/rc bash SKILL/x.bash", false),
        ("env BASH_ENV=$PWD/rc SKILL/x.bash", false),
        ("print 'exec(open(\"evil.py\").read())' | python3 -i SKILL/x.py", false),
        ("python3 -c 'import evil' SKILL/x.py", false),
        ("python3 -m evil SKILL/x.py", false),
        ("perl -I. -MEvil SKILL/x.pl", false),
        ("perl -I. -MEvil -e 0 SKILL/x.pl", false),
        ("cp SKILL/x.bash . && cat rc >> x.bash && ./x.bash", false),
    ]);
}

#[test]
fn an_interpreter_of_many_names_is_not_another_one_for_a_skill() {
    // As busybox: `sh` reads the script, `run` runs what comes after it.
    const MULTI: &str = "
        #include <string.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            int named = strcmp(argv[0], \"run\") == 0;
            return execl(\"/bin/sh\", \"sh\", argv[named ? argc - 1 : 1], (char *)0);
        }";
    for_each_user(|world| {
        let scripts = harmless(world);
        let multi = crate::attack::compiled(world, "multi", MULTI, &[]);
        let script = scripts.join("multi");
        std::fs::write(&script, format!("#!{}\n:\n", multi.display())).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        world.own();
        let mark = world.outside.join("out/mark");
        world.write("ws/rc", format!(": > {}", mark.display()));
        let line = format!("(exec -a run {} {} rc); true", multi.display(), script.display());
        let plain = world.plain(postern_tests::prefix().join("libexec/postern/zsh"), &["-fc", &line]);
        assert!(mark.exists(), "{}", text(&plain.stderr));
        std::fs::remove_file(&mark).unwrap();
        let _asked = approved(world, &line);
        assert!(!mark.exists());
    });
}
