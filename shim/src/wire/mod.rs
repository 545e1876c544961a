//! The wire protocol: `AF_UNIX` `SOCK_SEQPACKET`, one connection an exec.
//!
//! A client makes a socketpair, writes its [`Request`] into one end and sends the other over the
//! context's inherited socket, so that replies never cross and nothing need be connected to from
//! inside a sandbox. What follows depends on the answer:
//!
//! ```text
//! run        client ── Request ──► server        deny       client ── Request ──► server
//!                   ◄── Run ─────                                  ◄── Deny ────
//!            execve in place                                exit status 126
//!
//! escalate   client ── Request ──────────────► server
//!                   ◄── Escalate ────────────
//!                   ── Handover + fds ───────► (read by the forked child that becomes the command)
//!                   ◄── Started ─────────────      left out where it has ended already
//!                   ◄── Stopped, Continued ──      any number of times
//!                   ── Notice(signal) ───────►     any number of times
//!                   ◄── Exited | Signaled ───
//!            ends as the command ended
//!            Deny or Refused instead of Started: the command never ran
//!
//! hello      client ── Hello ──► server      is this process inside the session?
//!                   ◄── Welcome ──           the client becomes the session's zsh
//!
//! plea       client ── Plea ──► server       more for every later command of the turn
//!                   ◄── Run | Deny
//! ```
//!
//! An end mostly comes from the spawner, which is who knows first. Before any of these answers `Waiting` may
//! come, while somebody is asked. In place of `Exited` or `Signaled` a second `Escalate` may: the command runs
//! once more, with the descriptors handed over anew.
//!
//! An end of file in place of an answer means deny. Nothing that a client says is believed but
//! what it wants; who it is, the server asks the kernel.

mod frame;
mod limits;
mod message;

pub use frame::{
    FrameError, HEADER, Kind, VERSION, decode, decode_body, encode, encode_header, pack, split, unpack,
};
pub use limits::*;
pub use message::{
    Answer, ByteSlice, Bytes, Handover, Layer, More, Notice, Plea, Request, ShellContext, Wish,
};
