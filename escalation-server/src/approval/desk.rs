//! The desk where questions wait: equal ones together, each with its own answer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::chain::Review;
use super::message::{Choice, Field, GrantView, Past, Prompt, State};

/// What makes two questions one: all that was judged, shown and will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(pub(crate) [u8; 32]);

/// A question.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) identity: Identity,
    pub(crate) summary: String,
    pub(crate) fields: Vec<Field>,
    pub(crate) lasting: Lasting,
    /// The rule that an answer may be written as.
    pub(crate) rule: Option<String>,
    /// Whether it counts among this minute's already.
    pub(crate) counted: bool,
}

/// Whether an answer may hold for longer than one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    No,
    Also,
    /// There is no run that it could be about.
    Only,
}

/// How a question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Approved(Choice),
    /// By what was granted before.
    Granted,
    Denied,
    Aborted,
    /// Nobody answered in time.
    TimedOut,
    /// Whoever asked has gone.
    Withdrawn,
    /// Too much waits already.
    Full,
    /// In this session nobody is asked.
    Nobody,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The prompt's or the grant's.
    pub(crate) id: String,
    pub(crate) by: String,
    pub(crate) ending: Ending,
    pub(crate) waited: Duration,
    /// What programs said before.
    pub(crate) reviews: Vec<Review>,
    /// Whether programs have denied so often that whoever asks is interrupted.
    pub(crate) interrupts: bool,
}

impl Answer {
    /// One that nobody gave.
    pub(super) fn nobody(ending: Ending) -> Self {
        let waited = Duration::ZERO;
        Self { id: String::new(), by: String::new(), ending, waited, reviews: Vec::new(), interrupts: false }
    }

    pub(super) fn allows(&self) -> bool {
        matches!(self.ending, Ending::Approved(_) | Ending::Granted)
    }
}

/// Prompts of a session that may wait at once.
const MOST_PROMPTS: usize = 8;
/// Equal questions that one prompt may stand for.
const MOST_WAITERS: usize = 256;
/// Prompts of a session in a minute.
const MOST_IN_A_MINUTE: usize = 60;
/// The longest that an approval may hold, in seconds: a week.
const LONGEST: u64 = 7 * 24 * 3600;
/// Answers that a door can look back at.
const MOST_HISTORY: usize = 100;

/// How it ended, and by whom.
type Said = (Ending, String);

#[derive(Debug)]
struct Waiting {
    id: String,
    asked: Asked,
    since: Instant,
    waiters: VecDeque<(u64, oneshot::Sender<Said>)>,
}

#[derive(Debug)]
struct Grant {
    id: String,
    identity: Identity,
    summary: String,
    by: String,
    uses: Option<u32>,
    until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Vec<Waiting>,
    grants: Vec<Grant>,
    history: VecDeque<Past>,
    /// When the last prompts were made.
    recent: VecDeque<Instant>,
}

/// One session's; one thread's.
#[derive(Debug)]
pub(crate) struct Desk {
    inner: RefCell<Inner>,
    next: Cell<u64>,
    /// Or why nobody is asked.
    patience: Result<Duration, String>,
    changed: watch::Sender<u64>,
    draw: fn() -> String,
}

impl Inner {
    fn remember(&mut self, waiting: &Waiting, decision: &str, by: &str) {
        if self.history.len() == MOST_HISTORY {
            self.history.pop_front();
        }
        let (id, summary) = (waiting.id.clone(), waiting.asked.summary.clone());
        self.history.push_back(Past { id, summary, decision: decision.to_owned(), by: by.to_owned() });
    }

    fn admits(&mut self, now: Instant) -> bool {
        self.recent.retain(|made| now.saturating_duration_since(*made) < Duration::from_secs(60));
        let admits = self.recent.len() < MOST_IN_A_MINUTE;
        self.recent.extend(Some(now).filter(|_| admits));
        admits
    }

    fn forget_expired(&mut self, now: Instant) {
        self.grants.retain(|grant| grant.uses != Some(0) && grant.until.is_none_or(|until| until > now));
    }

    /// Uses a grant, if one holds for this.
    fn take(&mut self, identity: Identity) -> Option<(String, String)> {
        self.forget_expired(Instant::now());
        let grant = self.grants.iter_mut().find(|grant| grant.identity == identity)?;
        grant.uses = grant.uses.map(|uses| uses.saturating_sub(1));
        Some((grant.id.clone(), grant.by.clone()))
    }
}

impl Desk {
    /// A desk where questions wait so long, or where nobody is asked, and why. `draw` makes an id that
    /// no other prompt of any session has.
    pub(crate) fn new(patience: Result<Duration, String>, draw: fn() -> String) -> Self {
        let (changed, _) = watch::channel(0);
        Self { inner: RefCell::default(), next: Cell::new(0), patience, changed, draw }
    }

    /// Why nobody is asked, where that is so.
    pub(crate) fn why_nobody(&self) -> &str {
        self.patience.as_ref().err().map_or("", String::as_str)
    }

    /// Told of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Asks, and waits for the answer: until somebody gives it, patience ends, or `withdrawn`, since
    /// whoever asked is gone. `waits` is told the prompt's id, once, if there is no answer yet.
    pub(crate) async fn ask(
        &self,
        asked: Asked,
        withdrawn: impl Future<Output = ()>,
        waits: impl FnOnce(&str),
    ) -> Answer {
        let since = Instant::now();
        let nobody = |id: String, ending| Answer { id, waited: since.elapsed(), ..Answer::nobody(ending) };
        if let Some(answer) = self.granted(asked.identity) {
            return answer;
        }
        let Ok(patience) = self.patience else { return nobody(String::new(), Ending::Nobody) };
        let Some((id, waiter, answered)) = self.join(asked, since) else {
            return nobody(String::new(), Ending::Full);
        };
        waits(&id);
        let ending = tokio::select! {
            biased;
            answer = answered => match answer {
                Ok((ending, by)) => return Answer { by, ..nobody(id, ending) },
                Err(_) => Ending::Withdrawn,
            },
            () = tokio::time::sleep(patience) => Ending::TimedOut,
            () = withdrawn => Ending::Withdrawn,
        };
        self.leave(&id, waiter, ending);
        nobody(id, ending)
    }

    /// The answer that was given before, if it holds for this.
    pub(super) fn granted(&self, identity: Identity) -> Option<Answer> {
        let (id, by) = self.inner.borrow_mut().take(identity)?;
        self.touch();
        Some(Answer { id, by, ..Answer::nobody(Ending::Granted) })
    }

    /// Whether something was granted for this that still holds.
    pub(crate) fn holds(&self, identity: Identity) -> bool {
        let mut inner = self.inner.borrow_mut();
        inner.forget_expired(Instant::now());
        inner.grants.iter().any(|grant| grant.identity == identity)
    }

    /// Takes back what was granted for this.
    pub(crate) fn forget(&self, identity: Identity) {
        self.inner.borrow_mut().grants.retain(|grant| grant.identity != identity);
        self.touch();
    }

    /// Whether one more question may be asked in this minute; it counts.
    pub(crate) fn admits(&self) -> bool {
        self.inner.borrow_mut().admits(Instant::now())
    }

    /// Joins the prompt for an equal question, or makes one.
    fn join(&self, asked: Asked, since: Instant) -> Option<(String, u64, oneshot::Receiver<Said>)> {
        let waiter = self.next.get();
        self.next.set(waiter + 1);
        let (answer, answered) = oneshot::channel();
        let mut inner = self.inner.borrow_mut();
        let prompts = inner.waiting.len();
        let equal = inner.waiting.iter_mut().find(|waiting| waiting.asked.identity == asked.identity);
        let id = match equal {
            Some(waiting) if waiting.waiters.len() >= MOST_WAITERS => return None,
            Some(waiting) => {
                waiting.waiters.push_back((waiter, answer));
                waiting.id.clone()
            }
            None if prompts >= MOST_PROMPTS => return None,
            None => {
                if !asked.counted && !inner.admits(since) {
                    return None;
                }
                let id = (self.draw)();
                let waiters = VecDeque::from([(waiter, answer)]);
                inner.waiting.push(Waiting { id: id.clone(), asked, since, waiters });
                id
            }
        };
        drop(inner);
        self.touch();
        Some((id, waiter, answered))
    }

    fn leave(&self, id: &str, waiter: u64, ending: Ending) {
        let mut inner = self.inner.borrow_mut();
        let Some(at) = inner.waiting.iter().position(|waiting| waiting.id == id) else { return };
        let gone = inner.waiting.get_mut(at).is_some_and(|waiting| {
            waiting.waiters.retain(|(number, _)| *number != waiter);
            waiting.waiters.is_empty()
        });
        if gone {
            let waiting = inner.waiting.remove(at);
            let what = if ending == Ending::TimedOut { "timed out" } else { "withdrawn" };
            inner.remember(&waiting, what, "");
        }
        drop(inner);
        self.touch();
    }

    /// Answers a prompt, as far as its choices go.
    ///
    /// # Errors
    /// Why that cannot be: the prompt is gone, or this was not offered.
    pub(crate) fn answer(&self, id: &str, choice: Choice, by: &str) -> Result<(), String> {
        let mut inner = self.inner.borrow_mut();
        let at = inner.waiting.iter().position(|waiting| waiting.id == id);
        let at = at.ok_or_else(|| gone(id))?;
        let mut waiting = inner.waiting.remove(at);
        if !offered(&waiting.asked).contains(&choice.name())
            || choice == Choice::Uses(0)
            || matches!(choice, Choice::Seconds(seconds) if seconds > LONGEST)
        {
            let what = not_offered(choice, &waiting);
            inner.waiting.insert(at, waiting);
            return Err(what);
        }
        let approved =
            |waiter: oneshot::Sender<_>| waiter.send((Ending::Approved(choice), by.to_owned())).is_ok();
        inner.remember(&waiting, choice.name(), by);
        match choice {
            // One accept is one run: whoever else waits for the same goes on waiting.
            Choice::Once => {
                while let Some((_, waiter)) = waiting.waiters.pop_front() {
                    if approved(waiter) {
                        break;
                    }
                }
            }
            // Whatever comes after these meets the rule.
            Choice::Rule => {
                for (_, waiter) in waiting.waiters.drain(..) {
                    let _withdrawn = approved(waiter);
                }
            }
            Choice::Session | Choice::Uses(_) | Choice::Seconds(_) => {
                let mut uses = if let Choice::Uses(uses) = choice { Some(uses) } else { None };
                while uses != Some(0)
                    && let Some((_, waiter)) = waiting.waiters.pop_front()
                {
                    if approved(waiter) {
                        uses = uses.map(|uses| uses - 1);
                    }
                }
                let seconds = if let Choice::Seconds(seconds) = choice { Some(seconds) } else { None };
                let until =
                    seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
                if uses != Some(0) {
                    inner.grants.push(Grant {
                        id: waiting.id.clone(),
                        identity: waiting.asked.identity,
                        summary: waiting.asked.summary.clone(),
                        by: by.to_owned(),
                        uses,
                        until,
                    });
                }
            }
            Choice::Deny => deny(&mut waiting, Ending::Denied, by),
            Choice::Abort => {
                deny(&mut waiting, Ending::Aborted, by);
                for mut other in std::mem::take(&mut inner.waiting) {
                    inner.remember(&other, choice.name(), by);
                    deny(&mut other, Ending::Aborted, by);
                }
            }
        }
        if !waiting.waiters.is_empty() {
            // What is answered next is another question.
            waiting.id = (self.draw)();
            inner.waiting.insert(at, waiting);
        }
        drop(inner);
        self.touch();
        Ok(())
    }

    /// The rule that an answer to a prompt may be written as.
    ///
    /// # Errors
    /// The prompt is gone, or that was not offered.
    pub(crate) fn rule(&self, id: &str) -> Result<String, String> {
        let inner = self.inner.borrow();
        let waiting = inner.waiting.iter().find(|waiting| waiting.id == id).ok_or_else(|| gone(id))?;
        waiting.asked.rule.clone().ok_or_else(|| not_offered(Choice::Rule, waiting))
    }

    /// # Errors
    /// If nothing of this id is granted.
    pub(crate) fn revoke(&self, id: &str) -> Result<(), String> {
        let mut inner = self.inner.borrow_mut();
        let before = inner.grants.len();
        inner.grants.retain(|grant| grant.id != id);
        if inner.grants.len() == before {
            return Err(format!("nothing of the id {id} is granted; `postern approve --list` lists what is"));
        }
        drop(inner);
        self.touch();
        Ok(())
    }

    pub(crate) fn state(&self, session: &str, cwd: &str) -> State {
        let mut inner = self.inner.borrow_mut();
        let now = Instant::now();
        inner.forget_expired(now);
        let prompt = |waiting: &Waiting| Prompt {
            id: waiting.id.clone(),
            summary: waiting.asked.summary.clone(),
            fields: waiting.asked.fields.clone(),
            offered: offered(&waiting.asked).into_iter().map(str::to_owned).collect(),
            waiting: waiting.waiters.len(),
            seconds: waiting.since.elapsed().as_secs(),
        };
        let grant = |grant: &Grant| GrantView {
            id: grant.id.clone(),
            summary: grant.summary.clone(),
            by: grant.by.clone(),
            uses_left: grant.uses,
            seconds_left: grant.until.map(|until| until.saturating_duration_since(now).as_secs()),
        };
        State {
            session: session.to_owned(),
            cwd: cwd.to_owned(),
            waiting: inner.waiting.iter().map(prompt).collect(),
            grants: inner.grants.iter().map(grant).collect(),
            history: inner.history.iter().cloned().collect(),
        }
    }
}

fn deny(waiting: &mut Waiting, ending: Ending, by: &str) {
    for (_, waiter) in waiting.waiters.drain(..) {
        let _withdrawn = waiter.send((ending, by.to_owned()));
    }
}

/// Names of the choices that a question leaves.
fn offered(asked: &Asked) -> Vec<&'static str> {
    let approvals: &[&str] = match asked.lasting {
        Lasting::No => &["once"],
        Lasting::Also => &["once", "session", "uses", "until"],
        Lasting::Only => &["session", "until"],
    };
    let rule = asked.rule.iter().map(|_| "rule");
    approvals.iter().copied().chain(rule).chain(["deny", "abort"]).collect()
}

fn gone(id: &str) -> String {
    format!("no prompt {id} waits: it was answered, withdrawn, or timed out")
}

fn not_offered(choice: Choice, waiting: &Waiting) -> String {
    let offered = offered(&waiting.asked).join(", ");
    format!("{} is not offered for prompt {}: {offered}", choice.name(), waiting.id)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn asked(which: u8) -> Asked {
        Asked {
            identity: Identity([which; 32]),
            summary: format!("command {which}"),
            fields: Vec::new(),
            lasting: Lasting::Also,
            rule: None,
            counted: false,
        }
    }

    fn draw() -> String {
        thread_local!(static NEXT: Cell<u32> = const { Cell::new(0) });
        NEXT.set(NEXT.get() + 1);
        format!("p{}", NEXT.get())
    }

    fn at_desk<F: Future>(patience: Option<u64>, test: impl FnOnce(Rc<Desk>) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let desk = Rc::new(Desk::new(patience.map(Duration::from_millis).ok_or_else(String::new), draw));
        tokio::task::LocalSet::new().block_on(&runtime, test(desk));
    }

    fn start(desk: &Rc<Desk>, which: u8) -> tokio::task::JoinHandle<Ending> {
        let desk = Rc::clone(desk);
        tokio::task::spawn_local(async move {
            desk.ask(asked(which), std::future::pending(), |_| ()).await.ending
        })
    }

    async fn waiting(desk: &Desk, count: usize) -> Vec<Prompt> {
        loop {
            let waiting = desk.state("s", "/").waiting;
            if waiting.iter().map(|prompt| prompt.waiting).sum::<usize>() == count {
                return waiting;
            }
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn equal_questions_are_one_prompt_and_one_accept_is_one_run() {
        at_desk(Some(60_000), |desk| async move {
            let (first, second, third) = (start(&desk, 1), start(&desk, 1), start(&desk, 1));
            let prompts = waiting(&desk, 3).await;
            assert_eq!(prompts.len(), 1);
            desk.answer(&prompts[0].id, Choice::Once, "me").unwrap();
            assert_eq!(first.await.unwrap(), Ending::Approved(Choice::Once));
            let prompts = waiting(&desk, 2).await;
            assert!(desk.answer("p1", Choice::Once, "me").is_err(), "it was answered");
            desk.answer(&prompts[0].id, Choice::Deny, "me").unwrap();
            assert_eq!((second.await.unwrap(), third.await.unwrap()), (Ending::Denied, Ending::Denied));
            assert!(desk.state("s", "/").waiting.is_empty());
        });
    }

    #[test]
    fn a_grant_holds_as_often_and_as_long_as_was_said() {
        at_desk(Some(60_000), |desk| async move {
            let first = start(&desk, 1);
            let prompts = waiting(&desk, 1).await;
            desk.answer(&prompts[0].id, Choice::Uses(2), "me").unwrap();
            assert_eq!(first.await.unwrap(), Ending::Approved(Choice::Uses(2)));
            assert_eq!(start(&desk, 1).await.unwrap(), Ending::Granted);
            let third = start(&desk, 1);
            let prompts = waiting(&desk, 1).await;
            desk.answer(&prompts[0].id, Choice::Session, "me").unwrap();
            assert_eq!(third.await.unwrap(), Ending::Approved(Choice::Session));
            assert_eq!(start(&desk, 1).await.unwrap(), Ending::Granted);
            let grants = desk.state("s", "/").grants;
            desk.revoke(&grants[0].id).unwrap();
            assert!(desk.revoke(&grants[0].id).is_err());
            let other = start(&desk, 1);
            let prompts = waiting(&desk, 1).await;
            desk.answer(&prompts[0].id, Choice::Seconds(0), "me").unwrap();
            assert_eq!(other.await.unwrap(), Ending::Approved(Choice::Seconds(0)));
            assert!(desk.state("s", "/").grants.is_empty());
        });
    }

    #[test]
    fn what_was_not_offered_is_not_accepted() {
        at_desk(Some(60_000), |desk| async move {
            let also = Rc::clone(&desk);
            let task = tokio::task::spawn_local(async move {
                let asked = Asked { lasting: Lasting::No, ..asked(1) };
                also.ask(asked, std::future::pending(), |_| ()).await.ending
            });
            let prompts = waiting(&desk, 1).await;
            for choice in [Choice::Session, Choice::Uses(3), Choice::Seconds(9)] {
                assert!(desk.answer(&prompts[0].id, choice, "me").unwrap_err().contains("not offered"));
            }
            desk.answer(&prompts[0].id, Choice::Once, "me").unwrap();
            assert_eq!(task.await.unwrap(), Ending::Approved(Choice::Once));
        });
    }

    #[test]
    fn abort_denies_all_that_waits() {
        at_desk(Some(60_000), |desk| async move {
            let (first, second) = (start(&desk, 1), start(&desk, 2));
            let prompts = waiting(&desk, 2).await;
            desk.answer(&prompts[1].id, Choice::Abort, "me").unwrap();
            assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ending::Aborted, Ending::Aborted));
        });
    }

    #[test]
    fn nobody_waits_for_ever() {
        at_desk(Some(20), |desk| async move {
            assert_eq!(start(&desk, 1).await.unwrap(), Ending::TimedOut);
            let gone = desk.ask(asked(1), std::future::ready(()), |_| ()).await;
            assert_eq!(gone.ending, Ending::Withdrawn);
            assert!(desk.state("s", "/").waiting.is_empty());
        });
        at_desk(None, |desk| async move { assert_eq!(start(&desk, 1).await.unwrap(), Ending::Nobody) });
    }

    #[test]
    fn no_more_wait_than_somebody_can_read() {
        at_desk(Some(60_000), |desk| async move {
            let most = u8::try_from(MOST_PROMPTS).unwrap();
            let _waiting: Vec<_> = (0..most).map(|which| start(&desk, which)).collect();
            waiting(&desk, MOST_PROMPTS).await;
            assert_eq!(start(&desk, most).await.unwrap(), Ending::Full);
        });
    }
}
