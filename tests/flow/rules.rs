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
        assert!(lines[4].contains("another one decides"), "{said}");
        assert!(
            lines[5].starts_with("decision  it is denied: git push origin (forbidden by rule "),
            "{said}"
        );

        let said = explain(world, &["git", "status"]);
        assert!(said.contains("the words after the first are others"), "{said}");
        assert!(said.contains("decision  it runs permissions(git): rule "), "{said}");
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
        assert!(explain(world, &["/etc/passwd"]).contains("nothing runs: the file is not executable"));
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
            // A rule reaches through to what is started.
            (&["env", "git", "push"], "deny", "it is denied"),
            (&["env", "id"], "deny", "it waits for an approval, and with a yes runs in place"),
            (&["env", "-S", "git push"], "deny", "it waits for an approval, and with a yes runs in place"),
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

fn rules(world: &World, arguments: &[&str]) -> (i32, String) {
    let output = finish(world.postern().arg("rules").args(arguments));
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn rules_are_added_once_tried_and_removed() {
    for_each_user(|world| {
        let own = world.root.join("home/.config/postern/rules/default.rules");
        let allow = ["add", "--execution", "turn_default", "--", "git", "fetch"];
        let (status, said) = rules(world, &allow);
        let line = "prefix_rule([\"git\", \"fetch\"], decision = \"allow\", execution = \"turn_default\")";
        assert_eq!((status, said.trim_end()), (0, format!("{}:1  {line}", own.display()).as_str()));
        assert!(rules(world, &allow).1.contains(":1  is there already: "));
        let forbid =
            ["add", "--decision", "forbidden", "--justification", "no \"force\"", "--", "git", "push", "-f"];
        assert_eq!(rules(world, &forbid).0, 0);
        assert_eq!(std::fs::read_to_string(&own).unwrap().lines().count(), 2);
        for (expected, command) in
            [("allow", &["git", "fetch", "x"][..]), ("forbidden", &["git", "push", "-f"]), ("none", &["git"])]
        {
            let arguments = [&["test", "--expect", expected, "--"], command].concat();
            assert_eq!(rules(world, &arguments), (0, String::new()), "{command:?}");
        }
        let (status, said) = rules(world, &["test", "--expect", "prompt", "--", "git", "fetch"]);
        assert_eq!((status, said.as_str()), (1, "postern: expected prompt, found allow\n"));
        // What a session is started with counts.
        let output = finish(world.postern().args(["--", "-fc", "git push -f"]));
        assert!(
            text(&output.stderr).contains("forbidden by rule")
                && text(&output.stderr).contains("no \"force\"")
        );
        let (status, said) = rules(world, &["remove", "--", "git", "fetch"]);
        assert_eq!((status, said), (0, format!("removed  {line}\n")));
        assert!(rules(world, &["remove", "--", "git", "fetch"]).1.contains("no rule about `git fetch`"));
        assert_eq!(std::fs::read_to_string(&own).unwrap().lines().count(), 1);
        // What would allow everything is not written.
        for bare in [&["python3"][..], &["bash", "-c"], &["sudo", "-u", "root"], &["env", "sh"]] {
            let (status, said) = rules(world, &[&["add", "--"], bare].concat());
            assert!(status == 1 && said.contains("runs whatever it is told"), "{bare:?}: {said}");
        }
        // A file that is broken stays as it is, and is named.
        let broken = world.write("broken.rules", "prefix_rule([)");
        let (status, said) = rules(world, &["add", "--file", broken.to_str().unwrap(), "--", "cat"]);
        assert!(status == 1 && said.contains("broken.rules:1:"), "{said}");
        assert_eq!(std::fs::read_to_string(&broken).unwrap(), "prefix_rule([)");
    });
}

#[test]
fn many_writers_of_one_file_lose_nothing() {
    for_each_user(|world| {
        let children: Vec<_> = (0..12)
            .map(|number| {
                let mut one = world.postern();
                one.args(["rules", "add", "--", "cat"]).arg(format!("f{}", number % 6));
                one.stdout(std::process::Stdio::null()).spawn().unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        let own = world.root.join("home/.config/postern/rules");
        let text = std::fs::read_to_string(own.join("default.rules")).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!((lines.len(), text.lines().count()), (6, 6), "{text}");
        assert_eq!(std::fs::read_dir(own).unwrap().count(), 1, "nothing is left");
    });
}

#[test]
fn rules_about_hosts_are_read_and_not_taken_for_held() {
    for_each_user(|world| {
        let rules = world.write(
            "n.rules",
            "network_rule('API.example.com:443', 'https', 'allow')\nnetwork_rule('evil.example', 'http', 'deny')\n\
             prefix_rule(['make'])\n",
        );
        let rules = rules.to_str().unwrap();
        let said = stdout(&finish(world.postern().args(["rules", "list", "--rules", rules])));
        assert!(said.contains("n.rules:1  host api.example.com by https  (allow)"), "{said}");
        let said = stdout(&finish(world.postern().args(["rules", "test", "--rules", rules])));
        assert!(said.contains("n.rules:3: make runs what its directory"), "{said}");
        assert!(said.contains("1 rules about commands and 2 about hosts"), "{said}");
        // Without the network nobody gets there.
        let run = |options: &[&str]| {
            let mut command = world.postern();
            finish(command.args(["--rules", rules]).args(options).args(["--", "-fc", "print in"]))
        };
        assert_eq!(stdout(&run(&[])), "in");
        let open = "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n[permissions.p.network]\nenabled = true\n";
        let config = world.write("c.toml", open);
        let refused = run(&["--config", config.to_str().unwrap()]);
        assert_eq!(stdout(&refused), "");
        assert!(text(&refused.stderr).contains("n.rules:2: this rule keeps commands from evil.example"));
        world.write("c.toml", format!("allow_weaker = ['network_rules']\n{open}"));
        assert_eq!(stdout(&run(&["--config", config.to_str().unwrap()])), "in");
    });
}

#[test]
fn a_rule_file_that_the_sandbox_could_make_another_stops_the_start() {
    for_each_user(|world| {
        let rules = world.write("outside/r.rules", RULES);
        let link = world.workspace.join("link.rules");
        std::os::unix::fs::symlink(&rules, &link).unwrap();
        world.own();
        let run = |rules: &std::path::Path| {
            finish(world.postern().arg("--rules").arg(rules).args(["--", "-fc", "print in"]))
        };
        assert_eq!(stdout(&run(&rules)), "in");
        for rules in [&*link, std::path::Path::new("link.rules")] {
            let output = run(rules);
            assert!(
                stdout(&output).is_empty()
                    && text(&output.stderr).contains("link.rules lies where the sandbox can write")
            );
        }
    });
}
