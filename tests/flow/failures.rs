//! What fails in the sandbox and may run a second time without one.

use std::process::{Child, Stdio};

use postern_tests::{World, eventually, finish, for_each_user, stdout, text};
use serde_json::Value;

fn start(world: &World, options: &[&str], script: &str) -> Child {
    let mut command = world.postern();
    command.args(["--approval", "on-failure"]).args(options).args(["--", "-fc", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The one prompt that waits.
fn waiting(world: &World) -> Value {
    let mut prompt = Value::Null;
    eventually("a prompt waits", || {
        let states = text(&finish(world.postern().args(["approve", "--list", "--json"])).stdout);
        let state = states.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
        prompt = state.map(|state| state["waiting"][0].clone()).unwrap_or_default();
        prompt.is_object()
    });
    prompt
}

fn answer(world: &World, prompt: &Value, choice: &str) {
    let output = finish(world.postern().args(["approve", prompt["id"].as_str().unwrap(), choice]));
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Says that it ran, and fails if it cannot write outside.
fn tool(world: &World) -> String {
    let tool = world
        .write("outside/tool", "#!/bin/sh\necho ran\nread -r line; echo \"$line\"\ntouch \"$1\" || exit 4\n");
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    format!("{} {}", tool.display(), world.outside.join("made").display())
}

#[test]
fn what_failed_runs_a_second_time_if_somebody_says_so() {
    for_each_user(|world| {
        world.write("ws/lines", "one\ntwo\n");
        let child = start(world, &[], &format!("{} < lines; print $?", tool(world)));
        let prompt = waiting(world);
        let because =
            prompt["fields"].as_array().unwrap().iter().find(|field| field["name"] == "because").unwrap();
        assert_eq!(because["text"], "it ended with status 4 inside the sandbox, and would run a second time");
        assert!(!world.outside.join("made").exists());
        answer(world, &prompt, "--once");
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "ran\none\nran\ntwo\n0", "{}", text(&output.stderr));
        assert!(world.outside.join("made").exists());
        let records = world.records();
        let runs: Vec<_> = records.iter().filter(|line| line["decision"] == "escalate").collect();
        let told = |at: usize| {
            (runs[at]["execution"].as_str().unwrap(), runs[at]["outcome"]["code"].as_i64().unwrap())
        };
        assert_eq!((runs.len(), told(0), told(1)), (2, ("turn_default", 4), ("unsandboxed", 0)));
        assert_eq!(runs[1]["judgement"]["source"], "failure");
        for (at, part) in [(0, "so that a failure is seen"), (1, "it failed inside the sandbox")] {
            let why = finish(world.postern().arg("why").arg(runs[at]["seq"].to_string()));
            assert!(text(&why.stdout).contains(part), "{}", text(&why.stdout));
        }
    });
}

#[test]
fn a_second_run_has_the_signals_blocked_and_ignored_that_the_first_one_had() {
    for_each_user(|world| {
        // Not sh: some clear the mask.
        let tool = "#!/usr/bin/python3\nimport signal, sys\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, []), \
                    signal.getsignal(signal.SIGINT) == signal.SIG_IGN, flush=True)\nopen(sys.argv[1], 'w')\n";
        let tool = world.write("outside/tool", tool);
        std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let made = world.outside.join("made");
        let script = format!(
            "zmodload zsh/zselect; (trap '' INT; exec {} {}) & until [[ -e asked ]] {{ zselect -t 2 }}; kill -INT $!; \
             : > sent; wait $!",
            tool.display(),
            made.display()
        );
        let child = start(world, &[], &script);
        let prompt = waiting(world);
        // What it ignores does nothing to who waits either.
        std::fs::write(world.workspace.join("asked"), "").unwrap();
        eventually("it was sent a signal", || world.workspace.join("sent").exists());
        answer(world, &prompt, "--once");
        let output = child.wait_with_output().unwrap();
        let once = "set() True";
        assert_eq!(stdout(&output), format!("{once}\n{once}"), "{}", text(&output.stderr));
        assert!(made.exists());
    });
}

#[test]
fn what_somebody_did_not_let_run_again_ends_as_it_ended_and_is_not_asked_about_twice() {
    for_each_user(|world| {
        let tool = tool(world);
        let child = start(world, &[], &format!("{tool} < /dev/null; print $?; {tool} < /dev/null; print $?"));
        answer(world, &waiting(world), "--deny");
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "ran\n\n4\nran\n\n4");
        assert!(!text(&output.stderr).contains("denied"), "{}", text(&output.stderr));
        // Nor where nobody is asked.
        let child = start(world, &["--on-prompt", "deny"], &format!("{tool} < /dev/null; print $?"));
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "ran\n\n4");
        assert!(!text(&output.stderr).contains("postern: "), "{}", text(&output.stderr));
    });
}

#[test]
fn what_ends_well_or_says_nothing_about_the_sandbox_is_not_asked_about() {
    for_each_user(|world| {
        let script = "grep -q x /dev/null; print $?; sh -c 'exit 127'; print $?; sh -c 'kill -TERM $$'; print $?; \
                      sh -c true && print fine; cp /bin/true own; ./own && print own; $TMPDIR/none; print $?";
        let output = finish(&mut {
            let mut command = world.postern();
            command.args(["--approval", "on-failure", "--", "-fc", script]);
            command
        });
        assert_eq!(stdout(&output), "1\n127\n143\nfine\nown\n127", "{}", text(&output.stderr));
        assert!(world.records().iter().all(|line| line["approval"].is_null()));
    });
}

#[test]
fn whoever_waits_for_the_second_run_can_be_ended() {
    for_each_user(|world| {
        for signal in ["TERM", "INT"] {
            let script = format!(
                "(trap - INT; exec sh -c 'exit 3') & until [[ -e go ]] sleep 0.01; kill -{signal} $!; wait $!; print $?"
            );
            let child = start(world, &[], &script);
            waiting(world);
            world.write("ws/go", "");
            let output = child.wait_with_output().unwrap();
            let expected = if signal == "TERM" { "143" } else { "130" };
            assert_eq!(stdout(&output).lines().last(), Some(expected), "{}", text(&output.stderr));
            std::fs::remove_file(world.workspace.join("go")).unwrap();
        }
    });
}

#[test]
fn what_is_denied_stays_denied_the_second_time() {
    for_each_user(|world| {
        let secret = world.write("outside/secret", "secret\n");
        let config = world.write(
            "c.toml",
            format!(
                "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n'{}' = 'none'\n",
                secret.display()
            ),
        );
        let config = config.to_str().unwrap();
        let child = start(
            world,
            &["--config", config],
            &format!("sh -c 'cat {}; exit 5'; print $?", secret.display()),
        );
        let prompt = waiting(world);
        let place =
            prompt["fields"].as_array().unwrap().iter().find(|field| field["name"] == "where").unwrap();
        assert!(place["text"].as_str().unwrap().contains("everything"), "{place}");
        answer(world, &prompt, "--once");
        assert_eq!(stdout(&child.wait_with_output().unwrap()), "5");
    });
}
