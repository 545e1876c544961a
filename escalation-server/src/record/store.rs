//! The database file: where it is, what its tables are, how an event is hashed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use serde::{Deserialize, Serialize};

/// The format that this build writes. A newer one is read and never written.
const FORMAT: i64 = 1;
/// How long the database may be held by somebody else.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(
        "cannot use the state directory {path}: {error}; make it writable for this user, or set XDG_STATE_HOME"
    )]
    Directory { path: PathBuf, error: std::io::Error },
    #[error("cannot open the records in {path}: {error}; make room there, or set XDG_STATE_HOME")]
    Open { path: PathBuf, error: rusqlite::Error },
    #[error(
        "the records in {path} have format {found}, newer than this build's {FORMAT}: they can be read, not written; upgrade Postern"
    )]
    Newer { path: PathBuf, found: i64 },
    #[error("there are no records in {0} yet")]
    None(PathBuf),
    #[error("read records: {0}")]
    Read(#[from] rusqlite::Error),
}

/// One event as it is stored, and as a line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) session: String,
    pub(super) seq: i64,
    pub(super) kind: String,
    /// Microseconds since 1970.
    pub(super) time_us: i64,
    /// The event that this one completes.
    pub(super) completes: Option<i64>,
    pub(super) body: String,
}

impl Event {
    /// The chain's next link. Each field has its length before it, so that none runs into another.
    pub(super) fn hash(&self, previous: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        let numbers = [self.seq, self.time_us, self.completes.unwrap_or(-1)].map(i64::to_le_bytes).concat();
        for field in [
            previous.as_bytes(),
            self.session.as_bytes(),
            self.kind.as_bytes(),
            &numbers,
            self.body.as_bytes(),
        ] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Adds events to the chain that ends in `head`; returns its new end. Within a transaction.
pub(super) fn append<'a>(
    connection: &Connection,
    mut head: String,
    events: impl Iterator<Item = &'a Event>,
) -> rusqlite::Result<String> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO events (session, seq, kind, time_us, completes, body, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?;
    for event in events {
        head = event.hash(&head);
        statement.execute((
            &event.session,
            event.seq,
            &event.kind,
            event.time_us,
            event.completes,
            &event.body,
            &head,
        ))?;
    }
    Ok(head)
}

pub(super) fn database(state: &Path) -> PathBuf {
    state.join("records.db")
}

/// The format of a database; 0 as long as it has no tables.
fn format(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Opens the records for writing, made if need be.
pub(super) fn open_to_write(state: &Path) -> Result<Connection, StoreError> {
    let path = database(state);
    let open = |error| StoreError::Open { path: path.clone(), error };
    let connection = Connection::open(&path).map_err(open)?;
    connection.busy_timeout(PATIENCE).map_err(open)?;
    let began = Instant::now();
    let newer = loop {
        match make(&connection) {
            // Of two that make it one is turned away at once, since each would wait for the other.
            Err(error) if is_busy(&error) && began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            made => break made.map_err(open)?,
        }
    };
    match newer {
        Some(found) => Err(StoreError::Newer { path, found }),
        None => Ok(connection),
    }
}

/// Makes the tables where there are none. Returns the format if it is newer, and then changes nothing.
fn make(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let newer = |found| (found > FORMAT).then_some(found);
    let found = format(connection)?;
    if newer(found).is_some() {
        return Ok(newer(found));
    }
    // A commit survives the end of any process; only a power failure can take the last ones.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = OFF;
         PRAGMA wal_autocheckpoint = 4000;",
    )?;
    if found < FORMAT {
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        // Somebody may have made them meanwhile, of whatever build.
        let found = format(&transaction)?;
        if newer(found).is_some() {
            return Ok(newer(found));
        }
        transaction.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS events (
                 session TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,
                 time_us INTEGER NOT NULL, completes INTEGER, body TEXT NOT NULL, hash TEXT NOT NULL,
                 PRIMARY KEY (session, seq)) WITHOUT ROWID;
             CREATE INDEX IF NOT EXISTS by_time ON events (time_us);
             PRAGMA user_version = {FORMAT};"
        ))?;
        transaction.commit()?;
    }
    // Of any format: without it each outcome is looked for among all of its session.
    connection.execute_batch(
        "CREATE INDEX IF NOT EXISTS by_completion ON events (session, completes)
             WHERE completes IS NOT NULL",
    )?;
    Ok(None)
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

/// Opens the records for reading.
pub(super) fn open_to_read(state: &Path) -> Result<Connection, StoreError> {
    let path = database(state);
    if !path.exists() {
        return Err(StoreError::None(state.to_path_buf()));
    }
    let open = |error| StoreError::Open { path: path.clone(), error };
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(open)?;
    connection.busy_timeout(PATIENCE).map_err(open)?;
    connection.execute_batch("PRAGMA query_only = ON").map_err(open)?;
    // The first session is about to make the tables: they and the number come with one commit.
    if format(&connection).map_err(open)? == 0 {
        return Err(StoreError::None(state.to_path_buf()));
    }
    Ok(connection)
}
