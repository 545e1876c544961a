//! What `postern rules` says is what a session does.

use postern_tests::{World, finish, for_each_user, stdout, text};

const RULES: &str = "prefix_rule(['git', ['push', 'fetch']], decision = 'forbidden', justification = 'a person does')\n\
                     prefix_rule(['git'], execution = 'git')\n\
                     prefix_rule(['tool'], execution = 'unsandboxed')\n\
                     host_executable('make', ['/opt/make'])\n\
                     prefix_rule(['make'])\n\
                     prefix_rule(['id'], decision = 'prompt')\n";

fn explain(world: &World, command: &[&str]) -> String {
    let rules = world.write("r.rules", RULES);
    let mut postern = world.postern();
    let output = finish(postern.args(["rules", "explain", "--rules"]).arg(rules).arg("--").args(command));
    assert!(output.status.success(), "{}", text(&output.stderr));
    stdout(&output)
}

#[test]
fn explain_shows_every_rule_that_is_looked_at_which_decides_and_what_happens() {
    for_each_user(|world| {
        let said = explain(world, &["git", "push", "origin"]);
        let lines: Vec<_> = said.lines().collect();
        assert!(lines[0].ends_with("/git"), "{said}");
        assert!(lines[1].ends_with("r.rules:1  git push|fetch  (forbidden)  # a person does"), "{said}");
        assert_eq!(lines[2].trim(), "it decides");
        assert!(lines[3].ends_with("r.rules:2  git  (allow, permissions(git))"), "{said}");
        assert!(lines[4].contains("a stricter or narrower one decides"), "{said}");
        assert_eq!(lines[5], "decision  it is denied");

        let said = explain(world, &["git", "status"]);
        assert!(said.contains("the words after the first are others"), "{said}");
        assert!(said.ends_with("decision  it runs permissions(git)"), "{said}");
        // A program of the workspace with a trusted name.
        std::fs::copy("/bin/true", world.workspace.join("tool")).unwrap();
        world.own();
        let said = explain(world, &["./tool"]);
        assert!(said.contains("a sandbox could have put this file or its name there"), "{said}");
        assert!(said.contains("it runs in place"), "{said}");
        assert!(explain(world, &["make"]).contains("lie elsewhere"));
        assert!(
            explain(world, &["id"]).contains("it waits for an approval, and with a yes runs unsandboxed")
        );
        assert!(explain(world, &["no-such-program"]).contains("no file of this name is found"));
    });
}

#[test]
fn what_is_explained_is_what_a_session_does() {
    for_each_user(|world| {
        std::fs::copy("/bin/true", world.workspace.join("tool")).unwrap();
        world.own();
        for (command, decision, expected) in [
            (&["git", "push"][..], "deny", "it is denied"),
            (&["git", "status"], "escalate", "it runs permissions(git)"),
            (&["./tool"], "run", "it runs in place"),
            (&["make", "--version"], "run", "it runs in place"),
            // In this session nobody is asked.
            (&["id"], "deny", "it waits for an approval"),
            (&["true"], "run", "it runs in place"),
        ] {
            let said = explain(world, command);
            assert!(said.lines().last().unwrap().contains(expected), "{command:?}: {said}");
            let _done = world.session(RULES, &format!("command {}", command.join(" ")));
            let records = world.records();
            let last = records.iter().rfind(|line| line["decision"].is_string()).unwrap();
            assert_eq!(last["decision"], decision, "{command:?}: {last}");
        }
    });
}

#[test]
fn list_names_every_rule_with_its_place() {
    for_each_user(|world| {
        let rules = world.write("r.rules", RULES);
        let output = finish(world.postern().args(["rules", "list", "--rules"]).arg(rules));
        let said = stdout(&output);
        assert_eq!(said.lines().count(), 5, "{said}");
        assert!(said.lines().last().unwrap().ends_with("r.rules:6  id  (prompt)"), "{said}");
    });
}
