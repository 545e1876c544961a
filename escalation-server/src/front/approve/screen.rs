//! What is on the screen, and what keys do. No terminal is touched here.

use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::choice;
use super::item::{Item, List};
use crate::approval::{Choice, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Waiting,
    Granted,
    History,
}

/// What keys are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    Commands,
    Help,
    Filter,
    /// A number or a time for this answer.
    Amount(&'static str, String),
    /// Whether abort is meant.
    Abort,
}

/// What a key wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Quit,
    Answer { session: String, prompt: String, choice: Choice },
    Revoke { session: String, grant: String },
}

pub(super) struct Screen {
    pub(super) waiting: List,
    pub(super) granted: List,
    pub(super) history: List,
    pub(super) view: View,
    pub(super) mode: Mode,
    pub(super) filter: String,
    /// Of the last key, or of what it did.
    pub(super) hint: String,
    /// Lines of details that there is room for; none if they would be cut.
    pub(super) page: usize,
}

/// Keys of answers, and the names under which prompts offer them.
pub(super) const ANSWERS: [(char, &str); 7] = [
    ('o', "once"),
    ('s', "session"),
    ('u', "uses"),
    ('t', "until"),
    ('w', "rule"),
    ('d', "deny"),
    ('a', "abort"),
];

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            waiting: List::new(false),
            granted: List::new(false),
            history: List::new(true),
            view: View::Waiting,
            mode: Mode::Commands,
            filter: String::new(),
            hint: String::new(),
            page: 0,
        }
    }

    pub(super) fn list(&mut self) -> &mut List {
        match self.view {
            View::Waiting => &mut self.waiting,
            View::Granted => &mut self.granted,
            View::History => &mut self.history,
        }
    }

    /// Takes the state of a session.
    pub(super) fn take(&mut self, state: &State, now: Instant) {
        let became = |id: &str| {
            let past = state.history.iter().rfind(|past| past.id == id);
            past.map_or("gone".to_owned(), |past| match &*past.by {
                "" => past.decision.clone(),
                by => format!("{}, by {by}", past.decision),
            })
        };
        let waiting = state.waiting.iter().map(|prompt| Item::prompt(state, prompt, now)).collect();
        let granted = state.grants.iter().map(|grant| Item::grant(state, grant, now)).collect();
        let history = state.history.iter().map(|past| Item::past(state, past, now)).collect();
        self.waiting.update(&state.session, waiting, became);
        self.granted.update(&state.session, granted, |_| "used up, expired or revoked".to_owned());
        self.history.update(&state.session, history, |_| "forgotten".to_owned());
        self.settle();
    }

    /// A session has ended.
    pub(super) fn end(&mut self, session: &str) {
        for list in [&mut self.waiting, &mut self.granted, &mut self.history] {
            list.update(session, Vec::new(), |_| "its session has ended".to_owned());
        }
        self.settle();
    }

    fn settle(&mut self) {
        for list in [&mut self.waiting, &mut self.granted, &mut self.history] {
            list.settle(&self.filter);
        }
    }

    /// Pasted text is no keys.
    pub(super) fn paste(&mut self, text: &str) {
        match &mut self.mode {
            Mode::Filter => self.filter.push_str(text),
            Mode::Amount(_, amount) => amount.push_str(text),
            Mode::Commands | Mode::Help | Mode::Abort => {
                "pasted text is no answer".clone_into(&mut self.hint)
            }
        }
        self.settle();
    }

    pub(super) fn key(&mut self, key: KeyEvent, now: Instant) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Action::Quit;
        }
        // With another modifier it is another key.
        if !key.modifiers.difference(KeyModifiers::SHIFT).is_empty() {
            return Action::Nothing;
        }
        self.hint.clear();
        let mode = std::mem::replace(&mut self.mode, Mode::Commands);
        let done = match mode {
            Mode::Commands => self.command(key.code, now),
            Mode::Help => Ok(Action::Nothing),
            Mode::Filter => {
                if edited(&mut self.filter, key.code) {
                    self.mode = Mode::Filter;
                } else if key.code == KeyCode::Esc {
                    self.filter.clear();
                }
                Ok(Action::Nothing)
            }
            Mode::Amount(answer, mut amount) => match key.code {
                KeyCode::Enter => self.answer(&[answer, amount.trim()], now),
                code => {
                    if edited(&mut amount, code) {
                        self.mode = Mode::Amount(answer, amount);
                    }
                    Ok(Action::Nothing)
                }
            },
            Mode::Abort if key.code == KeyCode::Char('y') => self.answer(&["abort"], now),
            Mode::Abort => Err("not aborted".to_owned()),
        };
        self.settle();
        done.unwrap_or_else(|hint| {
            self.hint = hint;
            Action::Nothing
        })
    }

    fn command(&mut self, code: KeyCode, now: Instant) -> Result<Action, String> {
        let (filter, page) = (self.filter.clone(), self.page.saturating_sub(1).max(1));
        match code {
            KeyCode::Char('q') => return Ok(Action::Quit),
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => {
                self.view = match self.view {
                    View::Waiting => View::Granted,
                    View::Granted => View::History,
                    View::History => View::Waiting,
                }
            }
            KeyCode::Down | KeyCode::Char('j') => self.list().shift(true, &filter),
            KeyCode::Up | KeyCode::Char('k') => self.list().shift(false, &filter),
            // Drawing knows where the end is.
            KeyCode::PageDown | KeyCode::Char('J') => {
                let list = self.list();
                list.scroll = list.scroll.saturating_add(page);
            }
            KeyCode::PageUp | KeyCode::Char('K') => {
                let list = self.list();
                list.scroll = list.scroll.saturating_sub(page);
            }
            KeyCode::Char('r') => return self.revoke(),
            KeyCode::Char(letter) => {
                if let Some((_, name)) = ANSWERS.iter().find(|(key, _)| *key == letter) {
                    match *name {
                        "once" | "session" | "rule" | "deny" => return self.answer(&[name], now),
                        _ => {
                            self.answerable(name, now)?;
                            let abort = *name == "abort";
                            self.mode = if abort { Mode::Abort } else { Mode::Amount(name, String::new()) };
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(Action::Nothing)
    }

    /// The prompt that an answer of this name would go to: the one whose details are shown.
    ///
    /// # Errors
    /// Why none would.
    fn answerable(&self, name: &str, now: Instant) -> Result<&Item, String> {
        if self.view != View::Waiting {
            return Err("answers are given where prompts wait (Tab)".to_owned());
        }
        let item = self.waiting.selected().ok_or("nothing is selected")?;
        if let Some(fate) = &item.fate {
            return Err(format!("it is gone ({fate}): select another one"));
        }
        if !self.waiting.is_meant(now) {
            return Err("it has only just come: press that again".to_owned());
        }
        if !item.offered.iter().any(|offered| offered == name) {
            return Err(format!("{name} is not offered"));
        }
        if !matches!(name, "deny" | "abort") && !item.read {
            return Err(if self.page == 0 {
                "the terminal is too small to show what is asked".to_owned()
            } else {
                "scroll to the end first (PageDown)".to_owned()
            });
        }
        Ok(item)
    }

    fn answer(&self, words: &[&str], now: Instant) -> Result<Action, String> {
        let item = self.answerable(words.first().copied().unwrap_or_default(), now)?;
        let choice = choice(words)?.ok_or("that is no answer")?;
        Ok(Action::Answer { session: item.session.clone(), prompt: item.id.clone(), choice })
    }

    fn revoke(&self) -> Result<Action, String> {
        if self.view != View::Granted {
            return Err("what is granted is revoked where it is listed (Tab)".to_owned());
        }
        let item = self.granted.selected().ok_or("nothing is selected")?;
        match &item.fate {
            Some(fate) => Err(format!("it is gone: {fate}")),
            None => Ok(Action::Revoke { session: item.session.clone(), grant: item.id.clone() }),
        }
    }
}

/// Whether a key goes into a text, and not beyond it.
fn edited(text: &mut String, code: KeyCode) -> bool {
    match code {
        KeyCode::Char(letter) => text.push(letter),
        KeyCode::Backspace => {
            text.pop();
        }
        KeyCode::Enter | KeyCode::Esc => return false,
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::approval::{Field, GrantView, Past, Prompt};

    fn prompt(id: &str, summary: &str) -> Prompt {
        let field = |name: &str, text: &str| Field { name: name.to_owned(), text: text.to_owned() };
        Prompt {
            id: id.to_owned(),
            summary: summary.to_owned(),
            fields: vec![field("command", summary), field("because", "a rule wants it")],
            offered: ["once", "session", "uses", "until", "deny", "abort"].map(str::to_owned).to_vec(),
            waiting: 1,
            seconds: 3,
        }
    }

    fn state(session: &str, waiting: &[Prompt]) -> State {
        State {
            session: session.to_owned(),
            cwd: format!("/home/me/{session}"),
            waiting: waiting.to_vec(),
            grants: Vec::new(),
            history: Vec::new(),
        }
    }

    /// A screen, its clock, and what it last looked like.
    struct Sitting {
        screen: Screen,
        terminal: Terminal<TestBackend>,
        now: Instant,
    }

    impl Sitting {
        fn new(width: u16, height: u16) -> Self {
            let terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            Self { screen: Screen::new(), terminal, now: Instant::now() }
        }

        fn draw(&mut self) -> String {
            let (screen, now) = (&mut self.screen, self.now);
            self.terminal.draw(|frame| screen.draw(frame, now)).unwrap();
            self.terminal.backend().to_string()
        }

        fn take(&mut self, session: &str, waiting: &[Prompt]) {
            self.screen.take(&state(session, waiting), self.now);
            self.draw();
        }

        fn wait(&mut self, milliseconds: u64) {
            self.now += Duration::from_millis(milliseconds);
            self.draw();
        }

        fn press(&mut self, code: KeyCode) -> Action {
            let action = self.screen.key(KeyEvent::from(code), self.now);
            self.draw();
            action
        }

        fn keys(&mut self, letters: &str) -> Action {
            letters.chars().map(|letter| self.press(KeyCode::Char(letter))).last().unwrap_or(Action::Nothing)
        }

        /// What an answer would go to.
        fn selected(&self) -> &str {
            self.screen.waiting.selected().map_or("", |item| &item.id)
        }
    }

    fn answered(session: &str, prompt: &str, choice: Choice) -> Action {
        Action::Answer { session: session.to_owned(), prompt: prompt.to_owned(), choice }
    }

    #[test]
    fn the_selection_never_moves_by_itself() {
        let mut sitting = Sitting::new(100, 30);
        let (a, b, c) = (prompt("aaaa", "make a"), prompt("bbbb", "make b"), prompt("cccc", "make c"));
        sitting.take("one", &[a.clone(), b.clone()]);
        assert_eq!(sitting.selected(), "aaaa");
        sitting.keys("j");
        assert_eq!(sitting.selected(), "bbbb");
        sitting.take("two", std::slice::from_ref(&c));
        assert_eq!(sitting.selected(), "bbbb");
        // What stands above it goes, what stands below it too.
        sitting.take("one", std::slice::from_ref(&b));
        sitting.screen.end("two");
        assert_eq!(sitting.selected(), "bbbb");
        assert_eq!(sitting.keys("d"), answered("one", "bbbb", Choice::Deny));
        sitting.take("two", std::slice::from_ref(&c));
        // It goes itself: its place is not taken.
        let mut gone = state("one", std::slice::from_ref(&a));
        let past = Past {
            id: "bbbb".to_owned(),
            summary: "make b".to_owned(),
            decision: "deny".to_owned(),
            by: "root".to_owned(),
        };
        gone.history.push(past);
        sitting.screen.take(&gone, sitting.now);
        let shown = sitting.draw();
        assert_eq!(sitting.selected(), "bbbb");
        assert!(shown.contains("gone: deny, by root") && shown.contains("make b"), "{shown}");
        for key in ["o", "s", "d", "a", "u", "t"] {
            assert_eq!(sitting.keys(key), Action::Nothing, "{key}");
            assert_eq!(sitting.screen.mode, Mode::Commands);
            assert!(sitting.screen.hint.contains("select another one"), "{}", sitting.screen.hint);
        }
        sitting.keys("j");
        assert_eq!(sitting.selected(), "cccc");
        assert!(!sitting.draw().contains("make b"), "it is listed no longer");
        sitting.keys("j");
        assert_eq!(sitting.selected(), "aaaa", "what is new comes last");
    }

    #[test]
    fn an_answer_that_was_begun_goes_to_nothing_else() {
        let mut sitting = Sitting::new(100, 30);
        sitting.take("one", &[prompt("aaaa", "make a"), prompt("bbbb", "make b")]);
        sitting.keys("jk");
        for begun in ["u3", "a"] {
            sitting.keys(begun);
            sitting.take("one", &[prompt("bbbb", "make b")]);
            assert_eq!(
                (sitting.press(KeyCode::Enter), sitting.keys("y")),
                (Action::Nothing, Action::Nothing)
            );
            sitting.take("one", &[prompt("bbbb", "make b"), prompt("aaaa", "make a")]);
            assert_eq!(sitting.selected(), "aaaa");
            assert_eq!(sitting.keys("d"), Action::Nothing, "it is asked anew");
            sitting.wait(600);
        }
    }

    #[test]
    fn only_what_is_offered_is_answered() {
        let mut sitting = Sitting::new(100, 30);
        let mut narrow = prompt("aaaa", "make a");
        narrow.offered = ["once", "deny", "abort"].map(str::to_owned).to_vec();
        sitting.take("one", &[narrow, prompt("bbbb", "make b")]);
        sitting.wait(600);
        for key in ["s", "u", "t"] {
            assert_eq!(sitting.keys(key), Action::Nothing);
            assert!(sitting.screen.hint.contains("not offered"), "{}", sitting.screen.hint);
        }
        assert_eq!(sitting.keys("o"), answered("one", "aaaa", Choice::Once));
        assert_eq!((sitting.keys("a"), sitting.keys("n")), (Action::Nothing, Action::Nothing));
        assert_eq!(sitting.keys("ay"), answered("one", "aaaa", Choice::Abort));
        sitting.keys("j");
        assert_eq!(sitting.keys("s"), answered("one", "bbbb", Choice::Session));
        sitting.keys("u12");
        assert_eq!(sitting.press(KeyCode::Enter), answered("one", "bbbb", Choice::Uses(12)));
        sitting.keys("t10x");
        sitting.press(KeyCode::Backspace);
        sitting.keys("m");
        assert_eq!(sitting.press(KeyCode::Enter), answered("one", "bbbb", Choice::Seconds(600)));
        sitting.keys("u0");
        assert_eq!(sitting.press(KeyCode::Enter), Action::Nothing);
        assert!(sitting.screen.hint.contains("expected a number"), "{}", sitting.screen.hint);
        // Keys with another modifier, pasted text and other views are no answers.
        let alt = KeyEvent::new(KeyCode::Char('o'), KeyModifiers::ALT);
        assert_eq!(sitting.screen.key(alt, sitting.now), Action::Nothing);
        sitting.screen.paste("o");
        sitting.press(KeyCode::Tab);
        assert_eq!(sitting.keys("o"), Action::Nothing);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(sitting.screen.key(interrupt, sitting.now), Action::Quit);
    }

    #[test]
    fn a_key_that_was_meant_for_something_else_is_no_answer() {
        let mut sitting = Sitting::new(100, 30);
        sitting.take("one", &[]);
        sitting.wait(5000);
        sitting.take("one", &[prompt("aaaa", "make a")]);
        for key in ["o", "s", "d", "a", "u"] {
            assert_eq!(sitting.keys(key), Action::Nothing);
            assert_eq!(sitting.screen.mode, Mode::Commands);
        }
        sitting.wait(499);
        assert_eq!(sitting.keys("o"), Action::Nothing);
        sitting.wait(1);
        assert_eq!(sitting.keys("o"), answered("one", "aaaa", Choice::Once));
    }

    #[test]
    fn what_was_not_read_to_its_end_is_not_approved() {
        let mut sitting = Sitting::new(80, 14);
        let long = (0..40).map(|line| format!("line {line}\n")).collect::<String>();
        let mut hard = prompt("aaaa", "make a");
        hard.fields.push(Field { name: "unlike the shell".to_owned(), text: long });
        sitting.take("one", &[hard.clone(), prompt("bbbb", "make b")]);
        sitting.wait(600);
        for key in ["o", "s", "u", "t"] {
            assert_eq!(sitting.keys(key), Action::Nothing);
            assert_eq!(sitting.screen.hint, "scroll to the end first (PageDown)");
        }
        assert_eq!(sitting.keys("d"), answered("one", "aaaa", Choice::Deny));
        assert_eq!(sitting.keys("ay"), answered("one", "aaaa", Choice::Abort));
        let mut pages = 0;
        while !sitting.draw().contains("answers  ") {
            assert_eq!(sitting.keys("o"), Action::Nothing);
            sitting.press(KeyCode::PageDown);
            pages += 1;
            assert!(pages < 20);
        }
        assert!(pages > 4, "{pages}");
        assert_eq!(sitting.keys("o"), answered("one", "aaaa", Choice::Once));
        // It was read, also when it is come back to.
        sitting.keys("jkK");
        assert_eq!(sitting.keys("o"), answered("one", "aaaa", Choice::Once));
        // Something else under the same name was not.
        hard.fields.push(Field { name: "more".to_owned(), text: "more".to_owned() });
        sitting.take("one", &[hard]);
        assert_eq!(sitting.keys("o"), Action::Nothing);
    }

    #[test]
    fn no_size_is_too_small_to_deny_and_each_shows_as_much_as_it_can() {
        for (width, height) in [(1, 1), (2, 3), (20, 5), (19, 30), (40, 10), (100, 2), (1, 100), (300, 90)] {
            let mut sitting = Sitting::new(width, height);
            let mut prompts: Vec<Prompt> = (0..30)
                .map(|id| prompt(&format!("id{id:02}"), &format!("make {id} {}", "漢字 ".repeat(id))))
                .collect();
            sitting.take("one", &prompts);
            for _ in 0..3 {
                sitting.keys("jJK/m");
                sitting.press(KeyCode::Enter);
                sitting.keys("?jtx");
                for code in [KeyCode::Esc, KeyCode::Tab, KeyCode::PageDown, KeyCode::Up] {
                    sitting.press(code);
                }
            }
            let id = sitting.selected().to_owned();
            prompts.retain(|prompt| prompt.id != id);
            assert_eq!(sitting.keys("d"), answered("one", &id, Choice::Deny), "{width}x{height}");
            if width < 20 || height < 2 {
                assert_eq!(sitting.keys("o"), Action::Nothing);
                assert!(sitting.screen.hint.contains("too small"), "{}", sitting.screen.hint);
            }
            sitting.take("one", &prompts);
            assert_eq!(sitting.keys("d"), Action::Nothing, "{width}x{height}");
        }
        let mut sitting = Sitting::new(40, 10);
        sitting.take("one", &[prompt("aaaa", "make a")]);
        let shown = sitting.draw();
        assert!(
            shown.contains("> 3 s") && shown.contains("── aaaa  3 s") && shown.contains("o s u t d a ?"),
            "{shown}"
        );
    }

    #[test]
    fn no_text_of_a_session_gets_further_than_its_place() {
        for (width, height) in [(100, 30), (40, 20)] {
            let mut sitting = Sitting::new(width, height);
            let hostile = "rm \u{1b}[2J\u{202e}x\r\nanswers             once";
            let mut waiting = prompt("a\u{1b}c", hostile);
            waiting.waiting = 3;
            waiting.fields.push(Field { name: "no\u{7}te".to_owned(), text: hostile.to_owned() });
            let mut all = state("one", &[waiting]);
            all.cwd = "/tmp/\u{1b}]0;x\u{7}\u{202e}".to_owned();
            let past = Past {
                id: "h".to_owned(),
                summary: hostile.to_owned(),
                decision: hostile.to_owned(),
                by: hostile.to_owned(),
            };
            all.history.push(past);
            let grant = GrantView {
                id: "g".to_owned(),
                summary: hostile.to_owned(),
                by: hostile.to_owned(),
                uses_left: Some(2),
                seconds_left: Some(100),
            };
            all.grants.push(grant);
            sitting.screen.take(&all, sitting.now);
            let mut shown = sitting.draw();
            assert!(shown.contains("3 waiting"), "{shown}");
            for _ in 0..3 {
                assert!(shown.contains("rm \\u{1b}[2J"), "{shown}");
                let bad = |letter: char| letter != '\n' && (letter.is_control() || letter == '\u{202e}');
                assert!(!shown.contains(bad), "{shown:?}");
                let answers =
                    shown.lines().filter(|line| line.trim_start_matches('"').starts_with("  answers"));
                assert!(answers.count() <= 1, "{shown}");
                sitting.press(KeyCode::Tab);
                sitting.press(KeyCode::PageDown);
                sitting.press(KeyCode::PageUp);
                shown = sitting.draw();
            }
            sitting.screen.end("one");
            sitting.screen.hint = hostile.to_owned();
            shown = sitting.draw();
            assert!(shown.contains("gone: its session has ended") && !shown.contains('\u{1b}'), "{shown}");
        }
    }

    #[test]
    fn a_filter_hides_and_selects_nothing_else() {
        let mut sitting = Sitting::new(100, 30);
        sitting.take("one", &[prompt("aaaa", "make a"), prompt("bbbb", "git push")]);
        sitting.take("two", &[prompt("cccc", "make c")]);
        sitting.keys("/GIT");
        sitting.press(KeyCode::Enter);
        let shown = sitting.draw();
        assert!(shown.contains("git push") && !shown.contains("make c"), "{shown}");
        assert_eq!(sitting.selected(), "aaaa", "its details are still there: {shown}");
        assert!(shown.contains("make a"), "{shown}");
        sitting.keys("k");
        assert_eq!(sitting.selected(), "bbbb");
        sitting.press(KeyCode::Esc);
        sitting.keys("/me/two");
        sitting.press(KeyCode::Enter);
        sitting.keys("j");
        assert_eq!(sitting.selected(), "cccc");
        sitting.press(KeyCode::Esc);
        sitting.keys("kk");
        assert_eq!(sitting.selected(), "aaaa");
    }

    #[test]
    fn what_is_granted_is_revoked_by_its_id() {
        let mut sitting = Sitting::new(100, 30);
        let grant = |id: &str| GrantView {
            id: id.to_owned(),
            summary: format!("make {id}"),
            by: "root".to_owned(),
            uses_left: None,
            seconds_left: None,
        };
        let mut all = state("one", &[]);
        all.grants = vec![grant("g1"), grant("g2")];
        sitting.screen.take(&all, sitting.now);
        assert_eq!(sitting.keys("r"), Action::Nothing, "not from here");
        sitting.press(KeyCode::Tab);
        sitting.keys("j");
        let revoked = Action::Revoke { session: "one".to_owned(), grant: "g2".to_owned() };
        assert_eq!(sitting.keys("r"), revoked);
        all.grants.pop();
        sitting.screen.take(&all, sitting.now);
        assert!(sitting.draw().contains("gone: used up, expired or revoked"));
        assert_eq!(sitting.keys("r"), Action::Nothing);
    }
}
