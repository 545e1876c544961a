//! Skills: directories with a `SKILL.md`, whose scripts run under what the skill declares. Read once,
//! before a session starts.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::config::{ConfigError, Options};
use super::directories::{Directories, SYSTEM};
use super::launch::{LaunchError, prepare, real};
use super::tree::Tree;
use crate::flow::text::printable;
use crate::flow::{Execution, Skill};
use crate::profile::{Access, Base, Entry, Place, Profile, from_json, to_json};

/// A skill, and the profile that it declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) skill: Skill,
    pub(crate) profile: Option<Profile>,
}

/// The front matter of `SKILL.md`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
struct FrontMatter {
    name: Option<String>,
    description: Option<String>,
    permissions: Option<Value>,
}

/// `agents/openai.yaml`, likewise.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    permissions: Option<Value>,
}

/// What the names of skills' profiles begin with.
pub(super) const PREFIX: &str = "skill:";

/// What a skill's profile is called where rules and records name profiles.
fn profile_name(directory: &Path) -> String {
    format!("{PREFIX}{}", printable(directory.as_os_str().as_encoded_bytes()))
}

/// The directories in which skills are looked for, best first. Those that were named must exist.
pub(crate) fn roots(named: &[PathBuf], directories: &Directories) -> Result<Vec<PathBuf>, ConfigError> {
    let read = |path: &Path, error| ConfigError::Read { path: path.to_path_buf(), error };
    let mut roots = Vec::new();
    for path in named {
        let found = path.canonicalize().map_err(|error| read(path, error))?;
        if !found.is_dir() {
            return Err(read(path, std::io::ErrorKind::NotADirectory.into()));
        }
        roots.push(found);
    }
    let known = [directories.home.join(".agents/skills"), Path::new(SYSTEM).join("skills")];
    roots.extend(known.iter().filter(|path| path.is_dir()).map(|path| real(path)));
    Ok(roots)
}

/// How deep below a root a skill may lie.
const DEEPEST: usize = 6;

/// Where the text of a file comes from; none if there is no such file.
type Texts<'a> = dyn Fn(&Path) -> std::io::Result<Option<String>> + 'a;

fn from_disk(path: &Path) -> std::io::Result<Option<String>> {
    match path.symlink_metadata() {
        Ok(_) => std::fs::read_to_string(path).map(Some),
        Err(_) => Ok(None),
    }
}

/// Finds the skills of a project among files that were read before: what they say is what was trusted.
///
/// # Errors
/// As [`discover`].
pub(super) fn of_project(
    tree: &Tree,
    directories: &Directories,
    notes: &mut Vec<String>,
) -> Result<Vec<Found>, ConfigError> {
    let texts = |path: &Path| Ok(tree.text(path).map(str::to_owned));
    let mut skills: Vec<Found> = Vec::new();
    let mut at: Vec<&Path> = tree
        .files
        .iter()
        .filter(|file| file.path.file_name().is_some_and(|name| name == "SKILL.md"))
        .filter_map(|file| file.path.parent())
        .collect();
    // The outermost first: below a skill there is none.
    at.sort_by_key(|path| path.components().count());
    for directory in at {
        let below = directory.strip_prefix(&tree.root).unwrap_or(directory);
        let hidden = below.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."));
        let inner = skills.iter().any(|found| directory.starts_with(&found.skill.directory));
        if !hidden && !inner && below.components().count() <= DEEPEST {
            skills.push(read(directory, &tree.root, &texts, directories, notes)?);
        }
    }
    skills.sort_by(|one, other| one.skill.directory.cmp(&other.skill.directory));
    Ok(skills)
}

/// Finds every skill below some directories.
///
/// # Errors
/// A declaration that cannot be read or understood, with file and line: it never counts as none.
pub(crate) fn discover(
    roots: &[PathBuf],
    directories: &Directories,
    notes: &mut Vec<String>,
) -> Result<Vec<Found>, ConfigError> {
    const MOST: usize = 2000;
    let mut skills: Vec<Found> = Vec::new();
    for root in roots {
        let mut left = VecDeque::from([(root.clone(), 0)]);
        let mut looked = 0;
        while let Some((directory, depth)) = left.pop_front() {
            looked += 1;
            if looked > MOST {
                let what = format!("more than {MOST} directories are below it: name a smaller one");
                return Err(ConfigError::Value { place: root.display().to_string(), what });
            }
            let error = |error| ConfigError::Read { path: directory.clone(), error };
            if directory.join("SKILL.md").symlink_metadata().is_ok() {
                if !skills.iter().any(|found| found.skill.directory == directory) {
                    skills.push(read(&directory, root, &from_disk, directories, notes)?);
                }
                continue;
            }
            if depth == DEEPEST {
                continue;
            }
            let mut below = Vec::new();
            for entry in std::fs::read_dir(&directory).map_err(error)? {
                let entry = entry.map_err(error)?;
                if !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_dir() {
                    below.push(real(&entry.path()));
                }
            }
            below.sort();
            left.extend(below.into_iter().map(|path| (path, depth + 1)));
        }
    }
    Ok(skills)
}

fn read(
    directory: &Path,
    root: &Path,
    texts: &Texts<'_>,
    directories: &Directories,
    notes: &mut Vec<String>,
) -> Result<Found, ConfigError> {
    let failed = |path: &Path, error| ConfigError::Read { path: path.to_path_buf(), error };
    let text = |path: &Path| texts(path).map_err(|error| failed(path, error));
    let (file, more) = (directory.join("SKILL.md"), directory.join("agents/openai.yaml"));
    let whole = text(&file)?.ok_or_else(|| failed(&file, std::io::ErrorKind::NotFound.into()))?;
    let (front, before) = front_matter(&whole, &file)?;
    let front_matter: FrontMatter = yaml(front, &file, before)?;
    let mut metadata = vec![file.clone()];
    let mut declared = front_matter.permissions.map(|value| (value, &file, &whole));
    let other;
    if let Some(found) = text(&more)? {
        other = found;
        metadata.push(more.clone());
        if let Some(value) = yaml::<Metadata>(&other, &more, 0)?.permissions {
            if declared.is_some() {
                return Err(ConfigError::Value {
                    place: format!("{}:{}", more.display(), line_of(&other, "permissions")),
                    what: format!("permissions are declared in {} too: keep one", file.display()),
                });
            }
            declared = Some((value, &more, &other));
        }
    }
    let fallback =
        || directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = front_matter.name.unwrap_or_else(fallback);
    let bad = |key: &str, what: &str| ConfigError::Value {
        place: format!("{}:{}", file.display(), line_of(&whole, key)),
        what: format!("{key}: {what}"),
    };
    if name.is_empty() || name.chars().count() > 64 {
        return Err(bad("name", "expected 1 to 64 characters"));
    }
    if front_matter.description.as_ref().is_none_or(|text| text.is_empty() || text.chars().count() > 1024) {
        return Err(bad("description", "expected 1 to 1024 characters"));
    }
    let profile = declared
        .map(|(value, file, text)| permissions(value, (file, text), directory, directories, notes))
        .transpose()?
        .flatten();
    let execution = match &profile {
        Some(profile) => Execution::Permissions(profile.name.clone()),
        None => Execution::TurnDefault,
    };
    let (directory, root) = (directory.to_path_buf(), root.to_path_buf());
    Ok(Found { skill: Skill { name, directory, root, execution, metadata }, profile })
}

/// The text between the first two lines `---`, and how many lines come before it.
fn front_matter<'a>(text: &'a str, file: &Path) -> Result<(&'a str, usize), ConfigError> {
    let missing = |line: usize, what: &str| ConfigError::Value {
        place: format!("{}:{line}", file.display()),
        what: what.to_owned(),
    };
    let body = text
        .strip_prefix("---")
        .and_then(|rest| rest.trim_start_matches([' ', '\t', '\r']).strip_prefix('\n'));
    let body = body.ok_or_else(|| missing(1, "expected a line `---`, front matter, and another `---`"))?;
    let mut at = 0;
    for line in body.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Ok((body.get(..at).unwrap_or_default(), 1));
        }
        at += line.len();
    }
    Err(missing(text.lines().count().max(1), "the front matter has no end: expected a line `---`"))
}

fn yaml<T: serde::de::DeserializeOwned + Default>(
    text: &str,
    file: &Path,
    before: usize,
) -> Result<T, ConfigError> {
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let what = error.without_snippet().to_string();
        ConfigError::Value {
            place: format!("{}:{}:{}", file.display(), usize::try_from(at.0).unwrap_or(1) + before, at.1),
            what: what.lines().next().unwrap_or_default().to_owned(),
        }
    })
}

/// The line on which a key stands, or the first one.
fn line_of(text: &str, key: &str) -> usize {
    let found = text.lines().position(|line| {
        line.trim_start()
            .trim_start_matches("- ")
            .trim_start_matches(['"', '\''])
            .strip_prefix(key)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
    });
    found.map_or(1, |at| at + 1)
}

/// A declaration as a profile: exactly that, and what a program needs to run. None if it asks for
/// nothing.
fn permissions(
    mut value: Value,
    (file, text): (&Path, &str),
    directory: &Path,
    directories: &Directories,
    notes: &mut Vec<String>,
) -> Result<Option<Profile>, ConfigError> {
    let place = |key: &str| format!("{}:{}", file.display(), line_of(text, key));
    if value.is_null() {
        return Ok(None);
    }
    let Some(table) = value.as_object_mut() else {
        let what = "permissions: expected network and file_system".to_owned();
        return Err(ConfigError::Value { place: place("permissions"), what });
    };
    // Another system's.
    table.remove("macos");
    let mut hosts = false;
    if let Some(network) = table.get_mut("network").and_then(Value::as_object_mut) {
        for key in ["allowed_domains", "denied_domains"] {
            hosts |=
                network.remove(key).is_some_and(|list| list.as_array().is_none_or(|list| !list.is_empty()));
        }
    }
    let base = Base { directory, home: &directories.home };
    let mut profile = from_json(&profile_name(directory), &value.to_string(), base).map_err(|error| {
        let error = error.to_string();
        let key = error.split(':').next().unwrap_or_default();
        // The last part of the key's path that stands in the text.
        let parts =
            key.split(['.', '[']).rev().map(|part| if part == "fileSystem" { "file_system" } else { part });
        let line = parts.map(|part| line_of(text, part)).find(|line| *line > 1);
        ConfigError::Value {
            place: format!("{}:{}", file.display(), line.unwrap_or_else(|| line_of(text, "permissions"))),
            what: format!("permissions: {error}"),
        }
    })?;
    if hosts && profile.network {
        notes.push(format!(
            "{}: this version cannot hold hosts apart, so the skill gets no network",
            place("network")
        ));
        profile.network = false;
        profile.unix_sockets.clear();
    }
    let asks = profile.filesystem.as_ref().is_some_and(|entries| !entries.is_empty());
    if !asks && !profile.network && !hosts && profile.unix_sockets.is_empty() {
        return Ok(None);
    }
    let entries = profile.filesystem.get_or_insert_default();
    entries.push(Entry { place: Place::Minimal, access: Access::Read });
    entries.push(Entry { place: Place::Path(directory.to_path_buf()), access: Access::Read });
    Ok(Some(profile))
}

/// A skill, for people.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) directory: String,
    /// Where it was looked for.
    pub(crate) root: String,
    /// What it declares, as JSON.
    pub(crate) profile: Option<Value>,
    /// The same, as it would hold here.
    pub(crate) gives: Option<Vec<String>>,
}

/// Every skill that a session would have, and what was noted meanwhile.
///
/// # Errors
/// As for the start of a session.
pub(crate) fn list_skills(options: &Options) -> Result<(Vec<Declared>, Vec<String>), LaunchError> {
    let prepared = prepare(options)?;
    let project = prepared.config.project.iter().flat_map(|project| &project.skills);
    let declared = prepared.config.skills.iter().chain(project).map(|skill| {
        let name = match &skill.execution {
            Execution::Permissions(name) => Some(name),
            _ => None,
        };
        let profile = name.and_then(|name| prepared.config.named.get(name));
        let resolved = name.and_then(|name| prepared.named.get(name));
        Declared {
            name: skill.name.clone(),
            directory: skill.directory.display().to_string(),
            root: skill.root.display().to_string(),
            profile: profile.map(to_json),
            gives: resolved.map(|resolved| {
                let entry =
                    |(path, given): &(PathBuf, Access)| format!("{} {}", given.name(), path.display());
                let network = resolved.network.then(|| "the network".to_owned());
                let sockets =
                    resolved.unix_sockets.iter().map(|path| format!("the socket {}", path.display()));
                resolved.entries.iter().map(entry).chain(network).chain(sockets).collect()
            }),
        }
    });
    let declared = declared.collect();
    // What is said at a start is worth a word here too.
    let notes = prepared.config.notes.iter().chain(&prepared.config.said).cloned().collect();
    prepared.discard();
    Ok((declared, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories() -> Directories {
        Directories { home: "/home/u".into(), config: "/c".into(), state: "/s".into(), prefix: "/p".into() }
    }

    /// One skill with these files.
    fn skill(front: &str, more: Option<&str>) -> Result<(Found, Vec<String>), String> {
        let world = tempfile::tempdir().unwrap();
        let root = world.path().canonicalize().unwrap();
        let directory = root.join("a/tool");
        std::fs::create_dir_all(directory.join("agents")).unwrap();
        std::fs::write(directory.join("SKILL.md"), front).unwrap();
        if let Some(more) = more {
            std::fs::write(directory.join("agents/openai.yaml"), more).unwrap();
        }
        let mut notes = Vec::new();
        let found = discover(std::slice::from_ref(&root), &directories(), &mut notes);
        let mut found = found.map_err(|error| error.to_string().replace(&*root.to_string_lossy(), ""))?;
        assert_eq!(found.len(), 1);
        Ok((found.remove(0), notes))
    }

    const PLAIN: &str = "---\nname: tool\ndescription: does\nlicense: MIT\n---\ntext\n";

    #[test]
    fn a_skill_declares_nothing_or_exactly_what_it_says() {
        assert_eq!(skill(PLAIN, None).unwrap().0.profile, None);
        assert_eq!(skill(PLAIN, Some("interface: {x: 1}\npermissions: {}\n")).unwrap().0.profile, None);
        let (found, _) = skill(
            PLAIN,
            Some("permissions:\n  network: {enabled: true}\n  file_system:\n    read: [data]\n    write: [/srv/out, ~/x]\n  macos: {a: b}\n"),
        )
        .unwrap();
        let profile = found.profile.unwrap();
        assert!(profile.network);
        let entries = profile.filesystem.unwrap();
        let has =
            |path: &Path, access| entries.contains(&Entry { place: Place::Path(path.to_path_buf()), access });
        assert!(
            has(&found.skill.directory.join("data"), Access::Read)
                && has(Path::new("/srv/out"), Access::Write)
        );
        assert!(has(Path::new("/home/u/x"), Access::Write) && has(&found.skill.directory, Access::Read));
        assert_eq!(entries.len(), 5);
    }

    #[test]
    fn hosts_that_cannot_be_held_are_no_network() {
        let more = "permissions:\n  network: {enabled: true, allowed_domains: [a.example]}\n";
        let (found, notes) = skill(PLAIN, Some(more)).unwrap();
        assert!(!found.profile.unwrap().network && notes[0].contains("cannot hold hosts"));
    }

    #[test]
    fn what_is_malformed_is_named_with_its_place_and_is_never_nothing() {
        for (front, more, expected) in [
            ("no front matter", None, "/a/tool/SKILL.md:1: expected a line `---`"),
            ("---\nname: x\n", None, "SKILL.md:2: the front matter has no end"),
            ("---\nname: [x\n---\n", None, "SKILL.md:"),
            ("---\nname: x\n---\n", None, "SKILL.md:1: description: expected"),
            ("---\nname: ''\ndescription: d\n---\n", None, "SKILL.md:2: name: expected"),
            (
                "---\nname: x\ndescription: d\npermissions: yes please\n---\n",
                None,
                "SKILL.md:4: permissions: expected",
            ),
            (
                "---\nname: x\ndescription: d\npermissions:\n  netwrok: {}\n---\n",
                None,
                "SKILL.md:5: permissions: netwrok",
            ),
            (
                PLAIN,
                Some("permissions:\n  file_system:\n    write: 3\n"),
                "/agents/openai.yaml:3: permissions: ",
            ),
            (PLAIN, Some("permissions: {\n"), "/agents/openai.yaml:"),
            (
                "---\nname: x\ndescription: d\npermissions: {network: {enabled: true}}\n---\n",
                Some("permissions: {network: {enabled: true}}\n"),
                "/agents/openai.yaml:1: permissions are declared in",
            ),
        ] {
            let error = skill(front, more).unwrap_err();
            assert!(error.contains(expected), "{front:?} {more:?}: {error}");
        }
    }
}
