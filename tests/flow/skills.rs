//! Scripts of skills: silent without a declaration, asked about and exactly that with one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

use postern_tests::{World, eventually, finish, for_each_user, status, stdout, text};
use serde_json::Value;

use crate::approvals::{self, prompts};

/// Prints whether it is in a sandbox of its own process namespace, and what it may write.
const WHERE: &str = "#!/bin/bash\ncd /\nfor path in \"$@\"; do if touch \"$path\" 2>/dev/null; then echo yes; else echo no; fi; done\n";

/// A skill below `outside/skills`, with a script `run`.
fn skill(world: &World, name: &str, declares: &str, script: &str) -> std::path::PathBuf {
    let directory = world.outside.join("skills").join(name);
    std::fs::create_dir_all(directory.join("scripts")).unwrap();
    std::fs::create_dir_all(directory.join("agents")).unwrap();
    std::fs::write(directory.join("SKILL.md"), format!("---\nname: {name}\ndescription: d\n---\n")).unwrap();
    if !declares.is_empty() {
        std::fs::write(directory.join("agents/openai.yaml"), declares).unwrap();
    }
    let run = directory.join("scripts/run");
    std::fs::write(&run, script).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
    world.own();
    run
}

fn start(world: &World, options: &[&str], script: &str) -> Child {
    let mut command = world.postern();
    command.args(options).arg("--skills").arg(world.outside.join("skills")).args(["--", "-fc", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn prompt(world: &World) -> Value {
    prompts(world, 1).remove(0)
}

fn answer(world: &World, choice: &str) {
    approvals::answer(world, &prompt(world), &[choice]);
}

#[test]
fn a_skill_that_declares_nothing_runs_in_the_turn_without_a_question() {
    for_each_user(|world| {
        let run = skill(world, "plain", "", WHERE);
        let (inside, outside) = (world.workspace.join("in"), world.outside.join("out"));
        let script =
            format!("{0} {1} {2}; bash {0} {1} {2}", run.display(), inside.display(), outside.display());
        let output = start(world, &["--on-prompt", "deny"], &script).wait_with_output().unwrap();
        assert_eq!(stdout(&output), "yes\nno\nyes\nno", "{}", text(&output.stderr));
        let records = world.records();
        let decided: Vec<_> =
            records.iter().filter(|line| line["judgement"]["skill"]["name"] == "plain").collect();
        assert_eq!(decided.len(), 2);
        assert!(decided.iter().all(|line| line["execution"] == "turn_default" && line["approval"].is_null()));
    });
}

#[test]
fn a_skill_that_declares_something_is_asked_about_and_gets_exactly_that() {
    for_each_user(|world| {
        let out = world.outside.join("out");
        std::fs::create_dir(&out).unwrap();
        let declares = format!(
            "permissions:\n  file_system:\n    read: [{}]\n    write: [{}]\n",
            world.workspace.display(),
            out.display()
        );
        let tries =
            format!("{0}/x {1}/x {2}/x", out.display(), world.workspace.display(), world.outside.display());
        let body = format!("#!/bin/bash\nset -- {tries}\n{}", WHERE.split_once('\n').unwrap().1);
        let run = skill(world, "writes", &declares, &body);
        let probe = run.display();
        // Accepted for the session, the same runs silently; edited, it asks again; so does another word.
        let script =
            format!("{probe}; {probe}; until [[ -e edited ]] sleep 0.01; {probe}; {probe} word; print $?");
        let child = start(world, &[], &script);
        let shown = prompt(world);
        let fields = shown["fields"].to_string();
        for part in ["the skill writes declares permissions", "write ", "under the profile skill:"] {
            assert!(fields.contains(part), "{part}: {fields}");
        }
        answer(world, "--session");
        eventually("it ran twice", || {
            let output = finish(world.postern().args(["log", "--json", "--execution", "permissions"]));
            let said = text(&output.stdout);
            let ended = said.lines().filter(|line| line.contains("\"status\":\"exited\"")).count();
            said.contains("\"granted\"") && ended == 2
        });
        std::fs::write(&run, format!("{body}# edited\n")).unwrap();
        world.write("ws/edited", "");
        answer(world, "--once");
        answer(world, "--deny");
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "yes\nno\nno\nyes\nno\nno\nyes\nno\nno\n126", "{}", text(&output.stderr));
    });
}

#[test]
fn a_rule_that_forbids_and_a_policy_that_does_not_ask_hold_for_skills_too() {
    for_each_user(|world| {
        let run = skill(
            world,
            "net",
            "permissions: {network: {enabled: true}, file_system: {read: [/]}}\n",
            "#!/bin/sh\necho ran\n",
        );
        let rules = world.write("r.rules", "prefix_rule(['run'], decision = 'forbidden')");
        let rules = ["--rules", rules.to_str().unwrap()];
        let output = start(world, &rules, &run.display().to_string()).wait_with_output().unwrap();
        assert_eq!(status(&output), 126);
        assert!(text(&output.stderr).contains("forbidden by rule"), "{}", text(&output.stderr));
        let config =
            world.write("c.toml", "approval = { granular = { sandbox_approval = true, rules = true } }");
        let granular = ["--config", config.to_str().unwrap()];
        let output = start(world, &granular, &run.display().to_string()).wait_with_output().unwrap();
        assert!(text(&output.stderr).contains("skill_approval = false"), "{}", text(&output.stderr));
        // What it declares does not hold the directory where it is started.
        let run = skill(world, "net", "permissions: {network: {enabled: true}}\n", "#!/bin/sh\necho ran\n");
        let output =
            start(world, &["--on-prompt", "deny"], &run.display().to_string()).wait_with_output().unwrap();
        assert!(
            text(&output.stderr).contains("does not let its working directory be seen"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn skills_are_listed_with_what_they_come_to_and_a_bad_one_stops_the_start() {
    for_each_user(|world| {
        let run = skill(world, "writes", "permissions: {file_system: {write: [.]}}\n", WHERE);
        skill(world, "plain", "", WHERE);
        let list = |arguments: &[&str]| {
            let mut command = world.postern();
            command.args(["skills", "list"]).args(arguments);
            finish(command.arg("--skills").arg(world.outside.join("skills")))
        };
        let directory = run.parent().and_then(Path::parent).unwrap();
        // It would let what runs inside change what runs outside.
        let output = list(&[]);
        assert!(
            text(&output.stderr).contains("holds skills and lies where a sandbox can write"),
            "{}",
            text(&output.stderr)
        );
        std::fs::write(
            directory.join("agents/openai.yaml"),
            "permissions: {file_system: {write: [/srv/data]}}\n",
        )
        .unwrap();
        let said = stdout(&list(&[]));
        assert!(said.contains("declares nothing") && said.contains("    write /srv/data\n"), "{said}");
        let json = stdout(&list(&["--json"]));
        let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["permissions"]), (2, &Value::Null));
        std::fs::write(directory.join("agents/openai.yaml"), "permissions:\n  file_system: {wirte: [/x]}\n")
            .unwrap();
        for output in [list(&[]), start(world, &[], "print ran").wait_with_output().unwrap()] {
            assert!(!output.status.success() && stdout(&output).is_empty());
            let place = format!("{}/agents/openai.yaml:2: permissions: ", directory.display());
            assert!(text(&output.stderr).contains(&place), "{}", text(&output.stderr));
        }
    });
}
