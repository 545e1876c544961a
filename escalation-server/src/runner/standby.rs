//! Processes that stand by where a command will run: in their sandbox, confined, waiting for the
//! order to become it. The next one of each kind is made while the last one runs, so that nobody
//! waits for a fork, a namespace or a mount.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use postern_shim::wire::Bytes;

use super::channel::Channel;
use super::command::stand_by;
use super::enter::{Sandbox, Stop, enter, keep_only};
use super::message::{ChildReport, Target, ToInit};
use super::spawner::Profiles;
use crate::profile::Resolved;
use crate::sandbox::{Calls, Confinement, Facts, Placeholder, Plan, Shared, plan};
use crate::sys::process::{self, Fork, Limits};

/// A process that stands by.
#[derive(Debug)]
pub(super) struct Standby {
    pub(super) report: Channel,
    /// Keeps its sandbox alive, if that is its own.
    pub(super) control: Option<Channel>,
    /// See [`Plan::absent`].
    pub(super) absent: Vec<PathBuf>,
    /// See [`Plan::covers`].
    pub(super) covers: Vec<PathBuf>,
    /// Whether its sandbox has a user namespace, if others may share what can be shared.
    pub(super) offers: Option<bool>,
    /// What its sandbox was built by.
    facts: Option<Facts>,
}

/// A sandbox to be made.
struct Design {
    facts: Facts,
    plan: Plan,
}

/// Makes processes, and keeps one of each kind ready that was needed before.
#[derive(Debug)]
pub(super) struct Standbys {
    profiles: Profiles,
    session_limits: Limits,
    turn: Option<(Plan, Rc<Confinement>, OwnedFd)>,
    /// What is compiled once.
    confinements: RefCell<HashMap<Calls, Rc<Confinement>>>,
    /// What sandboxes without the network share, once there is one.
    shared: Option<Shared>,
    ready: HashMap<Target, Standby>,
    /// Kinds to be made again.
    used: Vec<Target>,
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
            used: Vec::new(),
        })
    }

    /// The turn's plan, if it is restricted, and what confines it.
    ///
    /// # Errors
    /// As for [`Confinement::prepare`].
    pub(super) fn turn_plan(&self) -> Result<Option<(&Plan, Rc<Confinement>)>, String> {
        self.profiles.turn.as_ref().map(|plan| Ok((plan, self.confinement(plan)?))).transpose()
    }

    pub(super) fn terminal(&self) -> Option<&std::path::Path> {
        self.profiles.own.terminal.as_deref()
    }

    /// Puts stand-ins where a sandbox protects what is not there, and tells its first process to
    /// cover them. Whether there are any.
    ///
    /// # Errors
    /// As for creating them, and if that process is gone.
    pub(super) fn protect(&self, control: &Channel, absent: &[PathBuf]) -> Result<Vec<Placeholder>, String> {
        let placed = Placeholder::place(&self.profiles.own.leases, absent)
            .map_err(|error| format!("protect names that do not exist: {error}"))?;
        if !placed.is_empty() {
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

    /// From now on commands can enter the turn's sandbox, by its first process.
    pub(super) fn turn_is(&mut self, init: OwnedFd) {
        if let Ok(Some((plan, confinement))) = self.turn_plan() {
            self.turn = Some((plan.clone(), confinement, init));
        }
    }

    /// Later sandboxes share with the one whose first process this is what can be shared.
    pub(super) fn share(&mut self, init: i32, user_namespace: bool) {
        if self.shared.is_none() {
            self.shared = Shared::of(init, user_namespace);
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

    /// A process for a command: one that is ready, if its sandbox is still what would be built now.
    ///
    /// # Errors
    /// What the sandbox cannot hold, or what keeps the process from being made.
    pub(super) fn take(&mut self, target: &Target) -> Result<Standby, String> {
        let design = self.design(target)?;
        self.used.push(target.clone());
        if let Some(standby) = self.ready.remove(target)
            && standby.facts.as_ref() == design.as_ref().map(|design| &design.facts)
            && standby.report.is_open()
        {
            return Ok(standby);
        }
        self.make(target, design)
    }

    /// Makes the next ones of the kinds that were taken.
    pub(super) fn replenish(&mut self) {
        for target in std::mem::take(&mut self.used) {
            if self.ready.contains_key(&target) {
                continue;
            }
            // If it cannot be made now, whoever needs it will be told why.
            if let Ok(standby) = self.design(&target).and_then(|design| self.make(&target, design)) {
                self.ready.insert(target, standby);
            }
        }
    }

    /// Lets all go that stand by.
    pub(super) fn dismiss(&mut self) {
        self.used.clear();
        self.ready.clear();
    }

    /// What a target's own sandbox is to be; none for one that has none of its own.
    fn design(&self, target: &Target) -> Result<Option<Design>, String> {
        let Target::Profile(name) = target else { return Ok(None) };
        let profile = self.restricted(name)?;
        let Some(profile) = profile else { return Ok(None) };
        let facts = Facts::gather(profile, &self.profiles.own, &self.profiles.abilities)
            .map_err(|error| error.to_string())?;
        let plan = plan(profile, &facts, &self.profiles.abilities);
        Ok(Some(Design { facts, plan }))
    }

    /// A profile by name; none if it restricts nothing.
    fn restricted(&self, name: &str) -> Result<Option<&Resolved>, String> {
        let profile = self.profiles.named.get(name).ok_or_else(|| format!("there is no profile {name}"))?;
        Ok((!profile.unrestricted).then_some(profile))
    }

    fn make(&self, target: &Target, design: Option<Design>) -> Result<Standby, String> {
        let text = |error: io::Error| error.to_string();
        let (report, theirs) = Channel::pair().map_err(text)?;
        let (control, held) = Channel::pair().map_err(text)?;
        let turn = self.turn_plan()?.filter(|(plan, _)| plan.is_alone());
        let confinement = design.as_ref().map(|design| self.confinement(&design.plan)).transpose()?;
        let sandbox = match (target, design.as_ref().zip(confinement.as_deref()), &self.turn) {
            (Target::Outside, ..) => Sandbox::None,
            // The turn is not restricted, or the profile.
            (Target::Turn, _, None) if self.profiles.turn.is_none() => Sandbox::None,
            (Target::Profile(name), None, _) if self.restricted(name)?.is_none() => Sandbox::None,
            (Target::Turn, ..) if let Some((plan, confinement)) = &turn => {
                Sandbox::Confine { plan, confinement }
            }
            (Target::Turn, _, Some((plan, confinement, init))) => Sandbox::Enter { init, plan, confinement },
            (Target::Profile(_), Some((Design { plan, .. }, confinement)), _) if plan.is_alone() => {
                Sandbox::Confine { plan, confinement }
            }
            (Target::Profile(_), Some((Design { plan, .. }, confinement)), _) => Sandbox::Make {
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
            if let Err(error) = keep_only(&theirs, sandbox) {
                let what = format!("close descriptors: {error}");
                let _told = theirs.send(&ChildReport::Failed { what }, &[]);
                process::exit_now(126);
            }
            enter(theirs, sandbox, |report, place| -> Stop { stand_by(&self.session_limits, place, report) });
        }
        let (own, offers) = match sandbox {
            Sandbox::Make { plan, .. } => (true, plan.shareable().then_some(plan.user_namespace())),
            _ => (false, None),
        };
        let (covers, absent, facts) = design
            .map(|design| (design.plan.covers(), design.plan.absent, Some(design.facts)))
            .unwrap_or_default();
        Ok(Standby { report, control: own.then_some(control), absent, covers, offers, facts })
    }
}

/// Named profiles, by name.
pub(super) type Named = BTreeMap<String, Resolved>;
