//! `requirements.toml` of the machine's operator: what nobody below may ask for.

use std::num::NonZeroU32;
use std::path::Path;

use nix::unistd::{User, geteuid};
use serde::Deserialize;
use toml::Spanned;

use super::config::{self, ConfigError, MODES};
use super::directories::SYSTEM;
use super::layers;
use super::permissions::expand;
use super::review::Reviewers;
use crate::approval::Approver;
use crate::flow::{Allowed, Verdict};
use crate::policy::{ApprovalPolicy, Policy, Rule};
use crate::profile::{self, Access, Entry, Place, Profile, is_pattern};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    allowed_approval_policies: Option<Vec<String>>,
    allowed_approvals_reviewers: Option<Vec<String>>,
    allowed_sandbox_modes: Option<Vec<String>>,
    #[serde(default)]
    rules: Rules,
    #[serde(default)]
    permissions: Permissions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    #[serde(default)]
    prefix_rules: Vec<Spanned<PrefixRule>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixRule {
    pattern: Vec<Token>,
    decision: String,
    justification: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    token: Option<String>,
    any_of: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Permissions {
    #[serde(default)]
    filesystem: Filesystem,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filesystem {
    #[serde(default)]
    deny_read: Vec<String>,
    glob_scan_max_depth: Option<NonZeroU32>,
}

/// What every session on this machine is held to.
#[derive(Debug, Default)]
pub(super) struct Requirements {
    /// The first one is what is used in place of what is not allowed. Empty: all are.
    policies: Vec<(String, Option<ApprovalPolicy>)>,
    /// None: all are.
    reviewers: Option<Vec<String>>,
    /// None: all are.
    modes: Option<Vec<String>>,
    denied: Vec<Entry>,
    glob_depth: Option<NonZeroU32>,
    rules: Vec<Rule>,
}

impl Requirements {
    /// # Errors
    /// A file that is there and cannot be read or understood.
    pub(super) fn read(home: &Path) -> Result<Self, ConfigError> {
        let path = Path::new(SYSTEM).join("requirements.toml");
        match config::read(&path)? {
            Some(text) => parse(&path, &text, home),
            None => Ok(Self::default()),
        }
    }

    /// Adds the rules that hold for everybody.
    pub(super) fn restrict(&self, policy: &mut Policy) {
        self.rules.iter().for_each(|rule| policy.add(rule.clone()));
    }

    /// The approval policy that is used; something to be said where an explicit one is not.
    pub(super) fn approval(
        &self,
        asked: ApprovalPolicy,
        explicit: bool,
        said: &mut Vec<String>,
    ) -> ApprovalPolicy {
        let Some((first, used)) = self.policies.first() else { return asked };
        if self.policies.iter().any(|(name, _)| name == asked.name()) {
            return asked;
        }
        if explicit {
            said.push(format!(
                "requirements.toml does not allow the approval policy {}: it is {first} instead",
                asked.name()
            ));
        }
        used.clone().unwrap_or_default()
    }

    /// Who answers; something to be said where somebody who was named does not. Where nobody would, people do.
    pub(super) fn reviewers(&self, asked: Reviewers, explicit: bool, said: &mut Vec<String>) -> Reviewers {
        let Some(allowed) = &self.reviewers else { return asked };
        let kind = |approver: &Approver| match approver {
            Approver::Person => "user",
            Approver::Program(_) => "reviewer",
        };
        let (approvers, others): (Vec<_>, Vec<_>) =
            asked.approvers.into_iter().partition(|approver| allowed.iter().any(|one| one == kind(approver)));
        if let Some(other) = others.first().filter(|_| explicit) {
            said.push(format!(
                "requirements.toml does not allow that a {} answers for this session's commands",
                kind(other)
            ));
        }
        if approvers.is_empty() { Reviewers::default() } else { Reviewers { approvers, ..asked } }
    }

    /// The turn's profile that is used; something to be said where an explicit one is not.
    pub(super) fn turn(&self, asked: Profile, explicit: bool, said: &mut Vec<String>) -> Profile {
        let kind = kind(&asked);
        let allowed = self.modes.as_ref().is_none_or(|modes| modes.iter().any(|mode| mode == kind));
        if allowed {
            return asked;
        }
        if explicit {
            said.push(format!(
                "requirements.toml does not allow {}, which is {kind}: it is read-only instead",
                asked.name
            ));
        }
        let denied = asked.filesystem.into_iter().flatten().filter(|entry| entry.access == Access::None);
        let mut used = profile::read_only();
        used.filesystem.get_or_insert_default().extend(denied);
        Profile { glob_depth: asked.glob_depth, ..used }
    }

    /// A profile that gives nothing, and takes what nobody may read.
    pub(super) fn denied(&self) -> Profile {
        let name = "requirements.toml".to_owned();
        let filesystem = Some(self.denied.clone());
        Profile {
            name,
            filesystem,
            glob_depth: self.glob_depth,
            ..profile::without_writing(profile::read_only())
        }
    }
}

/// The mode that gives as much as a profile, as far as requirements go.
fn kind(profile: &Profile) -> &'static str {
    let [read_only, workspace_write, full] = MODES;
    let Some(entries) = &profile.filesystem else { return full };
    let writes = |entry: &&Entry| entry.access == Access::Write;
    let everything = |entry: &Entry| match &entry.place {
        Place::Root => true,
        // By whatever way it leads there.
        Place::Path(path) => path.canonicalize().unwrap_or_else(|_| path.clone()).parent().is_none(),
        _ => false,
    };
    match entries.iter().filter(writes).map(everything).max() {
        None if profile.network || !profile.unix_sockets.is_empty() => workspace_write,
        None => read_only,
        Some(false) => workspace_write,
        Some(true) => full,
    }
}

fn parse(path: &Path, text: &str, home: &Path) -> Result<Requirements, ConfigError> {
    let parsed: Table = toml::from_str(text)
        .map_err(|error| ConfigError::Parse { path: path.to_path_buf(), error: Box::new(error) })?;
    let wrong =
        |key: &str, what: String| ConfigError::Value { place: format!("{}: {key}", path.display()), what };
    let mut found = Requirements::default();
    if let Some(names) = parsed.allowed_approval_policies {
        let key = "allowed_approval_policies";
        for name in names {
            // Granular is a family: which one, whoever asks for it says.
            let policy = if name == "granular" {
                None
            } else {
                Some(layers::approval(&name, format!("{}: {key}", path.display()))?)
            };
            found.policies.push((name, policy));
        }
        if found.policies.first().is_none_or(|(_, policy)| policy.is_none()) {
            let what =
                "expected first the policy that is used in place of others: untrusted, on-request or never";
            return Err(wrong(key, what.to_owned()));
        }
    }
    if let Some(names) = parsed.allowed_approvals_reviewers {
        let key = "allowed_approvals_reviewers";
        if let Some(unknown) = names.iter().find(|name| !["user", "reviewer"].contains(&name.as_str())) {
            return Err(wrong(key, format!("expected user or reviewer, got `{unknown}`")));
        }
        if !names.iter().any(|name| name == "user") {
            let what = "user must be among them: people answer where no program does".to_owned();
            return Err(wrong(key, what));
        }
        found.reviewers = Some(names);
    }
    let denied = !parsed.permissions.filesystem.deny_read.is_empty();
    if let Some(modes) = parsed.allowed_sandbox_modes {
        if let Some(unknown) = modes.iter().find(|mode| !MODES.contains(&mode.as_str())) {
            let what = format!("expected {}, got `{unknown}`", MODES.join(", "));
            return Err(wrong("allowed_sandbox_modes", what));
        }
        if !modes.iter().any(|mode| mode == MODES[0]) {
            let what = "read-only must be among them: it is used in place of others".to_owned();
            return Err(wrong("allowed_sandbox_modes", what));
        }
        found.modes = Some(modes);
    }
    if denied {
        // What may do everything may read everything.
        let modes = found.modes.get_or_insert_with(|| MODES.map(str::to_owned).to_vec());
        modes.retain(|mode| mode != MODES[2]);
    }
    found.glob_depth = parsed.permissions.filesystem.glob_scan_max_depth;
    // Whatever HOME says: what is meant is the account's.
    let account = User::from_uid(geteuid()).ok().flatten().map(|user| user.dir);
    let homes = || [home].into_iter().chain(account.as_deref().filter(|own| *own != home));
    let denied = parsed.permissions.filesystem.deny_read;
    for (text, home) in denied.iter().flat_map(|text| homes().map(move |home| (text, home))) {
        let key = "permissions.filesystem.deny_read";
        let whole = expand(text, home);
        if !whole.is_absolute() {
            return Err(wrong(
                key,
                format!("expected a path or pattern that begins with / or ~/, got `{text}`"),
            ));
        }
        let place = if is_pattern(text) {
            Place::Glob(whole.to_string_lossy().into_owned())
        } else {
            Place::Path(whole)
        };
        let entry = Entry { place, access: Access::None };
        if !found.denied.contains(&entry) {
            found.denied.push(entry);
        }
    }
    for rule in parsed.rules.prefix_rules {
        let line = text.get(..rule.span().start).unwrap_or_default().matches('\n').count() + 1;
        found.rules.push(self::rule(rule.into_inner(), path, line)?);
    }
    Ok(found)
}

fn rule(rule: PrefixRule, path: &Path, line: usize) -> Result<Rule, ConfigError> {
    let file = path.display().to_string();
    let wrong = |what: &str| ConfigError::Value {
        place: format!("{file}:{line}: rules.prefix_rules"),
        what: what.to_owned(),
    };
    let blank = |text: &String| text.trim().is_empty();
    let pattern = rule.pattern.into_iter().map(|token| match (token.token, token.any_of) {
        (Some(word), None) if !blank(&word) => Ok(vec![word]),
        (None, Some(words)) if !words.is_empty() && !words.iter().any(blank) => Ok(words),
        _ => Err(wrong("pattern: expected { token = WORD } or { any_of = [WORDS] }, none of them blank")),
    });
    let pattern = pattern.collect::<Result<Vec<_>, _>>()?;
    if pattern.is_empty() {
        return Err(wrong("pattern: expected at least one word"));
    }
    let verdict = Verdict::named(&rule.decision).filter(|verdict| *verdict != Verdict::Allow);
    let verdict =
        verdict.ok_or_else(|| wrong("decision: expected prompt or forbidden: these rules only restrict"))?;
    if rule.justification.as_ref().is_some_and(blank) {
        return Err(wrong("justification: expected text, got a blank"));
    }
    let (justification, allowed) = (rule.justification, Allowed::default());
    Ok(Rule {
        pattern,
        verdict,
        justification,
        allowed,
        audit: false,
        exact: false,
        anywhere: true,
        file: file.clone(),
        line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Requirements, String> {
        parse(Path::new("/r.toml"), text, Path::new("/home/u")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_allowed_becomes_what_is() {
        let requirements = read(
            "allowed_approval_policies = ['untrusted', 'granular']\nallowed_sandbox_modes = ['read-only']\n",
        )
        .unwrap();
        let mut said = Vec::new();
        assert_eq!(requirements.approval(ApprovalPolicy::Never, true, &mut said), ApprovalPolicy::Untrusted);
        assert_eq!(
            requirements.approval(ApprovalPolicy::OnRequest, false, &mut said),
            ApprovalPolicy::Untrusted
        );
        assert_eq!(said.len(), 1, "what nobody asked for is changed without a word");
        assert_eq!(requirements.turn(profile::workspace_write(), true, &mut said).name, "read-only");
        assert_eq!(requirements.turn(profile::danger_full_access(), false, &mut said).name, "read-only");
        assert_eq!(said.len(), 2);
    }

    #[test]
    fn what_writes_everywhere_is_full_access_and_denials_outlive_the_change() {
        let requirements = read("allowed_sandbox_modes = ['read-only', 'workspace-write']").unwrap();
        let entry = |path: &str, access| Entry { place: Place::Path(path.into()), access };
        let entries = vec![entry("/", Access::Write), entry("/secret", Access::None)];
        for everywhere in ["/usr/..", "/proc/self/root"] {
            let filesystem = Some(vec![entry(everywhere, Access::Write)]);
            let asked = Profile { filesystem, ..profile::read_only() };
            assert_eq!(requirements.turn(asked, false, &mut Vec::new()).name, "read-only");
        }
        assert_eq!(kind(&Profile { network: true, ..profile::read_only() }), "workspace-write");
        let asked = Profile { filesystem: Some(entries), name: "mine".to_owned(), ..profile::read_only() };
        let used = requirements.turn(asked, false, &mut Vec::new());
        assert!(
            used.name == "read-only" && used.filesystem.unwrap().contains(&entry("/secret", Access::None))
        );
    }

    #[test]
    fn what_nobody_may_read_is_denied_to_all_and_leaves_no_full_access() {
        let requirements = read("permissions.filesystem.deny_read = ['~/.ssh', '/srv/**/*.pem']").unwrap();
        let mut said = Vec::new();
        assert_eq!(requirements.turn(profile::danger_full_access(), true, &mut said).name, "read-only");
        assert!(said[0].contains("danger-full-access"));
        let entries = requirements.denied().filesystem.unwrap();
        let denied = |place| entries.contains(&Entry { place, access: Access::None });
        assert!(
            denied(Place::Path("/home/u/.ssh".into())) && denied(Place::Glob("/srv/**/*.pem".to_owned()))
        );
        assert_eq!(requirements.turn(profile::workspace_write(), true, &mut said).name, "workspace-write");
    }

    #[test]
    fn rules_restrict_and_know_their_place() {
        let text = "[rules]\nprefix_rules = [\n  { pattern = [{ token = 'git' }, { any_of = ['push', 'fetch'] }], decision = 'forbidden', justification = 'no' },\n]\n";
        let requirements = read(text).unwrap();
        let mut policy = Policy::default();
        requirements.restrict(&mut policy);
        let rule = &policy.rules()[0];
        assert_eq!((rule.verdict, rule.line, rule.pattern[1].len()), (Verdict::Forbidden, 3, 2));
        let text = "\n[[rules.prefix_rules]]\npattern = [{ token = 'x' }]\ndecision = 'prompt'\n";
        assert_eq!(read(text).unwrap().rules[0].line, 2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("allowed_approval_policies = []", "expected first the policy"),
            ("allowed_approval_policies = ['granular']", "expected first the policy"),
            ("allowed_approval_policies = ['always']", "allowed_approval_policies: expected untrusted"),
            ("allowed_sandbox_modes = ['workspace-write']", "read-only must be among them"),
            ("allowed_sandbox_modes = ['none']", "got `none`"),
            ("allowed_approvals_reviewers = ['reviewer']", "user must be among them"),
            ("allowed_approvals_reviewers = ['user', 'model']", "got `model`"),
            ("allowed_sandbox_mode = ['read-only']", "unknown field"),
            ("permissions.filesystem.deny_read = ['x']", "begins with /"),
            (
                "[rules]\nprefix_rules = [{ pattern = [{ token = 'x' }], decision = 'allow' }]",
                "/r.toml:2: rules.prefix_rules: decision: expected prompt or forbidden",
            ),
            ("[rules]\nprefix_rules = [{ pattern = [], decision = 'prompt' }]", "at least one word"),
            (
                "[rules]\nprefix_rules = [{ pattern = [{ token = ' ' }], decision = 'prompt' }]",
                "none of them blank",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
