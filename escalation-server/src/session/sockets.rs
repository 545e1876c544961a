//! System calls that the server answers in the kernel's place: a request socket for who has closed
//! the inherited one, and connections to the sockets that a profile names.
//!
//! A thread that waits for an answer can change what its call points at, so that nothing is let through
//! here: what was looked at is what is used. (Of a command that is held to a script, [`scripts`] answers.)

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::launch::real;
use super::scripts::{self, Script};
use super::server::{Session, inode};
use crate::profile::Resolved;
use crate::sys::notify::{self, Call};
use crate::sys::{process, socket};

/// How many connections a session makes at once; a daemon that does not accept keeps one waiting.
pub(super) const CONNECTIONS: usize = 64;
/// How long a connection is waited for before it is looked whether anybody waits for it.
const TURN: Duration = Duration::from_millis(200);
/// How many calls are answered before the session's other work has its turn.
const BATCH: usize = 16;

/// Answers the calls that come from one command and what it starts, until the last of them has ended.
/// `gate` is the request socket of their context, if they have one; `script` what the command is held to.
pub(super) async fn serve(
    session: Rc<Session>,
    listener: OwnedFd,
    gate: Option<OwnedFd>,
    script: Option<Arc<Script>>,
) {
    let context = gate.and_then(|gate| {
        let profile = session.profile_by_gate(inode(&gate).ok()?)?;
        Some(Context { session, gate, profile, seen: Rc::default() })
    });
    let listener = Arc::new(listener);
    match (context, script) {
        (context, Some(script)) => {
            let (others, mut calls) = tokio::sync::mpsc::unbounded_channel();
            if let Err(error) = scripts::watch(script, Arc::clone(&listener), others) {
                // Whoever calls gets ENOSYS.
                return tracing::warn!(%error, "system calls are not answered");
            }
            while let Some(call) = calls.recv().await {
                match &context {
                    Some(context) => answer(context, &listener, call),
                    None => drop(notify::respond(&*listener, &call, libc::ENOSYS)),
                }
            }
        }
        (Some(context), None) => serve_sockets(&context, listener).await,
        (None, None) => {}
    }
}

/// Whose calls are answered.
struct Context {
    session: Rc<Session>,
    gate: OwnedFd,
    profile: Rc<Resolved>,
    /// The sockets that the command has connected to.
    seen: Seen,
}

async fn serve_sockets(context: &Context, listener: Arc<OwnedFd>) {
    let Ok(listener) = socket::watch(listener) else { return };
    while let Ok(mut ready) = listener.readable().await {
        for _ in 0..BATCH {
            if !socket::readable(listener.get_ref()) {
                if socket::hung_up(listener.get_ref()) {
                    return;
                }
                ready.clear_ready();
                break;
            }
            match notify::receive(listener.get_ref()) {
                Ok(call) => answer(context, listener.get_ref(), call),
                // The thread was killed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever calls gets ENOSYS from now on.
                Err(error) => return tracing::warn!(%error, "system calls are not answered any more"),
            }
        }
        tokio::task::yield_now().await;
    }
}

type Seen = Rc<RefCell<BTreeSet<PathBuf>>>;

fn answer(context: &Context, listener: &Arc<OwnedFd>, call: Call) {
    let Context { session, gate, profile, seen } = context;
    // That the caller is gone is no matter.
    if i64::from(call.number) == libc::SYS_socket {
        if let Err(error) = notify::respond_with(listener, &call, gate, true) {
            // Its table of descriptors may be full.
            let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
            let _gone = notify::respond(listener, &call, errno);
        }
    } else if i64::from(call.number) != libc::SYS_connect {
        let _gone = notify::respond(listener, &call, libc::ENOSYS);
    } else if let Ok(permit) = Arc::clone(&session.connections).try_acquire_owned() {
        let connecting = Connecting {
            call,
            listener: Arc::clone(listener),
            named: profile.unix_sockets.clone(),
            network: profile.network,
        };
        tokio::task::spawn_local(connect(Rc::clone(session), connecting, Rc::clone(seen), permit));
    } else {
        let _gone = notify::respond(listener, &call, libc::EAGAIN);
    }
}

/// A connect(2) that waits for its answer.
struct Connecting {
    call: Call,
    listener: Arc<OwnedFd>,
    named: Vec<PathBuf>,
    network: bool,
}

/// Connects, which may take long, on another thread. The first connection of a command to each
/// socket is recorded.
async fn connect(
    session: Rc<Session>,
    connecting: Connecting,
    seen: Seen,
    permit: tokio::sync::OwnedSemaphorePermit,
) {
    let thread = connecting.call.thread;
    let Ok(connected) = tokio::task::spawn_blocking(move || {
        let connected = connecting.carry_out();
        drop(permit);
        connected
    })
    .await
    else {
        return;
    };
    if let Some(path) = connected
        && seen.borrow_mut().insert(path.clone())
    {
        let path = crate::flow::text::to_json(path.as_os_str().as_bytes());
        let _unrecorded =
            session.recorder.session_event("connected", &json!({ "path": path, "pid": thread }));
    }
}

impl Connecting {
    /// The socket of a daemon that was connected to, if it was one.
    fn carry_out(&self) -> Option<PathBuf> {
        let result = self.connect();
        let errno = result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EACCES));
        let _gone = notify::respond(&*self.listener, &self.call, errno);
        result.ok().flatten()
    }

    fn connect(&self) -> io::Result<Option<PathBuf>> {
        let error = |errno| Err(io::Error::from_raw_os_error(errno));
        let [number, address, length, ..] = self.call.arguments;
        let (least, most) =
            (size_of::<libc::sa_family_t>() as u64, size_of::<libc::sockaddr_storage>() as u64);
        if !(least..=most).contains(&length) {
            return error(libc::EINVAL);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        if read_memory(self.call.thread, address, &mut bytes).is_err() {
            return error(libc::EFAULT);
        }
        let pidfd = process::pidfd_open_thread(self.call.thread.cast_signed())
            .or_else(|_| process::pidfd_open(process_of(self.call.thread)?))?;
        let socket = process::take_fd(&pidfd, number as i32)?;
        if !notify::is_valid(&*self.listener, &self.call) {
            return error(libc::ESRCH);
        }
        match socket::domain(&socket)? {
            libc::AF_UNIX => self.connect_to_named(&socket, &bytes).map(Some),
            libc::AF_INET | libc::AF_INET6 if self.network => {
                self.connect_in_turns(&socket, &bytes).map(|()| None)
            }
            _ => error(libc::EACCES),
        }
    }

    /// Connects, and gives up once nobody waits for it any more: a peer that does not answer would
    /// keep a killed process's connection for ever.
    fn connect_in_turns(&self, socket: &OwnedFd, address: &[u8]) -> io::Result<()> {
        if socket::is_nonblocking(socket) {
            return socket::connect(socket, address);
        }
        let patience = socket::send_timeout(socket)?;
        let began = Instant::now();
        socket::set_send_timeout(socket, TURN)?;
        let connected = loop {
            match socket::connect(socket, address) {
                // What connect(2) says when its time is over, by family.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINPROGRESS))
                        && (patience.is_zero() || began.elapsed() < patience)
                        && notify::is_valid(&*self.listener, &self.call) => {}
                other => break other,
            }
        };
        socket::set_send_timeout(socket, patience)?;
        connected
    }

    fn connect_to_named(&self, socket: &OwnedFd, address: &[u8]) -> io::Result<PathBuf> {
        let refused = || io::Error::from_raw_os_error(libc::EACCES);
        let (family, path) = address.split_at(size_of::<libc::sa_family_t>());
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        // An abstract address begins with a zero byte, and leaves no path.
        if family != (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes() || !path.is_absolute() {
            return Err(refused());
        }
        let named = real(path);
        let named = self.named.iter().find(|allowed| **allowed == named).ok_or_else(refused)?;
        let at = process::open_exactly(&std::ffi::CString::new(named.as_os_str().as_bytes())?)?;
        let exactly = format!("/proc/self/fd/{}\0", at.as_raw_fd());
        self.connect_in_turns(socket, &[family, exactly.as_bytes()].concat())?;
        Ok(named.clone())
    }
}

/// Reads memory of a thread, by ptrace(2)'s rules.
fn read_memory(thread: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    std::fs::File::open(format!("/proc/{thread}/mem"))?.read_exact_at(buffer, address)
}

/// The process that a thread belongs to.
fn process_of(thread: u32) -> io::Result<i32> {
    let status = process::status(&thread.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|text| text.trim().parse().ok()).ok_or_else(|| io::ErrorKind::NotFound.into())
}
