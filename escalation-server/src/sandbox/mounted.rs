//! What is mounted where (proc_pid_mountinfo(5)): one file can have many paths.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::watch::unescaped;
use crate::profile::Reach;

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
        let mut pairs = (1..)
            .zip(&self.list)
            .flat_map(|(next, one)| self.list.iter().skip(next).map(move |other| (one, other)));
        self.twice = pairs.any(|(one, other)| one.overlaps(other));
        Ok(())
    }

    /// Reads again what has changed since.
    ///
    /// # Errors
    /// If it cannot be seen.
    pub(crate) fn refresh(&mut self) -> io::Result<()> {
        let mut polled = [PollFd::new(self.mountinfo.as_fd(), PollFlags::POLLPRI)];
        if poll(&mut polled, PollTimeout::ZERO)? > 0 { self.read() } else { Ok(()) }
    }

    /// Where else something is; none if no mount holds it.
    fn elsewhere(&self, path: &Path) -> Option<Elsewhere> {
        let (own, inner) = self.holding(path)?;
        let mut found = Elsewhere::default();
        for mount in &self.list {
            if mount.at.starts_with(path) {
                found.within.push(mount.at.clone());
            }
            // What is hidden below another mount counts too: it may be uncovered.
            found.also.extend(mount.shows(own, &inner).map(|(also, _)| also).filter(|also| also != path));
        }
        Some(found)
    }

    /// The mount that holds a path, and what of its file system that is.
    fn holding(&self, path: &Path) -> Option<(&Mounted, PathBuf)> {
        // Of those at one place the last one is seen.
        let holding = self.list.iter().filter(|mount| path.starts_with(&mount.at));
        let own = holding.max_by_key(|mount| mount.at.components().count())?;
        Some((own, own.root.join(path.strip_prefix(&own.at).ok()?)))
    }

    /// Other paths at which what lies at a path, or something in it, can be reached now.
    pub(super) fn others(&self, path: &Path) -> Vec<PathBuf> {
        if !self.twice {
            return Vec::new();
        }
        let Some((own, inner)) = self.holding(path) else { return Vec::new() };
        let identity = |path: &Path| path.symlink_metadata().map(|found| (found.dev(), found.ino())).ok();
        let shown = self.list.iter().filter_map(|mount| mount.shows(own, &inner));
        // Joining nothing leaves a slash at the end, by which a file is none.
        let shown = shown.map(|(also, rest)| [also, path.join(rest)].map(|path| path.components().collect()));
        let reached = shown.filter(|[also, what]: &[PathBuf; 2]| {
            !also.starts_with(path) && identity(also).is_some_and(|found| identity(what) == Some(found))
        });
        reached.map(|[also, _]| also).collect()
    }

    /// Mounts below a path of what can be reached by another one too.
    pub(super) fn twice_below(&self, path: &Path) -> Vec<PathBuf> {
        let below =
            self.list.iter().filter(|mount| self.twice && mount.at.starts_with(path) && mount.at != path);
        below.filter(|mount| !self.others(&mount.at).is_empty()).map(|mount| mount.at.clone()).collect()
    }
}

impl Mounted {
    fn overlaps(&self, other: &Self) -> bool {
        self.device == other.device
            && (self.root.starts_with(&other.root) || other.root.starts_with(&self.root))
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

fn parse(mountinfo: &[u8]) -> Vec<Mounted> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ').skip(2);
        let device = fields.next()?.to_vec();
        Some(Mounted { device, root: unescaped(fields.next()?), at: unescaped(fields.next()?) })
    };
    mountinfo.split(|&byte| byte == b'\n').filter_map(mount).collect()
}

/// What sandboxes can change, by every path of it.
///
/// Where it cannot be seen what is mounted they could change anything.
pub(crate) fn by_every_path(reach: Reach) -> Reach {
    let Ok(mounts) = Mounts::now() else { return reach.and_roots(vec![PathBuf::from("/")]) };
    let also = reach.roots().filter_map(|root| mounts.elsewhere(root)).flat_map(|found| found.also);
    let also = also.collect();
    reach.and_roots(also)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 8:1 /home/me /srv/me rw - ext4 /dev/sda1 rw
31 22 8:1 /home/me/p/.agents/skills/x /opt/a\\040b rw - ext4 /dev/sda1 rw
32 22 8:2 / /home/me/other rw - ext4 /dev/sdb1 rw
33 22 8:1 /var /mnt/var rw - ext4 /dev/sda1 rw
34 22 8:3 / /home/me/q/.agents/skills/data rw - tmpfs none rw
";

    #[test]
    fn every_other_path_is_found() {
        let mountinfo = File::open("/dev/null").unwrap();
        let mounts = Mounts { mountinfo, list: parse(MOUNTS.as_bytes()), twice: true };
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
