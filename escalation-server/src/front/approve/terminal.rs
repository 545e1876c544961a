//! The terminal under the screen: keys in, frames out, and as it was at the end.

use std::io::stdout;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{DisableBracketedPaste, EnableBracketedPaste, Event, read};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::doors::Doors;
use super::screen::{Action, Screen};
use super::watch::{Herald, News, watch};

/// The terminal as it was, once dropped.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let _gone = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
    let _gone = disable_raw_mode();
}

/// Shows all prompts, and takes answers by keys.
///
/// # Errors
/// What keeps sessions from being watched, or the terminal from being drawn on.
pub(super) fn converse(doors: &Arc<Doors>, mut herald: Herald) -> Result<(), String> {
    let mut screen = Screen::new();
    // Before the screen is taken: whoever may not look is told on the terminal as it is.
    let states = doors.states()?;
    let failed = |error: std::io::Error| format!("the terminal: {error}");
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(failed)?;
    // A panic aborts, and nothing is dropped.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        hook(panic);
    }));
    let _restored = Restored;
    enable_raw_mode().map_err(failed)?;
    // What is pasted would else be keys.
    execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste).map_err(failed)?;
    let mut terminal = Terminal::new(CrosstermBackend::new(stdout())).map_err(failed)?;
    let (news, came) = watch(doors);
    listen(news, signals);
    states.into_iter().for_each(|state| take(&mut screen, &mut herald, state));
    loop {
        terminal.draw(|frame| screen.draw(frame, Instant::now())).map_err(failed)?;
        // What waits grows older.
        const TICK: Duration = Duration::from_secs(1);
        let action = match came.recv_timeout(TICK) {
            Ok(News::State(state)) => {
                take(&mut screen, &mut herald, state);
                Action::Nothing
            }
            Ok(News::Gone(session)) => {
                screen.end(&session);
                Action::Nothing
            }
            Ok(News::Input(Event::Key(key))) => screen.key(key, Instant::now()),
            Ok(News::Input(Event::Paste(text))) => {
                screen.paste(&text);
                Action::Nothing
            }
            Ok(News::Input(_)) | Err(mpsc::RecvTimeoutError::Timeout) => Action::Nothing,
            Ok(News::Refused(what)) => return Err(what),
            Ok(News::End) | Err(mpsc::RecvTimeoutError::Disconnected) => Action::Quit,
        };
        let done = match action {
            Action::Nothing => continue,
            Action::Quit => return Ok(()),
            Action::Answer { session, prompt, choice } => {
                doors.answer(&session, &prompt, choice).map(|()| choice.name())
            }
            Action::Revoke { session, grant } => doors.revoke(&session, &grant).map(|()| "revoked"),
        };
        screen.hint = done.map_or_else(|what| what, str::to_owned);
    }
}

fn take(screen: &mut Screen, herald: &mut Herald, state: crate::approval::State) {
    screen.take(&state, Instant::now());
    if let Err(what) = herald.tell(&state) {
        screen.hint = what;
    }
}

/// Sends what the person does, and signals to end.
fn listen(news: mpsc::Sender<News<Event>>, mut signals: Signals) {
    let ends = news.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            let _ended = ends.send(News::End);
        }
    });
    std::thread::spawn(move || {
        while let Ok(event) = read() {
            if news.send(News::Input(event)).is_err() {
                return;
            }
        }
        let _gone = news.send(News::End);
    });
}
