//! What a rerun shares with the process that asked for it, on a terminal and off it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use postern_tests::{World, finish, for_each_user, prefix, status, stdout, text};
use serde_json::{Value, json};

/// Everything external is rerun: without a sandbox, in the turn's, or under a profile.
fn rules(world: &World, execution: &str) -> std::path::PathBuf {
    let programs = ["sh", "sleep", "cat", "python3", "stty", "yes", "head", "nice", "true"];
    let text: String = programs
        .iter()
        .map(|program| format!("prefix_rule([\"{program}\"], execution = \"{execution}\")\n"))
        .collect();
    world.write("fidelity.rules", text)
}

const EXECUTIONS: [&str; 3] = ["unsandboxed", "turn_default", "read-only"];

fn terminal(world: &World, rules: &std::path::Path, steps: &Value, code: i32) {
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/fidelity/terminal.py");
    let driver = world.write("terminal.py", std::fs::read(driver).unwrap());
    let postern = prefix().join("bin/postern");
    let mut child = world
        .plain_command("python3")
        .arg(driver)
        .args([postern.as_os_str(), "postern".as_ref(), "--rules".as_ref(), rules.as_os_str()])
        .args(["--", "-f", "-i", "+Z"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(steps.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(status(&output), code, "{} {}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn job_control_is_as_if_it_ran_in_place() {
    for_each_user(|world| {
        for execution in EXECUTIONS {
            let rules = rules(world, execution);
            let count = world.write(
                "count.py",
                "import signal, time\nn = 0\ndef count(*_):\n    global n; n += 1\nsignal.signal(signal.SIGINT, count)\n\
                 print('count''ing', flush=True)\nwhile not n: time.sleep(0.05)\ntime.sleep(0.4)\nprint('interrupts:', n)\n",
            );
            let enter = |line: &str| format!("{line}\r");
            terminal(
                world,
                &rules,
                &json!([
                    { "send": enter("PS1='ready> '; unset zle_bracketed_paste"), "expect": "ready> " },
                    { "send": enter("tty; [[ -t 0 ]] && print is''a''tty"), "expect": "isatty" },
                    { "send": enter("sleep 30"), "expect": "sleep 30\r\n" },
                    { "send": "\u{3}", "expect": "ready> " },
                    { "send": enter("print rc=$?"), "expect": "rc=130" },
                    { "send": enter(&format!("python3 {}", count.display())), "expect": "counting" },
                    { "send": "\u{3}", "expect": "interrupts: 1" },
                    { "expect": "ready> " },
                    { "send": enter("sleep 31"), "expect": "sleep 31\r\n" },
                    { "send": "\u{1a}", "expect": "suspended  sleep 31" },
                    { "send": enter("jobs"), "expect": "+ suspended  sleep 31" },
                    { "send": enter("bg"), "expect": "continued  sleep 31" },
                    { "send": enter("fg"), "expect": "running    sleep 31" },
                    { "send": "\u{3}", "expect": "ready> " },
                    { "send": enter("sleep 32 | cat; print st=$pipestatus"), "expect": "pipestatus\r\n" },
                    { "send": "\u{1a}", "expect": "suspended  sleep 32 | cat" },
                    { "send": enter("fg"), "expect": "continued  sleep 32 | cat" },
                    { "send": "\u{3}", "expect": "ready> " },
                    { "send": enter("sleep 33 &"), "expect": "[1] " },
                    { "send": enter("kill %1; wait"), "expect": "terminated  sleep 33" },
                    { "send": enter("cat"), "expect": "cat\r\n" },
                    { "send": "typed\r", "expect": "typed\r\ntyped" },
                    { "send": "\u{4}", "expect": "ready> " },
                    { "send": enter("sh -c 'kill -STOP $$; echo res''umed'"), "expect": "suspended (signal)" },
                    { "send": enter("fg"), "expect": "resumed" },
                    { "send": enter("stty size; print $COLUMNS"), "expect": "30 90\r\n90" },
                    { "size": [40, 101], "send": enter("stty size; print $COLUMNS"), "expect": "40 101\r\n101" },
                    { "send": enter("(exit 5) &; wait $!; print w=$?"), "expect": "w=5" },
                    { "send": enter("exit 7") },
                ]),
                7,
            );
        }
    });
}

#[test]
fn an_interrupt_right_after_the_start_comes_once() {
    const TURNS: usize = 6;
    for_each_user(|world| {
        let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/fidelity/early.py");
        let driver = world.write("early.py", std::fs::read(driver).unwrap());
        let counts =
            "n=0; trap 'n=$((n+1))' INT; echo set; /bin/sleep 0.1; /bin/sleep 0.1; echo interrupts: $n";
        let counts = world.write("counts.sh", counts);
        let script = format!("trap '' INT; sh {}", counts.display());
        for script in [script.clone(), script.replace("trap '' INT; ", "")] {
            for execution in EXECUTIONS {
                let rules = rules(world, execution);
                let postern = prefix().join("bin/postern");
                let output = finish(
                    world
                        .plain_command("python3")
                        .arg(&driver)
                        .arg(TURNS.to_string())
                        .args([
                            postern.as_os_str(),
                            "postern".as_ref(),
                            "--rules".as_ref(),
                            rules.as_os_str(),
                        ])
                        .args(["--", "-fc", &script]),
                );
                // What a shell ignores its commands ignore, and dash cannot trap it.
                let times = if script.starts_with("trap") { "0" } else { "1" };
                let found = text(&output.stdout);
                assert_eq!(
                    found.lines().collect::<Vec<_>>(),
                    [times; TURNS],
                    "{execution} {script} {}",
                    text(&output.stderr)
                );
            }
        }
    });
}

#[test]
fn a_signal_to_the_shells_group_is_not_the_next_commands() {
    let signals = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1];
    for_each_user(|world| {
        let names: String = signals.map(|signal| signal.as_str().trim_start_matches("SIG")).join(" ");
        for execution in EXECUTIONS {
            // Enough of them for the next one to stand by, in a sandbox that is kept.
            let script = format!(
                "trap : {names}; repeat 4 sh -c ':'; for signal in {names}; do print ready; read; \
                 sh -c 'exit 5'; print $?; repeat 3 sh -c ':'; done"
            );
            let mut child = world
                .postern()
                .arg("--rules")
                .arg(rules(world, execution))
                .args(["--", "-fc", &script])
                .process_group(0)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            let mut answers = child.stdin.take().unwrap();
            for signal in signals {
                assert_eq!(said.next().as_deref(), Some("ready"), "{execution} {signal}");
                // By then the next one stands by.
                std::thread::sleep(Duration::from_millis(100));
                killpg(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
                std::thread::sleep(Duration::from_millis(50));
                writeln!(answers).unwrap();
                assert_eq!(said.next().as_deref(), Some("5"), "{execution} {signal}");
            }
            assert!(child.wait().unwrap().success());
        }
    });
}

#[test]
fn a_job_that_waits_for_the_terminal_gets_it() {
    for_each_user(|world| {
        for execution in EXECUTIONS {
            let rules = rules(world, execution);
            let enter = |line: &str| format!("{line}\r");
            let mut steps = vec![
                json!({ "send": enter("PS1='ready> '; unset zle_bracketed_paste"), "expect": "ready> " }),
                json!({ "send": enter("cat"), "expect": "cat\r\n" }),
            ];
            for turn in 0..6 {
                steps.extend([
                    json!({ "send": "\u{1a}", "expect": "suspended  cat" }),
                    json!({ "send": enter("bg"), "expect": "continued  cat" }),
                    json!({ "send": enter(""), "expect": "suspended (tty input)  cat" }),
                    json!({ "send": enter("fg"), "expect": "continued  cat" }),
                    json!({ "send": enter(&format!("line{turn}")), "expect": format!("line{turn}\r\nline{turn}"), "absent": "suspended" }),
                ]);
            }
            steps.push(json!({ "send": "\u{4}", "expect": "ready> " }));
            steps.push(json!({ "send": enter("exit 7") }));
            terminal(world, &rules, &Value::Array(steps), 7);
        }
    });
}

#[test]
fn a_stopped_job_ends_with_its_shell() {
    for_each_user(|world| {
        let length = 40_000 + std::process::id() % 10_000;
        for execution in EXECUTIONS {
            let rules = rules(world, execution);
            let enter = |line: &str| format!("{line}\r");
            let steps = json!([
                { "send": enter("PS1='ready> '; unset zle_bracketed_paste"), "expect": "ready> " },
                { "send": enter(&format!("sleep {length}")), "expect": "\r\n" },
                { "send": "\u{1a}", "expect": "suspended" },
                { "send": enter("exit 7"), "expect": "you have suspended jobs" },
                { "send": enter("exit 7") },
            ]);
            terminal(world, &rules, &steps, 7);
            postern_tests::eventually("the job is gone", || {
                let output = finish(world.postern().arg("sessions"));
                stdout(&output).is_empty()
            });
        }
    });
}

/// Runs the same script with nothing and with everything rerun; what is printed must be the same.
fn same(world: &World, script: &str) {
    let run = |command: &mut std::process::Command| {
        let output = postern_tests::finish(command);
        (stdout(&output), text(&output.stderr), status(&output))
    };
    let plain = run(world.posternsh().args(["-fc", script]));
    for execution in EXECUTIONS {
        let rules = rules(world, execution);
        let rerun = run(world.postern().arg("--rules").arg(&rules).args(["--", "-fc", script]));
        assert_eq!(plain, rerun, "{execution}: {script}");
    }
}

#[test]
fn status_signals_and_pipes() {
    for_each_user(|world| {
        same(world, "for c in 0 1 126 127 255; do sh -c \"exit $c\"; print $?; done");
        same(
            world,
            "for s in HUP INT QUIT ABRT KILL PIPE ALRM TERM USR1 SEGV; do sh -c \"kill -$s \\$\\$\"; print $s $?; done",
        );
        same(world, "yes | head -2 | cat; print $pipestatus");
        same(
            world,
            "yes | head -1; print $pipestatus; sh -c 'echo x; exit 3' | sh -c 'cat; exit 4'; print $pipestatus",
        );
        same(world, "sh -c 'exit 9' & wait $!; print $?; sleep 20 & kill $!; wait $!; print $?");
        same(
            world,
            "sh -c 'trap \"echo caught; exit 6\" USR1; echo up; while :; do sleep 0.05; done' & sleep 0.5; kill -USR1 $!; wait $!; print $?",
        );
        same(world, "cat <(sh -c 'echo one') <(echo two) > >(cat); sleep 0.2");
        same(world, "coproc cat; print -p x; read -p y; print got $y");
    });
}

#[test]
fn a_signal_that_races_with_the_end_does_not_hide_the_status() {
    for_each_user(|world| {
        let rules = rules(world, "unsandboxed");
        let script = "for i in {1..150}; do sh -c 'exit 7' & p=$!; kill -CONT $p 2> /dev/null; wait $p; print $?; done | sort | uniq -c | tr -d ' '";
        let output =
            postern_tests::finish(world.postern().arg("--rules").arg(rules).args(["--", "-fc", script]));
        assert_eq!((stdout(&output).as_str(), text(&output.stderr).as_str()), ("1507", ""));
    });
}

#[test]
fn what_a_process_hands_to_its_exec() {
    const SHOW: &str = r#"
import os, resource, signal, sys
print(sys.argv[1:], os.getcwd())
for number in range(3, 63):
    try: os.fstat(number); print('fd', number)
    except OSError: pass
print('nofile', resource.getrlimit(resource.RLIMIT_NOFILE)[0], 'stack', resource.getrlimit(resource.RLIMIT_STACK)[0])
print('nice', os.nice(0), 'int', signal.getsignal(signal.SIGINT) == signal.SIG_IGN)
print('umask', oct(os.umask(0) | 2))
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
print('mask', sorted(mask), 'on', sorted(os.sched_getaffinity(0)))
print('same group', os.getpgrp() == int(os.environ.get('GROUP', os.getpgrp())))
"#;
    for_each_user(|world| {
        let show = world.write("show.py", SHOW);
        let show = show.display();
        same(world, &format!("python3 {show} a '' $'b\\nc'"));
        same(
            world,
            &format!("exec 3</dev/null 5>/dev/null; python3 {show}; exec {{n}}</dev/null; python3 {show}"),
        );
        same(world, &format!("ulimit -S -n 77; ulimit -S -s 4096; umask 077; trap '' INT; python3 {show}"));
        same(world, &format!("mkdir -p deep/er; cd deep/er; nice -n 3 true; python3 {show}"));
    });
}

#[test]
fn descriptors_of_any_number_come_along() {
    for_each_user(|world| {
        let zsh = postern_tests::prefix().join("libexec/postern/zsh");
        let list = "import os\nprint(sorted(n for n in map(int, os.listdir('/proc/self/fd')) if n in range(4, 1000)))";
        let list = world.write("list.py", list);
        // Beside the numbers that are tried, at their end and after it; and one above the limit.
        for numbers in ["[9]", "[9, 255]", "[256]", "[9, 255, 256, 700]"] {
            let code = format!(
                "import os, resource\nf = os.open('/dev/null', os.O_RDONLY)\n\
                 for n in {numbers}: os.dup2(f, n, True)\n\
                 resource.setrlimit(resource.RLIMIT_NOFILE, (300, 1000))\n\
                 os.execv('{}', ['zsh', '-fc', 'python3 {}'])\n",
                zsh.display(),
                list.display()
            );
            let fill = world.write("fill.py", code);
            let rules = format!("prefix_rule(['python3', '{}'], execution = 'unsandboxed')", list.display());
            let output = world.session(&rules, &format!("python3 {}", fill.display()));
            assert_eq!(stdout(&output), numbers, "{}", text(&output.stderr));
        }
    });
}

#[test]
fn descriptors_that_cannot_be_handed_over_keep_nobody_waiting() {
    for_each_user(|world| {
        // More than may be on their way at once (unix(7), ETOOMANYREFS): in two parts.
        let code = format!(
            "import os, resource\nf = os.open('/dev/null', os.O_RDONLY)\n\
             for n in range(20, 256): os.dup2(f, n, True)\n\
             resource.setrlimit(resource.RLIMIT_NOFILE, (20, 1000))\n\
             os.execv('{}', ['zsh', '-fc', 'echo ran | cat; echo ran'])\n",
            postern_tests::prefix().join("libexec/postern/zsh").display()
        );
        let fill = world.write("fill.py", code);
        let output = world.session(
            "prefix_rule(['cat'], execution = 'unsandboxed')",
            &format!("python3 {}", fill.display()),
        );
        assert_eq!(stdout(&output), "ran");
        let said = text(&output.stderr);
        assert!(said.contains("its descriptors cannot be handed over"), "{said}");
    });
}
