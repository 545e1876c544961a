//! What runs inside a session asks for more: for one command, or from now on.

use postern_tests::{eventually, finish, for_each_user, status, stdout, text};
use serde_json::Value;

use crate::approvals::{answer, approve, end, id, prompts, start_with, states, whole};

const MORE: &str = r#"{"fileSystem": {"write": ["outside"]}, "network": {"enabled": true}}"#;

/// The path by which a script finds the program.
fn program() -> String {
    postern_tests::prefix().join("bin/postern").display().to_string()
}

fn events<'a>(records: &'a [Value], name: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["event"] == name).collect()
}

#[test]
fn one_command_asks_for_no_sandbox_and_gets_it_once() {
    for_each_user(|world| {
        let out = &world.outside;
        let script = format!(
            "{} exec --sandbox-permissions require_escalated --justification 'a test' -- sh -c 'echo $0 >> {}/x; exit 3' zero\n\
             print rc $?; sh -c 'echo more >> {}/x'; print rc $?",
            program(),
            out.display(),
            out.display()
        );
        let child = start_with(world, &[], "", &script);
        let prompt = prompts(world, 1).remove(0);
        let shown = whole(world, &prompt);
        for part in [
            "where               without a sandbox, as the user",
            "asked by            `postern exec`, inside the session",
            "unsandboxed is asked for: a test",
            "answers             once, deny, abort",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        answer(world, &prompt, &["--once"]);
        let output = end(child);
        assert_eq!(stdout(&output), "rc 3\nrc 2", "{}", text(&output.stderr));
        assert_eq!(std::fs::read_to_string(out.join("x")).unwrap(), "zero\n");
        let records = world.records();
        let asked: Vec<_> = records.iter().filter(|record| record["claimed"]["layer"] == "exec").collect();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0]["execution"], "unsandboxed");
    });
}

#[test]
fn one_command_asks_for_some_more_and_the_next_one_has_none_of_it() {
    for_each_user(|world| {
        let out = &world.outside;
        let file = world.write("more.json", MORE);
        let script = format!(
            "{program} exec --additional-permissions {file} -- sh -c 'echo one > {out}/x && ls /sys/class/net'\n\
             print rc $?; sh -c 'echo two > {out}/y'; print rc $?",
            program = program(),
            file = file.display(),
            out = out.display()
        );
        let child = start_with(world, &[], "", &script);
        let prompt = prompts(world, 1).remove(0);
        let shown = whole(world, &prompt);
        for part in [
            "under the profile requested:1",
            "the network (the shell: none)",
            &format!("write {} (the shell: read)", out.display()),
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        answer(world, &prompt, &["--once"]);
        let output = end(child);
        let said = stdout(&output);
        assert!(said.contains("rc 0") && said.ends_with("rc 2"), "{said} {}", text(&output.stderr));
        assert!(out.join("x").exists() && !out.join("y").exists());
        let records = world.records();
        let asked: Vec<_> = records.iter().filter(|record| record["claimed"]["layer"] == "exec").collect();
        assert_eq!(asked[0]["execution"]["permissions"], "requested:1");
    });
}

#[test]
fn what_is_granted_to_the_turn_holds_for_its_commands_until_it_is_taken_back() {
    for_each_user(|world| {
        let out = &world.outside;
        let script = format!(
            "wait() {{ until [[ -e $1 ]] sleep 0.01 }}\n\
             {program} request --write {out} --justification 'for the build' || exit 1\n\
             print '#!/bin/sh\\ntouch {out}/script' > s; chmod +x s; ./s; print script $?\n\
             touch {out}/x; print x $?; print builtin > {out}/b; print b $?\n\
             {program} request --write {out}; print again $?; touch {out}/again\n\
             wait go; touch {out}/y; print y $?",
            program = program(),
            out = out.display()
        );
        let child = start_with(world, &[], "", &script);
        let prompt = prompts(world, 1).remove(0);
        let shown = whole(world, &prompt);
        for part in [
            "asks for            more for every later command",
            &format!("write {} (the shell: read)", out.display()),
            "because             for the build (as whoever asks says)",
            "answers             session, until, deny, abort",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let once = approve(world, &[id(&prompt), "--once"]);
        assert!(text(&once.stderr).contains("once is not offered"), "{}", text(&once.stderr));
        answer(world, &prompt, &["--session"]);
        eventually("what holds already is not asked about", || out.join("again").exists());
        let granted = states(world)[0]["grants"].as_array().unwrap().clone();
        assert_eq!(granted.len(), 1, "{granted:?}");
        let revoked = approve(world, &["--revoke", granted[0]["id"].as_str().unwrap()]);
        assert_eq!(status(&revoked), 0, "{}", text(&revoked.stderr));
        world.write("ws/go", "");
        let output = end(child);
        let said = stdout(&output);
        assert!(said.contains("script 0\nx 0\nb 1\n"), "{said} {}", text(&output.stderr));
        assert!(said.ends_with("y 1"), "{said}");
        assert!(out.join("script").exists() && !out.join("y").exists() && !out.join("b").exists());
        let records = world.records();
        let granted = events(&records, "granted");
        assert_eq!(granted[0]["profile"], "granted:1");
        assert_eq!(granted[0]["approval"]["scope"], "session");
        assert_eq!(granted[0]["justification"], "for the build");
    });
}

#[test]
fn a_question_that_waits_while_sandboxes_come_to_reach_more_is_not_answered_with_yes() {
    for_each_user(|world| {
        let out = &world.outside;
        let script = format!(
            "date +first & {program} request --write {out}; wait $!; print rc $?",
            program = program(),
            out = out.display()
        );
        let child = start_with(world, &[], "prefix_rule(['date'], decision = 'prompt')", &script);
        let waiting = prompts(world, 2);
        let of = |text: &str| {
            waiting.iter().find(|prompt| prompt["summary"].as_str().unwrap().starts_with(text)).unwrap()
        };
        answer(world, of("more permissions"), &["--session"]);
        eventually("it is granted", || {
            let log = finish(world.postern().args(["log", "--json"]));
            text(&log.stdout).contains("\"event\":\"granted\"")
        });
        answer(world, of("date"), &["--once"]);
        let output = end(child);
        assert!(stdout(&output).ends_with("rc 126"), "{}", stdout(&output));
        assert!(text(&output.stderr).contains("changed while the approval was waited for, or could have"));
    });
}

#[test]
fn what_cannot_be_had_is_refused_by_name_and_nobody_is_asked() {
    for_each_user(|world| {
        let home = world.root.join("home").display().to_string();
        std::fs::create_dir(world.root.join("secret")).unwrap();
        let secret = world.write("secret/key", "s");
        let config = format!(
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n'{}' = 'none'\n",
            secret.parent().unwrap().display()
        );
        let config = world.write("c.toml", config);
        let prefix = postern_tests::prefix().display();
        std::fs::create_dir_all(world.root.join("home/.agents/skills")).unwrap();
        std::fs::create_dir_all(world.root.join("home/.config/postern")).unwrap();
        world.own();
        let file = |name: &str, json: &str| world.write(name, json).display().to_string();
        let rows: Vec<(String, &str)> = vec![
            (format!("--write {home}/.config/postern"), "which holds Postern's own files"),
            (format!("--write {home}/.config/none"), "No such file or directory"),
            (format!("--write {prefix}/bin"), "which holds Postern's own files"),
            (format!("--write {prefix}/libexec"), "which holds Postern's own files"),
            (format!("--write {prefix}/share/postern"), "which holds Postern's own files"),
            ("--write /dev/shm".to_owned(), "is each sandbox's own"),
            ("--read /proc/self/root/etc".to_owned(), "is each sandbox's own"),
            (format!("--write {home}"), "which holds Postern's own files"),
            ("--write /".to_owned(), "paths can be asked for, to read and to write"),
            (format!("--write {home}/.agents"), "holds skills"),
            (format!("--read {}", secret.display()), "is denied, and nothing but the configuration opens it"),
            (String::new(), "it asks for nothing"),
            (
                format!("--additional-permissions {}", file("a.json", "{\"fileSystem\": {\"raed\": []}}")),
                "raed",
            ),
            (
                format!(
                    "--additional-permissions {}",
                    file(
                        "b.json",
                        "{\"fileSystem\": {\"entries\": [{\"path\": {\"type\": \"glob_pattern\", \"pattern\": \"/**/x\"}, \"access\": \"none\"}]}}"
                    )
                ),
                "paths can be asked for, to read and to write",
            ),
            (
                format!(
                    "--additional-permissions {}",
                    file("d.json", "{\"network\": {\"unixSockets\": [\"/run/docker.sock\"]}}")
                ),
                "sockets are given by the configuration alone",
            ),
        ];
        for (arguments, expected) in rows {
            let script = format!("{} request {arguments}; print rc $?", program());
            let mut command = world.postern();
            command.arg("--config").arg(&config).args(["--on-prompt", "wait:1", "--", "-fc", &script]);
            let output = finish(&mut command);
            let stderr = text(&output.stderr);
            assert!(stderr.contains(expected), "{arguments}: {stderr}");
            assert!(!stderr.contains("more permissions wait for an approval"), "{arguments}: {stderr}");
            assert!(stdout(&output).ends_with("rc 126"), "{arguments}: {}", stdout(&output));
        }
    });
}

#[test]
fn policies_say_who_may_ask_for_more() {
    for_each_user(|world| {
        let out = &world.outside;
        let granular = |allowed: bool| {
            format!(
                "approval = {{ granular = {{ sandbox_approval = true, rules = true, mcp_elicitations = false, \
                 request_permissions = {allowed} }} }}\n"
            )
        };
        let rows = [
            ("approval = 'never'\n".to_owned(), "request", "the approval policy is never"),
            (granular(false), "request", "the approval policy has request_permissions = false"),
            (granular(true), "request", "more permissions wait for an approval"),
            ("approval = 'untrusted'\n".to_owned(), "request", "more permissions wait for an approval"),
            (
                "approval = 'untrusted'\n".to_owned(),
                "exec",
                "only be asked for under the approval policy on-request",
            ),
            (granular(true), "exec", "only be asked for under the approval policy on-request"),
        ];
        for (at, (config, door, expected)) in rows.into_iter().enumerate() {
            let config = world.write(&format!("p{at}.toml"), config);
            let rules =
                world.write("postern.rules", "prefix_rule([['postern']], execution = 'turn_default')");
            let script = match door {
                "request" => format!("{} request --write {}", program(), out.display()),
                _ => format!("{} exec --sandbox-permissions require_escalated -- true", program()),
            };
            let mut command = world.postern();
            command.arg("--config").arg(&config).arg("--rules").arg(rules);
            command.args(["--on-prompt", "wait:1", "--", "-fc", &script]);
            let output = finish(&mut command);
            let stderr = text(&output.stderr);
            assert!(stderr.contains(expected), "{at}: {stderr}");
            assert_eq!(status(&output), 126, "{at}: {stderr}");
        }
        let plain = finish(world.postern().args(["request", "--network"]));
        assert!(text(&plain.stderr).contains("and this is none"), "{}", text(&plain.stderr));
    });
}

#[test]
fn what_runs_under_a_grant_asks_for_the_next_one_and_ends_with_the_last() {
    for_each_user(|world| {
        let (out, program) = (&world.outside, program());
        std::fs::create_dir_all(out.join("one")).unwrap();
        std::fs::create_dir_all(out.join("two")).unwrap();
        world.own();
        let script = format!(
            "{program} request --write {0}/one || exit 1\n\
             {shell} -fc '{program} request --write {0}/two && touch {0}/one/x {0}/two/x; echo both $?'\n\
             bash -c 'touch {0}/two/started; sleep 60; touch {0}/two/late' & wait $!; print ended $?\n\
             touch {0}/two/after; print after $?",
            out.display(),
            shell = postern_tests::prefix().join("bin/posternsh").display(),
        );
        let child = start_with(world, &[], "", &script);
        answer(world, &prompts(world, 1).remove(0), &["--session"]);
        eventually("the next one asks", || {
            let waiting = states(world)[0]["waiting"].as_array().unwrap().clone();
            waiting.first().is_some_and(|prompt| {
                let shown = whole(world, prompt);
                // What holds already is part of it.
                shown.contains("/one (the shell: read)") && shown.contains("/two (the shell: read)")
            })
        });
        answer(world, &prompts(world, 1).remove(0), &["--session"]);
        eventually("something runs under it", || out.join("two/started").exists());
        let granted = states(world)[0]["grants"].as_array().unwrap().clone();
        assert_eq!(granted.len(), 1, "{granted:?}");
        let revoked = approve(world, &["--revoke", granted[0]["id"].as_str().unwrap()]);
        assert_eq!(status(&revoked), 0, "{}", text(&revoked.stderr));
        let output = end(child);
        let said = stdout(&output);
        assert!(
            said.contains("both 0\n") && said.ends_with("ended 137\nafter 1"),
            "{said} {}",
            text(&output.stderr)
        );
        assert!(out.join("two/x").exists() && !out.join("two/late").exists());
        assert_eq!(events(&world.records(), "lapsed").len(), 1);
    });
}

#[test]
fn a_wish_adds_to_what_was_granted_and_says_where_it_comes_from() {
    for_each_user(|world| {
        let (out, program) = (&world.outside, program());
        let file = world.write("more.json", r#"{"network": {"enabled": true}}"#);
        let script = format!(
            "{program} request --write {0} || exit 1\n\
             {program} exec --additional-permissions {1} -- sh -c 'touch {0}/x && ls /sys/class/net'; print $?\n\
             bash -c '{program} exec --sandbox-permissions require_escalated -- true'; print $?",
            out.display(),
            file.display()
        );
        let child = start_with(world, &[], "", &script);
        answer(world, &prompts(world, 1).remove(0), &["--session"]);
        let wish = prompts(world, 1).remove(0);
        let shown = whole(world, &wish);
        assert!(shown.contains("unlike the asker    the network (the asker: none)\n"), "{shown}");
        answer(world, &wish, &["--once"]);
        let below = prompts(world, 1).remove(0);
        answer(world, &below, &["--deny"]);
        let output = end(child);
        assert!(out.join("x").exists(), "{} {}", stdout(&output), text(&output.stderr));
        assert!(stdout(&output).ends_with("126"), "{}", stdout(&output));
    });
}
