//! A script that the sandbox can write, held to the bytes that were asked about.
//!
//! The kernel hands an interpreter a path. Whatever is done to that path from inside, its interpreter,
//! and whatever else the command starts, gets the copy where it opens it: the server answers these calls.
//! What it does not answer itself it lets the kernel carry out, which is safe since whoever makes the calls
//! is what was approved; the adversary is who writes the file.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use postern_shim::wire::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::hashbang::Hashbang;
use super::intake;
use super::rerun::reopen;
use crate::flow::text::{printable, to_json};
use crate::flow::{Executable, Request};
use crate::profile::Reach;
use crate::runner::{Image, Names};
use crate::sandbox::Abilities;
use crate::sys::notify::{self, Call};
use crate::sys::{process, socket};

/// A script as it was when it was asked about.
#[derive(Debug)]
pub(super) struct Script {
    /// A sealed copy.
    copy: OwnedFd,
    /// Its own path, free of symlinks, by which its interpreter is told of it. Not the one by which it was
    /// started: with links in it, its text could be made that of any other file.
    path: PathBuf,
    /// Device and inode of the directory that it lies in.
    directory: (u64, u64),
    /// The program that reads it, where no sandbox can change it.
    interpreter: PathBuf,
    /// How its process is prepared.
    pub(super) process: Names,
}

/// What an interpreter is started with.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) image: Image,
    pub(super) argv: Vec<Bytes>,
}

/// Whether the server can answer the calls of a command, and how its process is prepared for that.
/// `confined` is whether it gets a sandbox, which no privilege leaves anyway.
///
/// # Errors
/// Why not, for the asker's stderr.
pub(super) fn names(abilities: &Abilities, confined: bool) -> Result<Names, String> {
    const CANNOT: &str =
        "the sandbox can write this script, and what runs cannot be held to what is approved";
    if !abilities.listener {
        return Err(format!("{CANNOT}: around this session somebody else answers system calls already"));
    }
    let looks = if confined { abilities.connects } else { abilities.looks };
    if !looks {
        return Err(format!(
            "{CANNOT}: kernel.yama.ptrace_scope keeps Postern from seeing which files a command opens"
        ));
    }
    Ok(Names { no_new_privileges: confined || !abilities.privileged })
}

impl Script {
    /// A script of which there is a copy, and how it is started.
    ///
    /// # Errors
    /// If the copy is no script, or a sandbox could make its interpreter another program.
    pub(super) fn of(
        request: &Request,
        exe: &Executable,
        copy: OwnedFd,
        reach: &Reach,
        process: Names,
    ) -> Result<(Self, Started), String> {
        let text = |error: io::Error| format!("look at the script: {error}");
        let first = intake::head(&reopen(&copy).map_err(text)?);
        let line = Hashbang::of(&first);
        if line.is_none() && (first.starts_with(b"\x7fELF") || first.contains(&0)) {
            return Err("it is not the script any more that was asked for".to_owned());
        }
        // No `#!`: what a shell does then is to run it with sh, and so do we.
        let named = line.as_ref().map_or(Path::new("/bin/sh"), |line| &line.interpreter);
        let steady =
            intake::interpreter(named, reach).and_then(|last| Some((last, intake::leads(named, reach)?)));
        let Some((last, first)) = steady else {
            return Err(format!(
                "there is no interpreter {}, or the sandbox can write it, or what leads to it",
                printable(named.as_os_str().as_bytes())
            ));
        };
        let file = first.symlink_metadata().map_err(text)?;
        let (path, dev, ino) = (bytes(&first), file.dev(), file.ino());
        // One that is a script itself has its own interpreter found by the kernel, past nothing that a
        // sandbox could change.
        let image =
            if first == last { Image::Exact { path, dev, ino } } else { Image::Script { path, dev, ino } };
        let mut argv = match &line {
            Some(line) => vec![bytes(named)].into_iter().chain(line.argument.clone().map(Bytes)).collect(),
            None => vec![Bytes(b"sh".to_vec())],
        };
        argv.push(bytes(&exe.path));
        argv.extend(request.argv.iter().skip(1).cloned());

        let parent = exe.path.parent().ok_or("it has no directory")?;
        let parent = parent.symlink_metadata().map_err(text)?;
        let script = Self {
            copy,
            path: exe.path.clone(),
            directory: (parent.dev(), parent.ino()),
            interpreter: last,
            process,
        };
        Ok((script, Started { image, argv }))
    }

    /// What a person should know before answering.
    pub(super) fn caveats(&self) -> String {
        let directory = self.path.parent().unwrap_or(&self.path);
        let mut text = format!(
            "what it sources, imports, loads or starts from where the sandbox can write, as beside it in {}: that \
             is read as it is by then. Nor can it execute itself by its name",
            printable(directory.as_os_str().as_bytes())
        );
        if self.process.no_new_privileges {
            text.push_str(". It gets no privileges by an exec either: sudo and the like do not work in it");
        }
        text
    }

    /// As records have it.
    pub(super) fn recorded(&self) -> Value {
        json!({
            "interpreter": to_json(self.interpreter.as_os_str().as_bytes()),
            "no_new_privs": self.process.no_new_privileges,
        })
    }

    /// Where a path lies from here. One that is not this script's by its text may still be it by another
    /// way to its directory: `resolved` says which directory a path is in.
    fn relation(&self, path: &Path, resolved: impl FnOnce() -> Option<(u64, u64)>) -> Relation {
        let text = lexical(path);
        if text == self.path {
            return Relation::Same;
        }
        if text.starts_with(&self.path) {
            return Relation::Below;
        }
        if self.path.starts_with(&text) {
            return Relation::Above;
        }
        let called = path.file_name().is_some() && path.file_name() == self.path.file_name();
        if called && resolved() == Some(self.directory) {
            return Relation::Same;
        }
        Relation::None
    }
}

/// How a path stands to a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    None,
    /// A directory on the script's own way.
    Above,
    Same,
    /// What would be in it if it were a directory.
    Below,
}

fn bytes(path: &Path) -> Bytes {
    Bytes(path.as_os_str().as_bytes().to_vec())
}

/// A path without `.` and `..`, by its text alone: what the sandbox makes of a directory on the way does
/// not count.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// What a call wants of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// With these flags (open(2)).
    Open(u64),
    Execute,
    Link,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The kernel carries it out.
    Proceed,
    Copy {
        close_on_exec: bool,
    },
    Refuse(i32),
}

/// What becomes of a call about a path that stands so to the script.
fn answer(wants: Wants, relation: Relation) -> Answer {
    match (wants, relation) {
        (_, Relation::None) => Answer::Proceed,
        (Wants::Open(flags), Relation::Same) => open(flags),
        // Its own path had no link in it when it was judged.
        (Wants::Link, Relation::Same | Relation::Above) => Answer::Refuse(libc::EINVAL),
        (_, Relation::Above) => Answer::Proceed,
        // The kernel would read the first line from the file as it is by then.
        (Wants::Execute, Relation::Same | Relation::Below) => Answer::Refuse(libc::EACCES),
        // It was a file. An interpreter that finds a directory may run what lies in it.
        (Wants::Open(_) | Wants::Link, Relation::Below) => Answer::Refuse(libc::ENOTDIR),
    }
}

/// What becomes of an open of the script: nobody reads what the file has become.
fn open(flags: u64) -> Answer {
    let flags = flags as i32;
    let has = |flag: i32| flags & flag == flag;
    let close_on_exec = has(libc::O_CLOEXEC);
    if has(libc::O_PATH) {
        return if has(libc::O_DIRECTORY) {
            Answer::Refuse(libc::ENOTDIR)
        } else {
            Answer::Copy { close_on_exec }
        };
    }
    match flags & libc::O_ACCMODE {
        // Written, it is another file's content that begins.
        libc::O_WRONLY => Answer::Proceed,
        libc::O_RDWR if has(libc::O_TRUNC) || has(libc::O_CREAT | libc::O_EXCL) => Answer::Proceed,
        libc::O_RDONLY if has(libc::O_TMPFILE) || has(libc::O_DIRECTORY) => Answer::Refuse(libc::ENOTDIR),
        libc::O_RDONLY if has(libc::O_CREAT | libc::O_EXCL) => Answer::Refuse(libc::EEXIST),
        libc::O_RDONLY if !has(libc::O_TRUNC) => Answer::Copy { close_on_exec },
        _ => Answer::Refuse(libc::EACCES),
    }
}

/// Answers the calls of a command and what it starts, on a thread of its own, until the last of them has
/// ended: they are many, and reading what they point at may take long. Calls of other kinds go to `others`.
///
/// # Errors
/// If there is no thread to be had.
pub(super) fn watch(
    script: Arc<Script>,
    listener: Arc<OwnedFd>,
    others: UnboundedSender<Call>,
) -> io::Result<()> {
    let mut supervisor = Supervisor { script, listener, others, started: false };
    let thread = std::thread::Builder::new().name("postern-script".to_owned()).stack_size(256 << 10);
    thread.spawn(move || supervisor.serve()).map(drop)
}

struct Supervisor {
    script: Arc<Script>,
    listener: Arc<OwnedFd>,
    others: UnboundedSender<Call>,
    /// Whether the interpreter's own exec is over.
    started: bool,
}

impl Supervisor {
    fn serve(&mut self) {
        notify::take_turns(&*self.listener);
        while socket::wait_readable(&*self.listener) {
            match notify::receive(&*self.listener) {
                Ok(call) => self.take(&call),
                // The thread was killed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever calls gets ENOSYS from now on.
                Err(error) => return tracing::warn!(%error, "system calls are not answered any more"),
            }
        }
    }

    fn take(&mut self, call: &Call) {
        let Some(asked) = Asked::of(call) else {
            // The other end is there as long as this one, or nobody gets an answer.
            let _ending = self.others.send(*call);
            return;
        };
        // The first is the spawner's child, which hides its memory: it executes what was decided.
        let answer = if asked.is_exec() && !std::mem::replace(&mut self.started, true) {
            Answer::Proceed
        } else {
            asked.look(&self.script).unwrap_or_else(|error| {
                // What cannot be seen is not let through.
                Answer::Refuse(error.raw_os_error().unwrap_or(libc::EACCES))
            })
        };
        // What was read by the number of a thread that has ended meanwhile may be another's.
        if !notify::is_valid(&*self.listener, call) {
            return;
        }
        // That the caller is gone by now is no matter.
        let _gone = match answer {
            Answer::Proceed => notify::proceed(&*self.listener, call),
            Answer::Refuse(errno) => notify::respond(&*self.listener, call, errno),
            Answer::Copy { close_on_exec } => self.hand_out(call, close_on_exec),
        };
    }

    /// A description of its own, at the beginning of the copy.
    fn hand_out(&self, call: &Call, close_on_exec: bool) -> io::Result<()> {
        let handed = File::open(format!("/proc/self/fd/{}", self.script.copy.as_raw_fd()))
            .and_then(|file| notify::respond_with(&*self.listener, call, file, close_on_exec));
        handed.or_else(|error| {
            // Its table of descriptors may be full.
            notify::respond(&*self.listener, call, error.raw_os_error().unwrap_or(libc::EMFILE))
        })
    }
}

/// A call about a path.
#[derive(Debug, Clone, Copy)]
struct Asked {
    thread: u32,
    /// The descriptor that a relative path begins at.
    at: i32,
    path: u64,
    wants: Wants,
    /// Where the flags of an open are (`struct open_how`), if not in the call.
    how: Option<u64>,
}

impl Asked {
    /// None if it is of another kind.
    fn of(call: &Call) -> Option<Self> {
        let [first, second, third, ..] = call.arguments;
        let asked =
            |at: u64, path, wants| Some(Self { thread: call.thread, at: at as i32, path, wants, how: None });
        let here = libc::AT_FDCWD as u64;
        match i64::from(call.number) {
            libc::SYS_openat => asked(first, second, Wants::Open(third)),
            libc::SYS_openat2 => {
                asked(first, second, Wants::Open(0)).map(|asked| Self { how: Some(third), ..asked })
            }
            libc::SYS_execve => asked(here, first, Wants::Execute),
            libc::SYS_execveat => asked(first, second, Wants::Execute),
            libc::SYS_readlinkat => asked(first, second, Wants::Link),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => asked(here, first, Wants::Open(second)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_readlink => asked(here, first, Wants::Link),
            _ => None,
        }
    }

    fn is_exec(&self) -> bool {
        self.wants == Wants::Execute
    }

    /// # Errors
    /// As the call is to end: what it points at cannot be read.
    fn look(&self, script: &Script) -> io::Result<Answer> {
        let path = self.read_path()?;
        if path.is_empty() {
            // About the descriptor itself.
            return Ok(Answer::Proceed);
        }
        let path = PathBuf::from(OsStr::from_bytes(&path));
        let relation = script.relation(&self.absolute(&path), || self.directory_of(&path));
        if relation == Relation::None {
            return Ok(Answer::Proceed);
        }
        let wants = match self.how {
            Some(how) => Wants::Open(self.read_flags(how)?),
            None => self.wants,
        };
        Ok(answer(wants, relation))
    }

    /// The path, up to its end; an address that nothing can be read at is the caller's own mistake.
    fn read_path(&self) -> io::Result<Vec<u8>> {
        const PAGE: u64 = 4096; // or more, which only costs another round
        let mut path = Vec::new();
        while path.len() < libc::PATH_MAX as usize {
            let from = self.path.wrapping_add(path.len() as u64);
            let mut part = vec![0; usize::try_from(PAGE - from % PAGE).unwrap_or_default()];
            let got = process::read_memory(self.thread, from, &mut part)?;
            let part = part.get(..got).filter(|part| !part.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
            match part.iter().position(|&byte| byte == 0) {
                Some(end) => {
                    path.extend_from_slice(part.get(..end).unwrap_or_default());
                    return Ok(path);
                }
                None => path.extend_from_slice(part),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// The flags of a `struct open_how`, which begins with them.
    fn read_flags(&self, how: u64) -> io::Result<u64> {
        let mut flags = [0; 8];
        let got = process::read_memory(self.thread, how, &mut flags)?;
        if got == flags.len() {
            Ok(u64::from_ne_bytes(flags))
        } else {
            Err(io::Error::from_raw_os_error(libc::EFAULT))
        }
    }

    /// The link that leads to where a relative path begins.
    fn base(&self) -> PathBuf {
        let process = PathBuf::from(format!("/proc/{}", self.thread));
        if self.at == libc::AT_FDCWD { process.join("cwd") } else { process.join(format!("fd/{}", self.at)) }
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        if path.is_absolute() {
            return path.to_path_buf();
        }
        // A directory that is none any more has no path that a script could have.
        std::fs::read_link(self.base()).map_or_else(|_| path.to_path_buf(), |base| base.join(path))
    }

    /// Device and inode of the directory that a path's last part is in, as the caller would find it.
    fn directory_of(&self, path: &Path) -> Option<(u64, u64)> {
        let parent = path.parent()?;
        let found = match parent.strip_prefix("/") {
            Ok(below) => PathBuf::from(format!("/proc/{}/root", self.thread)).join(below),
            Err(_) => self.base().join(parent),
        };
        let found = found.metadata().ok()?;
        Some((found.dev(), found.ino()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Script {
        Script {
            copy: socket::memfd(c"copy").unwrap(),
            path: "/w/bin/deploy".into(),
            directory: (7, 9),
            interpreter: "/bin/sh".into(),
            process: Names { no_new_privileges: true },
        }
    }

    #[test]
    fn a_script_is_known_by_its_path_and_by_its_directory() {
        let script = script();
        let same = Relation::Same;
        for (path, directory, relation) in [
            ("/w/bin/deploy", None, same),
            ("/w/./bin//x/../deploy", None, same),
            ("/w/bin/deploy/__main__.py", None, Relation::Below),
            ("/w/bin", None, Relation::Above),
            ("/", None, Relation::Above),
            ("/w/bin/deployed", None, Relation::None),
            ("/other/deploy", None, Relation::None),
            ("/other/deploy", Some((7, 8)), Relation::None),
            ("/other/deploy", Some((7, 9)), same),
            ("/other/link", Some((7, 9)), Relation::None),
            ("/w/binary", Some((7, 9)), Relation::None),
        ] {
            assert_eq!(script.relation(Path::new(path), || directory), relation, "{path}");
        }
    }

    #[test]
    fn nobody_gets_what_the_file_has_become() {
        let same = Relation::Same;
        let copy = |close_on_exec| Answer::Copy { close_on_exec };
        for (flags, expected) in [
            (libc::O_RDONLY, copy(false)),
            (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW, copy(true)),
            (libc::O_RDONLY | libc::O_CREAT, copy(false)),
            (libc::O_PATH | libc::O_CLOEXEC, copy(true)),
            (libc::O_PATH | libc::O_DIRECTORY, Answer::Refuse(libc::ENOTDIR)),
            (libc::O_DIRECTORY, Answer::Refuse(libc::ENOTDIR)),
            (libc::O_RDWR, Answer::Refuse(libc::EACCES)),
            (libc::O_RDWR | libc::O_CREAT, Answer::Refuse(libc::EACCES)),
            (libc::O_RDWR | libc::O_TRUNC, Answer::Proceed),
            (libc::O_WRONLY, Answer::Proceed),
            (libc::O_ACCMODE, Answer::Refuse(libc::EACCES)),
            (libc::O_RDONLY | libc::O_TRUNC, Answer::Refuse(libc::EACCES)),
        ] {
            assert_eq!(answer(Wants::Open(flags as u64), same), expected, "{flags:#o}");
        }
        let refused = Answer::Refuse;
        assert_eq!(answer(Wants::Execute, same), refused(libc::EACCES));
        assert_eq!(answer(Wants::Execute, Relation::Below), refused(libc::EACCES));
        assert_eq!(answer(Wants::Execute, Relation::Above), Answer::Proceed);
        assert_eq!(answer(Wants::Link, same), refused(libc::EINVAL));
        assert_eq!(answer(Wants::Link, Relation::Above), refused(libc::EINVAL));
        assert_eq!(answer(Wants::Open(0), Relation::Below), refused(libc::ENOTDIR));
        for wants in [Wants::Open(0), Wants::Execute, Wants::Link] {
            assert_eq!(answer(wants, Relation::None), Answer::Proceed);
        }
    }

    /// What `asks` finds on a thread whose calls are answered for a script at this path, or by nobody.
    fn asked_about<T: Send + 'static>(
        path: &Path,
        copy: &[u8],
        answered: bool,
        asks: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let memory = socket::memfd(c"copy").unwrap();
        io::Write::write_all(&mut File::from(memory.try_clone().unwrap()), copy).unwrap();
        let parent = path.parent().unwrap().metadata().unwrap();
        let script = Script {
            copy: memory,
            path: path.to_path_buf(),
            directory: (parent.dev(), parent.ino()),
            ..script()
        };
        let (others, _none) = tokio::sync::mpsc::unbounded_channel();
        let (hand_over, handed) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // A filter is a thread's own, and of those that it starts.
            hand_over.send(crate::sandbox::listen_to_names(true).unwrap()).unwrap();
            released.recv().unwrap();
            asks()
        });
        let listener = Arc::new(handed.recv().unwrap());
        if answered {
            watch(Arc::new(script), Arc::clone(&listener), others).unwrap();
        }
        drop(listener);
        release.send(()).unwrap();
        thread.join().unwrap()
    }

    #[test]
    fn the_copy_is_what_is_read_and_nothing_is_once_nobody_answers() {
        let directory = std::env::temp_dir().join(format!("postern-scripts-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (path, beside) = (directory.join("script"), directory.join("beside"));
        std::fs::write(&path, "disk").unwrap();
        std::fs::write(&beside, "beside").unwrap();
        let read = {
            let (path, beside) = (path.clone(), beside.clone());
            move || {
                let text = |path: &Path| std::fs::read_to_string(path).map_err(|error| error.raw_os_error());
                let path_only = File::options().read(true).open(path.join("below"));
                (text(&path), text(&beside), path_only.unwrap_err().raw_os_error(), std::fs::read_link(&path))
            }
        };
        let (script, other, below, link) = asked_about(&path, b"copy", true, read.clone());
        assert_eq!((script, other), (Ok("copy".to_owned()), Ok("beside".to_owned())));
        assert_eq!((below, link.unwrap_err().raw_os_error()), (Some(libc::ENOTDIR), Some(libc::EINVAL)));
        let (script, other, below, link) = asked_about(&path, b"copy", false, read);
        let nobody = Some(libc::ENOSYS);
        assert_eq!((script, other, below), (Err(nobody), Err(nobody), nobody));
        assert_eq!(link.unwrap_err().raw_os_error(), nobody);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
