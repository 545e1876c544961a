//! `postern sessions`: which sessions live, lingering ones among them, and how to end one.

use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use serde_json::Value;

use crate::flow::text::printable;
use crate::record::{Filter, Reader};
use crate::runner::kill_descendants;
use crate::session::Directories;
use crate::sys::process;

struct Session {
    id: String,
    server: i32,
    line: String,
}

/// A server of ours: its name is as the kernel has it, its user is this one (proc_pid_status(5)).
fn is_server(pid: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let uid = field("Uid:").and_then(|ids| ids.split_whitespace().next()?.parse().ok());
    field("Name:") == Some("postern-server") && uid == Some(geteuid().as_raw())
}

fn living() -> Result<Vec<Session>, String> {
    let directories = Directories::find()?;
    let reader = match Reader::open(&directories.state) {
        Ok(reader) => reader,
        Err(crate::record::StoreError::None(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let filter = Filter { seq: Some(1), ..Filter::default() };
    let started = reader.lines(&filter).map_err(|error| error.to_string())?;
    let found = started.into_iter().filter(|line| line.kind == "started").filter_map(|line| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let server = i32::try_from(line.json["server"].as_i64()?).ok().filter(|pid| is_server(*pid))?;
        let id = text(&line.json["session"]);
        let shown = |value: &Value| printable(text(value).as_bytes());
        let line =
            format!("{id}  pid {server}  {}  {}", shown(&line.json["profile"]), shown(&line.json["cwd"]));
        Some(Session { id, server, line })
    });
    Ok(found.collect())
}

/// One line a living session.
///
/// # Errors
/// If the records cannot be read.
pub(crate) fn list() -> Result<String, String> {
    let lines: Vec<String> = living()?.into_iter().map(|session| session.line + "\n").collect();
    Ok(lines.concat())
}

/// Ends a session: hang-up, and a second later the kill.
///
/// # Errors
/// If it does not live, or does not end.
pub(crate) fn end(id: &str) -> Result<(), String> {
    let matching: Vec<Session> = living()?.into_iter().filter(|session| session.id.starts_with(id)).collect();
    let [session] = matching.as_slice() else {
        return Err(match matching.len() {
            0 => format!("no living session's id begins with {id}"),
            count => format!("{count} living sessions' ids begin with {id}"),
        });
    };
    let pidfd = process::pidfd_open(session.server).map_err(|error| error.to_string())?;
    if !is_server(session.server) {
        return Err("it has just ended".to_owned());
    }
    process::pidfd_signal(&pidfd, libc::SIGTERM).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_server(session.server) {
        if Instant::now() > deadline {
            kill_descendants(session.server, true);
            return Err("it did not end in time; its server was killed".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
