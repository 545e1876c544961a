//! How the screen looks.

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;

use super::item::Item;
use super::screen::{ANSWERS, Mode, Screen, View};
use super::text::{LEAST, fitted, lines, tail, width, wrapped};
use crate::approval::Field;
use crate::flow::text::printable;

const HELP: [(&str, &str); 14] = [
    ("Up Down, k j", "select another one"),
    ("PageUp PageDown, K J", "scroll the details"),
    ("Tab", "what waits, what is granted, what was answered"),
    ("/", "show only what contains a text (Esc: all)"),
    ("o", "once: one run"),
    ("s", "session: this run and every equal one of the session"),
    ("u", "uses: so many equal runs"),
    ("t", "until: equal runs for so long"),
    ("w", "rule: this run, and for good what the shown rule allows"),
    ("d", "deny"),
    ("a", "abort: nothing that waits in the session, and interrupt its shell"),
    ("r", "revoke what is granted"),
    ("?", "this"),
    ("q, Ctrl-C", "quit; what waits goes on waiting"),
];

/// Heights of the tabs, the list, the rule, the details, the hint and the keys: where not all of them
/// have room, the details last lose theirs.
fn heights(height: u16, rows: usize) -> [u16; 6] {
    let from = |least: u16| u16::from(height >= least);
    let most = (height / 3).max(1);
    let list = if height >= 3 { u16::try_from(rows).unwrap_or(most).clamp(1, most) } else { 0 };
    let others = [from(5), list, from(6), from(2), from(4)];
    let [tabs, list, rule, hint, keys] = others;
    [tabs, list, rule, height.saturating_sub(others.iter().sum()), hint, keys]
}

/// Draws lines of text of a session.
fn put(frame: &mut Frame, area: Rect, lines: impl IntoIterator<Item = (String, Style)>) {
    for (row, (line, style)) in area.rows().zip(lines) {
        frame.render_widget(Line::from(printable(line.as_bytes())).style(style), row);
    }
}

fn safe(text: &str) -> String {
    printable(text.as_bytes())
}

impl Screen {
    /// Draws, and notes what could be read.
    pub(super) fn draw(&mut self, frame: &mut Frame, now: Instant) {
        let (filter, mode, view) = (self.filter.clone(), self.mode.clone(), self.view);
        let tabs = self.tabs();
        let list = self.list();
        let selected = list.selected().cloned();
        let same = |item: &Item| {
            selected.as_ref().is_some_and(|one| one.session == item.session && one.id == item.id)
        };
        let shown: Vec<&Item> = list.items.iter().filter(|item| item.matches(&filter)).collect();
        let areas = heights(frame.area().height, shown.len()).map(Constraint::Length);
        let [above, listed, rule, below, hint, keys] = Layout::vertical(areas).areas(frame.area());
        let across = usize::from(frame.area().width);

        // The selected one is in the middle, where there is more than fits.
        let height = usize::from(listed.height);
        let at = shown.iter().position(|item| same(item)).unwrap_or_default();
        let first = at.saturating_sub(height / 2).min(shown.len().saturating_sub(height));
        let mut rows: Vec<(String, Style)> = Vec::new();
        for item in shown.iter().skip(first).take(height) {
            let style = if same(item) { Modifier::REVERSED } else { Modifier::empty() };
            let dim = if item.fate.is_some() { Modifier::DIM } else { Modifier::empty() };
            rows.push((row(item, same(item), across, now), Style::new().add_modifier(style | dim)));
        }
        if rows.is_empty() {
            let nothing = match view {
                _ if !list.items.is_empty() => "nothing matches the filter",
                View::Waiting => "nothing waits",
                View::Granted => "nothing is granted",
                View::History => "nothing was answered yet",
            };
            rows.push((nothing.to_owned(), Style::new().add_modifier(Modifier::DIM)));
        }
        put(frame, above, [(tabs, Style::new().add_modifier(Modifier::BOLD))]);
        put(frame, listed, rows);

        let (details, title) = match (&mode, &selected) {
            (Mode::Help, _) => (lines(&help(), across), "keys".to_owned()),
            (_, None) => (Vec::new(), String::new()),
            (_, Some(item)) => {
                let parts = [safe(&item.id), item.time(now), note(item)];
                let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                (lines(&item.fields, across), parts.join("  "))
            }
        };
        // Beside what was asked, it cannot be scrolled away.
        let fate = selected.as_ref().filter(|_| mode != Mode::Help).and_then(|item| item.fate.as_ref());
        let fate = fate.map(|fate| wrapped(&format!("gone: {}", safe(fate)), across.saturating_sub(2)));
        let mut pinned = fate.unwrap_or_default();
        pinned.truncate(usize::from(below.height));
        let page = usize::from(below.height).saturating_sub(pinned.len());
        let readable = across >= LEAST && page > 0;
        let (length, mut start) = (details.len(), 0);
        if mode != Mode::Help {
            list.scroll = list.scroll.min(length.saturating_sub(page));
            start = list.scroll;
            list.shown(now, readable && start + page >= length);
        }
        self.page = if readable { page } else { 0 };
        let part = if length > page {
            format!("{}-{} of {length}", start + 1, length.min(start + page))
        } else {
            String::new()
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let visible = details.into_iter().skip(start).take(page).map(|line| (line, Style::new()));
        put(frame, rule, [(ruled(&title, &part, across), bold)]);
        put(frame, below, pinned.into_iter().map(|line| (line, bold)).chain(visible));
        put(frame, hint, [(self.status(across), bold)]);
        put(frame, keys, [(self.keys(across), Style::new())]);
    }

    fn tabs(&self) -> String {
        let living = |items: &[Item]| items.iter().filter(|item| item.fate.is_none()).count();
        let tabs = [
            (View::Waiting, "Waiting", &self.waiting),
            (View::Granted, "Granted", &self.granted),
            (View::History, "History", &self.history),
        ];
        let tab = |(view, name, list): (View, &str, &super::item::List)| {
            let text = format!("{name} {}", living(&list.items));
            if view == self.view { format!("[{text}]") } else { format!(" {text} ") }
        };
        let filter =
            if self.filter.is_empty() { String::new() } else { format!("  /{}", safe(&self.filter)) };
        tabs.map(tab).concat() + &filter
    }

    fn status(&self, across: usize) -> String {
        let typed = |what: &str, text: &str| tail(&format!("{what}: {}_", safe(text)), across);
        match &self.mode {
            Mode::Commands => safe(&self.hint),
            Mode::Help => "any key goes back".to_owned(),
            Mode::Filter => typed("show only", &self.filter),
            Mode::Amount("uses", text) => typed("uses: how many runs", text),
            Mode::Amount(what, text) => typed(&format!("{what}: for how long, like 10m"), text),
            Mode::Abort => "abort: deny all that waits in the session, interrupt its shell? y/n".to_owned(),
        }
    }

    fn keys(&self, across: usize) -> String {
        let selected = self.waiting.selected().filter(|item| item.fate.is_none());
        let mut keys = match (self.view, selected) {
            (View::Waiting, Some(item)) => {
                let offered = |(_, name): &(char, &str)| item.offered.iter().any(|offered| offered == name);
                ANSWERS.into_iter().filter(offered).collect()
            }
            (View::Granted, _) => vec![('r', "revoke")],
            _ => Vec::new(),
        };
        keys.extend([('?', "help"), ('q', "quit"), ('/', "filter")]);
        let named: Vec<String> = keys.iter().map(|(key, name)| format!("{key} {name}")).collect();
        let named = named.join("  ") + "  Tab next list";
        if width(&named) <= across {
            return named;
        }
        let bare: Vec<String> = keys.iter().map(|(key, _)| key.to_string()).collect();
        bare.join(" ") + " Tab"
    }
}

fn help() -> Vec<Field> {
    HELP.map(|(name, text)| Field { name: name.to_owned(), text: text.to_owned() }).to_vec()
}

fn note(item: &Item) -> String {
    if item.fate.is_some() { "gone".to_owned() } else { safe(&item.note) }
}

/// One line about an item. Columns have their places, so that no text can stand for another.
fn row(item: &Item, selected: bool, across: usize, now: Instant) -> String {
    let place = if across >= 60 { across / 4 } else { 0 };
    let mut row = format!(
        "{} {} {} ",
        if selected { '>' } else { ' ' },
        fitted(&item.time(now), 7),
        fitted(&note(item), 11)
    );
    if place > 0 {
        row.push_str(&fitted(&tail(&safe(&item.cwd), place), place));
        row.push(' ');
    }
    let rest = across.saturating_sub(width(&row));
    row + &fitted(&safe(&item.summary), rest)
}

/// A line across, with something at its left and something at its right.
fn ruled(left: &str, right: &str, across: usize) -> String {
    let spaced = |text: &str| if text.is_empty() { String::new() } else { format!(" {text} ") };
    let (left, right) = (format!("──{}", spaced(left)), format!("{}──", spaced(right)));
    let gap = across.saturating_sub(width(&left) + width(&right));
    format!("{left}{}{right}", "─".repeat(gap))
}
