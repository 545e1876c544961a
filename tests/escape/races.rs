//! What is judged is what is executed, however fast somebody puts another thing in its place.

use postern_tests::{World, for_each_user, stdout, text};

use crate::attack::compiled;

/// Exchanges two names until it is told to stop, and says how often it did.
pub(crate) const SWAPPER: &str = "
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    long count = 0, least = atol(argv[3]);
    alarm(30);
    while (count % 64 || count < least || access(\"stop\", F_OK))
        if (renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE) == 0) count++;
        else return 1;
    printf(\"swapped %ld\\n\", count);
    return 0;
}";

/// How often each of the three swappers has to: in all more than a hundred thousand times, for one
/// user already.
const EACH: u32 = 35_000;
const ROUNDS: u32 = 60;

struct Race {
    tool: String,
    swapper: String,
}

impl Race {
    /// A tool outside that does good, and a file of the workspace that would do evil there.
    fn prepare(world: &World) -> Self {
        let (outside, workspace) = (world.outside.display(), world.workspace.display());
        let tool = world.write("outside/tool", format!("#!/bin/sh\necho good >> {outside}/good\n"));
        let evil = world.write(
            "ws/evil",
            format!("#!/bin/sh\necho ran >> {workspace}/evil-ran\necho evil > {outside}/mark\n"),
        );
        for path in [&tool, &evil] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let made = world.plain("sh", &["-c", &format!(
            "ln -s {0} link && ln -s {workspace}/evil link2 && cp {0} file && cp evil file2 && \
             mkdir d d2 && ln -s {0} d/tool && cp evil d2/tool && ln -s {outside} way && ln -s {workspace}/d2 way2",
            tool.display()
        )]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        Self {
            tool: tool.display().to_string(),
            swapper: compiled(world, "swapper", SWAPPER, &[]).display().to_string(),
        }
    }
}

#[test]
fn a_judge_that_goes_by_names_loses() {
    // Or the test below would show nothing.
    for_each_user(|world| {
        let Race { tool, swapper } = Race::prepare(world);
        let script = format!(
            "{swapper} link link2 1 & for i in {{1..2000}}; do [[ $(readlink link) == {tool} ]] && ./link; [[ -e {}/mark ]] && break; done; touch stop; wait",
            world.outside.display()
        );
        let output = world.plain("bash", &["-c", &script]);
        assert!(world.outside.join("mark").exists(), "{} {}", stdout(&output), text(&output.stderr));
    });
}

#[test]
fn nothing_but_what_was_judged_runs_outside() {
    let swaps = std::cell::Cell::new(0u64);
    for_each_user(|world| {
        let Race { tool, swapper } = Race::prepare(world);
        let workspace = world.workspace.display();
        // By its path, by its bare name, and by every name in the workspace that a rule could know.
        let rules: String = [
            "tool",
            &tool,
            &format!("{workspace}/link"),
            &format!("{workspace}/file"),
            &format!("{workspace}/way/tool"),
            "link",
            "file",
        ]
        .iter()
        .map(|name| format!("prefix_rule(['{name}'], execution = 'unsandboxed')\n"))
        .collect();
        let script = format!(
            "{swapper} link link2 {EACH} & {swapper} file file2 {EACH} & {swapper} way way2 {EACH} &\n\
             for i in {{1..{ROUNDS}}}; do\n{tool}; ./link; $PWD/link; ./file; $PWD/way/tool; (path=($PWD/way $path); tool)\ndone 2> /dev/null\n\
             touch stop; wait"
        );
        let output = world.session(&rules, &script);
        let out = stdout(&output);
        let counts: Vec<u64> =
            out.lines().filter_map(|line| line.strip_prefix("swapped ")?.parse().ok()).collect();
        assert_eq!(counts.len(), 3, "{out} {}", text(&output.stderr));
        swaps.set(swaps.get() + counts.iter().sum::<u64>());
        assert!(!world.outside.join("mark").exists(), "the evil one has run outside");
        assert!(world.workspace.join("evil-ran").exists(), "it was never even run inside");
        let good = std::fs::read_to_string(world.outside.join("good")).unwrap();
        assert!(good.lines().count() >= 50, "{good}");
        let records = world.records();
        let escalated: Vec<_> = records.iter().filter(|line| line["decision"] == "escalate").collect();
        assert!(escalated.len() >= 50, "{}", escalated.len());
        assert!(escalated.iter().all(|line| line["attested"]["exe"]["path"] == tool), "{escalated:#?}");
    });
    assert!(swaps.get() >= 100_000, "{}", swaps.get());
    eprintln!("{} swaps", swaps.get());
}

#[test]
fn nor_does_a_script_run_by_an_interpreter_that_was_not_judged() {
    for_each_user(|world| {
        let Race { swapper, .. } = Race::prepare(world);
        let (outside, workspace) = (world.outside.display(), world.workspace.display());
        // A script that the sandbox cannot write, whose interpreter is a link that it can; and one whose
        // line it exchanges.
        let tool = world.write("outside/script", format!("#!{workspace}/interpreter\necho good\n"));
        let lines = format!(
            "ln -s /bin/sh interpreter; ln -s {workspace}/evil interpreter2; \
             print '#!/bin/sh\necho good' > line; print '#!{workspace}/evil\necho good' > line2; chmod +x line line2"
        );
        std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let zsh = postern_tests::prefix().join("libexec/postern/zsh");
        let made = world.plain(&zsh, &["-fc", &lines]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let tool = tool.display().to_string();
        for (looks, runs, names) in [
            ("$(readlink interpreter) == /bin/sh", &*tool, "interpreter interpreter2"),
            ("$(head -n 1 line) == '#!/bin/sh'", "./line", "line line2"),
        ] {
            let script = format!(
                "{swapper} {names} 1 & for i in {{1..2000}}; do [[ {looks} ]] && {runs}; [[ -e {outside}/mark ]] && break; done; touch stop; wait; rm stop"
            );
            let output = world.plain(&zsh, &["-fc", &script]);
            assert!(
                std::fs::remove_file(world.outside.join("mark")).is_ok(),
                "who goes by names loses: {runs} {} {}",
                stdout(&output),
                text(&output.stderr)
            );
        }
        for execution in ["unsandboxed", "network"] {
            let rules = format!(
                "prefix_rule(['{tool}'], execution = '{execution}')\nprefix_rule([['{workspace}/line', 'line']], execution = '{execution}')\n"
            );
            let script = format!(
                "{swapper} interpreter interpreter2 2000 & {swapper} line line2 2000 &\n\
                 for i in {{1..{ROUNDS}}}; do {tool}; ./line; $PWD/line; done 2> /dev/null; touch stop; wait; rm stop"
            );
            let output = world.session(&rules, &script);
            assert_eq!(stdout(&output).matches("swapped").count(), 2, "{}", text(&output.stderr));
            assert!(!world.outside.join("mark").exists(), "the evil one has run outside");
        }
        let records = world.records();
        assert!(records.iter().all(|line| line["decision"] != "escalate"), "{records:#?}");
        assert!(records.iter().any(|line| line["decision"] == "deny"), "no rule was ever in force");
        assert!(world.workspace.join("evil-ran").exists(), "it was never even run inside");
    });
}
