//! What a plan needs to know of the machine.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::alone::{Weakness, leaves, weaknesses, weaknesses_by_mounts};
use super::closed::is_not_there;
use super::globs::expand;
use super::mounted::Mounts;
use super::placeholder::Leases;
use super::probe::{Abilities, Namespaces};
use crate::profile::{Access, Resolved, packed};

/// Names that stay as they are directly below every writable root: what they hold makes other
/// programs run things.
pub(crate) const PROTECTED: [&str; 4] = [".git", ".agents", ".codex", ".postern"];

/// What cannot be enforced here, and the way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "this kernel has no Landlock (Linux 5.13 or later, with `landlock` among the security modules that \
         /sys/kernel/security/lsm lists); without it only --sandbox danger-full-access can start"
    )]
    NoLandlock,
    #[error("this kernel does not tell who asks (SO_PEERPIDFD, Linux 6.5): boot 6.5 or later")]
    NoPeers,
    #[error(
        "namespaces are not to be had here: {hint}. Without them Landlock alone enforces the profile {profile}, and does \
         not hold\n{}\nIf that is acceptable, allow it by name in config.toml: allow_weaker = [{}]",
        .missing.iter().map(|weak| format!("  {}: {}", weak.name, weak.what)).collect::<Vec<_>>().join("\n"),
        .allowed.iter().map(String::as_str).chain(.missing.iter().map(|weak| weak.name))
            .map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    )]
    Weaker { profile: String, hint: &'static str, missing: Vec<Weakness>, allowed: Vec<String> },
    #[error(
        "the profile {0} names sockets, and here the server cannot connect for others: inside a sandbox whose system \
         calls somebody else answers, or without namespaces where kernel.yama.ptrace_scope is not 0; start outside, or \
         remove network.unix_sockets"
    )]
    NoConnects(String),
    #[error(
        "{0} has too much beside what is denied in it for Landlock alone: deny something higher up, or deny less"
    )]
    TooMany(PathBuf),
    #[error(
        "{0} is a symbolic link where a profile wants a file or directory, and a link cannot be protected: replace \
         it by what it leads to, or start elsewhere"
    )]
    ProtectedLink(PathBuf),
    #[error(
        "{0} leads through {1}, which the sandbox could put elsewhere: name the git directory in it without that, or \
         start elsewhere"
    )]
    GitThrough(PathBuf, PathBuf),
    #[error(
        "{0} and {1} are the same place, mounted twice, where what is missing cannot be kept from being made at both: \
         let the profile write one of them"
    )]
    Twice(PathBuf, PathBuf),
    #[error(
        "cannot look at {path}: {error}; give yourself the right to search what leads there, and to read it (chmod u+rx)"
    )]
    Closed { path: PathBuf, error: io::Error },
    #[error("cannot look at {path}: {error}")]
    Look { path: PathBuf, error: io::Error },
    #[error("the pattern {pattern}: {what}")]
    Pattern { pattern: String, what: String },
    #[error("the profile {profile} gives {path} for writing, which holds Postern's own files in {own}")]
    OwnFiles { profile: String, path: PathBuf, own: PathBuf },
}

/// What of Postern's own lies around a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Own {
    /// Directories that nothing in a sandbox may see.
    #[serde(with = "packed")]
    pub(crate) hidden: Vec<PathBuf>,
    /// Temporary directories, the session's own and the one that everybody has: a name protects
    /// nothing there, and anybody could put something in the way of others.
    #[serde(with = "packed")]
    pub(crate) temporary: Vec<PathBuf>,
    pub(crate) leases: Leases,
    /// Whether any profile of the session names sockets of daemons. Descriptors can travel between
    /// sandboxes, so that what is connected is then looked at in each.
    pub(crate) serves_sockets: bool,
    /// The caller's terminal.
    #[serde(with = "packed")]
    pub(crate) terminal: Option<PathBuf>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// Entries of the profile whose path exists.
    pub(crate) entries: Vec<(PathBuf, Access)>,
    /// Existing paths that are denied, by name or by a pattern.
    pub(crate) denied: Vec<PathBuf>,
    /// Existing protected paths below writable roots.
    pub(crate) protected: Vec<PathBuf>,
    /// Protected paths below writable roots that do not exist, or only as a stand-in.
    pub(crate) absent: Vec<PathBuf>,
    /// Postern's own directories that nothing in a sandbox may see.
    pub(crate) hidden: Vec<PathBuf>,
    /// Device and inode of each entry, protected and hidden path: a mount covers a file and not a
    /// name, so another file there is another fact.
    pub(crate) identities: Vec<(u64, u64)>,
    /// Device nodes that exist.
    pub(crate) devices: Vec<&'static str>,
    /// See [`Own::serves_sockets`].
    pub(crate) serves_sockets: bool,
    /// See [`Own::terminal`].
    pub(crate) terminal: Option<PathBuf>,
    /// What of the profile is not held here, by name.
    pub(crate) missing: Vec<&'static str>,
    /// For Landlock alone: what may be read, and whether only its names may.
    pub(crate) readable: Vec<(PathBuf, bool)>,
}

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

impl Facts {
    /// # Errors
    /// Any [`Refusal`] but those of a kernel that suffices for no sandbox.
    pub(crate) fn gather(profile: &Resolved, own: &Own, abilities: &Abilities) -> Result<Self, Refusal> {
        let mountinfo = |error| Refusal::Look { path: "/proc/self/mountinfo".into(), error };
        Self::gather_among(&Mounts::now().map_err(mountinfo)?, profile, own, abilities)
    }

    /// The same by one who knows what is mounted.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub(crate) fn gather_among(
        mounts: &Mounts,
        profile: &Resolved,
        own: &Own,
        abilities: &Abilities,
    ) -> Result<Self, Refusal> {
        if let Namespaces::None(_) = abilities.namespaces {
            must_hold(profile, abilities, weaknesses(profile, own, abilities.landlock_abi))?;
        }
        if !profile.unix_sockets.is_empty() && !abilities.connects {
            return Err(Refusal::NoConnects(profile.name.clone()));
        }
        // While a stand-in is made, or taken away, it looks like somebody's own.
        let no_other = own
            .leases
            .exclusively()
            .map_err(|error| Refusal::Look { path: own.leases.directory().to_path_buf(), error })?;
        let looks = Looks { leases: &own.leases, found: RefCell::default(), failed: RefCell::default() };
        let there = |path: &Path| looks.there(path);
        let mut on_the_way = profile.entries.iter().flat_map(|(path, _)| path.ancestors());
        if let Some(link) = on_the_way.find(|part| looks.at(part).is_some_and(|found| found.is_symlink())) {
            return Err(Refusal::ProtectedLink(link.to_path_buf()));
        }
        let entries: Vec<_> = profile.entries.iter().filter(|(path, _)| there(path)).cloned().collect();
        let mut absent = Vec::new();
        for (path, _) in profile.entries.iter().filter(|(_, access)| *access != Access::Write) {
            // What is missing is kept from being made at the first part that is missing.
            let Some(missing) = path.ancestors().take_while(|part| !there(part)).last() else { continue };
            let beside = missing.parent().and_then(|parent| profile.access(parent));
            if beside == Some(Access::Write) {
                absent.push(missing.to_path_buf());
            }
        }
        let may_write = |path: &Path| profile.access(path) == Some(Access::Write);
        let mut protected = Vec::new();
        for root in profile.writable_roots().filter(|root| looks.is_directory(root)) {
            if own.temporary.iter().any(|temporary| temporary == root) {
                continue;
            }
            for name in PROTECTED {
                let path = root.join(name);
                if there(&path) {
                    look(&path, &looks, may_write, &mut protected, &mut absent)?;
                } else if name != ".git" && !is_inside_protected(root) {
                    absent.push(path);
                }
            }
        }
        let read_only = entries.iter().filter(|(_, access)| *access == Access::Read).map(|(path, _)| path);
        let read_only = read_only
            .filter(|path| path.parent().is_some_and(|above| profile.access(above) == Some(Access::Write)));
        let others: Vec<_> = protected.iter().chain(read_only).flat_map(|path| mounts.others(path)).collect();
        protected.extend(others);
        let roots = profile.writable_roots();
        let shows: Vec<_> = roots.flat_map(|root| mounts.also_elsewhere(root, may_write)).collect();
        protected.extend(shows.iter().cloned());
        // A profile that has an entry of its own for such a path means what it says. And protection
        // takes, it never gives: the sandbox itself may have written where a `.git` file points.
        let meant = |path: &PathBuf| profile.entries.iter().any(|(entry, _)| entry == path);
        protected.retain(|path| !meant(path) && profile.access(path) == Some(Access::Write));
        absent.retain(|path| {
            let covered = protected.iter().any(|covered| path != covered && path.starts_with(covered));
            !covered && (!meant(path) || !may_write(path))
        });
        absent.sort_unstable();
        absent.dedup();
        for path in &absent {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let others = mounts.same(parent).into_iter().map(|other| other.join(name));
            let open = |other: &PathBuf| {
                may_write(other)
                    && !meant(other)
                    && !protected.iter().any(|covered| other.starts_with(covered))
            };
            if let Some(other) = others.into_iter().find(open) {
                return Err(Refusal::Twice(path.clone(), other));
            }
        }
        drop(no_other);
        let denied = denied(profile, &entries, mounts)?;
        // Nothing of what is denied as a whole has to be protected by itself.
        protected.retain(|path| profile.access(path).is_some());
        let mut hidden: Vec<_> = own.hidden.iter().filter(|path| looks.is_directory(path)).cloned().collect();
        let others: Vec<_> = hidden.iter().flat_map(|path| mounts.others(path)).collect();
        hidden.extend(others);
        // Nothing of what is denied as a whole has to be hidden by itself.
        hidden.retain(|path| {
            let mut above = denied.iter().filter(|above| path.starts_with(above));
            above.all(|above| {
                profile.deciding(path).is_some_and(|(entry, _)| entry.starts_with(above) && entry != above)
            })
        });
        let mut missing = abilities.missing(profile, own);
        if let Namespaces::None(_) = abilities.namespaces {
            let found = weaknesses_by_mounts(may_write, &shows, &denied, &hidden);
            let new: Vec<_> =
                found.iter().map(|weak| weak.name).filter(|name| !missing.contains(name)).collect();
            missing.extend(new);
            must_hold(profile, abilities, found)?;
        }
        let readable = match abilities.namespaces {
            Namespaces::None(_) => leaves(profile, &denied, &hidden)?,
            _ => Vec::new(),
        };
        if let Some((path, error)) = looks.failed.take() {
            return Err(unseen(&path, error));
        }
        let covered = entries.iter().map(|(path, _)| path).chain(&protected).chain(&hidden).chain(&denied);
        let identity = |path: &PathBuf| looks.at(path).map_or((0, 0), |found| (found.dev(), found.ino()));
        Ok(Self {
            identities: covered.map(identity).collect(),
            entries,
            denied,
            protected,
            absent,
            hidden,
            serves_sockets: own.serves_sockets,
            readable,
            terminal: own.terminal.clone(),
            missing,
            devices: devices(),
        })
    }
}

/// # Errors
/// What cannot be held without namespaces, and is not allowed to be missing.
fn must_hold(profile: &Resolved, abilities: &Abilities, mut missing: Vec<Weakness>) -> Result<(), Refusal> {
    let Namespaces::None(obstacle) = abilities.namespaces else { return Ok(()) };
    missing.retain(|weak| !abilities.allowed.iter().any(|name| name == weak.name));
    if missing.is_empty() {
        return Ok(());
    }
    let (profile, allowed) = (profile.name.clone(), abilities.allowed.clone());
    Err(Refusal::Weaker { profile, hint: obstacle.remedy(), missing, allowed })
}

/// What may be there, and cannot be looked at.
fn unseen(path: &Path, error: io::Error) -> Refusal {
    let path = path.to_path_buf();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Refusal::Closed { path, error },
        _ => Refusal::Look { path, error },
    }
}

/// What is at paths, each looked at once.
struct Looks<'a> {
    leases: &'a Leases,
    found: RefCell<HashMap<OsString, Option<Metadata>>>,
    /// What could not be looked at, and may be there.
    failed: RefCell<Option<(PathBuf, io::Error)>>,
}

impl Looks<'_> {
    /// What is at a path, be it a link; none if nothing is.
    fn at(&self, path: &Path) -> Option<Metadata> {
        if let Some(found) = self.found.borrow().get(path.as_os_str()) {
            return found.clone();
        }
        let found = match path.symlink_metadata() {
            Ok(found) => Some(found),
            Err(error) => {
                if !is_not_there(path, &error) {
                    self.failed.borrow_mut().get_or_insert((path.to_path_buf(), error));
                }
                None
            }
        };
        self.found.borrow_mut().insert(path.as_os_str().to_owned(), found.clone());
        found
    }

    /// Whether anything is there that goes on to be: a stand-in goes when the session goes that put it there,
    /// unless this one holds it too.
    fn there(&self, path: &Path) -> bool {
        self.at(path).is_some_and(|found| !self.leases.stand_for(path, &found))
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.at(path).is_some_and(|found| found.is_dir() || found.is_symlink() && path.is_dir())
    }
}

/// The device nodes that exist. They are the machine's, and looked for once.
fn devices() -> Vec<&'static str> {
    static FOUND: OnceLock<Vec<&'static str>> = OnceLock::new();
    let exists = |name: &&str| Path::new("/dev").join(name).exists();
    FOUND.get_or_init(|| DEVICES.into_iter().filter(exists).collect()).clone()
}

/// What exists of what a profile denies. What no entry gives in the first place needs no mask.
fn denied(
    profile: &Resolved,
    existing: &[(PathBuf, Access)],
    mounts: &Mounts,
) -> Result<Vec<PathBuf>, Refusal> {
    let named = existing.iter().filter(|(path, access)| *access == Access::None && path != Path::new("/"));
    let mut denied: Vec<PathBuf> = named.map(|(path, _)| path.clone()).collect();
    denied.extend(expand(&profile.denied, profile.glob_depth)?);
    // Where the profile gives the very place by another name, or something in it, it denies a view of that.
    let meant = |other: &PathBuf| {
        let mut given = profile.entries.iter().filter(|(_, access)| *access != Access::None);
        given.any(|(entry, _)| entry.starts_with(other))
    };
    let files = denied.iter().filter(|path| !mounts.same(path).iter().any(meant));
    let others: Vec<_> = files.flat_map(|path| mounts.others(path)).filter(|other| !meant(other)).collect();
    denied.extend(others);
    denied.sort_unstable();
    denied.dedup();
    // Below something that is denied nothing has to be, unless it is open in between.
    let opens = |above: &Path, path: &Path| {
        let mut given = profile.entries.iter().filter(|(_, access)| *access != Access::None);
        given.any(|(entry, _)| path.starts_with(entry) && entry.starts_with(above) && entry != above)
    };
    let outer = denied.clone();
    denied.retain(|path| {
        let mut above = path.ancestors().skip(1).filter(|above| outer.iter().any(|other| other == above));
        above.all(|above| opens(above, path))
    });
    Ok(denied)
}

/// Whether a root lies in something that is protected itself, as a git directory does.
fn is_inside_protected(root: &Path) -> bool {
    root.components().any(|part| PROTECTED.iter().any(|name| part.as_os_str() == *name))
}

/// Protects what is there, and where a worktree's or submodule's `.git` file leads: to its own directory, and from there
/// to the one that it shares with others.
fn look(
    path: &Path,
    looks: &Looks<'_>,
    may_write: impl Fn(&Path) -> bool,
    protected: &mut Vec<PathBuf>,
    absent: &mut Vec<PathBuf>,
) -> Result<(), Refusal> {
    let found = looks.at(path);
    if found.as_ref().is_some_and(Metadata::is_symlink) {
        return Err(Refusal::ProtectedLink(path.to_path_buf()));
    }
    protected.push(path.to_path_buf());
    if !found.is_some_and(|found| found.is_file()) || !path.ends_with(".git") {
        return Ok(());
    }
    let (mut file, mut prefix) = (path.to_path_buf(), GITDIR);
    while let Some(named) = named(&file, prefix).map_err(|error| unseen(&file, error))? {
        let way = follow(&file, &named, looks)?;
        if let Some(loose) = way.loose.into_iter().find(|part| may_write(part)) {
            return Err(Refusal::GitThrough(file, loose));
        }
        if !way.there {
            absent.extend(way.to.parent().is_some_and(may_write).then_some(way.to));
            break;
        }
        protected.push(way.to.clone());
        if prefix != GITDIR {
            break;
        }
        (file, prefix) = (way.to.join("commondir"), b"");
    }
    Ok(())
}

/// Where a path leads.
struct Way {
    /// What it leads to, or the first part of that which is missing.
    to: PathBuf,
    there: bool,
    /// What it leads through and does not lie in: links, and directories that it leaves again. Whoever may move
    /// those leads it elsewhere.
    loose: Vec<PathBuf>,
}

/// Follows what a file names.
///
/// # Errors
/// If a link cannot be read, or there are too many.
fn follow(file: &Path, named: &Path, looks: &Looks<'_>) -> Result<Way, Refusal> {
    // As many as path_resolution(7) allows.
    const MOST_LINKS: usize = 40;
    let parts = |path: &Path| path.iter().rev().map(OsString::from).collect::<Vec<_>>();
    let (mut to, mut left, mut loose, mut links) = (PathBuf::new(), parts(named), Vec::new(), 0);
    while let Some(part) = left.pop() {
        if part == ".." {
            loose.extend((!file.starts_with(&to)).then(|| to.clone()));
            to.pop();
            continue;
        }
        if part == "." {
            continue;
        }
        to.push(part);
        if !looks.there(&to) {
            return Ok(Way { to, there: false, loose });
        }
        if looks.at(&to).is_some_and(|found| found.is_symlink()) {
            links += 1;
            let leads = match links {
                ..=MOST_LINKS => to.read_link(),
                _ => Err(io::Error::from_raw_os_error(libc::ELOOP)),
            };
            left.extend(parts(&leads.map_err(|error| unseen(&to, error))?));
            loose.push(to.clone());
            to.pop();
        }
    }
    Ok(Way { to, there: true, loose })
}

/// What a `.git` file begins with that names a directory, gitrepository-layout(5).
const GITDIR: &[u8] = b"gitdir: ";

/// The path that a small file names after what it begins with, read as git reads it; none where no such file is. The
/// sandbox may have put anything there, so that nothing but a regular file is opened for reading, and not much is read.
///
/// # Errors
/// If it may be there.
fn named(path: &Path, prefix: &[u8]) -> io::Result<Option<PathBuf>> {
    // More than any path has.
    const MOST: u64 = 8192;
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        // A link or a socket names nothing.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => return Ok(None),
        Err(error) if is_not_there(path, &error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    let end = text.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
    let rest = text[..end].strip_prefix(prefix).and_then(|rest| rest.split(|&byte| byte == 0).next());
    let beside = path.parent().unwrap_or(path);
    Ok(rest.filter(|rest| !rest.is_empty()).map(|rest| beside.join(OsStr::from_bytes(rest))))
}

/// The directories of a linked worktree: its own, and the repository's. None unless the repository
/// knows this worktree too: who wrote the `.git` file may have been anybody.
pub(crate) fn worktree(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let file = root.join(".git");
    let real = |file: &Path, prefix| named(file, prefix).ok()??.canonicalize().ok();
    let own = real(&file, GITDIR)?;
    let common = real(&own.join("commondir"), b"")?;
    let knows = real(&own.join("gitdir"), b"")? == file.canonicalize().ok()?;
    (knows && own.starts_with(&common)).then_some((own, common))
}
