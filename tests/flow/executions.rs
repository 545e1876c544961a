use postern_tests::{finish, for_each_user, status, stdout, text};

#[test]
fn an_unmatched_command_runs_in_place_with_its_context_recorded() {
    for_each_user(|world| {
        let script = world.write("ws/script.zsh", "greet() {\n  /bin/echo hello $1\n}\ngreet you\nexit 3\n");
        let output = finish(world.posternsh().args(["-f", script.to_str().unwrap(), "arg"]));
        assert_eq!((stdout(&output).as_str(), status(&output)), ("hello you", 3), "{}", text(&output.stderr));
        let record = world.record("/bin/echo");
        assert_eq!(record["decision"], "run");
        assert_eq!(record["judgement"]["source"], "heuristic");
        let context = &record["claimed"]["context"];
        assert!(context["script"].as_str().unwrap().ends_with("script.zsh"), "{context}");
        assert_eq!(context["line"], 2, "{context}");
        assert_eq!(context["functions"][0], "greet");
        assert_eq!(context["job"], "/bin/echo hello $1");
        assert_eq!(record["outcome"]["status"], "exited");
        assert_eq!(record["outcome"]["code"], 0);
        assert_eq!(record["attested"]["cwd"], world.workspace.to_str().unwrap());
    });
}

#[test]
fn a_forbidden_command_is_denied_with_its_justification() {
    for_each_user(|world| {
        let rules =
            r#"prefix_rule(["git", "push"], decision = "forbidden", justification = "a person pushes")"#;
        let output =
            world.session(rules, "git push origin; print $?; alias g=git; a=(push); eval 'g $a'; print $?");
        assert_eq!(stdout(&output), "126\n126");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("postern: denied: git push origin (forbidden by rule "), "{stderr}");
        assert!(stderr.contains("test.rules:1: a person pushes)"), "{stderr}");
        let denied = world.records().into_iter().filter(|line| line["decision"] == "deny").count();
        assert_eq!(denied, 2);
    });
}

#[test]
fn a_prompt_without_anybody_to_ask_is_denied_and_says_so() {
    for_each_user(|world| {
        let output = world.session(r#"prefix_rule(["date"], decision = "prompt")"#, "date; print $?");
        assert_eq!(stdout(&output), "126");
        assert!(
            text(&output.stderr).contains("nobody is asked in this session: on_prompt is `deny`; rule "),
            "{}",
            text(&output.stderr)
        );
    });
}

/// Prints from inside which sandbox it is in.
const WHERE: &str = r#"
import os
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
def may(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT)); os.unlink(path); return 'yes'
    except OSError: return 'no'
def net():
    import socket
    try: socket.socket().close(); return 'yes'
    except OSError: return 'no'
print(status['Seccomp'].strip(), status['NoNewPrivs'].strip(), may(os.environ['OUTSIDE'] + '/x'), may('new'), may('.git/x'), may('.git/hooks/x'), net(), os.readlink('/proc/self/ns/pid'), os.readlink('/proc/self/ns/mnt'))
"#;

fn place(world: &postern_tests::World, execution: &str) -> Vec<String> {
    let rules = if execution.is_empty() {
        String::new()
    } else {
        format!("prefix_rule([\"python3\"], execution = \"{execution}\", env_keep = [\"OUTSIDE\"])")
    };
    let script = world.write("where.py", WHERE);
    let line = format!(
        "OUTSIDE={} python3 {}; readlink /proc/self/ns/pid /proc/self/ns/mnt",
        world.outside.display(),
        script.display()
    );
    let output = world.session(&rules, &line);
    let out = stdout(&output).replace('\n', " ");
    let words: Vec<String> = out.split(' ').map(str::to_owned).collect();
    assert_eq!(words.len(), 11, "{execution}: {out} {}", text(&output.stderr));
    words
}

#[test]
fn each_execution_is_the_sandbox_that_it_says() {
    for_each_user(|world| {
        // seccomp, no_new_privs; writes outside, in the workspace, in .git, in hooks; network
        let facts = |words: &[String]| words[..7].join(" ");
        let in_place = place(world, "");
        assert_eq!(facts(&in_place), "2 1 no yes no no no");
        assert_eq!(in_place[7..9], in_place[9..11]);

        let unsandboxed = place(world, "unsandboxed");
        assert_eq!(facts(&unsandboxed), "0 0 yes yes yes yes yes");
        assert_ne!(unsandboxed[7], unsandboxed[9]);

        let turn = place(world, "turn_default");
        assert_eq!(facts(&turn), "2 1 no yes no no no");
        assert_eq!(turn[7..9], turn[9..11]);

        let git = place(world, "git");
        assert_eq!(facts(&git), "2 1 no yes yes no no");
        assert_ne!(git[7], git[9]);
        assert_ne!(git[8], git[10]);

        assert_eq!(facts(&place(world, "network")), "2 1 no yes no no yes");
        assert_eq!(facts(&place(world, "read-only")), "2 1 no no no no no");
    });
}

#[test]
fn a_commit_under_the_git_profile_leaves_nothing_behind_but_the_commit() {
    for_each_user(|world| {
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(world.workspace.join(".git"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let before = names();
        let rules = "prefix_rule([\"git\", [\"add\", \"commit\"]], execution = \"git\")";
        let script = "echo x > f; git add f && git commit -qm two && git commit -q --allow-empty -m three; git log --oneline | wc -l";
        let output = world.session(rules, script);
        assert_eq!(stdout(&output), "3", "{}", text(&output.stderr));
        let after: Vec<_> = names().into_iter().filter(|name| !before.contains(name)).collect();
        assert!(after.iter().all(|name| name == "COMMIT_EDITMSG" || name == "index"), "{after:?}");
        for record in world.records().iter().filter(|line| line["decision"] == "escalate") {
            assert_eq!(record["execution"]["permissions"], "git");
        }
    });
}

#[test]
fn from_inside_a_permissions_run_nothing_gets_wider() {
    for_each_user(|world| {
        let rules = r#"
prefix_rule(["posternsh", "-fc"], execution = "git")
prefix_rule(["id"], execution = "unsandboxed")
prefix_rule(["date"], decision = "forbidden")
"#;
        let inner = "id; print -- $?; date; print -- $?; /bin/true; print -- $?";
        let shell = postern_tests::prefix().join("bin/posternsh");
        let output = world.session(rules, &format!("{} -fc '{inner}'", shell.display()));
        assert_eq!(stdout(&output), "126\n126\n0", "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("asked from permissions(git)"), "{}", text(&output.stderr));
        let inside: Vec<_> =
            world.records().into_iter().filter(|line| line["context"].as_i64() > Some(0)).collect();
        assert!(inside.len() >= 3, "{inside:#?}");
    });
}

#[test]
fn a_command_that_takes_longer_is_told_of_and_hears_signals_of_its_own() {
    for_each_user(|world| {
        for execution in ["unsandboxed", "turn_default", "read-only"] {
            let rules = format!(r#"prefix_rule(["sh"], execution = "{execution}")"#);
            // The trap is the command's; the signal goes to who waits for it.
            let loops = "trap 'echo heard; exit 3' TERM; echo set; while :; do sleep 0.02; done";
            let loops = world.write("loops.sh", loops);
            let script = format!(
                "mkfifo says; exec 3<>says; sh {} >&3 & read -u 3 said; kill -TERM $!; wait $!; print $said $?; \
                 read -u 3 said; print $said; rm says",
                loops.display()
            );
            let output = world.session(&rules, &script);
            assert_eq!(stdout(&output), "set 3\nheard", "{execution} {}", text(&output.stderr));
        }
        let records = world.records();
        let escalated: Vec<_> = records.iter().filter(|line| line["decision"] == "escalate").collect();
        assert_eq!(escalated.len(), 3);
        for record in escalated {
            assert_eq!(record["attested"]["fds"]["1"], "pipe");
            assert_eq!(record["outcome"]["code"], 3);
        }
    });
}

#[test]
fn the_record_joins_decision_and_outcome_and_the_chain_holds() {
    for_each_user(|world| {
        let output = world.session(
            r#"prefix_rule(["sh"], execution = "unsandboxed", audit = True)"#,
            "sh -c 'exit 9'; sh -c 'kill -9 $$'; print $?",
        );
        assert_eq!(stdout(&output), "137");
        let records = world.records();
        let escalated: Vec<_> = records.iter().filter(|line| line["decision"] == "escalate").collect();
        assert_eq!(escalated.len(), 2);
        assert_eq!(escalated[0]["outcome"]["code"], 9);
        assert_eq!(escalated[1]["outcome"]["signal"], 9);
        for record in escalated {
            assert_eq!(record["judgement"]["audit"], true);
            assert!(record["attested"]["exe"]["blake3"].as_str().unwrap().len() == 64);
            assert_eq!(record["attested"]["fds"]["1"], "pipe");
            assert!(record["outcome"]["maxrss_kb"].as_u64() > Some(0));
        }
        let verify = || finish(world.postern().args(["log", "verify"]));
        assert_eq!(status(&verify()), 0);
        let edit = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute(\"update events set body=replace(body,'escalate','run') where seq=2\"); d.commit()";
        let database = world.root.join("state/postern/records.db");
        assert!(world.plain("python3", &["-c", edit, database.to_str().unwrap()]).status.success());
        let broken = verify();
        assert_eq!(status(&broken), 1);
        assert!(text(&broken.stderr).contains("event 2"), "{}", text(&broken.stderr));
    });
}

#[test]
fn the_log_can_be_narrowed_and_read_by_programs() {
    for_each_user(|world| {
        world.session(
            "prefix_rule([\"sh\"], execution = \"unsandboxed\")\nprefix_rule([\"date\"], decision = \"forbidden\")",
            "/bin/true; sh -c :; date; /bin/echo needle",
        );
        world.records();
        let log = |arguments: &[&str]| {
            let output = finish(world.postern().arg("log").args(arguments));
            assert_eq!(status(&output), 0, "{arguments:?}: {}", text(&output.stderr));
            stdout(&output)
        };
        let count = |arguments: &[&str]| log(arguments).lines().count();
        assert_eq!(count(&["--json", "--decision", "deny"]), 1);
        assert_eq!(count(&["--json", "--execution", "unsandboxed"]), 1);
        assert_eq!(count(&["--json", "--execution", "in_place", "--decision", "run"]), 2);
        assert_eq!(count(&["--json", "--grep", "needle"]), 1);
        assert_eq!(count(&["--json", "--grep", "needle", "--since", "1h"]), 1);
        assert_eq!(log(&["--json", "--session", "nosuch"]), "");
        assert!(log(&[]).contains("forbidden") || log(&[]).contains("deny"));
        assert!(!log(&[]).contains('\x1b'), "colour into a pipe");
        assert!(log(&["show", "2"]).contains("\"attested\""));
        assert_eq!(log(&["head"]).split(' ').count(), 3);
    });
}

#[test]
fn rules_check_prints_what_the_reference_prints() {
    for_each_user(|world| {
        let rules = world.write("c.rules", "host_executable(\"git\", [\"/usr/bin/git\"])\nprefix_rule([\"git\", [\"push\", \"fetch\"]], decision = \"prompt\", justification = \"asks\")\nprefix_rule([\"git\"])");
        let check = |command: &[&str]| {
            let output = finish(
                world.postern().args(["rules", "check", "--rules"]).arg(&rules).arg("--").args(command),
            );
            serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
        };
        let pushed = check(&["git", "push", "x"]);
        assert_eq!(pushed["decision"], "prompt");
        assert_eq!(
            pushed["matchedRules"][0]["prefixRuleMatch"]["matchedPrefix"],
            serde_json::json!(["git", "push"])
        );
        assert_eq!(pushed["matchedRules"][0]["prefixRuleMatch"]["justification"], "asks");
        assert_eq!(
            check(&["/usr/bin/git", "status"])["matchedRules"][0]["prefixRuleMatch"]["resolvedProgram"],
            "/usr/bin/git"
        );
        assert_eq!(check(&["/opt/git", "status"]), serde_json::json!({ "matchedRules": [] }));
        assert_eq!(check(&["ls"]), serde_json::json!({ "matchedRules": [] }));
    });
}

#[test]
fn descriptors_are_passed_by_name_and_no_others() {
    for_each_user(|world| {
        let input = world.write("outside/input", "passed");
        let postern = postern_tests::prefix().join("bin/postern");
        let run = |options: &str, script: &str| {
            let (postern, input) = (postern.display(), input.display());
            world.plain(
                "bash",
                &["-c", &format!("{postern} {options} -- -fc '{script}' 5< {input} 6< {input}")],
            )
        };
        let output = run("--pass-fd 5", "cat <&5; cat <&6");
        assert_eq!(stdout(&output), "passed", "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("bad file descriptor"));
        for (options, expected) in
            [("--pass-fd 9", "--pass-fd 9"), ("--pass-fd 63", "choose another"), ("--pass-fd 1", "3..")]
        {
            let output = run(options, "print started");
            assert_eq!(stdout(&output), "");
            assert!(text(&output.stderr).contains(expected), "{options}: {}", text(&output.stderr));
        }
        let line = format!("{} --pass-fd 5 -- -fc 'print started' 5< /", postern.display());
        let output = world.plain("bash", &["-c", &line]);
        assert!(text(&output.stderr).contains("directory would lead past"), "{}", text(&output.stderr));
    });
}

#[test]
fn the_git_profile_commits_in_a_linked_worktree() {
    for_each_user(|world| {
        let tree = world.root.join("tree");
        let made = world.plain("git", &["worktree", "add", "-q", tree.to_str().unwrap()]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let rules = world.write(
            "r.rules",
            "prefix_rule(['git'], execution = 'git')\nprefix_rule(['sh'], execution = 'git')",
        );
        let run = |directory: &std::path::Path, script: &str| {
            let mut command = world.postern();
            command.current_dir(directory).arg("--rules").arg(&rules).args(["--", "-fc", script]);
            finish(&mut command)
        };
        let output = run(&tree, "print x > new; git add new; git commit -qm new; git log --format=%s -1");
        assert_eq!(stdout(&output), "new", "{}", text(&output.stderr));
        let attack = format!(
            "sh -c 'echo x > {0}/.git/hooks/pre-commit; echo x >> {0}/.git/config; echo / > {0}/.git/worktrees/tree/commondir; \
             echo x >> .git; mkdir {0}/.git/worktrees/other; echo tried' 2> /dev/null",
            world.workspace.display()
        );
        let config = std::fs::read(world.workspace.join(".git/config")).unwrap();
        assert_eq!(stdout(&run(&tree, &attack)), "tried");
        assert!(!world.workspace.join(".git/hooks/pre-commit").exists());
        assert!(!world.workspace.join(".git/worktrees/other").exists());
        assert_eq!(std::fs::read(world.workspace.join(".git/config")).unwrap(), config);
        assert_eq!(stdout(&run(&tree, "git status --short")), "");
        // A file that names a repository which does not know it gives nothing.
        let fake = world.root.join("fake");
        std::fs::create_dir(&fake).unwrap();
        std::fs::write(
            fake.join(".git"),
            format!("gitdir: {}/.git/worktrees/tree\n", world.workspace.display()),
        )
        .unwrap();
        world.own();
        let index = world.workspace.join(".git/worktrees/tree/planted");
        let output = run(&fake, &format!("sh -c 'echo x > {}; echo tried' 2> /dev/null", index.display()));
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert!(!index.exists());
    });
}

#[test]
fn who_has_closed_every_descriptor_or_wiped_the_environment_asks_all_the_same() {
    for_each_user(|world| {
        let script = world.write(
            "closed.py",
            format!(
                "import os, subprocess\nshell = '{}/bin/posternsh'\n\
                 for words in [[shell], ['env', '-i', shell]]:\n    \
                 subprocess.run(words + ['-fc', '/usr/bin/id -u > /dev/null; ps'], close_fds=True)\n\
                 os.closerange(3, 999)\nos.execv(shell, ['zsh', '-fc', '/usr/bin/id -u > /dev/null; ps'])\n",
                postern_tests::prefix().display()
            ),
        );
        let rules =
            "prefix_rule(['id'], execution = 'unsandboxed')\nprefix_rule(['ps'], decision = 'forbidden')";
        let output = world.session(rules, &format!("python3 {}", script.display()));
        assert_eq!(
            text(&output.stderr).matches("postern: denied: ps").count(),
            3,
            "{}",
            text(&output.stderr)
        );
        let records = world.records();
        let escalated = records.iter().filter(|line| line["decision"] == "escalate");
        assert_eq!(escalated.count(), 3);
    });
}

#[test]
fn why_says_what_was_asked_what_decided_and_what_would_have_to_change() {
    for_each_user(|world| {
        let rules = "prefix_rule(['id'], decision = 'forbidden', justification = 'no names')";
        let _denied = world.session(rules, "whoami() { id -u; }; whoami; /bin/true");
        let records = world.records();
        let seq = |decision: &str| {
            let found = records.iter().find(|line| line["decision"] == decision).unwrap();
            found["seq"].to_string()
        };
        let why = |seq: &str| stdout(&finish(world.postern().args(["why", seq])));
        let denied = why(&seq("deny"));
        for part in ["id -u", "in whoami", "was denied", "test.rules:1", "It says: no names"] {
            assert!(denied.contains(part), "{part}: {denied}");
        }
        assert!(why(&seq("run")).contains("no rule matches"));
        let none = finish(world.postern().args(["why", "9999"]));
        assert!(text(&none.stderr).contains("there is no record 9999"), "{}", text(&none.stderr));
    });
}
