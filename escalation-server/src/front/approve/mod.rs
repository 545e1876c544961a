//! `postern approve`: what waits for an approval in this user's sessions, and answers to it.

mod doors;
mod draw;
mod item;
mod lines;
mod screen;
mod terminal;
mod text;
mod watch;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::approval::{Choice, Prompt, State};
use crate::flow::text::printable;
use doors::Doors;
use watch::Herald;

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

/// Without a prompt's id: shows what waits, as it comes, and takes answers: on a terminal by keys (`?`
/// lists them), else from standard input, one a line: `ID once|session|uses N|until TIME|rule|deny|abort`.
/// Of an id its beginning is enough.
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
    /// Line by line on a terminal too
    #[arg(long, conflicts_with_all = ["id", "what", "list", "revoke"])]
    line: bool,
    /// Ring the terminal's bell for each new prompt
    #[arg(long, conflicts_with_all = ["id", "what", "list", "revoke"])]
    bell: bool,
    /// Start this program for each new prompt, with its id and its command line
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["id", "what", "list", "revoke"])]
    notify: Option<PathBuf>,
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

/// What an answer's words mean. None if they are no answer.
///
/// # Errors
/// The number or the time that is none.
fn choice(words: &[&str]) -> Result<Option<Choice>, String> {
    Ok(Some(match *words {
        ["once"] => Choice::Once,
        ["session"] => Choice::Session,
        ["rule"] => Choice::Rule,
        ["uses", text] => {
            let count = text.parse().ok().filter(|count| *count > 0);
            Choice::Uses(count.ok_or_else(|| format!("expected a number, got `{text}`"))?)
        }
        ["until", time] => Choice::Seconds(seconds(time)?),
        ["deny"] => Choice::Deny,
        ["abort"] => Choice::Abort,
        _ => return Ok(None),
    }))
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
        return doors.revoke(&state.session, grant);
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
        (None, None) => {
            let (doors, herald) = (Arc::new(doors), Herald::new(arguments.bell, arguments.notify.clone()));
            if arguments.line || !can_draw() {
                lines::converse(&doors, herald)
            } else {
                terminal::converse(&doors, herald)
            }
        }
    }
}

/// Whether a person sits at a terminal that can show a screen.
fn can_draw() -> bool {
    let able = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    able && std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
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
    // What any terminal has.
    const WIDTH: usize = 78;
    for line in text::lines(prompt.fields.iter().chain([&text::answers(prompt)]), WIDTH) {
        text.push_str(&line);
        text.push('\n');
    }
    text
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

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_people_write_them() {
        assert_eq!(choice(&["uses", "3"]), Ok(Some(Choice::Uses(3))));
        assert_eq!(choice(&["until", "2m"]), Ok(Some(Choice::Seconds(120))));
        for bad in [&["uses", "0"][..], &["uses", "-1"], &["uses", "many"], &["until", "x"]] {
            assert!(choice(bad).is_err(), "{bad:?}");
        }
        for bad in [&[][..], &["yes"], &["uses"], &["once", "more"]] {
            assert_eq!(choice(bad), Ok(None), "{bad:?}");
        }
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
