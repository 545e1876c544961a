//! Skills of the project: they count while they are what somebody has trusted, and say so where not.

use std::process::{Child, Output, Stdio};

use postern_tests::{World, finish, for_each_user, status, stdout, text};
use serde_json::Value;

use crate::approvals::{answer, end, prompts};

/// Says whether each of its arguments can be written.
const TRIES: &str = "#!/bin/bash\nfor path in \"$@\"; do if touch \"$path\" 2>/dev/null; then echo yes; else echo no; fi; done\n";

fn session(world: &World, script: &str) -> Output {
    finish(world.postern().args(["--on-prompt", "deny", "--", "-fc", script]))
}

/// The names of the skills by which commands were judged so far, in order, where a script was run.
fn judged(world: &World) -> Vec<Value> {
    let records = world.records();
    let runs = records.iter().filter(|line| {
        line["claimed"]["argv"][0].as_str().is_some_and(|zeroth| zeroth.ends_with("/scripts/run"))
    });
    runs.map(|line| line["judgement"]["skill"]["name"].clone()).collect()
}

fn trust(world: &World, arguments: &[&str]) -> (bool, String) {
    let output = finish(world.postern().arg("trust").args(arguments));
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

fn answered(world: &World, child: Child, choice: &str) -> Output {
    answer(world, &prompts(world, 1).remove(0), &[choice]);
    end(child)
}

#[test]
fn they_count_once_they_are_trusted_and_while_nobody_changes_them() {
    for_each_user(|world| {
        let run = world.project_skill("plain", "", TRIES);
        let line = format!("{} in", run.display());
        let list = || stdout(&finish(world.postern().args(["skills", "list"])));
        let quiet = |output: Output| {
            assert_eq!((stdout(&output).as_str(), text(&output.stderr).as_str()), ("yes", ""));
        };
        // Whoever clones a project is not asked about it at every start.
        quiet(session(world, &line));
        assert!(list().contains("/.agents/skills does not count: `postern trust` shows it"), "{}", list());
        let (_, shown) = trust(world, &[]);
        for part in
            ["/plain/SKILL.md\n", "\n    name: plain\n", "/plain/scripts/run\n    a program, ", "not trusted"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let hash = shown.trim_end().rsplit(' ').next().unwrap().to_owned();
        world.write("ws/.agents/skills/plain/extra", "");
        assert!(!trust(world, &["--accept", &hash]).0, "it is another hash");
        std::fs::remove_file(world.workspace.join(".agents/skills/plain/extra")).unwrap();
        assert!(trust(world, &["--accept", &hash]).0);
        assert!(trust(world, &[]).1.contains("trusted: sessions here go by it"));
        quiet(session(world, &line));
        let said = list();
        for part in ["plain  ", "/ws/.agents/skills\n", "declares nothing"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        // From a directory of the project too, and told to its interpreter.
        let below = world.workspace.join("below");
        std::fs::create_dir(&below).unwrap();
        world.own();
        let mut command = world.postern();
        let script = format!("bash {} in", run.display());
        let output = finish(command.current_dir(&below).args(["--on-prompt", "deny", "--", "-fc", &script]));
        assert_eq!(stdout(&output), "yes", "{}", text(&output.stderr));
        assert_eq!(judged(world), [Value::Null, "plain".into()]);
        let records = world.records();
        let by_interpreter = records.iter().rfind(|line| line["claimed"]["argv"][0] == "bash").unwrap();
        assert_eq!(by_interpreter["judgement"]["skill"]["name"], "plain");
        assert_eq!(by_interpreter["execution"], "turn_default");

        // What is another between two sessions is named, and nothing of all that counts.
        let skills = world.workspace.join(".agents/skills");
        type Step<'a> = &'a dyn Fn();
        let changes: [(Step<'_>, Step<'_>, &str); 5] = [
            (
                &|| std::fs::write(&run, "#!/bin/sh\necho yes\n").unwrap(),
                &|| std::fs::write(&run, TRIES).unwrap(),
                "changed .agents/skills/plain/scripts/run",
            ),
            (
                &|| drop(world.write("ws/.agents/skills/helper", "")),
                &|| std::fs::remove_file(skills.join("helper")).unwrap(),
                "added .agents/skills/helper",
            ),
            (
                &|| std::fs::rename(skills.join("plain/SKILL.md"), world.root.join("kept")).unwrap(),
                &|| std::fs::rename(world.root.join("kept"), skills.join("plain/SKILL.md")).unwrap(),
                "removed .agents/skills/plain/SKILL.md",
            ),
            (
                &|| std::os::unix::fs::symlink("/etc", skills.join("etc")).unwrap(),
                &|| std::fs::remove_file(skills.join("etc")).unwrap(),
                "/.agents/skills/etc is a symbolic link",
            ),
            (
                &|| std::fs::hard_link(&run, world.outside.join("other")).unwrap(),
                &|| std::fs::remove_file(world.outside.join("other")).unwrap(),
                "/plain/scripts/run has another name (a hard link)",
            ),
        ];
        for (change, back, expected) in changes {
            change();
            let output = session(world, &line);
            let said = text(&output.stderr);
            assert!(said.contains("/.agents/skills does not count: ") && said.contains(expected), "{said}");
            assert_eq!((stdout(&output).as_str(), judged(world).last()), ("yes", Some(&Value::Null)));
            back();
            quiet(session(world, &line));
            assert_eq!(judged(world).last(), Some(&Value::from("plain")), "{expected}");
        }
        assert!(trust(world, &["--revoke"]).0);
        quiet(session(world, &line));
        assert_eq!(judged(world).last(), Some(&Value::Null));
    });
}

#[test]
fn one_that_declares_something_is_asked_about_and_gets_exactly_that() {
    for_each_user(|world| {
        let out = world.outside.join("out");
        std::fs::create_dir(&out).unwrap();
        let declares = format!(
            "permissions:\n  file_system:\n    read: [{}]\n    write: [{}]\n",
            world.workspace.display(),
            out.display()
        );
        let run = world.project_skill("writes", &declares, TRIES);
        world.trust(&world.workspace);
        let script = format!(
            "{} {}/x {}/x {}/x",
            run.display(),
            out.display(),
            world.workspace.display(),
            world.outside.display()
        );
        let start = || {
            let mut command = world.postern();
            command.args(["--", "-fc", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let child = start();
        let fields = prompts(world, 1).remove(0)["fields"].to_string();
        for part in
            ["the skill writes declares permissions", "no sandbox can write it", "under the profile skill:"]
        {
            assert!(fields.contains(part), "{part}: {fields}");
        }
        let output = answered(world, child, "--once");
        assert_eq!(stdout(&output), "yes\nno\nno", "{}", text(&output.stderr));
        let explained = finish(world.postern().args(["rules", "explain", "--"]).arg(&run));
        let expected =
            format!("runs permissions(skill:{})", run.parent().unwrap().parent().unwrap().display());
        assert!(stdout(&explained).contains(&expected), "{}", stdout(&explained));
        // Somebody changes a file that it may read while the question waits.
        let child = start();
        let _waits = prompts(world, 1).remove(0);
        std::fs::write(run.with_file_name("helper"), "").unwrap();
        let output = answered(world, child, "--once");
        assert_eq!(status(&output), 126);
        assert!(text(&output.stderr).contains("changed while the approval was waited for"));
        assert!(world.records().iter().any(|line| line["event"] == "skills_lost"));
    });
}

#[test]
fn a_policy_counts_by_itself_and_skills_only_with_all_of_it() {
    for_each_user(|world| {
        let run = world.project_skill("plain", "", TRIES);
        std::fs::create_dir_all(world.workspace.join(".postern/rules")).unwrap();
        let rules = "prefix_rule(['id'], decision = 'forbidden')\n";
        world.write("ws/.postern/rules/p.rules", rules);
        world.trust(&world.workspace);
        let script = format!("id > /dev/null; print $?; {} in", run.display());
        let run_it = || {
            let output = session(world, &script);
            (stdout(&output), judged(world).pop().unwrap(), text(&output.stderr))
        };
        assert_eq!((run_it().0.as_str(), run_it().1), ("126\nyes", "plain".into()));
        // What forbids does not go because a skill has changed.
        world.write("ws/.agents/skills/plain/more", "");
        let (out, skill, said) = run_it();
        assert_eq!((out.as_str(), skill), ("126\nyes", Value::Null));
        assert!(!said.contains(".postern does not count"), "{said}");
        std::fs::remove_file(world.workspace.join(".agents/skills/plain/more")).unwrap();
        world.write("ws/.postern/rules/p.rules", format!("{rules} "));
        let (out, skill, said) = run_it();
        assert_eq!((out.as_str(), skill), ("0\nyes", Value::Null));
        assert!(said.contains("changed .postern/rules/p.rules"), "{said}");
    });
}

#[test]
fn a_malformed_one_stops_the_start_once_it_is_trusted_and_not_before() {
    for_each_user(|world| {
        let run = world.project_skill("bad", "permissions: yes please\n", TRIES);
        assert_eq!(stdout(&session(world, &format!("{} in", run.display()))), "yes");
        world.trust(&world.workspace);
        let output = session(world, "print started");
        assert_eq!(stdout(&output), "");
        let expected = "/ws/.agents/skills/bad/SKILL.md:4: permissions: ";
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    });
}
