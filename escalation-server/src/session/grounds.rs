//! What each profile of a session is measured against: where things are, and what no sandbox may change.

use std::path::{Path, PathBuf};

use super::config::Config;
use super::directories::Directories;
use super::intake;
use super::launch::{LaunchError, real};
use crate::approval::Reviewer;
use crate::flow::Verdict;
use crate::profile::{self, Access, Bases, Place, Profile, Reach, Resolved};
use crate::sandbox::Refusal;

/// The session's places, and its files that decide.
#[derive(Debug)]
pub(super) struct Grounds {
    pub(super) directories: Directories,
    pub(super) bases: Bases,
    /// What was configured for the turn.
    turn: Profile,
    /// What the machine's operator denies to everybody.
    required: Resolved,
    /// Rule and configuration files, absolute.
    sources: Vec<PathBuf>,
    reviewers: Vec<Reviewer>,
    /// Directories of skills.
    skills: Vec<PathBuf>,
    /// Files that say what skills declare.
    metadata: Vec<PathBuf>,
    /// The first rule that keeps commands from a host: its place, and the host.
    host: Option<(String, String)>,
    /// Whether such rules need not be held.
    hosts_are_weaker: bool,
}

impl Grounds {
    /// # Errors
    /// If what the machine's operator denies is wrong.
    pub(super) fn new(
        config: &Config,
        directories: &Directories,
        bases: &Bases,
        real: impl Fn(&Path) -> PathBuf,
    ) -> Result<Self, LaunchError> {
        let restricts = config.policy.network().iter().find(|rule| rule.verdict != Verdict::Allow);
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let mut grounds = Self {
            directories: directories.clone(),
            bases: bases.clone(),
            turn: config.turn.clone(),
            required: Resolved::default(),
            sources: config.sources.iter().map(absolute).collect(),
            reviewers: config.reviewers.programs().cloned().collect(),
            skills: {
                let roots = config.skill_roots.iter();
                roots.chain(config.skills.iter().map(|skill| &skill.directory)).cloned().collect()
            },
            metadata: config.skills.iter().flat_map(|skill| &skill.metadata).cloned().collect(),
            host: restricts.map(|rule| (format!("{}:{}", rule.file, rule.line), rule.host.clone())),
            hosts_are_weaker: config.allow_weaker.iter().any(|name| name == "network_rules"),
        };
        grounds.required = grounds.resolve(&config.required, real)?;
        Ok(grounds)
    }

    /// The turn's profile; `real` takes the symlinks out of a path.
    ///
    /// # Errors
    /// If it would open what decides about sessions.
    pub(super) fn turn(&self, real: impl Fn(&Path) -> PathBuf) -> Result<Resolved, LaunchError> {
        let mut turn = self.resolve(&self.turn, real)?;
        turn.forgo_denied(&self.required);
        turn.keep_denied(&self.required);
        Ok(turn)
    }

    /// Another profile, of which nothing opens what the turn takes unless the operator wrote it: not
    /// one that is `asked_for`.
    ///
    /// # Errors
    /// As for [`Self::turn`].
    pub(super) fn named(
        &self,
        profile: &Profile,
        turn: &Resolved,
        asked_for: bool,
        real: impl Fn(&Path) -> PathBuf,
    ) -> Result<Resolved, LaunchError> {
        let mut resolved = self.resolve(profile, real)?;
        resolved.forgo_denied(&self.required);
        resolved.keep_denied(&self.required);
        // What the turn takes stays taken wherever else a command runs.
        resolved.keep_denied(turn);
        if asked_for {
            resolved.forgo_denied(turn);
        }
        if profile.name == profile::EVERYTHING {
            resolved.reopen(turn);
        }
        Ok(resolved)
    }

    /// The turn's profile, and what was asked for besides.
    pub(super) fn turn_and(&self, name: &str, added: &Profile) -> Profile {
        Profile { name: name.to_owned(), ..self.turn.plus(added) }
    }

    /// A place that is asked for, and that a profile does not give for all that.
    pub(super) fn withheld(&self, asked: &Profile, given: &Resolved) -> Option<PathBuf> {
        let asked = asked.resolve(&self.bases);
        let missing = |path: &Path, access| given.access(&real(path)) < Some(access);
        asked.entries.into_iter().find(|(path, access)| missing(path, *access)).map(|(path, _)| path)
    }

    /// What is given up of rules about hosts, if the operator allowed that and one of these profiles has
    /// the network.
    ///
    /// # Errors
    /// If the operator did not.
    pub(super) fn hosts(&self, open: &[&Resolved]) -> Result<Option<String>, LaunchError> {
        match (&self.host, open.iter().find(|profile| profile.network)) {
            (Some((place, host)), Some(profile)) if !self.hosts_are_weaker => {
                let (place, host, profile) = (place.clone(), host.clone(), profile.name.clone());
                Err(LaunchError::Hosts { place, host, profile })
            }
            (Some((place, _)), Some(profile)) => Ok(Some(format!(
                "rules about hosts are not held: {place}, under the profile {}",
                profile.name
            ))),
            _ => Ok(None),
        }
    }

    /// Whether whatever decides is out of what sandboxes can reach: of all profiles, and of those `open`
    /// to commands. What is given up for it, if the operator allowed that.
    ///
    /// # Errors
    /// The first thing that a sandbox could change.
    pub(super) fn hold(
        &self,
        reach: &Reach,
        all: &[&Resolved],
        open: &[&Resolved],
    ) -> Result<Option<String>, LaunchError> {
        // The links on the way too: by another one the next session would go by another file.
        if let Some(path) = self.sources.iter().find(|path| intake::leads(path, reach).is_none()) {
            return Err(LaunchError::Source(path.clone()));
        }
        if let Some(path) = self.reviewers.iter().find_map(|program| writable(program, reach)) {
            return Err(LaunchError::Source(path));
        }
        let given_up = self.hosts(open)?;
        // What a link leads to says what is declared, as much as the link.
        let metadata = self.metadata.iter().filter(|path| reach.could_change(&real(path)));
        let skills = self.skills.iter().filter(|path| reach.overlaps(path));
        if let Some(path) = skills.chain(metadata).next() {
            return Err(LaunchError::Skills(path.clone()));
        }
        for profile in all.iter().filter(|profile| !profile.unrestricted) {
            if let Some(path) = profile.unix_sockets.iter().find(|path| reach.could_change(path)) {
                return Err(LaunchError::Socket { profile: profile.name.clone(), path: path.clone() });
            }
        }
        Ok(given_up)
    }

    /// A profile here: with every place resolved, and without symlinks.
    fn resolve(&self, profile: &Profile, real: impl Fn(&Path) -> PathBuf) -> Result<Resolved, LaunchError> {
        let directories = &self.directories;
        let mut resolved = profile.resolve(&self.bases);
        if profile.name == profile::EVERYTHING {
            // All but what decides about the next session.
            let own = directories.own().into_iter().chain(self.sources.iter().cloned());
            resolved.entries.extend(own.map(|own| (own, Access::Read)));
        }
        for (path, _) in &mut resolved.entries {
            *path = real(path);
        }
        for denied in &mut resolved.denied {
            denied.root = real(&denied.root);
        }
        for socket in &mut resolved.unix_sockets {
            *socket = real(socket);
        }
        // What somebody wrote into a profile is not dropped in silence, as an implicit root is. What does
        // not exist yet counts too: made from inside, it would be the next session's configuration.
        let explicit = profile.filesystem.iter().flatten().filter(|entry| {
            entry.access == Access::Write && matches!(entry.place, Place::Path(_) | Place::Root)
        });
        for entry in explicit {
            let root = match &entry.place {
                Place::Path(path) => real(path),
                _ => PathBuf::from("/"),
            };
            let open = |own: &PathBuf| {
                (root.starts_with(own) && root != Path::new("/"))
                    || resolved.access(own) == Some(Access::Write)
            };
            if let Some(own) = directories.decides(&real, &root).into_iter().find(open) {
                return Err(Refusal::OwnFiles { profile: profile.name.clone(), path: root, own }.into());
            }
        }
        Ok(resolved)
    }
}

/// What of a reviewer a sandbox could make another: its program, what interprets that, a file among its
/// arguments, or a link on the way to one.
fn writable(reviewer: &Reviewer, reach: &Reach) -> Option<PathBuf> {
    if intake::interpreter(&reviewer.program, reach).is_none() {
        return Some(reviewer.program.clone());
    }
    // A value may stick to its option.
    let texts = reviewer
        .arguments
        .iter()
        .flat_map(|text| [Some(text.as_str()), text.split_once('=').map(|(_, value)| value)]);
    let arguments = texts.flatten().map(|text| Path::new("/").join(text));
    arguments.filter(|path| path.exists()).find(|path| intake::leads(path, reach).is_none())
}
