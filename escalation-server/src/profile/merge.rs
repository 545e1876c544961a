//! Profiles put together: what a request adds to a turn, and what of a request was granted.

use std::num::NonZeroU32;
use std::path::PathBuf;

use super::resolve::{Access, Bases, Entry, Place, Profile};

impl Profile {
    /// This profile and what another adds. Where both speak of a path, the rules for entries decide:
    /// something denied here stays denied, but for what is more specific.
    pub(crate) fn plus(&self, added: &Self) -> Self {
        let mut sum = self.clone();
        sum.network |= added.network;
        let more = added.unix_sockets.iter().filter(|path| !self.unix_sockets.contains(path));
        sum.unix_sockets.extend(more.cloned());
        if let (Some(entries), Some(more)) = (&mut sum.filesystem, &added.filesystem) {
            sum.glob_depth = depth(&[(entries, self.glob_depth), (more, added.glob_depth)]);
            for entry in more {
                if !entries.contains(entry) {
                    entries.push(entry.clone());
                }
            }
        }
        sum
    }

    /// What of a request was granted: nothing that was not asked for, and nothing that was not
    /// given. What either denies stays denied.
    pub(crate) fn granted(requested: &Self, granted: &Self, bases: &Bases) -> Self {
        let asked = requested.resolve(bases);
        let asked_for = |entry: &Entry| {
            let alone = Self { filesystem: Some(vec![entry.clone()]), ..Self::named("") }.resolve(bases);
            !alone.entries.is_empty()
                && alone.entries.iter().all(|(path, access)| asked.access(path) >= Some(*access))
        };
        let entries = |profile: &Self| profile.filesystem.clone().unwrap_or_default();
        let denies = |entry: &Entry| entry.access == Access::None;
        let mut kept: Vec<Entry> =
            entries(granted).into_iter().filter(|entry| denies(entry) || asked_for(entry)).collect();
        // What the request itself narrows stays narrow, where the grant gives that much.
        let given = granted.resolve(bases);
        let narrows = |entry: &Entry| {
            let alone = Self { filesystem: Some(vec![entry.clone()]), ..Self::named("") }.resolve(bases);
            denies(entry)
                || (entry.access == Access::Read
                    && alone.entries.iter().all(|(path, access)| given.access(path) >= Some(*access)))
        };
        for entry in entries(requested).into_iter().filter(narrows) {
            if !kept.contains(&entry) {
                kept.push(entry);
            }
        }
        let sides = [(&entries(requested), requested.glob_depth), (&entries(granted), granted.glob_depth)];
        Self {
            name: granted.name.clone(),
            glob_depth: depth(&sides),
            filesystem: Some(kept),
            network: requested.network && granted.network,
            keeps_modes: requested.keeps_modes || granted.keeps_modes,
            unix_sockets: {
                let asked_for = |path: &&PathBuf| requested.unix_sockets.contains(path);
                granted.unix_sockets.iter().filter(asked_for).cloned().collect()
            },
        }
    }
}

/// How deep patterns of several sides are looked for. No bound is the wider search, and only a side
/// that has patterns counts.
fn depth(sides: &[(&Vec<Entry>, Option<NonZeroU32>)]) -> Option<NonZeroU32> {
    let looks = |entries: &[Entry]| entries.iter().any(|entry| matches!(entry.place, Place::Glob(_)));
    let bounds = sides.iter().filter(|(entries, _)| looks(entries)).map(|(_, bound)| *bound);
    bounds.reduce(|one, two| one.zip(two).map(|(one, two)| one.max(two))).flatten()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::*;

    fn bases() -> Bases {
        Bases {
            project: "/w".into(),
            project_writable: true,
            cwd: "/w".into(),
            cwd_writable: true,
            tmpdir: "/tmp/x".into(),
            slash_tmp: Some("/tmp".into()),
            ..Bases::default()
        }
    }

    fn profile() -> impl Strategy<Value = Profile> {
        let path = proptest::collection::vec("[ab]", 0..3)
            .prop_map(|parts| PathBuf::from(format!("/{}", parts.join("/"))));
        let place = prop_oneof![3 => path.prop_map(Place::Path), 1 => Just(Place::Root), 1 => Just(Place::ProjectRoots(None))];
        let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::None)];
        let entries = proptest::collection::vec(
            (place, access).prop_map(|(place, access)| Entry { place, access }),
            0..5,
        );
        let sockets = proptest::collection::vec("/[ab]", 0..3);
        (entries, any::<bool>(), sockets).prop_map(|(entries, network, sockets)| Profile {
            filesystem: Some(entries),
            network,
            unix_sockets: sockets.into_iter().map(PathBuf::from).collect(),
            ..Profile::named("p")
        })
    }

    fn probe() -> impl Strategy<Value = PathBuf> {
        proptest::collection::vec("[abw]", 0..4)
            .prop_map(|parts| PathBuf::from(format!("/{}", parts.join("/"))))
    }

    proptest! {
        #[test]
        fn adding_gives_nothing_that_the_base_denies_there(base in profile(), added in profile(), probe in probe()) {
            let (before, sum) = (base.resolve(&bases()), base.plus(&added).resolve(&bases()));
            let denied = before.deciding(&probe).filter(|(_, access)| *access == Access::None);
            let more_specific = |at: &Path| added.resolve(&bases()).deciding(&probe).is_some_and(|(entry, _)| entry.components().count() > at.components().count());
            if let Some((at, _)) = denied && !more_specific(at) {
                prop_assert_eq!(sum.access(&probe), None);
            }
        }

        #[test]
        fn adding_twice_adds_once(base in profile(), added in profile()) {
            // What one list names twice is no matter of adding.
            prop_assert_eq!(base.plus(&added).plus(&added), base.plus(&added));
        }

        #[test]
        fn what_is_granted_was_asked_for(requested in profile(), given in profile(), probe in probe()) {
            let both = Profile::granted(&requested, &given, &bases());
            prop_assert!(!both.network || (requested.network && given.network));
            for path in &both.unix_sockets {
                prop_assert!(requested.unix_sockets.contains(path) && given.unix_sockets.contains(path));
            }
            let both = both.resolve(&bases());
            let (asked, given) = (requested.resolve(&bases()), given.resolve(&bases()));
            let denies = |profile: &crate::profile::Resolved| profile.deciding(&probe).is_some_and(|(at, access)| *access == Access::None && *at == probe);
            prop_assert!(both.access(&probe).is_none() || !(denies(&asked) || denies(&given)));
            prop_assert!(both.access(&probe) <= asked.access(&probe));
            prop_assert!(both.access(&probe) <= given.access(&probe));
        }
    }
}
