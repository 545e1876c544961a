//! Speed, as ratios against plain zsh doing the same work in the same minute.
//!
//! Each line runs pairs, plain and gated in turn, and prints the median of the pairs' ratios with its
//! 95 % interval (order statistics). A promise is kept when the interval's upper end is.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postern_tests::{User, World, installed_stock};

const PAIRS: usize = 21;
const EXECS: u32 = 200;

fn time(command: &mut Command) -> Duration {
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("a program starts");
    assert!(status.success(), "{command:?}: {status}");
    began.elapsed()
}

/// Median and 95 % interval of some values.
fn median(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    let reach = 1.96 * count.sqrt() / 2.0;
    let at = |position: f64| values[(position.max(0.0) as usize).min(values.len() - 1)];
    (at(count / 2.0), at(count / 2.0 - reach), at(count / 2.0 + reach))
}

struct Line {
    work: &'static str,
    promise: &'static str,
    measured: (f64, f64, f64),
    unit: &'static str,
}

fn pairs(mut plain: impl FnMut() -> Duration, mut gated: impl FnMut() -> Duration) -> (Vec<f64>, Vec<f64>) {
    let (mut ratios, mut differences) = (Vec::new(), Vec::new());
    plain();
    gated();
    for _ in 0..PAIRS {
        let (one, other) = (plain().as_secs_f64(), gated().as_secs_f64());
        ratios.push(other / one);
        differences.push((other - one) * 1e3);
    }
    (ratios, differences)
}

fn main() {
    let world = World::new(User::Ourselves);
    let loops = format!("repeat {EXECS} /bin/true");
    let plain = |script: &str| time(world.plain_command(installed_stock()).args(["-fc", script]));
    let gated = |rules: &std::path::Path, script: &str| {
        time(world.postern().arg("--rules").arg(rules).args(["--", "-fc", script]))
    };
    let rules = |name: &str, execution: &str| {
        world.write(
            name,
            format!("prefix_rule([\"true\"], execution = \"{execution}\")\nprefix_rule([\"git\"])\n"),
        )
    };
    let judged = world.write("judged.rules", "prefix_rule([\"git\"])\n");
    let (outside, turn, profile) =
        (rules("o.rules", "unsandboxed"), rules("t.rules", "turn_default"), rules("p.rules", "git"));
    let mut lines = Vec::new();
    for (work, promise, rules) in [
        ("judged by the server, answer Run", "<= 1.20", &judged),
        ("escalated, Unsandboxed", "<= 1.8", &outside),
        ("escalated, TurnDefault", "-", &turn),
        ("escalated, Permissions, all namespaces", "<= 2.8", &profile),
    ] {
        let (mut ratios, _) = pairs(|| plain(&loops), || gated(rules, &loops));
        lines.push(Line { work, promise, measured: median(&mut ratios), unit: "x" });
        print_line(lines.last().expect("just pushed"));
    }
    let (_, mut differences) = pairs(
        || time(world.plain_command(installed_stock()).args(["-fc", "true"])),
        || time(world.posternsh().args(["-fc", "true"])),
    );
    lines.push(Line {
        work: "start and end of a shell, added",
        promise: "<= 3 ms",
        measured: median(&mut differences),
        unit: " ms",
    });
    print_line(lines.last().expect("just pushed"));

    let (ratio, seconds) = configure(&world);
    let mut one = [ratio];
    lines.push(Line {
        work: "configure of zsh, by zsh (one pair)",
        promise: "<= 1.05",
        measured: median(&mut one),
        unit: "x",
    });
    print_line(lines.last().expect("just pushed"));
    println!("configure took {seconds:.1} s under plain zsh; {EXECS} execs a run, {PAIRS} pairs a line");
}

fn print_line(line: &Line) {
    let (middle, low, high) = line.measured;
    let mut text = format!("{:<42} {middle:>6.2}{}", line.work, line.unit);
    let _written = write!(text, "   [{low:.2}, {high:.2}]   promise {}", line.promise);
    println!("{text}");
}

/// The unpacked source configured by a shell that is called sh: plain zsh, and ours in a session.
fn configure(world: &World) -> (f64, f64) {
    let cache = installed_stock();
    assert!(cache.exists());
    let tarball =
        Command::new(postern_tests::checkout().join("zsh-patches/fetch")).output().expect("fetch runs");
    let tarball = postern_tests::stdout(&tarball);
    let run = |name: &str, zsh: &std::path::Path, session: bool| {
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
        time(command.args(["-fc", &script])).as_secs_f64()
    };
    let plain = run("plain", &installed_stock(), false);
    let gated = run("gated", &postern_tests::prefix().join("libexec/postern/zsh"), true);
    (gated / plain, plain)
}
