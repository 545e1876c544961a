//! Profiles, and what they come to once special places are known.

use std::path::{Component, Path, PathBuf};

/// What an entry gives. Ordered: more comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// An absolute path.
    Path(PathBuf),
    /// `/`.
    Root,
    /// The project, or a path below it.
    ProjectRoots(Option<PathBuf>),
    /// The session's private temporary directory.
    Tmpdir,
    /// `/tmp`.
    SlashTmp,
    /// What programs need of the system to run at all.
    Minimal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub(crate) network: bool,
}

/// What special places stand for in a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bases {
    pub(crate) project: PathBuf,
    /// False where the project holds what a sandbox must not write, or is the home directory:
    /// `:project_roots` then gives reading only.
    pub(crate) project_writable: bool,
    pub(crate) tmpdir: PathBuf,
    /// None where `/tmp` is no directory or holds what the sandbox must not write.
    pub(crate) slash_tmp: Option<PathBuf>,
}

/// A profile with every place resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) name: String,
    pub(crate) unrestricted: bool,
    pub(crate) entries: Vec<(PathBuf, Access)>,
    pub(crate) network: bool,
}

/// Directories that a program needs to run, each only where it exists.
const MINIMAL: [&str; 8] =
    ["/bin", "/sbin", "/usr", "/etc", "/lib", "/lib64", "/nix/store", "/run/current-system/sw"];

impl Profile {
    pub(crate) fn resolve(&self, bases: &Bases) -> Resolved {
        let Some(filesystem) = &self.filesystem else {
            return Resolved {
                name: self.name.clone(),
                unrestricted: true,
                entries: Vec::new(),
                network: self.network,
            };
        };
        let mut entries = Vec::new();
        for Entry { place, access } in filesystem {
            let access = *access;
            match place {
                Place::Path(path) => entries.push((normal(path), access)),
                Place::Root => entries.push((PathBuf::from("/"), access)),
                Place::ProjectRoots(below) => {
                    let path = below
                        .as_ref()
                        .map_or_else(|| bases.project.clone(), |below| normal(&bases.project.join(below)));
                    let access = if bases.project_writable { access } else { Access::Read };
                    entries.push((path, access));
                }
                Place::Tmpdir => entries.push((bases.tmpdir.clone(), access)),
                Place::SlashTmp => entries.extend(bases.slash_tmp.clone().map(|path| (path, access))),
                Place::Minimal => entries.extend(MINIMAL.iter().map(|path| (PathBuf::from(path), access))),
            }
        }
        Resolved { name: self.name.clone(), unrestricted: false, entries, network: self.network }
    }
}

impl Resolved {
    /// What this gives at a path: the most specific entry decides, and of two the wider.
    pub(crate) fn access(&self, path: &Path) -> Option<Access> {
        if self.unrestricted {
            return Some(Access::Write);
        }
        self.entries
            .iter()
            .filter(|(entry, _)| path.starts_with(entry))
            .max_by_key(|(entry, access)| (entry.components().count(), *access))
            .map(|(_, access)| *access)
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
        let network = other.network || !self.network;
        let points = self.entries.iter().chain(&other.entries);
        network
            && !self.unrestricted
            && points.into_iter().all(|(path, _)| self.access(path) <= other.access(path))
    }
}

/// What the sandboxes of a session can change between them: a file that one of them may write is
/// no more to be trusted because another one asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reach(Vec<PathBuf>);

impl Reach {
    /// Of these profiles. One without restriction changes what it likes anyway, and counts for
    /// nothing here.
    pub(crate) fn of<'a>(profiles: impl IntoIterator<Item = &'a Resolved>) -> Self {
        let restricted = profiles.into_iter().filter(|profile| !profile.unrestricted);
        Self(restricted.flat_map(|profile| profile.writable_roots().map(Path::to_path_buf)).collect())
    }

    /// Whether a sandboxed process could change what a path leads to: by writing it, or by
    /// renaming anything on the way. Read-only places below a writable one count, since what is
    /// above them can be moved.
    pub(crate) fn could_change(&self, path: &Path) -> bool {
        self.0.iter().any(|root| path.starts_with(root))
    }
}

/// A path without `.` and `..`, by its text alone.
fn normal(path: &Path) -> PathBuf {
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
        let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
        (proptest::collection::vec((path(), access), 0..6), any::<bool>()).prop_map(|(entries, network)| {
            Resolved { name: "any".to_owned(), unrestricted: false, entries, network }
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
        fn what_is_writable_can_be_changed(profile in resolved(), probe in path()) {
            if profile.access(&probe) == Some(Access::Write) {
                prop_assert!(Reach::of([&profile]).could_change(&probe));
            }
        }
    }
}
