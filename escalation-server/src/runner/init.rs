//! Pid 1 of a sandbox: builds what will be seen, covers more when told to, reaps.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::Channel;
use super::message::{Cover, Lingers};
use crate::sandbox::{Plan, build_view, cover};
use crate::sys::process;

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
    // If it failed, its end would take along whoever is to tell why: it waits like any other.
    let _told = view.send(&said, &[]);
    process::set_signals(0, 0);
    while let Some(Cover(paths)) = next_order(control) {
        // Who waits for it does not start if this says it failed, or does not say anything.
        let covered = paths.iter().try_for_each(|path| cover(path)).map_err(|error| error.to_string());
        let _told = view.send(&covered, &[]);
    }
    // Whoever waits for the sandbox's end learns at once if it is not now.
    while let Ok(changed) = process::wait_any(false) {
        if changed.is_none() {
            let _told = control.send(&Lingers, &[]);
            break;
        }
    }
    while process::reap_blocking().is_ok() {}
    process::exit_now(0)
}

/// The next order; none when the spawner needs this sandbox no more.
fn next_order(control: &Channel) -> Option<Cover> {
    loop {
        match control.receive() {
            Ok(Some((order, _))) => return Some(order),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => return None,
        }
        let mut polls = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        let _interrupted = poll(&mut polls, PollTimeout::from(REAP));
        // Orphans must not pile up.
        while matches!(process::wait_any(false), Ok(Some(_))) {}
    }
}
