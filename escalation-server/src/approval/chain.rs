//! Who answers a question: people, programs, and how their answers go together.

use std::cell::Cell;
use std::ffi::OsString;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::oneshot;

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
    environment: Arc<[(OsString, OsString)]>,
    in_a_row: Cell<u32>,
    in_all: Cell<u32>,
}

/// Denials after which whoever goes on asking is interrupted.
const MOST_IN_A_ROW: u32 = 3;
const MOST_IN_ALL: u32 = 10;

impl Chain {
    /// Programs run in this environment.
    pub(crate) fn new(
        mode: Mode,
        approvers: Vec<Approver>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let environment = environment.into_iter().collect();
        Self { mode, approvers, environment, in_a_row: Cell::new(0), in_all: Cell::new(0) }
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
        let (mut reviews, mut waits, mut asked) = (Vec::new(), Some(waits), Some(asked));
        let (mut answer, mut denied) = (None, None);
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
            match (self.mode, said.allows()) {
                (Mode::Then, _) | (Mode::AnyOf, true) | (Mode::AllOf, false) => {
                    answer = Some(said);
                    break;
                }
                (Mode::AllOf, true) => answer = Some(said),
                (Mode::AnyOf, false) => denied = Some(said),
            }
        }
        let outage = reviews.iter().any(|review| review.outcome.is_none());
        let settled = match self.mode {
            // A vote that is missing is a person's.
            Mode::AllOf => answer.filter(|said| !outage || asked.is_none() || !said.allows()),
            Mode::AnyOf => answer.or(denied.filter(|_| !outage || asked.is_none())),
            Mode::Then => answer,
        };
        let mut answer = match (settled, asked, waits) {
            (Some(settled), ..) => settled,
            (None, Some(asked), Some(waits)) => desk.ask(asked, withdrawn(), waits).await,
            _ => Answer::nobody(Ending::Nobody),
        };
        answer.interrupts = self.counts(&reviews);
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
            (reviewer.clone(), Arc::clone(&self.environment), question.to_vec());
        std::thread::spawn(move || {
            let _gone = done.send(program.ask(&question, &environment, &flag));
        });
        let said = tokio::select! {
            biased;
            said = answered => said.unwrap_or_else(|_| Err("it was not waited for".to_owned())),
            () = withdrawn => return None,
        };
        let wait_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (by, none) = (reviewer.name.clone(), |rationale| (None, None, rationale));
        let (outcome, risk_level, rationale) =
            said.map_or_else(none, |said| (Some(said.outcome), said.risk_level, said.rationale));
        Some(Review { by, outcome, risk_level, rationale, wait_us })
    }

    /// Counts denials; whether these were too many. An outage says nothing either way.
    fn counts(&self, reviews: &[Review]) -> bool {
        for review in reviews {
            match review.outcome {
                None => {}
                Some(Outcome::Allow) => self.in_a_row.set(0),
                Some(Outcome::Deny) => {
                    self.in_a_row.set(self.in_a_row.get() + 1);
                    self.in_all.set(self.in_all.get() + 1);
                }
            }
        }
        let tripped = self.in_a_row.get() >= MOST_IN_A_ROW || self.in_all.get() >= MOST_IN_ALL;
        if tripped {
            self.in_a_row.set(0);
            self.in_all.set(0);
        }
        tripped
    }
}
