//! From a command to a judgement: the same rules and the same request, the same answer.

use std::borrow::Cow;
use std::path::Path;

use postern_shim::wire::Bytes;

use super::heuristics::{Look, MOST_WRAPPERS, hides, inner, look};
use super::rules::{Policy, Rule, width};
use super::stance::{ApprovalPolicy, Stance};
use crate::flow::{Allowed, Execution, Judgement, Request, RuleSource, Skill, Source, Verdict};

/// A command, as far as rules see it.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    /// The program as it was asked for: absolute, or a bare word where only a word is known.
    pub(crate) given: &'a Path,
    /// The file's own path, if it is known.
    pub(crate) resolved: Option<&'a Path>,
    /// Whether `given` leads to the file past nothing that the sandbox could change.
    pub(crate) given_holds: bool,
    /// Whether the sandbox could change the file.
    pub(crate) agent_writable: bool,
    /// The argument vector with `argv[0]`, by which programs of many names decide what they are.
    pub(crate) argv: &'a [Bytes],
    /// The skill whose script it is.
    pub(crate) skill: Option<&'a Skill>,
}

impl<'a> Subject<'a> {
    /// A request; `given` is its path, absolute.
    pub(crate) fn of(request: &'a Request, given: &'a Path) -> Self {
        let exe = request.attested.exe.as_ref();
        Self {
            given,
            resolved: exe.map(|exe| exe.path.as_path()),
            given_holds: request.path_holds,
            agent_writable: exe.is_some_and(|exe| exe.agent_writable),
            argv: &request.argv,
            skill: request.skill.as_ref(),
        }
    }
}

/// A rule that matches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Match<'a> {
    pub(crate) rule: &'a Rule,
    /// The rule's first word.
    program: &'a str,
    /// The path that a rule's bare name stood for.
    pub(crate) resolved_program: Option<&'a Path>,
    /// The command that it matches: the subject's, or one that the subject would start.
    argv: &'a [Bytes],
}

impl Match<'_> {
    /// The words that matched, as the rule has them.
    pub(crate) fn prefix(&self) -> Vec<String> {
        let rest = self.argv.iter().skip(1).take(self.rule.pattern.len() - 1);
        std::iter::once(self.program.to_owned())
            .chain(rest.map(|word| String::from_utf8_lossy(word.as_slice()).into_owned()))
            .collect()
    }
}

/// Judges a command: the strictest rule wins, of allow rules the narrowest. `default` is what an
/// allow rule without an execution gives; `stance`, what a command meets that no rule matches.
pub(crate) fn judge(
    policy: &Policy,
    subject: &Subject<'_>,
    default: &Execution,
    stance: &Stance,
) -> Judgement {
    let matches = matches(policy, subject);
    let strictest = matches.iter().map(|hit| hit.rule.verdict).max();
    if let Some(skill) = subject.skill.filter(|_| strictest != Some(Verdict::Forbidden)) {
        return Judgement {
            verdict: if skill.declares() { Verdict::Prompt } else { Verdict::Allow },
            source: Source::Skill(skill.clone()),
            allowed: Allowed { execution: Some(skill.execution.clone()), env_keep: Vec::new() },
            matched: Vec::new(),
            audit: matches.iter().any(|hit| hit.rule.audit),
        };
    }
    let given = |rule: &Rule| rule.allowed.execution.clone().unwrap_or_else(|| default.clone());
    let winner = matches
        .iter()
        .filter(|hit| Some(hit.rule.verdict) == strictest)
        .min_by_key(|hit| width(&given(hit.rule)));
    let hidden = policy.restricts() && hides(subject.argv, subject.given);
    let Some(winner) = winner else {
        return unmatched(subject, stance, hidden);
    };
    let rule = winner.rule;
    if rule.verdict == Verdict::Allow && stance.unrestricted && given(rule) == Execution::TurnDefault {
        // It is to run in the turn's sandbox, and there is none.
        let without = unmatched(subject, stance, hidden);
        if without.verdict > Verdict::Allow {
            return without;
        }
    }
    // Neither of two profiles is the narrower one, so that no rule says which it is to be.
    let rival = matches.iter().find(|hit| {
        let (one, other) = (given(hit.rule), given(rule));
        hit.rule.verdict == Verdict::Allow && width(&one) == width(&other) && one != other
    });
    let rival = rival.filter(|_| rule.verdict == Verdict::Allow).map(|hit| hit.rule);
    let allows = || matches.iter().filter(|hit| hit.rule.verdict == Verdict::Allow);
    // A rule about what the subject would start says nothing of what the subject gets.
    let own = |hit: &&Match<'_>| std::ptr::eq(hit.argv, subject.argv);
    let env_keep = rule.allowed.env_keep.iter().filter(|_| own(&winner));
    let kept_by_all = |name: &&String| allows().all(|hit| hit.rule.allowed.env_keep.contains(name));
    // What a yes gives is no more than any rule would.
    let gives = matches.iter().filter(own).filter(|hit| hit.rule.verdict != Verdict::Forbidden);
    let gives = gives.map(|hit| given(hit.rule));
    Judgement {
        verdict: if rival.is_some() || hidden { rule.verdict.max(Verdict::Prompt) } else { rule.verdict },
        source: Source::Rule(RuleSource {
            file: rule.file.clone(),
            line: rule.line,
            justification: match rival {
                Some(rival) => Some(format!("{}:{} gives another profile", rival.file, rival.line)),
                None if hidden && rule.verdict == Verdict::Allow => Some(HIDDEN.to_owned()),
                None => rule.justification.clone(),
            },
        }),
        allowed: Allowed {
            execution: gives.min_by_key(width),
            env_keep: env_keep.filter(kept_by_all).cloned().collect(),
        },
        matched: winner.prefix(),
        audit: matches.iter().any(|hit| hit.rule.audit),
    }
}

/// Why a command is asked about that might start what a rule forbids.
const HIDDEN: &str =
    "what it would start cannot be told from its arguments, and rules forbid or ask about some";

/// What a command comes to that no rule matches.
fn unmatched(subject: &Subject<'_>, stance: &Stance, hidden: bool) -> Judgement {
    let said = |verdict, why: &str, execution| Judgement {
        verdict,
        source: Source::Heuristic { why: why.to_owned() },
        allowed: Allowed { execution, env_keep: Vec::new() },
        matched: Vec::new(),
        audit: false,
    };
    if hidden {
        return said(Verdict::Prompt, HIDDEN, None);
    }
    if !stance.looks() {
        return said(Verdict::Allow, "no rule matches", None);
    }
    if let Some(requested) = stance.requested.as_ref().filter(|_| !stance.unrestricted) {
        let why = match &requested.justification {
            Some(text) => format!("{} is asked for: {text}", requested.execution),
            None => format!("{} is asked for", requested.execution),
        };
        return said(Verdict::Prompt, &why, Some(requested.execution.clone()));
    }
    let granted = || stance.granted.clone();
    match (look(subject), &stance.policy) {
        // Without a sandbox the environment may make anything of it.
        (Look::Harmless, _) if !stance.unrestricted => {
            said(Verdict::Allow, "it only reads, and no rule matches", granted())
        }
        // In a sandbox it removes what whatever runs there could remove anyway.
        (Look::Dangerous, policy) if stance.unrestricted && *policy != ApprovalPolicy::Never => {
            said(Verdict::Prompt, "it removes without a question, and there is no sandbox", None)
        }
        // To be seen failing it has to run as a command of its own.
        (_, ApprovalPolicy::OnFailure) if !stance.unrestricted => {
            said(Verdict::Allow, "no rule matches", granted().or(Some(Execution::TurnDefault)))
        }
        (_, ApprovalPolicy::Untrusted) => {
            said(Verdict::Prompt, "no rule allows it, and the approval policy is untrusted", granted())
        }
        _ => said(Verdict::Allow, "no rule matches", granted()),
    }
}

/// Every rule that matches, in the order of loading within each name.
pub(crate) fn matches<'a>(policy: &'a Policy, subject: &Subject<'a>) -> Vec<Match<'a>> {
    let considered = consider(policy, subject).into_iter();
    considered.filter(|looked| looked.counts == Counts::Yes).map(|looked| looked.hit).collect()
}

/// A rule about a program of this name, and whether it counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looked<'a> {
    pub(crate) hit: Match<'a>,
    pub(crate) counts: Counts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    Yes,
    /// The words after the first are others.
    OtherWords,
    /// Programs of this name may lie elsewhere, and not there.
    NotListed,
    /// It allows, and the sandbox could have made the name, or write the file.
    NotTrusted,
}

/// Every rule about a program of the subject's names, each once: as it counts, if it does by any. Of
/// what the subject would start in its turn (`env`, `sudo`, …), those that do not allow: no rule about
/// that one speaks for whoever starts it.
pub(crate) fn consider<'a>(policy: &'a Policy, subject: &Subject<'a>) -> Vec<Looked<'a>> {
    let mut found = Vec::new();
    collect(policy, subject, &mut found);
    let (mut argv, mut given) = (subject.argv, subject.given);
    for _ in 0..MOST_WRAPPERS {
        let Some(rest) = inner(argv, given) else { break };
        argv = rest;
        given = Path::new(
            argv.first().and_then(|word| std::str::from_utf8(word.as_slice()).ok()).unwrap_or_default(),
        );
        let started =
            Subject { given, resolved: None, given_holds: false, agent_writable: true, argv, skill: None };
        let mut more = Vec::new();
        collect(policy, &started, &mut more);
        let new = |looked: &Looked<'_>| {
            looked.hit.rule.verdict != Verdict::Allow
                && looked.counts == Counts::Yes
                && !found.iter().any(|known: &Looked<'_>| std::ptr::eq(known.hit.rule, looked.hit.rule))
        };
        more.retain(new);
        found.extend(more);
    }
    found
}

fn collect<'a>(policy: &'a Policy, subject: &Subject<'a>, found: &mut Vec<Looked<'a>>) {
    // As they are written: paths that are equal may be spelt differently.
    let other = |path: &&Path| path.as_os_str() != subject.given.as_os_str();
    let names = [Some(subject.given), subject.resolved.filter(other)];
    for path in names.into_iter().flatten() {
        // A name that the sandbox could have made up may forbid, never allow.
        let speaks = subject.given_holds && is_called(subject.argv, path);
        let whole = path.to_string_lossy();
        let base = path.file_name().map_or(Cow::Borrowed(""), |name| name.to_string_lossy());
        let mut collect = |program: &str, bare: bool| {
            for rule in policy.about(program) {
                let hosts = policy.host(program).filter(|_| bare);
                let listed =
                    rule.anywhere || hosts.is_none_or(|paths| paths.iter().any(|path| *path == whole));
                let trusted = speaks && (!bare || hosts.is_some() || !subject.agent_writable);
                let counts = if !rest_matches(rule, subject.argv) {
                    Counts::OtherWords
                } else if !listed {
                    // A path that is not listed is another program, for every rule alike.
                    Counts::NotListed
                } else if rule.verdict == Verdict::Allow && !trusted {
                    Counts::NotTrusted
                } else {
                    Counts::Yes
                };
                let word = rule.pattern[0].iter().find(|word| *word == program);
                let program = word.map_or("", String::as_str);
                let hit = Match { rule, program, resolved_program: bare.then_some(path), argv: subject.argv };
                match found.iter_mut().find(|looked| std::ptr::eq(looked.hit.rule, rule)) {
                    Some(before) if before.counts != Counts::Yes => *before = Looked { hit, counts },
                    Some(_) => {}
                    None => found.push(Looked { hit, counts }),
                }
            }
        };
        collect(&whole, false);
        if path.is_absolute() {
            collect(&base, true);
        }
    }
}

/// Whether `argv[0]` agrees with a path's last part, so that a program of many names is the one that
/// goes by it. A login shell's dash is no part of the name.
pub(crate) fn is_called(argv: &[Bytes], path: &Path) -> bool {
    const SHELLS: [&[u8]; 8] = [b"sh", b"bash", b"dash", b"zsh", b"ksh", b"fish", b"csh", b"tcsh"];
    let Some(zeroth) = argv.first() else { return false };
    let zeroth = zeroth.as_slice();
    let zeroth = zeroth.strip_prefix(b"-").filter(|name| SHELLS.contains(name)).unwrap_or(zeroth);
    let name = zeroth.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    path.file_name().is_some_and(|base| base.as_encoded_bytes() == name)
}

fn rest_matches(rule: &Rule, argv: &[Bytes]) -> bool {
    let rest = argv.get(1..).unwrap_or_default();
    let pattern = rule.pattern.get(1..).unwrap_or_default();
    (if rule.exact { pattern.len() == rest.len() } else { pattern.len() <= rest.len() })
        && pattern.iter().zip(rest).all(|(alternatives, word)| {
            alternatives.iter().any(|alternative| alternative.as_bytes() == word.as_slice())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load;

    const RULES: &str = r#"
prefix_rule(["git", "push"], decision = "forbidden", justification = "ask a person")
prefix_rule(["git", ["status", "log"]], execution = "turn_default")
prefix_rule(["git"], execution = "unsandboxed")
prefix_rule(["cat"])
host_executable("tool", ["/opt/bin/tool"])
prefix_rule(["tool"])
prefix_rule(["/usr/bin/exact"])
prefix_rule(["exact"], decision = "forbidden")
"#;

    struct Case {
        given: &'static str,
        resolved: &'static str,
        holds: bool,
        writable: bool,
        argv: &'static str,
    }

    fn verdict(case: &Case) -> (Verdict, bool, Option<Execution>) {
        let policy = load("/home/u", [("test.rules", RULES)]).unwrap();
        let argv: Vec<Bytes> = case.argv.split(' ').map(|word| Bytes(word.as_bytes().to_vec())).collect();
        let judgement = judge(
            &policy,
            &Subject {
                given: Path::new(case.given),
                resolved: Some(Path::new(case.resolved)),
                given_holds: case.holds,
                agent_writable: case.writable,
                argv: &argv,
                skill: None,
            },
            &Execution::Unsandboxed,
            &Stance::default(),
        );
        (judgement.verdict, matches!(judgement.source, Source::Rule(_)), judgement.allowed.execution)
    }

    #[test]
    fn two_profiles_for_one_command_are_a_question() {
        let rules =
            "prefix_rule(['cat'], execution = 'one')\nprefix_rule(['/usr/bin/cat'], execution = 'other')\n";
        let policy = load("/home/u", [("r.rules", rules)]).unwrap();
        let argv = [Bytes(b"cat".to_vec())];
        let path = Path::new("/usr/bin/cat");
        let subject = Subject {
            given: path,
            resolved: Some(path),
            given_holds: true,
            agent_writable: false,
            argv: &argv,
            skill: None,
        };
        let judgement = judge(&policy, &subject, &Execution::Unsandboxed, &Stance::default());
        assert_eq!(judgement.verdict, Verdict::Prompt);
    }

    fn plain(path: &'static str, argv: &'static str) -> Case {
        Case { given: path, resolved: path, holds: true, writable: false, argv }
    }

    #[test]
    fn what_starts_another_program_comes_under_the_stricter_of_both() {
        let verdict = |line| verdict(&plain("/usr/bin/env", line));
        assert_eq!(verdict("env A=b git push").0, Verdict::Forbidden);
        assert_eq!(verdict("env -u X nice -n 3 /usr/bin/git push").0, Verdict::Forbidden);
        assert_eq!(
            verdict("env cat x"),
            (Verdict::Allow, false, None),
            "an allow rule does not reach through"
        );
        assert_eq!(verdict("env git status").0, Verdict::Allow);
    }

    #[test]
    fn what_hides_what_it_starts_is_asked_about_where_rules_restrict() {
        let nested = format!("{}git push", "nice ".repeat(9));
        let words =
            |line: &str| line.split('+').map(|word| Bytes(word.as_bytes().to_vec())).collect::<Vec<_>>();
        let verdict = |rules: &str, argv: &[Bytes]| {
            let path = Path::new("/usr/bin").join(std::str::from_utf8(argv[0].as_slice()).unwrap());
            let subject = Subject {
                given: &path,
                resolved: Some(&path),
                given_holds: true,
                agent_writable: false,
                argv,
                skill: None,
            };
            let policy = load("/home/u", [("r.rules", rules)]).unwrap();
            judge(&policy, &subject, &Execution::Unsandboxed, &Stance::default()).verdict
        };
        let hiding = ["env+-S+git push", "env+-Sgit push", "env+-iS+git push", "env+--split-string=git push"];
        for argv in hiding.iter().map(|line| words(line)).chain([words(&nested.replace(' ', "+"))]) {
            assert_eq!(verdict(RULES, &argv), Verdict::Prompt, "{argv:?}");
            assert_eq!(verdict("prefix_rule(['cat'])", &argv), Verdict::Allow, "{argv:?}");
            let wide = format!("{RULES}prefix_rule([['env', 'nice']])");
            assert_eq!(verdict(&wide, &argv), Verdict::Prompt, "{argv:?}");
        }
        for line in ["env+git+status", "env+LS=-S+ls", "env+ls+-S", "nice+-n+3+ls+-S"] {
            assert_eq!(verdict(RULES, &words(line)), Verdict::Allow, "{line}");
        }
    }

    #[test]
    fn a_rule_about_what_is_started_gives_the_starter_nothing() {
        let rules = "prefix_rule(['git', 'push'], decision = 'prompt', env_keep = ['LD_PRELOAD'])";
        let policy = load("/home/u", [("r.rules", rules)]).unwrap();
        let argv: Vec<Bytes> =
            ["env", "LD_PRELOAD=x", "git", "push"].map(|word| Bytes(word.as_bytes().to_vec())).into();
        let path = Path::new("/usr/bin/env");
        let subject = Subject {
            given: path,
            resolved: Some(path),
            given_holds: true,
            agent_writable: false,
            argv: &argv,
            skill: None,
        };
        let judgement = judge(&policy, &subject, &Execution::Unsandboxed, &Stance::default());
        assert_eq!((judgement.verdict, judgement.allowed), (Verdict::Prompt, Allowed::default()));
    }

    #[test]
    fn what_is_asked_about_runs_under_the_narrowest_that_any_rule_gives() {
        let rules = "prefix_rule(['git', 'push'], decision = 'prompt')\nprefix_rule(['git'], execution = 'git')\n\
                     prefix_rule(['make'], decision = 'prompt', execution = 'build')\nprefix_rule(['rm'], decision = 'prompt')\n";
        let policy = load("/home/u", [("r.rules", rules)]).unwrap();
        for (words, expected) in [("git push", "git"), ("make all", "build"), ("rm x", "unsandboxed")] {
            let argv: Vec<Bytes> = words.split(' ').map(|word| Bytes(word.as_bytes().to_vec())).collect();
            let path = Path::new("/usr/bin").join(words.split(' ').next().unwrap());
            let subject = Subject {
                given: &path,
                resolved: Some(&path),
                given_holds: true,
                agent_writable: false,
                argv: &argv,
                skill: None,
            };
            let judgement = judge(&policy, &subject, &Execution::Unsandboxed, &Stance::default());
            assert_eq!(judgement.verdict, Verdict::Prompt);
            assert_eq!(judgement.allowed.execution, Some(Execution::parse(expected)));
        }
    }

    #[test]
    fn the_strictest_rule_wins_and_of_allows_the_narrowest() {
        assert_eq!(verdict(&plain("/usr/bin/git", "git push")).0, Verdict::Forbidden);
        assert_eq!(verdict(&plain("/usr/bin/git", "git log")).2, Some(Execution::TurnDefault));
        assert_eq!(verdict(&plain("/usr/bin/git", "git gc")).2, Some(Execution::Unsandboxed));
        assert!(!verdict(&plain("/usr/bin/ls", "ls")).1);
    }

    #[test]
    fn an_exact_rule_does_not_shadow_a_stricter_one() {
        assert_eq!(verdict(&plain("/usr/bin/exact", "exact")).0, Verdict::Forbidden);
    }

    #[test]
    fn a_program_of_the_workspace_gets_no_allow_by_its_name() {
        let fake =
            Case { given: "/proj/git", resolved: "/proj/git", holds: false, writable: true, argv: "git gc" };
        assert!(!verdict(&fake).1);
        let forbidden = Case { argv: "git push", ..fake };
        assert_eq!(verdict(&forbidden).0, Verdict::Forbidden);
    }

    #[test]
    fn a_link_that_the_sandbox_made_does_not_lend_its_name() {
        let link = Case {
            given: "/proj/git",
            resolved: "/usr/bin/rm",
            holds: false,
            writable: false,
            argv: "git gc",
        };
        assert!(!verdict(&link).1);
    }

    #[test]
    fn a_program_of_many_names_must_call_itself_what_the_rule_says() {
        let case =
            |argv| Case { given: "/bin/cat", resolved: "/bin/busybox", holds: true, writable: false, argv };
        assert!(verdict(&case("cat x")).1);
        assert!(!verdict(&case("rm x")).1);
        assert!(!verdict(&case("busybox x")).1, "the rule is about `cat`");
        // A login's dash is a shell's.
        assert!(!verdict(&case("-cat x")).1);
        let argv = |word: &str| [Bytes(word.as_bytes().to_vec())];
        assert!(
            is_called(&argv("-zsh"), Path::new("/bin/zsh")) && is_called(&argv("x/zsh"), Path::new("zsh"))
        );
    }

    #[test]
    fn a_listed_executable_lies_where_it_is_listed() {
        assert!(verdict(&plain("/opt/bin/tool", "tool")).1);
        assert!(!verdict(&plain("/usr/bin/tool", "tool")).1);
    }
}
