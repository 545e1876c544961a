//! The server's end of the spawner: orders go out, reports come back to whoever waits for them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::channel::Channel;
use super::message::{Order, Report, Start};
use crate::profile::Resolved;
use crate::sys::socket;

/// Orders for the spawner. One thread's, shared by its tasks.
#[derive(Debug, Clone)]
pub(crate) struct Link(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    channel: AsyncFd<Channel>,
    waiting: RefCell<HashMap<u64, mpsc::UnboundedSender<Report>>>,
}

/// What the spawner says of the session as a whole, with descriptors; ends when the spawner does.
pub(crate) type Reports = mpsc::UnboundedReceiver<(Report, Vec<OwnedFd>)>;

/// A command that was ordered: its reports, and what it can be told.
#[derive(Debug)]
pub(crate) struct Command {
    id: u64,
    link: Link,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Link {
    /// # Errors
    /// If the runtime cannot watch the channel.
    pub(crate) fn new(channel: Channel) -> io::Result<(Self, Reports)> {
        let shared = Shared { channel: socket::watch(channel)?, waiting: RefCell::default() };
        let link = Self(Rc::new(shared));
        let (session, reports) = mpsc::unbounded_channel();
        tokio::task::spawn_local(read(link.clone(), session));
        Ok((link, reports))
    }

    async fn send(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match self.0.channel.get_ref().send(order, fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Watched for that all the time, each order that is read would wake this process.
                    let full = self.0.channel.get_ref().as_fd().try_clone_to_owned()?;
                    let _room = socket::watch_for(full, Interest::WRITABLE)?.writable().await?;
                }
                other => return other,
            }
        }
    }

    /// Orders a command.
    ///
    /// # Errors
    /// If the spawner is gone.
    pub(crate) async fn start(&self, start: Start, fds: &[BorrowedFd<'_>]) -> io::Result<Command> {
        let (sender, reports) = mpsc::unbounded_channel();
        let id = start.id;
        self.0.waiting.borrow_mut().insert(id, sender);
        let command = Command { id, link: self.clone(), reports };
        self.send(&Order::Start(Box::new(start)), fds).await?;
        Ok(command)
    }

    /// Tells of one more profile, for commands that are ordered after it.
    ///
    /// # Errors
    /// If the spawner is gone.
    pub(crate) async fn define(&self, profile: &Resolved) -> io::Result<()> {
        self.send(&Order::Define(Box::new(profile.clone())), &[]).await
    }

    /// Ends what runs under these profiles, with all that it started. A spawner that is gone has.
    pub(crate) async fn lapse(&self, profiles: Vec<String>) {
        let _gone = self.send(&Order::Lapse { profiles }, &[]).await;
    }

    /// Ends the session. A spawner that is gone has ended it.
    pub(crate) async fn end(&self) {
        let _gone = self.send(&Order::End, &[]).await;
    }
}

impl Command {
    /// The next report; none if the spawner is gone.
    pub(crate) async fn report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// Passes a signal on.
    pub(crate) async fn signal(&self, signal: i32, from_outside: bool) {
        let _gone = self.link.send(&Order::Signal { id: self.id, signal, from_outside }, &[]).await;
    }

    /// Ends it and all it started.
    pub(crate) async fn kill(&self) {
        let _gone = self.link.send(&Order::Kill { id: self.id }, &[]).await;
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        self.link.0.waiting.borrow_mut().remove(&self.id);
    }
}

async fn read(link: Link, session: mpsc::UnboundedSender<(Report, Vec<OwnedFd>)>) {
    loop {
        let Ok(mut ready) = link.0.channel.readable().await else { break };
        loop {
            match link.0.channel.get_ref().receive::<Report>() {
                Ok(Some((report, fds))) => {
                    let to = id_of(&report).and_then(|id| link.0.waiting.borrow().get(&id).cloned());
                    // It may be that nobody waits for it any more.
                    let _unread = match to {
                        Some(command) => command.send(report).is_ok(),
                        None => session.send((report, fds)).is_ok(),
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => {
                    link.0.waiting.borrow_mut().clear();
                    return;
                }
            }
        }
        ready.clear_ready();
    }
}

fn id_of(report: &Report) -> Option<u64> {
    match report {
        Report::Started { id, .. }
        | Report::Refused { id, .. }
        | Report::Failed { id, .. }
        | Report::Stopped { id, .. }
        | Report::Continued { id, .. }
        | Report::Ended { id, .. } => Some(*id),
        Report::Covered { .. }
        | Report::Uncovered { .. }
        | Report::Served { .. }
        | Report::ShellStarted { .. }
        | Report::ShellEnded { .. } => None,
    }
}
