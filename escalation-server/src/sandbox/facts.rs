//! What a plan needs to know of the machine.

use std::io;
use std::path::{Path, PathBuf};

use crate::profile::{Access, Resolved};
use crate::sys::{landlock, socket};

/// Names that stay as they are directly below every writable root: what they hold makes other
/// programs run things.
pub(crate) const PROTECTED: [&str; 4] = [".git", ".agents", ".codex", ".postern"];

/// What the kernel offers to this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// 0: no Landlock.
    pub(crate) landlock_abi: u32,
    /// Whether a socket tells safely who made its other end.
    pub(crate) peers: bool,
    pub(crate) user_namespaces: bool,
    /// Why not, and what to do.
    pub(crate) user_namespaces_hint: &'static str,
    pub(crate) root: bool,
}

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
    #[error("user namespaces are not to be had here: {0}")]
    NoNamespaces(&'static str),
    #[error(
        "{0} is a symbolic link where a profile wants a file or directory, and a link cannot be protected: replace \
         it by what it leads to, or start elsewhere"
    )]
    ProtectedLink(PathBuf),
    #[error("cannot look at {path}: {error}")]
    Look { path: PathBuf, error: io::Error },
    #[error(
        "the profile {profile} makes {path} read-only in a writable directory, and what does not exist cannot be \
         protected: create it, or leave the entry out"
    )]
    Absent { profile: String, path: PathBuf },
    #[error("the profile {profile} gives {path} for writing, which holds Postern's own files in {own}")]
    OwnFiles { profile: String, path: PathBuf, own: PathBuf },
}

impl Abilities {
    pub(crate) fn probe() -> Self {
        let root = nix::unistd::geteuid().is_root();
        let setting =
            |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok());
        let (user_namespaces, user_namespaces_hint) = if setting("/proc/sys/user/max_user_namespaces")
            == Some(0)
        {
            (false, "set the sysctl user.max_user_namespaces above 0")
        } else if !root && setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
            (false, "set the sysctl kernel.unprivileged_userns_clone to 1")
        } else if !root && setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
            (
                false,
                "AppArmor restricts them: set the sysctl kernel.apparmor_restrict_unprivileged_userns to 0",
            )
        } else {
            (true, "")
        };
        let peers = socket::pair().and_then(|(one, _other)| socket::peer_pidfd(&one)).is_ok();
        Self { landlock_abi: landlock::abi(), peers, user_namespaces, user_namespaces_hint, root }
    }

    /// # Errors
    /// What a sandbox needs and this kernel does not have.
    pub(crate) fn suffice(&self) -> Result<(), Refusal> {
        if self.landlock_abi == 0 {
            return Err(Refusal::NoLandlock);
        }
        if !self.peers {
            return Err(Refusal::NoPeers);
        }
        if !self.user_namespaces && !self.root {
            return Err(Refusal::NoNamespaces(self.user_namespaces_hint));
        }
        Ok(())
    }
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// Entries of the profile whose path exists.
    pub(crate) entries: Vec<(PathBuf, Access)>,
    /// Existing protected paths below writable roots.
    pub(crate) protected: Vec<PathBuf>,
    /// Postern's own directories that nothing in a sandbox may see.
    pub(crate) hidden: Vec<PathBuf>,
    /// Device nodes that exist.
    pub(crate) devices: Vec<&'static str>,
}

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

impl Facts {
    /// # Errors
    /// An entry whose path leads through a symbolic link that was not there when it was resolved.
    pub(crate) fn look_for_links(profile: &Resolved) -> Result<(), Refusal> {
        let replaced = |path: &Path| path.ancestors().find(|part| part.is_symlink()).map(Path::to_path_buf);
        match profile.entries.iter().find_map(|(path, _)| replaced(path)) {
            Some(path) => Err(Refusal::ProtectedLink(path)),
            None => Ok(()),
        }
    }

    /// # Errors
    /// A protected name that is a link, something that is to be protected and does not exist, or
    /// something that cannot be looked at.
    pub(crate) fn gather(profile: &Resolved, hidden: &[PathBuf]) -> Result<Self, Refusal> {
        Self::look_for_links(profile)?;
        let entries: Vec<_> =
            profile.entries.iter().filter(|(path, _)| path.symlink_metadata().is_ok()).cloned().collect();
        let absent = |(path, access): &&(PathBuf, Access)| {
            let parent = path.parent().filter(|parent| parent.is_dir());
            *access == Access::Read
                && path.symlink_metadata().is_err()
                && parent.and_then(|parent| profile.access(parent)) == Some(Access::Write)
        };
        if let Some((path, _)) = profile.entries.iter().find(absent) {
            return Err(Refusal::Absent { profile: profile.name.clone(), path: path.clone() });
        }
        let mut protected = Vec::new();
        for (root, access) in &entries {
            if *access == Access::Write && profile.access(root) == Some(Access::Write) {
                for name in PROTECTED {
                    look(&root.join(name), &mut protected)?;
                }
            }
        }
        // A profile that has an entry of its own for such a path means what it says.
        protected.retain(|path| !profile.entries.iter().any(|(entry, _)| entry == path));
        // And protection takes, it never gives: the sandbox itself may have written where a `.git`
        // file points.
        protected.retain(|path| profile.access(path) == Some(Access::Write));
        Ok(Self {
            entries,
            protected,
            hidden: hidden.iter().filter(|path| path.is_dir()).cloned().collect(),
            devices: DEVICES.into_iter().filter(|name| Path::new("/dev").join(name).exists()).collect(),
        })
    }
}

fn look(path: &Path, protected: &mut Vec<PathBuf>) -> Result<(), Refusal> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refusal::Look { path: path.to_path_buf(), error }),
    };
    if metadata.is_symlink() {
        return Err(Refusal::ProtectedLink(path.to_path_buf()));
    }
    protected.push(path.to_path_buf());
    // A worktree's or submodule's `.git` is a file that names the real one.
    if metadata.is_file()
        && path.ends_with(".git")
        && let Ok(text) = std::fs::read_to_string(path)
        && let Some(target) = text.strip_prefix("gitdir:")
        && let Some(parent) = path.parent()
        && let Ok(target) = parent.join(target.trim()).canonicalize()
    {
        if let Ok(common) = std::fs::read_to_string(target.join("commondir"))
            && let Ok(common) = target.join(common.trim()).canonicalize()
        {
            protected.push(common);
        }
        protected.push(target);
    }
    Ok(())
}
