//! Pid 1 of a sandbox: builds what will be seen, covers more when told to, takes orphans in.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use postern_shim::wire::Bytes;

use super::channel::Channel;
use super::message::{FromInit, ToInit};
use crate::sandbox::{Change, Plan, Watch, build_view};
use crate::sys::process;

/// How often it is looked whether something that was removed is back, in milliseconds.
const RETURN: u16 = 10;
/// How often it is looked whether what still runs in a sandbox that nobody needs has ended, in
/// milliseconds.
const LINGER: u16 = 100;

/// Ends when the other end of `control` is closed and no process is left; dies with the spawner, and
/// takes everything in the namespace along. `view` leads to the process that waits for the mounts.
pub(super) fn be_first(control: &Channel, plan: &Plan, terminal: Option<&Path>, view: &Channel) -> ! {
    process::set_name(c"postern-init");
    let _if_parent_dies = process::die_with_parent(libc::SIGKILL);
    let built = build_view(plan, terminal);
    let mut keep = vec![control.as_raw_fd(), view.as_raw_fd()];
    let said = match &built {
        Ok(terminal) => {
            keep.extend(terminal.as_ref().map(AsRawFd::as_raw_fd));
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    };
    let closed = process::close_others(&keep);
    let said = said.and(closed.map_err(|error| format!("close descriptors: {error}")));
    let watched = said.and_then(|()| Watch::new(plan).map_err(|error| format!("watch the mounts: {error}")));
    let (said, mut watch) = match watched {
        Ok(watch) => (Ok(()), Some(watch)),
        Err(what) => (Err(what), None),
    };
    // If it failed, its end would take along whoever is to tell why: it waits like any other.
    let _told = view.send(&said, &[]);
    // Orphans leave nothing behind when they end.
    process::set_signals(1 << (libc::SIGCHLD - 1), 0);
    while let Some(order) = next_order(control, watch.as_mut()) {
        let paths = match order {
            ToInit::Cover(paths) => paths,
            ToInit::Recover(number) => {
                // Without an answer the spawner ends this sandbox.
                if watch.as_mut().is_none_or(|watch| recover(control, watch).is_ok()) {
                    let _told = control.send(&FromInit::Recovered(number), &[]);
                }
                continue;
            }
        };
        // Who waits for it does not start if this says it failed, or does not say anything.
        let covered = match &mut watch {
            Some(watch) => paths
                .iter()
                .try_for_each(|path| watch.cover(&path_of(path)))
                .map_err(|error| error.to_string()),
            None => Err("the sandbox could not be built".to_owned()),
        };
        let _told = view.send(&covered, &[]);
    }
    // Whoever waits for the sandbox's end learns at once if it is not now.
    if !is_empty() {
        let _told = control.send(&FromInit::Lingers, &[]);
        // What still runs is as hostile as before: covers are kept in place to its end.
        while !is_empty() {
            keep_covered(control, watch.as_mut(), &[], PollTimeout::from(LINGER));
        }
    }
    let _told = control.send(&FromInit::Empty, &[]);
    process::exit_now(0)
}

/// Whether no orphan is left.
fn is_empty() -> bool {
    process::wait_any(false).is_err()
}

fn path_of(bytes: &Bytes) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes.as_slice()))
}

/// The next order; none when the spawner needs this sandbox no more. Meanwhile covers are
/// kept in place.
fn next_order(control: &Channel, mut watch: Option<&mut Watch>) -> Option<ToInit> {
    loop {
        match control.receive() {
            Ok(Some((order, _))) => return Some(order),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => return None,
        }
        keep_covered(control, watch.as_deref_mut(), &[control.as_fd()], PollTimeout::NONE);
    }
}

/// Waits until one of `others` can be read or something happens to the mounts, at most `patience`; covers again what is not covered any more, and says so.
fn keep_covered(
    control: &Channel,
    watch: Option<&mut Watch>,
    others: &[BorrowedFd<'_>],
    patience: PollTimeout,
) {
    let mut polls: Vec<_> = others.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    if let Some((mounts, moves)) = watch.as_deref().map(Watch::fds) {
        polls.push(PollFd::new(mounts, PollFlags::POLLPRI));
        polls.extend(moves.map(|moves| PollFd::new(moves, PollFlags::POLLIN)));
    }
    let waits = watch.as_deref().is_some_and(Watch::waits);
    let _interrupted = poll(&mut polls, if waits { PollTimeout::from(RETURN) } else { patience });
    let changed = polls.iter().skip(others.len()).any(|polled| polled.any().unwrap_or(false));
    if let Some(watch) = watch.filter(|_| changed || waits)
        && recover(control, watch).is_err()
    {
        // It takes along everything that it could not hold any more.
        process::exit_now(1);
    }
}

/// Covers what is not covered any more, and says so.
///
/// # Errors
/// As for [`Watch::restore`].
fn recover(control: &Channel, watch: &mut Watch) -> io::Result<()> {
    for change in watch.restore()? {
        let bytes = |path: &Path| Bytes(path.as_os_str().as_bytes().to_vec());
        let news = match change {
            Change::Restored { path, gap } => {
                let gap_us = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
                FromInit::Covered { path: bytes(&path), gap_us }
            }
            Change::Open { path, what } => FromInit::Uncovered { path: bytes(&path), what },
        };
        let _told = control.send(&news, &[]);
    }
    Ok(())
}
