//! Programs of the operator's that answer for people: a question as JSON on standard input, an answer as
//! JSON on standard output.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::sys::process;

/// A program, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reviewer {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) deadline: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Risk {
    Low,
    Medium,
    High,
    Critical,
}

/// What a program answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    #[serde(default)]
    pub(crate) risk_level: Option<Risk>,
    #[serde(default)]
    pub(crate) rationale: String,
}

/// The longest answer, in bytes.
const LONGEST: u64 = 64 << 10;
/// The longest rationale, in characters.
const LONGEST_RATIONALE: usize = 600;

impl Reviewer {
    /// Asks, and waits for the answer or the deadline. Not on a thread that has anything else to do.
    ///
    /// # Errors
    /// An outage: why there is no answer, which is none.
    pub(crate) fn ask(
        &self,
        question: &[u8],
        environment: &[(std::ffi::OsString, std::ffi::OsString)],
        withdrawn: &AtomicBool,
    ) -> Result<Verdict, String> {
        let deadline = Instant::now() + self.deadline;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().current_dir("/");
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        process::unblock_signals(&mut command);
        let failed = |error: io::Error| format!("it does not start: {error}");
        let mut running = Running { child: command.spawn().map_err(failed)?, reaped: false };
        let (input, output) = (running.child.stdin.take(), running.child.stdout.take());
        let question = question.to_vec();
        // One that reads nothing is no reason to wait here.
        let write = move || drop(input.map(|mut input| input.write_all(&question)));
        std::thread::Builder::new().spawn(write).map_err(failed)?;
        let (said, came) = mpsc::channel();
        let read = move || {
            let mut text = Vec::new();
            let read = output.map_or(Ok(0), |output| output.take(LONGEST + 1).read_to_end(&mut text));
            let _late = said.send(read.map(|_| text));
        };
        std::thread::Builder::new().spawn(read).map_err(failed)?;
        let text = running.wait(deadline, withdrawn, || came.try_recv().ok())?;
        let text = text.map_err(|error: io::Error| format!("its answer cannot be read: {error}"))?;
        if text.len() as u64 > LONGEST {
            return Err(format!("its answer is longer than {LONGEST} bytes"));
        }
        // It may have closed its output, and go on.
        running.wait(deadline, withdrawn, || running.has_ended().then_some(()))?;
        let status = running.reap().map_err(|error| format!("it cannot be waited for: {error}"))?;
        match (status.code(), status.signal()) {
            (Some(0), _) => parse(&text),
            (Some(code), _) => Err(format!("it ended with status {code}")),
            (_, signal) => Err(format!("it died of signal {}", signal.unwrap_or_default())),
        }
    }
}

/// A program with its process group, which is killed before it is reaped: until then the number is its own.
struct Running {
    child: Child,
    reaped: bool,
}

impl Running {
    /// Waits for something, until the deadline or nobody wants to know any more.
    fn wait<T>(
        &self,
        deadline: Instant,
        withdrawn: &AtomicBool,
        mut done: impl FnMut() -> Option<T>,
    ) -> Result<T, String> {
        const TICK: Duration = Duration::from_millis(5);
        loop {
            if let Some(done) = done() {
                return Ok(done);
            }
            if withdrawn.load(Ordering::Relaxed) {
                return Err("nobody waits for its answer any more".to_owned());
            }
            if Instant::now() >= deadline {
                return Err("it did not answer in time".to_owned());
            }
            std::thread::sleep(TICK);
        }
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        !matches!(waitid(Id::Pid(self.group()), flags), Ok(WaitStatus::StillAlive))
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        let _gone = killpg(self.group(), Signal::SIGKILL);
        self.reaped = true;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _status = self.reap();
        }
    }
}

fn parse(text: &[u8]) -> Result<Verdict, String> {
    let verdict: Verdict =
        serde_json::from_slice(text).map_err(|error| format!("its answer is none: {error}"))?;
    let rationale = verdict.rationale.chars().take(LONGEST_RATIONALE).collect();
    Ok(Verdict { rationale, ..verdict })
}

/// A flag that is set when its holder is dropped.
#[derive(Debug, Default)]
pub(crate) struct Withdrawal(pub(crate) Arc<AtomicBool>);

impl Drop for Withdrawal {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(script: &str, deadline: u64) -> Result<Verdict, String> {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let deadline = Duration::from_millis(deadline);
        let reviewer = Reviewer { name: "r".to_owned(), program: "/bin/sh".into(), arguments, deadline };
        reviewer.ask(b"{\"a\":1}\n", &[("WHO".into(), "me".into())], &AtomicBool::new(false))
    }

    #[test]
    fn an_answer_is_read_and_anything_else_is_an_outage() {
        let allowed = ask(
            "read -r line; [ \"$line\" = '{\"a\":1}' ] && [ \"$WHO\" = me ] && echo '{\"outcome\":\"allow\",\"risk_level\":\"low\",\"rationale\":\"fine\"}'",
            20_000,
        );
        assert_eq!(
            allowed,
            Ok(Verdict {
                outcome: Outcome::Allow,
                risk_level: Some(Risk::Low),
                rationale: "fine".to_owned()
            })
        );
        assert_eq!(ask("echo '{\"outcome\":\"deny\"}'", 20_000).unwrap().outcome, Outcome::Deny);
        for (script, why) in [
            ("echo allow", "its answer is none"),
            ("echo '{}'", "its answer is none"),
            ("echo '{\"outcome\":\"allow\"} trailing'", "its answer is none"),
            ("echo '{\"outcome\":\"allow\",\"outcome\":\"deny\"}'", "its answer is none"),
            ("echo '{\"outcome\":\"allow\",\"more\":1}'", "its answer is none"),
            ("echo '{\"outcome\":\"allow\"}'; exit 3", "status 3"),
            ("echo '{\"outcome\":\"allow\"}'; kill -9 $$", "signal 9"),
            ("yes | head -c 100000", "longer than"),
            (":", "its answer is none"),
        ] {
            let error = ask(script, 20_000).unwrap_err();
            assert!(error.contains(why), "{script}: {error}");
        }
    }

    #[test]
    fn who_does_not_answer_in_time_is_killed_with_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        for script in
            ["sleep 60 & echo $! > PID; wait", "sleep 60 > /dev/null & echo $! > PID; exec >&-; wait"]
        {
            let error = ask(&script.replace("PID", &pid.display().to_string()), 2000).unwrap_err();
            assert_eq!(error, "it did not answer in time");
            let sleeper: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
            let left = |pid: i32| {
                std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
            };
            let deadline = Instant::now() + Duration::from_secs(10);
            while left(sleeper) {
                assert!(Instant::now() < deadline, "{script}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn signals_end_what_it_starts() {
        // As in a server, which reads these as messages.
        let blocked = nix::sys::signal::SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        blocked.thread_block().unwrap();
        let script = "sleep 60 & kill -TERM $!; wait $!; [ $? = 143 ] && echo '{\"outcome\":\"allow\"}'";
        assert!(ask(script, 20_000).is_ok());
        blocked.thread_unblock().unwrap();
    }

    #[test]
    fn a_question_that_is_withdrawn_ends_its_reviewer() {
        let withdrawal = Withdrawal::default();
        let flag = Arc::clone(&withdrawal.0);
        drop(withdrawal);
        let reviewer = Reviewer {
            name: "r".to_owned(),
            program: "/bin/sleep".into(),
            arguments: vec!["60".to_owned()],
            deadline: Duration::from_secs(60),
        };
        assert!(reviewer.ask(b"", &[], &flag).unwrap_err().contains("nobody waits"));
        let missing = Reviewer { program: "/nonexistent".into(), ..reviewer };
        assert!(missing.ask(b"", &[], &AtomicBool::new(false)).unwrap_err().contains("does not start"));
    }
}
