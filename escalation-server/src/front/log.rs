//! `postern log`: history for people and programs.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::flow::text::{command_line, printable};
use crate::record::{Filter, Line, Reader};
use crate::session::Directories;

/// What `postern log` was asked.
#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Only this session: its id, or how that begins or ends
    #[arg(long, global = true, value_name = "ID")]
    session: Option<String>,
    /// Only this decision: run, deny or escalate
    #[arg(long, value_name = "DECISION", value_parser = ["run", "deny", "escalate"])]
    decision: Option<String>,
    /// Only this execution: in_place, unsandboxed, turn_default, permissions or a profile's name
    #[arg(long, value_name = "EXECUTION")]
    execution: Option<String>,
    /// Only what is newer: a day (2026-01-31), a time (2026-01-31T12:00:00Z) or how long ago (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<i64>,
    /// Only commands whose line or executable contains this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Go on with what is still to come
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// One record whole, by its number: the newest session's that has it, or --session's
    Show {
        /// The number that the table shows
        seq: i64,
    },
    /// Check that no event was changed since it was written
    Verify,
    /// Print the last hash of each session, for keeping elsewhere
    Head,
}

fn since(text: &str) -> Result<i64, String> {
    let now = jiff::Timestamp::now().as_microsecond();
    if let Some(at) = text.find(|character: char| !character.is_ascii_digit())
        && let (Ok(count), unit) = (text[..at].parse::<i64>(), &text[at..])
    {
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => 0,
        };
        if seconds > 0 {
            let ago = count.checked_mul(seconds * 1_000_000).ok_or("that is longer ago than time goes")?;
            return Ok(now.saturating_sub(ago));
        }
    }
    let day = || {
        Some(text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
    };
    let time = text.parse::<jiff::Timestamp>().ok().or_else(day);
    time.map(jiff::Timestamp::as_microsecond).ok_or_else(|| {
        "expected a day (2026-01-31), a time (2026-01-31T12:00:00Z) or how long ago (90s, 15m, 2h, 7d)"
            .to_owned()
    })
}

/// Answers `postern log`.
///
/// # Errors
/// What keeps the records from being read, or a chain that does not hold, as text for stderr.
pub(crate) fn log(arguments: LogArguments) -> Result<(), String> {
    let directories = Directories::find()?;
    let reader = Reader::open(&directories.state).map_err(|error| error.to_string())?;
    let mut out = io::stdout().lock();
    let written = match arguments.action {
        Some(Action::Verify) => {
            let count = reader.verify().map_err(|error| error.to_string())?;
            writeln!(out, "{count} events hold")
        }
        Some(Action::Head) => {
            let heads = reader.heads().map_err(|error| error.to_string())?;
            let mut chosen = heads.iter().filter(|(session, ..)| {
                arguments.session.as_ref().is_none_or(|wanted| {
                    session.starts_with(wanted.as_str()) || session.ends_with(wanted.as_str())
                })
            });
            chosen.try_for_each(|(session, seq, hash)| writeln!(out, "{session} {seq} {hash}"))
        }
        Some(Action::Show { seq }) => {
            let filter = Filter { session: arguments.session, seq: Some(seq), ..Filter::default() };
            let mut lines = reader.lines(&filter).map_err(|error| error.to_string())?;
            // The newest session's, where several have it and none was named.
            let line = lines.pop().ok_or_else(|| format!("there is no record {seq}"))?;
            serde_json::to_string_pretty(&line.json)
                .map_err(io::Error::other)
                .and_then(|text| writeln!(out, "{text}"))
        }
        None => follow(&reader, arguments, &mut out)?,
    };
    // A reader that has seen enough is no error.
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn follow(reader: &Reader, arguments: LogArguments, out: &mut impl Write) -> Result<io::Result<()>, String> {
    const TURN: Duration = Duration::from_millis(300);
    const LATE_US: i64 = 10_000_000;
    let colour =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut filter = Filter {
        session: arguments.session,
        decision: arguments.decision,
        execution: arguments.execution,
        since_us: arguments.since,
        grep: arguments.grep,
        seq: None,
    };
    let mut shown = std::collections::HashSet::new();
    let mut heading = !arguments.json;
    loop {
        // From where the next turn has to read: what is open still, or what others commit late.
        let (mut still_open, mut last) = (None, filter.since_us);
        for line in reader.lines(&filter).map_err(|error| error.to_string())? {
            let key = (line.json["session"].to_string(), line.json["seq"].to_string());
            // A follower waits for the outcome, so that each line is written once and whole.
            let open = line.kind == "decided" && line.json["outcome"].is_null();
            last = last.max(Some(line.time_us - LATE_US));
            if open && still_open.is_none() {
                still_open = Some(line.time_us);
            }
            if (arguments.follow && open) || !shown.insert(key) {
                continue;
            }
            let text = if arguments.json { line.json.to_string() } else { row(&line, colour) };
            if std::mem::take(&mut heading)
                && let Err(error) = writeln!(
                    out,
                    "{:<7}  {:>6}  {:<12}  {:<8}  {:<18}  {:<11}  {:>9}  command  (source)",
                    "session", "seq", "time", "decision", "execution", "outcome", "took"
                )
            {
                return Ok(Err(error));
            }
            if let Err(error) = writeln!(out, "{text}") {
                return Ok(Err(error));
            }
        }
        if !arguments.follow {
            return Ok(Ok(()));
        }
        if let Err(error) = out.flush() {
            return Ok(Err(error));
        }
        filter.since_us = still_open.or(last);
        std::thread::sleep(TURN);
    }
}

fn words(value: &Value) -> String {
    let list = value.as_array().or_else(|| value["head"].as_array());
    let words: Vec<Vec<u8>> = list.into_iter().flatten().map(raw).collect();
    let mut line = command_line(words.iter().map(Vec::as_slice));
    if value.is_object() {
        line.push_str(&format!(" … ({} words)", value["words"]));
    }
    line
}

/// The bytes that a JSON string or `{"bytes": …}` stands for.
fn raw(value: &Value) -> Vec<u8> {
    use base64::Engine as _;
    match (value.as_str(), value["bytes"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => {
            base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn local_time(json: &Value) -> String {
    let text = json["time"].as_str().unwrap_or_default();
    text.parse::<jiff::Timestamp>().map_or_else(
        |_| text.to_owned(),
        |time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S.%3f").to_string(),
    )
}

fn took(us: u64) -> String {
    match us {
        0..=999 => format!("{us} µs"),
        1000..=999_999 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn row(line: &Line, colour: bool) -> String {
    let json = &line.json;
    let (seq, time) = (json["seq"].as_i64().unwrap_or_default(), local_time(json));
    // Ids begin with a time, which the next column has.
    let session = json["session"].as_str().and_then(|id| id.rsplit('-').next()).unwrap_or_default();
    if line.kind != "decided" {
        let said =
            ["profile", "reason", "path"].iter().find_map(|key| json[*key].as_str()).unwrap_or_default();
        return format!(
            "{session:<7}  {seq:>6}  {time:<12}  {}  {}",
            line.kind.replace('_', " "),
            printable(said.as_bytes())
        );
    }
    let decision = json["decision"].as_str().unwrap_or("?");
    let execution = match &json["execution"] {
        Value::Null => if decision == "run" { "in place" } else { "-" }.to_owned(),
        Value::String(name) => name.clone(),
        object => format!("profile {}", object["permissions"].as_str().unwrap_or("?")),
    };
    let outcome = &json["outcome"];
    let status = match outcome["status"].as_str() {
        None => "running".to_owned(),
        Some("exited") => format!("exit {}", outcome["code"]),
        Some("signaled") => format!("signal {}", outcome["signal"]),
        Some(other) => other.to_owned(),
    };
    let took = outcome["wall_us"].as_u64().map(took).unwrap_or_default();
    let rule = &json["judgement"]["rule"];
    let source = match rule["file"].as_str() {
        Some(file) => {
            format!("{}:{}", printable(file.rsplit('/').next().unwrap_or(file).as_bytes()), rule["line"])
        }
        None => json["judgement"]["source"].as_str().unwrap_or("?").to_owned(),
    };
    let paint = |text: String, code: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text };
    let code = match decision {
        "run" => "32",
        "deny" => "31",
        _ => "33",
    };
    let mark = if json["judgement"]["audit"] == true { " [audit]" } else { "" };
    format!(
        "{session:<7}  {seq:>6}  {time:<12}  {}  {execution:<18}  {status:<11}  {took:>9}  {}  ({source}){mark}",
        paint(format!("{decision:<8}"), code),
        words(&json["claimed"]["argv"]),
    )
}
