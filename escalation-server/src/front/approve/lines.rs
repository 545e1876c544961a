//! Line by line, so that pipes and screen readers can use it.

use std::io::BufRead;
use std::sync::Arc;

use super::doors::Doors;
use super::watch::{Herald, News, watch};
use super::{choice, named, say, shown};
use crate::approval::{Choice, State};
use crate::flow::text::printable;

/// What was shown.
#[derive(Default)]
struct Seen {
    states: Vec<State>,
    prompts: Vec<String>,
}

impl Seen {
    /// Shows what is new, and what has become of what was.
    fn take(&mut self, state: State, herald: &mut Herald) {
        for prompt in &state.waiting {
            if !self.prompts.contains(&prompt.id) {
                say(&shown(&state, prompt));
            }
        }
        if let Err(what) = herald.tell(&state) {
            eprintln!("postern: {what}");
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

/// Shows prompts as they come, and takes answers from standard input.
///
/// # Errors
/// The last answer that was not taken, or what keeps sessions from being watched.
pub(super) fn converse(doors: &Arc<Doors>, mut herald: Herald) -> Result<(), String> {
    // Before the first line is read: it may be about what waits already.
    let mut seen = Seen::default();
    doors.states()?.into_iter().for_each(|state| seen.take(state, &mut herald));
    let (news, came) = watch(doors);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if news.send(News::Input(line)).is_err() {
                return;
            }
        }
        let _gone = news.send(News::End);
    });
    let mut failed = None;
    while let Ok(one) = came.recv() {
        match one {
            News::State(state) => seen.take(state, &mut herald),
            News::Refused(what) => return Err(what),
            News::Gone(session) => seen.states.retain(|other| other.session != session),
            News::Input(line) => {
                let answered = order(&line, &seen.states).and_then(|order| match order {
                    Some((session, prompt, choice)) => doors.answer(&session, &prompt, choice),
                    None => Ok(()),
                });
                if let Err(what) = answered {
                    say(&format!("{what}\n"));
                    failed = Some(what);
                }
            }
            News::End => return failed.map_or(Ok(()), Err),
        }
    }
    Ok(())
}

/// What a line of standard input means: session, prompt, choice. It always names its prompt: another
/// one may have come while it was typed.
fn order(line: &str, states: &[State]) -> Result<Option<(String, String, Choice)>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    const EXPECTED: &str = "expected `ID once|session|uses N|until TIME|rule|deny|abort`";
    let (id, words) = match words[..] {
        [] => return Ok(None),
        [_] => return Err(EXPECTED.to_owned()),
        [id, ref words @ ..] => (id, words),
    };
    let (state, prompt) = named(states, id)?;
    let choice = choice(words)?.ok_or(EXPECTED)?;
    Ok(Some((state.session.clone(), prompt.id.clone(), choice)))
}
