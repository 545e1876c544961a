//! The environment of a rerun, computed before it is judged fit to run.

use std::collections::BTreeMap;

use postern_shim::wire::Bytes;

use crate::flow::EnvironmentChanges;

/// Variables that say nothing but how to talk to people.
const SAFE: [&str; 9] =
    ["LANG", "LANGUAGE", "TERM", "COLORTERM", "COLUMNS", "LINES", "TZ", "NO_COLOR", "CLICOLOR"];

fn is_safe_name(name: &[u8]) -> bool {
    name.starts_with(b"LC_") || SAFE.iter().any(|safe| safe.as_bytes() == name)
}

/// A locale, a terminal or a time zone of the system's own: as a path it could name a catalogue, a
/// description or a zone that the asker wrote.
fn is_safe(name: &[u8], value: &[u8]) -> bool {
    let plain = |byte: &u8| {
        byte.is_ascii_alphanumeric() || b"_.@:+-,".contains(byte) || (*byte == b'/' && name == b"TZ")
    };
    let leads =
        value.starts_with(b"/") || value.starts_with(b":") || value.windows(2).any(|pair| pair == b"..");
    is_safe_name(name) && value.iter().all(plain) && !leads
}

pub(super) fn split(variable: &Bytes) -> (&[u8], &[u8]) {
    let bytes = variable.as_slice();
    let at = bytes.iter().position(|&byte| byte == b'=').unwrap_or(bytes.len());
    (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default())
}

/// The caller's variables that a command in a sandbox of its own starts from: what the shell was
/// given, and what a rule names besides. Only what runs as the user has the rest.
pub(super) fn within_a_sandbox(baseline: &[Bytes], given: &[Bytes], keep: &[String]) -> Vec<Bytes> {
    let named = baseline.iter().filter(|variable| {
        let name = split(variable).0;
        keep.iter().any(|kept| kept.as_bytes() == name) && !given.iter().any(|had| split(had).0 == name)
    });
    given.iter().chain(named).cloned().collect()
}

/// The environment of a command that gets more than its asker has: the session's baseline, with
/// what the asker changed only where it is safe or the rule keeps it. `given` is what the shell
/// started with. `changeable` tells of a directory whether the asker could put programs there;
/// `PATH` loses those.
pub(super) fn compute(
    baseline: &[Bytes],
    given: &[Bytes],
    asked: &[Bytes],
    keep: &[String],
    changeable: impl Fn(&[u8]) -> bool,
) -> (Vec<Bytes>, EnvironmentChanges) {
    let mut result: BTreeMap<&[u8], Vec<u8>> =
        baseline.iter().map(split).map(|(name, value)| (name, value.to_vec())).collect();
    let asked: BTreeMap<&[u8], &[u8]> = asked.iter().map(split).collect();
    let given: BTreeMap<&[u8], &[u8]> = given.iter().map(split).collect();
    let mut changes = EnvironmentChanges::default();
    for (name, value) in &asked {
        // What the shell itself sets says nothing of what anybody wants.
        if result.get(name).is_some_and(|had| had == value) || ours(name) || given.get(name) == Some(value) {
            continue;
        }
        let named = keep.iter().any(|kept| kept.as_bytes() == *name);
        if is_safe(name, value) || named {
            result.insert(name, value.to_vec());
            changes.kept.push(Bytes(name.to_vec()));
        } else {
            changes.dropped.push(Bytes(name.to_vec()));
        }
    }
    // What the asker unset comes back with the baseline, unless it was safe to unset. What it was not
    // given it has not unset.
    let unset = |name: &&[u8]| given.contains_key(name) && !asked.contains_key(name);
    let unset: Vec<_> = result.keys().copied().filter(unset).collect();
    for name in unset {
        if is_safe_name(name) || keep.iter().any(|kept| kept.as_bytes() == name) {
            result.remove(name);
        }
    }
    if let Some(path) = result.get_mut(&b"PATH"[..]) {
        let trusted = path
            .split(|&byte| byte == b':')
            .filter(|entry| entry.first() == Some(&b'/') && !changeable(entry));
        let joined = trusted.collect::<Vec<_>>().join(&b':');
        if joined != *path {
            changes.dropped.push(Bytes(b"PATH (directories that the sandbox can write)".to_vec()));
            // An empty one would mean the working directory.
            *path = if joined.is_empty() { b"/usr/bin:/bin".to_vec() } else { joined };
        }
    }
    // What the session was started with may name files that the asker could write since.
    let named = |name: &[u8], value: &[u8]| {
        let place = is_place(name);
        // Of a place anything but an absolute path is the working directory's, nothing too.
        let relative = |piece: &[u8]| piece.starts_with(b".") || place || piece.contains(&b'/');
        let look = |piece: &[u8]| if piece.starts_with(b"/") { changeable(piece) } else { relative(piece) };
        match place {
            true => !value.is_empty() && value.split(|&byte| byte == b':').any(look),
            false => value.split(|byte| b":=,; '\"".contains(byte)).any(look),
        }
    };
    let kept = |name: &[u8]| keep.iter().any(|kept| kept.as_bytes() == name);
    let hooks: Vec<_> = result
        .iter()
        .filter(|(name, value)| is_hook(name) && !kept(name) && named(name, value))
        .map(|(name, _)| *name)
        .collect();
    for name in hooks {
        result.remove(name);
        changes.dropped.push(Bytes(name.to_vec()));
    }
    let list = result.into_iter().map(|(name, value)| Bytes([name, b"=", &value].concat())).collect();
    (list, changes)
}

/// Set by us or by every zsh for its commands.
fn ours(name: &[u8]) -> bool {
    matches!(name, b"_" | b"SHLVL" | b"PWD" | b"OLDPWD" | b"TMPDIR" | b"LOGNAME")
        || name.starts_with(b"POSTERN_")
}

/// Whether a variable is a file that programs run, or directories in which they look for some.
fn is_place(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 19] = [
        b"BASH_ENV",
        b"ENV",
        b"ZDOTDIR",
        b"FPATH",
        b"CDPATH",
        b"PYTHONPATH",
        b"PYTHONSTARTUP",
        b"PYTHONHOME",
        b"PERL5LIB",
        b"PERLLIB",
        b"RUBYLIB",
        b"NODE_PATH",
        b"CLASSPATH",
        b"LD_LIBRARY_PATH",
        b"LOCPATH",
        b"GCONV_PATH",
        b"GIT_DIR",
        b"GIT_EXEC_PATH",
        b"MAKEFILES",
    ];
    NAMES.contains(&name)
}

/// Whether programs read code, or where code lies, from a variable.
fn is_hook(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 10] =
        [b"LD_", b"PYTHON", b"PERL", b"RUBY", b"GEM_", b"NODE_", b"GIT_", b"LUA_", b"LESS", b"TERMINFO"];
    const NAMES: [&[u8]; 21] = [
        b"BASH_ENV",
        b"ENV",
        b"ZDOTDIR",
        b"FPATH",
        b"CDPATH",
        b"PAGER",
        b"EDITOR",
        b"VISUAL",
        b"BROWSER",
        b"SSH_ASKPASS",
        b"MAKEFLAGS",
        b"MAKEFILES",
        b"LOCPATH",
        b"GCONV_PATH",
        b"JAVA_TOOL_OPTIONS",
        b"_JAVA_OPTIONS",
        b"CLASSPATH",
        b"PHPRC",
        b"PHP_INI_SCAN_DIR",
        b"TCLLIBPATH",
        b"R_PROFILE_USER",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(variables: &[&str]) -> Vec<Bytes> {
        variables.iter().map(|variable| Bytes(variable.as_bytes().to_vec())).collect()
    }

    fn run(asked: &[&str], keep: &[&str]) -> (Vec<String>, EnvironmentChanges) {
        let baseline =
            list(&["HOME=/home/u", "PATH=/usr/bin:/proj/bin:rel:/bin", "GIT_DIR=/home/u/.git", "LANG=C"]);
        let keep: Vec<String> = keep.iter().map(|name| (*name).to_owned()).collect();
        let changeable = |path: &[u8]| path.starts_with(b"/proj");
        let (env, changes) = compute(&baseline, &baseline, &list(asked), &keep, changeable);
        (
            env.iter().map(|variable| String::from_utf8_lossy(variable.as_slice()).into_owned()).collect(),
            changes,
        )
    }

    #[test]
    fn what_the_asker_set_does_not_arrive() {
        let (env, changes) =
            run(&["HOME=/evil", "PATH=/evil", "LD_PRELOAD=/evil.so", "BASH_ENV=x", "LANG=de"], &[]);
        assert_eq!(env, ["GIT_DIR=/home/u/.git", "HOME=/home/u", "LANG=de", "PATH=/usr/bin:/bin"]);
        assert_eq!(changes.kept, list(&["LANG"]));
        assert!(changes.dropped.contains(&Bytes(b"LD_PRELOAD".to_vec())));
    }

    #[test]
    fn a_rule_may_keep_a_variable() {
        let (env, _) = run(&["CARGO_HOME=/c", "LD_PRELOAD=x"], &["CARGO_HOME"]);
        assert!(env.contains(&"CARGO_HOME=/c".to_owned()));
        assert!(!env.iter().any(|variable| variable.starts_with("LD_")));
    }

    #[test]
    fn what_the_shell_was_not_given_arrives_where_a_command_is_the_user_or_a_rule_names_it() {
        let (baseline, given) = (list(&["HOME=/h", "GH_TOKEN=x", "A_KEY=y"]), list(&["HOME=/h"]));
        let keep = ["GH_TOKEN".to_owned()];
        let run = |baseline: &[Bytes]| compute(baseline, &given, &given, &keep, |_| false).0;
        assert_eq!(run(&baseline), list(&["A_KEY=y", "GH_TOKEN=x", "HOME=/h"]));
        assert_eq!(run(&within_a_sandbox(&baseline, &given, &keep)), list(&["GH_TOKEN=x", "HOME=/h"]));
        assert_eq!(within_a_sandbox(&baseline, &given, &[]), given);
    }

    #[test]
    fn what_names_code_that_the_sandbox_can_write_does_not_come_from_the_session_either() {
        let baseline = [
            "BASH_ENV=/proj/rc",
            "EDITOR=/usr/bin/vi",
            "GIT_SSH_COMMAND=ssh -F /proj/config",
            "HOME=/proj",
            "LD_PRELOAD=/usr/lib/x.so:/proj/y.so",
            "PERL5LIB=lib",
            "PYTHONPATH=.:/usr/lib",
            "PYTHONSTARTUP=/home/u/rc",
            "PYTHONUNBUFFERED=1",
            "RUBYLIB=:/usr/lib",
        ];
        let changeable = |path: &[u8]| path.starts_with(b"/proj");
        let run = |keep: &[String]| compute(&list(&baseline), &[], &[], keep, changeable);
        let (env, changes) = run(&[]);
        let arrives = ["EDITOR=/usr/bin/vi", "HOME=/proj", "PYTHONSTARTUP=/home/u/rc", "PYTHONUNBUFFERED=1"];
        assert_eq!(env, list(&arrives));
        let dropped = ["BASH_ENV", "GIT_SSH_COMMAND", "LD_PRELOAD", "PERL5LIB", "PYTHONPATH", "RUBYLIB"];
        assert_eq!(changes.dropped, list(&dropped));
        assert!(run(&["PYTHONPATH".to_owned()]).0.contains(&Bytes(b"PYTHONPATH=.:/usr/lib".to_vec())));
    }

    #[test]
    fn directories_that_the_sandbox_can_write_leave_the_path() {
        assert!(run(&[], &[]).0.contains(&"PATH=/usr/bin:/bin".to_owned()));
    }
}
