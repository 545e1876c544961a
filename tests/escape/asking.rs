//! Making more of what was asked for than somebody said yes to.

use std::process::{Child, Stdio};

use postern_tests::{World, eventually, finish, for_each_user, prefix, stdout, text};

use crate::approvals::waiting;

/// Runs a script in a session where the first question is answered so, and every other denied.
fn granted(world: &World, config: &str, rules: &str, script: &str, choice: &[&str]) -> (String, String) {
    let mut command = world.postern();
    command.arg("--config").arg(world.write("grant.toml", config));
    command.arg("--rules").arg(world.write("grant.rules", rules)).args(["--", "-fc", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let answered = finish(world.postern().arg("approve").arg(waiting(world).1).args(choice));
    assert!(answered.status.success(), "{}", text(&answered.stderr));
    answering(world, child, "--deny")
}

/// Answers whatever is asked until a session has ended: what it said, and its stderr.
fn answering(world: &World, mut child: Child, choice: &str) -> (String, String) {
    let mut ended = false;
    eventually("the script ends", || {
        ended = ended || child.try_wait().unwrap().is_some();
        let list = finish(world.postern().args(["approve", "--list"]));
        let prompts = text(&list.stdout);
        for prompt in prompts.lines().filter_map(|line| line.strip_prefix("prompt ")) {
            let _withdrawn = finish(world.postern().args(["approve", &prompt[..6], choice]));
        }
        ended
    });
    let output = child.wait_with_output().unwrap();
    (stdout(&output), text(&output.stderr))
}

fn postern() -> String {
    prefix().join("bin/postern").display().to_string()
}

#[test]
fn a_link_swapped_in_after_a_grant_leads_nowhere() {
    for_each_user(|world| {
        // What was asked about lies where the agent can move what is above it.
        let swap = format!("mv sub gone; mkdir sub; ln -s {} sub/docs", world.outside.display());
        let docs = || {
            for path in [world.workspace.join("sub"), world.workspace.join("gone")] {
                let _none = std::fs::remove_dir_all(path);
            }
            std::fs::create_dir_all(world.workspace.join("sub/docs")).unwrap();
            world.own();
        };
        docs();
        let plain = world.plain("sh", &["-c", &format!("{swap}; touch sub/docs/plain")]);
        assert!(plain.status.success() && world.outside.join("plain").exists());

        docs();
        let config = "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n\
                      ':project_roots' = { '.' = 'write', 'sub/docs' = 'read' }\n";
        let script = format!(
            "{} request --write $PWD/sub/docs || exit 1; touch sub/docs/before; print before $?; {swap}; \
             touch sub/docs/after; touch {}/direct; print end",
            postern(),
            world.outside.display()
        );
        let (said, stderr) = granted(world, config, "", &script, &["--session"]);
        assert!(said.contains("before 0") && said.ends_with("end"), "{said} {stderr}");
        assert!(!world.outside.join("after").exists(), "{stderr}");
        assert!(!world.outside.join("direct").exists(), "{stderr}");
    });
}

#[test]
fn what_runs_under_a_profile_asks_for_nothing_in_the_turns_name() {
    for_each_user(|world| {
        let script = format!(
            "sh -c '{0} request --write {1}; echo $?; touch {1}/x'",
            postern(),
            world.outside.display()
        );
        let mut command = world.postern();
        let rules = world.write("p.rules", "prefix_rule(['sh'], execution = 'read-only')");
        let output = finish(command.arg("--rules").arg(rules).args(["--", "-fc", &script]));
        assert_eq!(stdout(&output), "126");
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("asked from permissions(read-only); only the turn can be given more"),
            "{stderr}"
        );
        assert!(!world.outside.join("x").exists());
    });
}

#[test]
fn a_program_that_a_grant_lets_the_agent_write_is_no_rules_program_any_more() {
    for_each_user(|world| {
        let tool = world.write("outside/tool", "#!/bin/sh\necho tool; id > $OUT\n");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&tool, mode).unwrap();
        let (tool, out) = (tool.display(), world.root.join("escaped"));
        let rules = format!("prefix_rule(['{tool}'], execution = 'unsandboxed', env_keep = ['OUT'])\n");
        let script = format!(
            "export OUT={}; {tool}; rm $OUT; {} request --write {} || exit 1\n\
             print '#!/bin/sh\\necho evil; id > $OUT' > new; chmod +x new; cp new {tool}; {tool}; print $?",
            out.display(),
            postern(),
            world.outside.display(),
        );
        // The agent cannot remove what was made outside.
        let script = script.replace("rm $OUT; ", "");
        let (said, stderr) = granted(world, "", &rules, &script, &["--session"]);
        assert!(said.starts_with("tool\n"), "{said} {stderr}");
        let first = std::fs::metadata(&out).unwrap().modified().unwrap();
        assert!(!said.contains("evil") || !said.ends_with("evil\n0"), "{said} {stderr}");
        assert_eq!(std::fs::metadata(&out).unwrap().modified().unwrap(), first, "{said} {stderr}");
    });
}

#[test]
fn what_runs_with_more_is_not_changed_by_what_is_granted_meanwhile() {
    for_each_user(|world| {
        // It reads itself as it goes.
        let tool = world.write(
            "outside/long",
            "#!/bin/bash\ntouch started\nuntil [[ -e go ]]; do sleep 0.05; done\necho done\n",
        );
        std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let rules = format!("prefix_rule(['{}'], execution = 'unsandboxed')\n", tool.display());
        let script = format!(
            "{tool} & until [[ -e started ]] sleep 0.05\n\
             {program} request --write {out}; print rc $?\n\
             print 'id > {root}/escaped' >> {tool}; : > go; wait $!; print end $?\n\
             {program} request --write {out}; print rc $?",
            tool = tool.display(),
            program = postern(),
            out = world.outside.display(),
            root = world.root.display()
        );
        let mut command = world.postern();
        command.arg("--rules").arg(world.write("grant.rules", rules)).args(["--", "-fc", &script]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (said, stderr) = answering(world, child, "--session");
        assert!(
            said.starts_with("rc 126\n") && said.contains("end 0\n") && said.ends_with("rc 0"),
            "{said} {stderr}"
        );
        assert!(
            stderr
                .contains("runs with more than the sandbox has, and might go by what could then be written"),
            "{stderr}"
        );
        assert!(!world.root.join("escaped").exists());
    });
}

#[test]
fn a_yes_after_the_end_of_a_grant_is_none_for_what_was_asked_under_it() {
    for_each_user(|world| {
        let rules = format!("prefix_rule(['{}'], execution = 'turn_default')\n", postern());
        let script = format!(
            "{} request --write {out} || exit 1; sh -c 'touch {out}/late'; print end $?",
            postern(),
            out = world.outside.display()
        );
        let mut command = world.postern();
        command.args(["--approval", "untrusted", "--rules"]).arg(world.write("grant.rules", rules));
        let command = command.args(["--", "-fc", &script]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let approve = |arguments: &[&str]| {
            let output = finish(world.postern().arg("approve").args(arguments));
            assert!(output.status.success(), "{}", text(&output.stderr));
            text(&output.stdout)
        };
        let (_, grant) = waiting(world);
        approve(&[&grant, "--session"]);
        let mut late = grant.clone();
        eventually("the command asks", || {
            let list = approve(&["--list"]);
            late =
                list.lines().find_map(|line| line.strip_prefix("prompt ")).unwrap_or(&grant)[..6].to_owned();
            late != grant && list.contains("under the profile granted:1")
        });
        approve(&["--revoke", &grant]);
        approve(&[&late, "--once"]);
        let output = child.wait_with_output().unwrap();
        assert!(stdout(&output).ends_with("end 126"), "{}", stdout(&output));
        assert!(text(&output.stderr).contains("what was granted has ended"), "{}", text(&output.stderr));
        assert!(!world.outside.join("late").exists());
    });
}

#[test]
fn nothing_is_left_of_a_grant_whose_time_is_over() {
    for_each_user(|world| {
        let script = format!(
            "{} request --write {out} || exit 1; touch {out}/a; print $?\n\
             sh -c 'sleep 2.5; touch {out}/b' & sh -c 'trap \"\" HUP TERM; setsid sleep 2.5; touch {out}/b' &\n\
             wait; touch {out}/b; print $?",
            postern(),
            out = world.outside.display()
        );
        let (said, stderr) = granted(world, "", "", &script, &["--until", "2s"]);
        assert!(said.ends_with("\n0\n1"), "{said} {stderr}");
        assert!(!world.outside.join("b").exists());
    });
}
