//! `postern doctor`: whether a session would start here, how strong it would be, and what to do.

use serde_json::json;

use crate::runner::FrontReport;
use crate::sandbox::Abilities;
use crate::session::{Directories, Options, Running, bytes, launch, prepare};
use crate::sys::process;

/// One thing that was looked at.
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
}

/// What `missing` in records and here means.
const MISSING: [(&str, &str); 2] = [
    (
        "signal_and_abstract_socket_scope",
        "Landlock ABI 6 (Linux 6.12): until then the PID and network namespaces alone",
    ),
    (
        "device_ioctls",
        "Landlock ABI 5 (Linux 6.10): until then ioctls on the devices in /dev are not restricted",
    ),
];

/// Looks, starts a sandbox for real, and reports: the text, and whether a session would start.
pub(crate) fn doctor(as_json: bool) -> (String, bool) {
    let abilities = Abilities::probe();
    let mut checks = vec![
        Check {
            name: "landlock",
            ok: abilities.landlock_abi > 0,
            found: match abilities.landlock_abi {
                0 => "not to be had: boot Linux 5.13 or later with lsm=landlock,…".to_owned(),
                abi => format!("ABI {abi}"),
            },
        },
        Check {
            name: "user namespaces",
            ok: abilities.user_namespaces || abilities.root,
            found: match (abilities.user_namespaces, abilities.root) {
                (true, _) => "to be had".to_owned(),
                (false, true) => "not to be had, and not needed by root".to_owned(),
                (false, false) => format!("not to be had: {}", abilities.user_namespaces_hint),
            },
        },
    ];
    let mut missing = Vec::new();
    let mut notes = Vec::new();
    match Directories::find() {
        Ok(directories) => {
            let zsh = directories.zsh();
            let found = if zsh.exists() {
                zsh.display().to_string()
            } else {
                format!("missing at {}: run `make`", zsh.display())
            };
            checks.push(Check { name: "patched zsh", ok: zsh.exists(), found });
        }
        Err(what) => checks.push(Check { name: "directories", ok: false, found: what }),
    }
    // The proof is a session that does something.
    let arguments = ["zsh", "-fc", "/bin/true"].map(|word| bytes(word.as_ref())).to_vec();
    match prepare(&Options::default()) {
        Err(error) => checks.push(Check { name: "session", ok: false, found: error.to_string() }),
        Ok(prepared) => {
            let strength =
                prepared.plan.as_ref().map_or_else(|| "none".to_owned(), crate::sandbox::Plan::strength);
            missing = prepared.plan.as_ref().map(|plan| plan.missing.clone()).unwrap_or_default();
            notes.clone_from(&prepared.notes);
            let profile = prepared.turn.name.clone();
            let ran = launch(prepared, arguments)
                .map_err(|error| error.to_string())
                .and_then(|running| finish(&running));
            let found = match &ran {
                Ok(()) => format!("started under {profile}: {strength}"),
                Err(what) => what.clone(),
            };
            checks.push(Check { name: "session", ok: ran.is_ok(), found });
        }
    }
    let ok = checks.iter().all(|check| check.ok);
    if as_json {
        let list: Vec<_> = checks
            .iter()
            .map(|check| json!({ "name": check.name, "ok": check.ok, "found": check.found }))
            .collect();
        return (
            format!("{}\n", json!({ "ok": ok, "checks": list, "missing": missing, "notes": notes })),
            ok,
        );
    }
    let mut text: String = checks
        .iter()
        .map(|check| {
            format!("{}  {:<16} {}\n", if check.ok { "ok  " } else { "FAIL" }, check.name, check.found)
        })
        .collect();
    for name in missing {
        let meaning = MISSING.iter().find(|(known, _)| *known == name).map_or("", |(_, meaning)| meaning);
        text.push_str(&format!("note  {name:<16} {meaning}\n"));
    }
    for note in notes {
        text.push_str(&format!("note  {note}\n"));
    }
    (text, ok)
}

fn finish(running: &Running) -> Result<(), String> {
    loop {
        let mut polls = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&running.spawner),
            nix::poll::PollFlags::POLLIN,
        )];
        let _interrupted = nix::poll::poll(&mut polls, nix::poll::PollTimeout::from(20_000u16));
        let server = running.server.receive::<FrontReport>();
        match running.spawner.receive::<FrontReport>() {
            Ok(Some((FrontReport::Ended { status }, _))) => {
                return match process::change(status) {
                    Some(process::Change::Exited(0)) => Ok(()),
                    other => Err(format!("a command in the sandbox failed: {other:?}")),
                };
            }
            Ok(Some((FrontReport::Failed { what }, _))) => {
                return Err(match server {
                    Ok(Some((FrontReport::Failed { what }, _))) => what,
                    _ => what,
                });
            }
            Ok(Some((FrontReport::Stopped, _))) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err("the session did not start in time".to_owned());
            }
            Ok(None) | Err(_) => return Err("the session's spawner died".to_owned()),
        }
    }
}
