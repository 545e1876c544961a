//! From options to a running session. Everything that can be wrong is found before the first fork.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use postern_shim::wire::Bytes;

use super::config::{self, Config, ConfigError, Options};
use super::directories::Directories;
use super::grants::Named;
use super::grounds::Grounds;
use super::held::{self, HeldSkills};
use super::server::{self, Setup};
use crate::flow::Execution;
use crate::policy::Stance;
use crate::profile::{self, Access, Bases, Place, Reach, Resolved};
use crate::runner::{Begin, Channel, Cwd, NewSpawner, Profiles, ShellStart};
use crate::sandbox::{Abilities, Facts, Leases, Own, Plan, Refusal, by_every_path, plan, worktree};
use crate::sys::process::{self, Fork};

/// The number of the request socket in the confined shell: out of the way of scripts, which use
/// one digit, and of zsh, which takes its own from 10 up.
const GATE: i32 = 63;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("{0}")]
    Find(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "the state directory {path} cannot be used: {error}; make it writable for this user, or set XDG_STATE_HOME"
    )]
    State { path: PathBuf, error: io::Error },
    #[error("{what} is missing at {path}: run `make`, or reinstall")]
    Missing { what: &'static str, path: PathBuf },
    #[error(
        "{0} lies where the sandbox can write, so what runs inside could change the rules of the next session: keep \
         rule and configuration files elsewhere"
    )]
    Source(PathBuf),
    #[error(
        "the profile {profile} names the socket {path}, which lies where a sandbox can write and could put another in \
         its place: let the daemon listen elsewhere"
    )]
    Socket { profile: String, path: PathBuf },
    #[error(
        "{0} holds skills and lies where a sandbox can write, so what runs inside could change what runs outside: keep \
         skills elsewhere, or narrow the profile"
    )]
    Skills(PathBuf),
    #[error(
        "{place}: this rule keeps commands from {host}, the profile {profile} has the network, and this version does not \
         hold rules about hosts: withhold the network, or allow it with allow_weaker = [\"network_rules\"]"
    )]
    Hosts { place: String, host: String, profile: String },
    #[error("the reviewer {0} is no program that this user can execute")]
    Reviewer(PathBuf),
    #[error("--pass-fd {number}: {what}")]
    PassFd { number: i32, what: String },
    #[error("--add-dir {path}: {error}")]
    AddDir { path: PathBuf, error: io::Error },
    #[error("--add-dir {path}: {own} is there, which no sandbox may write; add directories beside it")]
    AddedOwn { path: PathBuf, own: PathBuf },
    #[error("--cwd {path}: {error}")]
    Cwd { path: PathBuf, error: io::Error },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
}

fn io_error<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |error| LaunchError::Io { what, error: error.into() }
}

/// A session that could start.
#[derive(Debug)]
pub(crate) struct Prepared {
    directories: Directories,
    pub(super) config: Config,
    /// Within which the project's own skills cannot be changed.
    pub(super) held: Option<Reach>,
    pub(super) bases: Bases,
    grounds: Grounds,
    pub(crate) turn: Resolved,
    pub(crate) plan: Option<Plan>,
    pub(super) named: Named,
    pub(super) reach: Reach,
    pub(super) abilities: Abilities,
    pub(super) own: Own,
    /// Roots where whoever is inside can make a repository, which is then its own.
    unversioned: Vec<PathBuf>,
    id: String,
    tmpdir: PathBuf,
    pub(crate) cwd: PathBuf,
    pass_fds: Vec<i32>,
    /// What differs from what one might expect, for records and `postern doctor`.
    pub(crate) notes: Vec<String>,
}

/// A session that runs: what its front holds of it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) spawner: Channel,
    pub(crate) server: Channel,
}

/// Reads everything, and plans.
///
/// # Errors
/// The first thing that is wrong. Nothing has been started; what was made is the state directory, and
/// once all is right the session's temporary directory.
pub(crate) fn prepare(options: &Options) -> Result<Prepared, LaunchError> {
    let directories = Directories::find().map_err(LaunchError::Find)?;
    for (what, path) in [("the patched zsh", directories.zsh()), ("the spawner", directories.spawner())] {
        if !path.exists() {
            return Err(LaunchError::Missing { what, path });
        }
    }
    if let Some(cwd) = &options.cwd {
        std::env::set_current_dir(cwd).map_err(|error| LaunchError::Cwd { path: cwd.clone(), error })?;
    }
    let cwd = std::env::current_dir().map_err(io_error("find the working directory"))?;
    for &number in &options.pass_fds {
        let what = match process::open_flags(process::standard(number)) {
            _ if number == GATE => {
                "the session has its request socket there; choose another number".to_owned()
            }
            Err(error) => format!("{error}; open it for this process, as in `{number}< file`"),
            Ok(_) => continue,
        };
        return Err(LaunchError::PassFd { number, what });
    }
    let mut config = config::load(options, &directories)?;
    directories
        .make_state()
        .map_err(|error| LaunchError::State { path: directories.state.clone(), error })?;

    let abilities = Abilities::probe(config.allow_weaker.clone());
    if config.turn.filesystem.is_some() {
        abilities.suffice()?;
    }
    let id = new_id().map_err(io_error("draw a session's id"))?;
    let temporary =
        std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute() && path.is_dir());
    let temporary = temporary.unwrap_or_else(|| PathBuf::from("/tmp"));
    let temporary = temporary.canonicalize().map_err(io_error("find the temporary directory"))?;
    let tmpdir = temporary.join(format!("postern-{id}"));
    let mut notes: Vec<String> = config.notes.iter().chain(&config.said).cloned().collect();
    let unknown = config.turn.filesystem.iter().flatten().filter_map(|entry| match &entry.place {
        Place::Unknown(token) => Some(token),
        _ => None,
    });
    let name = &config.turn.name;
    config
        .said
        .extend(unknown.map(|token| {
            format!("profile {name}: `{token}` is not known to this version and gives nothing")
        }));
    let real = real_once();
    let bases = bases(&cwd, &options.add_dirs, &tmpdir, &directories, &real, &mut notes)?;
    let grounds = Grounds::new(&config, &directories, &bases, &real)?;
    let mut turn = grounds.turn(&real)?;
    let given = turn
        .entries
        .iter()
        .filter(|(path, access)| *access == Access::Write && path.symlink_metadata().is_err());
    // That one is made below.
    notes.extend(given.filter(|(path, _)| *path != tmpdir).map(|(path, _)| {
        format!(
            "{} does not exist: nothing is given there, make it before the session starts",
            path.display()
        )
    }));
    let mut named = config
        .named
        .values()
        .map(|profile| {
            // Nobody but the operator opens again what the operator has closed.
            let asked_for =
                profile.name == config::REQUESTED || profile.name.starts_with(super::skills::PREFIX);
            let mut resolved = grounds.named(profile, &turn, asked_for, &real)?;
            if profile.name == "git" {
                lead_to_worktrees(&mut resolved, &bases);
            }
            Ok((profile.name.clone(), Rc::new(resolved)))
        })
        .collect::<Result<Named, LaunchError>>()?;
    let mut reach = self::reach(&config, &turn, &named);
    let temporary = bases.slash_tmp.iter().chain([&bases.tmpdir]);
    let held = config.project.as_ref().map(|project| {
        held::hold(&project.tree, &reach, abilities.hold_below_writable(), temporary, &directories.state)
    });
    let held = held.transpose().unwrap_or_else(|why| {
        notes.push(why.clone());
        config.said.push(why);
        for skill in config.project.take().into_iter().flat_map(|project| project.skills) {
            config.named.remove(skill.execution.written());
            named.remove(skill.execution.written());
        }
        // What their profiles would have written nobody writes.
        reach = self::reach(&config, &turn, &named);
        None
    });
    if let Some(reviewer) = config.reviewers.programs().find(|reviewer| !executable(&reviewer.program)) {
        return Err(LaunchError::Reviewer(reviewer.program.clone()));
    }
    let all: Vec<&Resolved> = [&turn].into_iter().chain(named.values().map(Rc::as_ref)).collect();
    let open: Vec<&Resolved> = [&turn]
        .into_iter()
        .chain(granted(&config).filter_map(|name| named.get(name)).map(Rc::as_ref))
        .collect();
    notes.extend(grounds.hold(&reach, &all, &open)?);
    let serves_sockets = all.iter().any(|profile| !profile.unrestricted && !profile.unix_sockets.is_empty());

    let leases = Leases::within(&directories.state)
        .map_err(|error| LaunchError::State { path: directories.state.clone(), error })?;
    leases.sweep();
    let temporary = bases.slash_tmp.iter().chain([&tmpdir]).cloned().collect();
    let own = Own {
        hidden: vec![real(&directories.state)],
        temporary,
        leases,
        serves_sockets,
        terminal: terminal(),
    };
    // Even where the turn has no sandbox, a command of it may have one.
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&tmpdir)
        .map_err(io_error("create the session's temporary directory"))?;
    let unversioned = turn
        .writable_roots()
        .filter(|root| !own.temporary.iter().any(|temporary| temporary == root))
        .filter(|root| root.join(".git").symlink_metadata().is_err())
        .map(Path::to_path_buf)
        .collect();
    let plan = if turn.unrestricted {
        None
    } else {
        let facts =
            Facts::gather(&turn, &own, &abilities).inspect_err(|_| drop(std::fs::remove_dir(&tmpdir)))?;
        let plan = plan(&turn, &facts, &abilities);
        // What protects is part of what the turn may touch.
        turn.entries.clone_from(&plan.profile.entries);
        Some(plan)
    };
    Ok(Prepared {
        directories,
        config,
        held,
        bases,
        grounds,
        turn,
        plan,
        named,
        reach,
        abilities,
        own,
        unversioned,
        id,
        tmpdir,
        cwd,
        notes,
        pass_fds: options.pass_fds.clone(),
    })
}

/// Turns what the `git` profile says of a `.git` directory to where a linked worktree has it.
fn lead_to_worktrees(git: &mut Resolved, bases: &Bases) {
    for root in [&bases.project].into_iter().chain(&bases.added) {
        let file = real(root).join(".git");
        if !file.is_file() {
            continue;
        }
        git.entries.retain(|(path, _)| !path.starts_with(&file));
        let Some((own, common)) = worktree(root) else { continue };
        let closed = profile::CLOSED.map(|name| (common.join(name), Access::Read));
        let pinned = profile::PINNED.map(|name| (common.join(name), Access::Write));
        let pointers = ["HEAD", "modules", "commondir", "gitdir", "config.worktree"]
            .map(|name| (own.join(name), Access::Read));
        git.entries.extend([(common, Access::Write), (own, Access::Write)]);
        git.entries.extend(closed.into_iter().chain(pinned).chain(pointers));
    }
}

impl Prepared {
    /// Profiles that a rule grants and that cannot be held here, with the reason.
    pub(crate) fn refusals(&self) -> Vec<(String, Refusal)> {
        let refused = |name: &String| {
            let profile = self.named.get(name).filter(|profile| !profile.unrestricted)?;
            let refusal = Facts::gather(profile, &self.own, &self.abilities).err()?;
            Some((name.clone(), refusal))
        };
        let granted: std::collections::BTreeSet<_> = granted(&self.config).collect();
        granted.into_iter().filter_map(refused).collect()
    }

    /// What a command meets that no rule matches.
    pub(super) fn stance(&self) -> Stance {
        Stance {
            policy: self.config.approval.clone(),
            unrestricted: self.turn.unrestricted,
            requested: self.config.requested.clone(),
            granted: None,
        }
    }

    /// What was asked for and is not given.
    pub(crate) fn said(&self) -> &[String] {
        &self.config.said
    }

    /// Starts nothing, and leaves nothing.
    pub(crate) fn discard(self) {
        let _left = std::fs::remove_dir(&self.tmpdir);
    }
}

fn new_id() -> io::Result<String> {
    let mut random = [0; 3];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S");
    Ok(format!("{now}-{:02x}{:02x}{:02x}", random[0], random[1], random[2]))
}

/// The project: the git root above the working directory, else that itself.
pub(super) fn project_of(cwd: &Path) -> &Path {
    cwd.ancestors().find(|path| path.join(".git").symlink_metadata().is_ok()).unwrap_or(cwd)
}

fn bases(
    cwd: &Path,
    add_dirs: &[PathBuf],
    tmpdir: &Path,
    directories: &Directories,
    real: impl Fn(&Path) -> PathBuf,
    notes: &mut Vec<String>,
) -> Result<Bases, LaunchError> {
    let holds_own = |root: &Path| directories.decides(&real, root).into_iter().next();
    let project = project_of(cwd).to_path_buf();
    let mut project_writable = true;
    if real(&directories.home).starts_with(&project) {
        notes.push(format!("{} is not writable: it is the home directory, or holds it", project.display()));
        project_writable = false;
    } else if let Some(own) = holds_own(&real(&project)) {
        notes.push(format!("{} is not writable: Postern's {} is there", project.display(), own.display()));
        project_writable = false;
    }
    let slash_tmp = Some(PathBuf::from("/tmp")).filter(|path| path.is_dir());
    let slash_tmp = slash_tmp.and_then(|path| path.canonicalize().ok()).filter(|path| {
        let blocked = if real(&directories.home).starts_with(path) {
            Some(directories.home.clone())
        } else {
            holds_own(path)
        };
        if let Some(own) = &blocked {
            notes.push(format!("/tmp is not writable: it holds {}", own.display()));
        }
        blocked.is_none()
    });
    let added = add_dirs
        .iter()
        .map(|path| {
            let error = |error| LaunchError::AddDir { path: path.clone(), error };
            let found = path.canonicalize().map_err(error)?;
            if !found.is_dir() {
                return Err(error(io::ErrorKind::NotADirectory.into()));
            }
            match holds_own(&found) {
                Some(own) => Err(LaunchError::AddedOwn { path: path.clone(), own }),
                None if real(&directories.home).starts_with(&found) => {
                    Err(LaunchError::AddedOwn { path: path.clone(), own: directories.home.clone() })
                }
                None => Ok(found),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let cwd_writable = holds_own(&real(cwd)).is_none() && !real(&directories.home).starts_with(real(cwd));
    let cwd = cwd.to_path_buf();
    Ok(Bases { project, project_writable, added, cwd, cwd_writable, tmpdir: tmpdir.to_path_buf(), slash_tmp })
}

/// Names of the profiles that rules grant.
fn granted(config: &Config) -> impl Iterator<Item = &String> {
    let executions = config.policy.rules().iter().filter_map(|rule| rule.allowed.execution.as_ref());
    let requested = config.requested.iter().map(|requested| &requested.execution);
    let project = config.project.iter().flat_map(|project| &project.skills);
    let skills = config.skills.iter().chain(project).map(|skill| &skill.execution);
    executions.chain([&config.default_execution]).chain(requested).chain(skills).filter_map(|execution| {
        match execution {
            Execution::Permissions(name) => Some(name),
            _ => None,
        }
    })
}

/// What the turn and every profile that a rule can grant may write.
fn reach(config: &Config, turn: &Resolved, named: &Named) -> Reach {
    if turn.unrestricted {
        return Reach::default();
    }
    let profiles = granted(config).filter_map(|name| named.get(name)).map(Rc::as_ref);
    by_every_path(Reach::of(profiles.chain([turn])))
}

/// Whether this user can execute a file.
pub(super) fn executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// [`real`], asked once for each path: profiles name the same few over and over. Only while nothing runs
/// that could change them.
fn real_once() -> impl Fn(&Path) -> PathBuf {
    let known = RefCell::new(HashMap::new());
    move |path| {
        let mut known = known.borrow_mut();
        known.entry(path.to_path_buf()).or_insert_with(|| self::real(path)).clone()
    }
}

/// A path without symlinks as far as it exists.
pub(super) fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(found) = ancestor.canonicalize() {
            // Joining nothing would leave a slash at the end.
            return match path.strip_prefix(ancestor) {
                Ok(rest) if !rest.as_os_str().is_empty() => found.join(rest),
                _ => found,
            };
        }
    }
    path.to_path_buf()
}

/// What of a session starts while it is prepared; gone with this, if that fails.
#[derive(Debug)]
pub(crate) struct Early {
    spawner: NewSpawner,
    /// How many files this process could open, soft and hard.
    open_files: (u64, u64),
}

impl Early {
    /// # Errors
    /// If the installation is not whole, or a fork or a socket is not to be had.
    pub(crate) fn start() -> Result<Self, LaunchError> {
        let directories = Directories::find().map_err(LaunchError::Find)?;
        let limit = process::raise_open_files().map_err(io_error("raise the limit of open files"))?;
        let spawner = NewSpawner::start(&directories.spawner()).map_err(io_error("start the spawner"))?;
        Ok(Self { spawner, open_files: (limit.rlim_cur, limit.rlim_max) })
    }
}

/// Lets the spawner begin and starts the server; what remains is the front.
///
/// # Errors
/// If a fork or a socket is not to be had.
pub(crate) fn launch(
    early: Early,
    prepared: Prepared,
    shell_argv: Vec<Bytes>,
) -> Result<Running, LaunchError> {
    let baseline = callers_environment();
    // Whoever has no sandbox is the user.
    let given = match &prepared.plan {
        Some(plan) => {
            let given = prepared.config.shell_environment.apply(&baseline);
            let prefix = temporary_prefix(plan, &prepared.tmpdir, &given);
            given.into_iter().chain(prefix).collect()
        }
        None => baseline.clone(),
    };
    let (gate_server, gate_inside) = crate::sys::socket::pair().map_err(io_error("create a socket"))?;
    let (front_server, server_front) = Channel::pair().map_err(io_error("create a socket"))?;
    let (go, ready) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io_error("create a pipe"))?;
    let metadata = prepared.cwd.metadata().map_err(io_error("look at the working directory"))?;
    let cwd = Cwd::Exact {
        path: Bytes(prepared.cwd.as_os_str().as_bytes().to_vec()),
        dev: metadata.dev(),
        ino: metadata.ino(),
    };
    let (ignored, blocked) = own_signals().map_err(io_error("read this process's signals"))?;
    let mut env = given.clone();
    if prepared.plan.is_some() {
        env.retain(|variable| !variable.as_slice().starts_with(b"TMPDIR="));
        env.push(Bytes([b"TMPDIR=", prepared.tmpdir.as_os_str().as_bytes()].concat()));
    }
    env.push(Bytes(format!("{}={GATE}", postern_shim::SOCKET_VARIABLE).into_bytes()));
    let stance = prepared.stance();
    let shell = ShellStart {
        program: prepared.directories.zsh(),
        argv: shell_argv.clone(),
        env,
        gate: GATE,
        cwd,
        ignored,
        blocked,
        open_files: early.open_files,
        pass_fds: prepared.pass_fds,
    };
    let profiles = Profiles {
        abilities: prepared.abilities.clone(),
        own: prepared.own.clone(),
        turn: prepared.plan,
        named: prepared.named.iter().map(|(name, profile)| (name.clone(), (**profile).clone())).collect(),
    };
    let begun = early.spawner.begin(&Begin { profiles, shell }, &gate_inside, &go);
    let (spawner_pid, front_spawner, server_spawner) = begun.map_err(io_error("tell the spawner"))?;
    drop(go);

    let amended = super::rule_files::own(&prepared.directories);
    if let Fork::Child = process::fork().map_err(io_error("fork the server"))? {
        drop((front_spawner, front_server));
        let keep = [&gate_server, &gate_inside, &ready].map(AsRawFd::as_raw_fd);
        leave_caller(&[&keep[..], &[server_spawner.as_raw_fd(), server_front.as_raw_fd()]].concat());
        server::serve(Setup {
            id: prepared.id,
            policy: prepared.config.policy,
            amended,
            stance,
            skills: prepared.config.skills,
            project: prepared
                .config
                .project
                .zip(prepared.held)
                .map(|(project, reach)| HeldSkills::new(project, reach)),
            default_execution: prepared.config.default_execution,
            grounds: prepared.grounds,
            named: prepared.named,
            baseline,
            given,
            state: prepared.directories.state,
            own: prepared.own,
            unversioned: prepared.unversioned,
            log_max_bytes: prepared.config.log_max_bytes,
            patience: prepared.config.patience,
            timeout: prepared.config.timeout,
            reviewers: prepared.config.reviewers,
            tmpdir: prepared.tmpdir,
            reach: prepared.reach,
            turn: prepared.turn,
            abilities: prepared.abilities,
            notes: prepared.notes,
            cwd: prepared.cwd,
            argv: shell_argv,
            gate: (GATE, gate_server, gate_inside),
            spawner: (spawner_pid, server_spawner),
            front: server_front,
            ready,
        });
        process::exit_now(0)
    }
    Ok(Running { spawner: front_spawner, server: front_server })
}

/// Where zsh is to put its here documents, unless the caller says that or it can where it does by itself.
fn temporary_prefix(plan: &Plan, tmpdir: &Path, given: &[Bytes]) -> Option<Bytes> {
    let writes = |path: &Path| plan.profile.access(path) == Some(Access::Write);
    let said = given.iter().any(|variable| variable.as_slice().starts_with(b"TMPPREFIX="));
    if said || writes(Path::new("/tmp")) || !writes(tmpdir) && plan.is_alone() {
        return None;
    }
    // The other one each sandbox has for itself, whatever its profile says.
    let directory = if writes(tmpdir) { tmpdir } else { Path::new("/dev/shm") };
    Some(Bytes([b"TMPPREFIX=", directory.as_os_str().as_bytes(), b"/zsh"].concat()))
}

/// The caller's environment, but for what sessions say to themselves.
pub(super) fn callers_environment() -> Vec<Bytes> {
    std::env::vars_os()
        .filter(|(name, _)| !name.as_bytes().starts_with(b"POSTERN_"))
        .map(|(name, value)| Bytes([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect()
}

/// The server keeps nothing of its caller's: no terminal, no descriptors for which somebody waits
/// to see the end, no working directory that could not be unmounted, no core with secrets in it.
fn leave_caller(keep: &[i32]) {
    let _leader = nix::unistd::setsid();
    let _closed = process::close_others(keep);
    let _left_closed = process::fill_standard();
    let _elsewhere = std::env::set_current_dir("/");
    let _hidden = process::hide_memory();
}

/// Which signals this process was started with ignored and blocked: the shell inherits them.
fn own_signals() -> io::Result<(u64, u64)> {
    let status = process::status("self")?;
    let field = |name: &str| {
        let text = status.lines().find_map(|line| line.strip_prefix(name)).map_or("0", str::trim);
        u64::from_str_radix(text, 16).map_err(io::Error::other)
    };
    // Rust's runtime ignores SIGPIPE for its own sake; nobody asked that of the shell.
    let pipe = 1 << (libc::SIGPIPE - 1);
    Ok((field("SigIgn:")? & !pipe, field("SigBlk:")?))
}

/// The caller's terminal, where one of the standard descriptors is one.
fn terminal() -> Option<PathBuf> {
    let standard = [
        io::stdin().as_fd().try_clone_to_owned(),
        io::stdout().as_fd().try_clone_to_owned(),
        io::stderr().as_fd().try_clone_to_owned(),
    ];
    standard
        .into_iter()
        .flatten()
        .find_map(|fd: OwnedFd| nix::unistd::ttyname(fd).ok())
        .filter(|path| path.starts_with("/dev/pts"))
}

/// Bytes of an argument.
pub(crate) fn bytes(text: &OsStr) -> Bytes {
    Bytes(text.as_bytes().to_vec())
}
