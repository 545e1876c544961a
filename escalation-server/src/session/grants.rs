//! What commands of a session may run under: the profiles that it starts with, and what is asked for
//! while it runs.
//!
//! A profile that somebody approves may let sandboxes reach what they could not before. Whatever was
//! judged before that is not started after it.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use postern_shim::wire::{Answer, Bytes, MAX_PATH, MAX_PROFILE, More, Plea};
use serde_json::json;

use super::asker::Asker;
use super::grounds::Grounds;
use super::launch::real;
use super::prompt::{self, shown};
use super::server::{Session, has_ended};
use crate::approval::{Asked, Choice, Desk, Ending, Field, Identity, Lasting};
use crate::flow::text::printable;
use crate::flow::{ContextId, Execution, Request};
use crate::policy::{Cause, Requested, Stance};
use crate::profile::{Access, Base, Entry, Place, Profile, Reach, Resolved, from_json};
use crate::sandbox::{Abilities, Facts, Own, by_every_path};

/// Profiles by name.
pub(super) type Named = BTreeMap<String, Rc<Resolved>>;

/// How the profile of a wish is called, and a number. No configuration can write such a name.
pub(super) const WISHED: &str = "requested:";
/// How the profile of what was granted to the turn is called, and a number.
pub(super) const GRANTED: &str = "granted:";

/// Profiles that may be asked for in one session.
const MOST: usize = 64;
/// Places that one request may name.
const MOST_PLACES: usize = 32;
/// Characters of a justification.
const MOST_TEXT: usize = 1000;

#[derive(Debug)]
pub(super) struct Grants {
    grounds: Grounds,
    turn: Rc<Resolved>,
    named: RefCell<Named>,
    reach: RefCell<Rc<Reach>>,
    /// Counts how often sandboxes came to reach more.
    age: Cell<u64>,
    standing: RefCell<Option<Rc<Standing>>>,
    /// Requests that were refused.
    refused: Cell<u32>,
    starting: Rc<Cell<usize>>,
}

/// What every later command of the turn has besides, as long as the desk holds the grant.
#[derive(Debug, Clone)]
struct Standing {
    identity: Identity,
    profile: Rc<Resolved>,
    added: Profile,
}

/// A command between its judgement and its start.
#[derive(Debug)]
pub(super) struct Starting(Rc<Cell<usize>>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Grants {
    pub(super) fn new(grounds: Grounds, turn: Rc<Resolved>, named: Named, reach: Reach) -> Self {
        Self {
            grounds,
            turn,
            named: RefCell::new(named),
            reach: RefCell::new(Rc::new(reach)),
            age: Cell::new(0),
            standing: RefCell::default(),
            refused: Cell::new(0),
            starting: Rc::default(),
        }
    }

    /// What the turn and every profile that may be in use can write.
    pub(super) fn reach(&self) -> Rc<Reach> {
        Rc::clone(&self.reach.borrow())
    }

    /// The same with one more profile.
    fn reach_with(&self, profile: &Resolved) -> Reach {
        by_every_path(Reach::clone(&self.reach()).and(profile))
    }

    pub(super) fn profile(&self, name: &str) -> Option<Rc<Resolved>> {
        self.named.borrow().get(name).cloned()
    }

    /// The state directory.
    pub(super) fn state(&self) -> &Path {
        &self.grounds.directories.state
    }

    /// Changes when sandboxes come to reach more.
    pub(super) fn age(&self) -> u64 {
        self.age.get()
    }

    /// Notes that a command is about to start.
    pub(super) fn starting(&self) -> Starting {
        self.starting.set(self.starting.get() + 1);
        Starting(Rc::clone(&self.starting))
    }

    /// Every name that what was granted to the turn has had.
    fn granted_names(&self) -> Vec<String> {
        self.named.borrow().keys().filter(|name| name.starts_with(GRANTED)).cloned().collect()
    }

    /// The profile of what was granted to the turn, while that holds.
    fn standing(&self, desk: &Desk) -> Option<Rc<Standing>> {
        self.standing.borrow().clone().filter(|standing| desk.holds(standing.identity))
    }

    /// The turn's profile and what is asked for besides, under a name of its own.
    ///
    /// # Errors
    /// Why that cannot be had.
    fn add(
        &self,
        kind: &str,
        added: &Profile,
        own: &Own,
        abilities: &Abilities,
    ) -> Result<Rc<Resolved>, String> {
        let provisional = kind.trim_end_matches(':');
        let wanted = self.grounds.turn_and(provisional, added);
        let text = |error: &dyn std::error::Error| printable(error.to_string().as_bytes());
        let resolved = self.grounds.named(&wanted, &self.turn, true, real);
        let mut resolved = resolved.map_err(|error| text(&error))?;
        if !resolved.is_absolute() {
            return Err("it names what is no absolute path".to_owned());
        }
        let known = self.named.borrow();
        let asked_for =
            || known.iter().filter(|(name, _)| name.starts_with(WISHED) || name.starts_with(GRANTED));
        let equal = |known: &Resolved| Resolved { name: provisional.to_owned(), ..known.clone() } == resolved;
        if let Some((_, equal)) = asked_for().find(|(name, known)| name.starts_with(kind) && equal(known)) {
            return Ok(Rc::clone(equal));
        }
        let number = asked_for().count() + 1;
        if number > MOST {
            return Err(format!("more than {MOST} different permissions were asked for in this session"));
        }
        resolved.name = format!("{kind}{number}");
        if let Some(path) = self.grounds.withheld(added, &resolved) {
            let what = "is denied, and nothing but the configuration opens it";
            return Err(format!("{} {what}", shown(&path)));
        }
        Facts::gather(&resolved, own, abilities).map_err(|error| text(&error))?;
        let reach = self.reach_with(&resolved);
        let all: Vec<&Resolved> = known.values().map(Rc::as_ref).chain([&*self.turn, &resolved]).collect();
        self.grounds.hold(&reach, &all, &[&resolved]).map_err(|error| text(&error))?;
        let resolved = Rc::new(resolved);
        drop(known);
        self.named.borrow_mut().insert(resolved.name.clone(), Rc::clone(&resolved));
        Ok(resolved)
    }

    /// What somebody in the session wants to have added to its turn.
    ///
    /// # Errors
    /// What is wrong with it.
    fn wanted(&self, more: &More) -> Result<Profile, String> {
        let text = std::str::from_utf8(more.profile.as_slice()).map_err(|_| "the profile is not UTF-8")?;
        if text.len() > MAX_PROFILE {
            return Err(format!("the profile is longer than {MAX_PROFILE} bytes"));
        }
        let base = Path::new(OsStr::from_bytes(more.base.as_slice()));
        if !base.is_absolute() || base.as_os_str().len() > MAX_PATH {
            return Err("the directory of its relative paths is no absolute path".to_owned());
        }
        let base = Base { directory: base, home: &self.grounds.directories.home };
        let mut wanted =
            from_json("", text, base).map_err(|error| printable(error.to_string().as_bytes()))?;
        if !wanted.unix_sockets.is_empty() {
            return Err("sockets are given by the configuration alone".to_owned());
        }
        let entries = wanted.filesystem.get_or_insert_default();
        if entries.is_empty() && !wanted.network {
            return Err("it asks for nothing: give network or fileSystem".to_owned());
        }
        if entries.len() > MOST_PLACES {
            return Err(format!(
                "while a session runs at most {MOST_PLACES} places can be asked for at once"
            ));
        }
        for entry in entries {
            let Entry { place: Place::Path(path), access: Access::Read | Access::Write } = entry else {
                return Err("while a session runs paths can be asked for, to read and to write".to_owned());
            };
            // What is not there cannot be shown, nor what it may come to lead to.
            let found = path.canonicalize().map_err(|error| format!("{}: {error}", shown(path)))?;
            let own = |path: &Path| ["/proc", "/dev", "/sys"].iter().any(|own| path.starts_with(own));
            if own(path) || own(&found) {
                return Err(format!("{} is each sandbox's own", shown(path)));
            }
            *path = found;
        }
        Ok(wanted)
    }
}

fn said(text: &Bytes) -> Result<Option<String>, String> {
    let text = String::from_utf8_lossy(text.as_slice());
    match text.chars().count() {
        0 => Ok(None),
        count if count > MOST_TEXT => Err(format!("a justification has at most {MOST_TEXT} characters")),
        _ => Ok(Some(text.into_owned())),
    }
}

impl Session {
    /// What this request meets where no rule matches it.
    ///
    /// # Errors
    /// Why what it asks for cannot even be asked about.
    pub(super) fn stance_for(&self, request: &Request) -> Result<Cow<'_, Stance>, String> {
        if let Some(wish) = &request.wish {
            if !self.stance.policy.takes_requests() {
                let what = "more than the sandbox can only be asked for under the approval policy on-request";
                return Err(what.to_owned());
            }
            let execution = match &wish.more {
                None => Execution::Unsandboxed,
                Some(more) => {
                    let wanted = self.grants.wanted(more)?;
                    let standing = self.of_turn(request.context).then(|| self.grants.standing(&self.desk));
                    let added = match standing.flatten() {
                        Some(standing) => standing.added.plus(&wanted),
                        None => wanted,
                    };
                    let profile = self.grants.add(WISHED, &added, &self.own, &self.abilities)?;
                    Execution::Permissions(profile.name.clone())
                }
            };
            let prefix = wish.prefix.iter().map(|word| String::from_utf8(word.as_slice().to_vec()));
            let prefix = prefix.collect::<Result<_, _>>().map_err(|_| "a word of the rule is not UTF-8")?;
            let requested = Requested { execution, justification: said(&wish.justification)?, prefix };
            return Ok(Cow::Owned(Stance { requested: Some(requested), ..self.stance.clone() }));
        }
        match self.granted(request.context) {
            None => Ok(Cow::Borrowed(&self.stance)),
            Some(profile) => {
                let granted = Some(Execution::Permissions(profile.name.clone()));
                Ok(Cow::Owned(Stance { granted, ..self.stance.clone() }))
            }
        }
    }

    /// What was granted to the turn, for a command of it: one that was started by the shell, or under
    /// what was granted.
    pub(super) fn granted(&self, context: ContextId) -> Option<Rc<Resolved>> {
        let standing = self.grants.standing(&self.desk)?;
        self.of_turn(context).then(|| Rc::clone(&standing.profile))
    }

    /// Whether a context is the turn's, or one under what was granted to that.
    fn of_turn(&self, context: ContextId) -> bool {
        context == ContextId::TURN || self.profile_of(context).name.starts_with(GRANTED)
    }

    /// Lets commands run under a profile that was asked for; `age` is how much sandboxes could reach when
    /// that was judged, if it matters. Nothing that is trusted by what they could not reach goes on.
    ///
    /// # Errors
    /// Why not: commands that were judged before are on their way, or run with more than the turn has.
    pub(super) async fn open(&self, name: &str, age: Option<u64>) -> Result<(), String> {
        const LONGEST: Duration = Duration::from_secs(2);
        let profile = self.grants.profile(name).ok_or_else(|| format!("there is no profile {name}"))?;
        self.link.define(&profile).await.map_err(|error| format!("name a profile: {error}"))?;
        let began = std::time::Instant::now();
        while self.grants.reach_with(&profile) != *self.grants.reach() && self.grants.starting.get() > 0 {
            if began.elapsed() > LONGEST {
                return Err("other commands are being started; try again".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // From here to the next wait nothing else is judged.
        if age.is_some_and(|age| age != self.grants.age()) {
            return Err("sandboxes came to reach more meanwhile; try again".to_owned());
        }
        let before = self.grants.reach();
        let reach = self.grants.reach_with(&profile);
        if reach != *before {
            // What it goes by as it runs nobody knows: files that it reads, programs that it starts.
            if let Some(command) = self.live.borrow().values().find(|command| command.wider) {
                return Err(format!(
                    "{} runs with more than the sandbox has, and might go by what could then be written; ask again \
                     when it has ended",
                    command.summary
                ));
            }
            self.hold_project(&reach);
            *self.grants.reach.borrow_mut() = Rc::new(reach);
            self.grants.age.set(self.grants.age.get() + 1);
            self.forget_hashes();
            self.chain.runs_in(|| self.reviewers_environment());
        }
        Ok(())
    }

    /// Whether an execution that was judged by what was granted still is.
    pub(super) fn still_granted(&self, name: &str, context: ContextId) -> bool {
        !name.starts_with(GRANTED) || self.granted(context).is_some_and(|profile| profile.name == name)
    }

    /// Ends what was granted to the turn, and whatever runs under it, if that holds no longer.
    pub(super) async fn lapse(&self) {
        let over = |standing: &mut Rc<Standing>| !self.desk.holds(standing.identity);
        let Some(standing) = self.grants.standing.borrow_mut().take_if(over) else { return };
        self.link.lapse(self.grants.granted_names()).await;
        let _unrecorded = self.recorder.session_event("lapsed", &json!({ "profile": standing.profile.name }));
    }

    /// Answers who asks for more for every later command of the turn.
    pub(super) async fn plead(
        self: &Rc<Self>,
        context: ContextId,
        plea: &Plea,
        peer: &OwnedFd,
        asker: &Asker,
    ) {
        match self.grant(context, plea, peer, asker).await {
            Ok(until) => {
                asker.answer(Answer::Run);
                if let Some(until) = until {
                    let session = Rc::clone(self);
                    tokio::task::spawn_local(async move {
                        tokio::time::sleep(until).await;
                        session.lapse().await;
                    });
                }
            }
            Err(why) => {
                // Nobody fills the log with them.
                const MOST: u32 = 200;
                self.grants.refused.set(self.grants.refused.get() + 1);
                if self.grants.refused.get() <= MOST {
                    let body = json!({ "reason": why });
                    let _unrecorded = self.recorder.session_event("not_granted", &body);
                }
                asker.deny(&format!("more permissions ({why})"));
            }
        }
    }

    /// Asks, and grants. For how long, where that has an end.
    async fn grant(
        &self,
        context: ContextId,
        plea: &Plea,
        peer: &OwnedFd,
        asker: &Asker,
    ) -> Result<Option<Duration>, String> {
        if self.stance.unrestricted {
            return Ok(None);
        }
        if !self.of_turn(context) {
            let had = self.profile_of(context);
            return Err(format!("asked from permissions({}); only the turn can be given more", had.name));
        }
        self.stance.policy.may_ask(Cause::Permissions)?;
        if !self.abilities.hold_below_writable() {
            return Err("without namespaces what runs under a grant could not be ended with it".to_owned());
        }
        if !self.desk.admits() {
            return Err("too much was asked for in this minute".to_owned());
        }
        let added = self.grants.wanted(&plea.more)?;
        let justification = said(&plea.justification)?;
        let turn = self.profile_of(ContextId::TURN);
        // One grant at a time: what holds already is part of the next.
        let standing = self.grants.standing(&self.desk);
        let added = match &standing {
            Some(standing) => standing.added.plus(&added),
            None => added,
        };
        let profile = self.grants.add(GRANTED, &added, &self.own, &self.abilities)?;
        if profile.within(standing.as_ref().map_or(&*turn, |standing| &*standing.profile)) {
            return Ok(None);
        }
        if !self.chain.has_people() {
            return Err("only programs answer in this session, and people grant this".to_owned());
        }
        let difference = prompt::difference(&self.enforced(&profile), &turn, prompt::SHELL)
            .ok_or("it gives nothing that the shell does not have")?;
        let care = self.given_up(&profile).into_iter().chain(self.loses_project(&profile));
        let asked = asked(&profile, &difference, justification.as_deref(), care);
        let waits = |id: &str| {
            asker.waiting(&format!(
                "more permissions wait for an approval; answer in another terminal: postern approve {id}"
            ));
        };
        let identity = asked.identity;
        let answer = {
            let _asking = prompt::Asking::new(&self.asking);
            self.desk.ask(asked, has_ended(peer), waits).await
        };
        if let Some(why) = prompt::denial(self, &answer) {
            return Err(format!("{why}: {}", difference.replace('\n', ", ")));
        }
        let then = standing.map(|standing| standing.identity);
        let same = || {
            let now = self.grants.standing(&self.desk).map(|standing| standing.identity);
            let same = now.is_none() || now == then || now == Some(identity);
            same.then_some(()).ok_or_else(|| "something else was granted meanwhile; ask again".to_owned())
        };
        let given = async {
            same()?;
            self.open(&profile.name, None).await?;
            same()?;
            let body = json!({
                "profile": profile.name,
                "permissions": difference,
                "justification": justification.as_deref().map(|text| printable(text.as_bytes())),
                "approval": prompt::approval(&answer),
            });
            self.recorder.session_event("granted", &body).map_err(|error| error.to_string())
        };
        if let Err(why) = given.await {
            self.desk.forget(identity);
            return Err(why);
        }
        let new = Rc::new(Standing { identity, profile, added });
        let old = self.grants.standing.replace(Some(Rc::clone(&new)));
        if let Some(old) = old.filter(|old| old.identity != identity) {
            self.desk.forget(old.identity);
        }
        // If the last one has ended meanwhile, this one went with it.
        self.link.define(&new.profile).await.map_err(|error| format!("name a profile: {error}"))?;
        Ok(match answer.ending {
            Ending::Approved(Choice::Seconds(seconds)) => Some(Duration::from_secs(seconds)),
            _ => None,
        })
    }

    /// What the operator has given up for a profile.
    pub(super) fn given_up(&self, profile: &Resolved) -> Option<String> {
        self.grants.grounds.hosts(&[profile]).ok().flatten()
    }
}

/// The question in full.
fn asked(
    profile: &Resolved,
    difference: &str,
    justification: Option<&str>,
    care: impl Iterator<Item = String>,
) -> Asked {
    let field = |name: &str, text: String| Field { name: name.to_owned(), text };
    let mut fields = vec![
        field(
            "asks for",
            "more for every later command of the shell's, whatever it is; when that ends, whatever runs under it does"
                .to_owned(),
        ),
        field(&prompt::unlike(prompt::SHELL), difference.to_owned()),
    ];
    if let Some(text) = justification {
        fields.push(field("because", format!("{} (as whoever asks says)", printable(text.as_bytes()))));
    }
    let letters = Some(crate::flow::text::not_ascii(difference)).filter(|letters| !letters.is_empty());
    fields.extend(care.chain(letters).map(|care| field("take care", care)));
    let identity = Resolved { name: GRANTED.to_owned(), ..profile.clone() };
    let identity = Identity(*blake3::hash(format!("{identity:?}").as_bytes()).as_bytes());
    let first = difference.lines().next().unwrap_or_default();
    let rest = if difference.lines().count() > 1 { ", …" } else { "" };
    let summary = format!("more permissions: {first}{rest}");
    Asked { identity, summary, fields, lasting: Lasting::Only, rule: None, counted: true }
}
