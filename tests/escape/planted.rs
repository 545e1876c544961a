//! Repositories and homes that a sandboxed process plants, and the next `git` believes: what they
//! make it run never has more than that `git` was given.

use std::path::Path;

use postern_tests::{User, World, for_each_user, stdout, text};

/// Plants something in WS, the workspace, and then runs git on it; EVIL is what is to be run.
const PLANTS: [(&str, &str, &str); 8] = [
    (
        "a nested repository, fsmonitor",
        "git init -q n && git -C n config core.fsmonitor EVIL",
        "cd n; git status",
    ),
    (
        "a nested repository, a filter",
        "git init -q n && cd n && git config filter.x.clean EVIL && echo \"* filter=x\" > .gitattributes && echo y > y",
        "cd n; git add y",
    ),
    (
        "a nested repository, external diff",
        "git init -q n && cd n && echo 1 > y && git add y && git config diff.external EVIL && echo 2 > y",
        "cd n; git diff",
    ),
    (
        "a nested repository, ssh",
        "git init -q n && git -C n config core.sshCommand EVIL",
        "cd n; git ls-remote ssh://nowhere.invalid/x",
    ),
    (
        "a nested repository, a hook",
        "git init -q n && cd n && cp EVIL .git/hooks/pre-commit",
        "cd n; git -c user.name=x -c user.email=x commit --allow-empty -m x",
    ),
    (
        "a file that leads elsewhere",
        "git init -q e && git -C e config core.fsmonitor EVIL && mkdir n && echo \"gitdir: WS/e/.git\" > n/.git",
        "cd n; git status",
    ),
    (
        "another common directory",
        "git init -q e && git -C e config core.fsmonitor EVIL && git init -q n && echo \"WS/e/.git\" > n/.git/commondir",
        "cd n; git status",
    ),
    (
        "a home",
        "mkdir -p h; HOME=WS/h git config --global core.fsmonitor EVIL",
        "HOME=WS/h XDG_CONFIG_HOME=WS/h git status",
    ),
];

/// Makes the program, which marks that it has run and tries to get out, and fills its name in.
fn furnish(world: &World) -> impl Fn(&str) -> String {
    let (workspace, outside) = (world.workspace.display().to_string(), world.outside.display());
    let mark = format!(
        "#!/bin/sh\necho x > {workspace}/ran\necho x > {outside}/mark\necho x > {workspace}/.git/hooks/post-commit\n"
    );
    let evil = world.write("ws/evil", mark);
    std::fs::set_permissions(&evil, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let evil = evil.display().to_string();
    move |text| text.replace("WS", &workspace).replace("EVIL", &evil)
}

/// Whether the planted program has run, and whether it got out; leaves no trace of either.
fn came(world: &World) -> (bool, bool) {
    let took = |path: &Path| std::fs::remove_file(path).is_ok();
    let hook = took(&world.workspace.join(".git/hooks/post-commit"));
    let came = (took(&world.workspace.join("ran")), took(&world.outside.join("mark")) || hook);
    for name in ["n", "e", "h"] {
        let _none = std::fs::remove_dir_all(world.workspace.join(name));
    }
    came
}

#[test]
fn planted_code_has_no_more_than_the_git_that_runs_it() {
    for_each_user(|world| {
        let filled = furnish(world);
        for (name, plant, git) in PLANTS {
            // The last command alone is git as it is judged.
            let script =
                filled(&format!("sh -c '{plant}' &> /dev/null; {git} < /dev/null &> /dev/null; echo tried"));
            let output = world.plain("bash", &["-c", &script]);
            assert_eq!(
                (stdout(&output).as_str(), came(world)),
                ("tried", (true, true)),
                "{name}: {}",
                text(&output.stderr)
            );
            for execution in ["", "turn_default", "git", "unsandboxed"] {
                let output = world.session(&rule("git", execution), &script);
                assert_eq!(stdout(&output), "tried", "{name}, {execution}: {}", text(&output.stderr));
                // A command that gets more than the asker has the session's home, not the asker's.
                let believed = name != "a home" || ["", "turn_default"].contains(&execution);
                // An unsandboxed git is the user's own, and believes a repository of the workspace as
                // it believes any other: what is planted there runs with everything that the user
                // has. That is why rules should give git the profile `git` and nothing wider.
                let out = believed && execution == "unsandboxed";
                assert_eq!(came(world), (believed, out), "{name}, {execution:?}");
            }
        }
    });
}

fn rule(program: &str, execution: &str) -> String {
    if execution.is_empty() {
        String::new()
    } else {
        format!("prefix_rule(['{program}'], execution = '{execution}')")
    }
}

/// Plants something on the project's own repository, and lets the next git outside look at it.
fn plant(world: &World, plants: &[&str]) {
    let filled = furnish(world);
    let next = |plant: &str, execution: Option<&str>| {
        let script = filled(&format!("git init -q e; git -C e config core.fsmonitor EVIL; {plant}"));
        let _planted = match execution {
            None => world.plain("sh", &["-c", &script]),
            Some(execution) => world.session(&rule("sh", execution), &format!("sh -c '{script}'")),
        };
        let _next = world.plain("sh", &["-c", "git status; git commit --allow-empty -m after"]);
        came(world)
    };
    let again = |script: &str| assert!(world.plain("sh", &["-c", script]).status.success(), "{script}");
    again("cp -a . ../kept");
    for plant in plants {
        for execution in [None, Some(""), Some("git")] {
            let wanted = execution.is_none();
            assert_eq!(next(plant, execution), (wanted, wanted), "{plant}, {execution:?}");
            again("chmod -R u+rwX .git; find . -mindepth 1 -delete && cp -a ../kept/. .");
        }
    }
}

#[test]
fn the_projects_own_repository_cannot_be_planted_on() {
    for_each_user(|world| {
        plant(
            world,
            &[
                "git config core.fsmonitor EVIL",
                "echo WS/e/.git > .git/commondir",
                "cp EVIL .git/hooks/pre-commit",
                "mv .git away; echo gitdir: WS/e/.git > .git",
                "git config extensions.worktreeConfig true; git config --file .git/config.worktree core.fsmonitor EVIL",
                "echo \"[include] path = WS/e/.git/config\" >> .git/config",
            ],
        );
    });
}

#[test]
fn the_project_does_not_become_another_repository_in_place_of_its_own() {
    // Where `.git` is no repository any more, git looks whether the directory itself is one.
    for_each_user(|world| {
        let bare = "git init -q --bare b; mv b/HEAD b/objects b/refs b/config .; \
                    git config --file config core.bare false; git config --file config core.worktree WS; \
                    git config --file config core.fsmonitor EVIL";
        let mut ways =
            vec!["rm -f .git/HEAD", "echo junk > .git/HEAD", "mv .git/objects o", "mv .git/refs r"];
        if world.user != User::Ourselves {
            // Nothing is closed to root.
            ways.extend(["chmod 0 .git", "chmod 0 .git/refs"]);
        }
        let plants: Vec<_> = ways.iter().map(|way| format!("{way}; {bare}")).collect();
        plant(world, &plants.iter().map(String::as_str).collect::<Vec<_>>());
    });
}

#[test]
fn under_git_no_link_and_no_remote_is_planted() {
    // What git writes by name, as COMMIT_EDITMSG, it would write where a link leads; and an old-style
    // remote says where a push goes.
    for_each_user(|world| {
        let plant = "ln -s config .git/COMMIT_EDITMSG; ln -s ../evil .git/MERGE_MSG; mkdir -p .git/remotes; \
                     echo URL: evil > .git/remotes/origin";
        let planted = || {
            let is_link = |name: &str| world.workspace.join(".git").join(name).is_symlink();
            is_link("COMMIT_EDITMSG")
                || is_link("MERGE_MSG")
                || world.workspace.join(".git/remotes/origin").exists()
        };
        let output = world.session(&rule("sh", "git"), &format!("sh -c '{}'; print tried", plant));
        assert_eq!(stdout(&output), "tried");
        assert!(!planted());
        let _done = world.plain("sh", &["-c", plant]);
        assert!(planted(), "outside it is");
    });
}
