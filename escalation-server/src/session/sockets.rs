//! System calls that the server answers in the kernel's place: a request socket for who has closed
//! the inherited one, and connections to the sockets that a profile names.
//!
//! A thread that waits for an answer can change what its call points at, so that nothing is ever let
//! through: what was looked at here is what is used here.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::json;

use super::launch::real;
use super::server::{Session, inode};
use crate::sys::notify::{self, Call};
use crate::sys::{process, socket};

/// How many connections are made at once; a daemon that does not accept keeps one waiting.
const MOST: usize = 64;

/// Answers the calls that come from one sandboxed command and what it starts, until the last of them
/// has ended. `gate` is the request socket of their context.
pub(super) async fn serve(session: Rc<Session>, listener: OwnedFd, gate: OwnedFd) {
    let Some(profile) = inode(&gate).ok().and_then(|inode| session.profile_by_gate(inode)) else { return };
    let Ok(listener) = socket::watch(Arc::new(listener)) else { return };
    let open = Rc::new(());
    let seen = Rc::default();
    while let Ok(mut ready) = listener.readable().await {
        while socket::readable(listener.get_ref()) {
            // The thread may have been killed meanwhile.
            let Ok(call) = notify::receive(listener.get_ref()) else { continue };
            if i64::from(call.number) == libc::SYS_socket {
                let _gone = notify::respond_with(listener.get_ref(), &call, &gate);
                continue;
            }
            if Rc::strong_count(&open) > MOST {
                let _gone = notify::respond(listener.get_ref(), &call, libc::EAGAIN);
                continue;
            }
            let connecting = Connecting {
                call,
                listener: Arc::clone(listener.get_ref()),
                named: profile.unix_sockets.clone(),
                network: profile.network,
            };
            tokio::task::spawn_local(answer(
                Rc::clone(&session),
                connecting,
                Rc::clone(&seen),
                Rc::clone(&open),
            ));
        }
        if socket::hung_up(listener.get_ref()) {
            return;
        }
        ready.clear_ready();
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
async fn answer(
    session: Rc<Session>,
    connecting: Connecting,
    seen: Rc<std::cell::RefCell<BTreeSet<PathBuf>>>,
    _open: Rc<()>,
) {
    let thread = connecting.call.thread;
    let Ok(connected) = tokio::task::spawn_blocking(move || connecting.carry_out()).await else { return };
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
        // The longest address of any family that there is here is `sockaddr_un`.
        if !(size_of::<libc::sa_family_t>() as u64..=size_of::<libc::sockaddr_un>() as u64).contains(&length)
        {
            return error(libc::EINVAL);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        notify::read_memory(self.call.thread, address, &mut bytes)?;
        let pidfd = process::pidfd_open(process_of(self.call.thread)?)?;
        let socket = notify::take_fd(&pidfd, number as i32)?;
        if !notify::is_valid(&*self.listener, &self.call) {
            return error(libc::ESRCH);
        }
        match socket::domain(&socket)? {
            libc::AF_UNIX => self.connect_to_named(&socket, &bytes).map(Some),
            libc::AF_INET | libc::AF_INET6 if self.network => notify::connect(&socket, &bytes).map(|()| None),
            _ => error(libc::EACCES),
        }
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
        notify::connect(socket, &[family, exactly.as_bytes()].concat())?;
        Ok(named.clone())
    }
}

/// The process that a thread belongs to.
fn process_of(thread: u32) -> io::Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|text| text.trim().parse().ok()).ok_or_else(|| io::ErrorKind::NotFound.into())
}
