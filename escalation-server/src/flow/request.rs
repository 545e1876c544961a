//! An exec request after intake: what the kernel attests, and what the asker claims.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use postern_shim::wire::{Bytes, ShellContext, Wish};

use super::decision::Skill;

/// Where a request comes from: 0 is the turn, others are Permissions runs of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ContextId(pub(crate) u32);

impl ContextId {
    pub(crate) const TURN: Self = Self(0);
}

/// What identifies a file for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) size: u64,
}

/// How the kernel will execute a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    /// By its own format.
    Binary,
    /// By an interpreter: the one that `#!` names, or the shell where that line is missing.
    Script {
        named: PathBuf,
        /// The program that this leads to; none where a sandbox could make it another.
        interpreter: Option<PathBuf>,
    },
}

/// The file that is to be executed.
#[derive(Debug, Clone)]
pub(crate) struct Executable {
    /// Its own path, free of symlinks.
    pub(crate) path: PathBuf,
    pub(crate) file: FileIdentity,
    /// Whether the asker's sandbox could put another file there, or other bytes into this one.
    pub(crate) agent_writable: bool,
    pub(crate) shape: Shape,
    /// BLAKE3 of the snapshot that would run.
    pub(crate) blake3: Option<String>,
}

/// The directory that the exec happens in.
#[derive(Debug, Clone)]
pub(crate) struct Cwd {
    pub(crate) path: PathBuf,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// What the kernel says of the asker.
#[derive(Debug, Clone)]
pub(crate) struct Attested {
    pub(crate) pid: i32,
    pub(crate) ppid: i32,
    pub(crate) uid: u32,
    /// None where the file is not seen outside the sandbox: it can only run in place.
    pub(crate) exe: Option<Executable>,
    /// None likewise.
    pub(crate) cwd: Option<Cwd>,
}

/// One exec request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) context: ContextId,
    pub(crate) attested: Attested,
    /// The path as execve got it.
    pub(crate) path: Bytes,
    pub(crate) argv: Vec<Bytes>,
    pub(crate) env: Vec<Bytes>,
    pub(crate) shell: ShellContext,
    /// Whether the path as given leads to the attested file without passing anything that the
    /// sandbox could change, so that its name may speak for the file.
    pub(crate) path_holds: bool,
    /// The skill whose script this is.
    pub(crate) skill: Option<Skill>,
    /// What it asks for instead of what its asker has.
    pub(crate) wish: Option<Wish>,
}

impl Request {
    /// The path as given, absolute where the working directory is known, without what says nothing (`//`,
    /// `/./`).
    pub(crate) fn given_path(&self) -> PathBuf {
        let given = Path::new(OsStr::from_bytes(self.path.as_slice()));
        match &self.attested.cwd {
            Some(cwd) => cwd.path.join(given).components().collect(),
            None => given.to_path_buf(),
        }
    }
}
