//! What the server, the spawner, the front and new processes tell each other. All are of one build, which
//! the spawner makes sure of, so there is nothing to negotiate.

use std::io;

use postern_shim::wire::Bytes;
use serde::{Deserialize, Serialize};

use crate::profile::Resolved;

/// Where a command runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Target {
    /// Without a sandbox.
    Outside,
    /// In the turn's sandbox.
    Turn,
    /// In a sandbox of this profile in which nothing else runs.
    Profile(String),
}

/// Which file becomes the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Image {
    /// The descriptor that comes along.
    Descriptor,
    /// The file at this path, if it is the very one that was judged.
    Exact { path: Bytes, dev: u64, ino: u64 },
    /// A script at this path: the kernel hands its interpreter a path. Checked like `Exact`.
    Script { path: Bytes, dev: u64, ino: u64 },
}

/// Which directory it runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cwd {
    /// The descriptor that comes along.
    Descriptor,
    /// The directory at this path, if it is the very one that was asked from.
    Exact { path: Bytes, dev: u64, ino: u64 },
}

/// Strings as an exec takes them, each with a NUL after it: the spawner, which has no use for them, and
/// the process that becomes the command copy them as a whole.
///
/// # Errors
/// If there is a NUL in one: it would be two.
pub(crate) fn terminated(strings: &[Bytes]) -> io::Result<Bytes> {
    let mut all = Vec::with_capacity(strings.iter().map(|string| string.as_slice().len() + 1).sum());
    for string in strings {
        all.extend_from_slice(string.as_slice());
        all.push(0);
    }
    let whole = all.iter().filter(|&&byte| byte == 0).count() == strings.len();
    if whole { Ok(Bytes(all)) } else { Err(io::Error::other("a string with a NUL byte in it")) }
}

/// A command whose files the server finds by their names ([`Report::Served`]), from its exec on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Names {
    /// Whether its process gives up to become another user by an exec, as one in a sandbox always does.
    pub(crate) no_new_privileges: bool,
}

/// A command to start. With it come the waiter's connection, then the executable's descriptor, then the
/// socket by which the command's process is told to [`Go`], then the directory's descriptor if `cwd` says
/// so, then the request socket if `gate` does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) id: u64,
    pub(crate) target: Target,
    /// What allowed it. No sandbox is used for one approval after another.
    pub(crate) approval: String,
    pub(crate) image: Image,
    pub(crate) names: Option<Names>,
    pub(crate) cwd: Cwd,
    /// See [`terminated`].
    pub(crate) argv: Bytes,
    /// Who asked and now waits.
    pub(crate) waiter: i32,
    /// It gets more than its asker has: clamp what it inherits.
    pub(crate) wider: bool,
    /// The number that the request socket gets.
    pub(crate) gate: Option<i32>,
    /// Inodes of the request sockets of every context: no command gets another's.
    pub(crate) gates: Vec<u64>,
    /// Whether the spawner tells the waiter how it ended, and nobody has to be asked before that.
    pub(crate) tells_end: bool,
}

/// From the server to the process that has all but this to become the command: the decision is on record.
/// An end in place of it means that it is not.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go {
    /// See [`terminated`].
    pub(crate) env: Bytes,
    pub(crate) inherited: Inherited,
}

/// What a plain exec would have kept of the asker's process, by the kernel's word: what it could not set as it likes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Inherited {
    /// Soft and hard, in the kernel's order.
    pub(crate) limits: Vec<(u64, u64)>,
    pub(crate) nice: i32,
}

/// From the spawner to a process that stands by: become this command. The descriptors of its
/// [`Start`] come with it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Become {
    pub(super) start: Start,
    /// Where it may run, if it was kept off a processor to be woken: see [`crate::sys::process::keep_off`].
    pub(super) processors: Option<Vec<u8>>,
    /// The asker has left our session, or is gone from it.
    pub(super) own_session: bool,
    /// The sandbox's first process is covering something more; wait for it.
    pub(super) covered: bool,
}

/// From the first process of a sandbox to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromInit {
    /// Nobody needs the sandbox any more, and something still runs in it.
    Lingers,
    /// And nothing runs in it any more.
    Empty,
    /// Somebody outside replaced what is covered here; it is covered again.
    Covered { path: Bytes, gap_us: u64 },
    /// And what is there now cannot be covered.
    Uncovered { path: Bytes, what: String },
    /// The answer to [`ToInit::Recover`] with this number: whatever was there to be covered is.
    Recovered(u32),
}

/// From the spawner to the first process of a sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToInit {
    /// Make these read-only in it.
    Cover(Vec<Bytes>),
    /// Cover what is not covered any more, and answer with this number.
    Recover(u32),
}

/// From the server to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    Start(Box<Start>),
    /// There is one more profile.
    Define(Box<Resolved>),
    /// What runs under these profiles ends.
    Lapse {
        profiles: Vec<String>,
    },
    Signal {
        id: u64,
        signal: i32,
        from_outside: bool,
    },
    /// The waiter is gone: the command and all it started end.
    Kill {
        id: u64,
    },
    /// The session ends.
    End,
}

/// From the spawner to the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Left out where it has ended already.
    Started {
        id: u64,
        pid: i32,
    },
    /// The kernel would not execute it.
    Refused {
        id: u64,
        errno: i32,
    },
    /// Something before that failed.
    Failed {
        id: u64,
        what: String,
    },
    Stopped {
        id: u64,
        number: u32,
        signal: i32,
    },
    Continued {
        id: u64,
        number: u32,
    },
    Ended {
        id: u64,
        /// Numbers and kinds of the descriptors that it started with.
        fds: Vec<(u32, String)>,
        status: i32,
        user_us: u64,
        sys_us: u64,
        maxrss_kb: u64,
    },
    /// A cover in the turn's sandbox, or another's, was gone for so long.
    Covered {
        path: Bytes,
        gap_us: u64,
    },
    /// What is there now cannot be covered.
    Uncovered {
        path: Bytes,
        what: String,
    },
    /// A process is about to start whose calls the server answers: the shell (0), or a command. With it
    /// come the listener and, if it has one, the request socket of its context.
    Served {
        id: u64,
    },
    ShellStarted {
        pid: i32,
    },
    ShellEnded {
        status: i32,
    },
}

/// From the front to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FrontOrder {
    Signal {
        signal: i32,
        by_kernel: bool,
    },
    /// The front was continued after it had stopped for the shell.
    Continue,
}

/// From the spawner and the server to the front.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FrontReport {
    /// The session could not be started.
    Failed {
        what: String,
    },
    Stopped,
    /// The session ends, since its time is over.
    TimedOut,
    Ended {
        status: i32,
    },
}

/// From a new process to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChildReport {
    /// From whoever becomes the command. Which process that is the kernel says.
    Here,
    /// From whoever made a PID namespace: its first process and the command's, as the spawner sees them.
    Made {
        init: i32,
        command: i32,
    },
    /// The next thing is the exec. With it comes what goes with [`Report::Served`], if anything.
    Ready {
        fds: Vec<(u32, String)>,
    },
    Refused {
        errno: i32,
    },
    Failed {
        what: String,
    },
}
