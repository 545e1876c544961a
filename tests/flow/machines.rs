//! Machines that have less: no namespaces, another sandbox around, a container. Each works, or says
//! what is missing and what to do.

use std::path::PathBuf;
use std::process::{Command, Output};

use postern_tests::{User, World, checkout, finish, for_each_user, is_root, prefix, status, stdout, text};

const ALLOWED: &str = "allow_weaker = ['processes', 'metadata', 'device_nodes', 'protect_git']\n";

/// What stands between the test and Postern.
fn around(world: &World, what: &str) -> Command {
    let filtered = || {
        let script =
            world.write("filtered.py", std::fs::read(checkout().join("tests/machines/filtered.py")).unwrap());
        let mut command = world.plain_command("python3");
        command.arg(script);
        command
    };
    let mut command = match what {
        "a container's filter" => {
            let mut command = filtered();
            command.arg("namespaces");
            command
        }
        "another listener" => {
            let mut command = filtered();
            command.arg("listener");
            command
        }
        "no user namespaces" => {
            // The setting is the new namespace's own; nobody else's changes.
            let mut command = world.plain_command("unshare");
            command.args(["--user", "--map-current-user", "--keep-caps", "sh", "-c"]).arg(
                "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all \
                 --bounding-set=-all \"$@\"",
            );
            command.arg("sh");
            command
        }
        "bubblewrap" => {
            let mut command = world.plain_command("bwrap");
            command.args(["--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all"]);
            command
        }
        other => unreachable!("{other}"),
    };
    command.arg(prefix().join("bin/postern"));
    command
}

fn doctor(world: &World, what: &str, config: Option<&PathBuf>) -> (i32, serde_json::Value) {
    let mut command = around(world, what);
    command.args(["doctor", "--json"]);
    command.args(config.into_iter().flat_map(|path| ["--config".into(), path.clone()]));
    let output = finish(&mut command);
    let report = serde_json::from_str(&stdout(&output));
    (status(&output), report.unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

fn found<'a>(report: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

/// Where namespaces are not to be had for this user.
fn without_namespaces(world: &World) -> Vec<&'static str> {
    match world.user {
        // Root has them by capability where the setting forbids user namespaces.
        User::Ourselves if is_root() => vec!["a container's filter"],
        _ => vec!["a container's filter", "no user namespaces"],
    }
}

#[test]
fn without_namespaces_a_session_is_refused_by_name_with_the_remedy() {
    for_each_user(|world| {
        for what in without_namespaces(world) {
            let output = finish(around(world, what).args(["--", "-fc", "print started"]));
            let said = text(&output.stderr);
            assert_eq!((stdout(&output).as_str(), status(&output)), ("", 125), "{what}: {said}");
            for part in ["processes: ", "metadata: ", "device_nodes: ", "protect_git: ", "allow_weaker = ["] {
                assert!(said.contains(part), "{what}: {part}: {said}");
            }
            let (status, report) = doctor(world, what, None);
            assert_eq!((status, &report["ok"]), (1, &false.into()), "{report}");
            assert!(found(&report, "namespaces")["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
        }
    });
}

fn alone(world: &World, what: &str, config: &str, rules: &str, script: &str) -> Output {
    let config = world.write("c.toml", format!("{ALLOWED}{config}"));
    let rules = world.write("r.rules", rules);
    let mut command = around(world, what);
    finish(command.arg("--config").arg(config).arg("--rules").arg(rules).args(["--", "-fc", script]))
}

#[test]
fn what_is_allowed_by_name_starts_and_all_else_holds() {
    for_each_user(|world| {
        for what in without_namespaces(world) {
            let config = world.write("c.toml", ALLOWED);
            let (status, report) = doctor(world, what, Some(&config));
            assert_eq!(status, 0, "{report}");
            let missing: Vec<_> =
                report["missing"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
            assert_eq!(missing, ["processes", "metadata", "device_nodes", "protect_git"], "{what}");
            for name in ["files", "state", "signals", "memory", "network", "privileges"] {
                assert_eq!(found(&report, name)["ok"], true, "{name}: {report}");
            }
            let script = format!(
                "print in > in; touch in2; /bin/echo $(<in); print out > {0}/out; ls {0} > /dev/null && print listed; id > {0}/out2; \
                 sh -c 'echo x > {0}/x'; cat /dev/pts/* ; sh -c 'sleep 0.1' & wait $!; print $?",
                world.outside.display()
            );
            let rules = "prefix_rule(['id'], execution = 'unsandboxed')\nprefix_rule(['touch'], execution = 'turn_default')\n\
                         prefix_rule(['ls'], execution = 'network')";
            let output = alone(world, what, "", rules, &script);
            assert_eq!(stdout(&output), "in\nlisted\n0", "{what}: {}", text(&output.stderr));
            assert!(
                world.workspace.join("in2").exists()
                    && std::fs::read_dir(&world.outside).unwrap().next().is_none()
            );
            let records = world.records();
            let started = records.iter().rfind(|line| line["event"] == "started").unwrap();
            let landlock = found(&report, "landlock")["found"].as_str().unwrap().replace("ABI", "landlock");
            assert_eq!(started["sandbox"]["strength"], format!("{landlock}, seccomp"), "{started}");
            assert_eq!(started["sandbox"]["missing"][0], "processes");
        }
    });
}

#[test]
fn what_cannot_be_held_alone_is_not_relied_on() {
    for_each_user(|world| {
        let run = world.project_skill("tool", "", "#!/bin/sh\necho ran\n");
        world.trust(&world.workspace);
        let skill = || {
            let records = world.records();
            let last = records.iter().rfind(|line| line["claimed"]["argv"][0] == run.to_str().unwrap());
            last.unwrap()["judgement"]["skill"]["name"].clone()
        };
        for what in without_namespaces(world) {
            let output = alone(world, what, "", "", &run.display().to_string());
            let said = text(&output.stderr);
            assert_eq!((stdout(&output).as_str(), skill()), ("ran", serde_json::Value::Null), "{said}");
            assert!(said.contains("without namespaces nothing in it can be held read-only"), "{said}");
            // Where nothing of the project can be written, nothing has to be held.
            let read_only =
                "profile = 'r'\n[permissions.r.filesystem]\n':root' = 'read'\n':tmpdir' = 'write'\n";
            let output = alone(world, what, read_only, "", &run.display().to_string());
            assert_eq!(
                (stdout(&output).as_str(), skill()),
                ("ran", "tool".into()),
                "{}",
                text(&output.stderr)
            );
        }
    });
}

#[test]
fn denials_hold_alone_where_nothing_above_them_can_be_written() {
    for_each_user(|world| {
        let what = "a container's filter";
        std::fs::create_dir_all(world.outside.join("deep/er")).unwrap();
        for file in ["outside/deep/er/secret", "outside/deep/open", "outside/x.key", "ws/.env"] {
            world.write(file, "SECRET");
        }
        let outside = world.outside.display();
        let denied = format!(
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n'/proc' = 'read'\n'{outside}/deep/er' = 'none'\n'{outside}/*.key' = 'none'\n"
        );
        let script = format!(
            "print began; cat {outside}/deep/er/secret {outside}/x.key; ls {outside}/deep; cat {outside}/deep/open"
        );
        let output = alone(world, what, &denied, "", &script);
        assert_eq!(stdout(&output), "began\nSECRET", "{}", text(&output.stderr));
        // Below something writable it cannot be held.
        let config = format!("{denied}':project_roots' = {{ '.' = 'write', '.env' = 'none' }}\n");
        let output = alone(world, what, &config, "", "print began");
        assert_eq!(stdout(&output), "");
        assert!(text(&output.stderr).contains("deny_below: "), "{}", text(&output.stderr));
        // A profile that needs more than was allowed is refused when it is needed.
        let output =
            alone(world, what, "", "prefix_rule(['git'], execution = 'git')", "git status; print $?");
        assert_eq!(stdout(&output), "126");
        assert!(text(&output.stderr).contains("read_only_below"), "{}", text(&output.stderr));
    });
}

#[test]
fn root_without_user_namespaces_has_them_by_capability() {
    for_each_user(|world| {
        if world.user != User::Ourselves || !is_root() {
            return;
        }
        let (status, report) = doctor(world, "no user namespaces", None);
        let namespaces = found(&report, "namespaces")["found"].as_str().unwrap().to_owned();
        // Only a root that kept its capabilities.
        assert!(status == 1 && namespaces.contains("not to be had"), "{report}");
        let mut command = world.plain_command("unshare");
        command.args(["--user", "--map-current-user", "sh", "-c"]);
        command.arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"").arg("sh");
        let output = finish(command.arg(prefix().join("bin/postern")).args(["doctor", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(found(&report, "namespaces")["found"], "to be had, by capability", "{report}");
        assert_eq!(report["ok"], true, "{report}");
    });
}

#[test]
fn inside_bubblewrap_it_is_a_sandbox_in_a_sandbox() {
    for_each_user(|world| {
        let (status, report) = doctor(world, "bubblewrap", None);
        assert_eq!((status, &report["missing"]), (0, &serde_json::json!([])), "{report}");
        let mut command = around(world, "bubblewrap");
        let script = "print in > in; print out > ../outside/out; print x > .git/hooks/x; /bin/echo ran";
        let output = finish(command.args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "ran", "{}", text(&output.stderr));
        assert!(world.workspace.join("in").exists() && !world.outside.join("out").exists());
        assert!(!world.workspace.join(".git/hooks/x").exists());
    });
}

#[test]
fn where_somebody_else_answers_system_calls_the_gate_is_missing_and_said() {
    for_each_user(|world| {
        let (status, report) = doctor(world, "another listener", None);
        assert_eq!((status, &report["missing"]), (0, &serde_json::json!(["socket_gate"])), "{report}");
        let script = "python3 -c 'import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0x504f5354)'; print $?";
        let output = finish(around(world, "another listener").args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "1");
        let config =
            world.write("c.toml", "profile = 'p'\n[permissions.p.network]\nunix_sockets = ['/run/x']\n");
        let mut command = around(world, "another listener");
        let output = finish(command.arg("--config").arg(config).args(["--", "-fc", "true"]));
        assert!(
            text(&output.stderr).contains("start outside, or remove network.unix_sockets"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn inside_a_session_another_one_is_narrower_and_has_nothing_of_the_outer_ones() {
    for_each_user(|world| {
        let config = world.write("c.toml", ALLOWED);
        let rules = world.write("outer.rules", "prefix_rule(['id'], execution = 'unsandboxed')");
        let postern = prefix().join("bin/postern");
        // Without its own consent it says what is missing; with it, it is held by both.
        let ask = "import os, socket\ntry:\n    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0x504f5354)\n    print('reached')\nexcept OSError: print('refused')";
        let ask = world.write("ask.py", ask);
        let script = format!(
            "python3 {2}; mkdir -p $TMPDIR/w; cd $TMPDIR/w; export XDG_STATE_HOME=$TMPDIR/state; unset POSTERN_SOCKET; \
             env -u POSTERN_SOCKET {0} --sandbox read-only -- -fc 'print none'; print $?; \
             {0} --config {1} --sandbox read-only -- -fc 'print inner; print x > x; python3 {2}'",
            postern.display(),
            config.display(),
            ask.display()
        );
        let mut command = world.postern();
        let output = finish(command.arg("--rules").arg(rules).args(["--", "-fc", &script]));
        assert_eq!(stdout(&output), "reached\n125\ninner\nrefused", "{}", text(&output.stderr));
    });
}

#[test]
fn the_doctor_looks_at_every_profile_that_a_rule_grants() {
    for_each_user(|world| {
        let rules = world.write("r.rules", "prefix_rule(['git'], execution = 'git')");
        let config = world.write("c.toml", format!("{ALLOWED}rules = ['{}']\n", rules.display()));
        let (status, report) = doctor(world, "a container's filter", Some(&config));
        let said = found(&report, "rules")["found"].as_str().unwrap().to_owned();
        assert!(status == 1 && said.contains("under git") && said.contains("read_only_below"), "{report}");
        // The remedy can be copied as it stands.
        assert!(
            said.contains(
                "[\"processes\", \"metadata\", \"device_nodes\", \"protect_git\", \"read_only_below\"]"
            ),
            "{said}"
        );
    });
}
