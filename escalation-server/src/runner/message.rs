//! What the server, the spawner, the front and new processes tell each other. All are of one
//! build and one fork, so there is nothing to negotiate.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use postern_shim::wire::{self, Bytes};
use serde::{Deserialize, Serialize};

use crate::sys::socket;

/// Where a command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Target {
    /// Without a sandbox.
    Outside,
    /// In the turn's sandbox.
    Turn,
    /// In a new sandbox of this profile.
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

/// A command to start. With it come the waiter's connection, then the executable's descriptor,
/// then the directory's if `cwd` says so, then the request socket if `gate` does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) id: u64,
    pub(crate) target: Target,
    pub(crate) image: Image,
    pub(crate) cwd: Cwd,
    pub(crate) argv: Vec<Bytes>,
    pub(crate) env: Vec<Bytes>,
    /// Who asked and now waits.
    pub(crate) waiter: i32,
    pub(crate) umask: u32,
    /// Bit n-1 for signal n.
    pub(crate) ignored: u64,
    pub(crate) blocked: u64,
    /// It gets more than its asker has: clamp what it inherits.
    pub(crate) wider: bool,
    /// The number that the request socket gets.
    pub(crate) gate: Option<i32>,
    /// The server's own process.
    pub(crate) server: i32,
}

/// From the server to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    Start(Start),
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
    Started {
        id: u64,
        pid: i32,
        fds: Vec<(u32, String)>,
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
        status: i32,
        user_us: u64,
        sys_us: u64,
        maxrss_kb: u64,
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

/// From the spawner to the front.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FrontReport {
    /// The session could not be started.
    Failed {
        what: String,
    },
    Stopped,
    Ended {
        status: i32,
    },
}

/// From a new process to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChildReport {
    /// Both as the spawner sees them; the first is 0 if there is no new PID namespace.
    Pids {
        init: i32,
        command: i32,
    },
    /// The next thing is the exec.
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

/// A `SOCK_SEQPACKET` end that carries packed values.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

impl Channel {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        socket::pair().map(|(one, other)| (Self(one), Self(other)))
    }

    pub(super) fn adopt(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Sends a value, in a memfd if it is large. Does not wait: `WouldBlock` if the peer is slow.
    pub(crate) fn send<T: Serialize>(&self, value: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packed = wire::pack(value).map_err(io::Error::other)?;
        if packed.len() < wire::MAX_INLINE {
            return socket::send(&self.0, &[&[INLINE][..], &packed].concat(), fds);
        }
        let memory = socket::memfd(c"postern-order")?;
        io::Write::write_all(&mut std::fs::File::from(memory.try_clone()?), &packed)?;
        let fds: Vec<_> = fds.iter().copied().chain([memory.as_fd()]).collect();
        socket::send(&self.0, &[IN_MEMFD], &fds)
    }

    /// The next value, or none at the end. `WouldBlock` if there is none yet.
    pub(crate) fn receive<T: for<'a> Deserialize<'a>>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; wire::MAX_INLINE + 1];
        let mut message = socket::receive(&self.0, &mut buffer)?;
        let Some((&tag, inline)) = buffer.get(..message.length).and_then(<[u8]>::split_first) else {
            return Ok(None);
        };
        if message.truncated {
            return Err(io::Error::other("a message was cut"));
        }
        let value = if tag == IN_MEMFD {
            let memory = message.fds.pop().ok_or_else(|| io::Error::other("a memfd is missing"))?;
            let memory = std::fs::File::from(memory);
            let mut content = vec![0; usize::try_from(memory.metadata()?.len()).map_err(io::Error::other)?];
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut content, 0)?;
            wire::decode_body(&content)
        } else {
            wire::decode_body(inline)
        };
        Ok(Some((value.map_err(io::Error::other)?, message.fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Channel {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}
