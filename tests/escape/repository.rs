//! A repository's own settings: what a sandboxed process leaves there, the next `git` outside
//! would believe.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use postern_tests::{World, eventually, finish, for_each_user, lives, status, stdout, text};

const GIT: &str = "prefix_rule(['sh'], execution = 'git')";

/// A session that runs `script` in the workspace under [`GIT`], in the background.
fn session(world: &World, script: &str) -> std::process::Child {
    let rules = world.write("git.rules", GIT);
    let mut command = world.postern();
    command.arg("--rules").arg(rules).args(["--", "-fc", script]).stdout(Stdio::piped());
    command.spawn().expect("a session starts")
}

#[test]
fn what_a_command_leaves_running_cannot_write_them() {
    for_each_user(|world| {
        let script = "sh -c 'ls .git/commondir; (trap \"\" HUP; sleep 1; echo evil > .git/commondir; \
                      mkdir .git/worktrees/x; echo tried > tried) 2> /dev/null & :'; sleep 2; cat tried";
        let output = world.session(GIT, script);
        assert_eq!(stdout(&output), ".git/commondir\ntried", "{}", text(&output.stderr));
        eventually("nothing is left", || !world.workspace.join(".git/commondir").exists());
        assert!(!world.workspace.join(".git/worktrees").exists());
    });
}

#[test]
fn the_end_of_one_session_opens_nothing_to_another() {
    for_each_user(|world| {
        let mut first = session(world, "sh -c 'sleep 1'");
        std::thread::sleep(Duration::from_millis(400));
        let second = session(world, "sh -c 'sleep 2; echo evil > .git/commondir; echo tried'");
        assert!(first.wait().unwrap().success());
        let output = second.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "tried");
        eventually("nothing is left", || !world.workspace.join(".git/commondir").exists());
    });
}

#[test]
fn a_stand_in_that_somebody_filled_for_a_while_is_held_by_all_who_rely_on_it() {
    for_each_user(|world| {
        let [stand_in, prepared, ends, goes] =
            [".codex", "prepared/config.toml", "ends", "goes"].map(|name| world.workspace.join(name));
        let mut first = session(world, "sh -c 'until [ -e ends ]; do sleep 0.05; done'");
        eventually("it is there", || stand_in.exists());
        std::fs::create_dir(stand_in.join("x")).unwrap();
        let second = session(
            world,
            "sh -c 'mkdir prepared; echo evil > prepared/config.toml; until [ -e goes ]; do sleep 0.05; done; \
             mv -T prepared .codex 2> /dev/null; echo tried'",
        );
        eventually("the second one runs", || prepared.exists());
        std::fs::remove_dir(stand_in.join("x")).unwrap();
        std::fs::write(ends, "").unwrap();
        assert!(first.wait().unwrap().success());
        std::fs::write(goes, "").unwrap();
        let output = second.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "tried");
        assert!(prepared.exists(), "it is where the stand-in was");
        eventually("nothing is left", || !stand_in.exists());
    });
}

#[test]
fn a_kill_leaves_no_stand_in_for_long() {
    for_each_user(|world| {
        let mut session = session(world, "sh -c 'sleep 30'");
        let stand_ins =
            [".git/commondir", ".codex", ".agents", ".postern"].map(|name| world.workspace.join(name));
        eventually("they are there", || stand_ins.iter().all(|path| path.exists()));
        let started = world.plain(postern_tests::prefix().join("bin/postern"), &["log", "--json"]);
        let record: serde_json::Value =
            serde_json::from_str(text(&started.stdout).lines().next().unwrap()).unwrap();
        for process in ["server", "spawner"] {
            let pid = record[process].as_i64().unwrap();
            assert!(
                std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success()
            );
            eventually("it is gone", || !lives(pid));
        }
        let _status = session.wait().unwrap();
        // The next one that starts anywhere sweeps.
        let output = finish(world.postern().current_dir(&world.outside).args(["--", "-fc", "true"]));
        assert_eq!(status(&output), 0, "{}", text(&output.stderr));
        eventually("they are gone", || !stand_ins.iter().any(|path| path.exists()));
    });
}

#[test]
fn missing_configuration_of_agents_cannot_be_created() {
    for_each_user(|world| {
        let script = "for name in .agents .codex .postern; do mkdir $name; print x > $name; print x > $name/config.toml; \
                      rmdir $name; mv $name away; ln -sfn / $name; done; print tried";
        let output = world.session("", script);
        assert_eq!(stdout(&output), "tried");
        for name in [".agents", ".codex", ".postern"] {
            assert!(!world.workspace.join(name).exists(), "{name} is left");
        }
        // What is there already keeps its content.
        world.write("ws/.codex", "");
        std::fs::remove_file(world.workspace.join(".codex")).unwrap();
        std::fs::create_dir(world.workspace.join(".codex")).unwrap();
        world.write("ws/.codex/config.toml", "mine");
        let _output = world.session("", "print x > .codex/config.toml; rm -rf .codex");
        let content = std::fs::read_to_string(world.workspace.join(".codex/config.toml")).unwrap();
        assert_eq!(content, "mine");
    });
}

#[test]
fn a_planted_git_file_neither_hangs_nor_misleads_the_next_session() {
    for_each_user(|world| {
        let plain = world.root.join("plain");
        std::fs::create_dir_all(plain.join("evil")).unwrap();
        world.own();
        for plant in [
            "rm -f evil/commondir; mkfifo evil/commondir; print gitdir: $PWD/evil > .git",
            "rm -f evil/commondir; ln -s /dev/zero evil/commondir; print gitdir: $PWD/evil > .git",
            "rm -f .git; mkfifo .git",
            "rm -f .git; truncate -s 2G .git",
        ] {
            let planted = world
                .plain_command(postern_tests::installed_stock())
                .current_dir(&plain)
                .args(["-fc", plant])
                .output()
                .unwrap();
            assert!(planted.status.success(), "{plant}: {}", text(&planted.stderr));
            let output = finish(world.postern().current_dir(&plain).args(["--", "-fc", "print started"]));
            assert_eq!(stdout(&output), "started", "{plant}: {}", text(&output.stderr));
        }
    });
}

#[test]
fn a_directory_of_posterns_own_is_no_project() {
    for_each_user(|world| {
        let rules = world.root.join("home/.config/postern/rules");
        std::fs::create_dir_all(&rules).unwrap();
        world.own();
        let script = "print 'prefix_rule([\"env\"])' > zz.rules; print tried";
        let output = finish(world.postern().current_dir(&rules).args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert!(!rules.join("zz.rules").exists());
        // A way through a link changes nothing.
        let link = world.root.join("link");
        std::os::unix::fs::symlink(&rules, &link).unwrap();
        let output = finish(world.postern().current_dir(&link).args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert!(!rules.join("zz.rules").exists());
        std::fs::set_permissions(&rules, PermissionsExt::from_mode(0o755)).unwrap();
    });
}

/// Runs `inside` in a session, and once it has printed `ready`, `outside` as somebody else would.
fn meanwhile(world: &World, config: &str, inside: &str, outside: &str) -> (String, Vec<serde_json::Value>) {
    let config = world.write("meanwhile.toml", config);
    let mut command = world.postern();
    command.arg("--config").arg(config).args(["--", "-fc", inside]).stdout(Stdio::piped());
    let mut session = command.spawn().expect("a session starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(session.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let done = world.plain("sh", &["-c", outside]);
    assert!(done.status.success(), "{outside}: {}", text(&done.stderr));
    std::fs::write(world.root.join("home/go"), "").unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let _status = session.wait().unwrap();
    (rest.join("\n"), world.records())
}

/// Waits, inside, for the other side, and a moment longer than a gap lasts.
const WAIT: &str = "print ready; while [[ ! -e ~/go ]]; do sleep 0.02; done; sleep 0.2; ";

#[test]
fn what_an_outside_change_uncovers_is_covered_again() {
    for_each_user(|world| {
        world.write("ws/.env", "SECRET");
        let config = "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n\
                      ':project_roots' = { '.' = 'write', '.env' = 'none' }\n";
        // As an editor saves.
        let (out, records) = meanwhile(
            world,
            config,
            &format!("{WAIT} cat .env; print x > .env; print tried"),
            "echo NEW SECRET > .env.new && mv .env.new .env",
        );
        assert_eq!(out, "tried");
        assert_eq!(std::fs::read_to_string(world.workspace.join(".env")).unwrap(), "NEW SECRET\n");
        let gap = records.iter().find(|line| line["event"] == "re-masked").expect("the gap is recorded");
        assert!(gap["path"].as_str().unwrap().ends_with(".env") && gap["gap_us"].is_u64(), "{gap}");

        // As an editor saves that keeps a backup: the mount goes along with the old file.
        let _again = std::fs::remove_file(world.root.join("home/go"));
        let (out, _records) = meanwhile(
            world,
            config,
            &format!("{WAIT} cat .env; print x > .env; print tried"),
            "mv .env .env~ && echo NEWER SECRET > .env && sleep 0.1",
        );
        assert_eq!(out, "tried");
        std::fs::remove_file(world.workspace.join(".env~")).unwrap();
        world.write("ws/.env", "NEW SECRET\n");

        let _again = std::fs::remove_file(world.root.join("home/go"));
        std::fs::create_dir_all(world.workspace.join("secret/open")).unwrap();
        world.own();
        let (out, _records) = meanwhile(
            world,
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n\
             ':project_roots' = { '.' = 'write', 'secret' = 'none', 'secret/open' = 'write' }\n",
            &format!("{WAIT} cat secret/kept; print tried"),
            "rm -rf secret && mkdir secret && echo NEW SECRET > secret/kept && sleep 0.1",
        );
        assert_eq!(out, "tried");

        let _again = std::fs::remove_file(world.root.join("home/go"));
        let (out, records) = meanwhile(
            world,
            "",
            &format!("{WAIT} print evil > .git/hooks/pre-commit; print evil >> .git/config; print tried"),
            "rm -rf .git && sleep 0.05 && git init -q . && sleep 0.1",
        );
        assert_eq!(out, "tried");
        assert!(!world.workspace.join(".git/hooks/pre-commit").exists());
        let config = std::fs::read_to_string(world.workspace.join(".git/config")).unwrap();
        assert!(!config.contains("evil"), "{config}");
        assert!(records.iter().any(|line| line["path"].as_str().is_some_and(|path| path.ends_with(".git"))));
    });
}

#[test]
fn a_job_that_outlives_its_shell_stays_covered() {
    for_each_user(|world| {
        world.write("ws/.env", "SECRET");
        let config = world.write(
            "c.toml",
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n\
             ':project_roots' = { '.' = 'write', '.env' = 'none' }\n",
        );
        let script = "(while [[ ! -e ~/go ]]; do sleep 0.02; done; sleep 0.3; cat .env > found; print tried > tried) \
                      < /dev/null > /dev/null 2>&1 &!";
        let output = finish(world.postern().arg("--config").arg(config).args(["--", "-fc", script]));
        assert_eq!(status(&output), 0, "{}", text(&output.stderr));
        let saved = world.plain("sh", &["-c", "echo NEW SECRET > .env.new && mv .env.new .env"]);
        assert!(saved.status.success());
        std::fs::write(world.root.join("home/go"), "").unwrap();
        eventually("the job has tried", || world.workspace.join("tried").exists());
        assert_eq!(std::fs::read_to_string(world.workspace.join("found")).unwrap(), "");
        let records = world.records();
        assert!(records.iter().any(|line| line["event"] == "re-masked"), "{records:?}");
    });
}

#[test]
fn the_mode_of_a_project_opens_nothing() {
    for_each_user(|world| {
        for mode in ["777", "1777"] {
            let output = world.session("", &format!("chmod {mode} . && print changed"));
            assert_eq!(stdout(&output), "changed", "{}", text(&output.stderr));
            let output = world.session("", "print evil > .git/hooks/pre-commit; mkdir .codex; print tried");
            assert_eq!(stdout(&output), "tried");
            assert!(!world.workspace.join(".git/hooks/pre-commit").exists(), "{mode}");
            assert!(!world.workspace.join(".codex").exists(), "{mode}");
        }
    });
}

#[test]
fn an_escalated_command_that_uncovers_leaves_no_moment() {
    for_each_user(|world| {
        let rules = "prefix_rule(['sh'], execution = 'unsandboxed')";
        // Written by the shell itself, as soon as it knows that the command has ended.
        // What is moved aside takes its mount along, and no mount goes.
        for aside in ["", " && rm -rf .moved"] {
            let script = format!(
                "for n in {{1..60}}; do sh -c 'rm -rf .moved; mv .git .moved && cp -r .moved .git{aside}'; \
                 {{ print evil > .git/hooks/evil }} 2> /dev/null && print reached; done; sleep 0.3; \
                 print evil > .git/hooks/evil; print tried"
            );
            let output = world.session(rules, &script);
            assert_eq!(stdout(&output), "tried", "{aside}: {}", text(&output.stderr));
            assert!(!world.workspace.join(".git/hooks/evil").exists());
        }
        assert!(world.records().iter().any(|line| line["event"] == "re-masked"));
    });
}

#[test]
fn moving_the_project_from_outside_opens_neither_the_old_nor_the_new_one() {
    for_each_user(|world| {
        let ws = world.workspace.display();
        let (out, _records) = meanwhile(
            world,
            "",
            &format!(
                "{WAIT} print x > .git/hooks/x; print x > {ws}/.git/hooks/x; print x > {ws}2/.git/hooks/x; mkdir -p {ws}/.codex {ws}2/.codex; print tried"
            ),
            &format!("mv {ws} {ws}2 && mkdir {ws} && git init -q {ws} && sleep 0.1"),
        );
        assert_eq!(out, "tried");
        for project in [world.workspace.clone(), world.root.join("ws2")] {
            assert!(!project.join(".git/hooks/x").exists(), "{}", project.display());
        }
        assert!(!world.workspace.join(".codex").exists());
    });
}

#[test]
fn a_repository_of_the_agents_own_is_its_own_and_on_record() {
    for_each_user(|world| {
        let fresh = world.root.join("fresh");
        std::fs::create_dir(&fresh).unwrap();
        world.own();
        let script = "git init -q . && print hook > .git/hooks/post-commit && print made";
        let output = finish(world.postern().current_dir(&fresh).args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "made", "{}", text(&output.stderr));
        let records = world.records();
        let made = records.iter().find(|line| line["event"] == "repository_created").expect("an event");
        assert_eq!(made["path"], fresh.to_str().unwrap());
        // From then on it is protected as any other.
        let output =
            finish(world.postern().current_dir(&fresh).args(["--", "-fc", "print x >> .git/config"]));
        assert_ne!(status(&output), 0);
    });
}
