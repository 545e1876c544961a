//! The commands of a session by what is known of them. No system calls: the spawner makes them.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::enter::Entrance;
use super::message::{Become, Target};
use crate::sandbox::{Changes, Facts, Placeholder};
use crate::sys::process::Usage;

/// The shell's number among the commands.
pub(super) const SHELL: u64 = 0;

/// What a sandbox is built for, by which it is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Purpose {
    pub(super) target: Target,
    pub(super) approval: String,
    pub(super) facts: Facts,
}

/// A sandbox that outlives its command, for the next one of its kind.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) purpose: Purpose,
    pub(super) entrance: Entrance,
}

/// What a sandbox lives by. Dropped when its first process has ended, and everything in it.
#[derive(Debug, Default)]
pub(super) struct Lifeline {
    /// The profile that it is a sandbox of, if not the turn's.
    pub(super) profile: Option<String>,
    /// Finished, it lets the first process end as soon as no other is left.
    pub(super) control: Option<Channel>,
    pub(super) finished: bool,
    pub(super) kept: Option<Kept>,
    pub(super) placeholders: Vec<Placeholder>,
    /// What is covered in it.
    pub(super) covers: Vec<PathBuf>,
    /// Of its mounts, which somebody outside can take away.
    pub(super) changes: Option<Changes>,
}

impl Lifeline {
    fn finish(&mut self) {
        self.kept = None;
        self.finished = true;
        if let Some(control) = &self.control {
            control.finish();
        }
    }

    fn fds(&self) -> impl Iterator<Item = i32> {
        let leases = self.placeholders.iter().filter_map(Placeholder::fd);
        let changes = self.changes.iter().map(AsRawFd::as_raw_fd);
        self.control.iter().map(AsRawFd::as_raw_fd).chain(leases).chain(changes)
    }
}

/// How far a command is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Starting,
    /// The next thing is its exec.
    Ready,
    /// It runs, and nobody has been told.
    Runs,
    /// It runs, and whoever wants to know that does.
    Told,
    /// Refused or failed: what comes after is no news.
    Over,
}

#[derive(Debug, Default)]
pub(super) struct Command {
    pub(super) stage: Stage,
    pub(super) pid: Option<i32>,
    /// The first process of a PID namespace in which no other command runs.
    pub(super) init: Option<i32>,
    /// Its process stood by where an earlier command ran.
    pub(super) entered: bool,
    /// Why its sandbox is to be kept once it runs, if it is.
    pub(super) keeps: Option<Purpose>,
    /// Until that one is known.
    pub(super) lifeline: Lifeline,
    /// See [`super::standby::Standby::offers`].
    pub(super) offers: Option<bool>,
    pub(super) report: Option<Channel>,
    /// What it is to become, until its process is known.
    pub(super) order: Option<(Box<Become>, Vec<OwnedFd>)>,
    /// Its waiter's connection, where the end is told there at once.
    pub(super) waiter: Option<OwnedFd>,
    pub(super) fds: Vec<(u32, String)>,
    /// To be killed as soon as it is known which process it is.
    pub(super) doomed: bool,
    /// Signals that came before that.
    pub(super) signals: Vec<i32>,
    pub(super) stops: u32,
    pub(super) stopped: bool,
    pub(super) in_turn: bool,
    /// The profile that it runs under, if that is not the turn's.
    pub(super) profile: Option<String>,
    /// Who asked for it.
    pub(super) asker: i32,
    /// When.
    pub(super) since: Option<Instant>,
    /// Since when it has what is sent to its job.
    pub(super) joined: Option<Instant>,
    /// Until then it is not listened to: see [`Command::rest`].
    pub(super) quiet: Option<Instant>,
}

/// So long nobody asks whether a command runs that needs nothing more of the spawner.
const QUIET: Duration = Duration::from_millis(3);

impl Command {
    /// All that it has to say from now on is that it runs, or why it does not. In the second case its process
    /// ends, and in the first it may soon: it is listened to then, or after a while. To be woken for that
    /// would take the processor from the command. Not where its waiter keeps for it what reaches its group
    /// until it is told that it runs: what has reached it meanwhile is known of those in the spawner's own.
    pub(super) fn rest(&mut self) {
        if self.joined.is_some() {
            self.quiet = Some(Instant::now() + QUIET);
        }
    }
}

/// A change of a child, as wait4(2) told it.
pub(super) type Told = (i32, Usage);

#[derive(Debug, Default)]
pub(super) struct Commands {
    by_id: HashMap<u64, Command>,
    by_pid: HashMap<i32, u64>,
    lifelines: HashMap<i32, Lifeline>,
    turn_init: Option<i32>,
    /// Changes of children that may turn out to be commands.
    early: HashMap<i32, Vec<Told>>,
}

impl Commands {
    pub(super) fn add(&mut self, id: u64, command: Command) {
        self.by_id.insert(id, command);
    }

    pub(super) fn get(&self, id: u64) -> Option<&Command> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Command> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = i32> {
        self.by_id.values().filter_map(|command| command.pid)
    }

    /// Those that have something to report still.
    pub(super) fn reporting(&self) -> impl Iterator<Item = (u64, &Channel)> {
        self.by_id.iter().filter_map(|(id, command)| Some((*id, command.report.as_ref()?)))
    }

    /// Those that are to be listened to at this time.
    pub(super) fn listened_to(&self, now: Instant) -> impl Iterator<Item = (u64, &Channel)> {
        let heard =
            self.by_id.iter().filter(move |(_, command)| command.quiet.is_none_or(|until| until <= now));
        heard.filter_map(|(id, command)| Some((*id, command.report.as_ref()?)))
    }

    /// When the next one is to be listened to that is not yet.
    pub(super) fn next_heard(&self, now: Instant) -> Option<Instant> {
        let reporting = self.by_id.values().filter(|command| command.report.is_some());
        reporting.filter_map(|command| command.quiet).filter(|until| *until > now).min()
    }

    /// Those of which nobody knows yet that they run.
    pub(super) fn news(&self) -> Vec<u64> {
        let news = self.by_id.iter().filter(|(_, command)| command.stage == Stage::Runs);
        news.map(|(id, _)| *id).collect()
    }

    /// Whether a command that was ordered within this time is not known to run.
    pub(super) fn are_starting(&self, within: Duration) -> bool {
        let starting = self.by_id.values().filter(|command| command.report.is_some());
        starting.filter_map(|command| command.since).any(|since| since.elapsed() < within)
    }

    /// Commands under one of these profiles, and first processes of sandboxes of theirs.
    pub(super) fn under(&self, profiles: &[String]) -> (Vec<u64>, Vec<i32>) {
        let among = |profile: &Option<String>| profile.as_ref().is_some_and(|name| profiles.contains(name));
        let commands = self.by_id.iter().filter(|(_, command)| among(&command.profile));
        let sandboxes = self.lifelines.iter().filter(|(_, lifeline)| among(&lifeline.profile));
        (commands.map(|(id, _)| *id).collect(), sandboxes.map(|(init, _)| *init).collect())
    }

    /// Every descriptor that this table holds before the first command is ordered.
    pub(super) fn fds(&self) -> impl Iterator<Item = i32> {
        let reports = self.by_id.values().filter_map(|command| command.report.as_ref());
        let unknown = self.by_id.values().map(|command| &command.lifeline);
        let lifelines = unknown.chain(self.lifelines.values()).flat_map(Lifeline::fds);
        reports.map(AsRawFd::as_raw_fd).chain(lifelines)
    }

    /// Learns which processes a command is. What is returned has been told of it already.
    pub(super) fn learn(&mut self, id: u64, init: Option<i32>, pid: i32) -> Vec<Told> {
        let Some(command) = self.by_id.get_mut(&id) else { return Vec::new() };
        command.pid = Some(pid);
        self.by_pid.insert(pid, id);
        if let Some(init) = init {
            command.init = Some(init);
            let mut lifeline = std::mem::take(&mut command.lifeline);
            let placed = lifeline.placeholders.iter().map(|placeholder| placeholder.path().to_path_buf());
            let covers = std::mem::take(&mut lifeline.covers).into_iter().chain(placed).collect();
            lifeline.changes = Changes::of(init, covers).ok();
            self.lifelines.insert(init, lifeline);
            if id == SHELL {
                self.turn_init = Some(init);
            }
        }
        let early = self.early.remove(&pid).unwrap_or_default();
        if self.by_id.values().all(|command| command.pid.is_some()) {
            self.early.clear();
        }
        early
    }

    /// Which command a change of a child is about. One that may turn out to be a command's is kept.
    pub(super) fn changed(&mut self, pid: i32, told: Told) -> Option<u64> {
        let known = self.by_pid.get(&pid).copied();
        if known.is_none() {
            let most = 64 + 4 * self.by_id.len();
            let unknown = self.by_id.values().any(|command| command.pid.is_none());
            if unknown && self.early.len() < most {
                self.early.entry(pid).or_default().push(told);
            }
        }
        known
    }

    /// Takes out a command that has ended. What its sandbox lives by goes when nothing else needs
    /// it, the rest when the sandbox's first process has ended.
    pub(super) fn forget(&mut self, id: u64) -> Option<Command> {
        let command = self.by_id.remove(&id)?;
        if let Some(pid) = command.pid {
            self.by_pid.remove(&pid);
        }
        // Reruns in the turn's sandbox are not its first process's children.
        let turn_goes_on = self.by_id.values().any(|other| other.in_turn);
        let init = if command.in_turn { self.turn_init.filter(|_| !turn_goes_on) } else { command.init };
        if let Some(lifeline) = init.and_then(|init| self.lifelines.get_mut(&init))
            && lifeline.kept.is_none()
        {
            lifeline.finish();
        }
        Some(command)
    }

    /// Keeps a sandbox when its command has ended. Of each kind of target one is.
    pub(super) fn keep(&mut self, init: i32, kept: Kept) {
        let target = kept.purpose.target.clone();
        self.release(|old| old.purpose.target == target);
        if let Some(lifeline) = self.lifelines.get_mut(&init) {
            lifeline.kept = Some(kept);
        }
    }

    /// The sandbox that is kept for this purpose, whether or not a command runs in it.
    pub(super) fn kept(&self, purpose: &Purpose) -> Option<(i32, &Kept)> {
        let mut kept = self.lifelines.iter().filter_map(|(init, line)| Some((*init, line.kept.as_ref()?)));
        kept.find(|(_, kept)| kept.purpose == *purpose)
    }

    /// Whether no command runs in a sandbox. What one has left behind may.
    pub(super) fn is_free(&self, init: i32) -> bool {
        self.by_id.values().all(|command| command.init != Some(init))
    }

    /// Sandboxes that are kept, and are like this, go with their commands.
    pub(super) fn release(&mut self, like: impl Fn(&Kept) -> bool) {
        for (init, lifeline) in &mut self.lifelines {
            if lifeline.kept.take_if(|kept| like(kept)).is_some()
                && self.by_id.values().all(|command| command.init != Some(*init))
            {
                lifeline.finish();
            }
        }
    }

    /// A sandbox is about to be killed: no other command enters it.
    pub(super) fn doom(&mut self, init: i32) {
        if let Some(lifeline) = self.lifelines.get_mut(&init) {
            lifeline.kept = None;
        }
    }

    /// First processes of sandboxes, and what they speak by.
    pub(super) fn sandboxes(&self) -> impl Iterator<Item = (i32, &Channel)> {
        self.lifelines.iter().filter_map(|(init, lifeline)| Some((*init, lifeline.control.as_ref()?)))
    }

    /// A sandbox's first process has closed its end.
    pub(super) fn hear_no_more(&mut self, init: i32) {
        if let Some(lifeline) = self.lifelines.get_mut(&init) {
            lifeline.control = None;
        }
    }

    /// First processes of sandboxes that are needed still and in whose mounts something has changed; of all, or
    /// only this one.
    pub(super) fn changed_sandboxes(&self, only: Option<i32>) -> Vec<(i32, &Channel)> {
        let asked = self.lifelines.iter().filter(|(init, _)| only.is_none_or(|only| only == **init));
        let changed = asked
            .filter(|(_, lifeline)| !lifeline.finished && lifeline.changes.as_ref().is_none_or(Changes::any));
        changed.filter_map(|(init, lifeline)| Some((*init, lifeline.control.as_ref()?))).collect()
    }

    /// First processes of sandboxes that no command needs any more, and what they speak by.
    pub(super) fn finished(&self) -> Vec<(i32, &Channel)> {
        let finished = self.lifelines.iter().filter(|(_, lifeline)| lifeline.finished);
        finished.filter_map(|(init, lifeline)| Some((*init, lifeline.control.as_ref()?))).collect()
    }

    /// The first process of a sandbox has ended, and everything in it.
    pub(super) fn sandbox_ended(&mut self, init: i32) -> Option<Lifeline> {
        self.lifelines.remove(&init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifeline() -> (Lifeline, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (Lifeline { control: Some(ours), ..Lifeline::default() }, theirs)
    }

    fn with_shell() -> (Commands, Channel) {
        let mut commands = Commands::default();
        let (lifeline, turn) = lifeline();
        commands.add(SHELL, Command { in_turn: true, lifeline, ..Command::default() });
        commands.learn(SHELL, Some(10), 11);
        (commands, turn)
    }

    fn is_kept(end: &Channel) -> bool {
        matches!(end.receive::<u8>(), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    #[test]
    fn the_turn_lives_as_long_as_a_command_in_it() {
        let (mut commands, turn) = with_shell();
        commands.add(1, Command { in_turn: true, ..Command::default() });
        commands.forget(SHELL);
        assert!(is_kept(&turn));
        commands.forget(1);
        assert!(!is_kept(&turn));
    }

    #[test]
    fn a_sandbox_of_its_own_is_let_go_by_its_command_and_not_by_others() {
        let (mut commands, turn) = with_shell();
        let (lifeline, own) = lifeline();
        commands.add(1, Command { lifeline, ..Command::default() });
        commands.learn(1, Some(20), 21);
        assert!(is_kept(&own));
        commands.forget(1);
        assert!(!is_kept(&own) && is_kept(&turn));
        assert!(commands.sandbox_ended(20).is_some());
    }

    fn keep(commands: &mut Commands, init: i32, approval: &str) -> Purpose {
        let target = Target::Profile("git".to_owned());
        let purpose = Purpose { target, approval: approval.to_owned(), facts: Facts::default() };
        let pidfd = std::fs::File::open("/dev/null").unwrap().into();
        commands.keep(init, Kept { purpose: purpose.clone(), entrance: Entrance::by(pidfd) });
        purpose
    }

    #[test]
    fn a_sandbox_that_is_kept_outlives_its_command_until_it_is_let_go() {
        let (mut commands, _turn) = with_shell();
        let (lifeline, own) = lifeline();
        commands.add(1, Command { lifeline, ..Command::default() });
        commands.learn(1, Some(20), 21);
        let purpose = keep(&mut commands, 20, "a rule");
        assert!(!commands.is_free(20));
        commands.forget(1);
        assert!(is_kept(&own) && commands.is_free(20));
        assert_eq!(commands.kept(&purpose).map(|(init, _)| init), Some(20));
        commands.release(|_| true);
        assert!(!is_kept(&own) && commands.kept(&purpose).is_none());
        let again = keep(&mut commands, 20, "a rule");
        commands.doom(20);
        assert!(commands.kept(&again).is_none());
    }

    #[test]
    fn one_sandbox_of_a_kind_is_kept_and_goes_when_its_command_does() {
        let (mut commands, _turn) = with_shell();
        let (first, its) = lifeline();
        commands.add(1, Command { lifeline: first, ..Command::default() });
        commands.learn(1, Some(20), 21);
        let old = keep(&mut commands, 20, "a rule");
        let (second, others) = lifeline();
        commands.add(2, Command { lifeline: second, ..Command::default() });
        commands.learn(2, Some(30), 31);
        let new = keep(&mut commands, 30, "another");
        assert!(commands.kept(&old).is_none() && commands.kept(&new).is_some());
        assert!(is_kept(&its), "a command runs in it");
        commands.forget(1);
        commands.forget(2);
        assert!(!is_kept(&its) && is_kept(&others));
    }

    #[test]
    fn what_rests_is_listened_to_from_its_time_on_and_waited_for_until_then() {
        let (mut commands, _turn) = with_shell();
        let (report, _theirs) = Channel::pair().unwrap();
        commands.add(1, Command { report: Some(report), ..Command::default() });
        let heard = |commands: &Commands, at| {
            (commands.listened_to(at).map(|(id, _)| id).collect::<Vec<_>>(), commands.next_heard(at))
        };
        let until = Instant::now();
        assert_eq!(heard(&commands, until), (vec![1], None));
        // Outside the spawner's group it does not rest.
        commands.get_mut(1).unwrap().rest();
        assert_eq!(heard(&commands, until), (vec![1], None));
        let command = commands.get_mut(1).unwrap();
        command.joined = Some(until);
        command.rest();
        assert!(command.quiet.is_some_and(|quiet| quiet >= until + QUIET));
        command.quiet = Some(until);
        let moment = Duration::from_nanos(1);
        assert_eq!(heard(&commands, until - moment), (vec![], Some(until)));
        for at in [until, until + moment] {
            assert_eq!(heard(&commands, at), (vec![1], None));
        }
        commands.get_mut(1).unwrap().report = None;
        for at in [until - moment, until] {
            assert_eq!(heard(&commands, at), (vec![], None));
        }
    }

    #[test]
    fn an_end_that_comes_before_the_number_is_not_lost() {
        let (mut commands, _turn) = with_shell();
        commands.add(1, Command::default());
        assert_eq!(commands.changed(33, (0, Usage::default())), None);
        assert_eq!(commands.learn(1, None, 33).len(), 1);
    }
}
