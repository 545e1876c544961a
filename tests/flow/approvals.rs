//! Questions, answers, and what becomes of whoever waits.

use std::process::{Child, Command, Output, Stdio};

use postern_tests::{World, eventually, finish, for_each_user, status, stdout, text};
use serde_json::Value;

const RULES: &str = "prefix_rule(['date'], decision = 'prompt', justification = 'asks')\n\
                     prefix_rule(['id'], decision = 'prompt', execution = 'read-only')\n";

pub(crate) fn start(world: &World, options: &[&str], script: &str) -> Child {
    start_with(world, options, RULES, script)
}

pub(crate) fn start_with(world: &World, options: &[&str], rules: &str, script: &str) -> Child {
    let mut command = world.postern();
    command.args(options).arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(crate) fn approve(world: &World, arguments: &[&str]) -> Output {
    finish(world.postern().arg("approve").args(arguments))
}

/// One prompt as it is shown, with its broken lines whole.
pub(crate) fn whole(world: &World, prompt: &Value) -> String {
    let broken = format!("\n{}\\ ", " ".repeat(22));
    stdout(&approve(world, &[id(prompt)])).replace(&broken, "")
}

/// The states of the world's sessions.
pub(crate) fn states(world: &World) -> Vec<Value> {
    let output = approve(world, &["--list", "--json"]);
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The prompts that wait, once there are so many.
pub(crate) fn prompts(world: &World, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    eventually("prompts wait", || {
        found = states(world).iter().flat_map(|state| state["waiting"].as_array().unwrap().clone()).collect();
        found.len() == count
    });
    found
}

pub(crate) fn id(prompt: &Value) -> &str {
    prompt["id"].as_str().unwrap()
}

pub(crate) fn answer(world: &World, prompt: &Value, choice: &[&str]) {
    let output = approve(world, &[&[id(prompt)], choice].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

pub(crate) fn end(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

#[test]
fn a_person_is_told_what_will_run_and_one_accept_is_one_run() {
    for_each_user(|world| {
        let child = start(world, &[], "f() { date +first; date +first }; f");
        let prompt = prompts(world, 1).remove(0);
        let shown = whole(world, &prompt);
        for part in [
            "command             date +first",
            "runs                /usr/bin/date",
            "of root, no sandbox can write it, blake3 ",
            "in                  ",
            "the sandbox can write there",
            "where               without a sandbox, as the user",
            "line 1, in f (as the shell says)",
            "r.rules:1 wants an approval: asks",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        answer(world, &prompt, &["--once"]);
        let second = prompts(world, 1).remove(0);
        assert_ne!(id(&second), id(&prompt));
        let late = approve(world, &[id(&prompt), "--once"]);
        assert!(text(&late.stderr).contains("answered, withdrawn, timed out"), "{}", text(&late.stderr));
        answer(world, &second, &["--deny"]);
        let output = end(child);
        assert_eq!((stdout(&output).as_str(), status(&output)), ("first", 126));
        let stderr = text(&output.stderr);
        let line =
            format!("postern: date +first waits for an approval (rule {}/r.rules:1", world.root.display());
        assert!(stderr.starts_with(&line), "{stderr}");
        assert!(stderr.contains(&format!("postern approve {}\n", id(&prompt))), "{stderr}");
        assert!(stderr.contains("postern: denied: date +first (denied by "), "{stderr}");
        let records = world.records();
        let approvals: Vec<_> =
            records.iter().map(|line| &line["approval"]).filter(|one| one.is_object()).collect();
        assert_eq!(approvals[0]["decision"], "approved");
        assert_eq!(approvals[0]["scope"], "once");
        assert_eq!(approvals[0]["id"], prompt["id"]);
        assert!(
            approvals[0]["wait_us"].as_u64().unwrap() > 0
                && approvals[0]["by"].as_str().unwrap().contains("pid")
        );
        assert_eq!(approvals[1]["decision"], "denied");
    });
}

#[test]
fn an_approval_for_longer_holds_for_the_same_and_nothing_else_until_it_is_revoked() {
    for_each_user(|world| {
        // Each step waits for a file, so that the grant can be looked at and taken back in between.
        let script = "wait() { until [[ -e $1 ]] sleep 0.01 }; date +1; date +1; date +2; wait one; date +1; wait two; date +1; true";
        let child = start(world, &[], script);
        answer(world, &prompts(world, 1)[0], &["--session"]);
        let other = prompts(world, 1).remove(0);
        assert_eq!(other["summary"], "date +2", "another argument asks");
        answer(world, &other, &["--uses", "1"]);
        let mut grants = Vec::new();
        eventually("one is left", || {
            grants = states(world)[0]["grants"].as_array().unwrap().clone();
            grants.len() == 1
        });
        assert_eq!(grants[0]["summary"], "date +1");
        world.write("ws/one", "");
        eventually("it ran", || {
            world.root.join("ws/one").exists() && states(world)[0]["waiting"].as_array().unwrap().is_empty()
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(approve(world, &["--revoke", id(&grants[0])]).status.success());
        assert!(!approve(world, &["--revoke", id(&grants[0])]).status.success());
        world.write("ws/two", "");
        let again = prompts(world, 1).remove(0);
        assert_eq!(again["summary"], "date +1");
        answer(world, &again, &["--until", "10m"]);
        let output = end(child);
        assert_eq!(stdout(&output), "1\n1\n2\n1\n1", "{}", text(&output.stderr));
        let granted = world.records().iter().filter(|line| line["approval"]["decision"] == "granted").count();
        assert_eq!(granted, 2);
    });
}

#[test]
fn equal_questions_are_one_prompt_with_an_answer_for_each() {
    for_each_user(|world| {
        let child = start(world, &[], "id -u & id -u & id -u & wait; true");
        let mut prompt = Value::Null;
        eventually("three wait", || {
            prompt = prompts(world, 1).remove(0);
            prompt["waiting"] == 3
        });
        let shown = stdout(&approve(world, &["--list"]));
        assert!(shown.contains("3 waiting") && shown.contains("under the profile read-only"), "{shown}");
        answer(world, &prompt, &["--once"]);
        eventually("two wait", || {
            prompt = prompts(world, 1).remove(0);
            prompt["waiting"] == 2
        });
        answer(world, &prompt, &["--deny"]);
        let output = end(child);
        assert_eq!(stdout(&output).lines().count(), 1);
        assert_eq!(text(&output.stderr).matches("denied by").count(), 2);
    });
}

#[test]
fn abort_denies_all_that_waits_and_interrupts_the_shell() {
    for_each_user(|world| {
        let child = start(world, &[], "date +a & date +b; print -n not reached");
        let prompt = prompts(world, 2).remove(1);
        answer(world, &prompt, &["--abort"]);
        let output = end(child);
        assert_eq!((stdout(&output).as_str(), status(&output)), ("", 128 + libc_sigint()));
        assert_eq!(text(&output.stderr).matches("aborted by").count(), 2);
    });
}

fn libc_sigint() -> i32 {
    nix::sys::signal::Signal::SIGINT as i32
}

#[test]
fn nobody_waits_for_an_answer_that_does_not_come() {
    for_each_user(|world| {
        let output = end(start(world, &["--on-prompt", "wait:1"], "date; print $?"));
        assert_eq!(stdout(&output), "126");
        assert!(text(&output.stderr).contains("nobody answered within 1 s"), "{}", text(&output.stderr));
        let bad = end(start(world, &["--on-prompt", "wait:0"], "date"));
        assert!(text(&bad.stderr).contains("wait:SECONDS"), "{}", text(&bad.stderr));
        // Whoever asked has gone.
        let child = start(world, &[], "date & sleep 0.3; kill -KILL $!; wait $!; print $?; id -u");
        let prompt = prompts(world, 1).remove(0);
        let other = loop {
            let found = prompts(world, 1).remove(0);
            if id(&found) != id(&prompt) {
                break found;
            }
        };
        assert!(!approve(world, &[id(&prompt), "--once"]).status.success());
        answer(world, &other, &["--deny"]);
        assert_eq!(stdout(&end(child)), "137");
        let withdrawn =
            world.records().iter().filter(|line| line["approval"]["decision"] == "withdrawn").count();
        assert_eq!(withdrawn, 1);
    });
}

#[test]
fn a_session_that_ends_takes_its_questions_along() {
    for_each_user(|world| {
        let child = start(world, &[], "date");
        prompts(world, 1);
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        end(child);
        eventually("nothing waits", || states(world).is_empty());
        assert_eq!(std::fs::read_dir(world.root.join("state/postern/control")).unwrap().count(), 0);
    });
}

#[test]
fn answers_can_be_read_line_by_line() {
    for_each_user(|world| {
        use std::io::{BufRead, BufReader, Write};
        let child = start(world, &[], "date +a; date +b; date +c");
        let mut command = world.postern();
        let mut door = command.arg("approve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut says, mut lines) =
            (door.stdin.take().unwrap(), BufReader::new(door.stdout.take().unwrap()).lines());
        let mut until =
            |part: &str| lines.find(|line| line.as_ref().unwrap().contains(part)).unwrap().unwrap();
        let prompt = until("prompt ");
        let first = prompt.split_whitespace().nth(1).unwrap().to_owned();
        until("command             date +a");
        writeln!(says, "once").unwrap();
        until("expected `ID once");
        // Of an id its beginning is enough.
        writeln!(says, "{} once", &first[..4]).unwrap();
        until(&format!("prompt {first}  once"));
        let prompt = until("prompt ");
        let second = prompt.split_whitespace().nth(1).unwrap().to_owned();
        until("command             date +b");
        writeln!(says, "{first} deny").unwrap();
        until(&format!("no prompt {first} waits"));
        writeln!(says, "{second} uses 5").unwrap();
        let prompt = until("in session");
        let third = prompt.split_whitespace().nth(1).unwrap().to_owned();
        until("command             date +c");
        writeln!(says, "{third} deny").unwrap();
        until(&format!("prompt {third}  deny"));
        drop(says);
        let output = end(child);
        assert_eq!(stdout(&output), "a\nb", "{}", text(&output.stderr));
        assert!(!door.wait().unwrap().success(), "one answer was not taken");
    });
}

#[test]
fn one_command_may_ask_for_more_and_gets_just_that() {
    for_each_user(|world| {
        let asks = |options: &[&str], command: &[&str]| {
            let mut exec = world.postern();
            exec.arg("exec")
                .args(options)
                .arg("--")
                .args(command)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            exec.spawn().unwrap()
        };
        let seccomp = ["grep", "-c", "Seccomp:.2", "/proc/self/status"];
        // Without a wish it runs as everything does.
        assert_eq!(stdout(&end(asks(&[], &seccomp))), "1");
        let child =
            asks(&["--sandbox-permissions", "require_escalated", "--justification", "to\u{1b}see"], &seccomp);
        let prompt = prompts(world, 1).remove(0);
        let shown = whole(world, &prompt);
        assert!(shown.contains("unsandboxed is asked for: to\\u{1b}see"), "{shown}");
        answer(world, &prompt, &["--once"]);
        assert_eq!(stdout(&end(child)), "0");
        // A directory more, and nothing else.
        let target = world.outside.join("new");
        let more = world
            .write("more.json", format!(r#"{{"fileSystem":{{"write":["{}"]}}}}"#, world.outside.display()));
        let child = asks(
            &["--additional-permissions", more.to_str().unwrap()],
            &[
                "sh",
                "-c",
                &format!(
                    "touch {} && ! touch {} 2>&1",
                    target.display(),
                    world.root.join("beside").display()
                ),
            ],
        );
        let prompt = prompts(world, 1).remove(0);
        let shown = whole(world, &prompt);
        assert!(
            shown.contains(&format!(
                "unlike the shell    write {} (the shell: read)\n",
                world.outside.display()
            )),
            "{shown}"
        );
        assert!(!shown.contains("/.git (the shell"), "{shown}");
        answer(world, &prompt, &["--once"]);
        let output = end(child);
        assert_eq!(status(&output), 0, "{}", text(&output.stderr));
        assert!(target.exists() && !world.root.join("beside").exists());
        // What cannot be asked for is refused before anything starts.
        for (options, part) in [
            (
                &["--approval", "never", "--sandbox-permissions", "require_escalated"][..],
                "under the approval policy on-request",
            ),
            (
                &["--approval", "untrusted", "--additional-permissions", more.to_str().unwrap()],
                "under the approval policy on-request",
            ),
            (&["--sandbox-permissions", "with_additional_permissions"], "needs --additional-permissions"),
            (
                &[
                    "--sandbox-permissions",
                    "require_escalated",
                    "--additional-permissions",
                    more.to_str().unwrap(),
                ],
                "with_additional_permissions, or none",
            ),
            (
                &["--additional-permissions", world.write("none.json", "{}").to_str().unwrap()],
                "it asks for nothing",
            ),
            (
                &["--approval", "on-failure", "--sandbox-permissions", "require_escalated"],
                "under the approval policy on-request",
            ),
        ] {
            let output = end(asks(options, &["true"]));
            assert!(
                !output.status.success() && text(&output.stderr).contains(part),
                "{options:?}: {}",
                text(&output.stderr)
            );
        }
    });
}

#[test]
fn policies_say_when_somebody_is_asked() {
    for_each_user(|world| {
        let run = |options: &[&str], rules: &str, script: &str| {
            let mut command = world.postern();
            command
                .args(["--on-prompt", "deny"])
                .args(options)
                .arg("--rules")
                .arg(world.write("r.rules", rules));
            finish(command.args(["--", "-fc", script]))
        };
        let said = |output: &Output, expected: &str, part: &str| {
            assert_eq!(stdout(output), expected, "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains(part), "{}", text(&output.stderr));
        };
        let untrusted = ["--approval", "untrusted"];
        let output = run(
            &untrusted,
            "prefix_rule(['date'], execution = 'turn_default')",
            "ls -d .; date +ok; make -v; print $?",
        );
        said(&output, ".\nok\n126", "the approval policy is untrusted");
        let output = run(&["--approval", "never"], RULES, "date; print $?; make -v > log; print $?");
        said(&output, "126\n0", "wants an approval: asks; the approval policy is never");
        let config =
            world.write("c.toml", "approval = { granular = { sandbox_approval = true, rules = false } }");
        let output = run(&["--config", config.to_str().unwrap()], RULES, "date; print $?");
        said(&output, "126", "rules = false");
        let output =
            run(&["--sandbox", "danger-full-access"], "", "mkdir -p d; nice rm -fr d; print $?; ls -d d");
        said(&output, "126\nd", "it removes without a question, and there is no sandbox");
        let output = run(&[], "", "mkdir -p d; rm -rf d; print $?");
        said(&output, "0", "");
    });
}

#[test]
fn an_answer_can_be_written_as_a_rule_which_counts_at_once_and_later() {
    for_each_user(|world| {
        let own = world.root.join("home/.config/postern/rules/default.rules");
        let script = "date +1; date +1 +x; until [[ -e go ]] do sleep 0.01; done; date +1; date +2";
        let child = start_with(world, &["--approval", "untrusted"], "", script);
        let prompt = prompts(world, 1).remove(0);
        let line = "prefix_rule([\"/usr/bin/date\", \"+1\"], decision = \"allow\", exact = True, execution = \"turn_default\")";
        let shown = whole(world, &prompt);
        assert!(shown.contains(line) && shown.contains("just this is allowed, for good"), "{shown}");
        answer(world, &prompt, &["--rule"]);
        assert_eq!(std::fs::read_to_string(&own).unwrap(), format!("{line}\n"));
        // The rule is about just these words.
        let more = prompts(world, 1).remove(0);
        assert_eq!(more["summary"], "date +1 +x");
        answer(world, &more, &["--deny"]);
        let sleeps = prompts(world, 1).remove(0);
        assert_eq!(sleeps["summary"], "sleep 0.01");
        answer(world, &sleeps, &["--session"]);
        world.write("ws/go", "");
        let other = prompts(world, 1).remove(0);
        assert_eq!(other["summary"], "date +2");
        answer(world, &other, &["--deny"]);
        let output = end(child);
        let said = text(&output.stdout);
        assert_eq!(said.lines().filter(|line| *line == "1").count(), 2, "{said} {}", text(&output.stderr));
        let records = world.records();
        let amended =
            records.iter().find(|line| line["event"] == "amended").unwrap_or_else(|| panic!("{records:?}"));
        assert_eq!(amended["rule"], line);
        // Not where there is no sandbox for it to run in.
        let free = ["--sandbox", "danger-full-access", "--approval", "untrusted", "--on-prompt", "deny"];
        let output = finish(world.postern().args(free).args(["--", "-fc", "date +1"]));
        assert_eq!(stdout(&output), "", "what was approved was approved inside");
        // In the next session too.
        let output = finish(world.postern().args([
            "--approval",
            "untrusted",
            "--on-prompt",
            "deny",
            "--",
            "-fc",
            "date +1",
        ]));
        assert_eq!(stdout(&output), "1");
    });
}

#[test]
fn no_rule_is_offered_that_would_allow_more_than_its_words() {
    for_each_user(|world| {
        let offers = |prompt: &Value| prompt["offered"].as_array().unwrap().iter().any(|one| one == "rule");
        for (command, offered) in [
            ("python3 < /dev/null", false),
            ("env -S true", false),
            ("make -f /dev/null", false),
            ("date", true),
        ] {
            let child = start_with(world, &["--approval", "untrusted"], "", command);
            let prompt = prompts(world, 1).remove(0);
            assert_eq!(offers(&prompt), offered, "{prompt}");
            answer(world, &prompt, &["--deny"]);
            drop(end(child));
        }
        // A rule that asks is not silenced by one that allows.
        let child = start(world, &[], "date +x");
        let prompt = prompts(world, 1).remove(0);
        assert!(!offers(&prompt), "{prompt}");
        let refused = approve(world, &[id(&prompt), "--rule"]);
        assert!(text(&refused.stderr).contains("rule is not offered"), "{}", text(&refused.stderr));
        answer(world, &prompt, &["--deny"]);
        drop(end(child));
    });
}

#[test]
fn a_turn_may_say_which_words_a_yes_is_to_allow_for_good() {
    for_each_user(|world| {
        let own = world.root.join("home/.config/postern/rules/default.rules");
        let ask = |prefix: &[&str]| {
            let mut command = world.postern();
            command
                .args(["exec", "--sandbox-permissions", "require_escalated", "--prefix-rule"])
                .args(prefix);
            command
                .args(["--", "date", "+a", "-u"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        // One that the command does not begin with, or that would allow anything, is not offered.
        for prefix in [&["date", "+b"][..], &["env"], &["date"]] {
            let child = ask(prefix);
            let prompt = prompts(world, 1).remove(0);
            assert!(!prompt["offered"].as_array().unwrap().iter().any(|one| one == "rule"), "{prompt}");
            answer(world, &prompt, &["--deny"]);
            drop(end(child));
        }
        let child = ask(&["date", "+a"]);
        answer(world, &prompts(world, 1)[0], &["--rule"]);
        assert_eq!(stdout(&end(child)), "a");
        let line = "prefix_rule([\"date\", \"+a\"], decision = \"allow\", execution = \"unsandboxed\")\n";
        assert_eq!(std::fs::read_to_string(own).unwrap(), line);
    });
}

#[test]
fn the_clock_of_a_command_stands_still_while_somebody_is_asked() {
    for_each_user(|world| {
        let run = |command: &[&str]| {
            let mut postern = world.postern();
            postern
                .args(["exec", "--timeout", "2", "--rules"])
                .arg(world.write("r.rules", RULES))
                .arg("--")
                .args(command);
            postern.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let child = run(&["date", "+late"]);
        let prompt = prompts(world, 1).remove(0);
        std::thread::sleep(std::time::Duration::from_millis(2500));
        answer(world, &prompt, &["--once"]);
        let output = end(child);
        assert_eq!((stdout(&output).as_str(), status(&output)), ("late", 0), "{}", text(&output.stderr));
        // One that ignores what asks it to end is killed; what it started too.
        let output = end(run(&["sh", "-c", "trap '' HUP TERM; sleep 60; sleep 60"]));
        assert_eq!((stdout(&output).as_str(), status(&output)), ("", 124), "{}", text(&output.stderr));
        let records = world.records();
        assert_eq!(records.iter().filter(|line| line["event"] == "timed_out").count(), 1);
        assert_eq!(status(&end(run(&["sh", "-c", "exit 7"]))), 7);
    });
}
