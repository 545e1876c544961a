//! Who answers a question: people, programs, and how their answers go together.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};

use super::desk::{Answer, Asked, Desk, Ending};
use super::message::Choice;
use super::reviewer::{Outcome, Reviewer, Risk, Withdrawal};

/// Somebody who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Approver {
    Person,
    Program(Reviewer),
}

/// How answers go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The first who answers decides.
    Then,
    /// Everybody has to allow.
    AllOf,
    /// Somebody has to.
    AnyOf,
}

/// What a program said, or that it did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Review {
    by: String,
    /// None: an outage.
    outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    risk_level: Option<Risk>,
    /// As the program gave it, or why there is no answer.
    rationale: String,
    wait_us: u64,
}

impl Review {
    /// What is said of a program that gave no answer.
    pub(crate) fn outage(&self) -> Option<String> {
        self.outcome.is_none().then(|| format!("reviewer {} gave no answer: {}", self.by, self.rationale))
    }

    fn said(&self) -> String {
        let risk = self.risk_level.map(|risk| format!(", {} risk", format!("{risk:?}").to_lowercase()));
        let colon = if self.rationale.is_empty() { "" } else { ": " };
        format!("reviewer {}{}{colon}{}", self.by, risk.unwrap_or_default(), self.rationale)
    }
}

/// The approvers of a session, and how often the programs among them have denied.
#[derive(Debug)]
pub(crate) struct Chain {
    mode: Mode,
    approvers: Vec<Approver>,
    environment: RefCell<Arc<[(OsString, OsString)]>>,
    in_a_row: Cell<u32>,
    in_all: Cell<u32>,
    /// Programs that may run at once.
    room: Semaphore,
}

/// Programs that answer for one session at once.
const MOST_AT_ONCE: usize = 8;
/// Denials after which whoever goes on asking is interrupted.
const MOST_IN_A_ROW: u32 = 3;
const MOST_IN_ALL: u32 = 10;

impl Chain {
    pub(crate) fn new(mode: Mode, approvers: Vec<Approver>) -> Self {
        Self {
            mode,
            approvers,
            environment: RefCell::new(Arc::new([])),
            in_a_row: Cell::new(0),
            in_all: Cell::new(0),
            room: Semaphore::new(MOST_AT_ONCE),
        }
    }

    /// Lets programs, if there are any, run in this environment from now on; before, it is empty.
    pub(crate) fn runs_in(&self, environment: impl FnOnce() -> Vec<(OsString, OsString)>) {
        if self.approvers.iter().any(|approver| matches!(approver, Approver::Program(_))) {
            *self.environment.borrow_mut() = environment().into();
        }
    }

    /// Whether people are among those who answer.
    pub(crate) fn has_people(&self) -> bool {
        self.approvers.contains(&Approver::Person)
    }

    /// Asks whoever has to be asked. `question` is what programs get; the rest is as for [`Desk::ask`].
    /// Where a program gives no answer, a person does.
    pub(crate) async fn ask<W: Future<Output = ()>>(
        &self,
        desk: &Desk,
        asked: Asked,
        question: &[u8],
        withdrawn: impl Fn() -> W,
        waits: impl FnOnce(&str),
    ) -> Answer {
        if let Some(answer) = desk.granted(asked.identity) {
            return answer;
        }
        let programs = self.approvers.iter().any(|approver| matches!(approver, Approver::Program(_)));
        if programs && !desk.admits() {
            return Answer::nobody(Ending::Full);
        }
        let began = Instant::now();
        let asked = Asked { counted: programs, ..asked };
        let (mut reviews, mut waits, mut asked) = (Vec::new(), Some(waits), Some(asked));
        // What decides, and what does where nothing else will.
        let (mut answer, mut otherwise) = (None, None);
        for approver in &self.approvers {
            let said = match approver {
                Approver::Person => match (asked.take(), waits.take()) {
                    (Some(asked), Some(waits)) => Some(desk.ask(asked, withdrawn(), waits).await),
                    _ => None,
                },
                Approver::Program(reviewer) => {
                    let Some(review) = self.review(reviewer, question, withdrawn()).await else {
                        answer = Some(Answer::nobody(Ending::Withdrawn));
                        break;
                    };
                    let ending = review.outcome.map(|outcome| match outcome {
                        Outcome::Allow => Ending::Approved(Choice::Once),
                        Outcome::Deny => Ending::Denied,
                    });
                    let by = review.said();
                    reviews.push(review);
                    ending.map(|ending| Answer { by, ..Answer::nobody(ending) })
                }
            };
            let Some(said) = said else { continue };
            let last = match (self.mode, said.ending) {
                // Nobody overrules these.
                (_, Ending::Aborted | Ending::Withdrawn) => true,
                (Mode::Then, Ending::TimedOut | Ending::Full | Ending::Nobody) => {
                    otherwise = Some(said);
                    continue;
                }
                (Mode::AnyOf, _) if !said.allows() => {
                    otherwise = Some(said);
                    continue;
                }
                (Mode::Then, _) | (Mode::AnyOf, _) => true,
                (Mode::AllOf, _) => !said.allows(),
            };
            answer = Some(said);
            if last {
                break;
            }
        }
        let outage = reviews.iter().any(|review| review.outcome.is_none());
        let settled = match self.mode {
            // A vote that is missing is a person's.
            Mode::AllOf => answer.filter(|said| !outage || asked.is_none() || !said.allows()),
            Mode::AnyOf => answer.or(otherwise.filter(|_| !outage || asked.is_none())),
            Mode::Then => answer.or(otherwise),
        };
        let mut answer = match (settled, asked, waits) {
            (Some(settled), ..) => settled,
            (None, Some(asked), Some(waits)) => desk.ask(asked, withdrawn(), waits).await,
            _ => Answer::nobody(Ending::Nobody),
        };
        answer.interrupts = self.counts(&reviews, answer.allows());
        answer.reviews = reviews;
        answer.waited = began.elapsed();
        answer
    }

    /// Asks a program. None if whoever asked has gone.
    async fn review(
        &self,
        reviewer: &Reviewer,
        question: &[u8],
        withdrawn: impl Future<Output = ()>,
    ) -> Option<Review> {
        let began = Instant::now();
        let (done, answered) = oneshot::channel();
        let withdrawal = Withdrawal::default();
        let flag = Arc::clone(&withdrawal.0);
        let (program, environment, question) =
            (reviewer.clone(), Arc::clone(&self.environment.borrow()), question.to_vec());
        let ask = move || {
            let _gone = done.send(program.ask(&question, &environment, &flag));
        };
        let answered = async {
            let _room = self.room.acquire().await;
            std::thread::Builder::new().spawn(ask).map_err(|error| format!("it does not start: {error}"))?;
            answered.await.unwrap_or_else(|_| Err("it was not waited for".to_owned()))
        };
        let said = tokio::select! {
            biased;
            said = answered => said,
            () = withdrawn => return None,
        };
        let wait_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (by, none) = (reviewer.name.clone(), |rationale| (None, None, rationale));
        let (outcome, risk_level, rationale) =
            said.map_or_else(none, |said| (Some(said.outcome), said.risk_level, said.rationale));
        Some(Review { by, outcome, risk_level, rationale, wait_us })
    }

    /// Counts commands that programs denied; whether these were too many. An outage says nothing either way.
    fn counts(&self, reviews: &[Review], allowed: bool) -> bool {
        if allowed {
            self.in_a_row.set(0);
        } else if reviews.iter().any(|review| review.outcome == Some(Outcome::Deny)) {
            self.in_a_row.set(self.in_a_row.get() + 1);
            self.in_all.set(self.in_all.get() + 1);
        }
        let tripped = self.in_a_row.get() >= MOST_IN_A_ROW || self.in_all.get() >= MOST_IN_ALL;
        if tripped {
            self.in_a_row.set(0);
            self.in_all.set(0);
        }
        tripped
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::super::desk::Lasting;
    use super::*;
    use crate::approval::Identity;

    /// A program that answers so, a person that does, or one who does not.
    const WHO: [&str; 3] = ["allow", "deny", "outage"];

    fn approvers(text: &str) -> Vec<Approver> {
        let program = |(at, what): (usize, &str)| {
            let script = match what {
                "outage" => "exit 1".to_owned(),
                outcome => format!("echo '{{\"outcome\":\"{outcome}\"}}'"),
            };
            Approver::Program(Reviewer {
                name: format!("{what}{at}"),
                program: "/bin/sh".into(),
                arguments: vec!["-c".to_owned(), script],
                deadline: Duration::from_secs(60),
            })
        };
        let each = text.split(' ').enumerate().map(|(at, what)| match what {
            "person" => Approver::Person,
            what => program((at, WHO[WHO.iter().position(|who| *who == what).unwrap()])),
        });
        each.collect()
    }

    /// What comes of a question; `person` is what a person answers, if one is asked.
    fn ended(chain: &Chain, person: Result<Choice, u64>) -> (Ending, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let patience = person.err().map_or(Duration::from_secs(60), Duration::from_millis);
        let desk = Rc::new(Desk::new(Ok(patience), || "p".to_owned()));
        let (asked, other) = (Rc::new(RefCell::new(false)), Rc::clone(&desk));
        let told = Rc::clone(&asked);
        let question = Asked {
            identity: Identity([1; 32]),
            summary: String::new(),
            fields: Vec::new(),
            lasting: Lasting::Also,
            rule: None,
            counted: false,
        };
        let answer = tokio::task::LocalSet::new().block_on(&runtime, async move {
            let waits = move |_: &str| {
                *told.borrow_mut() = true;
                if let Ok(choice) = person {
                    tokio::task::spawn_local(async move { other.answer("p", choice, "me") });
                }
            };
            chain.ask(&desk, question, b"{}\n", std::future::pending, waits).await
        });
        (answer.ending, *asked.borrow())
    }

    #[test]
    fn answers_go_together_as_they_say() {
        use Mode::{AllOf, AnyOf, Then};
        let (once, deny, abort) = (Ok(Choice::Once), Ok(Choice::Deny), Ok(Choice::Abort));
        let yes = Ending::Approved(Choice::Once);
        for (mode, who, person, ending, asked) in [
            (Then, "allow person", deny, yes, false),
            (Then, "deny person", once, Ending::Denied, false),
            (Then, "outage person", once, yes, true),
            (Then, "outage", deny, Ending::Denied, true),
            (Then, "person allow", deny, Ending::Denied, true),
            (Then, "person allow", abort, Ending::Aborted, true),
            // Who does not answer does not decide.
            (Then, "person allow", Err(1), yes, true),
            (Then, "person outage", Err(1), Ending::TimedOut, true),
            (AllOf, "allow person", once, yes, true),
            (AllOf, "allow person", deny, Ending::Denied, true),
            (AllOf, "deny person", once, Ending::Denied, false),
            (AllOf, "outage person", once, yes, true),
            (AllOf, "allow outage", once, yes, true),
            (AllOf, "allow outage", Err(1), Ending::TimedOut, true),
            (AnyOf, "person deny", once, yes, true),
            (AnyOf, "person allow", deny, yes, true),
            (AnyOf, "person allow", abort, Ending::Aborted, true),
            (AnyOf, "deny deny", once, Ending::Denied, false),
            (AnyOf, "deny outage", once, yes, true),
            (AnyOf, "deny outage", deny, Ending::Denied, true),
        ] {
            let chain = Chain::new(mode, approvers(who));
            assert_eq!(ended(&chain, person), (ending, asked), "{mode:?} {who} {person:?}");
        }
    }

    #[test]
    fn only_denials_that_hold_are_counted() {
        let chain = Chain::new(Mode::AnyOf, approvers("deny person"));
        for _ in 0..5 {
            assert_eq!(ended(&chain, Ok(Choice::Once)).0, Ending::Approved(Choice::Once));
        }
        assert_eq!((chain.in_a_row.get(), chain.in_all.get()), (0, 0));
        let review = |outcome| Review {
            by: String::new(),
            outcome,
            risk_level: None,
            rationale: String::new(),
            wait_us: 0,
        };
        let (denied, outage) = ([review(Some(Outcome::Deny))], [review(None)]);
        let trips = |reviews: &[Review], allowed| chain.counts(reviews, allowed);
        assert!(!trips(&denied, false) && !trips(&denied, false) && !trips(&outage, false));
        assert!(trips(&denied, false), "an outage does not end the row");
        assert!(
            !trips(&denied, false) && !trips(&denied, false) && !trips(&[], true) && !trips(&denied, false)
        );
    }
}
