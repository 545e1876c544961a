//! The command line: raw arguments in, one front door out.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::front::{
    self, ApproveArguments, ExplainArguments, LogArguments, RequestArguments, TrustArguments,
};
use crate::session::{Options, Wish};

/// A guarded gate between an agent's shell and the machine.
///
/// Without a command it starts a session: a login shell in a sandbox, each of whose commands is
/// judged at its execve. What follows `--` are zsh's own arguments.
#[derive(Debug, Parser)]
#[command(name = "postern", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    session: SessionArguments,
    #[command(subcommand)]
    command: Option<Command>,
    /// Arguments for zsh, after `--`
    #[arg(last = true, value_name = "ZSH-ARGUMENTS")]
    zsh: Vec<OsString>,
}

#[derive(Debug, Default, PartialEq, Eq, Args)]
struct SessionArguments {
    /// read-only, workspace-write or danger-full-access
    #[arg(long, value_name = "MODE", conflicts_with = "profile")]
    sandbox: Option<String>,
    /// A profile of the configuration, in place of a mode
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// A profile as JSON, in place of a mode
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sandbox", "profile"])]
    permissions: Option<PathBuf>,
    /// Rule files, besides those of the configuration
    #[arg(long, value_name = "FILE", num_args = 1..)]
    rules: Vec<PathBuf>,
    /// Directories of skills, besides those of the configuration
    #[arg(long, value_name = "DIR", num_args = 1..)]
    skills: Vec<PathBuf>,
    /// A configuration file, read last
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start there
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Further project directories
    #[arg(long, value_name = "DIR", num_args = 1..)]
    add_dir: Vec<PathBuf>,
    /// Descriptors that the shell gets besides 0 to 2
    #[arg(long, value_name = "N", num_args = 1.., value_parser = clap::value_parser!(i32).range(3..))]
    pass_fd: Vec<i32>,
    /// What becomes of a command that needs an approval: `deny`, or `wait:SECONDS` for an answer
    #[arg(long, value_name = "WHAT")]
    on_prompt: Option<String>,
    /// When an approval is asked for: untrusted, on-failure, on-request or never
    #[arg(long, value_name = "POLICY")]
    approval: Option<String>,
}

impl SessionArguments {
    fn options(self) -> Options {
        Options {
            sandbox: self.sandbox,
            profile: self.profile,
            permissions: self.permissions,
            add: None,
            rules: self.rules,
            skills: self.skills,
            config: self.config,
            cwd: self.cwd,
            add_dirs: self.add_dir,
            pass_fds: self.pass_fd,
            on_prompt: self.on_prompt,
            approval: self.approval,
            wish: None,
            timeout: None,
        }
    }
}

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum SandboxPermissions {
    /// What every command has
    UseDefault,
    /// No sandbox
    RequireEscalated,
    /// The sandbox, and what --additional-permissions says
    WithAdditionalPermissions,
}

/// What one command asks for, and why.
#[derive(Debug, Args)]
struct WishArguments {
    /// What it asks for instead of the session's sandbox
    #[arg(long, value_enum, value_name = "MODE")]
    sandbox_permissions: Option<SandboxPermissions>,
    /// A profile as JSON that is added to the session's; `-` is standard input
    #[arg(long, value_name = "FILE")]
    additional_permissions: Option<PathBuf>,
    /// Why, for whoever approves
    #[arg(long, value_name = "TEXT")]
    justification: Option<String>,
    /// The first words of commands that a yes may allow for good, with require_escalated
    #[arg(long, value_name = "WORD", num_args = 1..)]
    prefix_rule: Vec<String>,
}

impl WishArguments {
    fn wish(self) -> Result<Option<Wish>, String> {
        use SandboxPermissions::{RequireEscalated, UseDefault, WithAdditionalPermissions};
        let (justification, prefix) = (self.justification, self.prefix_rule);
        if !prefix.is_empty() && self.sandbox_permissions != Some(RequireEscalated) {
            return Err("--prefix-rule needs --sandbox-permissions require_escalated".to_owned());
        }
        match (self.sandbox_permissions, self.additional_permissions) {
            (None | Some(UseDefault), None) => Ok(None),
            (Some(RequireEscalated), None) => Ok(Some(Wish { additional: None, justification, prefix })),
            (None | Some(WithAdditionalPermissions), additional @ Some(_)) => {
                Ok(Some(Wish { additional, justification, prefix }))
            }
            (Some(WithAdditionalPermissions), None) => {
                Err("--sandbox-permissions with_additional_permissions needs --additional-permissions FILE"
                    .to_owned())
            }
            (Some(UseDefault | RequireEscalated), Some(_)) => Err(
                "--additional-permissions needs --sandbox-permissions with_additional_permissions, or none"
                    .to_owned(),
            ),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what was decided, and what came of it
    Log(LogArguments),
    /// Run one command in a session of its own; or, inside a session and asking for more, as one of its
    /// commands
    Exec {
        #[command(flatten)]
        session: Box<SessionArguments>,
        #[command(flatten)]
        wish: WishArguments,
        /// End it after so long, without the time in which somebody is asked: status 124
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
        timeout: Option<u64>,
        /// The command, after `--`
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Inside a session: ask for more for every later command
    Request(RequestArguments),
    /// See what waits for an approval, and answer
    Approve(ApproveArguments),
    /// Explain one decision in plain words
    Why {
        /// Its number in the log
        seq: i64,
        /// Of this session: the beginning or the end of its id
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
    /// Work with rules
    Rules {
        #[command(subcommand)]
        action: RulesAction,
    },
    /// Work with skills
    Skills {
        #[command(subcommand)]
        action: SkillsAction,
    },
    /// Look at a project's own policy, and trust it
    Trust(TrustArguments),
    /// Look at sandboxes
    Sandbox {
        #[command(subcommand)]
        action: SandboxAction,
    },
    /// Show which of your variables a sandboxed shell would get, and why
    Env {
        /// A configuration file, read last
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// List living sessions, or end one
    Sessions {
        #[command(subcommand)]
        action: Option<SessionsAction>,
    },
    /// Tell whether a session would start here, and what it would not hold
    Doctor {
        /// Under this mode
        #[arg(long, value_name = "MODE")]
        sandbox: Option<String>,
        /// Under this profile
        #[arg(long, value_name = "NAME", conflicts_with = "sandbox")]
        profile: Option<String>,
        /// A configuration file, read last
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum RulesAction {
    /// Print which rules match a command, as JSON
    Check {
        /// Rule files; without any, those that a session would load
        #[arg(long, value_name = "FILE", num_args = 1..)]
        rules: Vec<PathBuf>,
        /// The command, after `--`
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Write a rule to a file, the user's own if none is named
    Add {
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// What it says of them
        #[arg(long, value_parser = ["allow", "prompt", "forbidden"], default_value = "allow")]
        decision: String,
        /// Under what it runs: turn_default, a profile's name, unsandboxed
        #[arg(long, value_name = "EXECUTION")]
        execution: Option<String>,
        /// Why, for whoever reads it
        #[arg(long, value_name = "TEXT")]
        justification: Option<String>,
        /// The first words of the commands, after `--`
        #[arg(last = true, required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Take the rules about exactly these words out of a file, the user's own if none is named
    Remove {
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The words, after `--`
        #[arg(last = true, required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Try every example that rules give, and say what an operator should look at; or whether a command meets what is
    /// expected
    Test {
        /// Rule files; without any, those that a session would load
        #[arg(long, value_name = "FILE", num_args = 1..)]
        rules: Vec<PathBuf>,
        /// What the command is to meet
        #[arg(long, value_parser = ["allow", "prompt", "forbidden", "none"], requires = "command")]
        expect: Option<String>,
        /// The command, after `--`
        #[arg(last = true, requires = "expect", value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Print every rule that a session would have
    List {
        #[command(flatten)]
        sources: RuleSources,
    },
    /// Print every rule that is looked at for a command, which one decides, and what would happen
    Explain {
        #[command(flatten)]
        sources: RuleSources,
        /// Under this mode
        #[arg(long, value_name = "MODE", conflicts_with = "profile")]
        sandbox: Option<String>,
        /// Under this profile
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,
        /// Under this approval policy
        #[arg(long, value_name = "POLICY")]
        approval: Option<String>,
        /// The command, after `--`
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

/// Where rules come from.
#[derive(Debug, Args)]
struct RuleSources {
    /// Rule files, besides those of the configuration
    #[arg(long, value_name = "FILE", num_args = 1..)]
    rules: Vec<PathBuf>,
    /// Directories of skills, besides those of the configuration
    #[arg(long, value_name = "DIR", num_args = 1..)]
    skills: Vec<PathBuf>,
    /// A configuration file, read last
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl RuleSources {
    fn options(self) -> Options {
        Options { rules: self.rules, skills: self.skills, config: self.config, ..Options::default() }
    }
}

#[derive(Debug, Subcommand)]
enum SkillsAction {
    /// Print every skill that a session would have, and what its scripts may touch
    List {
        /// Directories of skills, besides those of the configuration
        #[arg(long, value_name = "DIR", num_args = 1..)]
        skills: Vec<PathBuf>,
        /// A configuration file, read last
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum SandboxAction {
    /// Print what a profile gives here, which entry decides about a path, and every step that enforces it
    Explain(ExplainArguments),
    /// Print a profile (JSON) as a legacy sandbox mode, or a legacy mode as a profile
    Convert {
        /// What it is to become
        #[arg(long, value_enum)]
        to: front::Shape,
        /// The file; `-` is standard input
        file: PathBuf,
    },
    /// Print what of a requested profile (JSON) another one grants
    Intersect {
        /// What was asked for
        requested: PathBuf,
        /// What was given
        granted: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum SessionsAction {
    /// End a session, by its id or how that begins
    End {
        /// As `postern sessions` prints it
        id: String,
    },
}

/// The program's whole run: its exit status.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> i32 {
    if is_shell(&arguments) {
        return front::run(&Options::default(), &arguments, true);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, and all else is an error: clap knows where each goes.
            let _closed = error.print();
            return error.exit_code();
        }
    };
    match cli.command {
        None => {
            let mut zsh = vec![OsString::from("zsh")];
            zsh.extend(cli.zsh);
            front::run(&cli.session.options(), &zsh, false)
        }
        Some(Command::Log(arguments)) => status(front::log(arguments)),
        Some(Command::Rules { action: RulesAction::Check { rules, command } }) => status(
            front::check(&rules, &command)
                .map(|json| say(&format!("{json}\n")))
                .map_err(|error| error.to_string()),
        ),
        Some(Command::Rules {
            action: RulesAction::Add { file, decision, execution, justification, words },
        }) => status(front::add(file, &decision, execution, justification, words).map(|text| say(&text))),
        Some(Command::Rules { action: RulesAction::Remove { file, words } }) => {
            status(front::remove(file, &words).map(|text| say(&text)))
        }
        Some(Command::Rules { action: RulesAction::Test { rules, expect, command } }) => {
            status(front::test(&rules, expect.as_deref(), &command).map(|text| say(&text)))
        }
        Some(Command::Rules { action: RulesAction::List { sources } }) => {
            status(front::rules(&sources.options()).map(|text| say(&text)))
        }
        Some(Command::Rules {
            action: RulesAction::Explain { sources, sandbox, profile, approval, command },
        }) => {
            let options = Options { sandbox, profile, approval, ..sources.options() };
            status(front::explain_command(&options, &command).map(|text| say(&text)))
        }
        Some(Command::Skills { action: SkillsAction::List { skills, config, json } }) => {
            let options = Options { skills, config, ..Options::default() };
            status(front::skills(&options, json).map(|text| say(&text)))
        }
        Some(Command::Trust(arguments)) => status(front::trust(&arguments).map(|text| say(&text))),
        Some(Command::Sandbox { action: SandboxAction::Explain(arguments) }) => {
            status(front::explain(arguments).map(|text| say(&text)))
        }
        Some(Command::Sandbox { action: SandboxAction::Convert { to, file } }) => {
            status(front::convert(&file, to).map(|text| say(&text)))
        }
        Some(Command::Sandbox { action: SandboxAction::Intersect { requested, granted } }) => {
            status(front::intersect(&requested, &granted).map(|text| say(&text)))
        }
        Some(Command::Request(arguments)) => status(front::request(arguments).map(|text| say(&text))),
        Some(Command::Exec { session, wish, timeout, command }) => match wish.wish() {
            Ok(Some(wish)) if front::inside() => {
                let plain = *session == SessionArguments::default() && timeout.is_none();
                let what = "inside a session `exec` asks that session, and takes none of the options of one";
                let asked = if plain { front::ask(wish, &command) } else { Err(what.to_owned()) };
                asked.unwrap_or_else(|what| status(Err(what)))
            }
            Ok(wish) => {
                let mut zsh: Vec<OsString> =
                    ["zsh", "-fc", "exec -- \"$@\"", "zsh"].map(OsString::from).into();
                zsh.extend(command);
                front::run(&Options { wish, timeout, ..session.options() }, &zsh, false)
            }
            Err(what) => status(Err(what)),
        },
        Some(Command::Approve(arguments)) => status(front::approve(&arguments)),
        Some(Command::Why { seq, session }) => status(front::why(seq, session).map(|text| say(&text))),
        Some(Command::Env { config, json }) => status(front::env(config, json).map(|text| say(&text))),
        Some(Command::Sessions { action: None }) => status(front::list().map(|text| say(&text))),
        Some(Command::Sessions { action: Some(SessionsAction::End { id }) }) => status(front::end(&id)),
        Some(Command::Doctor { json, config, profile, sandbox }) => {
            let options = Options { config, profile, sandbox, ..Options::default() };
            let (text, ok) = front::doctor(json, &options);
            say(&text);
            i32::from(!ok)
        }
    }
}

/// `posternsh` in any of its guises: as itself, with a login shell's dash, and as `shell/zsh`.
fn is_shell(arguments: &[OsString]) -> bool {
    let name = arguments.first().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    let name = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    matches!(name.strip_prefix(b"-").unwrap_or(name), b"posternsh" | b"zsh")
}

fn say(text: &str) {
    // A reader that has seen enough is no error.
    let _closed = std::io::stdout().lock().write_all(text.as_bytes());
}

#[expect(clippy::print_stderr, reason = "the one place where a front door's error reaches a person")]
fn status(result: Result<(), String>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(what) => {
            eprintln!("postern: {what}");
            1
        }
    }
}
