//! The rule language: Starlark with `prefix_rule`, `host_executable` and `network_rule`.
#![expect(clippy::too_many_arguments, reason = "a rule's arguments are the language's own")]

use std::cell::RefCell;

use postern_shim::wire::Bytes;
use starlark::environment::{Globals, GlobalsBuilder, LibraryExtension, Module};
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::syntax::{AstModule, Dialect};
use starlark::values::list::UnpackList;
use starlark::values::none::{NoneOr, NoneType};
use starlark::values::{UnpackValue, Value};

use super::judge::{Subject, matches};
use super::rules::{NetworkRule, Policy, Rule};
use crate::flow::{Allowed, Execution, Verdict};

/// Why a rule file was refused, beginning with file:line:column where there is such a place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LoadError(String);

/// What the file being read has said so far. The builtins reach it through their thread, because
/// the evaluator's own way of carrying a value wants an `unsafe impl`.
#[derive(Default)]
struct Loading {
    home: String,
    policy: Policy,
    examples: Vec<Example>,
}

thread_local! {
    static LOADING: RefCell<Loading> = RefCell::default();
}

/// A command that a rule says of itself that it does or does not match.
struct Example {
    rule: Rule,
    words: Vec<String>,
    matches: bool,
}

/// Reads rule files, each a name for messages and its text. `home` is what `~` stands for.
///
/// # Errors
/// The first thing that is wrong; there is no such thing as a partly loaded policy.
pub(crate) fn load<'a>(
    home: &str,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Policy, LoadError> {
    let mut files = files.into_iter().peekable();
    if files.peek().is_none() {
        // The language alone takes longer to set up than all else that a session without rules reads.
        return Ok(Policy::default());
    }
    let globals: Globals = GlobalsBuilder::extended_by(&[LibraryExtension::Print]).with(builtins).build();
    LOADING.set(Loading { home: home.trim_end_matches('/').to_owned(), ..Loading::default() });
    for (name, text) in files {
        let dialect = Dialect { enable_load: false, enable_f_strings: true, ..Dialect::Extended };
        let ast = AstModule::parse(name, text.to_owned(), &dialect).map_err(|error| located(name, &error))?;
        Module::with_temp_heap(|module| {
            let mut evaluator = Evaluator::new(&module);
            evaluator.eval_module(ast, &globals).map(drop).map_err(|error| located(name, &error))
        })?;
        LOADING.with_borrow_mut(|loading| {
            std::mem::take(&mut loading.examples)
                .into_iter()
                .try_for_each(|example| check(&loading.policy, example))
        })?;
    }
    let policy = LOADING.take().policy;
    if let Some((first, second)) = policy.conflict() {
        return Err(LoadError(format!(
            "{}:{}:1: this rule and {}:{} allow the same command under different profiles, and neither is \
             narrower; give both the same `execution`",
            second.file, second.line, first.file, first.line
        )));
    }
    Ok(policy)
}

fn located(name: &str, error: &starlark::Error) -> LoadError {
    let message = error.without_diagnostic().to_string();
    let message = message.trim();
    LoadError(match error.span() {
        Some(span) => {
            let at = span.resolve_span().begin;
            format!("{}:{}:{}: {message}", span.filename(), at.line + 1, at.column + 1)
        }
        None => format!("{name}:1:1: {message}"),
    })
}

fn check(policy: &Policy, example: Example) -> Result<(), LoadError> {
    let Example { rule, words, matches: expected } = example;
    let argv: Vec<Bytes> = words.iter().map(|word| Bytes(word.clone().into_bytes())).collect();
    let Some(program) = words.first() else { return Ok(()) };
    // An example speaks of its own rule alone, with the host executables known so far.
    let mut alone = Policy::default();
    for name in rule.pattern.first().into_iter().flatten() {
        if let Some(paths) = policy.host(name) {
            alone.set_host(name.clone(), paths.to_vec());
        }
    }
    let (file, line) = (rule.file.clone(), rule.line);
    alone.add(rule);
    let found = !matches(
        &alone,
        &Subject {
            given: program.as_ref(),
            resolved: None,
            given_holds: true,
            agent_writable: false,
            argv: &argv,
            skill: None,
        },
    )
    .is_empty();
    let words = words.join(" ");
    match (found, expected) {
        (false, true) => {
            Err(LoadError(format!("{file}:{line}:1: the rule does not match its `match` example `{words}`")))
        }
        (true, false) => {
            Err(LoadError(format!("{file}:{line}:1: the rule matches its `not_match` example `{words}`")))
        }
        _ => Ok(()),
    }
}

/// A string, or a list of strings.
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    fn unpack(value: Value<'_>, what: &str) -> anyhow::Result<Self> {
        if let Some(text) = value.unpack_str() {
            return Ok(Self::One(text.to_owned()));
        }
        match UnpackList::<String>::unpack_value(value) {
            Ok(Some(list)) => Ok(Self::Many(list.items)),
            _ => anyhow::bail!("{what}: expected a string or a list of strings, got {value}"),
        }
    }
}

fn verdict(name: &str) -> anyhow::Result<Verdict> {
    Verdict::named(name).ok_or_else(|| {
        anyhow::anyhow!("decision: expected \"allow\", \"prompt\" or \"forbidden\", got \"{name}\"")
    })
}

fn pattern(items: Vec<Value<'_>>) -> anyhow::Result<Vec<Vec<String>>> {
    anyhow::ensure!(!items.is_empty(), "pattern: expected at least one word");
    items
        .into_iter()
        .map(|item| match Words::unpack(item, "pattern")? {
            Words::One(word) => Ok(vec![word]),
            Words::Many(words) if words.is_empty() => {
                anyhow::bail!("pattern: a list of alternatives is empty")
            }
            Words::Many(words) => Ok(words),
        })
        .collect()
}

fn examples(items: Vec<Value<'_>>, what: &str) -> anyhow::Result<Vec<Vec<String>>> {
    items
        .into_iter()
        .map(|item| {
            let words = match Words::unpack(item, what)? {
                Words::One(text) => split(&text)
                    .ok_or_else(|| anyhow::anyhow!("{what}: a quote in `{text}` is not closed"))?,
                Words::Many(words) => words,
            };
            anyhow::ensure!(!words.is_empty(), "{what}: an example is empty");
            Ok(words)
        })
        .collect()
}

/// Splits an example into words as a shell would: blanks, both quotes, backslash.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match (quote, next) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => {
                quote = Some(next);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(rest.next()?),
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[starlark_module]
fn builtins(builder: &mut GlobalsBuilder) {
    fn prefix_rule<'v>(
        pattern: UnpackList<Value<'v>>,
        #[starlark(require = named)] decision: Option<&str>,
        #[starlark(require = named)] r#match: Option<UnpackList<Value<'v>>>,
        #[starlark(require = named)] not_match: Option<UnpackList<Value<'v>>>,
        #[starlark(require = named, default = NoneOr::None)] justification: NoneOr<String>,
        #[starlark(require = named, default = NoneOr::None)] execution: NoneOr<&str>,
        #[starlark(require = named)] env_keep: Option<UnpackList<String>>,
        #[starlark(require = named)] audit: Option<bool>,
        #[starlark(require = named)] exact: Option<bool>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> anyhow::Result<NoneType> {
        let (file, line) = here(eval);
        let verdict = verdict(decision.unwrap_or("allow"))?;
        let justification = not_blank(justification)?;
        let execution = execution.into_option();
        anyhow::ensure!(
            execution.is_none_or(|name| !name.trim().is_empty()),
            "execution: expected \"unsandboxed\", \"turn_default\" or a profile's name, got a blank"
        );
        let env_keep = env_keep.map(|list| list.items).unwrap_or_default();
        anyhow::ensure!(
            verdict != Verdict::Forbidden || (execution.is_none() && env_keep.is_empty()),
            "execution and env_keep: expected only with decision \"allow\" or \"prompt\""
        );
        for name in &env_keep {
            anyhow::ensure!(
                !name.is_empty() && !name.contains(['=', '\0']),
                "env_keep: expected names of variables, got \"{name}\""
            );
        }
        let rule = Rule {
            pattern: self::pattern(pattern.items)?,
            verdict,
            justification,
            allowed: Allowed { execution: execution.map(Execution::parse), env_keep },
            audit: audit.unwrap_or(false),
            exact: exact.unwrap_or(false),
            anywhere: false,
            file,
            line,
        };
        for (items, matches, what) in [(r#match, true, "match"), (not_match, false, "not_match")] {
            for words in examples(items.map(|list| list.items).unwrap_or_default(), what)? {
                let example = Example { rule: rule.clone(), words, matches };
                LOADING.with_borrow_mut(|loading| loading.examples.push(example));
            }
        }
        LOADING.with_borrow_mut(|loading| loading.policy.add(rule));
        Ok(NoneType)
    }

    fn host_executable(name: String, paths: UnpackList<String>) -> anyhow::Result<NoneType> {
        anyhow::ensure!(
            !name.is_empty() && !name.contains('/'),
            "host_executable: expected a bare file name, got \"{name}\""
        );
        LOADING.with_borrow_mut(|loading| {
            let whole = |path: String| match path.strip_prefix("~/") {
                Some(rest) => format!("{}/{rest}", loading.home),
                None => path,
            };
            let paths: Vec<String> = paths.items.into_iter().map(whole).collect();
            let wrong = paths.iter().find(|path| {
                !path.starts_with('/') || path.rsplit('/').next() != Some(name.as_str())
            });
            if let Some(path) = wrong {
                anyhow::bail!(
                    "host_executable: expected a path that begins with / or ~/ and ends in /{name}, got \"{path}\""
                );
            }
            loading.policy.set_host(name, paths);
            Ok(NoneType)
        })
    }

    fn network_rule<'v>(
        host: &str,
        protocol: &str,
        decision: &str,
        #[starlark(require = named, default = NoneOr::None)] justification: NoneOr<String>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> anyhow::Result<NoneType> {
        let (file, line) = here(eval);
        let verdict = verdict(if decision == "deny" { "forbidden" } else { decision })?;
        let protocol = match protocol {
            "http" => "http",
            "https" | "https_connect" | "http-connect" => "https",
            "socks5_tcp" => "socks5_tcp",
            "socks5_udp" => "socks5_udp",
            other => {
                anyhow::bail!("protocol: expected http, https, socks5_tcp or socks5_udp, got \"{other}\"")
            }
        };
        let justification = not_blank(justification)?;
        let rule = NetworkRule { host: self::host(host)?, protocol, verdict, justification, file, line };
        LOADING.with_borrow_mut(|loading| loading.policy.add_network(rule));
        Ok(NoneType)
    }
}

/// A host as rules compare it.
fn host(text: &str) -> anyhow::Result<String> {
    let host = text.trim();
    let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':').or(rest.is_empty().then_some("0"))),
        // More than one colon is an address without brackets.
        None if host.matches(':').count() == 1 => {
            host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)))
        }
        None => (host, Some("0")),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let plain =
        |letter: char| !letter.is_whitespace() && !letter.is_control() && !"*/?#@[]\\".contains(letter);
    anyhow::ensure!(
        !host.is_empty() && host.chars().all(plain) && port.is_some_and(|port| port.parse::<u16>().is_ok()),
        "host: expected a name or an address without scheme, path or `*`, got \"{text}\""
    );
    Ok(host)
}

fn not_blank(justification: NoneOr<String>) -> anyhow::Result<Option<String>> {
    let justification = justification.into_option();
    anyhow::ensure!(
        justification.as_ref().is_none_or(|text| !text.trim().is_empty()),
        "justification: expected text, got a blank"
    );
    Ok(justification)
}

fn here(eval: &Evaluator<'_, '_, '_>) -> (String, usize) {
    eval.call_stack_top_location().map_or_else(
        || ("?".to_owned(), 1),
        |span| (span.filename().to_owned(), span.resolve_span().begin.line + 1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        load("/home/u", [("a.rules", text)]).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, place, expected) in [
            ("\nprefix_rule([)", "a.rules:2:", "expected"),
            ("prefix_rule([])", "a.rules:1:1:", "at least one word"),
            ("prefix_rule(['a'], decision = 'maybe')", "a.rules:1:1:", "expected \"allow\""),
            ("prefix_rule(['a'], decisions = 'allow')", "a.rules:1:", "decisions"),
            ("prefix_rule(['a'], match = ['b'])", "a.rules:1:1:", "does not match its `match` example `b`"),
            ("prefix_rule(['a'], not_match = ['a x'])", "a.rules:1:1:", "`not_match` example `a x`"),
            ("prefix_rule(['a'], exact = True, match = ['a b'])", "a.rules:1:1:", "does not match"),
            ("prefix_rule(['a', 1])", "a.rules:1:1:", "expected a string"),
            ("prefix_rule(['a'], justification = ' ')", "a.rules:1:1:", "blank"),
            ("host_executable('git', ['git'])", "a.rules:1:1:", "begins with /"),
            (
                "prefix_rule(['a'], decision = 'forbidden', execution = 'unsandboxed')",
                "a.rules:1:1:",
                "only with",
            ),
            ("network_rule('x', 'gopher', 'allow')", "a.rules:1:1:", "expected http, https"),
            ("network_rule('https://x', 'https', 'allow')", "a.rules:1:1:", "without scheme"),
            ("network_rule('*.x', 'https', 'allow')", "a.rules:1:1:", "without scheme"),
            ("network_rule('x:99999', 'https', 'allow')", "a.rules:1:1:", "without scheme"),
            ("network_rule('[::1', 'https', 'allow')", "a.rules:1:1:", "without scheme"),
            ("network_rule(' . ', 'https', 'allow')", "a.rules:1:1:", "without scheme"),
        ] {
            let message = error(text);
            assert!(message.starts_with(place), "{text}: {message}");
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn incomparable_executions_are_refused() {
        let text = "prefix_rule(['a'], execution = 'one')\nprefix_rule(['a', 'b'], execution = 'two')";
        assert!(error(text).starts_with("a.rules:2:1:"), "{}", error(text));
        assert!(
            load(
                "/home/u",
                [(
                    "a",
                    "prefix_rule(['a', 'c'], execution = 'one')\nprefix_rule(['a', 'b'], execution = 'two')"
                )]
            )
            .is_ok()
        );
    }

    #[test]
    fn hosts_are_compared_as_they_are_looked_up() {
        for (text, expected) in [
            ("Example.COM.", "example.com"),
            (" a.example:443 ", "a.example"),
            ("[::1]:80", "::1"),
            ("[FE80::1]", "fe80::1"),
            ("::1", "::1"),
        ] {
            let rule = format!("network_rule('{text}', 'http-connect', 'deny', justification = 'why')");
            let policy = load("/home/u", [("a", rule.as_str())]).unwrap();
            let rule = &policy.network()[0];
            assert_eq!((rule.host.as_str(), rule.protocol), (expected, "https"));
            assert_eq!((rule.verdict, rule.line), (Verdict::Forbidden, 1));
        }
    }

    #[test]
    fn a_tilde_is_the_home() {
        let policy = load("/home/u", [("a", "host_executable('x', ['~/bin/x', '/usr/bin/x'])")]).unwrap();
        assert_eq!(policy.host("x").unwrap(), ["/home/u/bin/x", "/usr/bin/x"]);
    }

    #[test]
    fn rules_can_be_computed() {
        let text = "prefix_rule(['gh', 'pr', ['view', 'list']], justification = None, match = ['gh pr view 1'])\n\
                    [prefix_rule([tool]) for tool in ['a', 'b']]";
        assert_eq!(load("/home/u", [("a", text)]).unwrap().rules().len(), 3);
    }

    #[test]
    fn examples_are_split_as_a_shell_would() {
        assert_eq!(split(r#"git commit -m "a b" '' \""#).unwrap(), ["git", "commit", "-m", "a b", "", "\""]);
        assert_eq!(split("git 'x"), None);
    }
}
