//! What the screen lists. A selection is of one thing, wherever in the list it comes to stand, and
//! stays when that is gone.

use std::time::{Duration, Instant};

use super::text::answers;
use crate::approval::{Field, GrantView, Past, Prompt, State};

/// A prompt, a grant, or an answer.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) session: String,
    pub(super) cwd: String,
    pub(super) id: String,
    pub(super) summary: String,
    /// What stands beside it: `3 waiting`, the answer, how often.
    pub(super) note: String,
    pub(super) fields: Vec<Field>,
    pub(super) offered: Vec<String>,
    clock: Clock,
    told: Instant,
    /// What has become of it, if it is gone.
    pub(super) fate: Option<String>,
    /// Whether its last line has been on the screen.
    pub(super) read: bool,
}

#[derive(Debug, Clone, Copy)]
enum Clock {
    None,
    /// It has waited so long.
    Since(u64),
    /// It holds for so long.
    Left(u64),
}

fn field(name: &str, text: &str) -> Field {
    Field { name: name.to_owned(), text: text.to_owned() }
}

impl Item {
    fn new(state: &State, id: &str, summary: &str, now: Instant) -> Self {
        let place = field("session", &format!("{}\nin {}", state.session, state.cwd));
        Self {
            session: state.session.clone(),
            cwd: state.cwd.clone(),
            id: id.to_owned(),
            summary: summary.to_owned(),
            note: String::new(),
            fields: vec![place],
            offered: Vec::new(),
            clock: Clock::None,
            told: now,
            fate: None,
            read: false,
        }
    }

    pub(super) fn prompt(state: &State, prompt: &Prompt, now: Instant) -> Self {
        let mut item = Self::new(state, &prompt.id, &prompt.summary, now);
        item.note = if prompt.waiting > 1 { format!("{} waiting", prompt.waiting) } else { String::new() };
        item.fields.splice(0..0, prompt.fields.iter().cloned());
        item.fields.push(answers(prompt));
        item.offered.clone_from(&prompt.offered);
        item.clock = Clock::Since(prompt.seconds);
        item
    }

    pub(super) fn grant(state: &State, grant: &GrantView, now: Instant) -> Self {
        let mut item = Self::new(state, &grant.id, &grant.summary, now);
        item.note = grant.uses_left.map_or_else(String::new, |uses| format!("{uses} more"));
        item.clock = grant.seconds_left.map_or(Clock::None, Clock::Left);
        let uses = grant.uses_left.map(|uses| format!("{uses} more runs"));
        let time = grant.seconds_left.map(|_| "until its time is over".to_owned());
        let holds = uses.or(time).unwrap_or_else(|| "as long as the session".to_owned());
        let fields = [("command", &grant.summary), ("granted by", &grant.by), ("holds for", &holds)];
        item.fields.splice(0..0, fields.map(|(name, text)| field(name, text)));
        item
    }

    pub(super) fn past(state: &State, past: &Past, now: Instant) -> Self {
        let mut item = Self::new(state, &past.id, &past.summary, now);
        item.note.clone_from(&past.decision);
        let fields = [("command", &past.summary), ("answer", &past.decision), ("by", &past.by)];
        item.fields.splice(0..0, fields.map(|(name, text)| field(name, text)));
        item
    }

    /// How long it has waited, or holds.
    pub(super) fn time(&self, now: Instant) -> String {
        let passed = now.saturating_duration_since(self.told).as_secs();
        let seconds = match self.clock {
            _ if self.fate.is_some() => return String::new(),
            Clock::None => return String::new(),
            Clock::Since(seconds) => seconds.saturating_add(passed),
            Clock::Left(seconds) => seconds.saturating_sub(passed),
        };
        match seconds {
            0..120 => format!("{seconds} s"),
            120..7200 => format!("{} min", seconds / 60),
            _ => format!("{} h", seconds / 3600),
        }
    }

    pub(super) fn matches(&self, filter: &str) -> bool {
        let filter = filter.to_lowercase();
        let fields = self.fields.iter().flat_map(|field| [&field.name, &field.text]);
        [&self.summary, &self.cwd].into_iter().chain(fields).any(|text| text.to_lowercase().contains(&filter))
    }
}

#[derive(Debug)]
struct Selection {
    session: String,
    id: String,
    /// Since when it is on the screen, if nobody selected it.
    shown: Option<Instant>,
    by_key: bool,
}

#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) items: Vec<Item>,
    selection: Option<Selection>,
    /// The first line of the details that is shown.
    pub(super) scroll: usize,
    newest_first: bool,
}

impl List {
    pub(super) fn new(newest_first: bool) -> Self {
        Self { newest_first, ..Self::default() }
    }

    fn at(&self) -> Option<usize> {
        let selection = self.selection.as_ref()?;
        self.items.iter().position(|item| item.session == selection.session && item.id == selection.id)
    }

    pub(super) fn selected(&self) -> Option<&Item> {
        self.items.get(self.at()?)
    }

    /// All of a session's items, in place of those before. `fate` says what has become of one that is
    /// gone, by its id.
    pub(super) fn update(&mut self, session: &str, mut new: Vec<Item>, fate: impl Fn(&str) -> String) {
        let at = self.at();
        for item in self.items.iter_mut().filter(|item| item.session == session) {
            match new.iter().position(|other| other.id == item.id) {
                Some(at) => {
                    let other = new.remove(at);
                    // Asked again, it is looked at again.
                    if item.fate.is_some()
                        && let Some(selection) = &mut self.selection
                        && (&*selection.session, &selection.id) == (session, &item.id)
                    {
                        (selection.by_key, selection.shown) = (false, None);
                    }
                    let read = item.read && item.fields == other.fields;
                    *item = Item { read, ..other };
                }
                None => {
                    item.fate.get_or_insert_with(|| fate(&item.id));
                }
            }
        }
        let mut position = 0..;
        self.items.retain(|item| position.next() == at || item.fate.is_none());
        if self.newest_first {
            self.items.splice(0..0, new.into_iter().rev());
        } else {
            self.items.append(&mut new);
        }
    }

    /// Selects what comes after or before. From what is gone or hidden, else the other way.
    pub(super) fn shift(&mut self, down: bool, filter: &str) {
        let shows = |item: &Item| item.matches(filter);
        let at = self.at();
        let others = self.items.iter().enumerate().filter(|(_, item)| item.fate.is_none() && shows(item));
        let others: Vec<usize> = others.map(|(position, _)| position).collect();
        let after = others.iter().copied().find(|position| at.is_none_or(|at| *position > at));
        let before = others.iter().copied().rfind(|position| at.is_some_and(|at| *position < at));
        let (next, other) = if down { (after, before) } else { (before, after) };
        let stays = self.selected().is_some_and(|item| item.fate.is_none() && shows(item));
        if let Some(next) = next.or(if stays { at } else { other })
            && at != Some(next)
        {
            self.select(next, true);
        } else if !stays {
            self.selection = None;
        }
        let at = self.at();
        let mut position = 0..;
        self.items.retain(|item| position.next() == at || item.fate.is_none());
    }

    fn select(&mut self, at: usize, by_key: bool) {
        self.scroll = 0;
        self.selection = self.items.get(at).map(|item| Selection {
            session: item.session.clone(),
            id: item.id.clone(),
            shown: None,
            by_key,
        });
    }

    /// Selects the first that is shown, if nothing is.
    pub(super) fn settle(&mut self, filter: &str) {
        if self.selection.is_none()
            && let Some(first) = self.items.iter().position(|item| item.matches(filter))
        {
            self.select(first, false);
        }
    }

    /// Notes what of the selected one was on the screen.
    pub(super) fn shown(&mut self, now: Instant, to_the_end: bool) {
        let Some(at) = self.at() else { return };
        if let Some(selection) = &mut self.selection {
            selection.shown.get_or_insert(now);
        }
        if let Some(item) = self.items.get_mut(at) {
            item.read |= to_the_end;
        }
    }

    /// Whether a key may be about the selected one: it was selected by one, or has been looked at.
    pub(super) fn is_meant(&self, now: Instant) -> bool {
        const LOOK: Duration = Duration::from_millis(500);
        self.selection.as_ref().is_some_and(|selection| {
            let seen = |since| now.saturating_duration_since(since) >= LOOK;
            selection.by_key || selection.shown.is_some_and(seen)
        })
    }
}
