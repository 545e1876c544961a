//! What Landlock holds where there are no namespaces. It gives rights on what is below a path and
//! takes none back further down, so that a tree with a hole is given by what lies beside the hole;
//! in a tree that may be written, where new files have to be possible, there can be no hole.

use std::path::{Path, PathBuf};

use super::facts::{Own, Refusal};
use crate::profile::{Access, Resolved};
use crate::sys::landlock::SCOPES;

/// Something that is not held, by the name under which an operator can allow that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weakness {
    pub(crate) name: &'static str,
    pub(crate) what: String,
}

/// Names of all that can be allowed not to be held, with what it means.
pub(crate) const WEAKNESSES: [(&str, &str); 9] = [
    (
        "processes",
        "of this user's other processes command lines can be read, priorities changed, SysV IPC and message queues used; \
         what leaves its parents may outlive a killed session",
    ),
    (
        "signals",
        "this user's other processes can be stopped and killed, Postern's among them (before Linux 6.12)",
    ),
    ("metadata", "modes, owners, times and attributes of this user's files can be changed everywhere"),
    ("device_nodes", "device nodes that lie outside /dev can be opened where a profile gives them"),
    ("protect_git", "protected names can be written and created"),
    ("read_only_below", "what is read-only below something writable can be written"),
    ("deny_below", "what is denied below something writable can be read and written"),
    ("hide_state", "the state directory can be read and written"),
    ("network_rules", "hosts that rules keep commands from can be reached where a profile gives the network"),
];

fn weakness(name: &'static str, at: Option<&Path>) -> Weakness {
    let meaning = WEAKNESSES.iter().find(|(known, _)| *known == name).map_or("", |(_, meaning)| meaning);
    let what = at.map_or_else(|| meaning.to_owned(), |path| format!("{meaning} ({})", path.display()));
    Weakness { name, what }
}

/// What of a profile Landlock alone does not hold.
pub(super) fn weaknesses(profile: &Resolved, own: &Own, landlock_abi: u32) -> Vec<Weakness> {
    let mut found = ["processes", "metadata", "device_nodes"].map(|name| weakness(name, None)).to_vec();
    if landlock_abi < SCOPES {
        found.push(weakness("signals", None));
    }
    // However much is taken back in between: a right holds for all that is below.
    let below_writable =
        |path: &Path| path.ancestors().skip(1).any(|above| profile.access(above) == Some(Access::Write));
    let mut roots = profile.writable_roots().filter(|root| !own.temporary.iter().any(|other| other == root));
    if let Some(root) = roots.next() {
        found.push(weakness("protect_git", Some(&root.join(".git"))));
    }
    for (name, access) in [("read_only_below", Access::Read), ("deny_below", Access::None)] {
        let mut entries =
            profile.entries.iter().filter(|(path, given)| *given == access && below_writable(path));
        let below = entries.next().map(|(path, _)| path.clone());
        let pattern = profile.denied.iter().find(|denied| {
            access == Access::None
                && profile
                    .writable_roots()
                    .any(|root| root.starts_with(&denied.root) || denied.root.starts_with(root))
        });
        if let Some(at) = below.or_else(|| pattern.map(|pattern| pattern.root.join(&pattern.pattern))) {
            found.push(weakness(name, Some(&at)));
        }
    }
    if let Some(path) = own.hidden.iter().find(|path| below_writable(path)) {
        found.push(weakness("hide_state", Some(path)));
    }
    found
}

/// The same where the mounts are known: what mounts below writable roots show of other places, and other paths of
/// what is denied and hidden.
pub(super) fn weaknesses_by_mounts(
    may_write: impl Fn(&Path) -> bool,
    shows: &[PathBuf],
    denied: &[PathBuf],
    hidden: &[PathBuf],
) -> Vec<Weakness> {
    let below = |paths: &[PathBuf]| paths.iter().find(|path| may_write(path)).cloned();
    let found = [
        ("read_only_below", shows.first().cloned()),
        ("deny_below", below(denied)),
        ("hide_state", below(hidden)),
    ];
    found.into_iter().filter_map(|(name, at)| Some(weakness(name, Some(&at?)))).collect()
}

/// What may be read of a profile with these holes: whole subtrees, and directories of which only the
/// names may be read, since there is a hole below. Beside something denied not even those.
///
/// What is made beside a hole later cannot be read.
///
/// # Errors
/// A directory that cannot be looked at, or too much beside holes.
pub(super) fn leaves(
    profile: &Resolved,
    denied: &[PathBuf],
    hidden: &[PathBuf],
) -> Result<Vec<(PathBuf, bool)>, Refusal> {
    // Devices have rules of their own: everybody's terminals and disks lie there.
    let mut holes = vec![PathBuf::from("/dev")];
    holes.extend(denied.iter().chain(hidden).cloned());
    // What another entry gives, or takes, is not this one's.
    holes.extend(
        profile.entries.iter().filter(|(_, access)| *access == Access::None).map(|(path, _)| path.clone()),
    );
    let mut found = Vec::new();
    for (path, access) in &profile.entries {
        if *access == Access::Read && profile.access(path) == Some(Access::Read) && !path.starts_with("/dev")
        {
            split(path, &holes, denied, &mut found)?;
        }
    }
    Ok(found)
}

fn split(
    path: &Path,
    holes: &[PathBuf],
    denied: &[PathBuf],
    found: &mut Vec<(PathBuf, bool)>,
) -> Result<(), Refusal> {
    const MOST: usize = 8192;
    if found.len() > MOST {
        return Err(Refusal::TooMany(path.to_path_buf()));
    }
    if holes.iter().any(|hole| hole == path) || path.is_symlink() {
        return Ok(());
    }
    if !holes.iter().any(|hole| hole.starts_with(path)) {
        found.push((path.to_path_buf(), false));
        return Ok(());
    }
    // A right to list would hold below, too.
    if !denied.iter().any(|hole| hole.starts_with(path)) {
        found.push((path.to_path_buf(), true));
    }
    let look = |error| Refusal::Look { path: path.to_path_buf(), error };
    for entry in std::fs::read_dir(path).map_err(look)? {
        split(&entry.map_err(look)?.path(), holes, denied, found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sandbox::Leases;

    /// A tree in which every directory has a file and two directories, three levels deep.
    fn tree() -> tempfile::TempDir {
        fn fill(at: &Path, depth: u8) {
            std::fs::write(at.join("file"), "").unwrap();
            for name in ["a", "b"].iter().filter(|_| depth > 0) {
                std::fs::create_dir(at.join(name)).unwrap();
                fill(&at.join(name), depth - 1);
            }
        }
        let tree = tempfile::tempdir().unwrap();
        fill(tree.path(), 3);
        tree
    }

    #[test]
    fn what_is_taken_back_in_between_holds_nothing_further_down() {
        let state = tempfile::tempdir().unwrap();
        let own = Own {
            hidden: vec!["/w/own/state".into()],
            temporary: Vec::new(),
            leases: Leases::within(state.path()).unwrap(),
            serves_sockets: false,
            terminal: None,
        };
        let entries = [("/w", Access::Write), ("/w/own", Access::Read), ("/w/own/secret", Access::None)];
        let entries = entries.map(|(path, access)| (PathBuf::from(path), access)).to_vec();
        let names = |entries: Vec<_>, abi| {
            let profile = Resolved { entries, ..Resolved::default() };
            weaknesses(&profile, &own, abi).iter().map(|weak| weak.name).collect::<Vec<_>>()
        };
        assert_eq!(
            names(entries, SCOPES),
            [
                "processes",
                "metadata",
                "device_nodes",
                "protect_git",
                "read_only_below",
                "deny_below",
                "hide_state"
            ]
        );
        let reading = vec![(PathBuf::from("/"), Access::Read), (PathBuf::from("/w/own"), Access::None)];
        assert_eq!(names(reading, SCOPES - 1), ["processes", "metadata", "device_nodes", "signals"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Where nothing is writable, what the leaves give to read is what the profile gives.
        #[test]
        fn leaves_are_the_profile(entries in proptest::collection::vec(("(/[ab]){0,3}(/file)?", any::<bool>()), 0..6)) {
            let tree = tree();
            let root = tree.path().canonicalize().unwrap();
            let at = |below: &str| root.join(below.trim_start_matches('/'));
            let access = |given| if given { Access::Read } else { Access::None };
            let entries: Vec<_> = entries.iter().map(|(below, given)| (at(below), access(*given))).collect();
            let profile = Resolved { entries: entries.clone(), ..Resolved::default() };
            let denied: Vec<_> = entries.iter().filter(|(path, given)| *given == Access::None && path.exists()).map(|(path, _)| path.clone()).collect();
            let there = Resolved { entries: entries.into_iter().filter(|(path, _)| path.exists()).collect(), ..profile };
            let found = leaves(&there, &denied, &[]).unwrap();
            for path in walkdir::WalkDir::new(&root).into_iter().map(|entry| entry.unwrap().into_path()) {
                let given = found.iter().any(|(leaf, names)| !names && path.starts_with(leaf));
                // A directory with a hole below is not given itself, and its file is.
                let split = denied.iter().any(|hole| hole.starts_with(&path));
                prop_assert!(!given || there.access(&path).is_some(), "{}", path.display());
                prop_assert!(given || split || there.access(&path).is_none(), "{}", path.display());
                let listed = found.iter().any(|(leaf, names)| *names && path.starts_with(leaf));
                prop_assert!(!listed || there.access(&path).is_some());
            }
        }
    }
}
