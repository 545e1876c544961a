//! How a spawner comes to be: executed first, told later, so that it starts while the front prepares.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use postern_shim::wire::Bytes;

use super::channel::Channel;
use super::message::{FrontReport, terminated};
use super::spawner::Begin;
use crate::sys::process::{self, Fork, Image};

/// Of which sources this is. What the front and the spawner tell each other is understood by one build.
pub(super) const BUILD: &str = env!("POSTERN_BUILD");

/// A spawner that waits to be told what to begin with. Dropped before that, it is gone when that returns.
#[derive(Debug)]
pub(crate) struct NewSpawner {
    pid: i32,
    /// Until it begins.
    channels: Option<(Channel, Channel)>,
}

impl NewSpawner {
    /// Executes the spawner.
    ///
    /// # Errors
    /// If a socket or a fork is not to be had. Where it cannot be executed the front is told so.
    pub(crate) fn start(program: &Path) -> io::Result<Self> {
        let path = CString::new(program.as_os_str().as_bytes())?;
        let (front, front_theirs) = Channel::pair()?;
        let (server, server_theirs) = Channel::pair()?;
        let text = |number: i32| Bytes(number.to_string().into_bytes());
        let numbers = [&front_theirs, &server_theirs].map(|channel| text(channel.as_raw_fd()));
        let words = [super::SPAWNER, BUILD].map(|word| Bytes(word.as_bytes().to_vec()));
        let argv = terminated(&[&words[..], &numbers].concat())?;
        if let Fork::Parent(pid) = process::fork()? {
            return Ok(Self { pid, channels: Some((front, server)) });
        }
        // Kept across the exec.
        let kept =
            [&front_theirs, &server_theirs].map(|channel| process::place(channel, channel.as_raw_fd()));
        let error = match kept.into_iter().collect::<io::Result<()>>() {
            // Nothing of the caller's environment is for it: what it starts is told its own.
            Ok(()) => process::execute(&Image::Path(&path), argv.as_slice(), &[]),
            Err(error) => error,
        };
        let what = format!("execute {}: {error}; run `make`, or reinstall", program.display());
        let _told = front_theirs.send(&FrontReport::Failed { what }, &[]);
        process::exit_now(126)
    }

    /// Lets it begin. What is returned is its process, the front's channel to it and the server's.
    ///
    /// # Errors
    /// If it cannot be told. One that is gone is noticed by its end.
    pub(crate) fn begin(
        mut self,
        begin: &Begin,
        gate: &OwnedFd,
        go: &OwnedFd,
    ) -> io::Result<(i32, Channel, Channel)> {
        let (front, server) = self.channels.take().ok_or(io::ErrorKind::NotConnected)?;
        match front.send(begin, &[gate.as_fd(), go.as_fd()]) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok((self.pid, front, server)),
        }
    }
}

impl Drop for NewSpawner {
    fn drop(&mut self) {
        if self.channels.take().is_some() {
            let _ended = process::wait_for(self.pid);
        }
    }
}
