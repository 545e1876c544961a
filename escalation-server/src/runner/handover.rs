//! What a command's process and the spawner have to do with its asker: descriptors come from there, and
//! its end is told there.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use postern_shim::wire::{self, Answer, Handover, Kind};

use super::enter::{Step, Stop, failed, readable};
use super::message::{Start, Target};
use crate::sys::process::Change;
use crate::sys::{process, socket};

/// What a waiter says of itself, each of which it could set as it likes. See [`Handover`].
pub(super) struct Attributes {
    pub(super) blocked: u64,
    pub(super) ignored: u64,
    pub(super) umask: u32,
}

/// The waiter's descriptors, read here so that the spawner never holds what is not its own, and what it says of
/// itself.
pub(super) fn receive_handover(connection: &OwnedFd) -> Step<(Vec<(i32, OwnedFd)>, Attributes)> {
    let mut handed = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let patience = Some(Duration::from_secs(10));
        if !readable(connection, patience).map_err(failed("wait for the descriptors"))? {
            return Err(Stop::Failed("the descriptors take too long".to_owned()));
        }
        let message = socket::receive(connection, &mut buffer).map_err(failed("receive descriptors"))?;
        if buffer.is_empty() && message.fds.is_empty() {
            let what = "its descriptors cannot be handed over: too many are on their way (ETOOMANYREFS), or /proc is not to be had";
            return Err(Stop::Failed(what.to_owned()));
        }
        let part: Handover = wire::decode(Kind::Handover, &buffer).map_err(failed("descriptors"))?;
        let idle = part.numbers.is_empty() && !part.last;
        if idle || message.truncated || part.numbers.len() != message.fds.len() {
            return Err(Stop::Failed("not all descriptors arrived".to_owned()));
        }
        for (number, fd) in part.numbers.into_iter().zip(message.fds) {
            let number = i32::try_from(number).map_err(failed("a descriptor's number"))?;
            if number >= 1 << 20 || handed.len() >= wire::MAX_HANDOVER {
                return Err(Stop::Failed("too many descriptors, or too high a number".to_owned()));
            }
            handed.push((number, fd));
        }
        if part.last {
            let Handover { blocked, ignored, umask, .. } = part;
            return Ok((handed, Attributes { blocked, ignored, umask }));
        }
    }
}

/// What a waiter is told of an end; none of anything else.
pub(crate) fn answer(change: Change) -> Option<Answer<'static>> {
    match change {
        Change::Exited(code) => Some(Answer::Exited { code }),
        Change::Signaled(signal) => Some(Answer::Signaled { signal }),
        Change::Stopped(_) | Change::Continued => None,
    }
}

/// Tells a waiter. One that is gone needs no answer.
pub(super) fn tell_waiter(connection: &OwnedFd, answer: Answer<'_>) {
    let mut frame = [0; 64];
    if let Ok(length) = wire::encode(Kind::Answer, &answer, &mut frame) {
        let _gone = socket::send(connection, frame.get(..length).unwrap_or_default(), &[]);
    }
}

pub(super) fn kind_of(fd: &impl AsFd) -> &'static str {
    if process::open_flags(fd).is_ok_and(|flags| flags & libc::O_PATH != 0) {
        return "path";
    }
    let mode = nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    match mode {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFCHR if nix::unistd::isatty(fd).unwrap_or(false) => "terminal",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        libc::S_IFIFO => "pipe",
        libc::S_IFSOCK => "socket",
        _ => "other",
    }
}

/// What would lead past a sandbox that has other mounts or no network, and why.
pub(super) fn leads_elsewhere(fd: &impl AsFd) -> Option<&'static str> {
    match kind_of(fd) {
        "directory" | "path" => Some("a directory would lead past the sandbox's mounts"),
        "socket" if !socket::is_connected_stream(fd) => {
            Some("a socket that is not connected could be sent anywhere")
        }
        _ => None,
    }
}

/// A directory of the asker's leads a wider command through the asker's mounts, and a request
/// socket would let it speak for another context.
pub(super) fn passes(fd: &OwnedFd, kind: &str, start: &Start) -> bool {
    match kind {
        "directory" | "path" => start.target == Target::Turn,
        "socket" => nix::sys::stat::fstat(fd).is_ok_and(|stat| !start.gates.contains(&stat.st_ino)),
        _ => true,
    }
}
