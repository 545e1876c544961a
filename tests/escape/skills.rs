//! By way of skills: one's own, somebody's by another path, with options in front, with a helper.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use postern_tests::{finish, for_each_user, stdout, text};

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
