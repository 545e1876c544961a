//! The last steps of the process that becomes the login shell.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use postern_shim::wire::Bytes;

use super::channel::Channel;
use super::command::{Ready, c_string, enter_directory, exec};
use super::enter::{Place, Step, Stop, failed, readable};
use super::handover::leads_elsewhere;
use super::message::{Cwd, terminated};
use crate::sys::process;

/// The login shell's own last steps.
pub(super) struct Shell<'a> {
    pub(super) program: &'a Path,
    pub(super) argv: &'a [Bytes],
    pub(super) env: &'a [Bytes],
    /// Number and socket of the gate.
    pub(super) gate: (i32, &'a OwnedFd),
    pub(super) cwd: &'a Cwd,
    pub(super) open_files: libc::rlimit,
    pub(super) ignored: u64,
    pub(super) blocked: u64,
    /// Says a byte when the server is ready.
    pub(super) go: &'a OwnedFd,
    /// The caller's, besides 0 to 2.
    pub(super) pass_fds: &'a [i32],
    /// The sandbox's first process is covering something more; wait for it.
    pub(super) covered: bool,
}

pub(super) fn become_shell(shell: &Shell<'_>, place: &Place<'_>, report: &Channel) -> Stop {
    let result = (|| {
        process::place(shell.gate.1, shell.gate.0).map_err(failed("place the request socket"))?;
        let program = process::open_exactly(&c_string(shell.program.as_os_str().as_bytes())?)
            .or_else(|_| open_following(shell.program))
            .map_err(|error| Stop::Failed(format!("{}: {error}", shell.program.display())))?;
        if shell.covered {
            place.await_view()?;
        }
        // Inherited, it would lead through the mounts that were there before the sandbox's.
        enter_directory(shell.cwd, None)?;
        let listener = place.confine()?;
        await_server(shell.go)?;
        for number in 0..=2 {
            let fd = process::standard(number);
            if leads_elsewhere(&fd).is_some() {
                let null = std::fs::File::options().read(true).write(true).open("/dev/null");
                process::place(null.map_err(failed("open /dev/null"))?, number)
                    .map_err(failed("place /dev/null"))?;
            }
        }
        for &number in shell.pass_fds {
            if let Some(why) = leads_elsewhere(&process::standard(number)) {
                return Err(Stop::Failed(format!("--pass-fd {number}: {why}")));
            }
        }
        let own = [0, 1, 2, shell.gate.0, report.as_raw_fd(), program.as_raw_fd()];
        let keep: Vec<i32> = own
            .into_iter()
            .chain(listener.iter().map(AsRawFd::as_raw_fd))
            .chain(shell.pass_fds.iter().copied())
            .collect();
        process::close_others(&keep).map_err(failed("close descriptors"))?;
        process::set_limit(libc::RLIMIT_NOFILE, shell.open_files).map_err(failed("set limits"))?;
        let strings = |list| terminated(list).map_err(failed("its arguments and environment"));
        let (argv, env) = (strings(shell.argv)?, strings(shell.env)?);
        Ok((program, argv, env, Ready::serving(listener, process::standard(shell.gate.0))?))
    })();
    match result {
        Err(stop) => stop,
        Ok((program, argv, env, ready)) => {
            let signals = (shell.ignored, shell.blocked);
            exec(report, &process::Image::File(program.as_fd()), &argv, &env, signals, &ready)
        }
    }
}

fn await_server(go: &OwnedFd) -> Step<()> {
    let ready = readable(go, Some(Duration::from_secs(30))).map_err(failed("wait for the server"))?;
    match nix::unistd::read(go, &mut [0]) {
        Ok(1) if ready => Ok(()),
        _ => Err(Stop::Failed("the server did not start".to_owned())),
    }
}

fn open_following(path: &Path) -> io::Result<OwnedFd> {
    process::open_exactly(&CString::new(path.canonicalize()?.as_os_str().as_bytes())?)
}
