//! The modes that profiles come from, and the profiles that need no configuration.

use super::resolve::{Access, Entry, Place, Profile};

fn entry(place: Place, access: Access) -> Entry {
    Entry { place, access }
}

/// Everything may be read, nothing written; no network.
pub(crate) fn read_only() -> Profile {
    Profile { filesystem: Some(vec![entry(Place::Root, Access::Read)]), ..Profile::named("read-only") }
}

/// Everything may be read; the project and temporary directories written; no network.
pub(crate) fn workspace_write() -> Profile {
    Profile {
        filesystem: Some(vec![
            entry(Place::Root, Access::Read),
            entry(Place::ProjectRoots(None), Access::Write),
            entry(Place::SlashTmp, Access::Write),
            entry(Place::Tmpdir, Access::Write),
        ]),
        ..Profile::named("workspace-write")
    }
}

/// No sandbox.
pub(crate) fn danger_full_access() -> Profile {
    Profile { filesystem: None, network: true, ..Profile::named("danger-full-access") }
}

/// The name of [`everything`].
pub(crate) const EVERYTHING: &str = "everything";

/// What an unsandboxed command gets where something is denied: everything else.
pub(crate) fn everything() -> Profile {
    Profile {
        filesystem: Some(vec![entry(Place::Root, Access::Write)]),
        network: true,
        ..Profile::named(EVERYTHING)
    }
}

/// Names of a git directory by which git runs other programs or takes other directories for its own.
/// Without a `HEAD` it would take the directory above for a repository.
pub(crate) const CLOSED: [&str; 10] = [
    "HEAD",
    "hooks",
    "config",
    "config.worktree",
    "commondir",
    "info",
    "modules",
    "worktrees",
    "remotes",
    "branches",
];

/// Names without which it is no git directory: written, and there to stay.
pub(crate) const PINNED: [&str; 2] = ["objects", "refs"];

/// What git needs beyond the turn to commit, without what makes git run other programs: the
/// repository's data, but neither hooks nor configuration nor pointers to other directories.
pub(crate) fn git(turn: &Profile) -> Profile {
    let mut filesystem = turn.filesystem.clone();
    if let Some(entries) = &mut filesystem {
        let at = |name: &str| Place::ProjectRoots(Some(std::path::Path::new(".git").join(name)));
        entries.push(entry(Place::ProjectRoots(Some(".git".into())), Access::Write));
        entries.extend(CLOSED.iter().map(|name| entry(at(name), Access::Read)));
        entries.extend(PINNED.iter().map(|name| entry(at(name), Access::Write)));
    }
    Profile { name: "git".to_owned(), filesystem, keeps_modes: true, ..turn.clone() }
}

/// The turn, with the network.
pub(crate) fn network(turn: &Profile) -> Profile {
    Profile { name: "network".to_owned(), network: true, ..turn.clone() }
}

/// A profile that gives what another gives, but for writing, the network and sockets.
pub(crate) fn without_writing(mut profile: Profile) -> Profile {
    for entry in profile.filesystem.iter_mut().flatten().filter(|entry| entry.access == Access::Write) {
        entry.access = Access::Read;
    }
    profile.network = false;
    profile.unix_sockets.clear();
    profile
}
