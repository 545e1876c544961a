//! Scripts of the workspace, changed in every way between the question and what runs.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use postern_tests::{World, eventually, finish, for_each_user, prefix, stdout, text};
use serde_json::Value;

use crate::attack::compiled;
use crate::races::SWAPPER;

/// The first prompt that waits, if one does: its id, and what it says would run.
fn prompt(world: &World) -> Option<(String, String)> {
    let output = finish(world.postern().args(["approve", "--list", "--json"]));
    let states = text(&output.stdout);
    let mut states = states.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    states.find_map(|state| {
        let prompt = &state["waiting"][0];
        let runs = prompt["fields"].as_array()?.iter().find(|field| field["name"] == "runs");
        Some((prompt["id"].as_str()?.to_owned(), runs?["text"].as_str()?.to_owned()))
    })
}

/// The one prompt that waits.
fn waiting(world: &World) -> String {
    let mut found = None;
    eventually("a prompt waits", || {
        found = prompt(world);
        found.is_some()
    });
    found.unwrap().0
}

/// Languages, by how a script in each says where it stands: `good`, its `$0` (or what it is called there),
/// and whether it is outside.
const LANGUAGES: [(&str, &str); 6] = [
    ("sh", "#!/bin/sh\necho good \"$0\" $(grep -c Seccomp:.2 /proc/$PPID/status)\n"),
    (
        "bash",
        "#!/bin/bash\necho good \"$BASH_SOURCE\" \"$(cd \"$(dirname \"$0\")\" && pwd)/$(basename \"$0\")\" 0\n",
    ),
    ("env", "#!/usr/bin/env bash\necho good \"$0\" 0\n"),
    ("python", "#!/usr/bin/python3 -I\nimport sys\nprint('good', __file__, sys.argv[0], 0)\n"),
    ("perl", "#!/usr/bin/perl -w\nprint 'good ', __FILE__, \" $0 0\\n\";\n"),
    ("zsh", "#!ZSH -f\nprint good $0 ${(%):-%x} 0\n"),
];

/// Writes a program.
fn executable(world: &World, name: &str, content: &str) -> PathBuf {
    let path = world.root.join(name);
    // Never the old file: somebody may run it.
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, &path).unwrap();
    path
}

fn start(world: &World, execution: &str, program: &Path, script: &str) -> Child {
    let rules =
        format!("prefix_rule(['{}'], decision = 'prompt', execution = '{execution}')\n", program.display());
    let mut command = world.postern();
    command.arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn approve(world: &World) {
    let prompt = waiting(world);
    let said = finish(world.postern().args(["approve", &prompt, "--once"]));
    assert!(said.status.success(), "{}", text(&said.stderr));
}

fn end(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

/// What a changed file does: in whatever language it is read as, it says that it ran.
const EVIL: &str = "#!/bin/sh\necho evil; exit\n";

#[test]
fn a_script_runs_as_it_was_asked_about_whatever_lies_there_after() {
    for_each_user(|world| {
        let zsh = prefix().join("libexec/postern/zsh");
        let directory = world.workspace.join("sub");
        let beside = world.workspace.join("beside");
        std::fs::create_dir(&directory).unwrap();
        std::fs::create_dir(&beside).unwrap();
        let tool = directory.join("tool");
        let evil_interpreter = format!("#!{}\necho good\n", world.workspace.join("evil").display());
        type Swap<'a> = (&'a str, &'a dyn Fn());
        let swaps: [Swap<'_>; 7] = [
            ("nothing", &|| ()),
            ("rewritten", &|| std::fs::write(&tool, EVIL).unwrap()),
            ("another interpreter", &|| std::fs::write(&tool, &evil_interpreter).unwrap()),
            ("removed", &|| std::fs::remove_file(&tool).unwrap()),
            ("a link", &|| {
                std::fs::remove_file(&tool).unwrap();
                symlink(executable(world, "ws/beside/tool", EVIL), &tool).unwrap();
            }),
            ("a directory", &|| {
                std::fs::remove_file(&tool).unwrap();
                std::fs::create_dir(&tool).unwrap();
                std::fs::write(tool.join("__main__.py"), "print('evil')\n").unwrap();
            }),
            ("another directory above", &|| {
                executable(world, "ws/beside/tool", EVIL);
                std::fs::rename(&directory, world.workspace.join("gone")).unwrap();
                symlink(&beside, &directory).unwrap();
            }),
        ];
        executable(world, "ws/evil", EVIL);
        for (language, code) in LANGUAGES {
            for execution in ["unsandboxed", "network"] {
                for (how, swap) in &swaps {
                    // As they were.
                    let _none = std::fs::remove_file(&tool).or_else(|_| std::fs::remove_dir_all(&tool));
                    let _none = std::fs::remove_file(&directory);
                    let _none = std::fs::remove_dir_all(world.workspace.join("gone"));
                    std::fs::create_dir_all(&directory).unwrap();
                    executable(world, "ws/sub/tool", &code.replace("ZSH", zsh.to_str().unwrap()));
                    world.own();
                    let child = start(world, execution, &tool, "sub/tool one two");
                    let prompt = waiting(world);
                    swap();
                    finish(world.postern().args(["approve", &prompt, "--once"]));
                    let output = end(child);
                    let (out, error) = (stdout(&output), text(&output.stderr));
                    let what = format!("{language} {execution} {how}: {out:?} {error}");
                    assert!(!out.contains("evil") && !error.contains("evil"), "{what}");
                    // No interpreter finds a directory where a script was: some look before they open.
                    let opens = ["nothing", "rewritten", "another interpreter", "a link"].contains(how);
                    if opens {
                        assert!(out.starts_with(&format!("good {}", tool.display())), "{what}");
                        assert!(execution == "network" || out.ends_with('0'), "{what}");
                    }
                    assert!(output.status.success() || !opens, "{what}");
                }
            }
        }
    });
}

#[test]
fn nor_does_a_file_that_is_exchanged_all_the_time() {
    const ROUNDS: usize = 16;
    const LEAST: u32 = 1000;
    for_each_user(|world| {
        let swapper = compiled(world, "swapper", SWAPPER, &[]);
        let tool = executable(world, "ws/tool", "#!/bin/sh\nsleep 0.01; echo good $1; sleep 0.01\n");
        executable(world, "ws/evil", EVIL);
        world.own();
        for execution in ["unsandboxed", "network"] {
            let _none = std::fs::remove_file(world.workspace.join("stop"));
            // The first one says how the good one looks.
            let script = format!(
                "./tool; {} tool evil {LEAST} & for n in {{1..{ROUNDS}}}; do ./tool $n; ./evil $n; done 2>/dev/null; touch stop; wait",
                swapper.display()
            );
            let rules = format!(
                "prefix_rule([['{0}', 'evil']], decision = 'prompt', execution = '{execution}')\n",
                tool.display()
            );
            let mut command = world.postern();
            command.arg("--rules").arg(world.write("r.rules", rules)).args(["--", "-fc", &script]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let (mut good, mut asked) = (None, 0);
            let deadline = Instant::now() + Duration::from_secs(120);
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "the rounds do not end");
                let Some((id, runs)) = prompt(world) else { continue };
                let hash = runs.split("blake3 ").nth(1).unwrap().to_owned();
                let good = good.get_or_insert(hash.clone());
                asked += 1;
                let choice = if *good == hash { "--once" } else { "--deny" };
                finish(world.postern().args(["approve", &id, choice]));
            }
            let out = stdout(&end(child));
            let swapped = out.lines().find_map(|line| line.strip_prefix("swapped ")?.parse::<u32>().ok());
            assert!(swapped.unwrap() >= LEAST, "{out}");
            assert!(!out.contains("evil"), "{out}");
            assert!(asked > ROUNDS / 4 && out.matches("good").count() > 1, "{asked}: {out}");
        }
    });
}

#[test]
fn a_script_that_comes_back_to_itself_is_still_what_was_approved() {
    for_each_user(|world| {
        symlink(&world.workspace, world.root.join("way")).unwrap();
        let code = format!(
            "#!/bin/bash\n\
             case $1 in again) echo good; exit;; esac\n\
             touch ready; until [ -e changed ]; do sleep 0.01; done\n\
             bash \"$0\" again; sh ./tool again; (cd sub && sh ../tool again); bash {0}/way/tool again; \
             set -- again; (. \"$0\"); (. ./tool); sed -n 2p \"$0\"; python3 -c 'print(open(\"tool\").read(4))'\n\
             \"$0\" again; ./tool again; env ./tool again; {0}/way/tool again; (exec \"$0\" again)\n\
             python3 -c 'import os; os.execv(\"tool\", [\"tool\", \"again\"])' 2>&1 | tail -n 1\n\
             cat 9<> \"$0\" <&9\n\
             echo evil > \"$0\"; cat tool | head -n 1\n",
            world.root.display()
        );
        for execution in ["unsandboxed", "network"] {
            for name in ["ready", "changed"] {
                let _none = std::fs::remove_file(world.workspace.join(name));
            }
            std::fs::create_dir_all(world.workspace.join("sub")).unwrap();
            let tool = executable(world, "ws/tool", &code);
            world.own();
            let child = start(world, execution, &tool, "./tool");
            approve(world);
            eventually("it runs", || world.workspace.join("ready").exists());
            executable(world, "ws/tool", EVIL);
            world.write("ws/changed", "");
            let output = end(child);
            let (out, error) = (stdout(&output), text(&output.stderr));
            let lines: Vec<&str> = out.lines().collect();
            assert_eq!(&lines[..6], ["good"; 6], "{execution} {out} {error}");
            assert!(lines[6].starts_with("case $1 in again") && lines[7] == "#!/b", "{execution} {out}");
            assert!(lines[8].contains("PermissionError") || lines[8].contains("Permission denied"), "{out}");
            assert_eq!(&lines[9..], ["#!/bin/bash"], "{execution} {out} {error}");
            // By its name, the kernel would read the first line from what lies there now.
            assert_eq!(error.matches("ermission denied").count(), 6, "{execution} {error}");
            // It may write what it likes. What it reads there stays what was approved.
            assert_eq!(std::fs::read_to_string(&tool).unwrap(), "evil\n");
        }
    });
}

#[test]
fn an_interpreter_that_the_sandbox_could_change_gets_nothing() {
    for_each_user(|world| {
        let interpreter = executable(world, "ws/interpreter", "#!/bin/sh\necho good\n");
        symlink("/bin/sh", world.workspace.join("link")).unwrap();
        let nested = executable(world, "outside/nested", &format!("#!{}\n", interpreter.display()));
        for (line, why) in [
            (interpreter.display().to_string(), "interpreter"),
            (world.workspace.join("link").display().to_string(), "interpreter"),
            ("./interpreter".to_owned(), "interpreter"),
            ("/nowhere/sh".to_owned(), "interpreter"),
            (nested.display().to_string(), "interpreter"),
        ] {
            let tool = executable(world, "ws/tool", &format!("#!{line}\n{EVIL}"));
            world.own();
            for execution in ["unsandboxed", "network"] {
                let output = end(start(world, execution, &tool, "./tool"));
                let error = text(&output.stderr);
                assert_eq!(
                    (stdout(&output).as_str(), output.status.code()),
                    ("", Some(126)),
                    "{line} {error}"
                );
                assert!(error.contains(why) && !error.contains("waits for"), "{line} {error}");
            }
        }
    });
}

#[test]
fn a_way_full_of_links_makes_no_other_file_the_script() {
    for_each_user(|world| {
        // By its text this is the file outside, by its links the one of the workspace.
        let kept = world.write("outside/kept", "as it was\n");
        std::fs::create_dir_all(world.workspace.join("x/y")).unwrap();
        std::fs::create_dir(world.workspace.join("outside")).unwrap();
        symlink("x/y", world.workspace.join("l")).unwrap();
        executable(world, "ws/outside/kept", &format!("#!/bin/sh\nexec cat {}\n", kept.display()));
        world.own();
        let child =
            start(world, "unsandboxed", Path::new("kept"), "$PWD/l/../../outside/kept; $PWD/outside/kept");
        approve(world);
        approve(world);
        let output = end(child);
        assert_eq!(stdout(&output), "as it was\nas it was", "{}", text(&output.stderr));
    });
}
