//! Profiles, and what they come to once special places are known.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::packed;

/// What an entry gives. Ordered as entries for one path override each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Access {
    Read,
    Write,
    /// Takes what another entry would give.
    None,
}

impl Access {
    /// As people read it, in front of a path.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::None => "no access to",
        }
    }
}

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// An absolute path.
    Path(PathBuf),
    /// `/`.
    Root,
    /// The working directory that the session started in.
    Cwd,
    /// The project, or a path below it.
    ProjectRoots(Option<PathBuf>),
    /// The session's private temporary directory.
    Tmpdir,
    /// `/tmp`.
    SlashTmp,
    /// What programs need of the system to run at all.
    Minimal,
    /// Paths by a pattern, absolute or below the project. Only to take access.
    Glob(String),
    /// A special place that this version does not know: it stands for nothing.
    Unknown(String),
}

/// One line of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) access: Access,
}

/// A profile as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) name: String,
    /// None: no restriction at all.
    pub(crate) filesystem: Option<Vec<Entry>>,
    /// How many levels below its fixed part a pattern is looked for; none is all.
    pub(crate) glob_depth: Option<NonZeroU32>,
    pub(crate) network: bool,
    /// Sockets of daemons that it may connect to, by absolute path.
    pub(crate) unix_sockets: Vec<PathBuf>,
    /// Whether modes of files stay as they are, and no symbolic link is made.
    pub(crate) keeps_modes: bool,
}

/// What special places stand for in a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bases {
    pub(crate) project: PathBuf,
    /// Further directories that `:project_roots` means.
    pub(crate) added: Vec<PathBuf>,
    /// False where the project holds what a sandbox must not write, or is the home directory:
    /// `:project_roots` then gives reading only.
    pub(crate) project_writable: bool,
    pub(crate) cwd: PathBuf,
    pub(crate) cwd_writable: bool,
    pub(crate) tmpdir: PathBuf,
    /// None where `/tmp` is no directory or holds what the sandbox must not write.
    pub(crate) slash_tmp: Option<PathBuf>,
}

/// A pattern of denied paths below a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Denied {
    #[serde(with = "packed")]
    pub(crate) root: PathBuf,
    pub(crate) pattern: String,
}

impl Denied {
    /// A pattern, and where it is looked for: the part before any wildcard belongs to the directory.
    fn below(root: &Path, pattern: &str) -> Self {
        let fixed = pattern.find(['*', '?', '[', ']']).unwrap_or(pattern.len());
        let end = pattern.get(..fixed).and_then(|fixed| fixed.rfind('/')).map_or(0, |slash| slash + 1);
        let (directory, rest) = pattern.split_at(end);
        Self { root: normal(&root.join(directory)), pattern: rest.to_owned() }
    }
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.root.display().to_string().trim_end_matches('/'), self.pattern)
    }
}

/// A profile with every place resolved. By default nothing is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Resolved {
    pub(crate) name: String,
    pub(crate) unrestricted: bool,
    #[serde(with = "packed")]
    pub(crate) entries: Vec<(PathBuf, Access)>,
    /// Patterns of paths that are denied.
    pub(crate) denied: Vec<Denied>,
    pub(crate) glob_depth: Option<NonZeroU32>,
    pub(crate) network: bool,
    #[serde(with = "packed")]
    pub(crate) unix_sockets: Vec<PathBuf>,
    pub(crate) keeps_modes: bool,
}

/// Directories that a program needs to run, each only where it exists.
const MINIMAL: [&str; 8] =
    ["/bin", "/sbin", "/usr", "/etc", "/lib", "/lib64", "/nix/store", "/run/current-system/sw"];

impl Profile {
    /// A profile that gives nothing.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            filesystem: Some(Vec::new()),
            glob_depth: None,
            network: false,
            unix_sockets: Vec::new(),
            keeps_modes: false,
        }
    }

    /// What it comes to where special places are these.
    pub(crate) fn resolve(&self, bases: &Bases) -> Resolved {
        let Some(filesystem) = &self.filesystem else {
            return Resolved {
                name: self.name.clone(),
                unrestricted: true,
                network: self.network,
                ..Resolved::default()
            };
        };
        let mut entries = Vec::new();
        let mut denied = Vec::new();
        for Entry { place, access } in filesystem {
            let access = *access;
            match place {
                Place::Path(path) => entries.push((normal(path), access)),
                Place::Root => entries.push((PathBuf::from("/"), access)),
                Place::Cwd => {
                    let held = !bases.cwd_writable && access == Access::Write;
                    entries.push((bases.cwd.clone(), if held { Access::Read } else { access }));
                }
                Place::ProjectRoots(below) => {
                    let at = |root: &PathBuf| {
                        below.as_ref().map_or_else(|| root.clone(), |below| normal(&root.join(below)))
                    };
                    let held = !bases.project_writable && access == Access::Write;
                    entries.push((at(&bases.project), if held { Access::Read } else { access }));
                    entries.extend(bases.added.iter().map(|root| (at(root), access)));
                }
                Place::Tmpdir => entries.push((bases.tmpdir.clone(), access)),
                Place::SlashTmp => entries.extend(bases.slash_tmp.clone().map(|path| (path, access))),
                Place::Minimal => entries.extend(MINIMAL.iter().map(|path| (PathBuf::from(path), access))),
                Place::Glob(pattern) => {
                    let roots = [&bases.project].into_iter().chain(&bases.added);
                    if pattern.starts_with('/') {
                        denied.push(Denied::below(Path::new("/"), pattern));
                    } else {
                        denied.extend(roots.map(|root| Denied::below(root, pattern)));
                    }
                }
                Place::Unknown(_) => {}
            }
        }
        Resolved {
            name: self.name.clone(),
            unrestricted: false,
            entries,
            denied,
            glob_depth: self.glob_depth,
            network: self.network,
            unix_sockets: self.unix_sockets.clone(),
            keeps_modes: self.keeps_modes,
        }
    }
}

impl Resolved {
    /// What this gives at a path, patterns apart: reading, writing, or nothing.
    pub(crate) fn access(&self, path: &Path) -> Option<Access> {
        if self.unrestricted {
            return Some(Access::Write);
        }
        self.deciding(path).map(|(_, access)| *access).filter(|access| *access != Access::None)
    }

    /// The entry that decides about a path: the most specific one; of those for the same path, one
    /// that takes before one that lets write before one that lets read.
    pub(crate) fn deciding(&self, path: &Path) -> Option<&(PathBuf, Access)> {
        self.entries
            .iter()
            .filter(|(entry, _)| path.starts_with(entry))
            .max_by_key(|(entry, access)| (entry.components().count(), *access))
    }

    /// Whether anything is taken that another entry would give.
    pub(crate) fn denies(&self) -> bool {
        !self.denied.is_empty() || self.entries.iter().any(|(_, access)| *access == Access::None)
    }

    /// Gives up whatever it opens of what another denies.
    pub(crate) fn forgo_denied(&mut self, other: &Self) {
        let closed = |path: &Path| {
            let mut denied = other.entries.iter().filter(|(_, access)| *access == Access::None);
            denied.any(|(above, _)| path.starts_with(above)) && other.access(path).is_none()
        };
        self.entries.retain(|(path, access)| *access == Access::None || !closed(path));
    }

    /// Whether it means the same places from whatever directory.
    pub(crate) fn is_absolute(&self) -> bool {
        let entries = self.entries.iter().map(|(path, _)| path);
        let patterns = self.denied.iter().map(|denied| &denied.root);
        entries.chain(patterns).chain(&self.unix_sockets).all(|path| path.is_absolute())
    }

    /// Takes what another takes, besides what this takes itself. Nothing overrides a denial but an
    /// entry of this profile's own for something more specific.
    pub(crate) fn keep_denied(&mut self, other: &Self) {
        if self.unrestricted || other.unrestricted {
            return;
        }
        // No bound is the wider search, and only a side that looks for patterns has one.
        self.glob_depth = match (self.denied.is_empty(), other.denied.is_empty()) {
            (_, true) => self.glob_depth,
            (true, false) => other.glob_depth,
            (false, false) => self.glob_depth.zip(other.glob_depth).map(|(one, two)| one.max(two)),
        };
        let denied = other.entries.iter().filter(|(_, access)| *access == Access::None);
        let entries: Vec<_> = denied.filter(|entry| !self.entries.contains(entry)).cloned().collect();
        self.entries.extend(entries);
        let patterns: Vec<_> =
            other.denied.iter().filter(|pattern| !self.denied.contains(pattern)).cloned().collect();
        self.denied.extend(patterns);
    }

    /// Gives back what another profile gives below something that it denies.
    pub(crate) fn reopen(&mut self, other: &Self) {
        let below = |path: &Path| path.ancestors().skip(1).any(|above| other.denies_exactly(above));
        let open = other.entries.iter().filter(|(path, access)| *access != Access::None && below(path));
        let open: Vec<_> = open.cloned().collect();
        self.entries.extend(open);
    }

    fn denies_exactly(&self, path: &Path) -> bool {
        self.entries.iter().any(|(entry, access)| *access == Access::None && entry == path)
    }

    /// The paths that may be written, as they were given.
    pub(crate) fn writable_roots(&self) -> impl Iterator<Item = &Path> {
        self.entries
            .iter()
            .filter(|(path, access)| *access == Access::Write && self.access(path) == Some(Access::Write))
            .map(|(path, _)| path.as_path())
    }

    /// Whether this gives nothing that `other` does not give.
    pub(crate) fn within(&self, other: &Self) -> bool {
        if other.unrestricted {
            return true;
        }
        let network = (other.network || !self.network)
            && self.unix_sockets.iter().all(|path| other.unix_sockets.contains(path))
            && (self.keeps_modes || !other.keeps_modes);
        let points = self.entries.iter().chain(&other.entries);
        network
            && !self.unrestricted
            && other.denied.iter().all(|pattern| self.denied.contains(pattern))
            && points.into_iter().all(|(path, _)| self.access(path) <= other.access(path))
    }
}

/// What the sandboxes of a session can change between them: a file that one of them may write is
/// no more to be trusted because another one asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reach {
    roots: Vec<PathBuf>,
    /// Other paths of these.
    also: Vec<PathBuf>,
    held: Option<Held>,
}

/// A place below a writable root that no sandbox changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// The root, and the names on the way down; what lies at the last one is held.
    root: PathBuf,
    names: Vec<OsString>,
}

impl Held {
    fn place(&self) -> PathBuf {
        self.names.iter().fold(self.root.clone(), |path, name| path.join(name))
    }
}

impl Reach {
    /// Of these profiles. One without restriction changes what it likes anyway, and counts for
    /// nothing here.
    pub(crate) fn of<'a>(profiles: impl IntoIterator<Item = &'a Resolved>) -> Self {
        let restricted = profiles.into_iter().filter(|profile| !profile.unrestricted);
        let roots = restricted.flat_map(|profile| profile.writable_roots().map(Path::to_path_buf)).collect();
        Self { roots, also: Vec::new(), held: None }
    }

    /// The same, but for what lies below `root` at these names, which no sandbox changes: the first
    /// of them is a mount of its own wherever the root can be written, and so is the root, which
    /// keeps both where they are. Whoever says this answers for that.
    ///
    /// # Errors
    /// What else can be written that holds the place, so that a directory on the way could be moved,
    /// or that lies in it.
    pub(crate) fn holding(&self, root: &Path, names: [&str; 2]) -> Result<Self, PathBuf> {
        let held = Held { root: root.to_path_buf(), names: names.map(OsString::from).to_vec() };
        let (first, place) = (root.join(names[0]), held.place());
        let against = self
            .roots
            .iter()
            .find(|other| other.as_path() != root && (place.starts_with(other) || other.starts_with(&first)));
        match against {
            Some(other) => Err(other.clone()),
            None => Ok(Self { held: Some(held), ..self.clone() }),
        }
    }

    fn holds(&self, path: &Path) -> bool {
        self.held.as_ref().is_some_and(|held| path.starts_with(held.place()))
    }

    /// Whether a path is a directory on the way to what is held, of which nothing but the way on can
    /// be relied on.
    pub(crate) fn is_the_way(&self, at: &Path, next: Option<&OsStr>) -> bool {
        let Some(Held { root, names }) = &self.held else { return false };
        let mut here = root.clone();
        names.iter().any(|name| {
            let leads_on = here == at && next == Some(name);
            here.push(name);
            leads_on
        })
    }

    /// With what one more profile may write.
    pub(crate) fn and(mut self, profile: &Resolved) -> Self {
        let new = Self::of([profile]).roots.into_iter().filter(|root| !self.roots.contains(root));
        let new: Vec<_> = new.collect();
        self.roots.extend(new);
        self
    }

    /// With all other paths of the places that a sandbox may write.
    pub(crate) fn by_other_paths(self, also: Vec<PathBuf>) -> Self {
        Self { also, ..self }
    }

    /// The places that a sandbox may write, as profiles name them.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().map(PathBuf::as_path)
    }

    /// Whether a sandboxed process could change what a path leads to: by writing it, or by
    /// renaming anything on the way. Read-only places below a writable one count, since what is
    /// above them can be moved, but for what is held.
    pub(crate) fn could_change(&self, path: &Path) -> bool {
        !self.holds(path) && self.is_within(path)
    }

    /// Whether a path lies in a place that a sandbox may write. Then so does what is below it.
    pub(crate) fn is_within(&self, path: &Path) -> bool {
        self.roots.iter().chain(&self.also).any(|root| path.starts_with(root))
    }

    /// Whether a profile gives, by this path, something at, above or below it for writing.
    pub(crate) fn gives(&self, path: &Path) -> bool {
        !self.holds(path) && self.roots.iter().any(|root| path.starts_with(root) || root.starts_with(path))
    }

    /// Whether a sandboxed process could change what a path leads to, or anything below it.
    pub(crate) fn overlaps(&self, path: &Path) -> bool {
        self.could_change(path) || self.roots.iter().chain(&self.also).any(|root| root.starts_with(path))
    }
}

/// Whether a text is a pattern and no plain path.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', ']'])
}

/// What is wrong with a pattern's text, if anything: some never match what they seem to.
pub(crate) fn pattern_error(pattern: &str) -> Option<&'static str> {
    if pattern.ends_with('/') {
        return Some("leave out the slash at the end: a directory is denied with all below it");
    }
    let dots = pattern.split('/').any(|part| matches!(part, "." | ".."));
    dots.then_some("expected a pattern without `.` and `..`")
}

/// A path without `.` and `..`, by its text alone.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::{git, read_only, workspace_write};

    fn bases() -> Bases {
        Bases {
            project: "/proj/p".into(),
            added: Vec::new(),
            cwd: "/proj/p".into(),
            cwd_writable: true,
            project_writable: true,
            tmpdir: "/tmp/postern-x".into(),
            slash_tmp: Some("/tmp".into()),
        }
    }

    #[test]
    fn the_most_specific_entry_decides() {
        let git = git(&workspace_write()).resolve(&bases());
        for (path, access) in [
            ("/proj/p/src/a", Access::Write),
            ("/proj/p/.git/index", Access::Write),
            ("/proj/p/.git/hooks/pre-commit", Access::Read),
            ("/etc/passwd", Access::Read),
        ] {
            assert_eq!(git.access(Path::new(path)), Some(access), "{path}");
        }
    }

    #[test]
    fn what_lies_below_a_writable_root_can_be_changed_even_if_read_only() {
        let git = git(&workspace_write()).resolve(&bases());
        let reach = Reach::of([&git]);
        assert!(reach.could_change(Path::new("/proj/p/.git/hooks/pre-commit")));
        assert!(!reach.could_change(Path::new("/proj")));
        assert!(!reach.could_change(Path::new("/usr/bin/git")));
    }

    /// Profiles that may write these, as one reach that holds `/proj/p/.agents/skills`.
    fn holding(roots: &[&str]) -> Result<Reach, PathBuf> {
        let entries = roots.iter().map(|root| (PathBuf::from(root), Access::Write)).collect();
        let profile = Resolved { entries, ..Resolved::default() };
        Reach::of([&profile]).holding(Path::new("/proj/p"), [".agents", "skills"])
    }

    #[test]
    fn what_is_held_stays_and_nothing_beside_it_does() {
        let reach = holding(&["/proj/p", "/tmp", "/proj/other"]).unwrap();
        let skills = Path::new("/proj/p/.agents/skills");
        assert!(!reach.could_change(skills) && !reach.could_change(&skills.join("x/scripts/run")));
        for path in ["/proj/p", "/proj/p/.agents", "/proj/p/.agents/skillsx", "/proj/p/x/.agents/skills"] {
            assert!(reach.could_change(Path::new(path)), "{path}");
        }
        for (at, next, expected) in [
            ("/proj/p", Some(".agents"), true),
            ("/proj/p/.agents", Some("skills"), true),
            ("/proj/p", Some("skills"), false),
            ("/proj/p", None, false),
            ("/proj/p/.agents", Some("other"), false),
            ("/proj/other", Some(".agents"), false),
        ] {
            assert_eq!(reach.is_the_way(Path::new(at), next.map(OsStr::new)), expected, "{at} {next:?}");
        }
    }

    #[test]
    fn nothing_is_held_where_the_way_can_be_moved_or_part_of_it_written() {
        for other in [
            "/",
            "/proj",
            "/proj/p/.agents",
            "/proj/p/.agents/skills",
            "/proj/p/.agents/skills/x",
            "/proj/p/.agents/y",
        ] {
            assert_eq!(holding(&["/proj/p", other]), Err(PathBuf::from(other)));
            assert_eq!(holding(&[other]), Err(PathBuf::from(other)));
        }
        assert!(holding(&["/proj/p", "/proj/p/sub", "/proj/px"]).is_ok());
    }

    #[test]
    fn narrower_is_within_and_wider_is_not() {
        let turn = workspace_write().resolve(&bases());
        assert!(read_only().resolve(&bases()).within(&turn));
        assert!(!turn.within(&read_only().resolve(&bases())));
        assert!(!git(&workspace_write()).resolve(&bases()).within(&{
            let mut protected = turn.clone();
            protected.entries.push(("/proj/p/.git".into(), Access::Read));
            protected
        }));
        assert!(!super::super::network(&workspace_write()).resolve(&bases()).within(&turn));
    }

    fn path() -> impl Strategy<Value = PathBuf> {
        proptest::collection::vec("[ab]", 0..4)
            .prop_map(|parts| parts.iter().fold(PathBuf::from("/"), |path, part| path.join(part)))
    }

    fn resolved() -> impl Strategy<Value = Resolved> {
        let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::None)];
        (proptest::collection::vec((path(), access), 0..6), any::<bool>()).prop_map(|(entries, network)| {
            Resolved { name: "any".to_owned(), entries, network, ..Resolved::default() }
        })
    }

    proptest! {
        #[test]
        fn within_means_no_path_gets_more(small in resolved(), large in resolved(), probe in path()) {
            if small.within(&large) {
                prop_assert!(small.access(&probe) <= large.access(&probe));
            }
        }

        #[test]
        fn a_denial_survives(mut profile in resolved(), other in resolved(), probe in path()) {
            let own = profile.clone();
            profile.keep_denied(&other);
            let denied = other.deciding(&probe).filter(|(_, access)| *access == Access::None);
            if let Some((at, _)) = denied
                && own.deciding(&probe).is_none_or(|(entry, _)| entry.components().count() <= at.components().count())
            {
                prop_assert_eq!(profile.access(&probe), None);
            }
            prop_assert!(profile.access(&probe) <= own.access(&probe));
        }

        /// The same by walking down from the root: each deeper entry overrides what is above it.
        #[test]
        fn access_is_what_a_walk_down_finds(profile in resolved(), probe in path()) {
            let mut found = Access::None;
            for above in probe.ancestors().collect::<Vec<_>>().into_iter().rev() {
                let here = profile.entries.iter().filter(|(entry, _)| entry == above).map(|(_, access)| *access);
                for wanted in [Access::Read, Access::Write, Access::None] {
                    if here.clone().any(|access| access == wanted) {
                        found = wanted;
                    }
                }
            }
            prop_assert_eq!(profile.access(&probe), Some(found).filter(|access| *access != Access::None));
        }

        #[test]
        fn what_is_writable_can_be_changed(profile in resolved(), probe in path()) {
            if profile.access(&probe) == Some(Access::Write) {
                prop_assert!(Reach::of([&profile]).could_change(&probe));
            }
        }
    }
}
