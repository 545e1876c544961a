//! The control socket: where people at other terminals see what waits, and answer.
//!
//! Whoever types commands in a session never answers for it: a peer that descends from any session is
//! refused, by the kernel's word on who it is.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::unistd::{Uid, User, geteuid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::server::Session;
use crate::approval::{Choice, Order, Reply};
use crate::flow::text::printable;
use crate::runner::{SPAWNER, parent_of};
use crate::sys::{process, socket};

/// How long somebody may take to say what is wanted.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// Doors that may be open at once.
const MOST: usize = 64;
/// The longest order, in bytes.
const LONGEST: u64 = 4096;

/// Where the sockets of a user's sessions are.
pub(crate) fn directory(state: &Path) -> PathBuf {
    state.join("control")
}

/// The path of a session's socket, however long the real one is (unix(7) allows 108 bytes): through a
/// descriptor of its directory, which must stay open meanwhile.
pub(crate) fn short(directory: &impl AsRawFd, id: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{id}", directory.as_raw_fd()))
}

/// What proves that somebody may answer: a secret in the state directory, which no sandbox can read.
/// Made by the first who needs it.
///
/// # Errors
/// If it can neither be read nor made.
pub(crate) fn token(state: &Path) -> io::Result<String> {
    let path = state.join("operator-token");
    let read = || std::fs::read_to_string(&path).map(|text| text.trim().to_owned());
    match read() {
        Ok(token) if token.len() == 64 => return Ok(token),
        Ok(_) => {
            let what = format!("{} is damaged: remove it, and start the sessions anew", path.display());
            return Err(io::Error::other(what));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let random = blake3::Hash::from_bytes(draw::<32>()?);
    // Complete when it gets its name, and the first one stays.
    let own = state.join(format!("operator-token.{}", std::process::id()));
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&own)?;
    file.write_all(random.to_hex().as_bytes())?;
    let named = std::fs::hard_link(&own, &path);
    std::fs::remove_file(&own)?;
    match named {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => read(),
    }
}

fn draw<const COUNT: usize>() -> io::Result<[u8; COUNT]> {
    let mut random = [0; COUNT];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random)
}

/// An id for a prompt, short enough to be typed.
pub(super) fn prompt_id() -> String {
    let [a, b, c] = draw().unwrap_or_else(|_| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let [a, b, c, _] = now.subsec_nanos().to_le_bytes();
        [a, b, c]
    });
    format!("{a:02x}{b:02x}{c:02x}")
}

/// A session's socket; gone when dropped.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    token: String,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

impl Control {
    /// Opens a session's socket, and takes away what sessions have left that were killed.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub(super) fn open(state: &Path, id: &str) -> io::Result<Self> {
        let directory = directory(state);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let handle = std::fs::File::open(&directory)?;
        for entry in std::fs::read_dir(&directory)?.flatten() {
            let name = entry.file_name();
            let refused = std::os::unix::net::UnixStream::connect(short(&handle, &name.to_string_lossy()));
            if refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                let _gone = std::fs::remove_file(entry.path());
            }
        }
        let listener = UnixListener::bind(short(&handle, id))?;
        Ok(Self { listener, path: directory.join(id), token: token(state)? })
    }

    /// Serves whoever comes, for ever.
    pub(super) async fn serve(self, session: Rc<Session>) {
        let control = Rc::new(self);
        let doors = std::sync::Arc::new(tokio::sync::Semaphore::new(MOST));
        loop {
            let Ok((stream, _)) = control.listener.accept().await else {
                // Out of descriptors: whoever holds them will let some go.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            // One more has to try again.
            let Ok(door) = std::sync::Arc::clone(&doors).try_acquire_owned() else { continue };
            let (control, session) = (Rc::clone(&control), Rc::clone(&session));
            tokio::task::spawn_local(async move {
                let _door = door;
                let _gone = control.converse(&session, stream).await;
            });
        }
    }

    async fn converse(&self, session: &Session, stream: UnixStream) -> io::Result<()> {
        let admitted = admit(&stream);
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader.take(LONGEST));
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, lines.read_line(&mut line)).await??;
        let order = serde_json::from_str::<Order>(&line).map_err(|error| format!("not an order: {error}"));
        let order = admitted.and_then(|by| order.map(|order| (by, order))).and_then(|(by, order)| {
            // Hashes are compared, so that how long it takes says nothing.
            let hash = |text: &str| blake3::hash(text.as_bytes());
            let same = hash(order.token()) == hash(&self.token);
            if same { Ok((by, order)) } else { Err("the token is not this user's operator token".to_owned()) }
        });
        let done = |result: Result<(), String>| match result {
            Ok(()) => Reply::Done,
            Err(what) => Reply::Refused(what),
        };
        match order {
            Err(what) => say(&mut writer, &Reply::Refused(what)).await,
            Ok((by, Order::Answer { prompt, choice, .. })) => {
                // Written before anything runs: if it cannot be, the question stands.
                let kept = if choice == Choice::Rule { session.amend(&prompt, &by) } else { Ok(()) };
                let answered = kept.and_then(|()| session.desk.answer(&prompt, choice, &by));
                if answered.is_ok() && choice == Choice::Abort {
                    session.interrupt_shell();
                }
                say(&mut writer, &done(answered)).await
            }
            Ok((_, Order::Revoke { grant, .. })) => {
                let revoked = session.desk.revoke(&grant);
                session.lapse().await;
                say(&mut writer, &done(revoked)).await
            }
            Ok((_, Order::Watch { .. })) => {
                let mut changes = session.desk.changes();
                loop {
                    say(&mut writer, &Reply::State(session.state())).await?;
                    let mut rest = String::new();
                    tokio::select! {
                        _ = changes.changed() => {}
                        // Whoever watches says nothing more.
                        _ = lines.read_line(&mut rest) => return Ok(()),
                    }
                }
            }
        }
    }
}

async fn say(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_string(reply).map_err(io::Error::other)?;
    line.push('\n');
    writer.write_all(line.as_bytes()).await
}

/// Who is at the other end, if it may answer.
fn admit(stream: &UnixStream) -> Result<String, String> {
    let error = |error: io::Error| format!("the kernel does not tell who asks: {error}");
    let peer = socket::peer(stream).map_err(error)?;
    let pidfd = socket::peer_pidfd(stream).map_err(error)?;
    if peer.uid != geteuid().as_raw() && peer.uid != 0 {
        return Err("only the session's own user answers for it".to_owned());
    }
    stands_outside(peer.pid)?;
    // Another process may have had its number meanwhile.
    let gone = |error: io::Error| error.raw_os_error() == Some(libc::ESRCH);
    if process::pidfd_signal(&pidfd, 0).is_err_and(gone) {
        return Err(UNSEEN.to_owned());
    }
    let user = User::from_uid(Uid::from_raw(peer.uid)).ok().flatten();
    let name = user.map_or_else(|| format!("uid {}", peer.uid), |user| printable(user.name.as_bytes()));
    Ok(format!("{name}, pid {}", peer.pid))
}

const UNSEEN: &str = "it cannot be seen who asks";

/// Whether a process descends from no session.
///
/// # Errors
/// It does, or that cannot be seen.
pub(super) fn stands_outside(pid: i32) -> Result<(), String> {
    const DEEPEST: usize = 4096;
    let mut at = pid;
    for _ in 0..DEEPEST {
        if at <= 0 {
            break;
        }
        let name = std::fs::read_to_string(format!("/proc/{at}/comm")).unwrap_or_default();
        if name.trim_end() == SPAWNER {
            let inside =
                "a session's own commands do not answer for it: run this from outside, in another terminal";
            return Err(inside.to_owned());
        }
        let Some(parent) = parent_of(at) else { return Err("whoever asks has gone".to_owned()) };
        at = parent;
    }
    // Pid 0 is somebody in another namespace.
    if pid <= 0 || at != 0 { Err(UNSEEN.to_owned()) } else { Ok(()) }
}
