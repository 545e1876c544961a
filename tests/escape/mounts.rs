//! Files that are mounted in two places: what holds at one path holds at the other.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use postern_tests::{User, World, finish, for_each_user, is_root, prefix, stdout, text};

/// Runs a program of the world's user where a shell has mounted things, in a mount namespace that goes with it.
fn mounted_by(world: &World, mounts: &str, program: &[&str]) -> Output {
    let become_user = match world.user {
        User::Ourselves => "",
        User::Ordinary { .. } => "setpriv --reuid $U --regid $G --clear-groups",
    };
    let script = format!("{mounts} && exec {become_user} \"$@\"");
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

/// The same with these mounts.
fn where_mounted(world: &World, binds: &[(&Path, &Path)], program: &[&str]) -> Output {
    let mounts: Vec<_> =
        binds.iter().map(|(what, at)| format!("mount --bind {} {}", what.display(), at.display())).collect();
    mounted_by(world, &mounts.join(" && "), program)
}

#[test]
fn another_path_opens_nothing() {
    for_each_user(|world| {
        if !is_root() {
            return eprintln!("SKIPPED: only root mounts");
        }
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
        if !is_root() {
            return eprintln!("SKIPPED: only root mounts");
        }
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

/// What a session prints where a shell has mounted things first.
fn after(world: &World, mounts: &str, profile: &str, script: &str) -> Output {
    let config = world.write("c.toml", format!("profile = 'p'\n[permissions.p.filesystem]\n{profile}"));
    let postern = prefix().join("bin/postern").display().to_string();
    // What is denied is so outside the turn's sandbox too.
    let rules = world.write("after.rules", "prefix_rule(['touch'], execution = 'unsandboxed')\n");
    let options = ["--config", config.to_str().unwrap(), "--rules", rules.to_str().unwrap()];
    let program = [&[&*postern][..], &options, &["--", "-fc", script]].concat();
    mounted_by(world, mounts, &program)
}

#[test]
fn what_is_mounted_in_a_denied_place_or_over_one_is_found() {
    for_each_user(|world| {
        if !is_root() {
            return eprintln!("SKIPPED: only root mounts");
        }
        for name in ["denied/in", "other", "over/in", "below"] {
            std::fs::create_dir_all(world.outside.join(name)).unwrap();
        }
        world.own();
        let outside = world.outside.display();
        let profile = format!(
            "':root' = 'read'\n':project_roots' = 'write'\n'{outside}/denied' = 'none'\n'{outside}/over/in/deny' = 'none'\n"
        );
        // A file system of its own in the denied place, which is elsewhere as well; and a place of which a mount is
        // hidden below another one.
        let mounts = format!(
            "cd {outside} && mount -t tmpfs t denied/in && echo SECRET > denied/in/k && chmod -R a+rX denied/in && \
             mount --bind denied/in other && mount -t tmpfs t over/in && mkdir -p below/in/deny && \
             echo SECRET > below/in/deny/k && mount --bind below over && cd {}",
            world.workspace.display()
        );
        let script =
            format!("cat {outside}/other/k {outside}/below/in/deny/k {outside}/denied/in/k; print end");
        let plain = mounted_by(world, &mounts, &["sh", "-c", &script.replace("print", "echo")]);
        assert_eq!(stdout(&plain), "SECRET\nSECRET\nSECRET\nend", "{}", text(&plain.stderr));
        let output = after(world, &mounts, &profile, &script);
        assert_eq!(stdout(&output), "end", "{}", text(&output.stderr));
    });
}

#[test]
fn a_view_that_is_denied_and_a_project_that_is_mounted_twice_keep_nobody_from_working() {
    for_each_user(|world| {
        if !is_root() {
            return eprintln!("SKIPPED: only root mounts");
        }
        let view = world.root.join("view");
        std::fs::create_dir(&view).unwrap();
        let no = world.write("outside/no", "");
        let mounts = format!("mount --bind {} {}", world.workspace.display(), view.display());
        let denying = |what: &Path| {
            format!("':root' = 'read'\n':project_roots' = 'write'\n'{}' = 'none'\n", what.display())
        };
        let script = format!("echo x > note; cat note; cat {}/note; print end", view.display());
        let output = after(world, &mounts, &denying(&view), &script);
        assert_eq!(stdout(&output), "x\nend", "{}", text(&output.stderr));
        let output = after(world, &mounts, &denying(&no), "touch touched; print $?; ls touched");
        assert_eq!(stdout(&output), "0\ntouched", "{}", text(&output.stderr));
        assert_eq!(world.record("touch")["execution"], serde_json::json!({ "permissions": "everything" }));
    });
}
