//! What the tests share: a world of their own for each test, and a session in it.
//!
//! Tests use the built prefix in `target/postern` through its programs, and nothing else. Run as
//! root they do everything twice, as root and as an ordinary user that they create; run as an
//! ordinary user, what needs root says that it is skipped.

use std::ffi::OsStr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Who a test runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    Ourselves,
    /// The user that the tests create.
    Ordinary {
        uid: u32,
        gid: u32,
    },
}

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the checkout")
}

/// Plain zsh, from the same source, installed where every user can run it.
pub fn installed_stock() -> PathBuf {
    let zsh = checkout().join("target/zsh-stock-installed/bin/zsh");
    zsh.canonicalize().expect("plain zsh is built by `make stock-zsh`")
}

pub fn is_root() -> bool {
    // An ordinary user cannot see this directory's content.
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// The users to test as. The ordinary one is created once, and kept for later runs.
pub fn users() -> Vec<User> {
    static USERS: OnceLock<Vec<User>> = OnceLock::new();
    USERS
        .get_or_init(|| {
            if !is_root() {
                eprintln!("SKIPPED as root: the tests run as an ordinary user");
                return vec![User::Ourselves];
            }
            const NAME: &str = "postern-test";
            let number = |flag: &str| {
                let output = Command::new("id").args([flag, NAME]).output().expect("id runs");
                String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok()
            };
            if number("-u").is_none() {
                let made = Command::new("useradd")
                    .args(["--system", "--no-create-home", "--shell", "/bin/sh", NAME])
                    .status();
                assert!(made.is_ok_and(|status| status.success()), "useradd {NAME}");
            }
            let (uid, gid) = (number("-u").expect("a uid"), number("-g").expect("a gid"));
            vec![User::Ourselves, User::Ordinary { uid, gid }]
        })
        .clone()
}

/// A copy of the built prefix that every user can execute, made once a test program.
pub fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let built = checkout().join("target/postern");
        assert!(built.join("bin/postern").exists(), "target/postern is not built: run `make`");
        let copy = fresh_directory("prefix");
        let copied = Command::new("cp").arg("-a").arg(built).arg(&copy).status().expect("cp runs");
        assert!(copied.success(), "cp");
        copy.join("postern")
    })
}

fn fresh_directory(what: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Not below /tmp, which sandboxes may write.
    let base = Path::new("/var/tmp/postern-tests");
    std::fs::create_dir_all(base).expect("a directory below /var/tmp");
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("{}-{next}-{what}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return path,
            // An earlier program of the same pid left it.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

/// A home, a workspace that is a git repository, and a place that no sandbox may write.
#[derive(Debug)]
pub struct World {
    pub user: User,
    pub root: PathBuf,
    pub workspace: PathBuf,
    pub outside: PathBuf,
}

impl World {
    pub fn new(user: User) -> Self {
        let root = fresh_directory("world");
        let (workspace, outside) = (root.join("ws"), root.join("outside"));
        let world = Self { user, root, workspace, outside };
        for path in [&world.workspace, &world.outside, &world.root.join("home"), &world.root.join("state")] {
            std::fs::create_dir(path).expect("a directory");
        }
        world.own();
        let made = world.plain(
            "sh",
            &["-c", "git init -q . && git config user.name t && git config user.email t@example.invalid && git commit -q --allow-empty -m start"],
        );
        assert!(made.status.success(), "git init: {}", text(&made.stderr));
        world
    }

    /// Gives everything to the user, but for what its sessions are at work on.
    pub fn own(&self) {
        if let User::Ordinary { uid, gid } = self.user {
            let owner = format!("{uid}:{gid}");
            let mut find = Command::new("find");
            find.arg(&self.root).arg("-path").arg(self.root.join("state/*")).arg("-prune");
            find.args(["-o", "-exec", "chown", "-h", &owner, "{}", "+"]);
            // What a session that still lingers takes away is no loss.
            eventually("everything is the user's", || find.status().is_ok_and(|status| status.success()));
        }
    }

    /// Writes a file below the world's root.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root.join(name);
        std::fs::write(&path, content).expect("write a file");
        self.own();
        path
    }

    /// A skill of the project's own with a script `run`, which is returned: nobody trusts it yet.
    pub fn project_skill(&self, name: &str, declares: &str, script: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.workspace.join(".agents/skills").join(name);
        let run = directory.join("scripts/run");
        std::fs::create_dir_all(directory.join("scripts")).expect("a directory");
        let front = format!("---\nname: {name}\ndescription: d\n{declares}---\n");
        std::fs::write(directory.join("SKILL.md"), front).expect("write a file");
        std::fs::write(&run, script).expect("write a file");
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        self.own();
        run
    }

    /// Trusts what a project says, as it is.
    pub fn trust(&self, project: &Path) {
        let shown = finish(self.postern().arg("trust").arg(project));
        let hash = stdout(&shown).rsplit(' ').next().unwrap_or_default().to_owned();
        let done = finish(self.postern().args(["trust", "--accept", &hash]).arg(project));
        assert!(done.status.success(), "{} {}", text(&shown.stderr), text(&done.stderr));
    }

    fn prepared(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("HOME", self.root.join("home"))
            .env("XDG_STATE_HOME", self.root.join("state"))
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm")
            .current_dir(&self.workspace)
            .stdin(Stdio::null());
        if let User::Ordinary { uid, gid } = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs something as the world's user, without Postern.
    pub fn plain(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Output {
        self.prepared(program).args(arguments).output().expect("a program runs")
    }

    pub fn plain_command(&self, program: impl AsRef<OsStr>) -> Command {
        self.prepared(program)
    }

    /// `postern` itself, to be given arguments.
    pub fn postern(&self) -> Command {
        self.prepared(prefix().join("bin/postern"))
    }

    /// `posternsh`, which takes zsh's arguments.
    pub fn posternsh(&self) -> Command {
        self.prepared(prefix().join("bin/posternsh"))
    }

    /// Runs a script in a session with these rules; they may be empty. Nobody is asked.
    pub fn session(&self, rules: &str, script: &str) -> Output {
        let mut command = self.postern();
        command.args(["--on-prompt", "deny"]);
        if !rules.is_empty() {
            command.arg("--rules").arg(self.write("test.rules", rules));
        }
        finish(command.args(["--", "-fc", script]))
    }

    /// The records so far, oldest first. Waits until the last session has written its end.
    pub fn records(&self) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let output = finish(self.postern().args(["log", "--json"]));
            let lines: Vec<Value> = text(&output.stdout)
                .lines()
                .map(|line| serde_json::from_str(line).expect("each line is one JSON object"))
                .collect();
            let starts = lines.iter().filter(|line| line["event"] == "started").count();
            let ends = lines.iter().filter(|line| line["event"] == "ended").count();
            if starts == ends || Instant::now() > deadline {
                return lines;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The record of the one command whose `argv[0]` ends in this.
    pub fn record(&self, program: &str) -> Value {
        let records = self.records();
        let mut found = records.iter().filter(|line| {
            line["claimed"]["argv"][0].as_str().is_some_and(|zeroth| zeroth.ends_with(program))
        });
        let first = found.next().unwrap_or_else(|| panic!("no record of {program} in {records:#?}")).clone();
        assert!(found.next().is_none(), "more than one record of {program}");
        first
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _left = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// Runs to the end, at most a minute.
pub fn finish(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program starts");
    let id = child.id();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _gone = Command::new("kill").args(["-9", &id.to_string()]).status();
        }
    });
    let output = child.wait_with_output().expect("its output is read");
    drop(done);
    watchdog.join().expect("the watchdog ends");
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn stdout(output: &Output) -> String {
    text(&output.stdout).trim_end().to_owned()
}

/// How a process ended, as a shell would put it.
pub fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0))
}

/// Runs a test once for each user.
pub fn for_each_user(test: impl Fn(&World)) {
    for user in users() {
        eprintln!("as {user:?}");
        test(&World::new(user));
    }
}

/// Waits until something holds, at most ten seconds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process with this id lives and is no zombie.
pub fn lives(pid: i64) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(|&byte| byte == b')').next().unwrap_or_default().to_vec();
    !stat.is_empty() && !matches!(after.get(1), Some(b'Z' | b'X'))
}
