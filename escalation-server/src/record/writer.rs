//! Writes events: what must survive is committed before its caller goes on, the rest in groups by a
//! thread of its own.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::Value;

use super::format::finished;
use super::store::{Event, StoreError, open_to_write};
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
    journal: Rc<Journal>,
}

/// Both ends of what waits: whoever records, and the thread that commits groups.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<Event>,
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
struct Journal {
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
        let queue = Arc::new(Queue::default());
        let chain = Arc::new(Mutex::new(Chain { connection, head: String::new() }));
        let (waiting, shared) = (Arc::clone(&queue), Arc::clone(&chain));
        let thread = std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || commit_groups(&waiting, &shared, max_bytes))
            .map_err(|error| StoreError::Directory { path: state.to_path_buf(), error })?;
        let journal = Journal { queue, chain, thread: Some(thread) };
        Ok(Self {
            session: session.into(),
            next: Rc::new(Cell::new(1)),
            uncounted: Rc::default(),
            bytes: Rc::default(),
            journal: Rc::new(journal),
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
        let full = self.journal.queue.push(event)?;
        self.bytes.set(self.bytes.get() + bytes);
        self.next.set(seq + 1);
        if durable || full {
            commit(&self.journal.chain, &self.journal.queue)?;
        }
        Ok(seq)
    }

    /// Whether what is decided now can be recorded.
    ///
    /// # Errors
    /// [`Unrecorded`].
    pub(crate) fn works(&self) -> Result<(), Unrecorded> {
        if self.bytes.get() > ALL_BYTES || self.journal.queue.lock().broken {
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
        self.send(kind, None, body, true).map(drop)
    }

    /// How many commands ran in place that the quota left unrecorded.
    pub(crate) fn uncounted(&self) -> u64 {
        self.uncounted.get()
    }
}

impl Ticket {
    /// The number of the decision, if it has a record.
    pub(crate) fn seq(&self) -> Option<i64> {
        self.seq
    }

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

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; true if as many wait as may.
    fn push(&self, event: Event) -> Result<bool, Unrecorded> {
        let mut waiting = self.lock();
        if waiting.broken {
            return Err(Unrecorded);
        }
        waiting.events.push(event);
        // The thread sleeps through a group's time; only the first of a group wakes it.
        if waiting.events.len() == 1 {
            self.came.notify_one();
        }
        Ok(waiting.events.len() >= MOST_WAITING)
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
        let waited = self.came.wait_timeout_while(waiting, GROUP, |waiting| !waiting.over);
        !waited.unwrap_or_else(PoisonError::into_inner).0.over
    }
}

fn commit_groups(queue: &Queue, chain: &Mutex<Chain>, max_bytes: u64) {
    while queue.await_group() {
        // A failure shows at the next decision.
        let _broken = commit(chain, queue);
    }
    let _nobody_decides_any_more = commit(chain, queue);
    // Now that nobody waits any more.
    if let Err(error) = prune(chain, max_bytes) {
        tracing::warn!(%error, "old records could not be pruned");
    }
}

/// Writes all that waits.
fn commit(chain: &Mutex<Chain>, queue: &Queue) -> Result<(), Unrecorded> {
    let mut chain = chain.lock().unwrap_or_else(PoisonError::into_inner);
    let mut waiting = queue.lock();
    let group = std::mem::take(&mut waiting.events);
    if waiting.broken {
        return Err(Unrecorded);
    }
    drop(waiting);
    insert(&mut chain, &group).map_err(|error| {
        queue.lock().broken = true;
        tracing::error!(%error, "records cannot be written");
        Unrecorded
    })
}

fn insert(chain: &mut Chain, group: &[Event]) -> rusqlite::Result<()> {
    if group.is_empty() {
        return Ok(());
    }
    let transaction = chain.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut last = chain.head.clone();
    {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO events (session, seq, kind, time_us, completes, body, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?;
        for event in group {
            let hash = event.hash(&last);
            statement.execute((
                &event.session,
                event.seq,
                &event.kind,
                event.time_us,
                event.completes,
                &event.body,
                &hash,
            ))?;
            last = hash;
        }
    }
    transaction.commit()?;
    chain.head = last;
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
