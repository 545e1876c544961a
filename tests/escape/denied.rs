//! What a profile denies, in every place where a command can run.

use std::os::unix::ffi::OsStrExt;

use postern_tests::{User, World, finish, for_each_user, stdout, text};

const CONFIG: &str = "profile = 'p'\n\
    [permissions.p.filesystem]\n\
    ':root' = 'read'\n\
    ':project_roots' = { '.' = 'write', '**/*.env' = 'none', 'private' = 'none', 'private/open' = 'write', 'later/x' = 'none' }\n\
    glob_scan_max_depth = 6\n\
    [permissions.other.filesystem]\n\
    ':root' = 'read'\n\
    ':project_roots' = 'write'\n";

fn furnish(world: &World) -> std::path::PathBuf {
    for directory in ["ws/sub", "ws/private/open"] {
        std::fs::create_dir_all(world.root.join(directory)).unwrap();
    }
    for file in ["ws/.env", "ws/sub/x.env", "ws/private/kept"] {
        world.write(file, "SECRET");
    }
    std::os::unix::fs::symlink(".env", world.workspace.join("link")).unwrap();
    world.write("ws/private/open/file", "OPEN");
    world.own();
    world.write("c.toml", CONFIG)
}

/// Tries to read and change everything that is denied, and reads what is open.
const ATTACK: &str = "
import os
print('began', flush=True)
def tried(what, attack):
    try:
        found = attack()
        print(what, found, flush=True)
    except OSError:
        pass
read = lambda path: lambda: open(path).read()
for path in ['.env', 'sub/x.env', 'private/kept', 'link', '/proc/self/root' + os.getcwd() + '/.env', './sub/../.env']:
    tried(path, read(path))
    tried(path, lambda: os.chmod(path, 0o777))
    tried(path, lambda: open(path, 'w'))
tried('list', lambda: os.listdir('private'))
tried('hard link', lambda: os.link('.env', 'linked'))
tried('rename', lambda: os.rename('.env', 'renamed'))
tried('rename above', lambda: os.rename('sub', 'sub2'))
tried('unlink', lambda: os.unlink('sub/x.env'))
tried('create', lambda: os.makedirs('later/x'))
tried('replace', lambda: os.rename('mine', '.env')) if not open('mine', 'w').close() else None
print(open('private/open/file').read())
";

#[test]
fn denied_paths_are_denied_in_every_execution() {
    for_each_user(|world| {
        let config = furnish(world);
        let attack = world.write("attack.py", ATTACK);
        for execution in ["", "turn_default", "unsandboxed", "network", "git", "other"] {
            let rules = match execution {
                "" => world.write("r.rules", ""),
                execution => {
                    world.write("r.rules", format!("prefix_rule(['python3'], execution = '{execution}')"))
                }
            };
            let mut command = world.postern();
            command.arg("--config").arg(&config).arg("--rules").arg(&rules);
            let output = finish(command.args(["--", "-fc", &format!("python3 {}", attack.display())]));
            // A profile of its own does not give what the turn's gives below its denial.
            let open = if execution == "other" { "began" } else { "began\nOPEN" };
            assert_eq!(stdout(&output), open, "{execution}: {}", text(&output.stderr));
            assert_eq!(std::fs::read_to_string(world.workspace.join(".env")).unwrap(), "SECRET");
            assert!(!world.workspace.join("later").exists());
        }
        let records = world.records();
        let everything = records.iter().filter(|line| line["execution"]["permissions"] == "everything");
        assert_eq!(everything.count(), 1, "an unsandboxed command is recorded as what it became");
        assert!(!records.iter().any(|line| line["execution"] == "unsandboxed"));
    });
}

#[test]
fn outside_every_denied_path_can_be_read() {
    // Or the test above would show nothing.
    for_each_user(|world| {
        let _config = furnish(world);
        let attack = world.write("attack.py", ATTACK);
        let output = world.plain("python3", &[attack.to_str().unwrap()]);
        let out = stdout(&output);
        for done in
            [".env SECRET", "sub/x.env SECRET", "private/kept SECRET", "hard link None", "rename above None"]
        {
            assert!(out.contains(done), "{done}: {out}");
        }
    });
}

#[test]
fn files_that_the_sandbox_makes_itself_are_its_own() {
    for_each_user(|world| {
        let config = furnish(world);
        let script = "print mine > sub/new.env && cat sub/new.env";
        let output = finish(world.postern().arg("--config").arg(config).args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "mine", "{}", text(&output.stderr));
    });
}

#[test]
fn a_pattern_from_the_root_needs_a_depth() {
    for_each_user(|world| {
        let config = world.write(
            "c.toml",
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n'/**/*.env' = 'none'\n",
        );
        let output = finish(world.postern().arg("--config").arg(config).args(["--", "-fc", "true"]));
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains("give glob_scan_max_depth"), "{}", text(&output.stderr));
    });
}

#[test]
fn read_only_and_one_directory_gives_that_directory_and_nothing_else() {
    for_each_user(|world| {
        let extra = world.root.join("extra");
        std::fs::create_dir(&extra).unwrap();
        world.own();
        let config = world.write(
            "c.toml",
            format!(
                "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n'{}' = 'write'\n",
                extra.display()
            ),
        );
        let script = format!("touch {}/yes; touch no; touch /tmp/postern-no; ls", extra.display());
        let output = finish(world.postern().arg("--config").arg(config).args(["--", "-fc", &script]));
        assert_eq!(stdout(&output), "", "{}", text(&output.stderr));
        assert!(extra.join("yes").exists());
        assert!(!world.workspace.join("no").exists() && !std::path::Path::new("/tmp/postern-no").exists());
    });
}

#[test]
fn an_added_directory_is_a_project_with_its_protections() {
    for_each_user(|world| {
        let added = world.root.join("added");
        std::fs::create_dir(&added).unwrap();
        world.own();
        assert!(world.plain("git", &["init", "-q", added.to_str().unwrap()]).status.success());
        let script = format!("cd {0}; touch yes; touch .git/no; mkdir .codex; print tried", added.display());
        let output = finish(world.postern().arg("--add-dir").arg(&added).args(["--", "-fc", &script]));
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert!(
            added.join("yes").exists() && !added.join(".git/no").exists() && !added.join(".codex").exists()
        );
        let home = world.root.join("home");
        let output = finish(world.postern().arg("--add-dir").arg(&home).args(["--", "-fc", "true"]));
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains("--add-dir"), "{}", text(&output.stderr));
    });
}

#[test]
fn explain_names_the_entry_that_decides() {
    for_each_user(|world| {
        let config = furnish(world);
        let ask = |path: &str| {
            let mut command = world.postern();
            command.args(["sandbox", "explain", "--path", path, "--config"]).arg(&config);
            let output = finish(&mut command);
            assert!(output.status.success(), "{}", text(&output.stderr));
            stdout(&output)
        };
        for (path, access, why) in [
            ("sub/x.env", "none", "the pattern"),
            ("private/kept", "none", "p: :project_roots private = none"),
            ("private/open/new", "write", "p: :project_roots private/open = write"),
            (".git/hooks/x", "read", "protected"),
            ("/etc/passwd", "read", "p: :root = read"),
            ("new", "write", "p: :project_roots = write"),
        ] {
            let said = ask(path);
            assert!(said.starts_with(access) && said.contains(why), "{path}: {said}");
        }
        let whole = finish(world.postern().args(["sandbox", "explain", "--config"]).arg(&config));
        let whole = stdout(&whole);
        for part in ["mounts, in this order", "masked", "stand-in", "Landlock", "ptrace: "] {
            assert!(whole.contains(part), "{part}: {whole}");
        }
    });
}

#[test]
fn what_is_open_below_a_denied_directory_keeps_its_own_protections() {
    for_each_user(|world| {
        // A project whose name is a pattern to others, and no text.
        let name = std::ffi::OsStr::from_bytes(b"g[1]{a}\\\xff");
        let project = world.root.join(name);
        std::fs::create_dir_all(project.join("secret/open/ro")).unwrap();
        std::fs::create_dir_all(project.join("secret/open/no")).unwrap();
        std::fs::create_dir_all(project.join("secret/open/.git/hooks")).unwrap();
        std::fs::write(project.join(".env"), "SECRET").unwrap();
        world.own();
        let config = world.write(
            "c.toml",
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = { '.' = 'write', '**/*.env' = 'none', \
             'secret' = 'none', 'secret/open' = 'write', 'secret/open/ro' = 'read', 'secret/open/no' = 'none' }\n",
        );
        let rules = world.write("r.rules", "prefix_rule(['sh'], execution = 'network')");
        let script = "print began; for run in eval 'sh -c'; do ${=run} 'cat .env; echo x > secret/open/ro/f; \
                      echo x > secret/open/.git/hooks/pre-commit; echo x > secret/open/no/f; echo x > secret/open/yes'; \
                      cat secret/open/yes; rm secret/open/yes; done";
        let mut command = world.postern();
        command.current_dir(&project).arg("--config").arg(config).arg("--rules").arg(rules);
        let output = finish(command.args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "began\nx\nx", "{}", text(&output.stderr));
        for path in ["ro/f", ".git/hooks/pre-commit", "no/f"] {
            assert!(!project.join("secret/open").join(path).exists(), "{path}");
        }
    });
}

#[test]
fn rules_and_configuration_cannot_be_written_under_everything() {
    for_each_user(|world| {
        let rules = world.write("outside/r.rules", "prefix_rule(['sh'], execution = 'unsandboxed')\n");
        let config = world.write(
            "outside/c.toml",
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = { '.' = 'write', '*.env' = 'none' }\n",
        );
        let script = format!(
            "sh -c 'echo x >> {0}; echo x >> {1}; mv {2} {2}.old; echo mine > {2}/other; echo tried'",
            rules.display(),
            config.display(),
            world.outside.display()
        );
        let before = std::fs::read(&config).unwrap();
        let mut command = world.postern();
        command.arg("--config").arg(&config).arg("--rules").arg(&rules).args(["--", "-fc", &script]);
        let output = finish(&mut command);
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert_eq!(std::fs::read(&config).unwrap(), before);
        assert_eq!(std::fs::read(&rules).unwrap(), b"prefix_rule(['sh'], execution = 'unsandboxed')\n");
        assert!(world.outside.join("other").exists(), "all else can be written");
    });
}

#[test]
fn a_mode_that_is_taken_away_for_a_while_hides_nothing() {
    for_each_user(|world| {
        // Root passes modes.
        let User::Ordinary { .. } = world.user else { return };
        std::fs::create_dir_all(world.workspace.join("dir/sub")).unwrap();
        for name in ["ws/dir/sub/x.env", "ws/dir/sub/named"] {
            world.write(name, "SECRET\n");
        }
        let config = world.write(
            "c.toml",
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n[permissions.p.filesystem.':project_roots']\n\
             '.' = 'write'\n'**/*.env' = 'none'\n'dir/sub/named' = 'none'\n",
        );
        let run =
            |script: &str| finish(world.postern().arg("--config").arg(&config).args(["--", "-fc", script]));
        assert_eq!(stdout(&run("chmod 0 dir; print closed")), "closed");
        let output = run("chmod 755 dir; cat dir/sub/*; print started");
        assert_eq!(stdout(&output), "", "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("cannot be listed"), "{}", text(&output.stderr));
        // The same for a protected name, while the project itself cannot be looked into.
        let chmod = |mode: &str| world.plain("chmod", &[mode, &world.workspace.display().to_string()]);
        chmod("755");
        let rules = world.write("r.rules", "prefix_rule(['sh'], execution = 'git')\n");
        let script = format!(
            "cd /; chmod 0 {0}; sh -c 'sleep 0.3; echo x > {0}/.git/hooks/pre-commit' & sleep 0.1; chmod 755 {0}; wait",
            world.workspace.display()
        );
        let output = finish(world.postern().arg("--rules").arg(&rules).args(["--", "-fc", &script]));
        chmod("755");
        assert!(!world.workspace.join(".git/hooks/pre-commit").exists(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("cannot look at "), "{}", text(&output.stderr));
    });
}

#[test]
fn nor_are_a_worktrees_directories_or_what_cannot_be_listed_taken_for_missing() {
    for_each_user(|world| {
        let User::Ordinary { .. } = world.user else { return };
        let (main, tree) = (world.workspace.display(), world.root.join("tree"));
        let made = world
            .plain("git", &["-C", &main.to_string(), "worktree", "add", "-q", &tree.display().to_string()]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let rules = world.write("r.rules", "prefix_rule(['sh'], execution = 'workspace-write')\n");
        let run = |closes: &str| {
            let script = format!(
                "{closes}; sh -c 'sleep 0.3; echo x > {main}/.git/hooks/pre-commit && echo wrote' & sleep 0.1; chmod 755 {main}; wait"
            );
            let mut command = world.postern();
            command.current_dir(&tree).arg("--add-dir").arg(&world.root).arg("--rules").arg(&rules);
            finish(command.args(["--", "-fc", &script]))
        };
        for closes in ["true".to_owned(), format!("chmod 0 {main}")] {
            let output = run(&closes);
            world.plain("chmod", &["755", &main.to_string()]);
            assert_eq!(stdout(&output), "", "{closes}: {}", text(&output.stderr));
            assert!(!world.workspace.join(".git/hooks/pre-commit").exists());
        }
        // A directory of somebody else's that can be searched and not listed.
        let shared = world.outside.join("shared");
        std::fs::create_dir(&shared).unwrap();
        world.write("outside/shared/x.env", "SECRET\n");
        let chown = std::process::Command::new("sh")
            .args(["-c", "chown 0:0 \"$0\" && chmod 711 \"$0\""])
            .arg(&shared)
            .status();
        assert!(chown.is_ok_and(|status| status.success()));
        let config = world.root.join("c.toml");
        let pattern = format!(
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n'{}/**/*.env' = 'none'\n",
            world.outside.display()
        );
        std::fs::write(&config, pattern).unwrap();
        let mut command = world.postern();
        command.arg("--config").arg(&config).args(["--", "-fc", "cat \"$1\"", "zsh"]);
        let output = finish(command.arg(shared.join("x.env")));
        assert_eq!(stdout(&output), "");
        assert!(
            text(&output.stderr).contains("cannot be listed, and what matches there may be reached"),
            "{}",
            text(&output.stderr)
        );
    });
}

#[test]
fn a_worktrees_repository_is_protected_however_its_path_is_written() {
    for_each_user(|world| {
        // Names that are no UTF-8, that hold a line's end, or that end in a blank.
        for (number, name) in [b"ma\xff".as_slice(), b"ma\nb", b"main "].into_iter().enumerate() {
            let above = world.root.join(format!("above{number}"));
            let main = above.join(std::ffi::OsStr::from_bytes(name));
            std::fs::create_dir_all(&main).unwrap();
            world.own();
            let made = "cd \"$0\" && git init -q && git -c user.name=x -c user.email=x commit -q --allow-empty -m x && \
                git worktree add -q ../tree && cd ../tree && mv ../*/.git/worktrees/tree '../worktree' && \
                mv ../worktree \"$0/.git/worktrees/tree \" && \
                printf 'gitdir: %s/.git/worktrees/tree \\n' \"$0\" > .git && git status";
            let made = finish(world.plain_command("sh").arg("-c").arg(made).arg(&main));
            assert!(made.status.success(), "{}", text(&made.stderr));
            let mut command = world.postern();
            command.current_dir(above.join("tree")).arg("--add-dir").arg(&above);
            let script = "for file (../*/.git/hooks/update.sample ../*/.git/config ../*/.git/worktrees/*/commondir) \
                { echo x >> $file && print $file }; print tried";
            let output = finish(command.args(["--", "-fc", script]));
            assert_eq!(stdout(&output), "tried", "{name:?}: {}", text(&output.stderr));
        }
        // A link, or a directory left again, on the way there could be put elsewhere before the next session.
        let above = world.root.join("above");
        std::fs::create_dir_all(above.join("tree")).unwrap();
        std::fs::create_dir_all(above.join("side")).unwrap();
        std::fs::create_dir_all(above.join("main/.git/worktrees/tree")).unwrap();
        std::os::unix::fs::symlink("main", above.join("link")).unwrap();
        let run = |gitdir: &str, script: &str| {
            std::fs::write(above.join("tree/.git"), format!("gitdir: {gitdir}\n")).unwrap();
            world.own();
            let mut command = world.postern();
            command.current_dir(above.join("tree")).arg("--add-dir").arg(&above);
            finish(command.args(["--", "-fc", script]))
        };
        for gitdir in ["../link/.git/worktrees/tree", "../side/../main/.git/worktrees/tree"] {
            let output = run(gitdir, "print started");
            assert_eq!(stdout(&output), "", "{gitdir}");
            let part = gitdir.split('/').nth(1).unwrap();
            let expected = format!("leads through {}", above.join(part).display());
            assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
        }
        // And what it leads to and is missing could be made.
        let output = run("../gone/.git/worktrees/tree", "mkdir -p ../gone/.git && print made; print tried");
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert!(!above.join("gone").exists());
        let output =
            run("../main/.git/worktrees/tree", "echo x > ../main/.git/worktrees/tree/x; print tried");
        assert_eq!(stdout(&output), "tried", "{}", text(&output.stderr));
        assert!(!above.join("main/.git/worktrees/tree/x").exists());
    });
}
