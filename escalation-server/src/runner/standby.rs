//! Processes that stand by where a command will run: in their sandbox, confined, waiting for the
//! order to become it. The next one of each kind is made while the last one runs, or after it where that
//! ends at once, so that nobody waits for a fork, a namespace or a mount.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use postern_shim::wire::Bytes;

use super::channel::Channel;
use super::command::stand_by;
use super::commands::{Commands, Purpose};
use super::enter::{Entrance, Sandbox, Stop, enter, keep_only, readable};
use super::message::{ChildReport, Target, ToInit};
use super::signals::leave_group;
use super::spawner::Profiles;
use super::tree::has_children;
use crate::profile::Resolved;
use crate::sandbox::{Calls, Confinement, Facts, Mounts, Placeholder, Plan, Premade, plan};
use crate::sys::process::{self, Fork, Limits};

/// How long a zygote may take to make a copy. One that was stopped from outside would take for ever.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process that stands by.
#[derive(Debug)]
pub(super) struct Standby {
    pub(super) report: Channel,
    /// A zygote was told to make it, and may have been stopped before it did.
    copied: bool,
    /// Keeps its sandbox alive, if that is its own.
    pub(super) control: Option<Channel>,
    /// See [`Plan::absent`].
    pub(super) absent: Vec<PathBuf>,
    /// See [`Plan::covers`].
    pub(super) covers: Vec<PathBuf>,
    /// Whether its sandbox has a user namespace, if others may share what can be shared.
    pub(super) offers: Option<bool>,
    /// The first process of the kept sandbox that it is in.
    pub(super) within: Option<i32>,
    /// What a sandbox of its own is for.
    pub(super) purpose: Option<Purpose>,
    /// Whether it may be kept: not one that puts stand-ins in places where nobody else needs them.
    pub(super) keepable: bool,
}

/// Makes processes, and keeps one of each kind ready that was needed before.
#[derive(Debug)]
pub(super) struct Standbys {
    profiles: Profiles,
    session_limits: Limits,
    turn: Option<(Plan, Rc<Confinement>, Entrance)>,
    /// What is compiled once.
    confinements: RefCell<HashMap<Calls, Rc<Confinement>>>,
    /// What sandboxes without the network share, once there is one.
    shared: Option<Premade>,
    ready: HashMap<Target, Standby>,
    /// What is mounted, once anybody needs to know.
    mounts: RefCell<Option<Mounts>>,
    /// Kinds to be made again, as the last one was. Whoever takes one looks whether that still holds.
    used: Vec<(Target, Option<Purpose>)>,
    /// Since when the first of these is.
    wanted: Option<Instant>,
}

impl Standbys {
    /// # Errors
    /// If this process's limits are not to be had.
    pub(super) fn new(profiles: Profiles) -> Result<Self, String> {
        let session_limits = process::limits(0).map_err(|error| format!("read limits: {error}"))?;
        Ok(Self {
            profiles,
            session_limits,
            turn: None,
            confinements: RefCell::default(),
            shared: None,
            ready: HashMap::new(),
            mounts: RefCell::default(),
            used: Vec::new(),
            wanted: None,
        })
    }

    /// The turn's plan, if it is restricted, and what confines it.
    ///
    /// # Errors
    /// As for [`Confinement::prepare`].
    pub(super) fn turn_plan(&self) -> Result<Option<(&Plan, Rc<Confinement>)>, String> {
        self.profiles.turn.as_ref().map(|plan| Ok((plan, self.confinement(plan)?))).transpose()
    }

    /// These profiles are no more, until they are defined again.
    pub(super) fn forget(&mut self, profiles: &[String]) {
        for name in profiles {
            self.profiles.named.remove(name);
            self.ready.remove(&Target::Profile(name.clone()));
        }
    }

    /// From now on there is this profile too: one whose places are where they are for everybody.
    pub(super) fn define(&mut self, profile: Resolved) {
        if !profile.is_absolute() {
            return;
        }
        self.profiles.named.insert(profile.name.clone(), profile);
    }

    pub(super) fn terminal(&self) -> Option<&std::path::Path> {
        self.profiles.own.terminal.as_deref()
    }

    /// Puts stand-ins where a sandbox protects what is not there, and tells its first process to
    /// cover them. Where `absent` names anything it is told, and answers, even if nothing can be put
    /// there.
    ///
    /// # Errors
    /// As for creating them, and if that process is gone.
    pub(super) fn protect(&self, control: &Channel, absent: &[PathBuf]) -> Result<Vec<Placeholder>, String> {
        let placed = Placeholder::place(&self.profiles.own.leases, absent)
            .map_err(|error| format!("protect names that do not exist: {error}"))?;
        if !absent.is_empty() {
            let paths = placed
                .iter()
                .map(|placeholder| Bytes(placeholder.path().as_os_str().as_bytes().to_vec()))
                .collect();
            control.send(&ToInit::Cover(paths), &[]).map_err(|error| format!("protect names: {error}"))?;
        }
        Ok(placed)
    }

    /// Whether commands can enter the turn's sandbox, or there is none to enter.
    pub(super) fn knows_turn(&self) -> bool {
        self.turn.is_some() || self.profiles.turn.as_ref().is_none_or(Plan::is_alone)
    }

    /// From now on commands can enter the turn's sandbox.
    pub(super) fn turn_is(&mut self, entrance: Entrance) {
        if let Ok(Some((plan, confinement))) = self.turn_plan() {
            self.turn = Some((plan.clone(), confinement, entrance));
        }
    }

    /// Later sandboxes share with the one whose first process this is what can be shared.
    pub(super) fn share(&mut self, init: i32, user_namespace: bool) {
        if self.shared.is_none() {
            self.shared = Premade::of(init, user_namespace);
        }
    }

    fn confinement(&self, plan: &Plan) -> Result<Rc<Confinement>, String> {
        if let Some(known) = self.confinements.borrow().get(&plan.calls()) {
            return Ok(Rc::clone(known));
        }
        let made = Rc::new(Confinement::prepare(plan).map_err(|error| error.to_string())?);
        self.confinements.borrow_mut().insert(plan.calls(), Rc::clone(&made));
        Ok(made)
    }

    /// A process for a command: one that is ready, if its sandbox is still what would be built now, and
    /// nothing is left in it of another command.
    ///
    /// # Errors
    /// What the sandbox cannot hold, or what keeps the process from being made.
    pub(super) fn take(
        &mut self,
        target: &Target,
        approval: &str,
        commands: &Commands,
    ) -> Result<Standby, String> {
        let purpose = self.purpose(target, approval)?;
        if !self.used.iter().any(|(used, _)| used == target) {
            self.used.push((target.clone(), purpose.clone()));
            self.wanted.get_or_insert_with(Instant::now);
        }
        // One that is kept no longer is about to end, and whoever stands by there with it.
        let kept = purpose.as_ref().and_then(|purpose| commands.kept(purpose)).map(|(init, _)| init);
        let empty = |init: i32| kept == Some(init) && commands.is_free(init) && !has_children(init);
        let ready = self.ready.remove(target).filter(|standby| {
            fits(standby, purpose.as_ref()) && standby.within.is_none_or(empty) && standby.report.is_open()
        });
        let standby = match ready {
            Some(standby) => Standby { purpose, ..standby },
            None => self.make(target, purpose, false, None)?,
        };
        if !standby.copied || readable(&standby.report, Some(PATIENCE)).unwrap_or(false) {
            return Ok(standby);
        }
        let entrance = match (&standby.purpose, &self.turn) {
            (Some(purpose), _) => commands.kept(purpose).map(|(_, kept)| &kept.entrance),
            (None, turn) => turn.as_ref().map(|(.., entrance)| entrance),
        };
        entrance.into_iter().for_each(Entrance::dismiss);
        self.make(target, standby.purpose, false, None)
    }

    /// A process for a command whose files the server finds by their names, in a sandbox of its own that no
    /// other command will use.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub(super) fn make_serving_names(&self, target: &Target, approval: &str) -> Result<Standby, String> {
        let purpose = self.purpose(target, approval)?;
        self.make(target, purpose, true, None).map(|standby| Standby { keepable: false, ..standby })
    }

    /// Whether a kind has waited so long to be made again.
    pub(super) fn are_due(&self, after: Duration) -> bool {
        self.wanted.is_some_and(|since| since.elapsed() > after)
    }

    /// Makes the next ones of the kinds that were taken, in sandboxes that are kept where there are any.
    pub(super) fn replenish(&mut self, commands: &Commands) {
        self.wanted = None;
        for (target, purpose) in std::mem::take(&mut self.used) {
            if self.ready.contains_key(&target) {
                continue;
            }
            // If it cannot be made now, whoever needs it will be told why.
            let kept = purpose.as_ref().and_then(|purpose| commands.kept(purpose));
            let kept = kept.map(|(init, kept)| (init, &kept.entrance));
            if let Ok(standby) = self.make(&target, purpose, false, kept) {
                self.ready.insert(target, standby);
            }
        }
    }

    /// Lets all go that stand by, and who would make more of them in the turn's sandbox.
    pub(super) fn dismiss(&mut self) {
        self.used.clear();
        self.ready.clear();
        if let Some((.., entrance)) = &self.turn {
            entrance.dismiss();
        }
    }

    /// What a target's own sandbox is for; none for one that has none of its own.
    fn purpose(&self, target: &Target, approval: &str) -> Result<Option<Purpose>, String> {
        let Target::Profile(name) = target else { return Ok(None) };
        let Some(profile) = self.restricted(name)? else { return Ok(None) };
        let mut known = self.mounts.borrow_mut();
        let mounts = match known.take() {
            Some(mut mounts) => mounts.refresh().map(|()| mounts),
            None => Mounts::now(),
        };
        let mounts = known.insert(mounts.map_err(|error| format!("look what is mounted: {error}"))?);
        let facts = Facts::gather_among(mounts, profile, &self.profiles.own, &self.profiles.abilities)
            .map_err(|error| error.to_string())?;
        Ok(Some(Purpose { target: target.clone(), approval: approval.to_owned(), facts }))
    }

    /// What such a sandbox is to be.
    fn plan(&self, purpose: &Purpose, serves_names: bool) -> Result<Option<Plan>, String> {
        let Target::Profile(name) = &purpose.target else { return Ok(None) };
        let Some(profile) = self.restricted(name)? else { return Ok(None) };
        let plan = plan(profile, &purpose.facts, &self.profiles.abilities);
        Ok(Some(if serves_names { plan.with_names_served() } else { plan }))
    }

    /// A profile by name; none if it restricts nothing.
    fn restricted(&self, name: &str) -> Result<Option<&Resolved>, String> {
        let profile = self.profiles.named.get(name).ok_or_else(|| format!("there is no profile {name}"))?;
        Ok((!profile.unrestricted).then_some(profile))
    }

    /// Makes a process for a target, in the kept sandbox with this first process if there is one.
    fn make(
        &self,
        target: &Target,
        purpose: Option<Purpose>,
        serves_names: bool,
        kept: Option<(i32, &Entrance)>,
    ) -> Result<Standby, String> {
        let text = |error: io::Error| error.to_string();
        let (report, theirs) = Channel::pair_telling_senders().map_err(text)?;
        let within = kept.map(|(init, _)| init);
        let entrance = match (target, &self.turn) {
            (Target::Turn, Some((.., entrance))) => Some(entrance),
            _ => kept.map(|(_, entrance)| entrance),
        };
        if entrance.is_some_and(|entrance| entrance.copy(&theirs)) {
            return Ok(Standby {
                report,
                copied: true,
                control: None,
                absent: Vec::new(),
                covers: Vec::new(),
                offers: None,
                within,
                purpose,
                keepable: false,
            });
        }
        let plan = purpose.as_ref().map(|purpose| self.plan(purpose, serves_names)).transpose()?.flatten();
        let (ours, held) = Channel::pair().map_err(text)?;
        let turn = self.turn_plan()?.filter(|(plan, _)| plan.is_alone());
        let confinement = plan.as_ref().map(|plan| self.confinement(plan)).transpose()?;
        let sandbox = match (target, plan.as_ref().zip(confinement.as_deref()), &self.turn) {
            (Target::Outside, ..) => Sandbox::None,
            // The turn is not restricted, or the profile.
            (Target::Turn, _, None) if self.profiles.turn.is_none() => Sandbox::None,
            (Target::Profile(name), None, _) if self.restricted(name)?.is_none() => Sandbox::None,
            (Target::Turn, ..) if let Some((plan, confinement)) = &turn => {
                Sandbox::Confine { plan, confinement }
            }
            (Target::Turn, _, Some((plan, confinement, entrance))) => {
                Sandbox::Enter { entrance, copies: &held, plan, confinement }
            }
            (Target::Profile(_), Some((plan, confinement)), _) if plan.is_alone() => {
                Sandbox::Confine { plan, confinement }
            }
            (Target::Profile(_), Some((plan, confinement)), _) if let Some((_, entrance)) = kept => {
                Sandbox::Enter { entrance, copies: &held, plan, confinement }
            }
            (Target::Profile(_), Some((plan, confinement)), _) => Sandbox::Make {
                control: &held,
                plan,
                confinement,
                terminal: self.terminal(),
                shared: self.shared.as_ref().filter(|_| plan.shareable()),
            },
            (Target::Turn, ..) => return Err("the turn's sandbox is gone".to_owned()),
            (Target::Profile(name), None, _) => return Err(format!("there is no sandbox for {name}")),
        };
        if let Fork::Child = process::fork().map_err(text)? {
            leave_group();
            if let Err(error) = keep_only(&theirs, sandbox) {
                let what = format!("close descriptors: {error}");
                let _told = theirs.send(&ChildReport::Failed { what }, &[]);
                process::exit_now(126);
            }
            enter(theirs, sandbox, |report, place| -> Stop { stand_by(&self.session_limits, place, report) });
        }
        let (mut control, mut offers) = (None, None);
        match sandbox {
            Sandbox::Make { plan, .. } => {
                control = Some(ours);
                offers = plan.shareable().then_some(plan.user_namespace());
            }
            Sandbox::Enter { entrance, plan, .. } if plan.scopes() => entrance.zygote_is(ours),
            // Where Landlock does not keep signals in, a command could stop a zygote, and with it all that come
            // later: told nothing more, it ends after its first copy.
            Sandbox::Enter { .. } | Sandbox::None | Sandbox::Confine { .. } => {}
        }
        let (covers, absent) = plan.map(|plan| (plan.covers(), plan.absent)).unwrap_or_default();
        let turns = self.profiles.turn.as_ref().map(|turn| &turn.absent);
        let keepable =
            control.is_some() && absent.iter().all(|path| turns.is_some_and(|turns| turns.contains(path)));
        let copied = false;
        Ok(Standby { report, copied, control, absent, covers, offers, within, purpose, keepable })
    }
}

/// Whether a process that stands by is where one for this purpose would be. A sandbox that nothing has
/// run in yet fits any approval.
fn fits(standby: &Standby, purpose: Option<&Purpose>) -> bool {
    match standby.within {
        Some(_) => standby.purpose.as_ref() == purpose,
        None => standby.purpose.as_ref().map(|own| &own.facts) == purpose.map(|purpose| &purpose.facts),
    }
}

/// Named profiles, by name.
pub(super) type Named = BTreeMap<String, Resolved>;
