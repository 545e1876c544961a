//! Files that are mounted in two places: what holds at one path holds at the other.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use postern_tests::{User, World, finish, for_each_user, prefix, stdout, text};

/// Runs a program of the world's user where these are mounted as well, in a mount namespace that goes with it.
fn where_mounted(world: &World, binds: &[(&Path, &Path)], program: &[&str]) -> Output {
    let mut script: String = binds
        .iter()
        .map(|(what, at)| format!("mount --bind {} {} && ", what.display(), at.display()))
        .collect();
    script += match world.user {
        User::Ourselves => "exec \"$@\"",
        User::Ordinary { .. } => "exec setpriv --reuid $U --regid $G --clear-groups \"$@\"",
    };
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, "sh"]).args(program).env_clear();
    if let User::Ordinary { uid, gid } = world.user {
        command.env("U", uid.to_string()).env("G", gid.to_string());
    }
    for (name, at) in [("HOME", "home"), ("XDG_STATE_HOME", "state")] {
        command.env(name, world.root.join(at));
    }
    command.env("PATH", "/usr/bin:/bin").env("TERM", "xterm").stdin(Stdio::null());
    finish(command.current_dir(&world.workspace))
}

#[test]
fn another_path_opens_nothing() {
    for_each_user(|world| {
        let secret = world.write("outside/secret", "SECRET\n");
        let (everything, own, other) =
            (world.root.join("all"), world.workspace.join("lib"), world.outside.join("lib"));
        let second = world.outside.join("second");
        for path in [&everything, &own, &other, &second] {
            std::fs::create_dir(path).unwrap();
        }
        world.own();
        let config = world.write(
            "c.toml",
            format!(
                "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n\
                 '{}' = 'write'\n'{}' = 'none'\n",
                second.display(),
                secret.display()
            ),
        );
        let postern = prefix().join("bin/postern").display().to_string();
        let started = ["--config", config.to_str().unwrap(), "--", "-fc", "print started"];
        let output =
            where_mounted(world, &[(&world.workspace, &second)], &[&[&*postern], &started[..]].concat());
        assert!(
            text(&output.stderr).contains("are the same place, mounted twice"),
            "{}",
            text(&output.stderr)
        );
        // What is there needs no stand-in.
        for name in [".agents", ".codex", ".postern"] {
            std::fs::create_dir(world.workspace.join(name)).unwrap();
        }
        // Makes the state directory what it is.
        assert_eq!(stdout(&finish(world.postern().args(["--", "-fc", "print made"]))), "made");
        let binds: [(&Path, &Path); 3] =
            [(&world.root, &everything), (&other, &own), (&world.workspace, &second)];
        let script = format!(
            "cat {all}/outside/secret && echo read; ls {all}/state/postern && echo listed; \
             echo x > {second}/.git/hooks/pre-commit && echo hook; echo x > lib/file && echo other; \
             echo x > {second}/note && cat note",
            all = everything.display(),
            second = second.display()
        );
        let said = |output: &Output| {
            let words = ["read", "listed", "hook", "other", "x"];
            stdout(output).lines().filter(|line| words.contains(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        let output = where_mounted(world, &binds, &["sh", "-c", &script]);
        assert_eq!(said(&output), ["read", "listed", "hook", "other", "x"], "{}", text(&output.stderr));
        std::fs::remove_file(world.workspace.join(".git/hooks/pre-commit")).unwrap();
        let session = [&postern, "--config", config.to_str().unwrap(), "--", "-fc", &script];
        let output = where_mounted(world, &binds, &session);
        assert_eq!(said(&output), ["x"], "{}{}", stdout(&output), text(&output.stderr));
        assert!(!world.workspace.join(".git/hooks/pre-commit").exists());
    });
}

#[test]
fn what_can_be_written_by_another_path_is_not_trusted() {
    for_each_user(|world| {
        let (own, other) = (world.workspace.join("lib"), world.outside.join("lib"));
        for path in [&own, &other] {
            std::fs::create_dir(path).unwrap();
        }
        let tool = world.write("outside/lib/tool", "#!/bin/sh\necho ran\n");
        let executable = Command::new("chmod").arg("755").arg(&tool).status();
        assert!(executable.is_ok_and(|status| status.success()));
        let rules =
            world.write("r.rules", format!("prefix_rule(['{}'], execution = 'unsandboxed')", tool.display()));
        let config = world.write(
            "c.toml",
            format!(
                "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n'{}' = 'write'\n",
                own.display()
            ),
        );
        let postern = prefix().join("bin/postern").display().to_string();
        let proof = world.outside.join("proof");
        let script = format!("print 'echo evil > {}' >> lib/tool; {}", proof.display(), tool.display());
        let session = [
            &postern,
            "--on-prompt",
            "deny",
            "--config",
            config.to_str().unwrap(),
            "--rules",
            rules.to_str().unwrap(),
            "--",
            "-fc",
            &script,
        ];
        let output = where_mounted(world, &[(&other, &own)], &session);
        // In place, where it does what any program of the sandbox's own does.
        assert_eq!(stdout(&output), "ran", "{}", text(&output.stderr));
        assert!(!proof.exists());
        assert_eq!(world.record("tool")["decision"], "run");
    });
}
