//! Who may say what: the machine's operator, the user, and a project that is trusted.

use std::process::{Command, Output};

use postern_tests::{User, World, finish, for_each_user, prefix, status, stdout, text};

/// A session where `/etc/postern/requirements.toml` says this: in a mount namespace of its own.
fn required(world: &World, requirements: &str, arguments: &[&str]) -> Output {
    let etc = world.root.join("etc");
    if !etc.exists() {
        assert!(Command::new("cp").arg("-a").arg("/etc").arg(&etc).status().unwrap().success());
        std::fs::create_dir_all(etc.join("postern")).unwrap();
    }
    std::fs::write(etc.join("postern/requirements.toml"), requirements).unwrap();
    let user = match world.user {
        User::Ourselves => String::new(),
        User::Ordinary { uid, gid } => format!("setpriv --reuid={uid} --regid={gid} --clear-groups "),
    };
    let script = format!("mount --bind {} /etc && exec {user}\"$@\"", etc.display());
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, "sh"]).arg(prefix().join("bin/postern")).args(arguments);
    command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("TERM", "xterm");
    command.env("HOME", world.root.join("home")).env("XDG_STATE_HOME", world.root.join("state"));
    finish(command.current_dir(&world.workspace).stdin(std::process::Stdio::null()))
}

#[test]
fn what_the_machines_operator_does_not_allow_is_not_given_and_that_is_said() {
    for_each_user(|world| {
        let requirements = "allowed_approval_policies = ['untrusted', 'never']\n\
                            allowed_sandbox_modes = ['read-only', 'workspace-write']\n";
        let output = required(
            world,
            requirements,
            &["--approval", "on-request", "--on-prompt", "deny", "--", "-fc", "make -v"],
        );
        let said = text(&output.stderr);
        let expected = "postern: requirements.toml does not allow the approval policy on-request: it is untrusted instead\n";
        assert!(said.starts_with(expected) && said.contains("denied: make -v"), "{said}");
        // What nobody asked for changes without a word.
        let output = required(world, requirements, &["--on-prompt", "deny", "--", "-fc", "print in"]);
        assert_eq!((stdout(&output).as_str(), text(&output.stderr).as_str()), ("in", ""));
        let output = required(
            world,
            requirements,
            &["--sandbox", "danger-full-access", "--approval", "never", "--", "-fc", "print x > x"],
        );
        let said = text(&output.stderr);
        assert!(
            said.contains("danger-full-access, which is danger-full-access: it is read-only instead"),
            "{said}"
        );
        assert!(said.contains("read-only file system: x") && !world.workspace.join("x").exists(), "{said}");
        let output = required(
            world,
            requirements,
            &["rules", "explain", "--sandbox", "danger-full-access", "--", "id"],
        );
        assert!(
            stdout(&output).contains("note      requirements.toml does not allow"),
            "{}",
            stdout(&output)
        );
        // Nor by what one command asks for.
        let output = required(
            world,
            requirements,
            &["exec", "--sandbox-permissions", "require_escalated", "--", "id"],
        );
        assert!(text(&output.stderr).contains("only be asked for under the approval policy on-request"));
        assert_ne!(status(&output), 0);
        let output =
            required(world, "allowed_sandbox_modes = ['workspace-write']", &["--", "-fc", "print in"]);
        assert!(text(&output.stderr).contains("read-only must be among them") && stdout(&output).is_empty());
    });
}

#[test]
fn what_nobody_may_read_stays_denied_and_rules_of_the_operator_stay() {
    for_each_user(|world| {
        let secret = world.write("outside/secret", "secret\n");
        let requirements = format!(
            "permissions.filesystem.deny_read = ['{}', '{}/**/*.pem', '~/hidden']\n\
             [rules]\nprefix_rules = [{{ pattern = [{{ token = 'git' }}, {{ any_of = ['push', 'fetch'] }}], decision = 'forbidden', justification = 'not here' }}]\n",
            world.outside.display(),
            world.workspace.display()
        );
        world.write("ws/key.pem", "key\n");
        let rules = world.write(
            "r.rules",
            "prefix_rule(['cat'], execution = 'unsandboxed')\nprefix_rule(['git', 'push'])\nhost_executable('git', ['/nowhere/git'])\n",
        );
        let script = format!(
            "cat {0}; cat key.pem deep/er/key.pem; /bin/cat < {0}; head {0}; git push; true",
            secret.display()
        );
        // Nothing that is more specific opens it again, in the turn or where a rule leads, nor fewer levels.
        let reopens = |name: &str| {
            format!(
                "[permissions.{name}.filesystem]\n':root' = 'read'\n'{}' = 'read'\nglob_scan_max_depth = 1\n",
                secret.display()
            )
        };
        std::fs::create_dir_all(world.workspace.join("deep/er")).unwrap();
        world.write("ws/deep/er/key.pem", "key\n");
        let config = world.write("c.toml", reopens("p") + &reopens("q"));
        let rules = rules.to_str().unwrap();
        let with = ["--config", config.to_str().unwrap(), "--rules", rules];
        for turn in
            [["--sandbox", "workspace-write"], ["--sandbox", "danger-full-access"], ["--profile", "p"]]
        {
            let output =
                required(world, &requirements, &[&turn, &with[..], &["--", "-fc", &script]].concat());
            assert_eq!(stdout(&output), "", "{turn:?}");
            let said = text(&output.stderr);
            assert!(said.contains("forbidden by rule /etc/postern/requirements.toml:3: not here"), "{said}");
        }
        let output = required(world, "", &["--rules", rules, "--", "-fc", &script]);
        assert_eq!(stdout(&output).lines().count(), 5, "nothing denies it: {}", text(&output.stderr));
    });
}

fn trust(world: &World, arguments: &[&str]) -> (bool, String) {
    let output = finish(world.postern().arg("trust").args(arguments));
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_projects_policy_counts_while_it_is_what_was_trusted() {
    for_each_user(|world| {
        let script = "git status > /dev/null; print $?; print x > x; print $?";
        let run = || stdout(&finish(world.postern().args(["--", "-fc", script])));
        assert!(trust(world, &[]).1.contains("has no policy of its own"));
        std::fs::create_dir_all(world.workspace.join(".postern/rules")).unwrap();
        world.write("ws/.postern/config.toml", "sandbox = 'read-only'\n");
        let rules = "prefix_rule(['git', 'status'], decision = 'forbidden')\n";
        world.write("ws/.postern/rules/p.rules", rules);
        assert_eq!(run(), "0\n0", "nobody trusts it");
        let (_, shown) = trust(world, &[]);
        assert!(shown.contains(rules.trim()) && shown.contains("sandbox = 'read-only'"), "{shown}");
        let hash = shown.trim_end().rsplit(' ').next().unwrap().to_owned();
        let (done, said) = trust(world, &["--accept", "00000000"]);
        assert!(!done && said.contains("is not the hash of what is there now"), "{said}");
        // What changed since it was looked at is not what was looked at.
        world.write("ws/.postern/rules/q.rules", "prefix_rule(['cat'])\n");
        assert!(!trust(world, &["--accept", &hash]).0);
        std::fs::remove_file(world.workspace.join(".postern/rules/q.rules")).unwrap();
        assert!(!trust(world, &["--accept", &hash[..60]]).0, "the whole of it");
        assert!(trust(world, &["--accept", &hash]).0);
        assert!(trust(world, &[]).1.contains("trusted: sessions here go by it"));
        assert_eq!(run(), "126\n1");
        // From a directory of the project too.
        let below = world.workspace.join("below");
        std::fs::create_dir(&below).unwrap();
        world.own();
        let mut command = world.postern();
        let output = finish(command.current_dir(&below).args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "126\n1");
        // Nothing that is put in between takes it away.
        assert!(world.plain("git", &["init", "-q", "below"]).status.success());
        std::fs::create_dir(below.join(".postern")).unwrap();
        world.write("ws/below/.postern/config.toml", "sandbox = 'danger-full-access'\n");
        let mut command = world.postern();
        let output = finish(command.current_dir(&below).args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "126\n1");
        world.write("ws/.postern/rules/p.rules", "prefix_rule(['git', 'status'], decision = 'forbidden') \n");
        assert_eq!(run(), "0\n0", "any change is another policy");
        let said = text(&finish(world.postern().args(["--", "-fc", "true"])).stderr);
        assert!(said.contains("it has changed since it was trusted"), "{said}");
        // Nor does what cannot be read go without a word.
        std::fs::write(world.workspace.join(".postern/rules/p.rules"), b"\xff").unwrap();
        let said = text(&finish(world.postern().args(["--", "-fc", "true"])).stderr);
        assert!(said.contains("it has changed since it was trusted"), "{said}");
        world.write("ws/.postern/rules/p.rules", rules);
        assert_eq!(run(), "126\n1");
        assert!(trust(world, &["--revoke"]).0);
        assert_eq!(run(), "0\n0");
    });
}

#[test]
fn a_project_does_not_say_everything_and_a_planted_one_harms_nobody() {
    for_each_user(|world| {
        let own = world.workspace.join(".postern");
        std::fs::create_dir_all(&own).unwrap();
        world.write("ws/.postern/config.toml", "on_prompt = 'deny'\n");
        let (_, shown) = trust(world, &[]);
        let hash = shown.trim_end().rsplit(' ').next().unwrap();
        assert!(trust(world, &["--accept", hash]).0);
        let output = finish(world.postern().args(["--", "-fc", "print in"]));
        assert!(text(&output.stderr).contains("config.toml: on_prompt: a project does not say this"));
        // Links, pipes and what is not text are nothing that anybody could trust.
        let outside = world.write("outside/evil.toml", "sandbox = 'danger-full-access'\n");
        std::fs::remove_file(own.join("config.toml")).unwrap();
        for plant in [
            format!("ln -s {} .postern/config.toml", outside.display()),
            "rm -f .postern/config.toml; mkfifo .postern/config.toml".to_owned(),
            "rm -f .postern/config.toml; printf '\\377' > .postern/config.toml".to_owned(),
            "rm -f .postern/config.toml; ln -s ../.. .postern/rules".to_owned(),
            "rm -rf .postern; ln -s ../outside .postern".to_owned(),
        ] {
            assert!(world.plain("sh", &["-c", &plant]).status.success(), "{plant}");
            let (done, said) = trust(world, &[]);
            assert!(!done, "{plant}: {said}");
            let output = finish(world.postern().args(["--sandbox", "read-only", "--", "-fc", "print in"]));
            assert_eq!(stdout(&output), "in", "{plant}: {}", text(&output.stderr));
        }
    });
}
