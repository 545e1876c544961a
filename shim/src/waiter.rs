//! What a process does while its command runs elsewhere: hand over descriptors, pass on signals,
//! stop when the command stops, and end as it ended.

use core::ffi::c_int;

use crate::client::{Verdict, deny, receive};
use crate::sys::{self, Blocked, Fd};
use crate::wire::{self, Answer, Kind, Notice};

/// Waits for the command. Returns only if the kernel refused to execute it.
pub(crate) fn wait(connection: &Fd, gate: c_int) -> Verdict {
    // From here on every signal is either the command's or a reason to end.
    let Ok(signals) = Blocked::new() else { gone() };
    let Ok(listener) = signals.listen() else { gone() };
    let own = Attributes { blocked: signals.before(), ignored: sys::ignored(), umask: sys::umask() };
    hand_over(connection, gate, own);
    let mut stop = 0;
    // A continue that was passed on and not answered yet, and a stop that came meanwhile: whether the
    // continue came after that stop, the answer says.
    let mut continuing = false;
    let mut held = None;
    // Until the command has started it is not in our process group, or not yet itself: what the
    // terminal sends meanwhile is kept for it.
    let mut early = Some(0u64);
    // Between two runs, while somebody is asked about the second, signals are this process's own.
    let mut idle = false;
    let mut buffer = [0; wire::MAX_REASON + 64];
    loop {
        let Ok((answered, signalled)) = sys::wait_either(connection, &listener) else { gone() };
        if signalled {
            while let Some(came) = sys::next_signal(&listener) {
                if idle {
                    if came.signal != libc::SIGCONT && !sys::ignores(came.signal) {
                        sys::suffer(came.signal);
                    }
                    continue;
                }
                continuing |= came.signal == libc::SIGCONT && came.sender != 0;
                match &mut early {
                    _ if !sent_to_group(came) => notify(connection, came.signal, came.sender == 0, stop),
                    Some(kept) if came.signal != libc::SIGCHLD => *kept |= 1 << came.signal,
                    _ => {}
                }
            }
        }
        if !answered {
            continue;
        }
        match receive(connection, &mut buffer) {
            Some(Answer::Started) => {
                let kept = early.take().unwrap_or(0);
                for signal in (1..64).filter(|signal| kept & (1 << signal) != 0) {
                    notify(connection, signal, false, stop);
                }
            }
            Some(Answer::Continued { number }) => {
                continuing = false;
                if let Some((later, signal)) = held.take().filter(|(later, _)| *later > number) {
                    stop = later;
                    sys::suffer(signal);
                }
            }
            Some(Answer::Stopped { number, signal }) if continuing => {
                stop = number;
                held = Some((number, signal));
            }
            // What continues us afterwards waits at the listener.
            Some(Answer::Stopped { number, signal }) => {
                stop = number;
                sys::suffer(signal);
            }
            Some(Answer::Waiting { text }) => {
                idle = true;
                sys::complain(&[b"postern: ", text, b"\n"]);
            }
            // A second time, from the beginning.
            Some(Answer::Escalate) => {
                (stop, continuing, held, early, idle) = (0, false, None, Some(0), false);
                hand_over(connection, gate, own);
            }
            Some(Answer::Exited { code }) => sys::exit(code),
            Some(Answer::Signaled { signal }) => {
                sys::suffer(signal);
                sys::exit(128 + signal)
            }
            Some(Answer::Refused { errno }) => {
                drop(listener);
                signals.restore();
                return Verdict::Fail(errno);
            }
            Some(Answer::Deny { reason }) => deny(reason),
            _ => gone(),
        }
    }
}

/// Signals that reach the command by its process group: the terminal's, which the kernel sends.
fn sent_to_group(came: sys::Came) -> bool {
    const TERMINAL: [c_int; 7] = [
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGHUP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGWINCH,
    ];
    came.signal == libc::SIGCHLD || (came.by_kernel && TERMINAL.contains(&came.signal))
}

fn notify(connection: &Fd, signal: c_int, from_outside: bool, stop: u32) {
    let mut frame = [0; 64];
    if let Ok(length) = wire::encode(Kind::Notice, &Notice { signal, from_outside, stop }, &mut frame) {
        // A server that is gone shows as the end of file on the next turn.
        let _gone = sys::send(connection.raw(), frame.get(..length).unwrap_or_default(), &[]);
    }
}

/// What an exec would have kept of this process's own: see [`wire::Handover`].
#[derive(Clone, Copy)]
struct Attributes {
    blocked: u64,
    ignored: u64,
    umask: u32,
}

/// Hands over what an exec would have kept. Where that cannot be, nothing more comes, for which the other side would
/// wait: its answer says so, or why it has given up.
fn hand_over(connection: &Fd, gate: c_int, own: Attributes) {
    if send_descriptors(connection, gate, own).is_none() {
        sys::finish(connection);
    }
}

/// Sends every descriptor that an exec would have kept, in chunks.
fn send_descriptors(connection: &Fd, gate: c_int, own: Attributes) -> Option<()> {
    const CHUNK: usize = 200;
    let mut fds = [0; CHUNK];
    let mut count = 0;
    let mut total = 0;
    let mut sent = Some(());
    sys::each_inherited(|fd| {
        if fd == gate || sent.is_none() {
            return;
        }
        total += 1;
        fds[count] = fd;
        count += 1;
        if count == CHUNK {
            sent = send_chunk(connection, &Numbers { last: false, own, fds: &fds });
            count = 0;
        }
    })
    .ok()?;
    sent?;
    if total > wire::MAX_HANDOVER {
        return None;
    }
    send_chunk(connection, &Numbers { last: true, own, fds: fds.get(..count)? })
}

fn send_chunk(connection: &Fd, part: &Numbers<'_>) -> Option<()> {
    let mut frame = [0; 2048];
    let length = wire::encode(Kind::Handover, part, &mut frame).ok()?;
    sys::send(connection.raw(), frame.get(..length)?, part.fds).ok()
}

/// Encodes as [`wire::Handover`], without its heap.
struct Numbers<'a> {
    last: bool,
    own: Attributes,
    fds: &'a [c_int],
}

impl serde::Serialize for Numbers<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut handover = serializer.serialize_struct("Handover", 5)?;
        handover.serialize_field("last", &self.last)?;
        handover.serialize_field("blocked", &self.own.blocked)?;
        handover.serialize_field("ignored", &self.own.ignored)?;
        handover.serialize_field("umask", &self.own.umask)?;
        let numbers = self.fds.iter().map(|&fd| fd.unsigned_abs());
        handover.serialize_field("numbers", &crate::client::List(numbers, self.fds.len()))?;
        handover.end()
    }
}

fn gone() -> ! {
    sys::complain(&[b"postern: denied: the session's server is gone, and with it the command that it ran\n"]);
    sys::exit(126)
}
