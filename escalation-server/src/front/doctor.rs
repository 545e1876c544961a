//! `postern doctor`: whether a session would start here, how strong it would be, and what to do. It
//! starts one, and tries from inside what must not work.

use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::sandbox::{Abilities, Namespaces, Plan, WEAKNESSES};
use crate::session::{Directories, Options, prepare};

/// One thing that was looked at or tried.
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
    /// What to do, if it is not as it should be.
    remedy: String,
    /// A session can do without it, if the operator allows that.
    optional: bool,
}

impl Check {
    fn new(name: &'static str, ok: bool, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = if ok { String::new() } else { remedy.into() };
        Self { name, ok, found: found.into(), remedy, optional: false }
    }

    fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// What names in `missing`, in records and here, mean besides [`WEAKNESSES`].
const MISSING: [(&str, &str); 3] = [
    (
        "signal_and_abstract_socket_scope",
        "Landlock ABI 6 (Linux 6.12): until then the PID and network namespaces alone",
    ),
    (
        "device_ioctls",
        "Landlock ABI 5 (Linux 6.10): until then ioctls on the devices in /dev are not restricted",
    ),
    (
        "socket_gate",
        "somebody else answers system calls of this process: programs that close every descriptor cannot ask, and \
         profiles cannot name sockets",
    ),
];

/// Tries from inside what must not work. Its arguments: a file of the state directory, one to be
/// created in the home directory, the number of a process outside, and of a port where somebody
/// listens.
const ATTEMPTS: &str = r#"
report() { print -r -- "$1 $2 $3" }
if { : > $2 } 2>/dev/null; then report files no 'a file was created in the home directory'
else report files yes 'nothing can be created in the home directory'; fi
if { : < $1 } 2>/dev/null; then report state no 'the state directory can be read'
else report state yes 'the state directory cannot be read'; fi
# Inside, the same number may be another process.
[[ -r /proc/$3/comm && $(</proc/$3/comm) == postern ]] && outside=$3 || outside=none
if kill -0 $outside 2>/dev/null; then report signals no 'processes outside can be signalled'
else report signals yes 'processes outside cannot be signalled'; fi
if { : < /proc/$outside/environ } 2>/dev/null; then report memory no 'the environment of processes outside can be read'
else report memory yes 'the environment of processes outside cannot be read'; fi
zmodload zsh/net/tcp && { ztcp 127.0.0.1 $4 2>/dev/null; report network tried '' }
lines=(${(f)"$(</proc/self/status)"})
if [[ -n ${(M)lines:#NoNewPrivs:*1} && -n ${(M)lines:#CapEff:*0000000000000000} && -n ${(M)lines:#Seccomp:*2} ]]
then report privileges yes 'no capability, none to be had, system calls filtered'
else report privileges no 'privileges are left'; fi
"#;

/// Looks, starts a sandbox for real, and reports: the text, and whether a session would start.
pub(crate) fn doctor(as_json: bool, options: &Options) -> (String, bool) {
    let mut checks = machine(&Abilities::probe(Vec::new()));
    let (mut missing, mut notes) = (Vec::new(), Vec::new());
    match Directories::find() {
        Err(what) => checks.push(Check::new("directories", false, what, "set HOME")),
        Ok(directories) => {
            let zsh = directories.zsh();
            checks.push(Check::new(
                "patched zsh",
                zsh.exists(),
                zsh.display().to_string(),
                "run `make`, or reinstall",
            ));
            match prepare(options) {
                Err(error) => checks.push(Check::new("session", false, error.to_string(), "")),
                Ok(prepared) => {
                    let strength =
                        prepared.plan.as_ref().map_or_else(|| "no sandbox".to_owned(), Plan::strength);
                    missing = prepared.plan.as_ref().map(|plan| plan.missing.clone()).unwrap_or_default();
                    notes.clone_from(&prepared.notes);
                    let described = format!("{}: {strength}", prepared.turn.name);
                    let (restricted, network) = (!prepared.turn.unrestricted, prepared.turn.network);
                    let refusals = prepared.refusals();
                    prepared.discard();
                    let expected = Expected { restricted, network, missing: &missing };
                    checks.extend(session(&directories, options, &described, &expected));
                    checks.extend(refusals.into_iter().map(|(name, why)| {
                        Check::new("rules", false, format!("no command can run under {name}: {why}"), "")
                    }));
                }
            }
        }
    }
    let ok = checks.iter().all(|check| check.ok || check.optional);
    (if as_json { in_json(&checks, &missing, &notes, ok) } else { in_words(&checks, &missing, &notes) }, ok)
}

/// What the kernel offers.
fn machine(abilities: &Abilities) -> Vec<Check> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let landlock = match abilities.landlock_abi {
        0 => "not to be had".to_owned(),
        abi => format!("ABI {abi}"),
    };
    let (namespaces, remedy) = match abilities.namespaces {
        Namespaces::ByUser => ("to be had, in user namespaces", ""),
        Namespaces::ByCapability => ("to be had, by capability", ""),
        Namespaces::None(obstacle) => {
            ("not to be had: Landlock alone would hold what it can", obstacle.remedy())
        }
    };
    vec![
        Check::new("kernel", abilities.peers, release.trim(), "boot Linux 6.5 or later (SO_PEERPIDFD)"),
        Check::new(
            "landlock",
            abilities.landlock_abi > 0,
            landlock,
            "boot with `landlock` among the security modules (lsm=landlock,…)",
        ),
        Check::new("namespaces", remedy.is_empty(), namespaces, remedy).optional(),
        Check::new(
            "socket gate",
            abilities.listener,
            if abilities.listener {
                "the server can answer system calls"
            } else {
                "somebody else answers system calls"
            },
            "start outside of the other sandbox",
        )
        .optional(),
    ]
}

/// What a session is meant to hold.
struct Expected<'a> {
    restricted: bool,
    network: bool,
    missing: &'a [&'static str],
}

/// A session that tries what must not work.
fn session(
    directories: &Directories,
    options: &Options,
    described: &str,
    expected: &Expected<'_>,
) -> Vec<Check> {
    let own = std::process::id();
    let canary = directories.state.join(format!("doctor-{own}"));
    let intruder = directories.home.join(format!(".postern-doctor-{own}"));
    let tried = (|| {
        std::fs::write(&canary, "x")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let mut command = Command::new(std::env::current_exe()?);
        let pairs = [
            ("--config", options.config.as_deref().map(Path::as_os_str)),
            ("--profile", options.profile.as_deref().map(OsStr::new)),
            ("--sandbox", options.sandbox.as_deref().map(OsStr::new)),
        ];
        for (name, value) in pairs {
            command.args(value.into_iter().flat_map(|value| [OsStr::new(name), value]));
        }
        let script = if expected.restricted { ATTEMPTS } else { "/bin/true" };
        command.args(["--", "-fc", script, "zsh"]).arg(&canary).arg(&intruder);
        command.args([own.to_string(), listener.local_addr()?.port().to_string()]);
        let output = output_of(command.stdin(Stdio::null()))?;
        io::Result::Ok((output, listener.accept().is_ok()))
    })();
    for path in [&canary, &intruder] {
        let _absent = std::fs::remove_file(path);
    }
    let (output, came) = match tried {
        Ok(tried) => tried,
        Err(error) => return vec![Check::new("session", false, error.to_string(), "")],
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let mut checks = vec![if output.status.success() {
        Check::new("session", true, format!("started under {described}"), "")
    } else {
        Check::new("session", false, complaint, "")
    }];
    const TRIED: [&str; 6] = ["files", "state", "signals", "memory", "network", "privileges"];
    for name in TRIED.into_iter().filter(|_| expected.restricted) {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let (verdict, found) = line.and_then(|line| line.split_once(' ')).unwrap_or(("no", "was not tried"));
        let network = if came { "connections can be made" } else { "nothing can be connected to" };
        let allowed = |weakness: &str| expected.missing.contains(&weakness);
        let (held, found) = match name {
            "network" if verdict == "tried" => (came == expected.network, network),
            // The operator has allowed that.
            "state" => (verdict == "yes" || allowed("hide_state"), found),
            "signals" => (verdict == "yes" || allowed("signals"), found),
            _ => (verdict == "yes", found),
        };
        checks.push(Check::new(name, held, found, "do not rely on the sandbox here, and report this"));
    }
    checks
}

/// Runs to the end, at most half a minute.
fn output_of(command: &mut Command) -> io::Result<Output> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the session did not end in time"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output()
}

fn meaning(name: &str) -> &'static str {
    MISSING.iter().chain(&WEAKNESSES).find(|(known, _)| *known == name).map_or("", |(_, meaning)| meaning)
}

fn in_json(checks: &[Check], missing: &[&str], notes: &[String], ok: bool) -> String {
    let list: Vec<_> = checks
        .iter()
        .map(|Check { name, ok, found, remedy, optional }| {
            json!({ "name": name, "ok": ok, "optional": optional, "found": found, "remedy": remedy })
        })
        .collect();
    format!("{}\n", json!({ "ok": ok, "checks": list, "missing": missing, "notes": notes }))
}

fn in_words(checks: &[Check], missing: &[&str], notes: &[String]) -> String {
    let mut text = String::new();
    for Check { name, ok, found, remedy, optional } in checks {
        let mark = match (ok, optional) {
            (true, _) => "ok  ",
            (false, true) => "weak",
            (false, false) => "FAIL",
        };
        text.push_str(&format!("{mark}  {name:<12} {found}\n"));
        if !remedy.is_empty() {
            text.push_str(&format!("      {:<12} {remedy}\n", ""));
        }
    }
    for name in missing {
        text.push_str(&format!("weak  {name:<12} {}\n", meaning(name)));
    }
    for note in notes {
        text.push_str(&format!("note  {note}\n"));
    }
    text
}
