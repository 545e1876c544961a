//! Through an escalated command: its environment, its file, its directory, its descriptors.

use postern_tests::{World, finish, for_each_user, stdout, text};

/// `env` under a rule, so that the environment of an escalated command can be seen.
const ENV: &str = "prefix_rule([\"env\"], execution = \"unsandboxed\")";

#[test]
fn the_environment_is_the_sessions_and_not_the_askers() {
    for_each_user(|world| {
        let script = "export LD_PRELOAD=/evil.so HOME=/evil GIT_DIR=/evil GIT_EXTERNAL_DIFF=/evil GIT_CONFIG_COUNT=1 BASH_ENV=/evil \
                      PYTHONPATH=/evil XDG_CONFIG_HOME=/evil TMPDIR=/evil LANG=de_DE LANGUAGE=../../evil LC_ALL=/evil; PATH=/evil:$PATH; /usr/bin/env";
        let mut command = world.postern();
        let rules = world.write("test.rules", ENV);
        let output =
            finish(command.env("CANARY", "kept").arg("--rules").arg(rules).args(["--", "-fc", script]));
        let out = stdout(&output);
        assert!(!out.contains("evil"), "{out}");
        assert!(out.contains("LANG=de_DE") && out.contains("CANARY=kept"), "{out} {}", text(&output.stderr));
        assert!(!out.contains("POSTERN"), "{out}");
        let record = world.record("env");
        let dropped = record["env"]["dropped"].to_string();
        assert!(dropped.contains("LD_PRELOAD") && dropped.contains("GIT_DIR"), "{dropped}");
    });
}

#[test]
fn nothing_of_the_servers_own_environment_comes_along() {
    for_each_user(|world| {
        let output = world.session(ENV, "/usr/bin/env | cut -d= -f1 | sort | tr '\\n' ' '");
        assert_eq!(stdout(&output), "HOME LANG PATH PWD TERM XDG_STATE_HOME");
    });
}

#[test]
fn a_file_of_the_workspace_gets_nothing_by_its_name() {
    for_each_user(|world| {
        world.write("outside/kept", "");
        let rules = "prefix_rule([\"id\"], execution = \"unsandboxed\")\nprefix_rule([\"python3\"], execution = \"unsandboxed\")";
        let script = format!(
            "print '#!/bin/sh\\nrm {0}/kept; grep Seccomp: /proc/self/status' > id; chmod +x id; ./id; path=($PWD $path); id; \
             cp /bin/grep python3; ./python3 Seccomp: /proc/self/status; rm python3; ln -s /usr/bin/env python3; ./python3 grep Seccomp: /proc/self/status",
            world.outside.display()
        );
        let output = world.session(rules, &script);
        let out = stdout(&output);
        assert!(out.lines().all(|line| line == "Seccomp:\t2"), "{out}");
        assert_eq!(out.lines().count(), 4, "{out} {}", text(&output.stderr));
        assert!(world.outside.join("kept").exists());
        assert!(world.records().iter().all(|line| line["decision"] != "escalate"));
    });
}

#[test]
fn a_script_that_the_sandbox_can_write_is_asked_about_even_if_a_rule_names_it() {
    for_each_user(|world| {
        let script = world.write("ws/deploy.sh", "#!/bin/sh\ngrep Seccomp: /proc/self/status\n");
        let program = world.workspace.join("tool");
        std::fs::copy("/bin/grep", &program).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        world.own();
        let rules = format!(
            "prefix_rule([\"{}\"], execution = \"unsandboxed\")\nprefix_rule([\"{}\"], execution = \"unsandboxed\")",
            script.display(),
            program.display()
        );
        let output = world.session(
            &rules,
            &format!(
                "{}; print $?; {} Seccomp: /proc/self/status; print $?",
                script.display(),
                program.display()
            ),
        );
        let out = stdout(&output);
        assert!(!out.contains("Seccomp:\t0"), "{out}");
        assert!(world.records().iter().all(|line| line["decision"] != "escalate"), "{out}");
    });
}

#[test]
fn a_rule_that_names_a_file_of_the_workspace_does_not_speak_for_it() {
    for_each_user(|world| {
        let program = world.workspace.join("cat");
        std::fs::copy("/bin/cat", &program).unwrap();
        world.own();
        let rules = format!(
            "host_executable(\"cat\", [\"{0}\"])\nprefix_rule([\"{0}\"], execution = \"read-only\")",
            program.display()
        );
        let output = world.session(&rules, &format!("{} /proc/self/status", program.display()));
        let record = world.record("cat");
        assert_eq!(record["attested"]["exe"]["agent_writable"], true);
        // A name that the sandbox could have made up speaks for nothing, so the rule does not even match.
        assert_eq!(record["decision"], "run", "{}", text(&output.stderr));
    });
}

#[test]
fn argv_zero_does_not_say_where_libraries_are() {
    for_each_user(|world| {
        // Python looks for its environment beside what argv[0] names.
        let opt = world.write("outside/trusted.py", "import os; print('trusted', 'evil' in os.environ)\n");
        let script = format!(
            "mkdir -p fake/bin fake/lib/python3/site-packages; print 'home = /usr/bin' > fake/pyvenv.cfg; \
             for v in 3.9 3.10 3.11 3.12 3.13; do mkdir -p fake/lib/python$v/site-packages; \
             print 'import os; os.environ[\"evil\"] = \"1\"' > fake/lib/python$v/site-packages/x.pth; done; \
             (exec -a $PWD/fake/bin/python3 python3 {0}); ln -s =python3 fake/bin/python3; fake/bin/python3 {0}",
            opt.display()
        );
        let output = world.session("prefix_rule([\"python3\"], execution = \"unsandboxed\")", &script);
        let records = world.records();
        for record in records.iter().filter(|line| line["decision"] == "escalate") {
            assert_eq!(record["outcome"]["code"], 0, "{record}");
        }
        let escalated = records.iter().filter(|line| line["decision"] == "escalate").count();
        let out = stdout(&output);
        assert_eq!(escalated, 1, "{out} {}", text(&output.stderr));
        assert_eq!(out.lines().next(), Some("trusted False"), "{out}");
    });
}

#[test]
fn what_one_sandbox_can_write_another_does_not_trust() {
    for_each_user(|world| {
        let tools = world.root.join("tools");
        std::fs::create_dir(&tools).unwrap();
        world.own();
        let config = world.write(
            "c.toml",
            format!("[permissions.build.filesystem]\n':root' = 'read'\n'{}' = 'write'\n", tools.display()),
        );
        let rules = world.write(
            "r.rules",
            "prefix_rule(['cp'], execution = 'build')\nprefix_rule(['gh'], execution = 'unsandboxed')\n",
        );
        let script = format!("cp /bin/grep {0}/gh; {0}/gh Seccomp: /proc/self/status", tools.display());
        let output = finish(
            world
                .postern()
                .arg("--config")
                .arg(&config)
                .arg("--rules")
                .arg(&rules)
                .args(["--", "-fc", &script]),
        );
        assert_eq!(stdout(&output), "Seccomp:\t2", "{}", text(&output.stderr));
    });
}

#[test]
fn rules_that_the_sandbox_could_write_are_refused() {
    for_each_user(|world| {
        let rules = world.write("ws/my.rules", "");
        let output = finish(world.postern().arg("--rules").arg(&rules).args(["--", "-fc", "true"]));
        assert_eq!(postern_tests::status(&output), 125);
        assert!(
            text(&output.stderr).contains("lies where the sandbox can write"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn placeholders_do_not_follow_links() {
    for_each_user(|world| {
        let victim = world.root.join("victim");
        let plain = world.root.join("plain");
        std::fs::create_dir(&victim).unwrap();
        std::fs::create_dir(&plain).unwrap();
        world.own();
        let rules = world.write("r.rules", "prefix_rule(['touch'], execution = 'git')");
        let script = format!("ln -s {} .git; touch x; print $?", victim.display());
        let output = finish(
            world.postern().current_dir(&plain).arg("--rules").arg(&rules).args(["--", "-fc", &script]),
        );
        assert_eq!(stdout(&output), "126", "{}", text(&output.stderr));
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    });
}

#[test]
fn descriptors_of_directories_stay_inside() {
    for_each_user(|world| {
        let lister = "import os\nfor n in range(3, 64):\n    try: os.fstat(n); print(n)\n    except OSError: pass\nprint('end')\n";
        let lister = world.write("lister.py", lister);
        let script = format!("exec 3< . 4< {0} 5<>{0}; python3 {0}", lister.display());
        let copy = world.write("ws/in.py", std::fs::read(&lister).unwrap());
        let script =
            script.replacen(&format!("5<>{}", lister.display()), &format!("5<>{}", copy.display()), 1);
        let output = world.session("prefix_rule([\"python3\"], execution = \"unsandboxed\")", &script);
        assert_eq!(stdout(&output), "4\n5\nend", "{}", text(&output.stderr));
    });
}

#[test]
fn a_working_directory_that_is_not_the_same_outside_is_refused() {
    for_each_user(|world| {
        let rules = "prefix_rule([\"pwd\"], execution = \"unsandboxed\")";
        let output = world.session(
            rules,
            "mkdir -p /dev/shm/d; cd /dev/shm/d; =pwd; print $?; cd; mkdir $OLDPWD/x; cd -q /; =pwd",
        );
        assert_eq!(stdout(&output), "126\n/", "{}", text(&output.stderr));
    });
}

#[test]
fn a_waiter_that_dies_takes_the_command_along() {
    for_each_user(|world: &World| {
        let rules = "prefix_rule([\"sh\"], execution = \"unsandboxed\")";
        let alive = world.outside.join("alive");
        let script = format!(
            "sh -c 'sleep 1; sleep 1; echo x > {0}' & sleep 0.3; kill -9 $!; wait; sleep 3; [[ -e {0} ]]; print $?",
            alive.display()
        );
        let output = world.session(rules, &script);
        assert_eq!(stdout(&output), "1", "{}", text(&output.stderr));
        assert!(!alive.exists());
    });
}

#[test]
fn the_next_sessions_configuration_cannot_be_created_from_inside() {
    for_each_user(|world| {
        // There is none yet, so nothing that exists would be written.
        std::fs::create_dir(world.root.join("home/.config")).unwrap();
        let config = world.write(
            "c.toml",
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n'~/.config' = 'write'\n",
        );
        let script = "mkdir ~/.config/postern; print \"sandbox = 'danger-full-access'\" > ~/.config/postern/config.toml";
        let output = finish(world.postern().arg("--config").arg(&config).args(["--", "-fc", script]));
        assert!(
            !world.root.join("home/.config/postern").exists(),
            "the sandbox wrote the next session's configuration"
        );
        assert_eq!(postern_tests::status(&output), 125);
        assert!(text(&output.stderr).contains("holds Postern's own files"), "{}", text(&output.stderr));
    });
}

#[test]
fn a_script_runs_by_the_interpreter_that_was_judged() {
    for_each_user(|world| {
        // Each names an interpreter that the sandbox can make another, by itself or on the way.
        let project = world.workspace.display().to_string();
        let nested = world.write("outside/nested-interpreter", format!("#!{project}/bin/sh\n"));
        let lines =
            [format!("#!{project}/bin/python"), "#!bin/sh".to_owned(), format!("#!{}", nested.display())];
        let executable = |path: &std::path::Path| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        };
        executable(&nested);
        for (at, line) in lines.iter().enumerate() {
            let tool = world.write(&format!("outside/tool{at}"), format!("{line}\n"));
            executable(&tool);
            let rules = format!("prefix_rule(['{}'], execution = 'unsandboxed')", tool.display());
            let kept = world.write("outside/kept", "");
            let script = format!(
                "mkdir -p bin; ln -sfn /usr/bin/find bin/python; print '#!/bin/sh\nrm {0}' > bin/sh; chmod +x bin/sh; \
                 {1} -maxdepth 0 -exec rm {0} ';'; print $?",
                kept.display(),
                tool.display()
            );
            let output = world.session(&rules, &script);
            assert!(kept.exists(), "{line}");
            assert_eq!(stdout(&output), "126", "{line}: {}", text(&output.stderr));
            assert!(text(&output.stderr).contains("can write its interpreter"), "{}", text(&output.stderr));
        }
    });
}

#[test]
fn a_variable_narrows_the_profiles_that_start_from_the_turn_too() {
    for_each_user(|world| {
        let rules = world.write("r.rules", "prefix_rule(['touch'], execution = 'git')");
        let output =
            finish(world.postern().env("POSTERN_SANDBOX", "read-only").arg("--rules").arg(rules).args([
                "--",
                "-fc",
                "touch written; print tried",
            ]));
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert!(!world.workspace.join("written").exists());
    });
}

#[test]
fn secrets_stay_out_of_every_field_of_the_log() {
    for_each_user(|world| {
        let rules = "prefix_rule(['curl'], decision = 'forbidden')";
        let script = "curl --token SEKRET1 x; ls --password=SEKRET2; ls 'https://u:SEKRET3@h/'; \
                      ls -H 'Authorization: Bearer SEKRET4'";
        let _denied = world.session(rules, script);
        let records = world.records();
        assert!(records.len() > 4, "{records:?}");
        let all = serde_json::to_string(&records).unwrap();
        assert!(!all.contains("SEKRET"), "{all}");
        assert!(all.contains("[secret blake3:"), "{all}");
    });
}
