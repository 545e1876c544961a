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

/// A spawner that waits to be told what to begin with.
#[derive(Debug)]
pub(crate) struct Waiting {
    pid: i32,
    front: Channel,
    server: Channel,
}

impl Waiting {
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
        let argv = terminated(&[&[Bytes(super::SPAWNER.as_bytes().to_vec())][..], &numbers].concat())?;
        let env = std::env::vars_os()
            .map(|(name, value)| Bytes([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Vec<_>>();
        let env = terminated(&env)?;
        if let Fork::Parent(pid) = process::fork()? {
            return Ok(Self { pid, front, server });
        }
        let kept =
            [&front_theirs, &server_theirs].map(|channel| process::place(channel, channel.as_raw_fd()));
        let error = match kept.into_iter().collect::<io::Result<()>>() {
            Ok(()) => process::execute(&Image::Path(&path), argv.as_slice(), env.as_slice()),
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
        self,
        begin: &Begin,
        gate: &OwnedFd,
        go: &OwnedFd,
    ) -> io::Result<(i32, Channel, Channel)> {
        match self.front.send(begin, &[gate.as_fd(), go.as_fd()]) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok((self.pid, self.front, self.server)),
        }
    }

    /// Lets it go: there is no session.
    pub(crate) fn dismiss(self) {
        drop((self.front, self.server));
        let _ended = process::wait_for(self.pid);
    }
}
