//! The messages. Argument vectors, environments and paths are bytes, not text.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

extern crate alloc;

/// An owned byte string.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Bytes(pub Vec<u8>);

/// A borrowed byte string; the same on the wire as [`Bytes`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ByteSlice<'a>(pub &'a [u8]);

/// Which layer of interception saw an exec. Said by the asker, so a label and nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer {
    /// The hook in patched zsh.
    Zsh,
    /// `postern exec` inside a session.
    Exec,
}

/// What the shell said of the place that an exec came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellContext {
    /// The layer that intercepted it.
    pub layer: Layer,
    /// File that the shell was reading; empty if none.
    pub script: Bytes,
    /// Line in that file.
    pub line: u64,
    /// Text of the command, as the shell prints it.
    pub job: Bytes,
    /// The function stack, innermost first.
    pub functions: Vec<Bytes>,
}

/// One intercepted execve. The executable and the working directory come beside it, as `O_PATH`
/// descriptors in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The path as it was given to execve.
    pub path: Bytes,
    /// Whether the working directory's descriptor came along (it may not be openable).
    pub has_cwd: bool,
    /// Where it came from.
    pub context: ShellContext,
    /// The argument vector, `argv[0]` included.
    pub argv: Vec<Bytes>,
    /// The environment, `NAME=value` each.
    pub env: Vec<Bytes>,
    /// What it asks for instead of what its asker has.
    pub wish: Option<Wish>,
}

/// More than the sandbox, asked for with one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// What is added to the turn's profile; none: no sandbox at all.
    pub more: Option<More>,
    /// Why, for whoever approves; empty if nothing is said.
    pub justification: Bytes,
    /// The first words of commands that a yes may allow for good.
    pub prefix: Vec<Bytes>,
}

/// A profile that is added to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct More {
    /// The profile, as JSON.
    pub profile: Bytes,
    /// The directory that its relative paths are below.
    pub base: Bytes,
}

/// Asks for more for every later command of the turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plea {
    /// What is added.
    pub more: More,
    /// Why, for whoever approves; empty if nothing is said.
    pub justification: Bytes,
}

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer<'a> {
    /// Execute it where you are; to a [`Plea`]: it is granted.
    Run,
    /// Do not; the reason is for the command's stderr.
    Deny {
        /// What, why, and what to do instead.
        #[serde(borrow)]
        reason: &'a [u8],
    },
    /// It runs elsewhere: hand over your descriptors and wait.
    Escalate,
    /// It runs. Left out where it has ended before that is told.
    Started,
    /// The kernel would not execute it; execve's errno.
    Refused {
        /// An errno value.
        errno: i32,
    },
    /// It stopped.
    Stopped {
        /// Counts this command's stops from 1.
        number: u32,
        /// The signal that stopped it.
        signal: i32,
    },
    /// It goes on.
    Continued {
        /// The stop that this ends.
        number: u32,
    },
    /// It ended with this status.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// It was killed.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// To [`super::Kind::Hello`]: you are inside this session.
    Welcome,
    /// Somebody is asked; the answer comes later. The text is for the command's stderr.
    Waiting {
        /// What for, and how to answer.
        #[serde(borrow)]
        text: &'a [u8],
    },
}

/// A part of the descriptors that a command is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Whether this is the last part.
    pub last: bool,
    /// The signals that were blocked before the waiter blocked all, bit n-1 for signal n.
    pub blocked: u64,
    /// Those that it ignores, likewise.
    pub ignored: u64,
    /// See umask(2).
    pub umask: u32,
    /// The numbers that the descriptors beside it must get, in their order.
    pub numbers: Vec<u32>,
}

/// A signal that came to the waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The signal's number.
    pub signal: i32,
    /// The sender was outside the waiter's PID namespace, so it may have signalled the whole group.
    pub from_outside: bool,
    /// The last stop that the waiter acted on; lets a continue be told from a stale one.
    pub stop: u32,
}

impl Bytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ByteSlice(&self.0).fmt(f)
    }
}

impl fmt::Debug for ByteSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl Serialize for ByteSlice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

struct BytesVisitor;

impl<'de> de::Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes(bytes.to_vec()))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(Bytes(bytes))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BytesVisitor)
    }
}
