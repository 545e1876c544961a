//! The skills of the project: files below a writable root, which count as long as no sandbox can have
//! changed them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::fcntl::{Flock, FlockArg};
use postern_shim::wire::Bytes;
use serde_json::json;

use super::config::ProjectSkills;
use super::intake;
use super::server::Session;
use super::tree::{PLACE, Tree};
use crate::flow::text::{printable, to_json};
use crate::flow::{Cwd, Request, Skill};
use crate::profile::{Reach, Resolved};
use crate::sandbox::elsewhere;

/// Skills of the project, in a session.
#[derive(Debug)]
pub(super) struct HeldSkills {
    pub(super) skills: Vec<Skill>,
    /// The session's reach, without them.
    reach: RefCell<Rc<Reach>>,
    tree: Tree,
    /// Whether they have changed since the session started, or could have been changed.
    lost: Cell<bool>,
}

/// Projects whose `.agents` was open for a moment, by what was covered again in this session: what runs in
/// it may hold a file or directory there open for writing, for as long as it lives.
#[derive(Debug)]
pub(super) struct Opened {
    directory: PathBuf,
    id: String,
    /// Locked until this process ends, which it does after all that runs in the session.
    held: RefCell<BTreeMap<PathBuf, Flock<File>>>,
}

impl Opened {
    pub(super) fn of(state: &Path, id: &str) -> Self {
        Self { directory: state.join("opened"), id: id.to_owned(), held: RefCell::default() }
    }

    /// Something was covered again.
    fn note(&self, covered: &Path) -> std::io::Result<()> {
        let Some(project) = covered.parent().filter(|_| covered.ends_with(PLACE[0])) else { return Ok(()) };
        if self.held.borrow().contains_key(project) {
            return Ok(());
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.directory.join(format!("{}.{}", name_of(project), self.id));
        let locked = loop {
            let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            let locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            // Who looked in between took an unlocked one for what a session has left.
            if path.metadata().is_ok_and(|found| locked.metadata().is_ok_and(|own| own.ino() == found.ino()))
            {
                break locked;
            }
        };
        self.held.borrow_mut().insert(project.to_path_buf(), locked);
        Ok(())
    }

    /// The session that still runs in which a project's `.agents` was open, if there is one.
    fn by(project: &Path, state: &Path) -> std::io::Result<Option<String>> {
        let entries = match std::fs::read_dir(state.join("opened")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        let beginning = format!("{}.", name_of(project));
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_prefix(&beginning) else { continue };
            match Flock::lock(File::open(entry.path())?, FlockArg::LockSharedNonblock) {
                // Who held it has ended.
                Ok(_) => std::fs::remove_file(entry.path())?,
                Err(_) => return Ok(Some(id.to_owned())),
            }
        }
        Ok(None)
    }
}

fn name_of(project: &Path) -> String {
    blake3::hash(project.as_os_str().as_bytes()).to_hex().to_string()
}

/// What the sandboxes of a session can change, if they cannot change the skills of a project.
///
/// # Errors
/// Why they could, for people: then these skills do not count.
pub(super) fn hold<'a>(
    tree: &Tree,
    reach: &Reach,
    below_writable: bool,
    mut temporary: impl Iterator<Item = &'a PathBuf>,
    state: &Path,
) -> Result<Reach, String> {
    let shown = |path: &Path| printable(path.as_os_str().as_encoded_bytes());
    let no = |why: String| format!("{} does not count: {why}", shown(&tree.root));
    let project = tree.root.ancestors().nth(PLACE.len()).unwrap_or(Path::new("/"));
    let found =
        elsewhere(&tree.root).map_err(|error| no(format!("it cannot be seen what is mounted: {error}")))?;
    if let Some(within) = found.within.first() {
        return Err(no(format!("something else is mounted at {}", shown(within))));
    }
    if let Some(also) = found.also.iter().find(|also| reach.gives(also)) {
        return Err(no(format!(
            "it is at {} too, by another mount, and a sandbox can write there",
            shown(also)
        )));
    }
    let opened = Opened::by(project, state).map_err(|error| no(format!("{}: {error}", state.display())))?;
    if let Some(id) = opened {
        return Err(no(format!(
            "what runs in the session {id} may have it open since somebody outside replaced .agents: end that with \
             `postern sessions end {id}`"
        )));
    }
    if !reach.gives(&tree.root) {
        return Ok(reach.clone());
    }
    if !below_writable {
        return Err(no(
            "a sandbox can write the project, and without namespaces nothing in it can be held read-only"
                .to_owned(),
        ));
    }
    if temporary.any(|temporary| temporary == project) {
        return Err(no("nothing is protected directly below a temporary directory".to_owned()));
    }
    reach.holding(project, PLACE).map_err(|other| {
        no(format!(
            "a sandbox can write {}, and so could change or move it: keep skills elsewhere, or narrow the profile",
            shown(&other)
        ))
    })
}

impl HeldSkills {
    pub(super) fn new(project: ProjectSkills, reach: Reach) -> Self {
        let ProjectSkills { tree, skills } = project;
        Self { skills, reach: RefCell::new(Rc::new(reach)), tree, lost: Cell::new(false) }
    }

    pub(super) fn reach(&self) -> Rc<Reach> {
        Rc::clone(&self.reach.borrow())
    }

    /// Whether a command may be one of their scripts: by its file, or by what its program is told to run.
    fn concern(&self, program: &Path, told: Option<&Bytes>, cwd: Option<&Cwd>) -> bool {
        let script = told.zip(cwd).map(|(word, cwd)| cwd.path.join(OsStr::from_bytes(word.as_slice())));
        let script = || intake::leads(&script?, &self.reach());
        program.starts_with(&self.tree.root) || script().is_some_and(|path| path.starts_with(&self.tree.root))
    }
}

impl Session {
    /// The skills of the project, where a command may be about them and they are still, every file of
    /// them, what they were when the session started: a script may read any of them.
    pub(super) fn project_skills(
        &self,
        program: &Path,
        told: Option<&Bytes>,
        cwd: Option<&Cwd>,
    ) -> Option<&HeldSkills> {
        let project = self.project.as_ref().filter(|project| !project.lost.get())?;
        if !project.concern(program, told, cwd) {
            return None;
        }
        if !project.tree.stands() {
            self.lose(project, "a file of them is not what it was when the session started");
            return None;
        }
        Some(project)
    }

    /// What sandboxes could have changed of what a request is about.
    pub(super) fn reach_of(&self, request: &Request) -> Rc<Reach> {
        self.asked(request).map_or_else(|| self.grants.reach(), HeldSkills::reach)
    }

    /// What becomes of the skills of the project if sandboxes may write what a profile gives.
    pub(super) fn loses_project(&self, profile: &Resolved) -> Option<String> {
        let project = self.project.as_ref().filter(|project| !project.lost.get())?;
        let reach = Reach::clone(&self.grants.reach()).and(profile);
        let (below_writable, temporary) = (self.abilities.hold_below_writable(), self.own.temporary.iter());
        hold(&project.tree, &reach, below_writable, temporary, self.grants.state()).err()
    }

    /// Sandboxes come to reach more: if they reach the skills of the project, those do not count any more.
    pub(super) fn hold_project(&self, reach: &Reach) {
        let Some(project) = &self.project else { return };
        let (below_writable, temporary) = (self.abilities.hold_below_writable(), self.own.temporary.iter());
        match hold(&project.tree, reach, below_writable, temporary, self.grants.state()) {
            Ok(reach) => *project.reach.borrow_mut() = Rc::new(reach),
            Err(why) => self.lose(project, &why),
        }
    }

    /// Whether the skill whose script a request is, if it is one, is what it was.
    pub(super) fn skill_stands(&self, request: &Request) -> bool {
        self.asked(request).is_none_or(|project| {
            let stands = !project.lost.get() && project.tree.stands();
            if !stands {
                self.lose(project, "a file of them is not what it was when the session started");
            }
            stands
        })
    }

    /// Something was open for a moment: who was fast could have put anything there, or keeps it open.
    pub(super) fn uncovered(&self, path: &[u8]) {
        let path = Path::new(OsStr::from_bytes(path));
        if let Err(error) = self.opened.note(path) {
            tracing::error!(%error, "it cannot be noted that .agents was open");
        }
        if let Some(project) = self.project.as_ref()
            && (project.tree.root.starts_with(path) || path.starts_with(&project.tree.root))
        {
            self.lose(project, "somebody outside has replaced what held them");
        }
    }

    fn asked(&self, request: &Request) -> Option<&HeldSkills> {
        let skill = request.skill.as_ref()?;
        self.project.as_ref().filter(|project| project.skills.contains(skill))
    }

    /// From now on they do not count.
    fn lose(&self, project: &HeldSkills, why: &str) {
        if project.lost.replace(true) {
            return;
        }
        let path = to_json(project.tree.root.as_os_str().as_bytes());
        let _unrecorded = self.recorder.session_event("skills_lost", &json!({ "path": path, "reason": why }));
    }
}
