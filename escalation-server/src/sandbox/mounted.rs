//! What is mounted where (proc_pid_mountinfo(5)): one file can have many paths.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{major, minor};

use super::closed::is_ours_to_open;
use super::watch::unescaped;
use crate::profile::Reach;
use crate::sys::mount;

/// Where else something is, and what else is in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Elsewhere {
    /// Other paths of it, or of something in it.
    pub(crate) also: Vec<PathBuf>,
    /// Mounts in it.
    pub(crate) within: Vec<PathBuf>,
}

/// Where else what lies at a path is, as this process sees the world.
///
/// # Errors
/// If it cannot be seen what is mounted.
pub(crate) fn elsewhere(path: &Path) -> io::Result<Elsewhere> {
    Mounts::now()?.elsewhere(path).ok_or_else(|| io::Error::other("no mount holds it"))
}

/// What is mounted, as this process sees the world.
#[derive(Debug)]
pub(crate) struct Mounts {
    mountinfo: File,
    list: Vec<Mounted>,
    /// Whether anything is in two places.
    twice: bool,
}

#[derive(Debug)]
struct Mounted {
    id: u64,
    device: Vec<u8>,
    /// What of its file system is there.
    root: PathBuf,
    at: PathBuf,
}

impl Mounts {
    /// # Errors
    /// If it cannot be seen.
    pub(crate) fn now() -> io::Result<Self> {
        let mountinfo = File::open("/proc/self/mountinfo")?;
        let mut mounts = Self { mountinfo, list: Vec::new(), twice: false };
        mounts.read()?;
        Ok(mounts)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        self.mountinfo.rewind()?;
        self.mountinfo.read_to_end(&mut text)?;
        self.list = parse(&text);
        self.twice = anything_twice(&self.list);
        Ok(())
    }

    /// Reads again what has changed since.
    ///
    /// # Errors
    /// If it cannot be seen.
    pub(crate) fn refresh(&mut self) -> io::Result<()> {
        let mut polled = [PollFd::new(self.mountinfo.as_fd(), PollFlags::POLLPRI)];
        let changed = poll(&mut polled, PollTimeout::ZERO)? > 0;
        // Of directories that are renamed nobody tells.
        if changed || self.twice { self.read() } else { Ok(()) }
    }

    /// Where else something is; none if no mount holds it.
    fn elsewhere(&self, path: &Path) -> Option<Elsewhere> {
        let (own, named) = (self.holding(path)?, self.by_name(path)?);
        let mut found = Elsewhere::default();
        for mount in &self.list {
            if mount.at.starts_with(path) {
                found.within.push(mount.at.clone());
            }
            // What is hidden below another mount counts too: it may be uncovered.
            for own in [own, named] {
                let shown = mount.shows(own, &own.inner(path)?).map(|(also, _)| also);
                let new = shown.filter(|also| also != path && !found.also.contains(also));
                found.also.extend(new);
            }
        }
        Some(found)
    }

    /// Whether no mount is of the file system that holds a path.
    fn shows_nothing_of(&self, path: &Path) -> bool {
        let mut seen = path.ancestors().filter_map(|part| part.symlink_metadata().ok());
        seen.next().is_some_and(|found| {
            let device = format!("{}:{}", major(found.dev()), minor(found.dev()));
            self.list.iter().all(|mount| mount.device != device.as_bytes())
        })
    }

    /// The mount that holds a path, by its name: of those at one place the last one.
    fn by_name(&self, path: &Path) -> Option<&Mounted> {
        let holding = self.list.iter().filter(|mount| path.starts_with(&mount.at));
        holding.max_by_key(|mount| mount.at.components().count())
    }

    /// The same by the kernel's word, which knows what lies on top; by its name where that is not to be had.
    fn holding(&self, path: &Path) -> Option<&Mounted> {
        let id = path.ancestors().find_map(|part| mount::id_at(part).ok());
        let told = self.list.iter().find(|mount| Some(mount.id) == id && path.starts_with(&mount.at));
        told.or_else(|| self.by_name(path))
    }

    /// Whether something is mounted at a path.
    pub(super) fn is_mount(&self, path: &Path) -> bool {
        self.list.iter().any(|mount| mount.at == path)
    }

    /// Where something is mounted below a path.
    pub(super) fn below(&self, path: &Path) -> impl Iterator<Item = &Path> {
        self.list.iter().map(|mount| mount.at.as_path()).filter(move |at| at.starts_with(path) && *at != path)
    }

    /// Other paths at which what lies at a path, or something in it, can be reached now.
    pub(super) fn others(&self, path: &Path) -> Vec<PathBuf> {
        if !self.twice {
            return Vec::new();
        }
        // What is mounted in it is in it.
        let within = self.list.iter().filter(|mount| mount.at.starts_with(path));
        let within = within.map(|mount| (mount, mount.root.clone(), mount.at.clone()));
        let own = self.holding(path).and_then(|own| Some((own, own.inner(path)?, path.to_path_buf())));
        let parts = own.into_iter().chain(within);
        let shown = parts.flat_map(|(own, inner, what)| {
            let shown = self.list.iter().filter_map(move |mount| mount.shows(own, &inner));
            // Joining nothing leaves a slash at the end, by which a file is none.
            shown.map(move |(also, rest)| [also, what.join(rest)].map(|path| path.components().collect()))
        });
        let mut reached: Vec<PathBuf> = shown
            .filter(|[also, what]: &[PathBuf; 2]| also != what && !is_own(also) && is_same(also, what))
            .map(|[also, _]| also)
            .collect();
        reached.sort_unstable();
        reached.dedup();
        reached
    }

    /// Other paths of the very thing that is at a path.
    pub(super) fn same(&self, path: &Path) -> Vec<PathBuf> {
        let identity = |path: &Path| path.symlink_metadata().map(|found| (found.dev(), found.ino())).ok();
        let own = identity(path);
        let others = self.others(path);
        others
            .into_iter()
            .filter(|other| own.is_none() || identity(other).is_none_or(|found| Some(found) == own))
            .collect()
    }

    /// Mounts below a path of what can be reached by another path as well, at which nobody may write it.
    pub(super) fn also_elsewhere(&self, path: &Path, may_write: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        // Where everything may be written that shows nothing.
        if !self.twice || path == Path::new("/") {
            return Vec::new();
        }
        let below = self.below(path).filter(|at| !is_own(at));
        let shows = below.filter(|at| self.others(at).iter().any(|other| !may_write(other)));
        shows.map(Path::to_path_buf).collect()
    }
}

impl Mounted {
    /// What of its file system is at a path that it holds.
    fn inner(&self, path: &Path) -> Option<PathBuf> {
        Some(self.root.join(path.strip_prefix(&self.at).ok()?))
    }

    /// Where this mount shows a part of a mount's file system, or something in it, and what in it that is.
    fn shows(&self, of: &Self, inner: &Path) -> Option<(PathBuf, PathBuf)> {
        if self.device != of.device {
            return None;
        }
        match inner.strip_prefix(&self.root) {
            Ok(rest) => Some((self.at.join(rest), PathBuf::new())),
            Err(_) => Some((self.at.clone(), self.root.strip_prefix(inner).ok()?.to_path_buf())),
        }
    }
}

/// Whether each sandbox has something else there, for itself.
fn is_own(path: &Path) -> bool {
    ["/dev", "/proc"].iter().any(|own| path.starts_with(own))
}

/// Whether one file is at both paths, or may be.
fn is_same(also: &Path, what: &Path) -> bool {
    let look = |path: &Path| match path.symlink_metadata() {
        Ok(found) => Some(Some((found.dev(), found.ino()))),
        Err(error) => {
            (!matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)).then_some(None)
        }
    };
    match (look(also), look(what)) {
        (Some(Some(one)), Some(Some(other))) => one == other,
        (Some(Some(_)), Some(None)) => true,
        // What nobody of this user's reaches there is no matter.
        (Some(None), Some(_)) => is_ours_to_open(also),
        (None, _) | (_, None) => false,
    }
}

/// Whether two mounts show one part of a file system.
fn anything_twice(list: &[Mounted]) -> bool {
    let mut sorted: Vec<_> = list.iter().map(|mount| (&mount.device, &mount.root)).collect();
    // By the parts of the paths: what one of them holds comes right after it.
    sorted.sort_unstable();
    sorted.windows(2).any(
        |pair| matches!(pair, [(one, above), (other, below)] if one == other && below.starts_with(above)),
    )
}

fn parse(mountinfo: &[u8]) -> Vec<Mounted> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = fields.nth(1)?.to_vec();
        Some(Mounted { id, device, root: unescaped(fields.next()?), at: unescaped(fields.next()?) })
    };
    mountinfo.split(|&byte| byte == b'\n').filter_map(mount).collect()
}

/// What sandboxes can change, by every path of it.
///
/// Where it cannot be seen what is mounted they could change anything.
pub(crate) fn by_every_path(reach: Reach) -> Reach {
    let anything = || vec![PathBuf::from("/")];
    let also = Mounts::now().ok().and_then(|mounts| {
        let found = reach.roots().map(|root| {
            // In a chroot(2) that is no mount itself, the one that holds all else is not listed.
            let unlisted = || mounts.shows_nothing_of(root).then(Vec::new);
            mounts.elsewhere(root).map(|found| found.also).or_else(unlisted)
        });
        found.collect::<Option<Vec<_>>>()
    });
    let also = also.map_or_else(anything, |also| also.concat());
    reach.by_other_paths(also)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw
32 22 8:2 / /b rw - ext4 /dev/sdb1 rw
33 22 8:3 /b /c rw - ext4 /dev/sdc1 rw
34 22 8:3 /bc /d rw - ext4 /dev/sdc1 rw
";
    const MOUNTS: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 8:1 /home/me /srv/me rw - ext4 /dev/sda1 rw
31 22 8:1 /home/me/p/.agents/skills/x /opt/a\\040b rw - ext4 /dev/sda1 rw
32 22 8:2 / /home/me/other rw - ext4 /dev/sdb1 rw
33 22 8:1 /var /mnt/var rw - ext4 /dev/sda1 rw
34 22 8:3 / /home/me/q/.agents/skills/data rw - tmpfs none rw
";

    #[test]
    fn a_file_system_of_which_nothing_is_listed_is_told_from_one_that_is() {
        let root = Path::new("/");
        let listed = Mounts::now().unwrap();
        assert!(!listed.shows_nothing_of(root));
        assert!(Mounts { list: Vec::new(), ..listed }.shows_nothing_of(root));
    }

    #[test]
    fn every_other_path_is_found() {
        let mountinfo = File::open("/dev/null").unwrap();
        let list = parse(MOUNTS.as_bytes());
        assert!(anything_twice(&list) && !anything_twice(&parse(ONCE.as_bytes())));
        let mounts = Mounts { mountinfo, list, twice: true };
        let found = |path: &str| mounts.elsewhere(Path::new(path)).unwrap();
        let paths = |of: &[&str]| of.iter().map(PathBuf::from).collect::<Vec<_>>();
        let skills = found("/home/me/p/.agents/skills");
        assert_eq!(skills.also, paths(&["/srv/me/p/.agents/skills", "/opt/a b"]));
        assert!(skills.within.is_empty());
        assert_eq!(found("/srv/me/p/.agents/skills").also, paths(&["/home/me/p/.agents/skills", "/opt/a b"]));
        assert_eq!(found("/home/me/other/p/.agents/skills"), Elsewhere::default());
        assert_eq!(found("/home/me/q/.agents/skills").within, paths(&["/home/me/q/.agents/skills/data"]));
        assert_eq!(found("/usr/p/.agents/skills"), Elsewhere::default());
    }
}
