//! The conversation with one asker: its request comes in, answers go out, its waiter's signals come
//! back.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use postern_shim::wire::{self, Answer, Kind, Notice};
use tokio::io::unix::AsyncFd;

use crate::sys::socket::{self, Message};

/// A connection that a process of the session made for one exec.
#[derive(Debug)]
pub(super) struct Asker {
    socket: Rc<OwnedFd>,
    /// Most askers have written before their socket gets here and are answered once: only for the
    /// others does the runtime have to look.
    watched: OnceCell<AsyncFd<Rc<OwnedFd>>>,
}

impl Asker {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket: Rc::new(socket), watched: OnceCell::new() }
    }

    fn watched(&self) -> io::Result<&AsyncFd<Rc<OwnedFd>>> {
        if let Some(watched) = self.watched.get() {
            return Ok(watched);
        }
        let watched = socket::watch(Rc::clone(&self.socket))?;
        Ok(self.watched.get_or_init(|| watched))
    }

    /// The next message.
    ///
    /// # Errors
    /// As recvmsg(2).
    pub(super) async fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Message> {
        loop {
            match socket::receive(&self.socket, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let mut ready = self.watched()?.readable().await?;
            // Cleared only where nothing is there, or what came in between would wait for ever.
            match socket::receive(&self.socket, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                other => return other,
            }
        }
    }

    /// The next signal that came to the waiter.
    ///
    /// # Errors
    /// If the waiter is gone, or sends anything else.
    pub(super) async fn notice(&self) -> io::Result<Notice> {
        let mut buffer = Vec::with_capacity(128);
        let _no_descriptors = self.receive(&mut buffer).await?;
        wire::decode(Kind::Notice, &buffer).map_err(io::Error::other)
    }

    /// Sends an answer. A peer that cannot take it is gone or hostile, and gets an end of file instead.
    pub(super) fn answer(&self, answer: Answer<'_>) {
        let mut frame = [0; wire::MAX_REASON + 64];
        if let Ok(length) = wire::encode(Kind::Answer, &answer, &mut frame) {
            let _gone = socket::send(&self.socket, frame.get(..length).unwrap_or_default(), &[]);
        }
    }

    /// Tells somebody who has to wait what for.
    pub(super) fn waiting(&self, text: &str) {
        self.answer(Answer::Waiting { text: cut(text) });
    }

    /// Denies, for a reason that is cut where it is too long for a message.
    pub(super) fn deny(&self, reason: &str) {
        self.answer(Answer::Deny { reason: cut(reason) });
    }
}

/// As much of a text as a message has room for.
fn cut(text: &str) -> &[u8] {
    let mut end = text.len().min(wire::MAX_REASON - 16);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().as_bytes()
}

impl AsFd for Asker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
