//! Writes events from a thread of its own: what must survive waits for its commit, the rest is
//! committed in groups.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::Value;
use tokio::sync::oneshot;

use super::format::finished;
use super::store::{Event, StoreError, open_to_write};
use crate::flow::{Outcome, Status};

/// How long a group of events may wait for its commit.
const GROUP: Duration = Duration::from_millis(40);
/// Events and bytes of commands that ran in place or were denied, a session; further ones are only
/// counted.
const RUN_QUOTA: i64 = 400_000;
const RUN_BYTES: u64 = 256 << 20;
/// Bytes of everything, a session. Past it nothing more can be recorded, and so nothing escalated.
const ALL_BYTES: u64 = 1 << 30;

struct Entry {
    event: Event,
    /// Told after the commit.
    done: Option<oneshot::Sender<bool>>,
}

/// The server's handle on the records of its session.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    session: Rc<str>,
    next: Rc<Cell<i64>>,
    uncounted: Rc<Cell<u64>>,
    bytes: Rc<Cell<u64>>,
    writer: Sender<Entry>,
    broken: Arc<AtomicBool>,
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
    /// Opens the records and prunes ended sessions, oldest first, until they fit `max_bytes`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn open(
        state: &Path,
        session: &str,
        max_bytes: u64,
    ) -> Result<(Self, std::thread::JoinHandle<()>), StoreError> {
        let connection = open_to_write(state)?;
        let (writer, entries) = mpsc::channel();
        let broken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&broken);
        let thread = std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || write(connection, &entries, &flag, max_bytes))
            .map_err(|error| StoreError::Directory { path: state.to_path_buf(), error })?;
        let recorder = Self {
            session: session.into(),
            next: Rc::new(Cell::new(1)),
            uncounted: Rc::default(),
            bytes: Rc::default(),
            writer,
            broken,
        };
        Ok((recorder, thread))
    }

    fn send(
        &self,
        kind: &str,
        completes: Option<i64>,
        body: &Value,
        done: Option<oneshot::Sender<bool>>,
    ) -> Result<i64, Unrecorded> {
        if self.broken.load(Ordering::Relaxed) || self.bytes.get() > ALL_BYTES {
            return Err(Unrecorded);
        }
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
        self.bytes.set(self.bytes.get() + event.body.len() as u64);
        self.writer.send(Entry { event, done }).map_err(|_| Unrecorded)?;
        self.next.set(seq + 1);
        Ok(seq)
    }

    async fn send_durably(&self, kind: &str, body: &Value) -> Result<i64, Unrecorded> {
        let (done, committed) = oneshot::channel();
        let seq = self.send(kind, None, body, Some(done))?;
        if committed.await == Ok(true) { Ok(seq) } else { Err(Unrecorded) }
    }

    /// Records a decision. With `durable` it survives the end of every process before this returns.
    ///
    /// # Errors
    /// [`Unrecorded`]: then nothing may be done that the record would have told of.
    pub(crate) async fn decided(&self, body: &Value, durable: bool) -> Result<Ticket, Unrecorded> {
        if durable {
            let seq = self.send_durably("decided", body).await?;
            return Ok(Ticket { recorder: self.clone(), seq: Some(seq) });
        }
        if self.next.get() > RUN_QUOTA || self.bytes.get() > RUN_BYTES {
            self.uncounted.set(self.uncounted.get() + 1);
            return Ok(Ticket { recorder: self.clone(), seq: None });
        }
        let seq = self.send("decided", None, body, None)?;
        Ok(Ticket { recorder: self.clone(), seq: Some(seq) })
    }

    /// Records something about the session, durably.
    ///
    /// # Errors
    /// [`Unrecorded`].
    pub(crate) async fn session_event(&self, kind: &str, body: &Value) -> Result<(), Unrecorded> {
        self.send_durably(kind, body).await.map(drop)
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
            let _unrecorded = self.recorder.send("finished", Some(seq), &finished(outcome), None);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(seq) = self.seq.take() {
            let lost = finished(&Outcome::new(Status::Lost, 0));
            let _unrecorded = self.recorder.send("finished", Some(seq), &lost, None);
        }
    }
}

fn write(mut connection: Connection, entries: &Receiver<Entry>, broken: &AtomicBool, max_bytes: u64) {
    if let Err(error) = prune(&connection, max_bytes) {
        tracing::warn!(%error, "old records could not be pruned");
    }
    let mut head = String::new();
    let mut group = Vec::new();
    loop {
        match entries.recv_timeout(GROUP) {
            Ok(entry) => {
                let urgent = entry.done.is_some();
                group.push(entry);
                if !urgent && group.len() < 512 {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                commit(&mut connection, &mut head, &mut group, broken);
                return;
            }
        }
        commit(&mut connection, &mut head, &mut group, broken);
    }
}

fn commit(connection: &mut Connection, head: &mut String, group: &mut Vec<Entry>, broken: &AtomicBool) {
    if group.is_empty() {
        return;
    }
    let written = insert(connection, head, group);
    if let Err(error) = &written {
        // The chain has a gap from here on, so nothing more is written or decided.
        broken.store(true, Ordering::Relaxed);
        tracing::error!(%error, "records cannot be written");
    }
    for entry in group.drain(..) {
        if let Some(done) = entry.done {
            let _nobody = done.send(written.is_ok());
        }
    }
}

fn insert(connection: &mut Connection, head: &mut String, group: &[Entry]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut last = head.clone();
    {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO events (session, seq, kind, time_us, completes, body, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?;
        for Entry { event, .. } in group {
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
    *head = last;
    Ok(())
}

fn prune(connection: &Connection, max_bytes: u64) -> rusqlite::Result<()> {
    loop {
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let free: i64 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
        let size: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        if (pages - free) * size <= i64::try_from(max_bytes).unwrap_or(i64::MAX) {
            return Ok(());
        }
        let removed = connection.execute(
            // One that ended, or that has been silent for a week: its end could not be written.
            "DELETE FROM events WHERE session = (
                 SELECT session FROM events GROUP BY session
                 HAVING max(kind = 'ended') OR max(time_us) < (unixepoch() - 604800) * 1000000
                 ORDER BY max(time_us) LIMIT 1)",
            [],
        )?;
        if removed == 0 {
            return Ok(());
        }
    }
}
