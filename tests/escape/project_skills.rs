//! By way of the project's own skills, which lie below what an agent writes, and have been trusted.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use postern_tests::{User, World, eventually, finish, for_each_user, is_root, prefix, status, stdout, text};
use serde_json::{Value, json};

use crate::attack::{Attacks, session};

const RUN: &str = "#!/bin/sh\necho ran\n";

/// Every name, kind, mode and content below the project's `.agents`.
fn snapshot(world: &World) -> String {
    let script =
        "find .agents -printf '%p %y %m %l\n' | sort; find .agents -type f -exec sha256sum {} + | sort";
    let output = world.plain("sh", &["-c", script]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    stdout(&output)
}

/// The skill by which the last script was judged.
fn last_skill(world: &World) -> Value {
    let records = world.records();
    let last = records.iter().rfind(|line| {
        line["claimed"]["argv"][0].as_str().is_some_and(|zeroth| zeroth.ends_with("/scripts/run"))
    });
    last.expect("a script was run")["judgement"]["skill"]["name"].clone()
}

#[test]
fn nothing_inside_changes_them() {
    for_each_user(|world| {
        let run = world.project_skill("tool", "", RUN);
        let attacks = [
            ("write", "open(run, 'a').close()"),
            ("truncate", "os.truncate(run, 0)"),
            ("add", "open(f'{skills}/tool/scripts/new', 'w').close()"),
            ("add a skill", "os.mkdir(f'{skills}/other')"),
            ("remove", "os.unlink(run)"),
            ("replace", "open(f'{own}/r', 'w').close(); os.replace(f'{own}/r', run)"),
            ("rename it", "os.rename(run, f'{own}/r')"),
            ("rename its directory", "os.rename(f'{skills}/tool', f'{own}/r')"),
            ("rename skills", "os.rename(skills, f'{own}/r')"),
            ("rename .agents", "os.rename('.agents', f'{own}/r')"),
            ("rename .agents beside itself", "os.rename('.agents', '.agents2')"),
            ("remove all", "shutil.rmtree(skills)"),
            ("remove .agents", "os.rmdir('.agents')"),
            (
                "exchange",
                "os.mkdir(f'{own}/e'); call('renameat2', -100, b'.agents', -100, f'{own}/e'.encode(), 2)",
            ),
            (
                "exchange within",
                "os.mkdir(f'{own}/e'); call('renameat2', -100, skills.encode(), -100, f'{own}/e'.encode(), 2)",
            ),
            ("a link over it", "os.symlink('/tmp', f'{own}/s'); os.rename(f'{own}/s', '.agents')"),
            ("a directory over it", "os.mkdir(f'{own}/d'); os.rename(f'{own}/d', '.agents')"),
            ("a link that takes its place", "os.symlink(own, f'{skills}/linked')"),
            ("another name", "os.link(run, f'{own}/l'); open(f'{own}/l', 'a').close()"),
            (
                "another name by descriptor",
                "f = os.open(run, os.O_RDONLY); followed(f'/proc/self/fd/{f}', f'{own}/l')",
            ),
            ("another name in it", "open(f'{own}/f', 'w').close(); os.link(f'{own}/f', f'{skills}/f')"),
            ("open it again", "f = os.open(run, os.O_RDONLY); open(f'/proc/self/fd/{f}', 'a').close()"),
            (
                "by the directory",
                "f = os.open(f'{skills}/tool/scripts', os.O_PATH); os.unlink('run', dir_fd=f)",
            ),
            ("by the root of its own", "open('/proc/self/root' + run, 'a').close()"),
            (
                "by the directory of its own",
                "open('/proc/self/cwd/.agents/skills/tool/SKILL.md', 'a').close()",
            ),
            ("mode", "os.chmod(run, 0o777)"),
            ("times", "os.utime(run)"),
            ("attributes", "os.setxattr(run, 'user.x', b'x')"),
            ("move the project", "os.rename(workspace, workspace + '2')"),
            ("move what is above it", "os.rename(root, root + '2')"),
            ("mount over it", "call('mount', own.encode(), skills.encode(), 0, 4096, 0)"),
            ("uncover it", "call('umount2', b'.agents', 2)"),
        ];
        let given = json!({ "run": run, "skills": world.workspace.join(".agents/skills") });
        let attacks = Attacks::new(world, &given, &attacks);
        world.trust(&world.workspace);
        let before = snapshot(world);
        // And after all of them it is still the skill's script.
        let after = format!("; {}", run.display());
        attacks.inside(|command| {
            let output = session(world, &[], &format!("{command}{after}"));
            let out = text(&output.stdout);
            let tried = out.strip_suffix("ran\n").unwrap_or_else(|| panic!("{out} {}", text(&output.stderr)));
            Output { stdout: tried.as_bytes().to_vec(), ..output }
        });
        assert_eq!(snapshot(world), before);
        assert_eq!(last_skill(world), "tool");
        // Nor under a profile that writes more of the repository.
        let rules = world.write("git.rules", "prefix_rule(['git'], execution = 'git')");
        assert!(world.plain("git", &["add", "-A"]).status.success());
        assert!(world.plain("git", &["commit", "-qm", "skills"]).status.success());
        let evil = "git update-index --add --cacheinfo 100755,$(print evil | git hash-object -w --stdin),\
                    .agents/skills/tool/scripts/run; git checkout-index -f .agents/skills/tool/scripts/run; \
                    git checkout -f -- .agents; git rm -rqf .agents/skills/tool; git mv .agents moved; \
                    git checkout -qf HEAD~1 -- .; git reset -q --hard HEAD~1; git stash -qu; git clean -qfdx .agents";
        let script = format!("{evil}{after}");
        let output = session(world, &["--rules", rules.to_str().unwrap()], &script);
        assert!(stdout(&output).ends_with("ran"), "{} {}", stdout(&output), text(&output.stderr));
        assert_eq!(snapshot(world), before);
        assert_eq!(last_skill(world), "tool");
        // Trust is nothing that a session gives.
        let trusting = format!("{} trust --revoke; {0} trust", prefix().join("bin/postern").display());
        let output = session(world, &[], &trusting);
        assert!(!stdout(&output).contains("\ntrusted"), "{}", stdout(&output));
        assert_eq!(stdout(&session(world, &["--on-prompt", "deny"], &run.display().to_string())), "ran");
        assert_eq!(last_skill(world), "tool");
    });
}

#[test]
fn where_there_are_none_none_can_be_made() {
    for_each_user(|world| {
        let made = "mkdir -p .agents/skills/x/scripts; ln -s $PWD .agents; mkdir a && mv a .agents; \
                    mkdir -p sub/.agents/skills/x/scripts && print sub";
        let output = session(world, &[], made);
        assert_eq!(stdout(&output), "sub", "{}", text(&output.stderr));
        assert!(!world.workspace.join(".agents/skills").exists());
        // What an agent makes of its own, in a directory that is worked in later, is nobody's skill.
        let sub = world.workspace.join("sub");
        let skill = sub.join(".agents/skills/x");
        world.write("ws/sub/.agents/skills/x/SKILL.md", "---\nname: x\ndescription: d\n---\n");
        world.write("ws/sub/.agents/skills/x/scripts/run", RUN);
        let mode = world.plain("chmod", &["+x", "sub/.agents/skills/x/scripts/run"]);
        assert!(mode.status.success());
        for git in ["true", "git init -q sub"] {
            assert!(world.plain("sh", &["-c", git]).status.success());
            let mut command = world.postern();
            let script = skill.join("scripts/run").display().to_string();
            let output = finish(command.current_dir(&sub).args(["--", "-fc", &script]));
            assert_eq!((stdout(&output).as_str(), last_skill(world)), ("ran", Value::Null));
        }
        // Trusted by somebody who works further up, they lie where a sandbox writes.
        world.trust(&sub);
        let output = session(world, &[], &skill.join("scripts/run").display().to_string());
        assert_eq!((stdout(&output).as_str(), last_skill(world)), ("ran", Value::Null));
    });
}

/// A project of its own below `outside/above`, with a trusted skill; and its script.
fn deeper(world: &World) -> (std::path::PathBuf, std::path::PathBuf) {
    let project = world.outside.join("above/project");
    std::fs::create_dir_all(&project).unwrap();
    let run = world.project_skill("tool", "", RUN);
    std::fs::rename(world.workspace.join(".agents"), project.join(".agents")).unwrap();
    world.own();
    assert!(world.plain("git", &["init", "-q", project.to_str().unwrap()]).status.success());
    world.trust(&project);
    let run = project.join(run.strip_prefix(&world.workspace).unwrap());
    (project, run)
}

#[test]
fn a_profile_under_which_they_could_be_changed_or_moved_makes_them_nobodys() {
    for_each_user(|world| {
        let (project, run) = deeper(world);
        let above = project.parent().unwrap().display().to_string();
        let at = |path: &str| project.join(path).display().to_string();
        let run_with = |config: &str, rules: &str| {
            let config = world.write("c.toml", config);
            let rules = world.write("r.rules", rules);
            let mut command = world.postern();
            command.current_dir(&project).args(["--on-prompt", "deny", "--config"]).arg(config);
            let output =
                finish(command.arg("--rules").arg(rules).args(["--", "-fc", &run.display().to_string()]));
            assert_eq!(stdout(&output), "ran", "{}", text(&output.stderr));
            (last_skill(world), text(&output.stderr))
        };
        assert_eq!(run_with("", ""), ("tool".into(), String::new()));
        for (other, named) in [
            (above.clone(), &above),
            (at(".agents"), &at(".agents")),
            (at(".agents/skills"), &at(".agents/skills")),
            (at(".agents/skills/tool/scripts/not-yet"), &at(".agents/skills/tool/scripts/not-yet")),
        ] {
            let profile = |name: &str| {
                format!(
                    "[permissions.{name}.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n'{other}' = 'write'\n"
                )
            };
            // The turn's, and one that a rule grants.
            for (config, rules) in [
                (format!("profile = 'p'\n{}", profile("p")), ""),
                (profile("p"), "prefix_rule(['touch'], execution = 'p')"),
            ] {
                let (skill, said) = run_with(&config, rules);
                assert_eq!(skill, Value::Null, "{other} {rules}");
                let expected = format!("/.agents/skills does not count: a sandbox can write {named}");
                assert!(said.contains(&expected), "{said}");
            }
            // Nobody grants it: nobody is under it.
            assert_eq!(run_with(&profile("p"), ""), ("tool".into(), String::new()));
        }
        // One that says itself that it may write them.
        let declares = "---\nname: tool\ndescription: d\npermissions: {file_system: {write: [.]}}\n---\n";
        std::fs::write(project.join(".agents/skills/tool/SKILL.md"), declares).unwrap();
        world.own();
        world.trust(&project);
        let (skill, said) = run_with("", "");
        assert_eq!(skill, Value::Null);
        assert!(said.contains("does not count: a sandbox can write"), "{said}");
        // Where skills are named on the command line, the rule for those is as it was.
        let mut command = world.postern();
        command.current_dir(&project).arg("--skills").arg(project.join(".agents/skills"));
        let output = finish(command.args(["--", "-fc", "print started"]));
        assert!(!output.status.success() && stdout(&output).is_empty());
        assert!(text(&output.stderr).contains("holds skills and lies where a sandbox can write"));
    });
}

#[test]
fn nor_do_they_count_where_the_same_files_are_written_by_another_path() {
    for_each_user(|world| {
        if world.user != User::Ourselves || !is_root() {
            eprintln!("SKIPPED: only root mounts");
            return;
        }
        let (project, run) = deeper(world);
        let other = world.outside.join("other");
        // The same stand-in cannot be put at two paths.
        for path in [&other, &project.join(".codex"), &project.join(".postern")] {
            std::fs::create_dir(path).unwrap();
        }
        let config = format!(
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n'{}' = 'write'\n",
            other.display()
        );
        let config = world.write("c.toml", config);
        let mounted = |what: &Path, at: &Path| {
            let script = format!("mount --bind {} {} && exec \"$@\"", what.display(), at.display());
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", &script, "sh"]).arg(prefix().join("bin/postern"));
            command.args(["--on-prompt", "deny", "--config"]).arg(&config).args(["--", "-fc"]);
            command
                .arg(run.display().to_string())
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("TERM", "xterm");
            command.env("HOME", world.root.join("home")).env("XDG_STATE_HOME", world.root.join("state"));
            let output = finish(command.current_dir(&project).stdin(Stdio::null()));
            assert_eq!(stdout(&output), "ran", "{}", text(&output.stderr));
            (last_skill(world), text(&output.stderr))
        };
        assert_eq!(mounted(&world.workspace, &other), ("tool".into(), String::new()));
        let scripts = project.join(".agents/skills/tool/scripts");
        for what in [project.parent().unwrap(), &project, &scripts] {
            let (skill, said) = mounted(what, &other);
            assert_eq!(skill, Value::Null, "{}", what.display());
            assert!(said.contains("by another mount, and a sandbox can write there"), "{said}");
        }
        // Another mount in them is nothing that somebody has looked at.
        let (skill, said) = mounted(&scripts, &scripts);
        assert_eq!(skill, Value::Null);
        assert!(said.contains("something else is mounted at"), "{said}");
    });
}

#[test]
fn another_name_from_before_takes_all_of_them_away() {
    for_each_user(|world| {
        let run = world.project_skill("tool", "", RUN);
        world.trust(&world.workspace);
        std::fs::hard_link(&run, world.workspace.join("mine")).unwrap();
        let script = format!("print '#!/bin/sh\necho evil' > mine; {}", run.display());
        let output = session(world, &["--on-prompt", "deny"], &script);
        assert!(text(&output.stderr).contains("has another name (a hard link)"), "{}", text(&output.stderr));
        // It was written, and it is nobody's skill any more.
        assert_eq!((stdout(&output).as_str(), last_skill(world)), ("evil", Value::Null));
        std::fs::remove_file(world.workspace.join("mine")).unwrap();
        let output = session(world, &["--on-prompt", "deny"], &run.display().to_string());
        assert!(text(&output.stderr).contains("changed .agents/skills/tool/scripts/run"));
        assert_eq!(last_skill(world), Value::Null);
        let shown = finish(world.postern().arg("trust"));
        assert!(stdout(&shown).contains("changed since it was trusted"), "{}", stdout(&shown));
    });
}

#[test]
fn whoever_changes_them_meanwhile_outside_takes_them_away_for_that_session() {
    for_each_user(|world| {
        let run = world.project_skill("tool", "", RUN);
        world.trust(&world.workspace);
        // Nobody makes it a skill's script again by putting it back.
        for (outside, expected) in [
            ("cp -a .agents .kept; rm -rf .agents; cp -a .kept .agents; rm -rf .kept", "re-masked"),
            ("mv .agents .moved; cp -a .moved .agents; rm -rf .moved", "re-masked"),
            ("touch .agents/skills/tool/x; rm .agents/skills/tool/x", "skills_lost"),
            ("chmod 755 .agents/skills/tool/scripts/run", "skills_lost"),
        ] {
            let rules = world.write("r.rules", "prefix_rule(['sh'], execution = 'unsandboxed')");
            let script = format!("{0}; sleep 0.05; sh -c '{outside}'; {0}", run.display());
            let output = session(world, &["--rules", rules.to_str().unwrap()], &script);
            assert_eq!(
                (stdout(&output).as_str(), status(&output)),
                ("ran\nran", 0),
                "{}",
                text(&output.stderr)
            );
            assert_eq!(last_skill(world), Value::Null, "{outside}");
            let records = world.records();
            assert!(records.iter().any(|line| line["event"] == expected), "{outside}");
            assert!(records.iter().any(|line| line["event"] == "skills_lost"), "{outside}");
        }
        // The next session looks again.
        assert_eq!(stdout(&session(world, &[], &run.display().to_string())), "ran");
        assert_eq!(last_skill(world), "tool");
    });
}

#[test]
fn what_was_opened_meanwhile_is_open_in_no_later_session() {
    for_each_user(|world| {
        let run = world.project_skill("tool", "", RUN);
        world.trust(&world.workspace);
        // A job that outlives its shell, with a directory open that it could open when somebody had
        // replaced it.
        let job = "import os, time\n\
                   while not os.path.exists('ready'): time.sleep(0.01)\n\
                   f = os.open('.agents/skills/tool/scripts', os.O_RDONLY)\n\
                   while not os.path.exists('over'): time.sleep(0.01)\n";
        world.write("ws/job.py", job);
        let output = session(world, &[], "python3 job.py < /dev/null > /dev/null 2>&1 &!");
        assert_eq!(status(&output), 0, "{}", text(&output.stderr));
        let replaced =
            "cp -a .agents .kept; rm -rf .agents; cp -a .kept .agents; rm -rf .kept; : > ready; sleep 0.2";
        assert!(world.plain("sh", &["-c", replaced]).status.success());
        let again = || {
            let output = session(world, &[], &run.display().to_string());
            assert_eq!(stdout(&output), "ran");
            text(&output.stderr)
        };
        let said = again();
        assert!(said.contains(".agents/skills does not count: what runs in the session"), "{said}");
        world.write("ws/over", "");
        eventually("it counts again once that session has ended", || again().is_empty());
        assert_eq!(last_skill(world), "tool");
    });
}

#[test]
fn their_files_are_trusted_as_scripts_of_skills_and_as_nothing_else() {
    for_each_user(|world| {
        let run = world.project_skill("tool", "", RUN);
        let target = world.outside.join("escaped");
        let helper = run.parent().unwrap().parent().unwrap().join("gh");
        std::fs::write(&helper, format!("#!/bin/sh\ntouch {}\n", target.display())).unwrap();
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        world.own();
        world.trust(&world.workspace);
        let rules =
            "prefix_rule(['gh'], execution = 'unsandboxed')\nprefix_rule(['run'], execution = 'unsandboxed')";
        let script = format!(
            "{0}; {1}; PATH={2}:$PATH gh",
            helper.display(),
            run.display(),
            helper.parent().unwrap().display()
        );
        let output = world.session(rules, &script);
        assert!(!target.exists(), "{}", text(&output.stderr));
        // By a link of one's own, or an interpreter with options, it is no skill's script.
        let script = format!(
            "ln -s {0} l; ./l; ln -s {1} d; d/run; bash -x {0}; cd .agents/skills/tool/scripts && ./run && ../scripts/run",
            run.display(),
            run.parent().unwrap().display()
        );
        let before = world.records().len();
        let output = world.session("", &script);
        assert_eq!(stdout(&output), "ran\nran\nran\nran\nran", "{}", text(&output.stderr));
        let records = world.records();
        let skills: Vec<_> = records
            .iter()
            .skip(before)
            .filter(|line| line["claimed"]["argv"].is_array() && line["claimed"]["argv"][0] != "ln")
            .map(|line| (line["claimed"]["argv"][0].clone(), line["judgement"]["skill"]["name"].clone()))
            .collect();
        let none = Value::Null;
        let expected = [
            ("./l", none.clone()),
            ("d/run", none.clone()),
            ("bash", none),
            ("./run", "tool".into()),
            ("../scripts/run", "tool".into()),
        ];
        assert_eq!(skills, expected.map(|(zeroth, skill)| (Value::from(zeroth), skill)));
        eventually("nothing got out", || !target.exists());
    });
}
