//! What a person is told before answering, and what makes two questions one.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use postern_shim::wire::{Bytes, Layer};

use serde_json::{Value, json};

use super::arguments::Arguments;
use super::asker::Asker;
use super::intake::Handles;
use super::rerun::Rerun;
use super::review;
use super::server::{Session, has_ended};
use super::settle::Question;
use crate::approval::{Answer, Asked, Ending, Field, Identity, Lasting, Review};
use crate::flow::text::{command_line, not_ascii, printable, summary};
use crate::flow::{ContextId, Decision, Execution, Judgement, Request, Source, Verdict};
use crate::policy::{self, Amendment, Subject, runs_what_lies_there};
use crate::profile::{Access, Resolved};

/// Asks, and waits for what comes of it: the decision, and the answer as records have it.
pub(super) async fn ask(
    session: &Session,
    request: &Request,
    handles: &Handles,
    judgement: &Judgement,
    rerun: Option<&Rerun>,
    question: &Question,
    asker: &Asker,
) -> (Decision, Value) {
    let arguments = Arguments::of(request, &kept(rerun), &session.reach_of(request));
    let hash = program_hash(session, request, handles, rerun);
    let mut asked = self::asked(session, request, rerun, question, &arguments, hash.as_deref());
    let rule = session.amended().filter(|_| asked.lasting == Lasting::Also);
    if let Some(file) = rule
        && let Some((line, exact)) = self::rule(session, request, judgement, question)
    {
        let text = format!(
            "with `rule` {} is allowed, for good; written to {}:\n{}",
            if exact { "just this" } else { "every command that begins so" },
            shown(&file),
            printable(line.as_bytes())
        );
        asked.fields.push(Field { name: "rule".to_owned(), text });
        asked.rule = Some(line);
    }
    let what = asked.summary.clone();
    let deny = |why: &str| Decision::Deny { reason: format!("{what} ({why}; {})", question.why) };
    if request.argv.iter().map(|word| word.as_slice().len()).sum::<usize>() > LONGEST_COMMAND {
        return (deny("its command line is too long to be shown"), Value::Null);
    }
    if question.wider && !arguments.complete {
        return (deny("not every file that its arguments name can be looked at"), Value::Null);
    }
    if let Some(path) = arguments.unwatchable().filter(|_| question.wider) {
        let why = format!(
            "it names {}, which the sandbox can write and which is too much to be watched",
            shown(path)
        );
        return (deny(&why), Value::Null);
    }
    let waits = |id: &str| {
        let text = format!(
            "{what} waits for an approval ({}); answer in another terminal: postern approve {id}",
            question.why
        );
        asker.waiting(&text);
    };
    let told = review::question(session, request, question, &asked);
    let gone = || has_ended(&handles.peer);
    let _asking = Asking::new(&session.asking);
    let answer = session.chain.ask(&session.desk, asked, &told, gone, waits).await;
    if answer.interrupts {
        session.interrupt_shell();
        let body = json!({ "reason": "reviewers have denied too often" });
        let _unrecorded = session.recorder.session_event("interrupted", &body);
    }
    // Who was gone, or did not look in time, has not said so.
    if matches!(judgement.source, Source::Failure { .. })
        && matches!(answer.ending, Ending::Denied | Ending::Nobody)
    {
        session.decline(request);
    }
    let by = printable(answer.by.as_bytes());
    // A copy that was made before stays as it was; what has none is looked at again.
    let same = || {
        session.grants.age() == handles.age
            && session.skill_stands(request)
            && Arguments::of(request, &kept(rerun), &session.reach_of(request)) == arguments
            && (rerun.is_some_and(|rerun| rerun.blake3.is_some())
                || program_hash(session, request, handles, rerun) == hash)
    };
    let decision = match answer.ending {
        Ending::Approved(_) | Ending::Granted if !same() => {
            deny("the program, or what it names, changed while the approval was waited for, or could have")
        }
        _ => denial(session, &answer).map_or_else(|| question.approved(&by), |why| deny(&why)),
    };
    (decision, approval(&answer))
}

/// Why an answer is not a yes.
pub(super) fn denial(session: &Session, answer: &Answer) -> Option<String> {
    let by = printable(answer.by.as_bytes());
    let outages = answer.reviews.iter().filter_map(Review::outage);
    let outages: String = outages.map(|what| format!("; {}", printable(what.as_bytes()))).collect();
    Some(match answer.ending {
        Ending::Approved(_) | Ending::Granted => return None,
        Ending::Denied => format!("denied by {by}"),
        Ending::Aborted => format!("aborted by {by}"),
        Ending::TimedOut => format!("nobody answered within {} s{outages}", answer.waited.as_secs()),
        Ending::Withdrawn => "whoever asked has gone".to_owned(),
        Ending::Full => "too many questions wait for an answer already".to_owned(),
        Ending::Nobody => {
            format!("nobody is asked in this session: {}{outages}", session.desk.why_nobody())
        }
    })
}

/// Counts a question for as long as it is asked.
pub(super) struct Asking<'a>(&'a Cell<u32>);

impl<'a> Asking<'a> {
    pub(super) fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An answer as records have it.
pub(super) fn approval(answer: &Answer) -> Value {
    let (decision, scope) = match answer.ending {
        Ending::Approved(choice) => ("approved", Some(json!(choice))),
        Ending::Granted => ("granted", None),
        Ending::Denied => ("denied", None),
        Ending::Aborted => ("aborted", None),
        Ending::TimedOut => ("timed_out", None),
        Ending::Withdrawn => ("withdrawn", None),
        Ending::Full => ("full", None),
        Ending::Nobody => ("nobody", None),
    };
    let wait_us = u64::try_from(answer.waited.as_micros()).unwrap_or(u64::MAX);
    let mut body =
        json!({ "id": answer.id, "by": answer.by, "decision": decision, "scope": scope, "wait_us": wait_us });
    if !answer.reviews.is_empty() {
        body["reviews"] = json!(answer.reviews);
    }
    body
}

/// The rule that would have made this question unnecessary: about commands that begin with these words, or
/// with fewer if the turn has asked for that. None where it would not, or would give more than a
/// yes does. With whether it is about just these words.
fn rule(
    session: &Session,
    request: &Request,
    judgement: &Judgement,
    question: &Question,
) -> Option<(String, bool)> {
    let unruled = matches!(judgement.source, Source::Heuristic { .. } | Source::Failure { .. });
    if !unruled || request.context != ContextId::TURN {
        return None;
    }
    let execution = match &question.execution {
        None => Execution::TurnDefault,
        // A profile of this request has no name that a file could know.
        Some(Execution::Permissions(_)) => return None,
        Some(execution) => execution.clone(),
    };
    let given = request.given_path();
    let mut pattern = vec![given.to_str()?.to_owned()];
    for word in request.argv.get(1..)? {
        pattern.push(std::str::from_utf8(word.as_slice()).ok()?.to_owned());
    }
    let stance = session.stance_for(request).ok()?;
    let asked_for = stance.requested.as_ref().map(|requested| &requested.prefix);
    let asked_for = asked_for.filter(|prefix| !prefix.is_empty());
    if let Some(prefix) = asked_for {
        // A program alone would be all that it can do.
        if prefix.len() < 2 {
            return None;
        }
        pattern.clone_from(prefix);
    }
    let amendment = Amendment {
        pattern,
        verdict: Verdict::Allow,
        exact: asked_for.is_none(),
        execution: Some(execution.clone()),
        justification: None,
    };
    let line = amendment.line().ok()?;
    let amended = session.policy().and(policy::load("/", [("", line.as_str())]).ok()?);
    let subject = Subject::of(request, &given);
    let then = policy::judge(&amended, &subject, &session.default_execution, &stance);
    let enough = then.verdict == Verdict::Allow && then.allowed.execution == Some(execution);
    enough.then_some((line, amendment.exact))
}

/// BLAKE3 of what would run.
fn program_hash(
    session: &Session,
    request: &Request,
    handles: &Handles,
    rerun: Option<&Rerun>,
) -> Option<String> {
    let known = rerun.and_then(|rerun| rerun.blake3.clone());
    known.or_else(|| session.hash(&handles.executable, request.attested.exe.as_ref()?))
}

/// The question in full.
fn asked(
    session: &Session,
    request: &Request,
    rerun: Option<&Rerun>,
    question: &Question,
    arguments: &Arguments,
    hash: Option<&str>,
) -> Asked {
    let exe = request.attested.exe.as_ref();
    let profile = match &question.execution {
        Some(Execution::Permissions(name)) => session.grants.profile(name),
        _ => None,
    };
    let profile = profile.as_deref();
    let argv = rerun.map_or(&request.argv, |rerun| &rerun.argv);
    let environment = rerun.and_then(|rerun| rerun.environment.as_ref());
    let env = environment.map_or(&request.env, |environment| &environment.variables);
    let identity = {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        let asker = session.profile_of(request.context);
        add(format!("{:?} {profile:?} {asker:?}", question.execution).as_bytes());
        add(request.given_path().as_os_str().as_bytes());
        add(exe.map_or(&[][..], |exe| exe.path.as_os_str().as_bytes()));
        // Without a hash nothing equals it, not even itself.
        add(hash.map_or_else(super::control::prompt_id, str::to_owned).as_bytes());
        add(format!("{:?}", request.attested.cwd).as_bytes());
        // What a shell counts and notes for itself says nothing of the command.
        let counted =
            |word: &&Bytes| ![&b"SHLVL="[..], b"_="].iter().any(|name| word.as_slice().starts_with(name));
        let env: Vec<&Bytes> = env.iter().filter(counted).collect();
        for list in [argv.iter().collect(), env] {
            add(&list.len().to_le_bytes());
            list.iter().for_each(|word| add(word.as_slice()));
        }
        if let Some(skill) = &request.skill {
            // The script too, where its interpreter is what runs.
            let script = request.argv.get(1).zip(request.attested.cwd.as_ref());
            let script = script.map(|(word, cwd)| cwd.path.join(OsStr::from_bytes(word.as_slice())));
            for path in skill.metadata.iter().chain(script.iter().filter(|path| skill.has(path))) {
                add(std::fs::read(path)
                    .ok()
                    .map(|text| blake3::hash(&text))
                    .map_or([0; 32], Into::into)
                    .as_slice());
            }
        }
        add(format!("{arguments:?}").as_bytes());
        Identity(*hasher.finalize().as_bytes())
    };
    let fields = fields(session, request, rerun, question, arguments, hash, profile);
    // What starts others runs whatever they are, wherever that comes from.
    let names = [Some(request.given_path()), exe.map(|exe| exe.path.clone())];
    let launches = |path: &PathBuf| runs_what_lies_there(&path.to_string_lossy());
    let launches = names.iter().flatten().any(launches) || names_a_program(request, env);
    let launches = launches && request.skill.is_none();
    // So does a script that the agent can write: what it reads beside it may be another by the next run.
    let launches = launches || rerun.is_some_and(|rerun| rerun.script.is_some());
    let free = question.wider || session.stance.unrestricted;
    let lasting = if !free || (arguments.steady && !launches) { Lasting::Also } else { Lasting::No };
    Asked { identity, summary: summary(&request.argv), fields, lasting, rule: None, counted: false }
}

/// Whether an argument names a program, by path or as a shell would find it: what is named may be
/// started. So may what is too much to be looked at.
fn names_a_program(request: &Request, env: &[Bytes]) -> bool {
    const MOST: usize = 256;
    let Some(cwd) = &request.attested.cwd else { return true };
    let path = env.iter().find_map(|variable| variable.as_slice().strip_prefix(b"PATH=")).unwrap_or_default();
    let directories = || path.split(|&byte| byte == b':').map(|entry| Path::new(OsStr::from_bytes(entry)));
    let executable = |path: PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let words = request.argv.iter().skip(1).flat_map(|word| word.as_slice().split(u8::is_ascii_whitespace));
    words.filter(|word| !word.is_empty()).enumerate().any(|(at, word)| {
        let name = Path::new(OsStr::from_bytes(word));
        at >= MOST
            || if word.contains(&b'/') {
                executable(cwd.path.join(name))
            } else {
                directories().any(|directory| executable(directory.join(name)))
            }
    })
}

/// What a yes gives is compared with what the turn has,
pub(super) const SHELL: &str = "the shell";
/// or with what another context has.
const ASKER: &str = "the asker";

/// The name of the field that says what a yes gives.
pub(super) fn unlike(whom: &str) -> String {
    format!("unlike {whom}")
}
/// The name of the field that says what would run.
const COMMAND: &str = "command";
/// The longest command line that is shown, in bytes; a longer one is denied.
const LONGEST_COMMAND: usize = 16 << 10;

fn fields(
    session: &Session,
    request: &Request,
    rerun: Option<&Rerun>,
    question: &Question,
    arguments: &Arguments,
    hash: Option<&str>,
    profile: Option<&Resolved>,
) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut add = |name: &str, text: String| {
        if !text.is_empty() {
            // What would run, and what a yes gives, is never cut.
            let whole = name == COMMAND || [SHELL, ASKER].iter().any(|whom| unlike(whom) == name);
            let text = if whole { text } else { cut(text) };
            fields.push(Field { name: name.to_owned(), text });
        }
    };
    let line = command_line(request.argv.iter().map(Bytes::as_slice));
    add(COMMAND, line.clone());
    if let Some(exe) = &request.attested.exe {
        let path = shown(&exe.path);
        let owner = User::from_uid(Uid::from_raw(exe.file.uid)).ok().flatten();
        let owner = owner.map_or_else(|| exe.file.uid.to_string(), |user| printable(user.name.as_bytes()));
        let copied = rerun.is_some_and(|rerun| rerun.blake3.is_some());
        let script = rerun.is_some_and(|rerun| rerun.script.is_some());
        let writable = match (exe.agent_writable, copied) {
            _ if script => "the sandbox can write it: a copy runs, made before this question",
            _ if session.stance.unrestricted => "there is no sandbox that could not write it",
            (false, _) => "no sandbox can write it",
            (true, true) => "the sandbox can write it: a copy runs",
            (true, false) => "the sandbox can write it: if it changes before your answer, it does not run",
        };
        let hash = hash.and_then(|hash| hash.get(..16)).unwrap_or("not known");
        add("runs", format!("{path}\nof {owner}, {writable}, blake3 {hash}…"));
    }
    if let Some(script) = rerun.and_then(|rerun| rerun.script.as_ref()) {
        add("not covered", script.caveats());
    }
    if let Some(cwd) = &request.attested.cwd {
        let note = if question.wider && session.grants.reach().could_change(&cwd.path) {
            "\nthe sandbox can write there: what the program reads there may be the agent's"
        } else {
            ""
        };
        add("in", format!("{}{note}", shown(&cwd.path)));
    }
    add(
        "where",
        match &question.execution {
            None if session.stance.unrestricted => "in place, without a sandbox".to_owned(),
            None => "in place, inside the sandbox".to_owned(),
            Some(Execution::TurnDefault) => "as a command of its own, inside the shell's sandbox".to_owned(),
            Some(Execution::Unsandboxed) => "without a sandbox, as the user".to_owned(),
            Some(Execution::Permissions(name)) => {
                format!("in a sandbox of its own, under the profile {}", printable(name.as_bytes()))
            }
        },
    );
    if let Some(profile) = profile {
        let had = session.profile_of(request.context);
        // The turn's is as it is enforced already.
        let (had, whom) = match request.context {
            ContextId::TURN => ((*had).clone(), SHELL),
            _ => (session.enforced(&had), ASKER),
        };
        let difference = difference(&session.enforced(profile), &had, whom);
        add(&unlike(whom), difference.unwrap_or_else(|| "nothing".to_owned()));
        add("given up", session.given_up(profile).unwrap_or_default());
    }
    for file in &arguments.files {
        let hash = file.hash.map_or_else(
            || "cannot be hashed".to_owned(),
            |hash| format!("blake3 {}…", hash.to_hex().get(..16).unwrap_or_default()),
        );
        let shown = shown(&file.path);
        add(
            "reads",
            format!(
                "{shown}, which the sandbox can write ({hash}); if it changes before your answer, it does not run"
            ),
        );
    }
    if let Some(changes) = rerun.and_then(|rerun| Some(&rerun.environment.as_ref()?.changes)) {
        let shown: Vec<_> = kept(rerun).iter().map(|variable| printable(variable.as_slice())).collect();
        add("variables kept", shown.join("\n"));
        let dropped: Vec<_> = changes.dropped.iter().map(|name| printable(name.as_slice())).collect();
        add("variables dropped", dropped.join(", "));
    }
    let shell = &request.shell;
    let functions: Vec<_> = shell.functions.iter().map(|name| printable(name.as_slice())).collect();
    let within = if functions.is_empty() { String::new() } else { format!(", in {}", functions.join(" < ")) };
    let script = printable(shell.script.as_slice());
    let asked_by = match shell.layer {
        Layer::Zsh => format!("{script} line {}{within} (as the shell says)", shell.line),
        Layer::Exec => "`postern exec`, inside the session".to_owned(),
    };
    add("asked by", asked_by);
    if let Some(skill) = &request.skill {
        add("skill", format!("{}, in {}", printable(skill.name.as_bytes()), shown(&skill.directory)));
    }
    add("because", question.why.clone());
    let paths = request.attested.exe.iter().map(|exe| shown(&exe.path));
    let paths = paths.chain(request.attested.cwd.iter().map(|cwd| shown(&cwd.path)));
    let files = arguments.files.iter().map(|file| shown(&file.path));
    add(
        "take care",
        not_ascii(&paths.chain(files).chain([line, script]).chain(functions).collect::<String>()),
    );
    fields
}

/// The variables that a rerun gets as the asker set them.
fn kept(rerun: Option<&Rerun>) -> Vec<&Bytes> {
    let Some(environment) = rerun.and_then(|rerun| rerun.environment.as_ref()) else { return Vec::new() };
    let kept = |variable: &&Bytes| {
        let name = variable.as_slice().split(|&byte| byte == b'=').next().unwrap_or_default();
        environment.changes.kept.iter().any(|kept| kept.as_slice() == name)
    };
    environment.variables.iter().filter(kept).collect()
}

pub(super) fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

/// Nobody reads more.
fn cut(text: String) -> String {
    const MOST: usize = 1500;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => {
            let rest = text.len() - at;
            format!("{}… ({rest} bytes more)", text.get(..at).unwrap_or_default())
        }
        None => text,
    }
}

/// What a profile gives that another does not, and the other way round; none if nothing.
pub(super) fn difference(profile: &Resolved, base: &Resolved, whom: &str) -> Option<String> {
    let name = |access: Option<Access>| access.unwrap_or(Access::None).name();
    let mut paths: Vec<&PathBuf> =
        profile.entries.iter().chain(&base.entries).map(|(path, _)| path).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut lines: Vec<String> = paths
        .into_iter()
        .map(|path| (path, profile.access(path), base.access(path)))
        .filter(|(_, given, had)| given != had)
        .map(|(path, given, had)| format!("{} {} ({whom}: {})", name(given), shown(path), name(had)))
        .collect();
    let sockets = profile.unix_sockets.iter().filter(|path| !base.unix_sockets.contains(path));
    for path in sockets {
        lines.insert(0, format!("the socket {} ({whom}: none)", shown(path)));
    }
    match (profile.network, base.network) {
        (true, false) => lines.insert(0, format!("the network ({whom}: none)")),
        (false, true) => lines.push(format!("no network ({whom} has it)")),
        _ => {}
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}
