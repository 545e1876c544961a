//! A project's own policy, `.postern/config.toml` and `.postern/rules/*.rules`: it counts while it is what
//! the user has looked at and trusted.

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::control;
use super::directories::Directories;

/// The longest file, in bytes, and the most of them.
const MOST_BYTES: u64 = 1 << 20;
const MOST_FILES: usize = 64;

/// A file as it was read, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// What a project says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Project {
    root: PathBuf,
    pub(super) config: Option<Text>,
    pub(super) rules: Vec<Text>,
}

impl Project {
    /// The policies of a directory and of all above it: what somebody puts in between takes nothing away.
    ///
    /// # Errors
    /// Each on its own: what is wrong with its files, so that nobody can trust them.
    pub(super) fn above(directory: &Path) -> Vec<(PathBuf, Result<Self, String>)> {
        let of = |root: &Path| Some((root.to_path_buf(), Self::of(root).transpose()?));
        let mut found: Vec<_> = directory.ancestors().filter_map(of).collect();
        // The nearest one last, which counts.
        found.reverse();
        found
    }

    /// The policy of a directory; none if it has none.
    fn of(root: &Path) -> Result<Option<Self>, String> {
        let root = root.to_path_buf();
        let own = root.join(".postern");
        // A link could lead to what changes without anybody noticing.
        let plain = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
        if own.symlink_metadata().is_ok() && !plain(&own) {
            return Err(format!("{} is no directory", own.display()));
        }
        let directory = own.join("rules");
        if directory.symlink_metadata().is_ok() && !plain(&directory) {
            return Err(format!("{} is no directory", directory.display()));
        }
        let config = own.join("config.toml");
        let config = config.symlink_metadata().is_ok().then(|| read(&config)).transpose()?;
        let paths = super::rule_files::of(&directory).map_err(|error| error.to_string())?;
        if paths.len() > MOST_FILES {
            return Err(format!("{} holds more than {MOST_FILES} files", directory.display()));
        }
        let rules = paths.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
        let empty = config.is_none() && rules.is_empty();
        Ok((!empty).then_some(Self { root, config, rules }))
    }

    fn texts(&self) -> impl Iterator<Item = &Text> {
        self.config.iter().chain(&self.rules)
    }

    fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for text in self.texts() {
            for bytes in [text.path.as_os_str().as_encoded_bytes(), text.text.as_bytes()] {
                hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
            }
        }
        hasher.finalize()
    }

    /// Whether it is what the user has trusted.
    pub(super) fn is_trusted(&self, state: &Path) -> bool {
        let known = std::fs::read_to_string(record(&self.root, state));
        known.is_ok_and(|known| known.trim() == self.hash().to_hex().as_str())
    }
}

/// Whether the user has trusted a project's policy, as it is now or as it was.
pub(super) fn was_trusted(root: &Path, state: &Path) -> bool {
    record(root, state).exists()
}

/// Where it is written down what of a project is trusted.
fn record(root: &Path, state: &Path) -> PathBuf {
    let name = blake3::hash(root.as_os_str().as_encoded_bytes());
    state.join("trusted").join(name.to_hex().as_str())
}

/// A regular file by its own name, whole.
fn read(path: &Path) -> Result<Text, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(format!("{} is no regular file", path.display()));
    }
    let mut text = String::new();
    file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("{} is longer than {MOST_BYTES} bytes", path.display()));
    }
    Ok(Text { path: path.to_path_buf(), text })
}

/// What somebody looks at before trusting.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) texts: Vec<Text>,
    pub(crate) trusted: bool,
    /// By which exactly this is trusted.
    pub(crate) hash: String,
}

fn found(directory: &Path) -> Result<(Project, Directories), String> {
    let directories = Directories::find()?;
    let directory = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
    let project = Project::above(&directory).pop().map(|(_, found)| found).transpose()?;
    let none = || format!("{} has no policy of its own, and nothing above it", directory.display());
    Ok((project.ok_or_else(none)?, directories))
}

/// A project's policy, and whether it is trusted.
///
/// # Errors
/// If it has none, or its files cannot be trusted.
pub(crate) fn show_trust(directory: &Path) -> Result<Shown, String> {
    let (project, directories) = found(directory)?;
    Ok(Shown {
        texts: project.texts().cloned().collect(),
        trusted: project.is_trusted(&directories.state),
        hash: project.hash().to_hex().to_string(),
    })
}

/// Trusts a project's policy, if it is the one of this hash.
///
/// # Errors
/// If it has changed, this is a session's own command, or it cannot be written down.
pub(crate) fn trust(directory: &Path, hash: &str) -> Result<(), String> {
    let (project, directories) = found(directory)?;
    outside()?;
    let own = project.hash().to_hex();
    // Whole: who makes both versions finds two of the same beginning.
    if hash.to_ascii_lowercase() != own.as_str() {
        return Err(format!(
            "{} is not the hash of what is there now: look again with `postern trust`",
            hash.escape_debug()
        ));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", directories.state.display());
    directories.make_state().map_err(failed)?;
    let path = record(&project.root, &directories.state);
    let place = path.parent().unwrap_or(&directories.state);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(failed)?;
    let new = path.with_extension("new");
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    file.write_all(own.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)
}

/// Trusts nothing of a project any more: of the nearest one that is trusted.
///
/// # Errors
/// If nothing was trusted.
pub(crate) fn distrust(directory: &Path) -> Result<(), String> {
    let directories = Directories::find()?;
    outside()?;
    // Whether or not there still is anything to be trusted.
    let directory = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
    let records = directory.ancestors().map(|root| record(root, &directories.state));
    let Some(record) = records.into_iter().find(|record| record.exists()) else {
        return Err("it was not trusted".to_owned());
    };
    std::fs::remove_file(&record).map_err(|error| format!("{}: {error}", record.display()))
}

/// What a session runs does not say whom the next one is to trust.
fn outside() -> Result<(), String> {
    control::stands_outside(std::process::id().cast_signed())
}
