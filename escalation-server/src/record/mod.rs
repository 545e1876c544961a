//! History: append-only events in SQLite, one hash chain a session. Cannot influence a decision
//! but by failing.

mod format;
mod pending;
mod reader;
mod secrets;
mod store;
mod writer;

pub(crate) use format::{decided, shell_arguments};
pub(crate) use reader::{Filter, Line, Reader};
pub(crate) use store::StoreError;
pub(crate) use writer::{Recorder, Ticket};
