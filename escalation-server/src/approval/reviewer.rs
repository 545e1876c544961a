//! Programs of the operator's that answer for people: a question as JSON on standard input, an answer as
//! JSON on standard output.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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
        let child = command.spawn().map_err(|error| format!("it does not start: {error}"))?;
        let mut running = Running(child);
        let (input, output) = (running.0.stdin.take(), running.0.stdout.take());
        let question = question.to_vec();
        // One that reads nothing is no reason to wait here.
        std::thread::spawn(move || {
            let _unread = input.map(|mut input| input.write_all(&question));
        });
        let (said, came) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = output.map_or(Ok(0), |output| output.take(LONGEST + 1).read_to_end(&mut text));
            let _late = said.send(read.map(|_| text));
        });
        let text = running.wait(deadline, withdrawn, || came.try_recv().ok())?;
        let text = text.map_err(|error: io::Error| format!("its answer cannot be read: {error}"))?;
        if text.len() as u64 > LONGEST {
            return Err(format!("its answer is longer than {LONGEST} bytes"));
        }
        // It may have closed its output, and go on.
        let mut ended = None;
        while ended.is_none() {
            let child = &mut running.0;
            ended = child.try_wait().map_err(|error| format!("it cannot be waited for: {error}"))?;
            if ended.is_none() {
                running.tick(deadline, withdrawn)?;
            }
        }
        match ended.map(|status| (status.code(), status.signal())) {
            Some((Some(0), _)) => parse(&text),
            Some((Some(code), _)) => Err(format!("it ended with status {code}")),
            Some((_, signal)) => Err(format!("it died of signal {}", signal.unwrap_or_default())),
            None => Err("it did not end".to_owned()),
        }
    }
}

/// Killed with its group when dropped, and reaped.
struct Running(Child);

impl Running {
    fn wait<T>(
        &self,
        deadline: Instant,
        withdrawn: &AtomicBool,
        mut done: impl FnMut() -> Option<T>,
    ) -> Result<T, String> {
        loop {
            if let Some(done) = done() {
                return Ok(done);
            }
            self.tick(deadline, withdrawn)?;
        }
    }

    fn tick(&self, deadline: Instant, withdrawn: &AtomicBool) -> Result<(), String> {
        const TICK: Duration = Duration::from_millis(5);
        if withdrawn.load(Ordering::Relaxed) {
            return Err("nobody waits for its answer any more".to_owned());
        }
        if Instant::now() >= deadline {
            return Err("it did not answer in time".to_owned());
        }
        std::thread::sleep(TICK);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not reaped yet, so that the number is still its own; a group that is left is without it.
        let group = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _gone = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _reaped = self.0.wait();
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
            let error = ask(&script.replace("PID", &pid.display().to_string()), 300).unwrap_err();
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
