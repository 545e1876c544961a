//! A project's own policy, `.postern/config.toml` and `.postern/rules/*.rules`, and its skills, all below
//! `.agents/skills`: each counts while it is what the user has looked at and trusted.

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::control;
use super::directories::Directories;
use super::launch::real;
use super::tree::{Tree, place};
use crate::flow::text::printable;

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
            add(&mut hasher, text.path.as_os_str().as_encoded_bytes());
            add(&mut hasher, text.text.as_bytes());
        }
        hasher.finalize()
    }

    /// Whether it is what the user has trusted.
    pub(super) fn is_trusted(&self, state: &Path) -> bool {
        Known::of(&self.root, state).is_some_and(|known| known.policy == self.hash().to_hex().as_str())
    }
}

fn add(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}

/// All that is trusted at once: a directory's policy and its skills.
struct Whole {
    root: PathBuf,
    policy: Option<Project>,
    skills: Option<Tree>,
}

impl Whole {
    /// What a directory has, of which there may be nothing. The skills of the home directory are the
    /// user's own.
    fn of(root: &Path, directories: &Directories) -> Result<Self, String> {
        let policy = Project::of(root)?;
        let skills = if root == real(&directories.home) { None } else { Tree::of(root)? };
        Ok(Self { root: root.to_path_buf(), policy, skills })
    }

    fn is_empty(&self) -> bool {
        self.policy.is_none() && self.skills.is_none()
    }

    fn policy_hash(&self) -> blake3::Hash {
        self.policy.as_ref().map_or_else(|| blake3::hash(&[]), Project::hash)
    }

    /// Of the policy alone where there are no skills.
    fn hash(&self) -> blake3::Hash {
        let Some(skills) = &self.skills else { return self.policy_hash() };
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.policy_hash().as_bytes());
        for file in &skills.files {
            add(&mut hasher, file.path.as_os_str().as_encoded_bytes());
            hasher.update(&[u8::from(file.executable)]).update(file.hash.as_bytes());
        }
        hasher.finalize()
    }

    /// Each file, with what tells it from another: safe to print, in a line.
    fn lines(&self) -> Vec<(String, String)> {
        let name = |path: &Path| {
            printable(path.strip_prefix(&self.root).unwrap_or(path).as_os_str().as_encoded_bytes())
        };
        let texts = self.policy.iter().flat_map(Project::texts);
        let texts =
            texts.map(|text| (blake3::hash(text.text.as_bytes()).to_hex().to_string(), name(&text.path)));
        let files = self.skills.iter().flat_map(|skills| &skills.files);
        let files = files.map(|file| {
            let mark = if file.executable { "x" } else { "-" };
            (format!("{}{mark}", file.hash.to_hex()), name(&file.path))
        });
        texts.chain(files).collect()
    }
}

/// What was written down when somebody trusted: the hash of all, that of the policy, and then a line for
/// each file.
struct Known {
    whole: String,
    policy: String,
    files: Vec<(String, String)>,
}

impl Known {
    fn of(root: &Path, state: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(record(root, state)).ok()?;
        let mut lines = text.lines();
        let (whole, policy) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        let files = lines.filter_map(|line| line.split_once(' '));
        Some(Self {
            whole,
            policy,
            files: files.map(|(hash, name)| (hash.to_owned(), name.to_owned())).collect(),
        })
    }

    /// What is another now, for people.
    fn differs(&self, now: &[(String, String)]) -> String {
        const MOST: usize = 4;
        let named = |among: &[(String, String)], name: &str| among.iter().any(|(_, other)| other == name);
        let new = now.iter().filter(|file| !self.files.contains(file)).map(|(_, name)| {
            format!("{} {name}", if named(&self.files, name) { "changed" } else { "added" })
        });
        let gone = self.files.iter().filter(|(_, name)| !named(now, name));
        let all: Vec<String> = new.chain(gone.map(|(_, name)| format!("removed {name}"))).collect();
        let shown = all.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
        match all.len().checked_sub(MOST) {
            None | Some(0) => shown,
            Some(more) => format!("{shown} and {more} more"),
        }
    }
}

/// What becomes of a project's skills.
pub(super) enum Skills {
    /// There are none, nor were any trusted.
    Absent,
    /// They are what the user has trusted.
    Trusted(Tree),
    /// They do not count: why not, and whether somebody may rely on them.
    Unknown { why: String, relied_on: bool },
}

/// The skills of a project.
pub(super) fn skills(project: &Path, directories: &Directories) -> Skills {
    let known = Known::of(project, &directories.state);
    let own = place(project);
    let prefix = printable(own.strip_prefix(project).unwrap_or(&own).as_os_str().as_encoded_bytes());
    let relied_on = known.as_ref().is_some_and(|known| {
        known
            .files
            .iter()
            .any(|(_, name)| name.strip_prefix(&*prefix).is_some_and(|rest| rest.starts_with('/')))
    });
    let whole = match Whole::of(project, directories) {
        Ok(whole) => whole,
        Err(why) if relied_on || own.symlink_metadata().is_ok() => return Skills::Unknown { why, relied_on },
        Err(_) => return Skills::Absent,
    };
    match (known, &whole.skills) {
        (None, None) => Skills::Absent,
        (Some(_), None) if !relied_on => Skills::Absent,
        (Some(known), Some(_)) if known.whole == whole.hash().to_hex().as_str() => {
            whole.skills.map_or(Skills::Absent, Skills::Trusted)
        }
        (Some(known), _) => {
            let what = known.differs(&whole.lines());
            let why = format!("`postern trust` shows it; it has changed since it was trusted: {what}");
            Skills::Unknown { why, relied_on: true }
        }
        (None, Some(_)) => Skills::Unknown { why: "`postern trust` shows it".to_owned(), relied_on: false },
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
    pub(crate) skills: Option<Tree>,
    pub(crate) trusted: bool,
    /// What has changed since it was.
    pub(crate) changed: Option<String>,
    /// By which exactly this is trusted.
    pub(crate) hash: String,
}

fn found(directory: &Path) -> Result<(Whole, Directories), String> {
    let directories = Directories::find()?;
    let directory = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
    for root in directory.ancestors() {
        let whole = Whole::of(root, &directories)?;
        if !whole.is_empty() {
            return Ok((whole, directories));
        }
    }
    Err(format!("{} has no policy of its own and no skills, nor has anything above it", directory.display()))
}

/// A project's policy and skills, and whether they are trusted.
///
/// # Errors
/// If it has none, or its files cannot be trusted.
pub(crate) fn show_trust(directory: &Path) -> Result<Shown, String> {
    let (whole, directories) = found(directory)?;
    let hash = whole.hash().to_hex().to_string();
    let known = Known::of(&whole.root, &directories.state);
    let trusted = known.as_ref().is_some_and(|known| known.whole == hash);
    Ok(Shown {
        changed: known.filter(|_| !trusted).map(|known| known.differs(&whole.lines())),
        texts: whole.policy.iter().flat_map(Project::texts).cloned().collect(),
        trusted,
        skills: whole.skills,
        hash,
    })
}

/// Trusts a project's policy and skills, if they are those of this hash.
///
/// # Errors
/// If something has changed, this is a session's own command, or it cannot be written down.
pub(crate) fn trust(directory: &Path, hash: &str) -> Result<(), String> {
    let (whole, directories) = found(directory)?;
    outside()?;
    let own = whole.hash().to_hex();
    // Whole: who makes both versions finds two of the same beginning.
    if hash.to_ascii_lowercase() != own.as_str() {
        return Err(format!(
            "{} is not the hash of what is there now: look again with `postern trust`",
            hash.escape_debug()
        ));
    }
    let mut text = format!("{own}\n{}\n", whole.policy_hash().to_hex());
    text.extend(whole.lines().iter().map(|(hash, name)| format!("{hash} {name}\n")));
    let failed = |error: std::io::Error| format!("{}: {error}", directories.state.display());
    directories.make_state().map_err(failed)?;
    let path = record(&whole.root, &directories.state);
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
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
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
