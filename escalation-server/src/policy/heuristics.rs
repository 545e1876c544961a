//! What can be said of a command that no rule is about.

use std::path::{Path, PathBuf};

use postern_shim::wire::Bytes;

use super::judge::{Subject, is_called};

/// How a command looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It only reads, or prints.
    Harmless,
    Unknown,
    /// It removes without a question.
    Dangerous,
}

/// How deep programs that start others are looked through.
pub(super) const MOST_WRAPPERS: usize = 8;

pub(super) fn look(subject: &Subject<'_>) -> Look {
    // A name that the sandbox could have made up says nothing good.
    let called = is_called(subject.argv, subject.given);
    let name = subject.resolved.filter(|_| subject.given_holds && !subject.agent_writable && called);
    let words: Vec<&str> =
        subject.argv.iter().map(|word| std::str::from_utf8(word.as_slice()).unwrap_or("\u{fffd}")).collect();
    let given = subject.given.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let inner = dangerous(given, words.get(1..).unwrap_or_default(), MOST_WRAPPERS);
    match name {
        _ if inner => Look::Dangerous,
        Some(_) if harmless(given, words.get(1..).unwrap_or_default()) => Look::Harmless,
        _ => Look::Unknown,
    }
}

/// The command that a wrapper would start; none if it is none, or cannot be found among its options.
pub(super) fn inner<'a>(argv: &'a [Bytes], given: &Path) -> Option<&'a [Bytes]> {
    let name = given.file_name()?.to_str()?;
    let words: Vec<&str> =
        argv.iter().skip(1).map(|word| std::str::from_utf8(word.as_slice()).unwrap_or("\u{fffd}")).collect();
    let at = starts_at(name, &words)?;
    argv.get(1 + at..).filter(|rest| !rest.is_empty())
}

/// Whether what a command would start cannot be told from its arguments: too deep, or all in one word.
pub(super) fn hides(argv: &[Bytes], given: &Path) -> bool {
    let split = |word: &Bytes| {
        let word = word.as_slice();
        let short = word.starts_with(b"-") && !word.starts_with(b"--") && word.contains(&b'S');
        // Long options may be cut.
        short || word.starts_with(b"--s")
    };
    let (mut argv, mut given) = (argv, given.to_path_buf());
    for _ in 0..MOST_WRAPPERS {
        let rest = inner(argv, &given);
        let own = argv.len() - rest.map_or(0, <[Bytes]>::len);
        if given.ends_with("env") && argv.iter().take(own).any(split) {
            return true;
        }
        let Some(rest) = rest else { return false };
        argv = rest;
        let program = argv.first().and_then(|word| std::str::from_utf8(word.as_slice()).ok());
        given = PathBuf::from(program.unwrap_or_default());
    }
    inner(argv, &given).is_some()
}

/// Where, among a wrapper's arguments, its command starts.
pub(super) fn starts_at(name: &str, words: &[&str]) -> Option<usize> {
    // Options that take the next word, if their value does not stick to them.
    let (valued, positional): (&[&str], usize) = match name {
        "env" => (&["-u", "--unset", "-C", "--chdir"], 0),
        "nice" => (&["-n", "--adjustment"], 0),
        "timeout" => (&["-s", "--signal", "-k", "--kill-after"], 1),
        "xargs" => (
            &[
                "-I",
                "-n",
                "--max-args",
                "-L",
                "--max-lines",
                "-P",
                "--max-procs",
                "-s",
                "--max-chars",
                "-a",
                "--arg-file",
                "-d",
                "--delimiter",
                "-E",
            ],
            0,
        ),
        "sudo" | "doas" => (
            &[
                "-u",
                "--user",
                "-g",
                "--group",
                "-h",
                "--host",
                "-p",
                "--prompt",
                "-C",
                "--close-from",
                "-D",
                "--chdir",
                "-R",
                "--chroot",
                "-T",
                "-r",
                "-t",
                "-U",
            ],
            0,
        ),
        "stdbuf" => (&["-i", "--input", "-o", "--output", "-e", "--error"], 0),
        "ionice" => (&["-c", "--class", "-n", "--classdata"], 0),
        "chrt" => (&["-T", "--sched-runtime", "-P", "--sched-period", "-D", "--sched-deadline"], 1),
        "time" => (&["-f", "--format", "-o", "--output"], 0),
        "nohup" | "setsid" | "busybox" | "toybox" => (&[], 0),
        _ => return None,
    };
    let assigns = |word: &str| matches!(name, "env" | "sudo") && !word.starts_with('-') && word.contains('=');
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if *word == "--" {
            at += 1;
            break;
        }
        if valued.contains(word) {
            at += 2;
        } else if word.starts_with('-') && word.len() > 1 || *word == "-" || assigns(word) {
            at += 1;
        } else {
            break;
        }
    }
    Some(at + positional + words.get(at..)?.iter().take_while(|word| assigns(word)).count())
}

fn dangerous(name: &str, words: &[&str], wrappers: usize) -> bool {
    if name == "rm" {
        let mut force = false;
        for word in words.iter().take_while(|word| **word != "--") {
            let short = word.starts_with('-') && !word.starts_with("--");
            force |= short && word.contains('f');
            // Long options may be cut.
            force |= word.len() > 3 && "--force".starts_with(word);
        }
        return force;
    }
    if let Some(at) = starts_at(name, words) {
        // Too deep to be looked through is nothing good.
        let Some(wrappers) = wrappers.checked_sub(1) else { return true };
        let rest = words.get(at..).unwrap_or_default();
        // Not every option is known: wherever the command may start.
        let starts = rest.first().into_iter().chain(words.iter().filter(|word| base(word) == "rm")).copied();
        return starts.take(64).any(|start| {
            let from = words.iter().position(|word| std::ptr::eq(*word, start)).unwrap_or_default();
            dangerous(base(start), words.get(from + 1..).unwrap_or_default(), wrappers)
        });
    }
    if matches!(name, "sh" | "bash" | "dash" | "zsh" | "ksh")
        && let Some(script) = script(words)
    {
        return commands(script).iter().any(|command| {
            let rest = command.get(1..).unwrap_or_default();
            wrappers
                .checked_sub(1)
                .is_none_or(|left| dangerous(base(command.first().copied().unwrap_or_default()), rest, left))
        });
    }
    false
}

fn base(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// The argument of a shell's `-c`.
fn script<'a>(words: &[&'a str]) -> Option<&'a str> {
    let at = words
        .iter()
        .position(|word| word.starts_with('-') && !word.starts_with("--") && word.contains('c'))?;
    words.get(at + 1).copied()
}

/// The words of each command of a script, roughly: quotes do not hold anything together, so that more
/// is found than there is, not less.
fn commands(script: &str) -> Vec<Vec<&str>> {
    let between =
        |letter: char| matches!(letter, ';' | '&' | '|' | '\n' | '(' | ')' | '`' | '{' | '}' | '"' | '\'');
    let keyword = |word: &&str| {
        matches!(
            *word,
            "then" | "else" | "do" | "if" | "while" | "until" | "!" | "exec" | "command" | "builtin"
        )
    };
    let pieces =
        script.split(between).map(|piece| piece.split_whitespace().skip_while(keyword).collect::<Vec<_>>());
    pieces.filter(|words| !words.is_empty()).collect()
}

/// Whether a program runs what its input, its arguments or its directory says.
pub(crate) fn runs_what_lies_there(program: &str) -> bool {
    const BY_CONFIGURATION: [&str; 61] = [
        "ansible",
        "ant",
        "at",
        "bazel",
        "bundle",
        "cabal",
        "ccache",
        "cmake",
        "composer",
        "crontab",
        "debugfs",
        "docker",
        "dotnet",
        "dune",
        "ed",
        "emacs",
        "ex",
        "gcc",
        "gdb",
        "gem",
        "git",
        "gradle",
        "helm",
        "hg",
        "just",
        "kubectl",
        "less",
        "lldb",
        "man",
        "meson",
        "mix",
        "mvn",
        "nc",
        "ncat",
        "nix",
        "nvim",
        "pip",
        "pnpm",
        "podman",
        "poetry",
        "pytest",
        "rake",
        "rsync",
        "scons",
        "scp",
        "sed",
        "sftp",
        "socat",
        "sqlite",
        "stack",
        "svn",
        "swift",
        "tar",
        "task",
        "terraform",
        "tox",
        "uv",
        "vi",
        "view",
        "vim",
        "yarn",
    ];
    let path = Path::new(program);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    BY_CONFIGURATION.contains(&without_version(name)) || starts_others(path)
}

/// Programs that run whatever somebody tells them: interpreters, what starts another program, what
/// builds by instructions from a directory.
pub(super) fn starts_others(program: &Path) -> bool {
    const NAMES: [&str; 77] = [
        "sh",
        "bash",
        "dash",
        "zsh",
        "ksh",
        "fish",
        "csh",
        "tcsh",
        "python",
        "pypy",
        "py",
        "perl",
        "ruby",
        "node",
        "deno",
        "bun",
        "php",
        "lua",
        "luajit",
        "tclsh",
        "pwsh",
        "powershell",
        "osascript",
        "awk",
        "gawk",
        "mawk",
        "su",
        "find",
        "parallel",
        "make",
        "gmake",
        "ninja",
        "npm",
        "npx",
        "cargo",
        "go",
        "ssh",
        "rbash",
        "ash",
        "mksh",
        "yash",
        "posternsh",
        "nodejs",
        "ts-node",
        "tsx",
        "bunx",
        "uvx",
        "pipx",
        "nawk",
        "original-awk",
        "setpriv",
        "unshare",
        "nsenter",
        "chroot",
        "runuser",
        "gosu",
        "pkexec",
        "flock",
        "script",
        "strace",
        "ltrace",
        "watch",
        "taskset",
        "prlimit",
        "systemd-run",
        "tmux",
        "screen",
        "expect",
        "start-stop-daemon",
        "entr",
        "rlwrap",
        "fakeroot",
        "xvfb-run",
        "java",
        "R",
        "Rscript",
        "julia",
    ];
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    NAMES.contains(&without_version(name)) || starts_at(name, &[]).is_some()
}

/// python3.11 is python.
fn without_version(name: &str) -> &str {
    name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.' || letter == '-')
}

/// Programs that read or print whatever their arguments.
const READERS: [&str; 24] = [
    "cat", "cut", "echo", "expr", "false", "grep", "head", "id", "ls", "nl", "paste", "pwd", "rev", "seq",
    "stat", "tail", "tr", "true", "uname", "wc", "which", "whoami", "numfmt", "tac",
];

fn harmless(name: &str, words: &[&str]) -> bool {
    let none = |options: &[&str]| {
        !words.iter().any(|word| {
            options.iter().any(|option| {
                *word == *option
                    || (option.starts_with("--")
                        && word
                            .split('=')
                            .next()
                            .is_some_and(|long| long.len() > 2 && option.starts_with(long)))
            })
        })
    };
    match name {
        name if READERS.contains(&name) => true,
        // The second file is written.
        "uniq" => words.iter().filter(|word| !word.starts_with('-')).count() <= 1,
        "base64" => !words.iter().any(|word| word.starts_with("-o") || word.starts_with("--o")),
        "find" => none(&[
            "-exec", "-execdir", "-ok", "-okdir", "-delete", "-fls", "-fprint", "-fprint0", "-fprintf",
        ]),
        "rg" => {
            none(&["--pre", "--hostname-bin", "--search-zip", "-z"])
                && !words
                    .iter()
                    .any(|word| word.starts_with('-') && !word.starts_with("--") && word.contains('z'))
        }
        "sed" => match words {
            ["-n", range] | ["-n", range, _] => {
                is_range(range) && words.get(2).is_none_or(|file| !file.starts_with('-'))
            }
            _ => false,
        },
        "git" => git(words),
        _ => false,
    }
}

/// `Np` or `N,Mp`.
fn is_range(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let Some(range) = text.strip_suffix('p') else { return false };
    let mut parts = range.split(',');
    parts.clone().count() <= 2 && parts.all(digits)
}

/// What git only reads by. Repositories can name programs for some of it, which is why this counts
/// inside the sandbox alone.
fn git(words: &[&str]) -> bool {
    let Some((verb, rest)) = words.split_first() else { return false };
    let writes = ["--output", "--ext-diff", "--textconv", "--exec", "--paginate", "-o"];
    let plain = rest.iter().all(|word| {
        !writes.iter().any(|option| {
            *word == *option
                || (option.starts_with("--")
                    && word.split('=').next().is_some_and(|long| long.len() > 2 && option.starts_with(long)))
        })
    });
    let listing =
        ["-a", "-r", "-v", "-vv", "--all", "--remotes", "--verbose", "--list", "-l", "--show-current"];
    match *verb {
        "status" | "log" | "diff" | "show" => plain,
        "branch" => rest.iter().all(|word| listing.contains(word)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, line: &str, trusted: bool) -> Look {
        let argv: Vec<Bytes> = line
            .split('\u{1f}')
            .flat_map(|part| {
                // One argument between the marks, words elsewhere.
                if part.starts_with('<') {
                    vec![part.trim_start_matches('<')]
                } else {
                    part.split_whitespace().collect()
                }
            })
            .map(|word| Bytes(word.as_bytes().to_vec()))
            .collect();
        let path = Path::new(path);
        look(&Subject {
            given: path,
            resolved: Some(path),
            given_holds: trusted,
            agent_writable: !trusted,
            argv: &argv,
            skill: None,
        })
    }

    #[test]
    fn what_removes_without_a_question_is_found_however_it_is_written() {
        for line in [
            "rm -f x",
            "rm -rf x",
            "rm -fr x",
            "rm -r -f x",
            "rm x -f",
            "rm --force x",
            "rm --recursive --forc x",
            "rm -Rfv x",
            "env rm -rf x",
            "env -i A=b rm -f x",
            "env -u A -C / rm -f x",
            "nice -n 5 rm -rf x",
            "nice -5 rm -rf x",
            "timeout 5 rm -rf x",
            "timeout -s KILL 5 rm -rf x",
            "timeout --signal=KILL 5 rm -rf x",
            "xargs rm -rf",
            "xargs -0 -n 1 rm -f",
            "sudo rm -rf x",
            "sudo -u root env nice rm -rf x",
            "nohup rm -rf x",
            "setsid -w rm -rf x",
            "stdbuf -oL rm -rf x",
            "stdbuf -o L rm -rf x",
            "busybox rm -rf x",
            "sudo --unknown value rm -rf x",
            "env /bin/rm -rf x",
            "bash -c \u{1f}<cd x && rm -rf y",
            "sh -ec \u{1f}<true; rm -fr y",
            "bash -lc \u{1f}<if a; then rm -f b; fi",
            "env bash -c \u{1f}<echo $(rm -rf x)",
        ] {
            let path = format!("/usr/bin/{}", line.split(' ').next().unwrap());
            assert_eq!(of(&path, line, true), Look::Dangerous, "{line}");
            // By whatever path.
            assert_eq!(of(&path.replace("/usr", "/opt"), line, false), Look::Dangerous, "{line}");
        }
        let deep = format!("{} true", "env ".repeat(20));
        assert_eq!(of("/usr/bin/env", deep.trim(), true), Look::Dangerous);
        for line in [
            "rm x",
            "rm -r x",
            "rm -- -f",
            "rm --foo",
            "git rm -f x",
            "echo rm -rf",
            "env ls",
            "bash -c \u{1f}<echo rmdir -f",
        ] {
            let path = format!("/usr/bin/{}", line.split(' ').next().unwrap());
            assert_ne!(of(&path, line, true), Look::Dangerous, "{line}");
        }
    }

    #[test]
    fn what_only_reads_is_harmless_where_its_name_can_be_believed() {
        for line in [
            "ls -la",
            "cat x",
            "git status",
            "git log --oneline",
            "git diff",
            "git branch -a",
            "find . -name x",
            "rg x",
            "sed -n 3p x",
            "sed -n 1,9p",
            "uniq x",
            "base64 x",
            "wc -l",
        ] {
            let path = format!("/usr/bin/{}", line.split(' ').next().unwrap());
            assert_eq!(of(&path, line, true), Look::Harmless, "{line}");
            assert_eq!(of(&path, line, false), Look::Unknown, "{line}");
        }
        for line in [
            "git -c core.pager=x log",
            "git log --output=x",
            "git log --outp=x",
            "git diff --ext-diff",
            "git branch new",
            "git push",
            "git --git-dir=x status",
            "git --paginate log",
            "find . -delete",
            "find . -exec x",
            "rg --pre x y",
            "rg --pre=x y",
            "rg -z x",
            "rg -iz x",
            "sed -i s/a/b/ x",
            "sed -n 3w x",
            "sed -n 3p -i",
            "uniq x y",
            "base64 -o x",
            "make",
            "env ls",
        ] {
            let path = format!("/usr/bin/{}", line.split(' ').next().unwrap());
            assert_eq!(of(&path, line, true), Look::Unknown, "{line}");
        }
        assert_eq!(of("/usr/bin/cat", "rm x", true), Look::Unknown, "it calls itself something else");
    }
}
