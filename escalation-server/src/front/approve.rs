//! `postern approve`: what waits for an approval in this user's sessions, and answers to it. Line by
//! line, so that pipes and screen readers can use it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use clap::Args;
use nix::unistd::geteuid;

use crate::approval::{Choice, Field, Order, Prompt, Reply, State};
use crate::flow::text::printable;
use crate::session::{Directories, control_directory, operator_token, short_path};
use crate::sys::socket;

#[derive(Debug, Args)]
#[group(id = "what", multiple = false)]
pub(crate) struct Decision {
    /// One run
    #[arg(long)]
    once: bool,
    /// This run and every equal one of the session
    #[arg(long)]
    session: bool,
    /// So many equal runs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,
    /// Equal runs for so long: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    until: Option<u64>,
    /// This run, and for good what the rule allows that the prompt shows
    #[arg(long)]
    rule: bool,
    /// Not this one
    #[arg(long)]
    deny: bool,
    /// Nothing that waits in the session, and interrupt its shell
    #[arg(long)]
    abort: bool,
}

/// Without a prompt's id: shows what waits, as it comes, and reads answers from standard input, one
/// a line: `ID once|session|uses N|until TIME|rule|deny|abort`. Of an id its beginning is enough.
#[derive(Debug, Args)]
pub(crate) struct ApproveArguments {
    /// Show or answer this prompt
    id: Option<String>,
    #[command(flatten)]
    decision: Decision,
    /// Show what waits and what is granted, and end
    #[arg(long, conflicts_with_all = ["id", "what"])]
    list: bool,
    /// One JSON object for each session, with --list
    #[arg(long, requires = "list")]
    json: bool,
    /// Take back what was granted
    #[arg(long, value_name = "ID", conflicts_with_all = ["id", "what", "list"])]
    revoke: Option<String>,
}

impl Decision {
    fn choice(&self) -> Option<Choice> {
        let flags = [
            (self.once, Choice::Once),
            (self.session, Choice::Session),
            (self.rule, Choice::Rule),
            (self.deny, Choice::Deny),
            (self.abort, Choice::Abort),
        ];
        let flag = flags.into_iter().find(|(given, _)| *given).map(|(_, choice)| choice);
        flag.or(self.uses.map(Choice::Uses)).or(self.until.map(Choice::Seconds))
    }
}

/// `90s`, `10m`, `2h`, or a bare number of seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (text.get(..at), 1),
        Some((at, 'm')) => (text.get(..at), 60),
        Some((at, 'h')) => (text.get(..at), 3600),
        _ => (Some(text), 1),
    };
    let number: Option<u64> = number.and_then(|number| number.parse().ok());
    number
        .and_then(|number| number.checked_mul(unit))
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| format!("expected a time like 90s, 10m or 2h, got `{text}`"))
}

/// How long a session may take to answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// The sessions that can be spoken to.
struct Doors {
    directory: std::fs::File,
    token: String,
}

impl Doors {
    fn find() -> Result<Self, String> {
        let directories = Directories::find()?;
        let path = control_directory(&directories.state);
        let owner =
            directories.state.ancestors().find_map(|path| path.metadata().ok()).map(|found| found.uid());
        let own = owner == Some(geteuid().as_raw());
        // Made by another user, root for one, it would be in its owner's way.
        let may_look = own || (geteuid().is_root() && directories.state.exists());
        if !may_look {
            return Err(format!(
                "{} is not this user's: run this as the one whose sessions it is about (sudo -u USER -H postern approve)",
                directories.state.display()
            ));
        }
        let made = if own {
            directories
                .make_state()
                .and_then(|()| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path))
        } else {
            Ok(())
        };
        let directory = made
            .and_then(|()| std::fs::File::open(&path))
            .map_err(|error| format!("no session can be seen from here: {}: {error}", path.display()))?;
        let token =
            operator_token(&directories.state).map_err(|error| format!("the operator token: {error}"))?;
        Ok(Self { directory, token })
    }

    /// Ids of the sessions.
    fn sessions(&self) -> Vec<String> {
        let listed = std::fs::read_dir(short_path(&self.directory, ".")).into_iter().flatten().flatten();
        let mut ids: Vec<String> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort();
        ids
    }

    /// Opens a session's socket and says what is wanted. None if it has ended.
    fn say(&self, session: &str, order: &Order) -> Result<Option<UnixStream>, String> {
        let Ok(mut stream) = UnixStream::connect(short_path(&self.directory, session)) else {
            return Ok(None);
        };
        let server = socket::peer(&stream).map_err(|error| error.to_string())?;
        if server.uid != geteuid().as_raw() && !geteuid().is_root() {
            return Err(format!("the socket of {session} is not this user's: nothing was sent"));
        }
        let line = serde_json::to_string(order).map_err(|error| error.to_string())?;
        Ok(writeln!(stream, "{line}").is_ok().then_some(stream))
    }

    fn watch(&self) -> Order {
        Order::Watch { token: self.token.clone() }
    }

    /// What a session says to an order.
    fn ask(&self, session: &str, order: &Order) -> Result<Option<Reply>, String> {
        let Some(stream) = self.say(session, order)? else { return Ok(None) };
        // One that is stopped keeps nobody from the others.
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        Ok(replies(stream).next())
    }

    /// The state of every session.
    fn states(&self) -> Result<Vec<State>, String> {
        let mut states = Vec::new();
        for session in self.sessions() {
            match self.ask(&session, &self.watch())? {
                Some(Reply::State(state)) => states.push(state),
                Some(Reply::Refused(what)) => return Err(what),
                Some(Reply::Done) | None => {}
            }
        }
        Ok(states)
    }

    /// Carries an order out in the session that it is about.
    fn order(&self, session: &str, order: &Order) -> Result<(), String> {
        match self.ask(session, order)? {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Refused(what)) => Err(what),
            Some(Reply::State(_)) | None => Err(format!("the session {session} has ended")),
        }
    }

    fn answer(&self, session: &str, prompt: &str, choice: Choice) -> Result<(), String> {
        let order = Order::Answer { token: self.token.clone(), prompt: prompt.to_owned(), choice };
        self.order(session, &order)
    }
}

/// What comes over a connection, until it ends or is no reply.
fn replies(stream: UnixStream) -> impl Iterator<Item = Reply> {
    BufReader::new(stream).lines().map_while(|line| serde_json::from_str(&line.ok()?).ok())
}

/// # Errors
/// What keeps the answer from being given.
pub(crate) fn approve(arguments: &ApproveArguments) -> Result<(), String> {
    let doors = Doors::find()?;
    if let Some(grant) = &arguments.revoke {
        let states = doors.states()?;
        let held = |state: &&State| state.grants.iter().any(|held| held.id == *grant);
        let state =
            states.iter().find(held).ok_or_else(|| format!("nothing of the id {grant} is granted"))?;
        let order = Order::Revoke { token: doors.token.clone(), grant: grant.clone() };
        return doors.order(&state.session, &order);
    }
    match (&arguments.id, arguments.decision.choice()) {
        (Some(id), choice) => {
            let states = doors.states()?;
            let (state, prompt) = named(&states, id)?;
            match choice {
                Some(choice) => doors.answer(&state.session, &prompt.id, choice)?,
                None => say(&shown(state, prompt)),
            }
            Ok(())
        }
        (None, Some(_)) => Err("which prompt? `postern approve --list` lists them".to_owned()),
        (None, None) if arguments.list => {
            let states = doors.states()?;
            for state in &states {
                say(&if arguments.json { json(state)? } else { listed(state) });
            }
            if !arguments.json
                && states.iter().all(|state| state.waiting.is_empty() && state.grants.is_empty())
            {
                say(&format!("nothing waits, and nothing is granted, in {} sessions\n", states.len()));
            }
            Ok(())
        }
        (None, None) => converse(&doors),
    }
}

fn json(state: &State) -> Result<String, String> {
    serde_json::to_string(state).map(|line| line + "\n").map_err(|error| error.to_string())
}

/// Everything about one prompt.
fn shown(state: &State, prompt: &Prompt) -> String {
    let mut text = format!(
        "prompt {}  in session {}, for {} s{}\n",
        printable(prompt.id.as_bytes()),
        printable(state.session.as_bytes()),
        prompt.seconds,
        if prompt.waiting > 1 { format!(", {} waiting", prompt.waiting) } else { String::new() }
    );
    let offered = Field { name: "answers".to_owned(), text: prompt.offered.join(", ") };
    for field in prompt.fields.iter().chain([&offered]) {
        let mut name = printable(field.name.as_bytes());
        for line in field.text.lines().flat_map(|line| wrapped(&printable(line.as_bytes()))) {
            text.push_str(&format!("  {name:<20}{line}\n"));
            name.clear();
        }
    }
    text
}

/// A line in pieces that a terminal does not break itself: what it would put at the left edge could
/// look like another field. Each piece but the first has a mark.
fn wrapped(line: &str) -> Vec<String> {
    const WIDTH: usize = 54;
    let letters: Vec<char> = line.chars().collect();
    let (mut pieces, mut rest) = (Vec::new(), &letters[..]);
    loop {
        let blank = rest.iter().take(WIDTH).rposition(|letter| *letter == ' ').filter(|at| *at > WIDTH / 2);
        let at = if rest.len() <= WIDTH { rest.len() } else { blank.map_or(WIDTH, |at| at + 1) };
        let (piece, more) = rest.split_at(at);
        let mark = if pieces.is_empty() { "" } else { "\\ " };
        pieces.push(format!("{mark}{}", piece.iter().collect::<String>()));
        rest = more;
        if rest.is_empty() {
            return pieces;
        }
    }
}

fn listed(state: &State) -> String {
    let mut text: String = state.waiting.iter().map(|prompt| shown(state, prompt)).collect();
    for grant in &state.grants {
        let uses = grant.uses_left.map(|uses| format!(", {uses} more")).unwrap_or_default();
        let time = grant.seconds_left.map(|seconds| format!(", {seconds} s more")).unwrap_or_default();
        let summary = printable(grant.summary.as_bytes());
        text.push_str(&format!(
            "granted {}  {summary}  in session {}, by {}{uses}{time}\n",
            printable(grant.id.as_bytes()),
            printable(state.session.as_bytes()),
            printable(grant.by.as_bytes())
        ));
    }
    text
}

/// What was shown.
#[derive(Default)]
struct Seen {
    states: Vec<State>,
    prompts: Vec<String>,
}

impl Seen {
    /// Shows what is new, and what has become of what was.
    fn take(&mut self, state: State) {
        for prompt in &state.waiting {
            if !self.prompts.contains(&prompt.id) {
                say(&shown(&state, prompt));
            }
        }
        let before = self.states.iter().find(|other| other.session == state.session);
        let waited = before.into_iter().flat_map(|before| &before.waiting);
        for gone in waited.filter(|prompt| !state.waiting.iter().any(|other| other.id == prompt.id)) {
            let past = state.history.iter().find(|past| past.id == gone.id);
            let what = past.map_or("gone", |past| past.decision.as_str());
            say(&format!("prompt {}  {}\n", printable(gone.id.as_bytes()), printable(what.as_bytes())));
        }
        self.states.retain(|other| other.session != state.session);
        self.states.push(state);
        let all = self.states.iter().flat_map(|state| &state.waiting);
        self.prompts = all.map(|prompt| prompt.id.clone()).collect();
    }
}

enum News {
    State(State),
    Refused(String),
    /// A session's socket has closed.
    Gone(String),
    Line(String),
    /// Standard input has ended.
    End,
    /// New sessions may have started.
    Look,
}

/// Shows prompts as they come, and takes answers from standard input.
fn converse(doors: &Doors) -> Result<(), String> {
    const LOOK: std::time::Duration = std::time::Duration::from_millis(500);
    // Before the first line is read: it may be about what waits already.
    let mut seen = Seen::default();
    doors.states()?.into_iter().for_each(|state| seen.take(state));
    let (news, came) = mpsc::channel();
    let lines = news.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.send(News::Line(line)).is_err() {
                return;
            }
        }
        let _gone = lines.send(News::End);
    });
    let looks = news.clone();
    std::thread::spawn(move || {
        while looks.send(News::Look).is_ok() {
            std::thread::sleep(LOOK);
        }
    });
    let mut watched: Vec<String> = Vec::new();
    let mut failed = None;
    while let Ok(one) = came.recv() {
        match one {
            News::Look => {
                for session in doors.sessions() {
                    if watched.contains(&session) {
                        continue;
                    }
                    let Some(stream) = doors.say(&session, &doors.watch())? else { continue };
                    watched.push(session.clone());
                    let news = news.clone();
                    std::thread::spawn(move || {
                        for reply in replies(stream) {
                            let one = match reply {
                                Reply::State(state) => News::State(state),
                                Reply::Refused(what) => News::Refused(what),
                                Reply::Done => continue,
                            };
                            if news.send(one).is_err() {
                                return;
                            }
                        }
                        let _ended = news.send(News::Gone(session));
                    });
                }
            }
            News::State(state) => seen.take(state),
            News::Refused(what) => return Err(what),
            News::Gone(session) => {
                watched.retain(|other| *other != session);
                seen.states.retain(|other| other.session != session);
            }
            News::Line(line) => match order(&line, &seen.states) {
                Ok(None) => {}
                Ok(Some((session, prompt, choice))) => {
                    if let Err(what) = doors.answer(&session, &prompt, choice) {
                        say(&format!("{what}\n"));
                        failed = Some(what);
                    }
                }
                Err(what) => {
                    say(&format!("{what}\n"));
                    failed = Some(what);
                }
            },
            News::End => return failed.map_or(Ok(()), Err),
        }
    }
    Ok(())
}

/// The one prompt that waits under an id, or one that begins like this.
fn named<'a>(states: &'a [State], id: &str) -> Result<(&'a State, &'a Prompt), String> {
    const LEAST: usize = 4;
    if id.len() < LEAST {
        return Err(format!("name the prompt by at least {LEAST} characters of its id"));
    }
    let id = id.to_ascii_lowercase();
    let all = states.iter().flat_map(|state| state.waiting.iter().map(move |prompt| (state, prompt)));
    let mut found = all.filter(|(_, prompt)| prompt.id.starts_with(&id));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(format!("more than one prompt begins with {}", printable(id.as_bytes()))),
        (None, _) => Err(format!(
            "no prompt {} waits in a session of this user: it was answered, withdrawn, timed out, or is another \
             account's (sudo -u USER -H postern approve)",
            printable(id.as_bytes())
        )),
    }
}

/// What a line of standard input means: session, prompt, choice. It always names its prompt: another
/// one may have come while it was typed.
fn order(line: &str, states: &[State]) -> Result<Option<(String, String, Choice)>, String> {
    let mut words = line.split_whitespace();
    let Some(id) = words.next() else { return Ok(None) };
    let words: Vec<&str> = words.collect();
    const EXPECTED: &str = "expected `ID once|session|uses N|until TIME|rule|deny|abort`";
    if words.is_empty() {
        return Err(EXPECTED.to_owned());
    }
    let (state, prompt) = named(states, id)?;
    let choice = match words[..] {
        ["once"] => Choice::Once,
        ["session"] => Choice::Session,
        ["rule"] => Choice::Rule,
        ["uses", count] => {
            Choice::Uses(count.parse().map_err(|_| format!("expected a number, got `{count}`"))?)
        }
        ["until", time] => Choice::Seconds(seconds(time)?),
        ["deny"] => Choice::Deny,
        ["abort"] => Choice::Abort,
        _ => return Err(EXPECTED.to_owned()),
    };
    Ok(Some((state.session.clone(), prompt.id.clone(), choice)))
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_blanks_where_there_are_any_and_nothing_is_lost() {
        let long = format!("{} {}", "word ".repeat(30), "x".repeat(200));
        let pieces = wrapped(&long);
        assert!(pieces.iter().all(|piece| piece.chars().count() <= 56));
        assert!(pieces.iter().skip(1).all(|piece| piece.starts_with("\\ ")));
        let whole: String = pieces.iter().map(|piece| piece.strip_prefix("\\ ").unwrap_or(piece)).collect();
        assert_eq!(whole, long);
        assert_eq!(wrapped(""), [""]);
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(
            (seconds("90s"), seconds("10m"), seconds("2h"), seconds("7")),
            (Ok(90), Ok(600), Ok(7200), Ok(7))
        );
        for bad in ["", "0", "m", "-1s", "1d", "99999999999999999999h"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
