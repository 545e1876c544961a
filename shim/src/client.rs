//! One exec's conversation with the server.

use core::ffi::{CStr, c_int};

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::sys::{self, Errno, Fd, Identity, Memory};
use crate::waiter;
use crate::wire::{self, Answer, ByteSlice, Bytes, Kind, Layer, Plea, Wish};

/// The context's inherited request socket, pinned to the object that it was at start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate {
    fd: c_int,
    identity: Identity,
}

/// What the caller of the hook has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Execute it here.
    Execute,
    /// Report this errno: the file cannot be executed.
    Fail(Errno),
}

/// An exec, borrowed from the process that makes it. The fields stand in the order of
/// [`wire::Request`], which is what they encode to.
#[derive(Debug, Serialize)]
pub(crate) struct Exec<'a, Strings: Serialize, Functions: Serialize> {
    pub(crate) path: ByteSlice<'a>,
    pub(crate) has_cwd: bool,
    pub(crate) context: Context<'a, Functions>,
    pub(crate) argv: Strings,
    pub(crate) env: Strings,
    pub(crate) wish: Option<&'a Wish>,
}

/// See [`wire::ShellContext`].
#[derive(Debug, Serialize)]
pub(crate) struct Context<'a, Functions: Serialize> {
    pub(crate) layer: Layer,
    pub(crate) script: Text<'a>,
    pub(crate) line: u64,
    pub(crate) job: Text<'a>,
    pub(crate) functions: Functions,
}

/// A string of the shell's own: undone from zsh's metafied form and cut while it is encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a>(pub(crate) &'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // zsh's Meta byte: the next byte stands for itself with bit 5 flipped.
        const META: u8 = 0x83;
        let cut = self.0.get(..wire::MAX_TEXT).unwrap_or(self.0);
        if !cut.contains(&META) {
            return serializer.serialize_bytes(cut);
        }
        let mut plain = [0; wire::MAX_TEXT];
        let mut length = 0;
        let mut bytes = self.0.iter();
        while length < plain.len()
            && let Some(&byte) = bytes.next()
        {
            plain[length] = if byte == META { bytes.next().map_or(byte, |next| next ^ 32) } else { byte };
            length += 1;
        }
        serializer.serialize_bytes(plain.get(..length).unwrap_or_default())
    }
}

/// A countable sequence of byte strings that encodes as a list of them.
#[derive(Debug, Clone)]
pub(crate) struct List<I>(pub(crate) I, pub(crate) usize);

impl<T: Serialize, I: Iterator<Item = T> + Clone> Serialize for List<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.1))?;
        for item in self.0.clone() {
            list.serialize_element(&item)?;
        }
        list.end()
    }
}

impl Gate {
    /// The gate on the descriptor `fd`, if that is a socket.
    pub(crate) fn on(fd: c_int) -> Option<Self> {
        let identity = sys::identity(fd).ok()?;
        (identity.kind == libc::S_IFSOCK).then_some(Self { fd, identity })
    }

    /// A gate that nothing passes: the session's socket is not there.
    pub(crate) fn closed(fd: c_int) -> Self {
        Self { fd, identity: Identity { dev: 0, ino: 0, kind: 0 } }
    }

    /// Where a variable names none, the gate of the session that this process is in, if it is in one.
    pub(crate) fn of_session() -> Option<Self> {
        sys::request_socket().ok().map(|_| Self::closed(-1))
    }

    /// The inherited socket's number, if this process has it still.
    fn inherited(&self) -> Option<c_int> {
        (sys::identity(self.fd) == Ok(self.identity)).then_some(self.fd)
    }

    /// Calls `with` with the request socket, which is opened anew if it was closed in this process.
    fn with_socket<T>(&self, with: impl FnOnce(c_int) -> Result<T, Errno>) -> Result<T, Errno> {
        match self.inherited() {
            Some(fd) => with(fd),
            None => with(sys::request_socket()?.raw()),
        }
    }

    /// Opens a connection whose first message is `message`.
    fn connect(&self, message: &[u8], fds: &[c_int]) -> Result<Fd, Errno> {
        let (ours, theirs) = sys::seqpacket_pair()?;
        sys::send(ours.raw(), message, fds)?;
        self.with_socket(|socket| sys::send(socket, b"P", &[theirs.raw()]))?;
        Ok(ours)
    }

    /// The gate on the descriptor that a variable's text names, or the session's.
    fn named(socket: Option<&[u8]>) -> Self {
        let inherited = socket.and_then(sys::parse_decimal).and_then(Self::on);
        inherited.unwrap_or_else(|| Self::closed(-1))
    }

    /// Asks about one exec and does what the answer wants, unless that is to execute it.
    pub(crate) fn ask<'a, S: Serialize, F: Serialize>(
        &self,
        path: &CStr,
        size: usize,
        describe: impl FnOnce(bool) -> Exec<'a, S, F>,
    ) -> Verdict {
        let file = match sys::open_path(path, 0) {
            Ok(file) => file,
            Err(error) => return Verdict::Fail(error),
        };
        // What cannot be executed is never asked about: a PATH walk keeps its errnos.
        match sys::identity(file.raw()) {
            Ok(identity) if identity.kind == libc::S_IFREG => {}
            Ok(_) => return Verdict::Fail(libc::EACCES),
            Err(error) => return Verdict::Fail(error),
        }
        if let Err(error) = sys::executable(&file) {
            return Verdict::Fail(error);
        }
        let cwd = sys::open_path(c".", libc::O_DIRECTORY).ok();
        let connection = match self.request(&file, cwd.as_ref(), size, describe(cwd.is_some())) {
            Ok(connection) => connection,
            Err(libc::E2BIG) => return Verdict::Fail(libc::E2BIG),
            Err(_) => self.lost(path),
        };
        drop((file, cwd));
        self.obey(&connection, path)
    }

    fn request<S: Serialize, F: Serialize>(
        &self,
        file: &Fd,
        cwd: Option<&Fd>,
        size: usize,
        exec: Exec<'_, S, F>,
    ) -> Result<Fd, Errno> {
        // Most fit here, and need no mapping, which takes its time to be made and given back.
        let mut small = [0; 2 * 4096];
        let mut large;
        let buffer = if size <= small.len() {
            &mut small[..]
        } else {
            large = Memory::new(size)?;
            large.as_mut_slice()
        };
        let length = wire::encode(Kind::Request, &exec, buffer).map_err(|_| libc::E2BIG)?;
        let frame = buffer.get(..length).unwrap_or_default();
        let mut fds = [file.raw(), -1, -1];
        let mut count = 1;
        if let Some(cwd) = cwd {
            fds[count] = cwd.raw();
            count += 1;
        }
        if length <= wire::MAX_INLINE {
            return self.connect(frame, &fds[..count]);
        }
        let body = frame.get(wire::HEADER..).unwrap_or_default();
        if body.len() > wire::MAX_REQUEST {
            return Err(libc::E2BIG);
        }
        let payload = sys::sealed_memfd(body)?;
        fds[count] = payload.raw();
        let header = wire::encode_header(Kind::LargeRequest, body.len() as u32);
        self.connect(&header, &fds[..=count])
    }

    fn obey(&self, connection: &Fd, path: &CStr) -> Verdict {
        let mut buffer = [0; wire::MAX_REASON + 64];
        let mut answer = receive_soon(connection, &mut buffer);
        if let Some(Answer::Waiting { text }) = answer {
            sys::complain(&[b"postern: ", text, b"\n"]);
            answer = receive(connection, &mut buffer);
        }
        match answer {
            Some(Answer::Run) => Verdict::Execute,
            Some(Answer::Deny { reason }) => deny(reason),
            Some(Answer::Escalate) => waiter::wait(connection, self.inherited().unwrap_or(-1)),
            _ => self.lost(path),
        }
    }

    /// Nobody answers: closed, with a line that says so.
    fn lost(&self, path: &CStr) -> ! {
        sys::complain(&[
            b"postern: denied: ",
            path.to_bytes(),
            if self.inherited().is_some() {
                b" (the session's server does not answer; start a new session)\n".as_slice()
            } else {
                b" (the session's request socket was closed in this process; keep the descriptor open that POSTERN_SOCKET names)\n"
            },
        ]);
        sys::exit(126)
    }

    /// Whether a server confirms that this process is inside its session.
    pub(crate) fn hello(&self) -> bool {
        let mut frame = [0; wire::HEADER];
        let Ok(length) = wire::encode(Kind::Hello, &(), &mut frame) else { return false };
        let Ok(connection) = self.connect(frame.get(..length).unwrap_or_default(), &[]) else { return false };
        let mut buffer = [0; 64];
        receive(&connection, &mut buffer) == Some(Answer::Welcome)
    }
}

/// Prints the reason and ends the command as every layer does.
pub(crate) fn deny(reason: &[u8]) -> ! {
    sys::complain(&[b"postern: denied: ", reason, b"\n"]);
    sys::exit(126)
}

/// The next answer, or none if the server is gone or talks nonsense.
pub(crate) fn receive<'a>(connection: &Fd, buffer: &'a mut [u8]) -> Option<Answer<'a>> {
    let length = sys::receive(connection.raw(), buffer, true).ok()?;
    wire::decode(Kind::Answer, buffer.get(..length)?).ok()
}

/// The same of an answer that mostly comes soon.
fn receive_soon<'a>(connection: &Fd, buffer: &'a mut [u8]) -> Option<Answer<'a>> {
    let length = sys::receive_soon(connection.raw(), buffer).ok()?;
    wire::decode(Kind::Answer, buffer.get(..length)?).ok()
}

/// Whether the process that calls this is inside a session: the one whose request socket is the
/// descriptor `socket`, the decimal text of [`crate::SOCKET_VARIABLE`], or the one that answers it.
///
/// The socket's maker must be above this process (another PID namespace shows as pid 0) and of its
/// user or root, and a server behind it must confirm by the kernel's word that we descend from it.
#[must_use]
pub fn inside(socket: Option<&[u8]>) -> bool {
    let gate = Gate::named(socket);
    let maker = gate.with_socket(sys::peer);
    maker.is_ok_and(|(_, uid)| uid == 0 || uid == sys::effective_uid()) && gate.hello()
}

/// Asks whether this process may execute a file, for a program inside a session that wants more than it
/// has. `socket` is as for [`inside`]. Returns where the command is to be executed in place; ends the
/// process where it is denied, or ran elsewhere.
///
/// # Errors
/// An errno of execve(2): the file cannot be executed.
pub fn ask(
    socket: Option<&[u8]>,
    path: &CStr,
    argv: &[Bytes],
    env: &[Bytes],
    wish: &Wish,
) -> Result<(), c_int> {
    let list = |strings: &'_ [Bytes]| strings.iter().map(|string| string.as_slice().len() + 9).sum::<usize>();
    let size = 2 * wire::MAX_INLINE + list(argv) + list(env);
    let nothing = Text(b"");
    let verdict = Gate::named(socket).ask(path, size, |has_cwd| Exec {
        path: ByteSlice(path.to_bytes()),
        has_cwd,
        context: Context {
            layer: Layer::Exec,
            script: nothing,
            line: 0,
            job: nothing,
            functions: List(core::iter::empty::<Text<'_>>(), 0),
        },
        argv: List(argv.iter(), argv.len()),
        env: List(env.iter(), env.len()),
        wish: Some(wish),
    });
    match verdict {
        Verdict::Execute => Ok(()),
        Verdict::Fail(errno) => Err(errno),
    }
}

/// Asks for more for every later command of the turn. Returns once it is granted; ends the process with
/// status 126 and the reason on stderr if it is not. `socket` is as for [`inside`].
///
/// # Errors
/// The errno of sendmsg(2), `E2BIG` where the profile is too long to be sent.
pub fn plead(socket: Option<&[u8]>, plea: &Plea) -> Result<(), c_int> {
    let gate = Gate::named(socket);
    let mut memory = Memory::new(wire::MAX_INLINE)?;
    let buffer = memory.as_mut_slice();
    let length = wire::encode(Kind::Plea, plea, buffer).map_err(|_| libc::E2BIG)?;
    let connection = gate.connect(buffer.get(..length).unwrap_or_default(), &[])?;
    match gate.obey(&connection, c"more permissions") {
        Verdict::Execute => Ok(()),
        Verdict::Fail(errno) => Err(errno),
    }
}
