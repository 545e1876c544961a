//! News of all sessions, and who else is told of a new prompt.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::doors::Doors;
use crate::approval::{Reply, State};
use crate::flow::text::printable;

/// What a door waits for; `Input` is what its person does.
pub(super) enum News<Input> {
    State(State),
    Refused(String),
    /// A session's socket has closed.
    Gone(String),
    Input(Input),
    /// Nothing more is to be done.
    End,
}

/// Watches all sessions, those that are still to start too. The sender is for the door's own input.
pub(super) fn watch<Input: Send + 'static>(
    doors: &Arc<Doors>,
) -> (mpsc::Sender<News<Input>>, mpsc::Receiver<News<Input>>) {
    const LOOK: Duration = Duration::from_millis(500);
    let (news, came) = mpsc::channel();
    let (doors, looks) = (Arc::clone(doors), news.clone());
    std::thread::spawn(move || {
        let mut watched: Vec<(String, std::thread::JoinHandle<()>)> = Vec::new();
        loop {
            watched.retain(|(_, thread)| !thread.is_finished());
            for session in doors.sessions() {
                if watched.iter().any(|(other, _)| *other == session) {
                    continue;
                }
                match doors.watch(&session) {
                    Ok(None) => {}
                    Ok(Some(replies)) => {
                        let (id, news) = (session.clone(), looks.clone());
                        watched.push((session, std::thread::spawn(move || follow(id, replies, &news))));
                    }
                    Err(what) => {
                        let _ended = looks.send(News::Refused(what));
                        return;
                    }
                }
            }
            std::thread::sleep(LOOK);
        }
    });
    (news, came)
}

fn follow<Input>(session: String, replies: impl Iterator<Item = Reply>, news: &mpsc::Sender<News<Input>>) {
    for reply in replies {
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
}

/// Calls somebody for each new prompt: a bell, a program of the operator's.
pub(super) struct Herald {
    bell: bool,
    program: Option<PathBuf>,
    /// Session and id of the prompts that wait.
    known: Vec<(String, String)>,
    /// Held by each program that runs.
    running: Arc<()>,
    failed: bool,
}

impl Herald {
    pub(super) fn new(bell: bool, program: Option<PathBuf>) -> Self {
        Self { bell, program, known: Vec::new(), running: Arc::new(()), failed: false }
    }

    /// Tells of what is new in a session.
    ///
    /// # Errors
    /// The first time that the program does not start.
    pub(super) fn tell(&mut self, state: &State) -> Result<(), String> {
        let mut told = Ok(());
        let before = std::mem::take(&mut self.known);
        for prompt in &state.waiting {
            if before.iter().any(|(session, id)| *session == state.session && *id == prompt.id) {
                continue;
            }
            if self.bell {
                let mut out = std::io::stdout().lock();
                let _closed = out.write_all(b"\x07").and_then(|()| out.flush());
            }
            if let Some(program) = self.program.as_deref()
                && let Err(error) = start(program, [&prompt.id, &prompt.summary], &self.running)
                && !std::mem::replace(&mut self.failed, true)
            {
                told = Err(format!("{}: {error}", printable(program.as_os_str().as_encoded_bytes())));
            }
        }
        let others = before.into_iter().filter(|(session, _)| *session != state.session);
        let these = state.waiting.iter().map(|prompt| (state.session.clone(), prompt.id.clone()));
        self.known = others.chain(these).collect();
        told
    }
}

/// Starts a program and reaps it; not where too many run already.
fn start(program: &std::path::Path, arguments: [&str; 2], running: &Arc<()>) -> std::io::Result<()> {
    const MOST: usize = 8;
    if Arc::strong_count(running) > MOST {
        return Ok(());
    }
    // What a session wrote is no option of the program.
    let arguments = arguments.map(|text| {
        let text = printable(text.as_bytes());
        if text.starts_with('-') { format!(" {text}") } else { text }
    });
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let held = Arc::clone(running);
    std::thread::spawn(move || {
        let _ended = child.wait();
        drop(held);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::approval::Prompt;

    fn state(prompts: &[(&str, &str)]) -> State {
        let waiting = prompts.iter().map(|(id, summary)| Prompt {
            id: (*id).to_owned(),
            summary: (*summary).to_owned(),
            fields: Vec::new(),
            offered: Vec::new(),
            waiting: 1,
            seconds: 0,
        });
        let waiting = waiting.collect();
        State {
            session: "s".to_owned(),
            cwd: "/".to_owned(),
            waiting,
            grants: Vec::new(),
            history: Vec::new(),
        }
    }

    #[test]
    fn a_program_is_told_once_of_each_prompt_and_never_of_an_option() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("tell");
        std::fs::write(&program, "#!/bin/sh\nprintf '<%s>' \"$@\" >>\"$0.said\"\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let mut herald = Herald::new(false, Some(program.clone()));
        let said = |whole: &str| {
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            let path = program.with_extension("said");
            while std::fs::read_to_string(&path).unwrap_or_default() != whole {
                assert!(std::time::Instant::now() < deadline, "{whole}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        herald.tell(&state(&[("a", "ls")])).unwrap();
        said("<a><ls>");
        herald.tell(&state(&[("a", "ls"), ("b", "--x\u{1b}")])).unwrap();
        said("<a><ls><b>< --x\\u{1b}>");
        herald.tell(&state(&[("b", "--x")])).unwrap();
        herald.tell(&state(&[("b", "--x"), ("c", "last")])).unwrap();
        said("<a><ls><b>< --x\\u{1b}><c><last>");
    }

    #[test]
    fn no_more_than_eight_programs_run_and_a_failure_is_told_once() {
        let running = Arc::new(());
        let held: Vec<_> = (0..8).map(|_| Arc::clone(&running)).collect();
        let missing = std::path::Path::new("/nonexistent");
        assert!(start(missing, ["a", "b"], &running).is_ok(), "nothing is started");
        drop(held);
        assert!(start(missing, ["a", "b"], &running).is_err());
        let mut herald = Herald::new(false, Some(missing.to_owned()));
        assert!(herald.tell(&state(&[("a", "ls")])).unwrap_err().starts_with("/nonexistent: "));
        assert!(herald.tell(&state(&[("b", "ls")])).is_ok());
    }
}
