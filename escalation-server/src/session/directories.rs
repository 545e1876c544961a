//! Where Postern's files are (XDG base directories).

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, geteuid};

/// Postern's directories for one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directories {
    pub(crate) home: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) state: PathBuf,
    /// `bin`, `libexec` and the rest of the installation.
    pub(crate) prefix: PathBuf,
}

/// The operator's configuration for the whole machine.
pub(crate) const SYSTEM: &str = "/etc/postern";

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

impl Directories {
    /// # Errors
    /// If there is neither `HOME` nor an entry for this user in the user database, or this
    /// executable cannot be found.
    pub(crate) fn find() -> Result<Self, String> {
        let home = variable("HOME")
            .or_else(|| User::from_uid(Uid::from_raw(geteuid().as_raw())).ok().flatten().map(|user| user.dir))
            .ok_or("HOME is not set, and this user has no entry in the user database")?;
        let exe = std::env::current_exe().map_err(|error| format!("find this executable: {error}"))?;
        let prefix = exe.parent().and_then(Path::parent).unwrap_or(Path::new("/")).to_path_buf();
        Ok(Self {
            config: variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("postern"),
            state: variable("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("postern"),
            home,
            prefix,
        })
    }

    /// The patched zsh.
    pub(crate) fn zsh(&self) -> PathBuf {
        self.prefix.join("libexec/postern/zsh")
    }

    /// What starts every process of a session.
    pub(crate) fn spawner(&self) -> PathBuf {
        self.prefix.join("libexec/postern").join(crate::runner::SPAWNER)
    }

    /// Makes the state directory, for this user alone.
    ///
    /// # Errors
    /// As mkdir(2).
    pub(crate) fn make_state(&self) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.state)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&self.state, mode)
    }

    /// Whether writing at and below a path would change what the next session goes by: a place of
    /// Postern's own, something in one, or something that holds one.
    pub(crate) fn decides(&self, real: impl Fn(&Path) -> PathBuf, root: &Path) -> Vec<PathBuf> {
        let own = self.own().into_iter().map(|own| real(&own));
        own.filter(|own| own.starts_with(root) || root.starts_with(own)).collect()
    }

    /// Postern's own places, for what must not be written from inside: a prefix may hold others' too.
    pub(crate) fn own(&self) -> Vec<PathBuf> {
        const INSTALLED: [&str; 6] =
            ["bin/postern", "bin/posternsh", "libexec/postern", "lib/postern", "share/postern", "shell/zsh"];
        let installed = INSTALLED.iter().map(|place| self.prefix.join(place));
        installed.chain([self.state.clone(), self.config.clone(), PathBuf::from(SYSTEM)]).collect()
    }
}
