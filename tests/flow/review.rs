//! Programs that answer for people.

use std::path::PathBuf;
use std::process::{Output, Stdio};

use postern_tests::{World, eventually, finish, for_each_user, stdout, text};
use serde_json::Value;

const RULES: &str = "prefix_rule(['date'], decision = 'prompt')\nprefix_rule(['id'], decision = 'prompt')\n\
                     prefix_rule([['git', 'bash']], decision = 'prompt', execution = 'turn_default')\n";

/// A program that answers by this script.
fn reviewer(world: &World, name: &str, script: &str) -> PathBuf {
    let path = world.write(&format!("outside/{name}"), format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

const ALLOW: &str = "echo '{\"outcome\":\"allow\",\"risk_level\":\"low\"}'";
const DENY: &str = "echo '{\"outcome\":\"deny\",\"rationale\":\"not \\u001b[31m today\"}'";

/// A session where these programs, by name and script, answer so.
fn configured(
    world: &World,
    chain: &str,
    programs: &[(&str, &str)],
    options: &[&str],
    script: &str,
) -> Output {
    let mut config = format!("[review]\n{chain}\n");
    for (name, answers) in programs {
        let path = reviewer(world, name, answers);
        config.push_str(&format!(
            "[review.programs.{name}]\ncommand = ['{}']\ndeadline = 60\n",
            path.display()
        ));
    }
    let (config, rules) = (world.write("c.toml", config), world.write("r.rules", RULES));
    let mut command = world.postern();
    command.arg("--config").arg(config).arg("--rules").arg(rules).args(options);
    finish(command.args(["--", "-fc", script]))
}

fn nobody(world: &World, chain: &str, programs: &[(&str, &str)], script: &str) -> (String, String) {
    let output = configured(world, chain, programs, &["--on-prompt", "deny"], script);
    (stdout(&output), text(&output.stderr))
}

#[test]
fn a_program_answers_and_its_outage_is_no_denial() {
    for_each_user(|world| {
        let run = |script: &str| nobody(world, "then = ['guard']", &[("guard", script)], "date +ran; true");
        assert_eq!(run(ALLOW), ("ran".to_owned(), String::new()));
        let (out, said) = run(DENY);
        assert_eq!(out, "");
        assert!(said.contains("denied by reviewer guard: not \\u{1b}[31m today; rule "), "{said}");
        for (script, why) in [("exit 3", "it ended with status 3"), ("echo yes", "its answer is none")] {
            let (out, said) = run(script);
            assert_eq!(out, "", "{script}");
            assert!(
                said.contains("nobody is asked in this session") && said.contains(why),
                "{script}: {said}"
            );
            assert!(said.contains("reviewer guard gave no answer"), "{script}: {said}");
        }
        let records = world.records();
        let reviews: Vec<&Value> =
            records.iter().flat_map(|line| line["approval"]["reviews"].as_array()).flatten().collect();
        assert_eq!(reviews.len(), 4, "{reviews:?}");
        assert_eq!((&reviews[0]["outcome"], &reviews[0]["risk_level"]), (&"allow".into(), &"low".into()));
        assert_eq!(reviews[2]["outcome"], Value::Null);
    });
}

#[test]
fn it_is_told_what_would_run() {
    for_each_user(|world| {
        let seen = world.root.join("outside/seen");
        let script = format!("cat > {}; {ALLOW}", seen.display());
        let (out, said) =
            nobody(world, "then = ['guard']", &[("guard", &script)], "date +ran $'\\xff'; true");
        assert_eq!(out, "", "{said}");
        let question: Value = serde_json::from_slice(&std::fs::read(&seen).unwrap()).unwrap();
        assert_eq!(question["argv"][1], "+ran");
        assert_eq!(question["argv"][2]["bytes"], "/w==");
        assert_eq!(question["program"], "/usr/bin/date");
        assert_eq!((&question["wider"], &question["agent_writable"]), (&true.into(), &false.into()));
        assert_eq!((&question["execution"], &question["version"]), (&"unsandboxed".into(), &1.into()));
        assert!(question["fields"].as_array().unwrap().iter().any(|field| field["name"] == "where"));
    });
}

#[test]
fn answers_go_together_as_the_chain_says() {
    for_each_user(|world| {
        let programs = |a, b| [("a", a), ("b", b)];
        let out = "exit 1";
        for (chain, a, b, runs) in [
            ("then", ALLOW, DENY, true),
            ("then", DENY, ALLOW, false),
            ("then", out, ALLOW, true),
            ("then", out, DENY, false),
            ("then", out, out, false),
            ("all_of", ALLOW, ALLOW, true),
            ("all_of", ALLOW, DENY, false),
            ("all_of", ALLOW, out, false),
            ("any_of", DENY, ALLOW, true),
            ("any_of", DENY, DENY, false),
            ("any_of", out, ALLOW, true),
            ("any_of", DENY, out, false),
        ] {
            let chain = format!("{chain} = ['a', 'b']");
            let (said, why) = nobody(world, &chain, &programs(a, b), "date +ran; true");
            assert_eq!(said == "ran", runs, "{chain} {a} {b}: {why}");
        }
    });
}

#[test]
fn a_person_is_asked_where_a_program_says_nothing() {
    for_each_user(|world| {
        let path = reviewer(world, "guard", "exit 1");
        let config = format!(
            "[review]\nall_of = ['person', 'guard']\n[review.programs.guard]\ncommand = ['{}']\n",
            path.display()
        );
        let (config, rules) = (world.write("c.toml", config), world.write("r.rules", RULES));
        let mut command = world.postern();
        command.arg("--config").arg(config).arg("--rules").arg(rules).args(["--", "-fc", "date +ran"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let approve = |arguments: &[&str]| finish(world.postern().arg("approve").args(arguments));
        let mut id = String::new();
        eventually("a prompt waits", || {
            let states = text(&approve(&["--list", "--json"]).stdout);
            let state: Value =
                states.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            id = state["waiting"][0]["id"].as_str().unwrap_or_default().to_owned();
            !id.is_empty()
        });
        assert!(approve(&[&id, "--once"]).status.success());
        assert_eq!(stdout(&child.wait_with_output().unwrap()), "ran");
        let records = world.records();
        let approval = records.iter().map(|line| &line["approval"]).find(|one| one.is_object()).unwrap();
        assert_eq!(
            (approval["id"].as_str(), approval["reviews"][0]["by"].as_str()),
            (Some(&*id), Some("guard"))
        );
    });
}

#[test]
fn whoever_goes_on_after_three_denials_is_interrupted() {
    for_each_user(|world| {
        let script = "trap 'print stopped; exit 3' INT; date; date; id; for i in {1..500}; do sleep 0.01; done; print on";
        let (out, said) = nobody(world, "then = ['guard']", &[("guard", DENY)], script);
        assert_eq!(out, "stopped", "{said}");
        assert!(world.records().iter().any(|line| line["event"] == "interrupted"));
        // An answer that allows ends the row.
        let script = "trap 'print stopped; exit 3' INT; date; date; id; date; date; print on";
        let guard = format!("grep -q '\"id\"' && {ALLOW} || {DENY}");
        let (out, said) = nobody(world, "then = ['guard']", &[("guard", &guard)], script);
        assert!(out.ends_with("on"), "{out} {said}");
        assert_eq!(world.records().iter().filter(|line| line["event"] == "interrupted").count(), 1);
    });
}

#[test]
fn a_program_that_the_sandbox_could_write_answers_nothing() {
    for_each_user(|world| {
        world.write("ws/guard", format!("#!/bin/sh\n{ALLOW}\n"));
        let path = world.workspace.join("guard");
        let good = reviewer(world, "good", ALLOW);
        let link = world.workspace.join("link");
        std::os::unix::fs::symlink(&good, &link).unwrap();
        let by = reviewer(world, "by", "");
        std::fs::write(&by, format!("#!{}\n{ALLOW}\n", path.display())).unwrap();
        // By itself, by a link of the sandbox's, by its `#!`, and by a script among its arguments.
        let sh = std::path::Path::new("/bin/sh");
        for (command, named) in [
            (vec![&*path], Some("ws/guard")),
            (vec![&*link], Some("ws/link")),
            (vec![&*by], Some("outside/by")),
            (vec![sh, &*path], Some("ws/guard")),
            (vec![&*good, sh], None),
            (vec![std::path::Path::new("/nowhere/guard")], Some("/nowhere/guard is no program")),
        ] {
            let command: Vec<_> = command.iter().map(|path| format!("'{}'", path.display())).collect();
            let config = format!(
                "[review]\nthen = ['guard']\n[review.programs.guard]\ncommand = [{}]\n",
                command.join(", ")
            );
            let config = world.write("c.toml", config);
            let output = finish(world.postern().arg("--config").arg(config).args(["--", "-fc", "print in"]));
            let said = text(&output.stderr);
            assert_eq!(stdout(&output).is_empty(), named.is_some(), "{command:?} {said}");
            assert!(said.contains(named.unwrap_or_default()), "{command:?} {said}");
        }
    });
}

#[test]
fn the_sample_allows_what_fetches_and_denies_what_publishes() {
    for_each_user(|world| {
        let sample = world.write("outside/reviewer.py", include_str!("../../docs/reviewer.py"));
        std::fs::set_permissions(&sample, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = format!(
            "[review]\nthen = ['sample']\n[review.programs.sample]\ncommand = ['{}']\n",
            sample.display()
        );
        let (config, rules) = (world.write("c.toml", config), world.write("r.rules", RULES));
        let mut command = world.postern();
        command.arg("--config").arg(config).arg("--rules").arg(rules).args([
            "--on-prompt",
            "deny",
            "--",
            "-fc",
        ]);
        assert!(world.plain("git", &["remote", "add", "origin", "."]).status.success());
        let script = "git ls-remote > refs && print fetched; git push; git status; \
                      git fetch --upload-pack=./evil .; (exec -a git bash ls-remote)";
        let output = finish(command.arg(script));
        let said = text(&output.stderr);
        assert_eq!(stdout(&output), "fetched", "{said}");
        assert!(said.contains("denied by reviewer sample, high risk: people publish"), "{said}");
        for left in ["git status", "git fetch --upload-pack=./evil ."] {
            let why = format!(
                "denied: {left} (nobody is asked in this session: on_prompt is `deny`; reviewer sample gave no answer"
            );
            assert!(said.contains(&why), "{left}: {said}");
        }
        assert!(said.contains("it is called by another name than its own"), "{said}");
    });
}

#[test]
fn a_reviewer_runs_nothing_that_the_sandbox_can_write() {
    for_each_user(|world| {
        let marked = world.outside.join("marked");
        world.own();
        let guard = world.write("outside/guard", format!("#!/usr/bin/env bash\n{DENY}\n"));
        std::fs::set_permissions(&guard, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = format!(
            "[review]\nthen = ['guard']\n[review.programs.guard]\ncommand = ['{}']\n",
            guard.display()
        );
        let (config, rules) = (world.write("c.toml", config), world.write("r.rules", RULES));
        // What the caller's environment names is planted once the session runs.
        let plant = format!(
            "print '#!/bin/sh\n: > {}' | tee rc > bin/bash; chmod +x bin/bash; date; true",
            marked.display()
        );
        std::fs::create_dir(world.workspace.join("bin")).unwrap();
        world.own();
        let workspace = world.workspace.display();
        for (name, value) in [
            ("PATH", format!("{workspace}/bin:/usr/bin:/bin")),
            ("BASH_ENV", format!("{workspace}/rc")),
            ("BASH_ENV", "./rc".to_owned()),
        ] {
            let mut command = world.postern();
            command.env(name, value).arg("--config").arg(&config).arg("--rules").arg(&rules);
            let output = finish(command.args(["--on-prompt", "deny", "--", "-fc", &plant]));
            assert!(text(&output.stderr).contains("denied by reviewer guard"), "{}", text(&output.stderr));
            assert!(!marked.exists(), "{name}");
        }
    });
}
