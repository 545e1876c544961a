//! Untrusted bytes become a request here and nowhere else. Who asks, from where and for which file
//! is the kernel's word.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use postern_shim::wire::{self, Bytes, Kind, Layer, Plea, ShellContext};

use super::asker::Asker;
use super::hashbang::{Hashbang, LOOKED_AT};
use super::launch::Prepared;
use super::rerun::reopen;
use super::server::Session;
use crate::flow::{Attested, ContextId, Cwd, Executable, FileIdentity, Request, Shape, Skill};
use crate::policy;
use crate::profile::Reach;
use crate::sys::{process, socket};

/// How long a connected peer may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A process of this session asks whether it is one.
    Hello,
    /// It asks for more for every later command; with the asker.
    Plea(Box<Plea>, OwnedFd),
    Exec(Box<Request>, Handles),
}

/// The descriptors behind a request.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) peer: OwnedFd,
    pub(super) pid: i32,
    /// The asker's own.
    pub(super) executable: OwnedFd,
    pub(super) cwd: Option<OwnedFd>,
    /// The same file, found outside.
    outside: Option<OwnedFd>,
    /// Whether a script has a `#!` line.
    pub(super) begins_with_interpreter: bool,
    /// How much sandboxes could reach when it was looked at.
    pub(super) age: u64,
}

/// Why a peer lost its connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it is no process of this session")]
    Stranger,
    #[error("it did not say in time what it wants")]
    Slow,
    #[error("{0}")]
    Frame(#[from] wire::FrameError),
    #[error("the wrong descriptors came with it")]
    Descriptors,
    #[error("a field is over its limit")]
    Limit,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Handles {
    /// The asker alone: nothing else is needed of a command that runs in place.
    pub(super) fn into_peer(self) -> OwnedFd {
        self.peer
    }

    /// The executable as it is seen outside.
    pub(super) fn outside_executable(&self, exe: &Executable) -> Result<OwnedFd, String> {
        self.outside
            .as_ref()
            .and_then(|fd| fd.try_clone().ok())
            .ok_or_else(|| format!("{} is not the same file outside the sandbox", exe.path.display()))
    }
}

/// Reads the one request of a connection.
pub(super) async fn read(
    session: &Session,
    context: ContextId,
    asker: &Asker,
) -> Result<Incoming, Malformed> {
    // Whoever made this socket is who asks, whatever else holds an end of it.
    let peer = socket::peer(asker)?;
    let pidfd = socket::peer_pidfd(asker)?;
    let ppid = session.descends(peer.pid, &pidfd).ok_or(Malformed::Stranger)?;
    let mut buffer = Vec::with_capacity(wire::MAX_INLINE);
    let message =
        tokio::time::timeout(PATIENCE, asker.receive(&mut buffer)).await.map_err(|_| Malformed::Slow)??;
    if message.truncated {
        return Err(Malformed::Limit);
    }
    let (kind, body) = wire::split(&buffer)?;
    let mut fds = message.fds.into_iter();
    let payload;
    let request: wire::Request = match kind {
        Kind::Hello => return Ok(Incoming::Hello),
        Kind::Plea => return Ok(Incoming::Plea(Box::new(wire::decode_body(body)?), pidfd)),
        Kind::Request => wire::decode_body(body)?,
        Kind::LargeRequest => {
            payload = read_payload(&fds.next_back().ok_or(Malformed::Descriptors)?)?;
            wire::decode_body(&payload)?
        }
        other => return Err(wire::FrameError::Kind(other as u16).into()),
    };
    let executable = fds.next().ok_or(Malformed::Descriptors)?;
    let cwd = if request.has_cwd { Some(fds.next().ok_or(Malformed::Descriptors)?) } else { None };
    if fds.next().is_some() {
        return Err(Malformed::Descriptors);
    }
    check_limits(&request)?;

    let cwd_seen = cwd.as_ref().and_then(seen_cwd);
    let reach = session.grants.reach();
    let (mut exe, outside) = seen_executable(&executable, &reach)?.unzip();
    let mut built = Request {
        context,
        attested: Attested { pid: peer.pid, ppid, uid: peer.uid, exe: None, cwd: cwd_seen },
        path: request.path,
        argv: request.argv,
        env: request.env,
        shell: request.context,
        path_holds: false,
        skill: None,
        wish: request.wish,
    };
    let mut begins_with_interpreter = false;
    let known = exe.as_ref().map(|exe: &Executable| exe.path.clone());
    built.skill = exe.as_ref().and_then(|exe| {
        let told = built.argv.get(1);
        let project = session.project_skills(&exe.path, told, built.attested.cwd.as_ref());
        let project = project.and_then(|project| skill(&project.skills, &project.reach(), &built, exe));
        project.or_else(|| skill(&session.skills, &reach, &built, exe))
    });
    // Only as its skill's script is a file of the project one that nobody has written; to rules it is
    // any other.
    let reach = session.reach_of(&built);
    if let Some(exe) = &mut exe {
        exe.agent_writable = reach.could_change(&exe.path);
    }
    let policy = session.policy();
    let named = |path: &PathBuf| policy.concerns(path);
    let looks = session.stance.looks() || built.wish.is_some() || session.granted(context).is_some();
    if looks || built.skill.is_some() || known.iter().chain([&built.given_path()]).any(named) {
        if let (Some(exe), Some(outside)) = (&mut exe, &outside) {
            (exe.shape, begins_with_interpreter) = shape(outside, &reach);
        }
        built.path_holds = exe.as_ref().is_some_and(|exe| holds(&built.given_path(), exe, &reach));
    }
    built.attested.exe = exe;
    let age = session.grants.age();
    let handles =
        Handles { peer: pidfd, pid: peer.pid, executable, cwd, outside, begins_with_interpreter, age };
    Ok(Incoming::Exec(Box::new(built), handles))
}

/// A command as it would be asked for from a directory, with nobody asking.
pub(super) fn imagined(given: &Path, argv: &[Bytes], prepared: &Prepared) -> Request {
    let opened = |path: &Path| {
        let path = CString::new(path.canonicalize().ok()?.as_os_str().as_bytes()).ok()?;
        process::open_exactly(&path).ok()
    };
    let nothing = Bytes::default;
    let mut built = Request {
        context: ContextId::TURN,
        attested: Attested {
            pid: 0,
            ppid: 0,
            uid: nix::unistd::geteuid().as_raw(),
            exe: None,
            cwd: opened(&prepared.cwd).as_ref().and_then(seen_cwd),
        },
        path: Bytes(given.as_os_str().as_bytes().to_vec()),
        argv: argv.to_vec(),
        env: Vec::new(),
        shell: ShellContext {
            layer: Layer::Zsh,
            script: nothing(),
            line: 0,
            job: nothing(),
            functions: Vec::new(),
        },
        path_holds: false,
        skill: None,
        wish: None,
    };
    let handle = opened(given);
    let plain = &prepared.reach;
    let seen = handle.as_ref().and_then(|handle| seen_executable(handle, plain).ok().flatten());
    if let Some((mut exe, outside)) = seen {
        let held = prepared.config.project.as_ref().zip(prepared.held.as_ref());
        let of_project = held.and_then(|(project, reach)| skill(&project.skills, reach, &built, &exe));
        let reach = if of_project.is_some() { prepared.held.as_ref().unwrap_or(plain) } else { plain };
        exe.agent_writable = reach.could_change(&exe.path);
        exe.shape = shape(&outside, reach).0;
        built.skill = of_project.or_else(|| skill(&prepared.config.skills, plain, &built, &exe));
        built.path_holds = holds(given, &exe, reach);
        built.attested.exe = Some(exe);
    }
    built
}

/// The skill whose script a command is: by itself, or as the only thing that its own interpreter is
/// told to run.
fn skill(skills: &[Skill], reach: &Reach, request: &Request, exe: &Executable) -> Option<Skill> {
    if skills.is_empty() {
        return None;
    }
    let of = |script: &Path| skills.iter().find(|skill| skill.has(script)).cloned();
    let leads = |path: &Path| leads(path, reach);
    if let Some(skill) = of(&exe.path) {
        // By a link of the sandbox's own it would look for its helpers elsewhere.
        let called = policy::is_called(&request.argv, &exe.path);
        return leads(&request.given_path()).filter(|path| called && *path == exe.path).map(|_| skill);
    }
    let script = request.argv.get(1).filter(|word| !word.as_slice().starts_with(b"-"))?;
    let up = |part| part == Component::ParentDir;
    if Path::new(OsStr::from_bytes(script.as_slice())).components().any(up) {
        return None;
    }
    let cwd = &request.attested.cwd.as_ref()?.path;
    let script = leads(&cwd.join(OsStr::from_bytes(script.as_slice())))?;
    let skill = of(&script)?;
    let file = process::open_exactly(&CString::new(script.as_os_str().as_bytes()).ok()?).ok()?;
    // With an option there it would do something else without it.
    let first = head(&reopen(&file).ok()?);
    let line = first.split(|&byte| byte == b'\n').next()?.strip_prefix(b"#!")?;
    if line.trim_ascii().contains(&b' ') || line.trim_ascii().contains(&b'\t') {
        return None;
    }
    let (shape, begins) = shape(&file, reach);
    let Shape::Script { named, interpreter } = shape else { return None };
    // An interpreter of many names would be another one by another of them.
    let is_its_own = policy::is_called(&request.argv, &named);
    let leads_there = interpreter.as_ref() == Some(&exe.path) && leads(&named) == interpreter;
    (begins && is_its_own && leads_there).then_some(skill)
}

/// A large request's body: copied, never mapped, from a memfd that nobody can change.
fn read_payload(memory: &OwnedFd) -> Result<Vec<u8>, Malformed> {
    if !socket::is_sealed(memory) {
        return Err(Malformed::Descriptors);
    }
    let file = std::fs::File::from(memory.try_clone()?);
    let length = usize::try_from(file.metadata()?.len()).map_err(|_| Malformed::Limit)?;
    if length > wire::MAX_REQUEST {
        return Err(Malformed::Limit);
    }
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

fn check_limits(request: &wire::Request) -> Result<(), Malformed> {
    let texts = [&request.context.script, &request.context.job];
    let fits = request.path.as_slice().len() <= wire::MAX_PATH
        && request.argv.len() <= wire::MAX_STRINGS
        && request.env.len() <= wire::MAX_STRINGS
        && request.context.functions.len() <= wire::MAX_FUNCTIONS
        && request.wish.as_ref().is_none_or(|wish| wish.prefix.len() <= wire::MAX_PREFIX)
        && texts
            .into_iter()
            .chain(&request.context.functions)
            .all(|text| text.as_slice().len() <= wire::MAX_TEXT);
    let terminated = |text: &Bytes| text.as_slice().contains(&0);
    if !fits || terminated(&request.path) || request.argv.iter().chain(&request.env).any(terminated) {
        return Err(Malformed::Limit);
    }
    Ok(())
}

/// Where a handle of the asker's leads, if that is the same file outside.
fn seen(handle: &OwnedFd) -> Option<(PathBuf, OwnedFd, nix::sys::stat::FileStat)> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()?;
    if !path.is_absolute() {
        return None;
    }
    let outside = process::open_exactly(&CString::new(path.as_os_str().as_bytes()).ok()?).ok()?;
    let inside = nix::sys::stat::fstat(handle).ok()?;
    let stat = nix::sys::stat::fstat(&outside).ok()?;
    ((inside.st_dev, inside.st_ino) == (stat.st_dev, stat.st_ino)).then_some((path, outside, stat))
}

fn seen_cwd(handle: &OwnedFd) -> Option<Cwd> {
    let (path, _, stat) = seen(handle)?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFDIR).then_some(Cwd { path, dev: stat.st_dev, ino: stat.st_ino })
}

/// The file outside. Its shape is looked at where a rule may want to know.
fn seen_executable(handle: &OwnedFd, reach: &Reach) -> Result<Option<(Executable, OwnedFd)>, Malformed> {
    let mode = nix::sys::stat::fstat(handle).map_err(io::Error::from)?.st_mode;
    if mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Malformed::Descriptors);
    }
    let Some((path, outside, stat)) = seen(handle) else { return Ok(None) };
    let exe = Executable {
        agent_writable: reach.could_change(&path),
        path,
        file: FileIdentity {
            dev: stat.st_dev,
            ino: stat.st_ino,
            mode: stat.st_mode,
            uid: stat.st_uid,
            size: stat.st_size.unsigned_abs(),
        },
        shape: Shape::Binary,
        blake3: None,
    };
    Ok(Some((exe, outside)))
}

/// How the kernel will execute a file, from its first bytes, and whether these are `#!`. A file
/// that cannot be read is left to the kernel.
fn shape(file: &OwnedFd, reach: &Reach) -> (Shape, bool) {
    let head = reopen(file).map(|file| head(&file)).unwrap_or_default();
    let script = |named: &Path| {
        let interpreter = interpreter(named, reach);
        Shape::Script { named: named.to_path_buf(), interpreter }
    };
    match Hashbang::of(&head) {
        Some(line) => (script(&line.interpreter), true),
        None if head.is_empty() || head.starts_with(b"\x7fELF") || head.contains(&0) => {
            (Shape::Binary, false)
        }
        None => (script(Path::new("/bin/sh")), false),
    }
}

/// The bytes that the kernel looks at.
pub(super) fn head(file: &std::fs::File) -> Vec<u8> {
    let mut head = vec![0; LOOKED_AT];
    let length = file.read_at(&mut head, 0).unwrap_or(0);
    head.truncate(length);
    head
}

/// The program that the kernel finds at an interpreter's path, if nothing on the way there can be
/// changed by a sandbox; nor on the way from there, where it is a script itself.
pub(super) fn interpreter(named: &Path, reach: &Reach) -> Option<PathBuf> {
    const DEEPEST: usize = 5; // as the kernel goes
    let mut named = named.to_path_buf();
    for _ in 0..DEEPEST {
        // One that is not absolute would be looked for in the working directory.
        let found = leads(&named, reach).filter(|_| named.is_absolute())?;
        let opened = process::open_exactly(&CString::new(found.as_os_str().as_bytes()).ok()?).ok()?;
        match Hashbang::of(&head(&reopen(&opened).ok()?)) {
            Some(line) => named = line.interpreter,
            None => return Some(found),
        }
    }
    None
}

/// Whether the given path leads to the attested file past nothing that a sandbox could change.
fn holds(given: &Path, exe: &Executable, reach: &Reach) -> bool {
    leads(given, reach).is_some_and(|at| {
        at == exe.path
            && std::fs::symlink_metadata(&at)
                .is_ok_and(|found| (found.dev(), found.ino()) == (exe.file.dev, exe.file.ino))
    })
}

/// Where an absolute path leads, if it passes nothing on the way, neither a directory nor a link,
/// that a sandbox could change.
pub(super) fn leads(path: &Path, reach: &Reach) -> Option<PathBuf> {
    const LINKS: usize = 40;
    const PATH_MAX: usize = 4096;
    if path.as_os_str().len() > PATH_MAX {
        return None;
    }
    let named = CString::new(path.as_os_str().as_bytes());
    // Mostly there is no link on the way, and one look tells.
    let straight = path.is_absolute() && named.is_ok_and(|named| process::open_exactly(&named).is_ok());
    // Then nothing above it lies in such a place either. With `..` the text says nothing of where it leads.
    if straight && !path.components().any(|part| part == Component::ParentDir) && !reach.is_within(path) {
        return Some(path.components().collect());
    }
    let mut links = 0;
    let mut at = PathBuf::from("/");
    let mut left = parts(path);
    while let Some(part) = left.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(&part);
        if reach.could_change(&at) && !reach.is_the_way(&at, left.last().map(OsString::as_os_str)) {
            return None;
        }
        if !straight && let Ok(target) = std::fs::read_link(&at) {
            links += 1;
            if links > LINKS || is_of_processes(&at) {
                return None;
            }
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            left.extend(parts(&target));
        }
    }
    Some(at)
}

/// Whether a sandbox could change what a path leads to. Variables name the same directories over and over.
pub(super) fn changeable(reach: &Reach) -> impl Fn(&[u8]) -> bool {
    let known = RefCell::new(HashMap::new());
    move |path| {
        let look = || leads(Path::new(OsStr::from_bytes(path)), reach).is_none();
        *known.borrow_mut().entry(path.to_vec()).or_insert_with(look)
    }
}

/// Whether a link is one of proc(5), which leads whoever follows it to a place of its own. One that is not
/// there any more is taken for one.
fn is_of_processes(link: &Path) -> bool {
    let directory = link.parent().unwrap_or(link);
    nix::sys::statfs::statfs(directory)
        .map_or(true, |found| found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// A path's parts, last first.
fn parts(path: &Path) -> Vec<OsString> {
    let kept = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Access, Resolved};

    #[test]
    fn a_path_leads_past_nothing_that_a_sandbox_could_change() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        for name in ["free/bin", "root/bin"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for (link, target) in [("free/in", "../root/bin"), ("free/out", "bin"), ("root/out", "../free/bin")] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        let entries = vec![(root.join("root"), Access::Write)].into_iter().collect();
        let reach = Reach::of([&Resolved { entries, ..Resolved::default() }]);
        let known = changeable(&reach);
        for (path, leads_to) in [
            ("free/bin", Some("free/bin")),
            ("free//./bin/", Some("free/bin")),
            ("free/out", Some("free/bin")),
            ("free/missing/bin", Some("free/missing/bin")),
            ("free/bin/../bin", Some("free/bin")),
            ("root", None),
            ("root/bin", None),
            ("rooted/bin", Some("rooted/bin")),
            ("free/../root/bin", None),
            ("free/bin/../../root/../free/bin", None),
            ("free/in", None),
            ("root/out", None),
            ("free/in/../../free/bin", None),
        ] {
            let path = root.join(path);
            assert_eq!(leads(&path, &reach), leads_to.map(|to| root.join(to)), "{}", path.display());
            for _ in 0..2 {
                assert_eq!(known(path.as_os_str().as_bytes()), leads_to.is_none());
            }
        }
        // What is held below a root is relied on, and nothing on the way but the way.
        let held = reach.holding(&root.join("root"), ["bin", "kept"]).unwrap();
        assert!(leads(&root.join("root/bin/kept/x"), &held).is_some());
        assert!(leads(&root.join("root/bin/other"), &held).is_none());
    }
}
