//! Scripts of the workspace that are let run for more than the sandbox has.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use postern_tests::{User, World, finish, for_each_user, prefix, status, stdout, text};
use serde_json::Value;

use crate::approvals::{answer, end, prompts, start_with};

/// Writes a program.
fn executable(world: &World, name: &str, content: &str) -> PathBuf {
    let path = world.write(name, content);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Starts a session in which `tool` asks, to run under this.
fn start(world: &World, execution: &str, options: &[&str], script: &str) -> Child {
    let rules = format!("prefix_rule(['tool'], decision = 'prompt', execution = '{execution}')");
    start_with(world, options, &rules, script)
}

/// The one prompt that waits.
fn waiting(world: &World) -> Value {
    prompts(world, 1).remove(0)
}

fn field<'a>(prompt: &'a Value, name: &str) -> &'a str {
    let fields = prompt["fields"].as_array().unwrap();
    let found = fields.iter().find(|field| field["name"] == name);
    found.map_or("", |field| field["text"].as_str().unwrap())
}

/// Runs `tool` with a yes.
fn approved(world: &World, execution: &str, script: &str) -> Output {
    let child = start(world, execution, &[], script);
    answer(world, &waiting(world), &["--once"]);
    end(child)
}

fn ordinary(world: &World) -> bool {
    matches!(world.user, User::Ordinary { .. }) || !postern_tests::is_root()
}

#[test]
fn it_is_asked_about_and_runs_and_the_record_says_how() {
    for_each_user(|world| {
        let beside = world.outside.join("made");
        let code = format!(
            "#!/bin/bash\ngrep NoNewPrivs: /proc/self/status\ntouch {}\ncat\necho \"$0\" \"$@\"\nexit 7\n",
            beside.display()
        );
        let tool = executable(world, "ws/tool", &code);
        let mut exec = world.postern();
        exec.args(["exec", "--sandbox-permissions", "require_escalated", "--", "./tool", "a b", "c"]);
        let mut child =
            exec.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"input\n").unwrap();
        let prompt = waiting(world);
        let runs = field(&prompt, "runs");
        let hash = runs.split("blake3 ").nth(1).unwrap().trim_end_matches('…').to_owned();
        assert!(runs.contains("the sandbox can write it: a copy runs, made before this question"), "{runs}");
        let caveats = field(&prompt, "not covered");
        assert!(caveats.contains("sources, imports, loads or starts"), "{caveats}");
        assert_eq!(caveats.contains("sudo"), ordinary(world), "{caveats}");
        let offered = prompt["offered"].as_array().unwrap();
        assert_eq!(*offered, ["once", "deny", "abort"], "what it reads beside it may be another next time");
        answer(world, &prompt, &["--once"]);
        let output = end(child);
        let privileges = u8::from(ordinary(world));
        let expected = format!("NoNewPrivs:\t{privileges}\ninput\n{} a b c", tool.display());
        assert_eq!((stdout(&output), status(&output)), (expected, 7), "{}", text(&output.stderr));
        assert!(beside.exists(), "it ran outside");
        let record = world.record("tool");
        assert_eq!(record["execution"], "unsandboxed");
        assert!(record["attested"]["exe"]["blake3"].as_str().unwrap().starts_with(&hash), "{record}");
        let bash = Path::new("/bin/bash").canonicalize().unwrap();
        assert_eq!(record["script"]["interpreter"], bash.to_str().unwrap());
        assert_eq!(record["script"]["no_new_privs"], ordinary(world));
        assert_eq!(record["outcome"]["code"], 7);
    });
}

#[test]
fn a_yes_is_for_one_run_of_the_bytes_that_are_shown() {
    for_each_user(|world| {
        executable(world, "ws/tool", "#!/bin/sh\necho one\n");
        let child = start(world, "unsandboxed", &[], "./tool; ./tool; ./tool; true");
        let first = waiting(world);
        executable(world, "ws/tool", "#!/bin/sh\necho two\n");
        answer(world, &first, &["--once"]);
        let second = waiting(world);
        assert_ne!(field(&first, "runs"), field(&second, "runs"));
        answer(world, &second, &["--once"]);
        answer(world, &waiting(world), &["--deny"]);
        let output = end(child);
        assert_eq!(stdout(&output), "one\ntwo", "{}", text(&output.stderr));
    });
}

#[test]
fn it_is_started_as_the_kernel_would_start_it() {
    for_each_user(|world| {
        let nested = executable(world, "outside/nested", "#!/bin/echo -n\n");
        let tool = world.workspace.join("tool");
        let shown = tool.display();
        for execution in ["unsandboxed", "network"] {
            for (code, expected) in [
                ("#!/bin/echo\n", format!("{shown} x y")),
                ("#! \t/bin/echo  one  argument \t\n", format!("one  argument {shown} x y")),
                ("#!/bin/sh -eu\necho $- $1", "ue x".to_owned()),
                ("#!/usr/bin/env -S bash -e\necho $1 $0", format!("x {shown}")),
                ("echo \"$0\" $2\n", format!("{shown} y")),
                (&*format!("#!{}\n", nested.display()), format!("{} {shown} x y", nested.display())),
            ] {
                executable(world, "ws/tool", code);
                let output = approved(world, execution, "exec -a other ./tool x y");
                assert_eq!(stdout(&output), expected, "{execution} {code:?} {}", text(&output.stderr));
            }
        }
        // Each open begins at the beginning, and what is inherited is the same.
        let code = "#!/bin/bash\nexec 8< \"$0\" 9< \"$0\"; head -c 3 <&8; head -c 4 <&9; sh -c 'head -c 3 <&9'; wc -c < \"$0\"\n";
        executable(world, "ws/tool", code);
        let output = approved(world, "unsandboxed", "./tool");
        assert_eq!(stdout(&output), format!("#!/#!/bin/{}", code.len()), "{}", text(&output.stderr));
        // By a link it is the file that the link leads to.
        executable(world, "ws/real", "#!/bin/bash\necho ${0##*/}\n");
        std::fs::remove_file(&tool).unwrap();
        symlink("real", &tool).unwrap();
        let output = approved(world, "unsandboxed", "./tool");
        assert_eq!(stdout(&output), "real", "{}", text(&output.stderr));
    });
}

#[test]
fn a_sandbox_serves_it_whatever_else_it_serves() {
    for_each_user(|world| {
        let named = world.outside.join("named.sock");
        let listener = UnixListener::bind(&named).unwrap();
        world.own();
        std::thread::spawn(move || {
            while let Ok((mut connection, _)) = listener.accept() {
                let _gone = connection.write_all(b"hello");
            }
        });
        let config = format!(
            "[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n[permissions.p.network]\nunix_sockets = ['{}']\n",
            named.display()
        );
        let config = world.write("c.toml", config);
        // A named socket, the request socket, files, and what the sandbox refuses.
        let code = format!(
            "#!/usr/bin/python3 -I\nimport os, socket\nprint(open(__file__).readline(), end='')\n\
             s = socket.socket(socket.AF_UNIX)\ns.connect('{}')\nprint(s.recv(9).decode())\n\
             print(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0x504f5354).fileno() > 2)\n\
             try: open('{}/x', 'w')\nexcept OSError as error: print(error.strerror)\n",
            named.display(),
            world.outside.display()
        );
        executable(world, "ws/tool", &code);
        let child = start(world, "p", &["--config", config.to_str().unwrap()], "./tool");
        answer(world, &waiting(world), &["--once"]);
        let output = end(child);
        let expected = "#!/usr/bin/python3 -I\nhello\nTrue\nRead-only file system";
        assert_eq!(stdout(&output), expected, "{}", text(&output.stderr));
        // What it starts is judged as anything there.
        let zsh = prefix().join("libexec/postern/zsh");
        executable(world, "ws/tool", &format!("#!{} -f\n./tool; date; print $?\n", zsh.display()));
        let rules = "prefix_rule(['date'], decision = 'forbidden')\nprefix_rule(['tool'], decision = 'prompt', execution = 'network')";
        let mut command = world.postern();
        command.arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", "./tool"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        answer(world, &waiting(world), &["--once"]);
        // It asks for itself, from there.
        answer(world, &waiting(world), &["--deny"]);
        let output = end(child);
        assert_eq!(stdout(&output), "126");
        assert!(text(&output.stderr).contains("date (forbidden by rule"), "{}", text(&output.stderr));
        let records = world.records();
        let mut copied = records.iter().filter(|record| record["script"].is_object());
        assert!(copied.all(|record| record["script"]["no_new_privs"] == true), "{records:#?}");
    });
}

#[test]
fn what_cannot_be_held_is_refused() {
    for_each_user(|world| {
        // Too large to be copied.
        let tool = executable(world, "ws/tool", "#!/bin/sh\n");
        std::fs::File::options().write(true).open(&tool).unwrap().set_len(257 << 20).unwrap();
        let output = end(start(world, "unsandboxed", &[], "./tool"));
        assert_eq!(status(&output), 126);
        assert!(text(&output.stderr).contains("larger than 256 MiB"), "{}", text(&output.stderr));
        // Where somebody else answers its calls already.
        executable(world, "ws/tool", "#!/bin/sh\necho ran\n");
        let rules = world.write("inner.rules", "prefix_rule(['tool'], decision = 'prompt')");
        let config = world.write(
            "c.toml",
            "allow_weaker = ['processes', 'metadata', 'device_nodes', 'protect_git', 'read_only_below']\n",
        );
        let script = format!(
            "mkdir $TMPDIR/w; cp tool $TMPDIR/w; cd $TMPDIR/w; export XDG_STATE_HOME=$TMPDIR/state; unset POSTERN_SOCKET; \
             {} --config {} --rules {} --cwd $PWD -- -fc './tool; print $?'",
            prefix().join("bin/postern").display(),
            config.display(),
            rules.display()
        );
        let output = finish(world.postern().args(["--", "-fc", &script]));
        let error = text(&output.stderr);
        assert_eq!(stdout(&output), "126", "{error}");
        assert!(error.contains("somebody else answers system calls already"), "{error}");
    });
}

#[test]
fn one_that_fails_may_run_a_second_time_from_a_new_copy() {
    for_each_user(|world| {
        let made = world.outside.join("made");
        executable(world, "ws/tool", &format!("#!/bin/sh\ntouch {} && echo made\n", made.display()));
        let mut command = world.postern();
        command.args(["--approval", "on-failure", "--", "-fc", "./tool; print $?"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let prompt = waiting(world);
        assert!(field(&prompt, "because").contains("would run a second time"), "{prompt}");
        answer(world, &prompt, &["--once"]);
        let output = end(child);
        assert_eq!(stdout(&output), "made\n0", "{}", text(&output.stderr));
        assert!(made.exists());
    });
}
