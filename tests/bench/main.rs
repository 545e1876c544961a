//! Speed, as ratios against plain zsh doing the same work in the same minute.
//!
//! Each line runs pairs, plain and gated in turn, and prints the median of the pairs' ratios with its
//! 95 % interval (order statistics), for wall time and for the processor time of everything that ran.
//! A promise is kept when the wall interval's upper end is.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::wait::wait;
use postern_tests::{User, World, installed_stock};

const PAIRS: usize = 21;
/// Enough that the start of a shell, which has a line of its own, is no part of the others.
const EXECS: u32 = 500;

/// Seconds on the clock, and of processors.
#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    cpu: f64,
}

fn processors() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}

/// The clock stops when the command ends; the processors count until nothing of it is left.
fn time(command: &mut Command) -> Took {
    let before = processors();
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("a program starts");
    let wall = began.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}");
    while wait().is_ok() {}
    Took { wall, cpu: processors() - before }
}

/// Median and 95 % interval of some values.
fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    let reach = 1.96 * count.sqrt() / 2.0;
    let at = |position: f64| values[(position.max(0.0) as usize).min(values.len() - 1)];
    (at(count / 2.0), at(count / 2.0 - reach), at(count / 2.0 + reach))
}

fn pairs(mut base: impl FnMut() -> Took, mut ours: impl FnMut() -> Took) -> Vec<(Took, Took)> {
    base();
    ours();
    (0..PAIRS).map(|_| (base(), ours())).collect()
}

fn line(work: &str, promise: &str, measured: &[(Took, Took)], compare: fn(f64, f64) -> f64, unit: &str) {
    let column = |of: fn(&Took) -> f64| {
        median(measured.iter().map(|(base, ours)| compare(of(base), of(ours))).collect())
    };
    let (middle, low, high) = column(|took| took.wall);
    let (cpu, ..) = column(|took| took.cpu);
    println!(
        "{work:<46} {middle:>6.2}{unit:<3} [{low:.2}, {high:.2}]  cpu {cpu:>6.2}{unit:<3}  promise {promise}"
    );
}

fn ratio(base: f64, ours: f64) -> f64 {
    ours / base
}

fn added(base: f64, ours: f64) -> f64 {
    (ours - base) * 1e3
}

fn main() {
    // What a session leaves for a moment is waited for here, and counted.
    nix::sys::prctl::set_child_subreaper(true).expect("a subreaper");
    let world = World::new(User::Ourselves);
    let loops = format!("repeat {EXECS} /bin/true");
    let plain = |script: &str| time(world.plain_command(installed_stock()).args(["-fc", script]));
    let gated = |rules: &Path, script: &str| {
        time(world.postern().arg("--rules").arg(rules).args(["--", "-fc", script]))
    };
    let rules = |name: &str, execution: &str| {
        world.write(
            name,
            format!("prefix_rule([\"true\"], execution = \"{execution}\")\nprefix_rule([\"git\"])\n"),
        )
    };
    let judged = world.write("judged.rules", "prefix_rule([\"git\"])\n");
    let (outside, turn) = (rules("o.rules", "unsandboxed"), rules("t.rules", "turn_default"));
    let (profile, network) = (rules("p.rules", "read-only"), rules("n.rules", "network"));
    for (work, promise, rules) in [
        ("judged by the server, answer Run", "<= 1.20", &judged),
        ("escalated, Unsandboxed", "<= 1.8", &outside),
        ("escalated, TurnDefault", "-", &turn),
        ("escalated, Permissions, with the network", "<= 2.0", &network),
        ("escalated, Permissions, all namespaces", "<= 2.8", &profile),
    ] {
        line(work, promise, &pairs(|| plain(&loops), || gated(rules, &loops)), ratio, "x");
    }
    if Path::new("/usr/bin/bwrap").exists() {
        // The same in bubblewrap's terms: everything read-only, its own processes, no network.
        let bwrap =
            format!("repeat {EXECS} bwrap --unshare-all --ro-bind / / --dev /dev --proc /proc /bin/true");
        let measured = pairs(|| plain(&bwrap), || gated(&profile, &loops));
        line("the same against plain zsh running bwrap", "<= 0.5", &measured, ratio, "x");
    } else {
        println!("bwrap is not installed: its line is left out");
    }
    let starts = pairs(
        || time(world.plain_command(installed_stock()).args(["-fc", "true"])),
        || time(world.posternsh().args(["-fc", "true"])),
    );
    line("start and end of a shell, added", "<= 3 ms", &starts, added, " ms");
    line("configure of zsh, by zsh (one pair)", "<= 1.05", &[configure(&world)], ratio, "x");
    println!("{EXECS} execs a run, {PAIRS} pairs a line");
}

/// The unpacked source configured by a shell that is called sh: plain zsh, and ours in a session.
fn configure(world: &World) -> (Took, Took) {
    let tarball =
        Command::new(postern_tests::checkout().join("zsh-patches/fetch")).output().expect("fetch runs");
    let tarball = postern_tests::stdout(&tarball);
    let run = |name: &str, zsh: &Path, session: bool| {
        let directory = world.workspace.join(name);
        std::fs::create_dir(&directory).expect("a directory");
        let unpacked = Command::new("tar")
            .args(["-xJf", &tarball, "--strip-components=1", "--no-same-owner", "-C"])
            .arg(&directory)
            .status();
        assert!(unpacked.is_ok_and(|status| status.success()));
        let shell = world.root.join(format!("{name}-bin"));
        std::fs::create_dir(&shell).expect("a directory");
        let shell = shell.join("sh");
        std::os::unix::fs::symlink(zsh, &shell).expect("a link");
        let script = format!(
            "cd {}; CONFIG_SHELL={1} {1} ./configure --with-tcsetpgrp > log 2>&1",
            directory.display(),
            shell.display()
        );
        let mut command = if session { world.posternsh() } else { world.plain_command(installed_stock()) };
        time(command.args(["-fc", &script]))
    };
    let plain = run("plain", &installed_stock(), false);
    let gated = run("gated", &postern_tests::prefix().join("libexec/postern/zsh"), true);
    (plain, gated)
}
