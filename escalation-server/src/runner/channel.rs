//! A socket that carries values between the processes of a session.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use postern_shim::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::socket::Message;
use crate::sys::{process, socket};

/// A `SOCK_SEQPACKET` end that carries packed values.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// Bytes of a value that goes without a memfd. The allocator merges all that is free whenever 64 KiB come
/// back to it, and after a fork each page that it touches for that is copied.
const MOST_INLINE: usize = 16 * 1024;
const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

impl Channel {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        socket::pair().map(|(one, other)| (Self(one), Self(other)))
    }

    /// The end that this process was executed with, by its number; none if it has none there.
    pub(super) fn inherited(number: i32) -> Option<Self> {
        process::adopt(number).ok().filter(|fd| socket::is_seqpacket(fd)).map(Self)
    }

    /// Moves this end to the lowest free number that is at least `least`.
    pub(super) fn move_up(&mut self, least: i32) -> io::Result<()> {
        self.0 = process::move_up(self.0.try_clone()?, least)?;
        Ok(())
    }

    /// Sends a value, in a memfd if it is large. Does not wait: `WouldBlock` if the peer is slow.
    pub(crate) fn send<T: Serialize>(&self, value: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packed = wire::pack(value).map_err(io::Error::other)?;
        if packed.len() < MOST_INLINE {
            return socket::send(&self.0, &[&[INLINE][..], &packed].concat(), fds);
        }
        let memory = socket::memfd(c"postern-order")?;
        io::Write::write_all(&mut std::fs::File::from(memory.try_clone()?), &packed)?;
        let fds: Vec<_> = fds.iter().copied().chain([memory.as_fd()]).collect();
        socket::send(&self.0, &[IN_MEMFD], &fds)
    }

    /// A pair of which this end is told by the kernel who sent what it receives, until it sends itself.
    pub(super) fn pair_telling_senders() -> io::Result<(Self, Self)> {
        let (ours, theirs) = Self::pair()?;
        socket::tell_senders(&ours.0, true)?;
        Ok((ours, theirs))
    }

    /// Is not told any more.
    pub(super) fn tell_no_senders(&self) -> io::Result<()> {
        socket::tell_senders(&self.0, false)
    }

    /// The next value, or none at the end. `WouldBlock` if there is none yet.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        Ok(self.receive_message()?.map(|(value, message)| (value, message.fds)))
    }

    /// As [`Self::receive`], with all that came with it.
    pub(super) fn receive_message<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Message)>> {
        let mut buffer = Vec::with_capacity(MOST_INLINE);
        let mut received = socket::receive(&self.0, &mut buffer);
        if received.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
            // The peer has ended without reading all: told once, before what it had sent.
            received = socket::receive(&self.0, &mut buffer);
        }
        let mut message = received?;
        let Some((&tag, inline)) = buffer.split_first() else {
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
            wire::unpack(&content)
        } else {
            wire::unpack(inline)
        };
        Ok(Some((value.map_err(io::Error::other)?, message)))
    }
}

impl Channel {
    /// Sends nothing more: the other end sees the end, and may still answer.
    pub(super) fn finish(&self) {
        let _gone = socket::finish(&self.0);
    }

    /// Whether somebody holds the other end.
    pub(super) fn is_open(&self) -> bool {
        !socket::hung_up(&self.0)
    }
}

impl From<OwnedFd> for Channel {
    /// The end that came with a message.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_who_sends_until_it_is_not_asked_any_more() {
        let (ours, theirs) = Channel::pair_telling_senders().unwrap();
        let sender = || {
            theirs.send(&7u8, &[]).unwrap();
            ours.receive_message::<u8>().unwrap().unwrap().1.sender
        };
        assert_eq!(sender(), Some(std::process::id().cast_signed()));
        ours.tell_no_senders().unwrap();
        assert_eq!(sender(), None);
    }
}
