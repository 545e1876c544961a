//! Scripts of the workspace, changed in every way between the question and what runs.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use postern_tests::{World, eventually, finish, for_each_user, prefix, stdout, text};
use serde_json::Value;

use crate::attack::compiled;

/// The one prompt that waits.
fn waiting(world: &World) -> String {
    let mut found = None;
    eventually("a prompt waits", || {
        let output = finish(world.postern().args(["approve", "--list", "--json"]));
        let states = text(&output.stdout);
        let mut states = states.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        found = states.find_map(|state| Some(state["waiting"][0]["id"].as_str()?.to_owned()));
        found.is_some()
    });
    found.unwrap()
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
