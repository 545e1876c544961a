//! Reads history back: one joined object a decision, in the order of time.

use std::path::{Path, PathBuf};

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, Statement, params_from_iter};
use serde_json::{Value, json};

use super::pending::{import, kept};
use super::store::{Event, StoreError, open_to_read};

/// Which lines to read. Times in microseconds since 1970.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// The beginning of a session's id.
    pub(crate) session: Option<String>,
    pub(crate) decision: Option<String>,
    pub(crate) execution: Option<String>,
    pub(crate) since_us: Option<i64>,
    /// A part of the command line or of the executable's path.
    pub(crate) grep: Option<String>,
    pub(crate) seq: Option<i64>,
}

/// One line of history: a decision joined with its outcome, or a session's event.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) time_us: i64,
    pub(crate) kind: String,
    pub(crate) json: Value,
}

/// Events with what completes them. Left to itself SQLite would look for that among all of a session, each
/// time; the index is not there in records that only another build has written.
fn joined<'a>(connection: &'a Connection, wanted: &str) -> rusqlite::Result<Statement<'a>> {
    let select = |by: &str| {
        format!(
            "SELECT d.session, d.seq, d.kind, d.time_us, d.body, d.hash, f.body,
                    coalesce((SELECT hash FROM events p WHERE p.session = d.session AND p.seq = d.seq - 1), '')
             FROM events d
             LEFT JOIN events f {by} ON f.session = d.session AND f.kind = 'finished' AND f.completes = d.seq
             WHERE {wanted} ORDER BY d.time_us, d.seq"
        )
    };
    let indexed = connection.prepare(&select("INDEXED BY by_completion"));
    indexed.or_else(|_| connection.prepare(&select("")))
}

/// A chain that does not hold.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("session {session}: event {seq} was changed, or one before it: the chain does not hold there")]
    Broken { session: String, seq: i64 },
    #[error("session {session}: event {seq} is missing")]
    Missing { session: String, seq: i64 },
    #[error(
        "every chain holds, but the rest of a session does not follow from its own: see what {path} says, and \
         move it away"
    )]
    Damaged { path: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The records, opened for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    state: PathBuf,
    connection: Connection,
}

impl Reader {
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn open(state: &Path) -> Result<Self, StoreError> {
        let connection = open_to_read(state)?;
        Ok(Self { state: state.to_path_buf(), connection })
    }

    /// The database, with what servers that were killed have left for it.
    fn current(&self) -> &Connection {
        // Who may only read, reads what is there.
        let _not_ours_to_write = import(&self.state);
        &self.connection
    }

    /// Lines that pass the filter, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub(crate) fn lines(&self, filter: &Filter) -> Result<Vec<Line>, StoreError> {
        let mut wanted = vec!["d.kind != 'finished'".to_owned()];
        let mut values: Vec<Sql> = Vec::new();
        if let Some(session) = &filter.session {
            // An id or a part of one is letters, digits and dashes: no wildcard gets in.
            let plain: String =
                session.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
            wanted.push("(d.session LIKE ? OR d.session LIKE ?)".to_owned());
            values.extend([Sql::Text(format!("{plain}%")), Sql::Text(format!("%{plain}"))]);
        }
        let numbers = [("d.time_us >= ?", filter.since_us), ("d.seq = ?", filter.seq)];
        for (condition, number) in numbers {
            if let Some(number) = number {
                wanted.push(condition.to_owned());
                values.push(Sql::Integer(number));
            }
        }
        let mut statement = joined(self.current(), &wanted.join(" AND "))?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut lines = Vec::new();
        while let Some(row) = rows.next()? {
            let (session, seq, kind): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (time_us, body, hash): (i64, String, String) = (row.get(3)?, row.get(4)?, row.get(5)?);
            let (finished, prev): (Option<String>, String) = (row.get(6)?, row.get(7)?);
            let mut json: Value = serde_json::from_str(&body).unwrap_or_else(|_| json!({ "damaged": body }));
            if kind == "decided" {
                let end: Value =
                    finished.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
                json["outcome"] = end.get("outcome").cloned().unwrap_or_default();
                json["attested"]["fds"] = end.get("fds").cloned().unwrap_or_default();
            } else {
                json["event"] = Value::from(kind.as_str());
            }
            json["seq"] = seq.into();
            json["session"] = session.into();
            json["time"] = time(time_us).into();
            json["prev"] = prev.into();
            json["hash"] = hash.into();
            let line = Line { time_us, kind, json };
            if passes(&line, filter) {
                lines.push(line);
            }
        }
        Ok(lines)
    }

    /// Checks every chain; returns how many events hold.
    ///
    /// # Errors
    /// The first event that does not, or a journal that could not be taken over as a whole.
    pub(crate) fn verify(&self) -> Result<u64, VerifyError> {
        let mut statement = self
            .current()
            .prepare(
                "SELECT session, seq, kind, time_us, completes, body, hash FROM events ORDER BY session, seq",
            )
            .map_err(StoreError::from)?;
        let mut rows = statement.query([]).map_err(StoreError::from)?;
        let (mut session, mut expected, mut previous, mut count) = (String::new(), 1, String::new(), 0);
        while let Some(row) = rows.next().map_err(StoreError::from)? {
            let read = || -> rusqlite::Result<(Event, String)> {
                let event = Event {
                    session: row.get(0)?,
                    seq: row.get(1)?,
                    kind: row.get(2)?,
                    time_us: row.get(3)?,
                    completes: row.get(4)?,
                    body: row.get(5)?,
                };
                Ok((event, row.get(6)?))
            };
            let (event, hash) = read().map_err(StoreError::from)?;
            if event.session != session {
                session.clone_from(&event.session);
                (expected, previous) = (1, String::new());
            }
            if event.seq != expected {
                return Err(VerifyError::Missing { session, seq: expected });
            }
            if event.hash(&previous) != hash {
                return Err(VerifyError::Broken { session, seq: event.seq });
            }
            (expected, previous, count) = (expected + 1, hash, count + 1);
        }
        match kept(&self.state)? {
            Some(path) => Err(VerifyError::Damaged { path }),
            None => Ok(count),
        }
    }

    /// The last hash of each session, newest first, with the session's id and its event's number.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub(crate) fn heads(&self) -> Result<Vec<(String, i64, String)>, StoreError> {
        let mut statement = self.current().prepare(
            "SELECT session, seq, hash FROM events e
             WHERE seq = (SELECT max(seq) FROM events WHERE session = e.session) ORDER BY time_us DESC",
        )?;
        let heads = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(heads.collect::<Result<_, _>>()?)
    }
}

fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |time| time.to_string())
}

fn passes(line: &Line, filter: &Filter) -> bool {
    let narrowed = filter.decision.is_some() || filter.execution.is_some() || filter.grep.is_some();
    if line.kind != "decided" {
        return !narrowed;
    }
    let json = &line.json;
    let execution = &json["execution"];
    let execution = execution.as_str().or_else(|| execution["permissions"].as_str()).unwrap_or("in_place");
    let in_permissions = json["execution"].is_object();
    filter.decision.as_ref().is_none_or(|wanted| json["decision"] == wanted.as_str())
        && filter
            .execution
            .as_ref()
            .is_none_or(|wanted| execution == wanted || (wanted == "permissions" && in_permissions))
        && filter.grep.as_ref().is_none_or(|wanted| {
            let words = json["claimed"]["argv"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let line = words.collect::<Vec<_>>().join(" ");
            line.contains(wanted.as_str())
                || json["attested"]["exe"]["path"].as_str().is_some_and(|path| path.contains(wanted.as_str()))
        })
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::super::store::{append, open_to_write};
    use super::*;

    /// How many steps SQLite takes to read this many decisions without an outcome.
    fn steps(decisions: i64, index: bool) -> i32 {
        let state = tempfile::tempdir().unwrap();
        let connection = open_to_write(state.path()).unwrap();
        let event = |seq| Event {
            session: "s".to_owned(),
            seq,
            kind: "decided".to_owned(),
            time_us: seq,
            completes: None,
            body: "{}".to_owned(),
        };
        let events: Vec<_> = (1..=decisions).map(event).collect();
        append(&connection, String::new(), events.iter()).unwrap();
        if !index {
            connection.execute_batch("DROP INDEX by_completion").unwrap();
        }
        let mut statement = joined(&connection, "d.kind != 'finished'").unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut count = 0;
        while rows.next().unwrap().is_some() {
            count += 1;
        }
        drop(rows);
        assert_eq!(count, decisions);
        statement.get_status(StatementStatus::VmStep)
    }

    #[test]
    fn nothing_is_called_whole_where_nobody_can_look_for_what_is_not() {
        let state = tempfile::tempdir().unwrap();
        drop(open_to_write(state.path()).unwrap());
        let reader = Reader::open(state.path()).unwrap();
        assert_eq!(reader.verify().unwrap(), 0);
        std::fs::write(state.path().join("damaged"), "").unwrap();
        assert!(matches!(reader.verify(), Err(VerifyError::Store(StoreError::Directory { .. }))));
    }

    #[test]
    fn a_long_session_is_read_in_steps_that_grow_as_it_does() {
        assert!(steps(1000, true) < 20 * steps(100, true));
        // Without the index all the same, if slowly.
        assert!(steps(1000, false) > 50 * steps(100, false));
    }
}
