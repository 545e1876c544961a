//! Writes events: what must survive is in the session's journal before its caller goes on. A thread of
//! its own commits everything in groups.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::Value;

use super::format::finished;
use super::pending::{Pending, import};
use super::store::{Event, StoreError, append, is_busy, open_to_write};
use crate::flow::{Outcome, Status};

/// How long a group of events may wait for its commit.
const GROUP: Duration = Duration::from_millis(40);
/// Events that wait at most; the one who brings the next commits them.
const MOST_WAITING: usize = 512;
/// Events and bytes of commands that ran in place or were denied, a session; further ones are only
/// counted.
const RUN_QUOTA: i64 = 400_000;
const RUN_BYTES: u64 = 256 << 20;
/// Bytes of everything, a session. Past it nothing more can be recorded, and so nothing escalated.
const ALL_BYTES: u64 = 1 << 30;

/// The server's handle on the records of its session.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    session: Rc<str>,
    next: Rc<Cell<i64>>,
    uncounted: Rc<Cell<u64>>,
    bytes: Rc<Cell<u64>>,
    committer: Rc<Committer>,
}

/// Both ends of what waits: whoever records, and the thread that commits groups.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Debug)]
struct Waiting {
    /// What the database does not have, and what is on its way there.
    events: Vec<Arc<Event>>,
    pending: Pending,
    /// How many of the events, from the first on, are in the journal.
    in_journal: usize,
    /// Somebody may look for these events now.
    hurry: bool,
    /// The session is over.
    over: bool,
    /// The chain has a gap from here on, so nothing more is written or decided.
    broken: bool,
}

/// The database and the head of the chain. Held while events are taken from the queue, so that they
/// are written in the order in which they were numbered.
#[derive(Debug)]
struct Chain {
    connection: Connection,
    head: String,
}

#[derive(Debug)]
struct Committer {
    queue: Arc<Queue>,
    chain: Arc<Mutex<Chain>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The records cannot be written.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the decision cannot be recorded (is the disk full?)")]
pub(crate) struct Unrecorded;

/// An open record. Dropped without an outcome it writes `lost`.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket {
    recorder: Recorder,
    seq: Option<i64>,
}

impl Recorder {
    /// Opens the records; when the session is over, ended ones are removed, oldest first, until the
    /// rest fits `max_bytes`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn open(state: &Path, session: &str, max_bytes: u64) -> Result<Self, StoreError> {
        let connection = open_to_write(state)?;
        // It stays where it is for the next one.
        if let Err(error) = import(state) {
            tracing::warn!(%error, "what a killed session has left cannot be put into the records");
        }
        let directory = |error| StoreError::Directory { path: state.to_path_buf(), error };
        let pending = Pending::create(state, session).map_err(directory)?;
        let queue = Arc::new(Queue::with(pending));
        let chain = Arc::new(Mutex::new(Chain { connection, head: String::new() }));
        let (waiting, shared) = (Arc::clone(&queue), Arc::clone(&chain));
        let thread = std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || commit_groups(&waiting, &shared, max_bytes))
            .map_err(directory)?;
        let committer = Committer { queue, chain, thread: Some(thread) };
        Ok(Self {
            session: session.into(),
            next: Rc::new(Cell::new(1)),
            uncounted: Rc::default(),
            bytes: Rc::default(),
            committer: Rc::new(committer),
        })
    }

    fn send(
        &self,
        kind: &str,
        completes: Option<i64>,
        body: &Value,
        durable: bool,
    ) -> Result<i64, Unrecorded> {
        self.works()?;
        let seq = self.next.get();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = Event {
            session: self.session.to_string(),
            seq,
            kind: kind.to_owned(),
            time_us: i64::try_from(time.as_micros()).unwrap_or(i64::MAX),
            completes,
            body: body.to_string(),
        };
        let bytes = event.body.len() as u64;
        let full = self.committer.queue.push(event, durable)?;
        self.bytes.set(self.bytes.get() + bytes);
        self.next.set(seq + 1);
        if full {
            commit(&self.committer.chain, &self.committer.queue)?;
        }
        Ok(seq)
    }

    /// Whether what is decided now can be recorded.
    ///
    /// # Errors
    /// [`Unrecorded`].
    pub(crate) fn works(&self) -> Result<(), Unrecorded> {
        if self.bytes.get() > ALL_BYTES || self.committer.queue.lock().broken {
            Err(Unrecorded)
        } else {
            Ok(())
        }
    }

    /// Records a decision. With `durable` it survives the end of every process before this returns.
    ///
    /// # Errors
    /// [`Unrecorded`]: then nothing may be done that the record would have told of.
    pub(crate) fn decided(&self, body: &Value, durable: bool) -> Result<Ticket, Unrecorded> {
        let counted_only = !durable && (self.next.get() > RUN_QUOTA || self.bytes.get() > RUN_BYTES);
        let seq = if counted_only {
            self.uncounted.set(self.uncounted.get() + 1);
            None
        } else {
            Some(self.send("decided", None, body, durable)?)
        };
        Ok(Ticket { recorder: self.clone(), seq })
    }

    /// Records something about the session, durably.
    ///
    /// # Errors
    /// [`Unrecorded`].
    pub(crate) fn session_event(&self, kind: &str, body: &Value) -> Result<(), Unrecorded> {
        self.send(kind, None, body, true)?;
        self.committer.queue.hasten();
        Ok(())
    }

    /// How many commands ran in place that the quota left unrecorded.
    pub(crate) fn uncounted(&self) -> u64 {
        self.uncounted.get()
    }
}

impl Ticket {
    /// Joins the outcome to the decision.
    pub(crate) fn finished(mut self, outcome: &Outcome) {
        if let Some(seq) = self.seq.take() {
            // A failure shows at the next decision, which is where it can be acted on.
            let _unrecorded = self.recorder.send("finished", Some(seq), &finished(outcome), false);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(seq) = self.seq.take() {
            let lost = finished(&Outcome::new(Status::Lost, 0));
            let _unrecorded = self.recorder.send("finished", Some(seq), &lost, false);
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Waiting {
    /// Nothing is written or decided any more.
    fn give_up(&mut self, error: &dyn std::fmt::Display) -> Unrecorded {
        self.broken = true;
        tracing::error!(%error, "records cannot be written");
        Unrecorded
    }
}

impl Queue {
    fn with(pending: Pending) -> Self {
        let waiting =
            Waiting { events: Vec::new(), pending, in_journal: 0, hurry: false, over: false, broken: false };
        Self { waiting: Mutex::new(waiting), came: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; true if as many wait as may. With `durable` it is in the journal then, and all that
    /// was before it, for the chain to have no gap.
    fn push(&self, event: Event, durable: bool) -> Result<bool, Unrecorded> {
        let mut guard = self.lock();
        let waiting = &mut *guard;
        if waiting.broken {
            return Err(Unrecorded);
        }
        waiting.events.push(Arc::new(event));
        if durable {
            let new = waiting.events.iter().skip(waiting.in_journal).map(Arc::as_ref);
            waiting.pending.append(new).map_err(|error| waiting.give_up(&error))?;
            waiting.in_journal = waiting.events.len();
        }
        // The thread sleeps through a group's time; only the first of a group wakes it.
        if waiting.events.len() == 1 {
            self.came.notify_one();
        }
        Ok(waiting.events.len() >= MOST_WAITING)
    }

    /// Lets what waits be committed without a group's time.
    fn hasten(&self) {
        self.lock().hurry = true;
        self.came.notify_one();
    }

    fn close(&self) {
        self.lock().over = true;
        self.came.notify_one();
    }

    /// Waits until something waits, and then a group's time for what comes after it. False when the
    /// session is over.
    fn await_group(&self) -> bool {
        let idle = |waiting: &mut Waiting| waiting.events.is_empty() && !waiting.over;
        let waiting = self.came.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let waited = self.came.wait_timeout_while(waiting, GROUP, |waiting| !waiting.over && !waiting.hurry);
        !waited.unwrap_or_else(PoisonError::into_inner).0.over
    }
}

fn commit_groups(queue: &Queue, chain: &Mutex<Chain>, max_bytes: u64) {
    while queue.await_group() {
        // A failure shows at the next decision.
        let _broken = commit(chain, queue);
    }
    // Otherwise the journal has what the next one to open the records needs.
    let committed = commit(chain, queue).is_ok() && queue.lock().events.is_empty();
    if committed && let Err(error) = queue.lock().pending.remove() {
        tracing::warn!(%error, "the session's journal cannot be removed");
    }
    // Now that nobody waits any more.
    if let Err(error) = prune(chain, max_bytes) {
        tracing::warn!(%error, "old records could not be pruned");
    }
}

/// Commits all that waits.
fn commit(chain: &Mutex<Chain>, queue: &Queue) -> Result<(), Unrecorded> {
    let mut chain = chain.lock().unwrap_or_else(PoisonError::into_inner);
    let mut waiting = queue.lock();
    if waiting.broken {
        waiting.events.clear();
        return Err(Unrecorded);
    }
    waiting.hurry = false;
    // They wait on until they are committed: a decision that comes meanwhile takes them along into the
    // journal.
    let group = waiting.events.clone();
    // If one came each time, the journal would never be empty: then whoever records waits for once.
    let alone = waiting.pending.is_long().then_some(waiting);
    let inserted = insert(&mut chain, &group);
    let mut waiting = alone.unwrap_or_else(|| queue.lock());
    match inserted {
        // Another session holds the database for long: what is durable is so already, and nothing is lost.
        Err(error)
            if is_busy(&error) && waiting.events.len() < MOST_WAITING && !waiting.pending.is_long() =>
        {
            return Ok(());
        }
        inserted => inserted.map_err(|error| waiting.give_up(&error))?,
    }
    waiting.events.drain(..group.len());
    waiting.in_journal = waiting.in_journal.saturating_sub(group.len());
    // Otherwise it is for the next time: what the database has is skipped by whoever takes it over.
    if waiting.in_journal == 0 {
        waiting.pending.clear().map_err(|error| waiting.give_up(&error))?;
    }
    Ok(())
}

fn insert(chain: &mut Chain, group: &[Arc<Event>]) -> rusqlite::Result<()> {
    if group.is_empty() {
        return Ok(());
    }
    let transaction = chain.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let head = append(&transaction, chain.head.clone(), group.iter().map(Arc::as_ref))?;
    transaction.commit()?;
    chain.head = head;
    Ok(())
}

/// Removes whole sessions, oldest first, until the rest fits: those that ended, and those that have
/// been silent for a week, whose end could not be written.
fn prune(chain: &Mutex<Chain>, max_bytes: u64) -> rusqlite::Result<()> {
    let chain = chain.lock().unwrap_or_else(PoisonError::into_inner);
    let connection = &chain.connection;
    // An id begins with the time of the start.
    let mut after = String::new();
    loop {
        let number = |what: &str| connection.query_row(what, [], |row| row.get::<_, i64>(0));
        let used =
            (number("PRAGMA page_count")? - number("PRAGMA freelist_count")?) * number("PRAGMA page_size")?;
        if used <= i64::try_from(max_bytes).unwrap_or(i64::MAX) {
            return Ok(());
        }
        let next = "SELECT min(session) FROM events WHERE session > ?";
        let Some(session) = connection.query_row(next, [&after], |row| row.get::<_, Option<String>>(0))?
        else {
            return Ok(());
        };
        connection.execute(
            "DELETE FROM events WHERE session = ?1 AND (
                 SELECT kind = 'ended' OR time_us < (unixepoch() - 604800) * 1000000
                 FROM events WHERE session = ?1 ORDER BY seq DESC LIMIT 1)",
            [&session],
        )?;
        after = session;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::fcntl::{Flock, FlockArg, OFlag};
    use serde_json::json;
    use tempfile::TempDir;

    use super::super::reader::{Filter, Reader};
    use super::*;

    fn open(state: &TempDir, session: &str) -> Recorder {
        Recorder::open(state.path(), session, u64::MAX).unwrap()
    }

    fn journals(state: &TempDir) -> Vec<std::path::PathBuf> {
        let listed = std::fs::read_dir(state.path().join("pending")).unwrap();
        listed.map(|entry| entry.unwrap().path()).collect()
    }

    /// What a kill at this moment would leave, where nobody holds it. The thread must not be writing.
    fn as_if_killed(state: &TempDir) -> TempDir {
        let left = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(state.path().join("."))
            .arg(left.path())
            .status()
            .unwrap();
        assert!(copied.success());
        left
    }

    /// The numbers of the events that the records have, whose chains hold.
    fn read(state: &TempDir) -> Vec<i64> {
        let reader = Reader::open(state.path()).unwrap();
        let lines = reader.lines(&Filter::default()).unwrap();
        assert_eq!(reader.verify().unwrap(), lines.len() as u64);
        lines.iter().map(|line| line.json["seq"].as_i64().unwrap()).collect()
    }

    /// Records a decision, and leaves it without an outcome.
    fn decide(recorder: &Recorder, durable: bool) -> Result<(), Unrecorded> {
        recorder.decided(&json!({ "decision": "x" }), durable).map(|mut ticket| ticket.seq = None)
    }

    fn replace_file(recorder: &Recorder, file: File) {
        let locked = Flock::lock(file, FlockArg::LockSharedNonblock).unwrap();
        recorder.committer.queue.lock().pending.replace_file(locked);
    }

    #[test]
    fn a_kill_takes_nothing_durable_and_nothing_before_it() {
        let state = tempfile::tempdir().unwrap();
        let recorder = open(&state, "s");
        let chain = recorder.committer.chain.lock().unwrap();
        for durable in [false, true, false] {
            decide(&recorder, durable).unwrap();
        }
        let left = as_if_killed(&state);
        assert_eq!(read(&left), [1, 2]);
        assert!(journals(&left).is_empty());
        assert_eq!(read(&left), [1, 2]);
        drop(chain);
        // The session that lives is left alone, and at its end everything is in the database.
        read(&state);
        assert_eq!(journals(&state).len(), 1);
        drop(recorder);
        assert!(journals(&state).is_empty());
        assert_eq!(read(&state), [1, 2, 3]);
    }

    #[test]
    fn what_is_being_committed_goes_with_what_comes_after_it() {
        let state = tempfile::tempdir().unwrap();
        let recorder = open(&state, "s");
        let other = open_to_write(state.path()).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        decide(&recorder, true).unwrap();
        decide(&recorder, false).unwrap();
        // The thread is at it, and waits for the other one.
        while recorder.committer.chain.try_lock().is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(5));
        decide(&recorder, true).unwrap();
        let left = as_if_killed(&state);
        assert_eq!(read(&left), [1, 2, 3]);
        other.execute_batch("COMMIT").unwrap();
        drop(recorder);
        assert_eq!(read(&state), [1, 2, 3]);
    }

    #[test]
    fn the_journal_is_empty_once_the_database_has_it() {
        let state = tempfile::tempdir().unwrap();
        let recorder = open(&state, "s");
        let committer = &recorder.committer;
        decide(&recorder, true).unwrap();
        commit(&committer.chain, &committer.queue).unwrap();
        assert_eq!(journals(&state)[0].metadata().unwrap().len(), 0);
        assert_eq!(read(&state), [1]);
        // The thread does it too, and does not wait for more where somebody may look.
        recorder.session_event("started", &json!({})).unwrap();
        let began = std::time::Instant::now();
        while journals(&state)[0].metadata().unwrap().len() > 0 {
            assert!(began.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(read(&state), [1, 2]);
    }

    #[test]
    fn the_journal_does_not_grow_while_decisions_never_stop() {
        let state = tempfile::tempdir().unwrap();
        let recorder = open(&state, "s");
        let (body, journal) = (json!({ "decision": "x".repeat(2000) }), journals(&state).remove(0));
        let mut longest = 0;
        for _ in 0..4000 {
            recorder.send("decided", None, &body, true).unwrap();
            longest = longest.max(journal.metadata().unwrap().len());
            std::thread::sleep(Duration::from_micros(50));
        }
        assert!(longest < 4 << 20, "{longest}");
        drop(recorder);
        assert_eq!(Reader::open(state.path()).unwrap().verify().unwrap(), 4000);
    }

    #[test]
    fn what_the_database_has_is_skipped_and_what_is_torn_ends_it() {
        let state = tempfile::tempdir().unwrap();
        let recorder = open(&state, "s");
        let chain = recorder.committer.chain.lock().unwrap();
        decide(&recorder, true).unwrap();
        decide(&recorder, true).unwrap();
        let first = std::fs::read_to_string(&journals(&state)[0]).unwrap();
        drop(chain);
        commit(&recorder.committer.chain, &recorder.committer.queue).unwrap();
        let chain = recorder.committer.chain.lock().unwrap();
        decide(&recorder, true).unwrap();
        let third = std::fs::read_to_string(&journals(&state)[0]).unwrap();
        assert_eq!((first.lines().count(), third.lines().count()), (2, 1));
        let line = |seq: &str| third.replace("\"seq\":3", &format!("\"seq\":{seq}"));
        let whole = format!("{first}{third}");
        for (journal, events, changed) in [
            (whole.clone(), &[1, 2, 3][..], false),
            (format!("{whole}{}", line("4")), &[1, 2, 3, 4], false),
            // A write that did not end; one that lacks only the line's end was refused all the same.
            (format!("{whole}{}", &line("4")[..30]), &[1, 2, 3], false),
            (format!("{whole}{}", line("4").trim_end()), &[1, 2, 3], false),
            (format!("{whole}\0\0"), &[1, 2, 3], false),
            (String::new(), &[1, 2], false),
            // What no server writes.
            (format!("{whole}\0\0\n{}", line("4")), &[1, 2, 3], true),
            (format!("{whole}{}", line("5")), &[1, 2, 3], true),
            (line("4"), &[1, 2], true),
            (third.replace("\"s\"", "\"t\""), &[1, 2], true),
        ] {
            let left = as_if_killed(&state);
            std::fs::write(&journals(&left)[0], &journal).unwrap();
            let reader = Reader::open(left.path()).unwrap();
            let lines = reader.lines(&Filter::default()).unwrap();
            let seqs: Vec<_> = lines.iter().map(|line| line.json["seq"].as_i64().unwrap()).collect();
            assert_eq!(seqs, events, "{journal}");
            assert!(journals(&left).is_empty());
            let kept = std::fs::read_to_string(left.path().join("damaged/s"));
            assert_eq!(kept.ok(), changed.then_some(journal));
            assert_eq!(reader.verify().is_err(), changed);
        }
        drop(chain);
    }

    #[test]
    fn several_may_take_over_at_once() {
        let state = tempfile::tempdir().unwrap();
        let recorders: Vec<_> = (0..12).map(|number| open(&state, &format!("s{number}"))).collect();
        let chains: Vec<_> = recorders.iter().map(|one| one.committer.chain.lock().unwrap()).collect();
        for recorder in &recorders {
            decide(recorder, true).unwrap();
        }
        let left = as_if_killed(&state);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| import(left.path()).unwrap());
            }
            // One who comes meanwhile is not taken for one that has ended.
            let recorder = open(&left, "t");
            decide(&recorder, true).unwrap();
            std::mem::forget(recorder);
        });
        assert_eq!(journals(&left), [left.path().join("pending/t")]);
        let firsts = Filter { seq: Some(1), ..Filter::default() };
        let reader = Reader::open(left.path()).unwrap();
        let found = reader.lines(&firsts).unwrap();
        assert_eq!(found.iter().filter(|line| line.json["session"] != "t").count(), 12);
        reader.verify().unwrap();
        drop(chains);
    }

    #[test]
    fn the_first_sessions_may_start_at_once_and_be_looked_for_meanwhile() {
        for _ in 0..40 {
            let state = tempfile::tempdir().unwrap();
            let started = std::sync::atomic::AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for session in ["s", "t", "u"] {
                    let (state, started) = (&state, &started);
                    scope.spawn(move || {
                        let recorder = open(state, session);
                        decide(&recorder, true).unwrap();
                        started.fetch_add(1, std::sync::atomic::Ordering::Release);
                    });
                }
                for _ in 0..2 {
                    scope.spawn(|| {
                        let began = std::time::Instant::now();
                        while started.load(std::sync::atomic::Ordering::Acquire) < 3 {
                            assert!(began.elapsed() < Duration::from_secs(20));
                            match Reader::open(state.path()) {
                                Ok(reader) => drop(reader.lines(&Filter::default()).unwrap()),
                                Err(error) => assert!(matches!(error, StoreError::None(_)), "{error}"),
                            }
                        }
                    });
                }
            });
            assert_eq!(read(&state), [1, 1, 1]);
        }
    }

    #[test]
    fn what_cannot_be_written_whole_is_not_recorded_and_nothing_after_it() {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        // One that takes less than it is given.
        let (_reader, small) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        for file in [full(), File::from(small)] {
            let state = tempfile::tempdir().unwrap();
            let recorder = open(&state, "s");
            let chain = recorder.committer.chain.lock().unwrap();
            decide(&recorder, true).unwrap();
            replace_file(&recorder, file);
            let body = json!({ "decision": "x".repeat(1 << 20) });
            assert!(recorder.decided(&body, true).is_err());
            assert!(recorder.works().is_err());
            assert!(decide(&recorder, false).is_err());
            drop(chain);
            drop(recorder);
            // What was told to be recorded is.
            assert_eq!(read(&state), [1]);
            assert!(journals(&state).is_empty());
        }
    }

    #[test]
    fn a_database_that_takes_no_more_leaves_the_journal_for_later() {
        let state = tempfile::tempdir().unwrap();
        let recorder = open(&state, "s");
        recorder.committer.chain.lock().unwrap().connection.pragma_update(None, "query_only", true).unwrap();
        decide(&recorder, true).unwrap();
        assert!(commit(&recorder.committer.chain, &recorder.committer.queue).is_err());
        assert!(decide(&recorder, true).is_err());
        drop(recorder);
        assert_eq!(journals(&state).len(), 1);
        assert_eq!(read(&state), [1]);
    }

    #[test]
    fn no_session_is_without_a_journal() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("pending"), "").unwrap();
        assert!(matches!(Recorder::open(state.path(), "s", 0), Err(StoreError::Directory { .. })));
    }

    #[test]
    fn a_newer_format_is_read_and_the_journal_stays() {
        let state = tempfile::tempdir().unwrap();
        let recorder = open(&state, "s");
        let chain = recorder.committer.chain.lock().unwrap();
        decide(&recorder, true).unwrap();
        chain.connection.pragma_update(None, "user_version", 1000).unwrap();
        let left = as_if_killed(&state);
        assert!(read(&left).is_empty());
        assert_eq!(journals(&left).len(), 1);
        drop(chain);
    }
}
