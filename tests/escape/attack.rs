//! An attack is run outside a session, where it must succeed, and inside, where it must not.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use postern_tests::{User, World, finish, is_root, prefix, stdout, text};
use serde_json::{Value, json};

/// Attacks by name, in Python, with what `attack.py` gives them and the values in `given`.
pub struct Attacks<'a> {
    world: &'a World,
    names: Vec<String>,
    program: PathBuf,
    list: PathBuf,
}

impl<'a> Attacks<'a> {
    pub fn new<N: AsRef<str>, C: AsRef<str>>(world: &'a World, given: &Value, attacks: &[(N, C)]) -> Self {
        let attacks: Vec<_> = attacks.iter().map(|(name, code)| (name.as_ref(), code.as_ref())).collect();
        let mut all = json!({
            "root": world.root, "outside": world.outside, "workspace": world.workspace,
            "target": world.write("outside/target", "x"),
        });
        all.as_object_mut().unwrap().extend(given.as_object().cloned().unwrap_or_default());
        let program = world.write("attack.py", include_str!("attack.py"));
        let list = world.write("attacks.json", json!({ "given": all, "attacks": attacks }).to_string());
        Self { world, names: attacks.iter().map(|(name, _)| (*name).to_owned()).collect(), program, list }
    }

    pub fn command(&self) -> String {
        format!("python3 {} {}", self.program.display(), self.list.display())
    }

    fn expect(&self, output: &Output, verdict: &str) {
        let out = stdout(output);
        let said: Vec<_> = out.lines().collect();
        let wanted: Vec<_> = self.names.iter().map(|name| format!("{name}\t{verdict}")).collect();
        let other: Vec<_> = said.iter().filter(|line| !wanted.iter().any(|wanted| wanted == *line)).collect();
        assert!(other.is_empty() && said.len() == wanted.len(), "{other:?} {}", text(&output.stderr));
    }

    /// Where nothing defends: each succeeds, or none.
    pub fn outside(&self, succeeds: bool) {
        self.outside_by(succeeds, |command| finish(self.world.plain_command("sh").args(["-c", command])));
    }

    pub fn outside_by(&self, succeeds: bool, shell: impl FnOnce(&str) -> Output) {
        self.expect(&shell(&self.command()), if succeeds { "done" } else { "refused" });
    }

    /// In a session: none succeeds, and nothing outside the workspace is another thing afterwards.
    pub fn inside(&self, session: impl FnOnce(&str) -> Output) {
        let before = self.snapshot();
        let output = session(&self.command());
        self.expect(&output, "refused");
        let after = self.snapshot();
        let changed: Vec<_> = after.symmetric_difference(&before).collect();
        assert!(changed.is_empty(), "{changed:#?}");
    }

    /// Each file that the attacks may try, with its last change of any kind.
    fn snapshot(&self) -> BTreeSet<String> {
        let mut find = Command::new("find");
        find.current_dir(&self.world.root).args(["outside", "home", "ws/.git", "-printf", "%p %i %C@\n"]);
        let found: BTreeSet<_> = stdout(&finish(&mut find)).lines().map(str::to_owned).collect();
        assert!(found.iter().any(|line| line.starts_with("outside/target ")), "{found:?}");
        found
    }
}

/// A session with these arguments runs a command.
pub fn session(world: &World, arguments: &[&str], command: &str) -> Output {
    finish(world.postern().args(arguments).args(["--", "-fc", command]))
}

/// A command runs under the profile `network`.
pub fn networked(world: &World, command: &str) -> Output {
    // Not by `World::write`, which touches everything.
    let rules = world.root.join("network.rules");
    std::fs::write(&rules, "prefix_rule(['python3'], execution = 'network')").unwrap();
    session(world, &["--rules", rules.to_str().unwrap()], command)
}

pub fn attack<N: AsRef<str>, C: AsRef<str>>(world: &World, given: &Value, attacks: &[(N, C)]) {
    let attacks = Attacks::new(world, given, attacks);
    attacks.outside(true);
    attacks.inside(|command| session(world, &[], command));
}

pub fn has_root(world: &World) -> bool {
    is_root() && world.user == User::Ourselves
}

/// As [`attack`], where an ordinary user cannot do it outside either.
pub fn attack_of_root<N: AsRef<str>, C: AsRef<str>>(world: &World, given: &Value, attacks: &[(N, C)]) {
    let attacks = Attacks::new(world, given, attacks);
    attacks.outside(has_root(world));
    attacks.inside(|command| session(world, &[], command));
}

/// A shell is started by a caller that hands in, as its standard input, the descriptor to which this
/// Python comes. To the attacks it is number 9.
pub fn handed(world: &World, descriptor: &str, shell: &Path, script: &str) -> Output {
    let hand =
        format!("import os, socket, sys\nos.dup2({descriptor}, 0)\nos.execv(sys.argv[1], sys.argv[1:])");
    let script = format!("{script} 9<&0 0</dev/null");
    finish(world.plain_command("python3").args(["-c", &hand]).arg(shell).args(["-c", &script]))
}

/// Attacks with something that is handed in.
pub fn attack_handed<C: AsRef<str>>(world: &World, given: &Value, descriptor: &str, attacks: &[(&str, C)]) {
    let attacks = Attacks::new(world, given, attacks);
    attacks.outside_by(true, |script| handed(world, descriptor, Path::new("/bin/bash"), script));
    attacks.inside(|script| handed(world, descriptor, &prefix().join("bin/posternsh"), script));
}

/// A process of a test's own, which ends with it.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub fn running(command: &mut Command) -> Running {
    Running(command.spawn().expect("a program starts"))
}

/// A session whose shell waits for a word before it goes on.
pub struct Waiting {
    pub front: Running,
    pub server: i64,
    pub spawner: i64,
}

impl Waiting {
    pub fn start(world: &World, command: &mut Command, script: &str) -> Self {
        command.args(["--", "-fc", &format!("print ready; read -r _; {script}")]);
        let mut front = running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut ready = [0; 6];
        front.0.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        let log = finish(world.postern().args(["log", "--json"]));
        let log = text(&log.stdout);
        let mut records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let started = records.rfind(|record| record["event"] == "started").unwrap();
        let pid = |name: &str| started[name].as_i64().unwrap();
        Self { front, server: pid("server"), spawner: pid("spawner") }
    }

    /// Says the word, and reads what the script prints to its end.
    pub fn go(&mut self) -> Output {
        let child = &mut self.front.0;
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output { status: child.wait().unwrap(), stdout, stderr }
    }
}

/// Compiles a C program, which lies outside.
pub fn compiled(world: &World, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let (path, from) = (world.outside.join(name), world.write(&format!("outside/{name}.c"), source));
    let output = finish(Command::new("cc").arg("-O1").arg("-o").arg(&path).arg(from).args(options));
    assert!(output.status.success(), "cc: {}", text(&output.stderr));
    world.own();
    path
}
