//! Answering one's own questions, and changing what was asked about before the answer.

use std::io::{Read, Write};
use std::process::Stdio;

use postern_tests::{World, eventually, finish, for_each_user, prefix, stdout, text};
use serde_json::{Value, json};

/// The one prompt that waits, with its session.
pub(crate) fn waiting(world: &World) -> (String, String) {
    let mut found = None;
    eventually("a prompt waits", || {
        let output = finish(world.postern().args(["approve", "--list", "--json"]));
        let states = text(&output.stdout);
        let mut states = states.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        found = states.find_map(|state| {
            Some((state["session"].as_str()?.to_owned(), state["waiting"][0]["id"].as_str()?.to_owned()))
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_session_does_not_answer_for_itself() {
    for_each_user(|world| {
        let postern = prefix().join("bin/postern");
        // Without a sandbox too: whoever types the commands never approves them.
        let rules = format!(
            "prefix_rule(['date'], decision = 'prompt')\nprefix_rule(['{}'], execution = 'unsandboxed')\n",
            postern.display()
        );
        let script = format!(
            "date & sleep 0.3; {0} approve --list; print 'session' | {0} approve; env {0} approve --list; \
             kill $!; wait $!; print $?",
            postern.display()
        );
        let mut command = world.postern();
        let output =
            finish(command.arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", &script]));
        assert_eq!(stdout(&output), "143");
        let stderr = text(&output.stderr);
        // Inside, the state directory is not there; outside, the ancestors tell.
        assert_eq!(stderr.matches("a session's own commands do not answer for it").count(), 2, "{stderr}");
        assert!(stderr.contains("no session can be seen from here"), "{stderr}");
        assert!(world.records().iter().all(|line| line["approval"]["decision"] != "approved"));
    });
}

#[test]
fn nor_does_anybody_without_the_operators_token() {
    for_each_user(|world| {
        let mut command = world.postern();
        command.arg("--rules").arg(world.write("r.rules", "prefix_rule(['date'], decision = 'prompt')"));
        let child = command
            .args(["--", "-fc", "date"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (session, prompt) = waiting(world);
        let directory = std::fs::File::open(world.root.join("state/postern/control")).unwrap();
        let path = format!("/proc/self/fd/{}/{session}", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let say = |line: String| {
            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            // A server that has heard enough may close before it has read all.
            let _heard = stream.write_all(line.as_bytes());
            let mut said = String::new();
            let _closed = stream.read_to_string(&mut said);
            said
        };
        let token = std::fs::read_to_string(world.root.join("state/postern/operator-token")).unwrap();
        let order = |token: &str, choice: Value| {
            format!("{}\n", json!({ "answer": { "token": token, "prompt": prompt, "choice": choice } }))
        };
        for line in [
            order("", json!("once")),
            order(&"0".repeat(64), json!("once")),
            order(&token, json!("amend")),
            order(&token, json!({ "uses": 0 })),
            format!("{}\n", json!({ "answer": { "token": token, "prompt": "ffffff", "choice": "once" } })),
            format!(
                "{}\n",
                json!({ "answer": { "token": token, "prompt": prompt, "choice": "once", "more": 1 } })
            ),
            "\n".to_owned(),
            "{".repeat(100_000),
            "once\n".to_owned(),
        ] {
            let said = say(line.clone());
            assert!(said.starts_with("{\"refused\"") || said.is_empty(), "{line}: {said}");
        }
        // The right one does.
        assert_eq!(say(order(&token, json!("deny"))), "\"done\"\n");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(126), "{}", text(&output.stderr));
    });
}

#[test]
fn what_changes_while_the_question_waits_does_not_run() {
    for_each_user(|world| {
        let rules =
            "prefix_rule(['bash'], decision = 'prompt')\nprefix_rule(['grep'], decision = 'prompt')\n";
        let run = |script: &str, meanwhile: &dyn Fn(), choice: &str| {
            let mut command = world.postern();
            command.arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", script]);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let (_, prompt) = waiting(world);
            meanwhile();
            let said = finish(world.postern().args(["approve", &prompt, choice]));
            let refused = text(&said.stderr);
            if !refused.is_empty() {
                finish(world.postern().args(["approve", &prompt, "--once"]));
            }
            (child.wait_with_output().unwrap(), refused)
        };
        let good = "print 'grep -c Seccomp:.2 /proc/self/status' > deploy.sh; ";
        // Left alone, it runs as approved: outside.
        let (output, _) = run(&format!("{good} bash deploy.sh"), &|| (), "--once");
        assert_eq!(stdout(&output), "0", "{}", text(&output.stderr));
        let swap = || {
            std::fs::write(world.workspace.join("deploy.sh"), "echo swapped").unwrap();
        };
        let (output, _) = run(&format!("{good} bash deploy.sh"), &swap, "--once");
        assert_eq!((stdout(&output).as_str(), output.status.code()), ("", Some(126)));
        assert!(text(&output.stderr).contains("changed while the approval was waited for"));
        // And a yes for longer is not to be had for what the sandbox can write.
        let (output, refused) = run(&format!("{good} bash deploy.sh"), &|| (), "--session");
        assert!(refused.contains("session is not offered"), "{refused}");
        assert_eq!(stdout(&output), "0");
        // A program of the workspace runs as the copy that was shown.
        let program = "cp /bin/grep grep; ./grep -c Seccomp:.2 /proc/self/status";
        let swap = || {
            std::fs::remove_file(world.workspace.join("grep")).unwrap();
            std::fs::copy("/bin/echo", world.workspace.join("grep")).unwrap();
        };
        let (output, _) = run(program, &swap, "--once");
        assert_eq!(stdout(&output), "0", "{}", text(&output.stderr));
    });
}

/// Runs a script, whose one question is approved after something was done meanwhile.
fn approved_after(
    world: &World,
    rules: &str,
    script: &str,
    meanwhile: impl FnOnce(),
) -> std::process::Output {
    let mut command = world.postern();
    command.arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (_, prompt) = waiting(world);
    meanwhile();
    finish(world.postern().args(["approve", &prompt, "--once"]));
    child.wait_with_output().unwrap()
}

/// What a swapped file does: it says where it runs.
const SWAPPED: &str = "echo swapped $(grep Seccomp: /proc/self/status)";

#[test]
fn another_interpreter_line_is_another_script() {
    for_each_user(|world| {
        let executable = |name: &str, text: &str| {
            let path = world.write(name, text);
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            path
        };
        executable("ws/evil", &format!("#!/bin/sh\n{SWAPPED}\n"));
        let evil = format!("#!{}/evil\necho good\n", world.workspace.display());
        let prepare = || {
            let _none = std::fs::remove_file(world.workspace.join("tool"));
            executable("ws/tool", "#!/bin/sh\necho good\n")
        };
        // In place, as another file of that name, and by a link.
        let in_place = || std::fs::write(world.workspace.join("tool"), &evil).unwrap();
        let renamed = || std::fs::rename(executable("ws/new", &evil), world.workspace.join("tool")).unwrap();
        let linked = || {
            std::fs::remove_file(world.workspace.join("tool")).unwrap();
            std::os::unix::fs::symlink(executable("ws/new", &evil), world.workspace.join("tool")).unwrap();
        };
        let swaps: [&dyn Fn(); 3] = [&in_place, &renamed, &linked];
        for swap in swaps {
            let tool = prepare();
            swap();
            let plain = world.plain(&tool, &[]);
            assert!(stdout(&plain).starts_with("swapped"), "{}", text(&plain.stderr));
            prepare();
            let rules = format!(
                "prefix_rule(['{}'], decision = 'prompt', execution = 'turn_default')",
                tool.display()
            );
            let output = approved_after(world, &rules, "$PWD/tool", swap);
            assert_eq!(
                (stdout(&output).as_str(), output.status.code()),
                ("", Some(126)),
                "{}",
                text(&output.stderr)
            );
        }
        // For more than the sandbox has, too, nothing runs that nobody was asked about.
        for execution in ["unsandboxed", "network"] {
            let tool = prepare();
            let rules = format!(
                "prefix_rule(['{}'], decision = 'prompt', execution = '{execution}')",
                tool.display()
            );
            let output = world.session(&rules, "$PWD/tool");
            assert_eq!((stdout(&output).as_str(), output.status.code()), ("", Some(126)));
            assert!(text(&output.stderr).contains("nobody is asked"), "{}", text(&output.stderr));
        }
    });
}

#[test]
fn what_a_kept_variable_or_an_option_names_does_not_change_while_the_question_waits() {
    for_each_user(|world| {
        let swap = |text: &str| {
            let path = world.write("ws/named", text);
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        };
        let script = format!("#!/bin/sh\n{SWAPPED} >&2\n");
        let mut ran = Vec::new();
        let sed = format!("1e {SWAPPED} >&2\n");
        for (rule, line, swapped) in [
            ("'git'", "GIT_SSH_COMMAND=$PWD/named git ls-remote ssh://127.0.0.1:9/x", &script),
            ("'git'", "GIT_SSH_COMMAND=./named git ls-remote ssh://127.0.0.1:9/x", &script),
            ("'bash'", "BASH_ENV=named bash -c :", &script),
            ("'sed'", "print x | sed -fnamed", &sed),
            ("'make'", "make -fnamed", &format!("all:; @{SWAPPED} >&2\n").replace("$(", "$$(")),
            ("'env'", "env -S'sh named'", &script),
        ] {
            let rules = format!(
                "prefix_rule([{rule}], decision = 'prompt', env_keep = ['GIT_SSH_COMMAND', 'BASH_ENV'])"
            );
            swap(swapped);
            let plain = world.plain(prefix().join("libexec/postern/zsh"), &["-fc", line]);
            assert!(text(&plain.stderr).contains("swapped Seccomp:"), "{line}: {}", text(&plain.stderr));
            swap("");
            let output = approved_after(world, &rules, line, || swap(swapped));
            if text(&output.stderr).contains("swapped Seccomp:") {
                ran.push(line);
            }
        }
        assert!(ran.is_empty(), "{ran:#?}");
    });
}

#[test]
fn nothing_that_a_prompt_shows_hides_or_moves_anything() {
    for_each_user(|world| {
        let mut command = world.postern();
        command.arg("--rules").arg(world.write("r.rules", "prefix_rule(['date'], decision = 'prompt')"));
        let script = "$'\\e[2Jf'() { date $'\\e[2J\\e]0;x\\a' $'\\u202egpj.exe' $'d\\u0430te' ${(l:9000::x:)} $'a\\nb' }; cd $'\\e[8m'; $'\\e[2Jf'";
        world.write("ws/.keep", "");
        std::fs::create_dir(world.workspace.join("\u{1b}[8m")).unwrap();
        world.own();
        let child = command
            .args(["--", "-fc", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (_, prompt) = waiting(world);
        let shown = finish(world.postern().args(["approve", &prompt]));
        let broken = text(&shown.stdout);
        let shown = broken.replace(&format!("\n{}\\ ", " ".repeat(22)), "");
        assert!(broken.chars().all(|one| !one.is_control() || one == '\n'), "{broken:?}");
        assert!(!shown.contains('\u{202e}') && shown.contains("\\u{202e}gpj.exe"), "{shown}");
        assert!(shown.contains("U+0430"), "look-alikes are named: {shown}");
        // What would run is shown to its end, or is not asked about.
        assert!(shown.contains(&"x".repeat(9000)), "the whole command");
        // No terminal of 80 columns breaks a line: what it put at the left could look like a field.
        assert!(broken.lines().skip(1).all(|line| line.chars().count() < 80), "{broken}");
        finish(world.postern().args(["approve", &prompt, "--deny"]));
        let output = child.wait_with_output().unwrap();
        let stderr = text(&output.stderr);
        assert!(stderr.chars().all(|one| !one.is_control() || one == '\n'), "{stderr:?}");
        let long =
            world.session("prefix_rule(['date'], decision = 'prompt')", "date ${(l:20000::x:)} hidden");
        assert!(text(&long.stderr).contains("its command line is too long to be shown"));
    });
}

#[test]
fn no_approval_holds_for_longer_where_something_else_could_run() {
    for_each_user(|world| {
        std::fs::create_dir(world.workspace.join("pkg")).unwrap();
        world.write("ws/pkg/__main__.py", "print(1)");
        world.write("ws/x.sh", "echo 1");
        world.write("ws/commands", "p");
        std::os::unix::fs::symlink("/usr/bin/which", world.workspace.join("link.sh")).unwrap();
        world.own();
        let rules = "prefix_rule([['bash', 'python3', 'env', 'head', 'date', 'wc', 'sed', 'git']], decision = 'prompt', env_keep = ['GIT_SSH_COMMAND', 'GIT_EXTERNAL_DIFF'])";
        let mut wrong = Vec::new();
        for (script, lasting) in [
            ("date +x", true),
            ("head -n 1 /etc/passwd", true),
            ("date --file=x.sh", false),
            ("bash <(echo echo 1)", false),
            ("mkfifo f; { echo echo 1 > f } & bash f; kill $!", false),
            ("echo echo 1 | bash", false),
            ("python3 pkg", false),
            ("env '-Sbash x.sh'", false),
            ("head link.sh", false),
            ("head missing.sh", false),
            ("head pkg", false),
            ("wc {1..100} x.sh", false),
            ("head /dev/fd/0 < x.sh", false),
            ("head /proc/self/fd/0 < x.sh", false),
            ("sed -nfcommands /dev/null", false),
            // As `strace make` does, it may start what it names.
            ("date +x make", false),
            ("date +x /usr/bin/make", false),
            // What a repository, or a variable that is kept, names.
            ("git status", false),
            ("GIT_SSH_COMMAND=$PWD/x.sh git fetch", false),
            ("GIT_EXTERNAL_DIFF=x.sh git diff", false),
        ] {
            let mut command = world.postern();
            command.arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", script]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let (_, prompt) = waiting(world);
            let said = finish(world.postern().args(["approve", &prompt, "--session"]));
            if said.status.success() != lasting {
                wrong.push(script);
            }
            if !said.status.success() {
                finish(world.postern().args(["approve", &prompt, "--deny"]));
            }
            child.wait().unwrap();
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

#[test]
fn what_is_too_large_to_be_watched_is_not_asked_about() {
    for_each_user(|world| {
        let rules = "prefix_rule(['bash'], decision = 'prompt')\nprefix_rule(['tool'], decision = 'prompt', execution = 'turn_default')";
        let run = |script: &str| {
            let mut command = world.postern();
            command.args(["--on-prompt", "wait:1"]).arg("--rules").arg(world.write("r.rules", rules));
            let began = std::time::Instant::now();
            let output = finish(command.args(["--", "-fc", script]));
            assert!(began.elapsed() < std::time::Duration::from_secs(20), "{script}");
            text(&output.stderr)
        };
        let said = run("print 'echo good' > x.sh; truncate -s 65M x.sh; bash x.sh");
        assert!(said.contains("too much to be watched"), "{said}");
        let said = run("for n in {1..64}; do truncate -s 1M f$n; done; bash f{1..64}");
        assert!(said.contains("too much to be watched"), "{said}");
        // Nothing of this size is on the disk, and nobody waits for it to be read.
        let said = run("truncate -s 1T tool; chmod +x tool; ./tool");
        assert!(said.contains("nobody answered within 1 s"), "{said}");
    });
}

#[test]
fn a_program_that_changes_while_its_question_waits_does_not_run_in_the_turn_either() {
    for_each_user(|world| {
        let mut command = world.postern();
        let rules = "prefix_rule(['tool'], decision = 'prompt', execution = 'turn_default')";
        command.arg("--rules").arg(world.write("r.rules", rules));
        let script = "cp /bin/echo tool; ./tool shown";
        let child = command
            .args(["--", "-fc", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (_, prompt) = waiting(world);
        let shown = finish(world.postern().args(["approve", &prompt]));
        assert!(stdout(&shown).contains("if it"), "{}", stdout(&shown));
        std::fs::write(world.workspace.join("tool"), std::fs::read("/bin/ls").unwrap()).unwrap();
        finish(world.postern().args(["approve", &prompt, "--once"]));
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "");
        assert!(
            text(&output.stderr).contains("changed while the approval was waited for"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn a_flood_of_questions_ends_in_denials() {
    for_each_user(|world| {
        let mut command = world.postern();
        command.arg("--rules").arg(world.write("r.rules", "prefix_rule(['date'], decision = 'prompt')"));
        let script = "for n in {1..90}; do date $n & sleep 0.02; kill $!; wait $!; done; true";
        let output = finish(command.args(["--", "-fc", script]));
        assert!(text(&output.stderr).contains("too many questions"), "{}", text(&output.stderr));
    });
}
