//! The plan of a sandbox: pure, and all that `apply` goes by.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::alone::weaknesses;
use super::facts::{Facts, Own};
use super::probe::{Abilities, Namespaces};
use super::seccomp::{Calls, Connecting};
use crate::profile::{Access, Resolved, packed};
use crate::sys::landlock::{SCOPES, fs};

/// One change to what a process sees of the filesystem, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mount {
    /// Everything that is mounted, read-only.
    ReadOnlyWorld,
    /// `/dev` with these devices, terminals of its own, and private shared memory.
    Devices(Vec<String>),
    /// This subtree, writable.
    Writable(#[serde(with = "packed")] PathBuf),
    /// This subtree, read-only.
    ReadOnly(#[serde(with = "packed")] PathBuf),
    /// Nothing that anybody may read, over this file or directory; below it these stay as they are.
    Mask(#[serde(with = "packed")] PathBuf, #[serde(with = "packed")] Vec<(PathBuf, Access)>),
    /// A `/proc` of the sandbox's own processes.
    Processes,
}

/// A sandbox, ready to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The profile, with what protects stated as entries.
    pub(crate) profile: Resolved,
    namespaces: Namespaces,
    pub(super) mounts: Vec<Mount>,
    pub(super) landlock_abi: u32,
    /// Paths and what Landlock allows below them.
    #[serde(with = "packed")]
    pub(super) landlock: Vec<(PathBuf, u64)>,
    /// Protected paths that do not exist: to be put there by whoever applies this, and covered.
    #[serde(with = "packed")]
    pub(crate) absent: Vec<PathBuf>,
    /// What its filters depend on.
    pub(super) calls: Calls,
    /// What this sandbox does not hold, by name. For people, before it travels.
    #[serde(skip)]
    pub(crate) missing: Vec<&'static str>,
}

impl Plan {
    pub(crate) fn network(&self) -> bool {
        self.profile.network
    }

    pub(crate) fn calls(&self) -> Calls {
        self.calls
    }

    /// The same sandbox, for a command whose files the server finds by their names. See
    /// [`super::apply::Confinement::refuse_last`].
    pub(crate) fn with_names_served(mut self) -> Self {
        self.calls.names = true;
        self
    }

    pub(crate) fn user_namespace(&self) -> bool {
        self.namespaces == Namespaces::ByUser
    }

    /// Whether there are no namespaces, and Landlock and seccomp hold what they can.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self.namespaces, Namespaces::None(_))
    }

    /// Paths that are covered, which somebody outside can uncover.
    pub(crate) fn covers(&self) -> Vec<PathBuf> {
        let covered = |mount: &Mount| match mount {
            Mount::ReadOnly(path) | Mount::Mask(path, _) => Some(path.clone()),
            _ => None,
        };
        self.mounts.iter().filter_map(covered).collect()
    }

    /// What is masked, whatever an entry says.
    pub(crate) fn masked(&self) -> impl Iterator<Item = &Path> {
        self.mounts.iter().filter_map(|mount| match mount {
            Mount::Mask(path, _) => Some(path.as_path()),
            _ => None,
        })
    }

    /// What can be used in a sandbox's own `/dev`.
    pub(crate) fn devices(&self) -> Vec<PathBuf> {
        let names = self.mounts.iter().filter_map(|mount| match mount {
            Mount::Devices(names) => Some(names),
            _ => None,
        });
        let names = names.flatten().map(String::as_str).chain(["pts", "shm"]);
        names.map(|name| Path::new("/dev").join(name)).collect()
    }

    /// Every step, for people: headings with lines below.
    pub(crate) fn describe(&self) -> Vec<(String, Vec<String>)> {
        let access = |access: Access| if access == Access::Write { "write" } else { "read" };
        let mut mounts: Vec<String> = Vec::new();
        for mount in &self.mounts {
            match mount {
                Mount::ReadOnlyWorld => mounts.push("read-only  /, and all that is mounted below".to_owned()),
                Mount::Devices(names) => mounts.push(format!("own        /dev with {}", names.join(" "))),
                Mount::Writable(path) => mounts.push(format!("writable   {}", path.display())),
                Mount::ReadOnly(path) => mounts.push(format!("read-only  {}", path.display())),
                Mount::Mask(path, open) => {
                    mounts.push(format!("masked     {}", path.display()));
                    mounts.extend(open.iter().map(|(path, wanted)| {
                        format!("           but {}: {}", path.display(), access(*wanted))
                    }));
                }
                Mount::Processes => mounts.push("own        /proc".to_owned()),
            }
        }
        mounts.extend(self.absent.iter().map(|path| format!("stand-in   {}", path.display())));
        let landlock = self
            .landlock
            .iter()
            .map(|(path, rights)| {
                let kind = match rights {
                    rights if rights & fs::WRITE_FILE != 0 => "write",
                    rights if rights & fs::READ_FILE != 0 => "read ",
                    _ => "names",
                };
                format!("{kind} {rights:#06x}  {}", path.display())
            })
            .collect();
        let [refused, served] = super::seccomp::describe(self.calls);
        vec![
            ("mounts, in this order".to_owned(), mounts),
            (format!("Landlock, ABI {}", self.landlock_abi), landlock),
            (
                "sockets of daemons".to_owned(),
                self.profile.unix_sockets.iter().map(|path| path.display().to_string()).collect(),
            ),
            ("system calls refused".to_owned(), refused),
            ("system calls that the server answers".to_owned(), served),
            ("not held here".to_owned(), self.missing.iter().map(|name| (*name).to_owned()).collect()),
        ]
    }

    /// Whether another sandbox may have the same user and network namespace: that one is empty, and
    /// Landlock keeps apart what it would hold.
    pub(crate) fn shareable(&self) -> bool {
        !self.network() && self.scopes()
    }

    /// Whether Landlock keeps signals and abstract sockets in the sandbox.
    pub(crate) fn scopes(&self) -> bool {
        self.landlock_abi >= SCOPES
    }

    /// How it is enforced, in a word for people and records.
    pub(crate) fn strength(&self) -> String {
        strength(self.namespaces, self.landlock_abi, self.network())
    }
}

fn strength(namespaces: Namespaces, landlock_abi: u32, network: bool) -> String {
    let net = if network { "" } else { "+net" };
    let namespaces = match namespaces {
        Namespaces::ByUser => format!("user+mount+pid+ipc{net} namespaces, "),
        Namespaces::ByCapability => format!("mount+pid+ipc{net} namespaces, "),
        Namespaces::None(_) => String::new(),
    };
    format!("{namespaces}landlock {landlock_abi}, seccomp")
}

impl Abilities {
    /// How a restricted profile is enforced with these, in a word for people and records.
    pub(crate) fn strength(&self, network: bool) -> String {
        strength(self.namespaces, self.landlock_abi, network)
    }

    /// What of a profile is not held with these, by name.
    pub(crate) fn missing(&self, profile: &Resolved, own: &Own) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if matches!(self.namespaces, Namespaces::None(_)) {
            let found = weaknesses(profile, own, self.landlock_abi);
            missing.extend(found.iter().map(|weak| weak.name));
        }
        if !self.listener {
            missing.push("socket_gate");
        }
        if self.landlock_abi < SCOPES {
            missing.push("signal_and_abstract_socket_scope");
        }
        if self.landlock_abi < 5 {
            missing.push("device_ioctls");
        }
        missing
    }
}

// Neither device nodes nor ioctls on devices are anybody's to make or use in a writable directory.
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;

/// Plans a sandbox for a restricted profile.
pub(crate) fn plan(given: &Resolved, facts: &Facts, abilities: &Abilities) -> Plan {
    let profile = protected(given, facts);
    let mut plan = Plan {
        namespaces: abilities.namespaces,
        mounts: Vec::new(),
        landlock_abi: abilities.landlock_abi,
        landlock: Vec::new(),
        absent: Vec::new(),
        calls: calls(given, facts.serves_sockets, abilities.listener),
        missing: facts.missing.clone(),
        profile: given.clone(),
    };
    if plan.is_alone() {
        plan.landlock = rules_alone(given, facts, abilities.landlock_abi);
        return plan;
    }
    plan.mounts = mounts(&profile, facts);
    plan.landlock = rules(&profile, facts, abilities.landlock_abi);
    plan.absent.clone_from(&facts.absent);
    // What is denied stays said, also where there is nothing to mask yet.
    let denied = given.entries.iter().filter(|(_, access)| *access == Access::None);
    let denied: Vec<_> = denied.filter(|entry| !facts.entries.contains(entry)).cloned().collect();
    plan.profile = profile;
    plan.profile.entries.extend(denied);
    plan.profile.entries.extend(facts.absent.iter().map(|path| (path.clone(), Access::Read)));
    plan
}
/// A profile as far as it is there, with what protects stated as entries.
fn protected(given: &Resolved, facts: &Facts) -> Resolved {
    let mut profile = given.clone();
    profile.entries.clone_from(&facts.entries);
    profile.entries.extend(facts.protected.iter().map(|path| (path.clone(), Access::Read)));
    profile
}

fn mounts(profile: &Resolved, facts: &Facts) -> Vec<Mount> {
    let mut mounts = Vec::new();
    if profile.access(Path::new("/")) != Some(Access::Write) {
        mounts.push(Mount::ReadOnlyWorld);
    }
    mounts.push(Mount::Devices(facts.devices.iter().map(|name| (*name).to_owned()).collect()));
    let mut mounted = profile.entries.clone();
    mounted.extend(
        pins(profile, facts.denied.iter().chain(&facts.hidden)).into_iter().map(|path| (path, Access::Write)),
    );
    mounted.sort_by_key(|(path, access)| (path.components().count(), *access));
    mounted.dedup();
    for (path, access) in &mounted {
        if path == Path::new("/") || profile.access(path) != Some(*access) {
            continue;
        }
        // What is read-only changes nothing unless something above it is writable.
        let above = path.parent().and_then(|parent| profile.access(parent));
        match access {
            Access::Write => mounts.push(Mount::Writable(path.clone())),
            Access::Read if above == Some(Access::Write) => mounts.push(Mount::ReadOnly(path.clone())),
            Access::Read | Access::None => {}
        }
    }
    let masked = facts.denied.iter().chain(&facts.hidden);
    mounts.extend(masked.map(|path| Mount::Mask(path.clone(), reopened(profile, path))));
    mounts.push(Mount::Processes);
    mounts
}

/// What Landlock gives below something writable.
fn writing(abi: u32) -> u64 {
    fs::all(abi) & !(MAKE_CHAR | MAKE_BLOCK | fs::IOCTL_DEV)
}

/// What it gives on a device.
fn device(abi: u32) -> u64 {
    fs::all(abi) & (fs::READ_FILE | fs::WRITE_FILE | fs::TRUNCATE | fs::IOCTL_DEV | fs::READ_DIR)
}

fn devices(facts: &Facts, abi: u32) -> impl Iterator<Item = (PathBuf, u64)> {
    facts.devices.iter().map(move |name| (Path::new("/dev").join(name), device(abi)))
}

fn rules(profile: &Resolved, facts: &Facts, abi: u32) -> Vec<(PathBuf, u64)> {
    let right = |access| if access == Access::Write { writing(abi) } else { fs::READ };
    let mut rules: Vec<(PathBuf, u64)> = profile
        .entries
        .iter()
        .filter(|(path, access)| *access != Access::None && profile.access(path).is_some())
        .map(|(path, access)| (path.clone(), right(*access)))
        .collect();
    rules.sort_unstable();
    rules.dedup();
    rules.extend(devices(facts, abi));
    for (path, access) in
        [("/dev", fs::READ), ("/dev/pts", device(abi)), ("/dev/shm", writing(abi)), ("/proc", fs::READ)]
    {
        rules.push((path.into(), access));
    }
    rules
}

/// Without mounts `/dev` is everybody's: of its directories nothing is given.
fn rules_alone(profile: &Resolved, facts: &Facts, abi: u32) -> Vec<(PathBuf, u64)> {
    let readable = facts
        .readable
        .iter()
        .map(|(path, names)| (path.clone(), if *names { fs::READ_DIR } else { fs::READ }));
    let writable = facts
        .entries
        .iter()
        .filter(|(path, access)| *access == Access::Write && profile.access(path) == Some(Access::Write));
    let mut rules: Vec<_> = readable.chain(writable.map(|(path, _)| (path.clone(), writing(abi)))).collect();
    rules.extend(devices(facts, abi));
    rules.extend(facts.terminal.iter().map(|path| (path.clone(), device(abi))));
    rules.push(("/proc".into(), fs::READ));
    rules
}

fn calls(profile: &Resolved, serves: bool, served: bool) -> Calls {
    let (network, unix) = (profile.network, !profile.unix_sockets.is_empty());
    let connecting = match (network, unix, serves) {
        (_, true, _) | (true, false, true) => Connecting::Served,
        (true, false, false) => Connecting::Allowed,
        (false, false, _) => Connecting::Refused,
    };
    Calls { network, unix, connecting, served, modes: !profile.keeps_modes, names: false }
}

/// What a profile gives below something that it denies.
fn reopened(profile: &Resolved, denied: &Path) -> Vec<(PathBuf, Access)> {
    let below = |path: &Path| path.starts_with(denied) && path != denied;
    let outermost = |path: &Path| {
        path.ancestors()
            .skip(1)
            .take_while(|above| *above != denied)
            .all(|above| profile.access(above).is_none())
    };
    let mut open: Vec<_> = profile
        .entries
        .iter()
        .filter(|(path, access)| below(path) && profile.access(path) == Some(*access) && outermost(path))
        .cloned()
        .collect();
    open.sort_unstable();
    open.dedup();
    open
}

/// Directories on the way from a writable one to what is covered below it. Each becomes a mount of
/// its own, which nobody inside can rename or remove: or the way itself could be moved, and another
/// one put in its place.
fn pins<'a>(profile: &'a Resolved, masked: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let covered = profile.entries.iter().map(|(path, _)| path).chain(masked);
    let above = covered.flat_map(|path| path.ancestors().skip(1));
    let mut pins: Vec<PathBuf> = above
        .filter(|path| path.parent().is_some() && profile.access(path) == Some(Access::Write))
        .filter(|path| !profile.entries.iter().any(|(entry, _)| entry == path))
        .map(Path::to_path_buf)
        .collect();
    pins.sort_unstable();
    pins.dedup();
    pins
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities(namespaces: Namespaces) -> Abilities {
        Abilities {
            landlock_abi: 7,
            peers: true,
            namespaces,
            listener: true,
            connects: true,
            looks: true,
            privileged: false,
            allowed: Vec::new(),
        }
    }

    fn planned(entries: &[(&str, Access)], protected: &[&str]) -> Plan {
        let entries: Vec<_> = entries.iter().map(|(path, access)| (PathBuf::from(path), *access)).collect();
        let profile = Resolved { name: "p".to_owned(), entries: entries.clone(), ..Resolved::default() };
        let facts = Facts {
            entries,
            protected: protected.iter().map(PathBuf::from).collect(),
            hidden: vec!["/home/u/.local/state/postern".into()],
            devices: vec!["null"],
            ..Facts::default()
        };
        plan(&profile, &facts, &abilities(Namespaces::ByUser))
    }

    #[test]
    fn carve_outs_come_after_what_they_are_carved_from() {
        let plan =
            planned(&[("/", Access::Read), ("/w", Access::Write), ("/w/a/b", Access::Write)], &["/w/a"]);
        assert_eq!(
            plan.mounts,
            [
                Mount::ReadOnlyWorld,
                Mount::Devices(vec!["null".to_owned()]),
                Mount::Writable("/w".into()),
                Mount::ReadOnly("/w/a".into()),
                Mount::Writable("/w/a/b".into()),
                Mount::Mask("/home/u/.local/state/postern".into(), Vec::new()),
                Mount::Processes,
            ]
        );
    }

    #[test]
    fn the_way_to_what_is_covered_cannot_be_moved() {
        let plan = planned(
            &[("/", Access::Read), ("/w", Access::Write), ("/w/a/b", Access::Write)],
            &["/w/a/b/.git"],
        );
        let at = |mount: &Mount| plan.mounts.iter().position(|found| found == mount);
        let pin = at(&Mount::Writable("/w/a".into())).expect("the directory between is a mount");
        assert!(at(&Mount::Writable("/w".into())) < Some(pin));
        assert!(Some(pin) < at(&Mount::Writable("/w/a/b".into())));
    }

    #[test]
    fn reading_gives_no_writing_right() {
        let plan = planned(&[("/", Access::Read), ("/w", Access::Write)], &[]);
        let rights = |path: &str| plan.landlock.iter().find(|(at, _)| at == Path::new(path)).unwrap().1;
        assert_eq!(rights("/") & fs::WRITE_FILE, 0);
        assert_ne!(rights("/w") & fs::WRITE_FILE, 0);
        assert_eq!(rights("/w") & (MAKE_BLOCK | MAKE_CHAR | fs::IOCTL_DEV), 0);
    }

    #[test]
    fn a_writable_world_is_not_made_read_only() {
        let plan = planned(&[("/", Access::Write), ("/w", Access::Read)], &[]);
        assert!(!plan.mounts.contains(&Mount::ReadOnlyWorld));
        assert!(plan.mounts.contains(&Mount::ReadOnly("/w".into())));
    }
}
