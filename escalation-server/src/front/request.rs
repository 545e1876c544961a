//! Doors for what runs inside a session: asking for more than it has, once or from now on.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use postern_shim::SOCKET_VARIABLE;
use postern_shim::client;
use postern_shim::wire::{self, Bytes, More, Plea};
use serde_json::json;

use super::shell::{become_program, environment};
use crate::session::{Wish, bytes};
use crate::sys::process;

/// What is asked for, for every later command.
#[derive(Debug, Args)]
pub(crate) struct RequestArguments {
    /// To read below it
    #[arg(long, value_name = "PATH", num_args = 1..)]
    read: Vec<PathBuf>,
    /// To read and write below it
    #[arg(long, value_name = "PATH", num_args = 1..)]
    write: Vec<PathBuf>,
    /// The network
    #[arg(long)]
    network: bool,
    /// A profile as JSON, in place of these; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["read", "write", "network"])]
    additional_permissions: Option<PathBuf>,
    /// Why, for whoever approves
    #[arg(long, value_name = "TEXT", default_value = "")]
    justification: String,
}

fn socket() -> Option<OsString> {
    std::env::var_os(SOCKET_VARIABLE)
}

/// Whether this process is inside a session, by the word of that session's server.
pub(crate) fn inside() -> bool {
    client::inside(socket().as_ref().map(|text| text.as_bytes()))
}

/// Asks the session for more for every later command of its turn.
///
/// # Errors
/// What is wrong with that. A denial ends the process, with its reason on stderr.
pub(crate) fn request(arguments: RequestArguments) -> Result<String, String> {
    if !inside() {
        return Err("request asks the session that it runs in, and this is none; start one with \
                    --permissions, --profile or --add-dir instead"
            .to_owned());
    }
    let more = match &arguments.additional_permissions {
        Some(path) => more(path)?,
        None => {
            let texts = |paths: &[PathBuf]| -> Result<Vec<String>, String> {
                let not_utf8 = |path: &PathBuf| format!("{}: the path is not UTF-8", path.display());
                paths
                    .iter()
                    .map(|path| path.to_str().map(str::to_owned).ok_or_else(|| not_utf8(path)))
                    .collect()
            };
            let profile = json!({
                "fileSystem": { "read": texts(&arguments.read)?, "write": texts(&arguments.write)? },
                "network": { "enabled": arguments.network },
            });
            More { profile: Bytes(profile.to_string().into_bytes()), base: bytes(current()?.as_os_str()) }
        }
    };
    let plea = Plea { more, justification: Bytes(arguments.justification.into_bytes()) };
    client::plead(socket().as_ref().map(|text| text.as_bytes()), &plea)
        .map_err(|errno| format!("ask the session: {}", io::Error::from_raw_os_error(errno)))?;
    Ok("granted: commands that the shell starts from now on have it, the shell itself and what runs already do not\n"
        .to_owned())
}

/// Runs a command in place of this process, as the session says that it runs with what it asks for.
/// Returns only if it cannot be executed: the exit status, 127 where there is no such file.
pub(crate) fn ask(wish: Wish, command: &[OsString]) -> Result<i32, String> {
    let wish = wire::Wish {
        more: wish.additional.as_deref().map(more).transpose()?,
        justification: Bytes(wish.justification.unwrap_or_default().into_bytes()),
        prefix: wish.prefix.into_iter().map(|word| Bytes(word.into_bytes())).collect(),
    };
    let name = command.first().ok_or("there is no command")?;
    let argv: Vec<Bytes> = command.iter().map(|word| bytes(word)).collect();
    let env = environment();
    // Ignored by Rust's runtime for its own sake, and told to the session.
    process::default_signal(libc::SIGPIPE);
    let mut failed = io::Error::from_raw_os_error(libc::ENOENT);
    for path in candidates(name) {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let asked = client::ask(socket().as_ref().map(|text| text.as_bytes()), &path, &argv, &env, &wish);
        let error = match asked {
            Ok(()) => become_program(&path, &argv, &env),
            Err(errno) => io::Error::from_raw_os_error(errno),
        };
        // As execvp(3): one that may not be executed is told of only where there is no other.
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => failed = error,
            _ => {
                failed = error;
                break;
            }
        }
    }
    let status = if failed.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 };
    say(name, &failed);
    Ok(status)
}

#[expect(clippy::print_stderr, reason = "a command that cannot be executed, as a shell says it")]
fn say(name: &OsStr, error: &io::Error) {
    eprintln!("postern: {}: {error}", name.display());
}

/// Where a word may lead as a command: a path as it stands, a name by `PATH`.
fn candidates(name: &OsStr) -> Vec<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).collect()
}

fn current() -> Result<PathBuf, String> {
    std::env::current_dir().map_err(|error| format!("find the working directory: {error}"))
}

/// A profile from a file, and the directory that its relative paths are below: the file's own.
fn more(path: &Path) -> Result<More, String> {
    let wrong = |error: io::Error| format!("{}: {error}", path.display());
    let (text, base) = if path == Path::new("-") {
        (io::read_to_string(io::stdin()).map_err(wrong)?, current()?)
    } else {
        let real = path.canonicalize().map_err(wrong)?;
        let base = real.parent().unwrap_or(Path::new("/")).to_path_buf();
        (std::fs::read_to_string(&real).map_err(wrong)?, base)
    };
    Ok(More { profile: Bytes(text.into_bytes()), base: bytes(base.as_os_str()) })
}
