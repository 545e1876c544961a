//! Records of sessions that were killed.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use postern_tests::{World, eventually, finish, for_each_user, lives, status, stdout, text};
use serde_json::Value;

fn journals(world: &World) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(world.root.join("state/postern/pending")).unwrap();
    listed.map(|entry| entry.unwrap().path()).collect()
}

fn log(world: &World) -> Vec<Value> {
    let output = finish(world.postern().args(["log", "--json"]));
    let said = text(&output.stderr);
    assert!(status(&output) == 0 || said.contains("no records"), "{said}");
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_decision_survives_a_server_that_is_killed_by_what_it_decided() {
    for_each_user(|world| {
        let rules = world.write("test.rules", "prefix_rule(['sh'], execution = 'unsandboxed')");
        for round in 1..=3 {
            let mut child = world
                .postern()
                .arg("--rules")
                .arg(&rules)
                .args(["--", "-fc", "read server; /bin/true; sh -c \"kill -9 $server\"; /bin/true"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut server = None;
            eventually("the session has started", || {
                let started = log(world).into_iter().filter(|line| line["event"] == "started");
                server = started.map(|line| line["server"].as_i64().unwrap()).nth(round - 1);
                server.is_some()
            });
            let server = server.unwrap();
            writeln!(child.stdin.take().unwrap(), "{server}").unwrap();
            assert!(!child.wait().unwrap().success());
            eventually("the server is gone", || !lives(server));
            assert_eq!(journals(world).len(), 1);
            // The last of its threads lets go of the journal.
            eventually("the journal is taken over", || !log(world).is_empty() && journals(world).is_empty());
            let records = log(world);
            let decided = |name: &str, wanted: &str| {
                let runs = records.iter().filter(|line| line["claimed"]["argv"][0] == name);
                runs.filter(|line| line["decision"] == wanted).count()
            };
            assert_eq!((decided("sh", "escalate"), decided("/bin/true", "run")), (round, round));
            let verified = finish(world.postern().args(["log", "verify"]));
            assert_eq!(status(&verified), 0, "{}", text(&verified.stderr));
            let seq = records.iter().rfind(|line| line["decision"] == "escalate").unwrap()["seq"].to_string();
            let why = stdout(&finish(world.postern().args(["why", &seq])));
            assert!(why.contains("it ran without a sandbox"), "{why}");
        }
        // Nothing is left by one that ends.
        assert_eq!(status(&world.session("", "/bin/true")), 0);
        eventually("its journal is removed", || journals(world).is_empty());
    });
}

#[test]
fn where_no_journal_can_be_made_no_session_starts() {
    for_each_user(|world| {
        let made = world.plain("sh", &["-c", "mkdir ../state/postern && : > ../state/postern/pending"]);
        assert!(made.status.success());
        let output = world.session("", "touch started");
        assert_eq!(status(&output), 125);
        assert!(text(&output.stderr).contains("state directory"), "{}", text(&output.stderr));
        assert!(!world.workspace.join("started").exists());
    });
}
