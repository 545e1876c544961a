//! Pid 1 of a sandbox: builds what will be seen, covers more when told to, reaps.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use postern_shim::wire::Bytes;

use super::channel::Channel;
use super::message::{Cover, FromInit};
use crate::sandbox::{Change, Plan, Watch, build_view};
use crate::sys::process;

/// How often it is looked whether something that was removed is back, in milliseconds.
const RETURN: u16 = 10;
/// How often orphans are reaped while nothing else happens, in milliseconds.
const REAP: u16 = 500;

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
    let mut watch = match built {
        Ok(_) => Watch::new(plan),
        // There is nothing to keep.
        Err(_) => Err(io::ErrorKind::NotFound.into()),
    };
    // If it failed, its end would take along whoever is to tell why: it waits like any other.
    let _told = view.send(&said, &[]);
    process::set_signals(0, 0);
    while let Some(Cover(paths)) = next_order(control, watch.as_mut().ok()) {
        // Who waits for it does not start if this says it failed, or does not say anything.
        let covered = match &mut watch {
            Ok(watch) => paths
                .iter()
                .try_for_each(|path| watch.cover(&path_of(path)))
                .map_err(|error| error.to_string()),
            Err(error) => Err(format!("watch the mounts: {error}")),
        };
        let _told = view.send(&covered, &[]);
    }
    // Whoever waits for the sandbox's end learns at once if it is not now.
    while let Ok(changed) = process::wait_any(false) {
        if changed.is_none() {
            let _told = control.send(&FromInit::Lingers, &[]);
            break;
        }
    }
    while process::reap_blocking().is_ok() {}
    let _told = control.send(&FromInit::Empty, &[]);
    process::exit_now(0)
}

fn path_of(bytes: &Bytes) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes.as_slice()))
}

/// The next order; none when the spawner needs this sandbox no more. Meanwhile orphans are reaped and
/// covers kept in place.
fn next_order(control: &Channel, mut watch: Option<&mut Watch>) -> Option<Cover> {
    loop {
        match control.receive() {
            Ok(Some((order, _))) => return Some(order),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => return None,
        }
        let mut polls = vec![PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        polls.extend(watch.as_deref().map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLPRI)));
        let waits = watch.as_deref().is_some_and(Watch::waits);
        let _interrupted = poll(&mut polls, PollTimeout::from(if waits { RETURN } else { REAP }));
        let changed = polls.get(1).and_then(PollFd::any).unwrap_or(false);
        if let Some(watch) = watch.as_deref_mut().filter(|_| changed || waits) {
            for change in watch.restore() {
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
        }
        // Orphans must not pile up.
        while matches!(process::wait_any(false), Ok(Some(_))) {}
    }
}
