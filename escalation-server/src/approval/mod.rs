//! Approvals: what waits for somebody, what was granted for longer than one run, and what a session
//! and the doors that answer for people say to each other.

mod chain;
mod desk;
mod message;
mod reviewer;

pub(crate) use chain::{Approver, Chain, Mode, Review};
pub(crate) use desk::{Answer, Asked, Desk, Ending, Identity, Lasting};
pub(crate) use message::{Choice, Field, GrantView, Order, Past, Prompt, Reply, State};
pub(crate) use reviewer::Reviewer;
