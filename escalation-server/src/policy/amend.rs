//! Rules that Postern writes for somebody.

use std::path::Path;

use postern_shim::wire::Bytes;

use super::heuristics::{hides, inner, runs_what_lies_there, starts_at, starts_others};
use crate::flow::{Execution, Verdict};

/// A rule about these first words, to be written to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Amendment {
    pub(crate) pattern: Vec<String>,
    pub(crate) verdict: Verdict,
    /// Whether it is about a command of just these words.
    pub(crate) exact: bool,
    pub(crate) execution: Option<Execution>,
    pub(crate) justification: Option<String>,
}

impl Amendment {
    /// The rule as one line of a rule file.
    ///
    /// # Errors
    /// Why it is not written: it would allow more than its words say.
    pub(crate) fn line(&self) -> Result<String, String> {
        if self.pattern.is_empty() {
            return Err("expected at least one word".to_owned());
        }
        if let Some(program) =
            self.pattern.first().filter(|word| word.contains('/') && !word.starts_with('/'))
        {
            return Err(format!(
                "{program}: expected a bare name or an absolute path: a rule knows no other"
            ));
        }
        if self.verdict == Verdict::Allow && is_bare(&self.pattern) {
            return Err(format!(
                "{} runs whatever it is told, so a rule that allows it would allow everything: name what it is to run",
                self.pattern.join(" ")
            ));
        }
        let words: Vec<String> = self.pattern.iter().map(|word| quoted(word)).collect();
        let mut line = format!("prefix_rule([{}], decision = \"{}\"", words.join(", "), self.verdict.name());
        if self.exact {
            line.push_str(", exact = True");
        }
        let execution = self.execution.as_ref().map(Execution::written);
        for (name, value) in [("execution", execution), ("justification", self.justification.as_deref())] {
            if let Some(value) = value {
                line.push_str(&format!(", {name} = {}", quoted(value)));
            }
        }
        Ok(line + ")")
    }
}

/// A string of the rule language.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            letter if letter.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// Whether words name a program that runs what it is told, and not what that is to be: an interpreter or
/// a launcher alone, or with an option, whose value may be anything.
fn is_bare(words: &[String]) -> bool {
    // Whatever comes after their words can be a command.
    const ALWAYS: [&str; 12] =
        ["ssh", "find", "parallel", "gdb", "lldb", "vi", "vim", "nvim", "ex", "emacs", "man", "su"];
    // Of interpreters, options whose value is the whole program.
    const INLINE: [&str; 3] = ["-c", "-e", "-r"];
    let Some((program, rest)) = words.split_first() else { return true };
    let name = program.rsplit('/').next().unwrap_or_default();
    let argv: Vec<Bytes> = words.iter().map(|word| Bytes(word.clone().into_bytes())).collect();
    let others: Vec<&str> = rest.iter().map(String::as_str).collect();
    if ALWAYS.contains(&name) || hides(&argv, Path::new(program)) {
        return true;
    }
    if starts_at(name, &others).is_some() {
        // `sudo -u root`, `timeout 5`: nothing is left that it would start.
        let started = inner(&argv, Path::new(program)).map_or(0, <[Bytes]>::len);
        let (own, started) = words.split_at(words.len() - started);
        // Not every option is known: what looks like a command may be a value.
        return started.is_empty() || own.iter().any(|word| word.starts_with('-')) || is_bare(started);
    }
    match others.as_slice() {
        [option, _, ..] if INLINE.contains(option) && starts_others(Path::new(program)) => false,
        [word, ..] if word.is_empty() || word.starts_with('+') || word.starts_with("/dev/") => {
            runs_what_lies_there(program)
        }
        [word, ..] if !word.starts_with('-') => false,
        _ => runs_what_lies_there(program),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load;

    fn amendment(line: &str) -> Amendment {
        Amendment {
            pattern: line.split(' ').map(str::to_owned).collect(),
            verdict: Verdict::Allow,
            exact: false,
            execution: Some(Execution::TurnDefault),
            justification: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for words in [vec!["git", "push"], vec!["a b", "\"'\\", "\n\t\u{1b}", "é\u{202e}"]] {
            let amendment = Amendment {
                pattern: words.iter().map(|word| (*word).to_owned()).collect(),
                verdict: Verdict::Prompt,
                exact: true,
                execution: Some(Execution::Unsandboxed),
                justification: Some("it's \"needed\"".to_owned()),
            };
            let policy = load("/home/u", [("a.rules", amendment.line().unwrap().as_str())]).unwrap();
            let rule = &policy.rules()[0];
            let pattern: Vec<_> = rule.pattern.iter().map(|word| word[0].as_str()).collect();
            assert_eq!((pattern, rule.verdict), (words, Verdict::Prompt));
            assert_eq!(rule.allowed.execution, amendment.execution);
            assert_eq!((&rule.justification, rule.exact), (&amendment.justification, true));
        }
    }

    #[test]
    fn what_runs_whatever_it_is_told_is_allowed_by_no_rule_of_ours() {
        for line in [
            "python3",
            "python3 -c",
            "/usr/bin/python3.11 -",
            "bash -lc",
            "/bin/zsh",
            "sh -c",
            "env",
            "env -i",
            "sudo",
            "sudo -u root",
            "sudo --role x",
            "env -a cat",
            "git -C .",
            "git -c x=y push",
            "python3 -W ignore",
            "bash -o pipefail",
            "env -S cat",
            "ssh host",
            "find .",
            "bash /dev/stdin",
            "bash +B",
            "strace",
            "setpriv",
            "nodejs -e",
            "busybox ash",
            "sudo -n bash -c",
            "nice -n 3",
            "timeout 5",
            "node -e",
            "perl -e",
            "ruby -e",
            "php -r",
            "lua",
            "git",
            "git -c",
            "make",
            "npm",
            "xargs",
            "xargs -n 1",
            "find",
            "busybox",
            "env A=b",
        ] {
            assert!(amendment(line).line().is_err(), "{line}");
        }
        for line in
            ["git push", "python3 build.py", "sudo apt-get update", "env A=b cat x", "npm test", "cat"]
        {
            assert!(amendment(line).line().is_ok(), "{line}");
        }
        let forbids = Amendment { verdict: Verdict::Forbidden, execution: None, ..amendment("python3") };
        assert_eq!(forbids.line().unwrap(), "prefix_rule([\"python3\"], decision = \"forbidden\")");
    }
}
