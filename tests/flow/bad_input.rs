//! What is wrong is said with its cause and the way out; no session starts, nothing is escalated.

use std::os::unix::fs::PermissionsExt;

use postern_tests::{World, finish, for_each_user, is_root, status, stdout, text, users};

/// Starts a session that must not start; its message.
fn refused(world: &World, arguments: &[&str]) -> String {
    let output = finish(world.postern().args(arguments).args(["--", "-fc", "touch started"]));
    assert_ne!(status(&output), 0, "{arguments:?}");
    assert!(!world.workspace.join("started").exists(), "{arguments:?}");
    text(&output.stderr)
}

fn config(world: &World, content: &str) -> String {
    let path = world.write("c.toml", content);
    refused(world, &["--config", path.to_str().unwrap()])
}

#[test]
fn options_and_files() {
    for_each_user(|world| {
        assert!(refused(world, &["--sandboxx", "read-only"]).contains("--sandbox"));
        assert!(
            refused(world, &["--sandbox", "wide-open"])
                .contains("expected read-only, workspace-write, danger-full-access")
        );
        assert!(refused(world, &["--profile", "nosuch"]).contains("there is no profile `nosuch`; known are"));
        assert!(refused(world, &["--rules", "/nosuch.rules"]).contains("/nosuch.rules"));
        assert!(refused(world, &["--config", "/nosuch.toml"]).contains("/nosuch.toml"));
        assert!(refused(world, &["--cwd", "/nosuch"]).contains("--cwd"));
        assert!(config(world, "sandbax = 'read-only'").contains("sandbax"));
        assert!(config(world, "sandbox = ").contains("c.toml"));
        let taken = config(world, "[permissions.git.filesystem]\n':root' = 'read'");
        assert!(taken.contains("permissions.git: the name is taken"), "{taken}");
        for (entry, expected) in [
            ("'/etc' = 'nothing'", "permissions.p.filesystem.\"/etc\": expected"),
            ("'/etc/*.key' = 'read'", "patterns can only take access"),
            ("'/etc/[z-a]*' = 'none'", "not a pattern"),
            ("glob_scan_max_depth = 0", "at least 1"),
        ] {
            let refused = config(world, &format!("profile = 'p'\n[permissions.p.filesystem]\n{entry}"));
            assert!(refused.contains(expected), "{entry}: {refused}");
        }
        let json = world.write(
            "p.json",
            r#"{"fileSystem": {"entries": [{"path": {"type": "path"}, "access": "read"}]}}"#,
        );
        let broken = refused(world, &["--permissions", json.to_str().unwrap()]);
        assert!(broken.contains("p.json: fileSystem.entries[0]"), "{broken}");
        let own = config(
            world,
            &format!(
                "profile = 'p'\n[permissions.p.filesystem]\n'{}' = 'write'",
                world.root.join("state").display()
            ),
        );
        assert!(own.contains("holds Postern's own files"), "{own}");
        let rules =
            world.write("r.rules", "prefix_rule(['a'])\nprefix_rule(['git', ['x'], decision = 'allow')\n");
        let broken = refused(world, &["--rules", rules.to_str().unwrap()]);
        assert!(broken.contains("r.rules:2:"), "{broken}");
        let rules = world.write("r.rules", "prefix_rule(['a'], execution = 'nosuch')\n");
        let unknown = refused(world, &["--rules", rules.to_str().unwrap()]);
        assert!(unknown.contains("r.rules:1:1: execution: there is no profile `nosuch`"), "{unknown}");
    });
}

#[test]
fn a_variable_narrows_and_never_widens() {
    for_each_user(|world| {
        let run = |value: &str| {
            finish(world.postern().env("POSTERN_SANDBOX", value).args(["--", "-fc", "echo x > f"]))
        };
        assert_eq!(status(&run("workspace-write")), 0);
        assert_eq!(status(&run("read-only")), 1);
        let wide = run("danger-full-access");
        assert_eq!(status(&wide), 125);
        assert!(text(&wide.stderr).contains("can only narrow"), "{}", text(&wide.stderr));
    });
}

#[test]
fn a_missing_zsh() {
    for_each_user(|world| {
        let bin = world.root.join("p/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy(postern_tests::prefix().join("bin/postern"), bin.join("posternsh")).unwrap();
        world.own();
        let output = finish(world.plain_command(bin.join("posternsh")).args(["-fc", "true"]));
        assert_eq!(status(&output), 125);
        assert!(text(&output.stderr).contains("the patched zsh is missing at"), "{}", text(&output.stderr));
    });
}

/// An installation of the world's own.
fn installation(world: &World) -> std::path::PathBuf {
    let installed = world.root.join("installed");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(postern_tests::prefix()).arg(&installed).status();
    assert!(copied.unwrap().success());
    installed
}

#[test]
fn no_session_starts_without_its_own_spawner() {
    for_each_user(|world| {
        let installed = installation(world);
        let spawner = installed.join("libexec/postern/postern-spawner");
        let real = installed.join("real");
        std::fs::rename(&spawner, &real).unwrap();
        let refused = |what: &str| {
            world.own();
            let run = "touch started";
            let output = finish(world.plain_command(installed.join("bin/posternsh")).args(["-fc", run]));
            assert_eq!(status(&output), 125, "{}", text(&output.stderr));
            let said = text(&output.stderr);
            assert!(said.contains(what) && said.contains("reinstall"), "{said}");
            assert!(!world.workspace.join("started").exists());
        };
        refused("the spawner is missing at");
        std::fs::write(&spawner, "").unwrap();
        refused("postern-spawner: Permission denied");
        // What they tell each other only one build understands.
        std::fs::write(&spawner, format!("#!/bin/sh\nexec {} another $2 $3\n", real.display())).unwrap();
        std::fs::set_permissions(&spawner, std::fs::Permissions::from_mode(0o755)).unwrap();
        refused("are of different builds");
    });
}

#[test]
fn a_state_directory_that_cannot_be_used() {
    for_each_user(|world| {
        let file = world.write("file", "");
        let output = finish(world.posternsh().env("XDG_STATE_HOME", &file).args(["-fc", "touch started"]));
        assert_eq!(status(&output), 125);
        assert!(
            text(&output.stderr).contains("make it writable for this user, or set XDG_STATE_HOME"),
            "{}",
            text(&output.stderr)
        );
        assert!(!world.workspace.join("started").exists());
    });
    for user in users().into_iter().filter(|user| *user != postern_tests::User::Ourselves) {
        let world = World::new(user);
        let state = world.root.join("state");
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o500)).unwrap();
        let output = finish(world.posternsh().args(["-fc", "true"]));
        assert_eq!(status(&output), 125);
        assert!(text(&output.stderr).contains("state directory"), "{}", text(&output.stderr));
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// A small filesystem of the world's user.
fn small(world: &World) -> std::path::PathBuf {
    let state = world.root.join("small");
    std::fs::create_dir(&state).unwrap();
    let owner = match world.user {
        postern_tests::User::Ordinary { uid, .. } => uid,
        postern_tests::User::Ourselves => 0,
    };
    let options = format!("size=400k,uid={owner},mode=700");
    let mut mount = std::process::Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&state).status();
    assert!(mounted.unwrap().success());
    state
}

#[test]
fn a_record_that_fails_once_its_command_is_ordered_starts_nothing() {
    if !is_root() {
        eprintln!("SKIPPED: mounting a small filesystem needs root");
        return;
    }
    for_each_user(|world| {
        let state = small(world);
        let rules = world.write("r.rules", "prefix_rule(['touch'], execution = 'unsandboxed')");
        // Nothing is recorded between the start and the command: the first to meet the full disk is its record.
        let script = format!(
            "zmodload zsh/zselect; : > ready; until [[ -e full ]] {{ zselect -t 2 }}; touch {}/escalated; print $?",
            world.outside.display()
        );
        let mut session = world.postern();
        session.env("XDG_STATE_HOME", &state).arg("--rules").arg(&rules).args(["--", "-fc", &script]);
        let session = session.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let session = session.spawn().unwrap();
        let ready = world.workspace.join("ready");
        postern_tests::eventually("the session is ready", || ready.exists());
        let journals = state.join("postern/pending");
        let is_empty = || {
            let listed = std::fs::read_dir(&journals).unwrap();
            listed.map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>() == 0
        };
        postern_tests::eventually("the start is in the database", is_empty);
        let mut filler = std::fs::File::create(state.join("filler")).unwrap();
        while std::io::Write::write(&mut filler, &[0; 4096]).is_ok() {}
        std::fs::write(world.workspace.join("full"), "").unwrap();
        let output = session.wait_with_output().unwrap();
        let unmounted = std::process::Command::new("umount").arg("-l").arg(&state).status();
        assert!(unmounted.unwrap().success());
        assert_eq!(stdout(&output), "126", "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("is the disk full?"), "{}", text(&output.stderr));
        assert!(!world.outside.join("escalated").exists());
    });
}

#[test]
fn a_full_disk_denies_what_cannot_be_recorded() {
    if !is_root() {
        eprintln!("SKIPPED: mounting a small filesystem needs root");
        return;
    }
    for_each_user(|world| {
        let state = small(world);
        let rules = world.write("r.rules", "prefix_rule(['touch'], execution = 'unsandboxed')");
        // The loop fills the records with commands that run in place, then escalation must stop.
        let script = format!(
            "for i in {{1..600}}; do /bin/true ${{(l:900::x:)}}; done; touch {0}/escalated; print $?",
            world.outside.display()
        );
        let output = finish(
            world
                .postern()
                .env("XDG_STATE_HOME", &state)
                .arg("--rules")
                .arg(&rules)
                .args(["--", "-fc", &script]),
        );
        let unmounted = std::process::Command::new("umount").arg("-l").arg(&state).status();
        assert!(unmounted.unwrap().success());
        assert_eq!(stdout(&output).lines().last(), Some("126"), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("is the disk full?"), "{}", text(&output.stderr));
        assert!(!world.outside.join("escalated").exists());
    });
}

#[test]
fn without_user_namespaces_an_ordinary_user_is_told_what_to_do() {
    if !is_root() {
        eprintln!("SKIPPED: limiting namespaces for a test needs root");
        return;
    }
    for user in users().into_iter().filter(|user| *user != postern_tests::User::Ourselves) {
        let world = World::new(user);
        let postern_tests::User::Ordinary { uid, gid } = user else { continue };
        let shell = postern_tests::prefix().join("bin/posternsh");
        // The limit is the user namespace's own, so the machine's other tests do not notice.
        let script = format!(
            "import ctypes, os, sys\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\nsys.stdin.readline()\n\
             open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n\
             os.setgid({gid}); os.setuid({uid}); os.execv('{}', ['posternsh', '-fc', 'touch started'])",
            shell.display()
        );
        let mut child = std::process::Command::new("python3")
            .args(["-c", &script])
            .env("HOME", world.root.join("home"))
            .env("XDG_STATE_HOME", world.root.join("state"))
            .current_dir(&world.workspace)
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        let id = child.id().to_string();
        postern_tests::eventually("it has a namespace", || namespace(&id) != namespace("self"));
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{id}/{map}"), "0 0 65536").unwrap();
        }
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(status(&output), 125, "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("user.max_user_namespaces"), "{}", text(&output.stderr));
        assert!(!world.workspace.join("started").exists());
    }
}

#[test]
fn the_doctor_tries_and_tells() {
    for_each_user(|world| {
        let output = finish(world.postern().args(["doctor", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!((status(&output), &report["ok"]), (0, &serde_json::Value::Bool(true)), "{report}");
        assert!(report["missing"].is_array(), "{report}");
        let text = stdout(&finish(world.postern().arg("doctor")));
        assert!(text.contains("started under workspace-write"), "{text}");
    });
}
