//! What is mounted where (proc_pid_mountinfo(5)): one file can have many paths.

use std::io;
use std::path::{Path, PathBuf};

use super::watch::unescaped;

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
    let text = std::fs::read("/proc/self/mountinfo")?;
    look(&text, path).ok_or_else(|| io::Error::other("no mount holds it"))
}

struct Mounted {
    device: Vec<u8>,
    /// What of its file system is there.
    root: PathBuf,
    at: PathBuf,
}

fn look(mountinfo: &[u8], path: &Path) -> Option<Elsewhere> {
    let mounts: Vec<Mounted> = mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ').skip(2);
            let device = fields.next()?.to_vec();
            Some(Mounted { device, root: unescaped(fields.next()?), at: unescaped(fields.next()?) })
        })
        .collect();
    // Of those at one place the last one is seen.
    let holding = mounts.iter().filter(|mount| path.starts_with(&mount.at));
    let own = holding.max_by_key(|mount| mount.at.components().count())?;
    let inner = own.root.join(path.strip_prefix(&own.at).ok()?);
    let mut found = Elsewhere::default();
    for mount in &mounts {
        if mount.at.starts_with(path) {
            found.within.push(mount.at.clone());
        }
        if mount.device != own.device {
            continue;
        }
        // What is hidden below another mount counts too: it may be uncovered.
        let also = match inner.strip_prefix(&mount.root) {
            Ok(rest) => mount.at.join(rest),
            Err(_) if mount.root.starts_with(&inner) => mount.at.clone(),
            Err(_) => continue,
        };
        if also != path {
            found.also.push(also);
        }
    }
    Some(found)
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
        let found = |path: &str| look(MOUNTS.as_bytes(), Path::new(path)).unwrap();
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
