//! The journal of a session: what the database does not have yet. One write(2) makes an event survive
//! the end of its process; what a server that was killed has left, the next one to open the records
//! puts into the database.

use std::fs::{DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::store::{Event, StoreError, append, open_to_write};

/// Bytes of a line at most: more than a request has, however it is written down.
const LONGEST: u64 = 64 << 20;
/// Bytes past which it is not left for another time to be emptied.
const LONG: usize = 1 << 20;

/// A living session's journal, locked for as long as that lives.
#[derive(Debug)]
pub(super) struct Pending {
    path: PathBuf,
    file: Flock<File>,
    /// Bytes that were written since it was last empty.
    length: usize,
}

fn directory(state: &Path) -> PathBuf {
    state.join("pending")
}

impl Pending {
    /// # Errors
    /// As mkdir(2), open(2) and flock(2); and if there is one of this session's already.
    pub(super) fn create(state: &Path, session: &str) -> io::Result<Self> {
        let directory = directory(state);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let path = directory.join(session);
        loop {
            let file = File::options().append(true).create_new(true).mode(0o600).open(&path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            // Who looked in between took an unlocked one for what a session has left.
            if is_named(&path, &file) {
                return Ok(Self { path, file, length: 0 });
            }
        }
    }

    /// Adds events by one write(2), a line each.
    ///
    /// # Errors
    /// As write(2), and if not all was written: then a line is torn, and nothing may come after it.
    pub(super) fn append<'a>(&mut self, events: impl Iterator<Item = &'a Event>) -> io::Result<()> {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event)?;
            lines.push(b'\n');
        }
        self.length += lines.len();
        if (&*self.file).write(&lines)? < lines.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Whether it should be emptied soon.
    pub(super) fn is_long(&self) -> bool {
        self.length > LONG
    }

    /// Empties it, when the database has all that it holds.
    ///
    /// # Errors
    /// As ftruncate(2).
    pub(super) fn clear(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.length) > 0 { self.file.set_len(0) } else { Ok(()) }
    }

    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: Flock<File>) {
        self.file = file;
    }

    /// Removes it, when the session is over and the database has all.
    ///
    /// # Errors
    /// As unlink(2).
    pub(super) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// Whether a path still leads to a file that was opened by it: another process may have removed it
/// before it was locked.
fn is_named(path: &Path, file: &File) -> bool {
    let named = path.symlink_metadata().ok().filter(std::fs::Metadata::is_file);
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    named.map(id).is_some_and(|named| file.metadata().is_ok_and(|own| id(own) == named))
}

/// Puts into the database what servers that were killed have left, and removes their journals. Those
/// of living sessions are left alone.
///
/// # Errors
/// [`StoreError`]; then what was not put there stays where it is.
pub(super) fn import(state: &Path) -> Result<(), StoreError> {
    let directory = directory(state);
    let failed = |error| StoreError::Directory { path: directory.clone(), error };
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    let left: Vec<_> = entries.flatten().filter_map(|entry| left(entry.path())).collect();
    if left.is_empty() {
        return Ok(());
    }
    let mut connection = open_to_write(state)?;
    let mut take_over = |path: &Path, file: &File| -> Result<(), StoreError> {
        let session = path.file_name().unwrap_or_default().to_string_lossy();
        let (events, whole) = events(file, &session).map_err(failed)?;
        let joins = add(&mut connection, &session, &events)?;
        if whole && joins {
            return std::fs::remove_file(path).map_err(failed);
        }
        let place = damaged(state);
        let moved = DirBuilder::new().recursive(true).mode(0o700).create(&place);
        moved.and_then(|()| std::fs::rename(path, place.join(&*session))).map_err(failed)
    };
    // One that cannot be taken over does not keep the others.
    let taken: Vec<_> = left.iter().map(|(path, file)| take_over(path, file)).collect();
    taken.into_iter().collect()
}

/// A journal that no server holds any more, locked so that nobody else takes it over.
fn left(path: PathBuf) -> Option<(PathBuf, Flock<File>)> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path).ok()?;
    let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    is_named(&path, &file).then_some((path, file))
}

/// Where journals are kept of which a line is not what a server writes, or was lost.
fn damaged(state: &Path) -> PathBuf {
    state.join("damaged")
}

/// One that is kept there, if any is.
///
/// # Errors
/// [`StoreError::Directory`]: then nobody knows.
pub(super) fn kept(state: &Path) -> Result<Option<PathBuf>, StoreError> {
    let path = damaged(state);
    let first = match std::fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.and_then(|mut entries| entries.next().transpose()),
    };
    let first = first.map_err(|error| StoreError::Directory { path, error })?;
    Ok(first.map(|entry| entry.path()))
}

/// The events of a journal, as far as each follows the one before it, and whether that is all of it. A last
/// line that is torn was never whole, and what it tells of was not done.
fn events(file: &File, session: &str) -> io::Result<(Vec<Event>, bool)> {
    let mut lines = BufReader::new(file);
    let mut events: Vec<Event> = Vec::new();
    loop {
        let mut line = Vec::new();
        let length = (&mut lines).take(LONGEST).read_until(b'\n', &mut line)?;
        let event = line.strip_suffix(b"\n").and_then(|text| serde_json::from_slice::<Event>(text).ok());
        match event {
            Some(event)
                if event.session == session
                    && events.last().is_none_or(|last| last.seq.checked_add(1) == Some(event.seq)) =>
            {
                events.push(event);
            }
            _ => return Ok((events, !line.ends_with(b"\n") && (length as u64) < LONGEST)),
        }
    }
}

/// Adds to a session's chain what comes after its end; false if it does not join that. Where there is no
/// chain any more the session was pruned meanwhile, and nothing is added.
fn add(connection: &mut Connection, session: &str, events: &[Event]) -> rusqlite::Result<bool> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let last = transaction
        .query_row(
            "SELECT seq, hash FROM events WHERE session = ? ORDER BY seq DESC LIMIT 1",
            [session],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let (seq, head): (i64, String) = last.unwrap_or_default();
    let new = events.get(events.partition_point(|event| event.seq <= seq)..).unwrap_or_default();
    let joins = new.first().is_none_or(|first| seq.checked_add(1) == Some(first.seq));
    if joins {
        append(&transaction, head, new.iter())?;
    }
    transaction.commit()?;
    Ok(joins || seq == 0)
}
