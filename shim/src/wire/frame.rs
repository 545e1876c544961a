//! Framing: a fixed header, then a bincode body. The only file that knows bincode.

extern crate alloc;

use serde::{Deserialize, Serialize};

/// Length of a header in bytes.
pub const HEADER: usize = 12;
/// The protocol that this build speaks. Both sides name it when they refuse each other.
pub const VERSION: u16 = 5;

const MAGIC: [u8; 4] = *b"PSTN";

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// An exec request, body in the message.
    Request = 1,
    /// An exec request, body in the sealed memfd that comes with it.
    LargeRequest = 2,
    /// Is this process inside the session?
    Hello = 3,
    /// From the server.
    Answer = 4,
    /// Descriptor numbers, with the descriptors.
    Handover = 5,
    /// From a waiting client.
    Notice = 6,
    /// A request that more be granted, body in the message.
    Plea = 7,
}

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than a header, or not of this protocol.
    NotAFrame,
    /// The other side speaks another version.
    Version(u16),
    /// A kind that has no place here.
    Kind(u16),
    /// The body is not as long as the header says, or over the limit.
    Length,
    /// The body does not decode, or has bytes left over.
    Body,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotAFrame => f.write_str("not a frame of this protocol"),
            Self::Version(theirs) => {
                write!(
                    f,
                    "the other side speaks protocol {theirs}, this one {VERSION}: install matching builds"
                )
            }
            Self::Kind(kind) => write!(f, "unexpected message kind {kind}"),
            Self::Length => f.write_str("the body's length is wrong or over the limit"),
            Self::Body => f.write_str("the body does not decode"),
        }
    }
}

impl core::error::Error for FrameError {}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<{ super::MAX_REQUEST }>()
}

/// Writes the header of a frame whose body is `length` bytes long.
#[must_use]
pub fn encode_header(kind: Kind, length: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    header[8..12].copy_from_slice(&length.to_le_bytes());
    header
}

/// Encodes a whole frame into `buffer` without allocating; returns its length.
///
/// # Errors
/// [`FrameError::Length`] if `buffer` is too small, [`FrameError::Body`] if the value cannot be
/// encoded.
pub fn encode<T: Serialize>(kind: Kind, body: &T, buffer: &mut [u8]) -> Result<usize, FrameError> {
    let Some((head, rest)) = buffer.split_at_mut_checked(HEADER) else { return Err(FrameError::Length) };
    let length = bincode::serde::encode_into_slice(body, rest, config()).map_err(|error| match error {
        bincode::error::EncodeError::UnexpectedEnd => FrameError::Length,
        _ => FrameError::Body,
    })?;
    let stated = u32::try_from(length).map_err(|_| FrameError::Length)?;
    head.copy_from_slice(&encode_header(kind, stated));
    Ok(HEADER + length)
}

/// Takes a frame apart: its kind and its body, which is borrowed.
///
/// # Errors
/// A [`FrameError`] that says what is wrong with it.
pub fn split(frame: &[u8]) -> Result<(Kind, &[u8]), FrameError> {
    let (head, body) = frame.split_at_checked(HEADER).ok_or(FrameError::NotAFrame)?;
    let [m0, m1, m2, m3, v0, v1, k0, k1, l0, l1, l2, l3] = *head else { return Err(FrameError::NotAFrame) };
    if [m0, m1, m2, m3] != MAGIC {
        return Err(FrameError::NotAFrame);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = match u16::from_le_bytes([k0, k1]) {
        1 => Kind::Request,
        2 => Kind::LargeRequest,
        3 => Kind::Hello,
        4 => Kind::Answer,
        5 => Kind::Handover,
        6 => Kind::Notice,
        7 => Kind::Plea,
        other => return Err(FrameError::Kind(other)),
    };
    // A large request states the length of what lies in the memfd.
    let stated = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    match kind {
        Kind::LargeRequest if body.is_empty() && stated <= super::MAX_REQUEST => Ok((kind, body)),
        Kind::LargeRequest => Err(FrameError::Length),
        _ if stated == body.len() => Ok((kind, body)),
        _ => Err(FrameError::Length),
    }
}

/// Decodes a body, which must be used up to its last byte.
///
/// # Errors
/// [`FrameError::Body`].
pub fn decode_body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FrameError> {
    let (value, used) =
        bincode::serde::borrow_decode_from_slice(body, config()).map_err(|_| FrameError::Body)?;
    if used == body.len() { Ok(value) } else { Err(FrameError::Body) }
}

/// Decodes a frame of which only one kind is acceptable.
///
/// # Errors
/// A [`FrameError`] that says what is wrong with it.
pub fn decode<'a, T: Deserialize<'a>>(expected: Kind, frame: &'a [u8]) -> Result<T, FrameError> {
    let (kind, body) = split(frame)?;
    if kind != expected {
        return Err(FrameError::Kind(kind as u16));
    }
    decode_body(body)
}

/// Encodes a value for a channel between processes of one build, which needs no header.
///
/// # Errors
/// [`FrameError::Body`] if the value cannot be encoded.
pub fn pack<T: Serialize>(value: &T) -> Result<alloc::vec::Vec<u8>, FrameError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(|_| FrameError::Body)
}

/// Decodes what [`pack`] encoded. Without a limit: only for what a process of the same build sent,
/// which may hold a request and more.
///
/// # Errors
/// [`FrameError::Body`].
pub fn unpack<T: serde::de::DeserializeOwned>(packed: &[u8]) -> Result<T, FrameError> {
    let (value, used) = bincode::serde::decode_from_slice(packed, bincode::config::standard())
        .map_err(|_| FrameError::Body)?;
    if used == packed.len() { Ok(value) } else { Err(FrameError::Body) }
}
