//! What makes the next `git` outside run things: hooks and configuration of the repository.

use postern_tests::{finish, for_each_user, prefix, stdout, text};
use serde_json::json;

use crate::attack::attack;

#[test]
fn hooks_and_configuration_stay_as_they_are() {
    for_each_user(|world| {
        attack(
            world,
            &json!({}),
            &[
                ("a hook", "open('.git/hooks/pre-commit', 'w').write('#!/bin/sh\\nevil\\n')"),
                ("the configuration", "open('.git/config', 'a').write('')"),
                ("its lock", "open('.git/config.lock', 'w').close(); os.unlink('.git/config.lock')"),
                ("another common directory", "open('.git/new', 'w').close(); os.unlink('.git/new')"),
                ("mode of a hook", "os.chmod('.git/hooks', 0o777)"),
                ("moved away", "os.rename('.git', f'{own}/git'); os.rename(f'{own}/git', '.git')"),
                ("exchanged", "for _ in 1, 2: call('renameat2', -100, b'.git', -100, own.encode(), 2)"),
                (
                    "by the parent's name",
                    "os.rename(f'../{os.path.basename(workspace)}', '../moved'); os.rename('../moved', workspace)",
                ),
                (
                    "removed",
                    "os.rename('.git/description', '.git/d'); os.rename('.git/d', '.git/description')",
                ),
                ("by another name", "open(f'/proc/self/cwd/.git/hooks/x', 'w').close()"),
            ],
        );
    });
}

#[test]
fn a_link_that_was_planted_before_leads_to_what_is_read_only() {
    for_each_user(|world| {
        let made = world
            .plain("sh", &["-c", "ln -s .git/hooks way; ln -s ws/.git ../way-back; ln -s .git/config conf"]);
        assert!(made.status.success());
        attack(
            world,
            &json!({}),
            &[
                ("a directory", "open('way/post-checkout', 'w').close()"),
                ("a file", "open('conf', 'a').close()"),
                ("from outside", "open('../way-back/hooks/update', 'w').close()"),
            ],
        );
    });
}

#[test]
fn a_link_that_is_swapped_meanwhile_leads_to_what_is_read_only() {
    for_each_user(|world| {
        // The writer opens through a name that is now a harmless directory, now the hooks.
        let race = "
os.mkdir(f'{own}/harmless')
os.symlink('harmless', f'{own}/way')
swapper = os.fork()
if swapper == 0:
    signal.alarm(15)
    while True:
        for where in (f'{workspace}/.git/hooks', 'harmless'):
            os.symlink(where, f'{own}/next')
            os.rename(f'{own}/next', f'{own}/way')
for _ in range(30000):
    try:
        open(f'{own}/way/evil', 'w').close()
    except OSError:
        pass
    if os.path.exists('.git/hooks/evil'):
        break
os.kill(swapper, signal.SIGKILL)
need(os.path.exists('.git/hooks/evil'))
os.unlink('.git/hooks/evil')";
        attack(world, &json!({}), &[("swapped", race)]);
    });
}

#[test]
fn a_repository_that_is_a_link_is_no_project() {
    for_each_user(|world| {
        let project = world.root.join("linked");
        std::fs::create_dir(&project).unwrap();
        std::os::unix::fs::symlink(world.workspace.join(".git"), project.join(".git")).unwrap();
        world.own();
        let evil = "echo evil > .git/hooks/pre-commit; echo ran";
        let write = |mut command: std::process::Command| {
            let output = finish(command.current_dir(&project).args(["-c", evil]));
            (stdout(&output), world.workspace.join(".git/hooks/pre-commit").exists(), text(&output.stderr))
        };
        let plain = write(world.plain_command("sh"));
        assert_eq!((plain.0.as_str(), plain.1), ("ran", true), "{}", plain.2);
        std::fs::remove_file(world.workspace.join(".git/hooks/pre-commit")).unwrap();
        let (out, written, errors) = write(world.posternsh());
        assert!(out.is_empty() && !written && errors.contains("is a symbolic link"), "{out}: {errors}");
    });
}

#[test]
fn the_way_to_a_repository_cannot_be_moved() {
    for_each_user(|world| {
        // The project lies two levels below another directory that may be written.
        let project = world.root.join("open/a/proj");
        std::fs::create_dir_all(&project).unwrap();
        world.own();
        assert!(world.plain("git", &["init", "-q", project.to_str().unwrap()]).status.success());
        let config = world.write(
            "c.toml",
            format!(
                "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n'{}' = 'write'\n",
                world.root.join("open").display()
            ),
        );
        let attack = "cd ../..; print began; mv a b; mkdir -p a/proj && cp -r b/proj/.git a/proj/.git; \
                      print '#!/bin/sh' > a/proj/.git/hooks/pre-commit; print tried";
        let output = finish(
            world.postern().current_dir(&project).arg("--config").arg(config).args(["--", "-fc", attack]),
        );
        assert_eq!(stdout(&output), "began\ntried", "{}", text(&output.stderr));
        assert!(project.join(".git").exists());
        assert!(!project.join(".git/hooks/pre-commit").exists());
    });
}

#[test]
fn what_a_git_file_names_gives_nothing() {
    for_each_user(|world| {
        world.write("outside/secret", "secret\n");
        let config = world.write(
            "c.toml",
            format!(
                "profile = 'p'\n[permissions.p.filesystem]\n':minimal' = 'read'\n':project_roots' = 'write'\n'/proc' = 'read'\n'{}' = 'read'\n",
                prefix().display()
            ),
        );
        let outside = world.outside.display();
        let directory = world.root.join("plain");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join(".git"), format!("gitdir: {outside}\n")).unwrap();
        world.own();
        let mut command = world.postern();
        command
            .current_dir(&directory)
            .arg("--config")
            .arg(&config)
            .args(["--", "-fc"])
            .arg(format!("cat {outside}/secret; print $?"));
        let output = finish(&mut command);
        assert_eq!(stdout(&output), "1", "{}", text(&output.stderr));
    });
}
