//! The files below a project's `.agents/skills`, as they are at one moment: what somebody trusts, and
//! what must not have changed when one of them runs.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::flow::text::printable;

/// Where a project has its skills: names, from its directory down.
pub(crate) const PLACE: [&str; 2] = [".agents", "skills"];

/// The most files and directories, the most bytes in all, and the deepest.
const MOST_ENTRIES: usize = 1024;
const MOST_BYTES: u64 = 32 << 20;
const DEEPEST: usize = 16;
/// The longest file of those that declare.
const LONGEST_DECLARATION: u64 = 1 << 20;

/// What lies there. Two that are equal are the same files, which nobody has touched in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The directory of skills.
    pub(crate) root: PathBuf,
    /// By path.
    pub(crate) files: Vec<Piece>,
    marks: Vec<Mark>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) executable: bool,
    pub(crate) hash: blake3::Hash,
    /// What it says, if it is one of those that declare.
    pub(crate) text: Option<String>,
}

/// By which another file or directory at the same path shows, and any change: device, inode, and the
/// time of the last change of any kind, which nobody sets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark(PathBuf, (u64, u64), (i64, i64));

impl Mark {
    fn of(path: &Path, found: &std::fs::Metadata) -> Self {
        Self(path.to_path_buf(), (found.dev(), found.ino()), (found.ctime(), found.ctime_nsec()))
    }
}

/// The directory of a project's skills.
pub(crate) fn place(project: &Path) -> PathBuf {
    PLACE.iter().fold(project.to_path_buf(), |path, name| path.join(name))
}

impl Tree {
    /// What a project has; none if there is no file.
    ///
    /// # Errors
    /// What nobody can trust: links, by which something else could be put there; further names, by which
    /// a file could be written from elsewhere; more than is looked at.
    pub(crate) fn of(project: &Path) -> Result<Option<Self>, String> {
        let root = place(project);
        let mut tree = Self { root: root.clone(), files: Vec::new(), marks: Vec::new() };
        let mut left = Vec::new();
        for above in root.ancestors().take(PLACE.len()).collect::<Vec<_>>().into_iter().rev() {
            match above.symlink_metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(shown(above, error)),
                Ok(found) if !found.is_dir() => return Err(shown(above, "is no directory")),
                // What else is in `.agents` may change: this one is known by when it was made.
                Ok(found) if above != root => {
                    let mut mark = Mark::of(above, &found);
                    if let Some(made) = found.created().ok().and_then(since_the_epoch) {
                        mark.2 = made;
                    }
                    tree.marks.push(mark);
                }
                Ok(_) => left.push((root.clone(), 0)),
            }
        }
        let mut bytes = 0;
        while let Some((path, depth)) = left.pop() {
            if tree.marks.len() + left.len() >= MOST_ENTRIES {
                return Err(shown(&root, format!("holds more than {MOST_ENTRIES} files and directories")));
            }
            let found = path.symlink_metadata().map_err(|error| shown(&path, error))?;
            if found.is_symlink() {
                return Err(shown(
                    &path,
                    "is a symbolic link, which may lead elsewhere later: put what it leads to there",
                ));
            }
            tree.marks.push(Mark::of(&path, &found));
            if found.is_file() {
                let piece = Piece::read(&path, &found, &mut bytes, &root)?;
                tree.files.push(piece);
                continue;
            }
            if !found.is_dir() {
                return Err(shown(&path, "is neither a file nor a directory"));
            }
            if depth == DEEPEST {
                return Err(shown(
                    &path,
                    format!("lies deeper than {DEEPEST} levels below {}", root.display()),
                ));
            }
            for entry in std::fs::read_dir(&path).map_err(|error| shown(&path, error))? {
                left.push((entry.map_err(|error| shown(&path, error))?.path(), depth + 1));
                if left.len() > MOST_ENTRIES {
                    break;
                }
            }
        }
        tree.files.sort_by(|one, other| one.path.cmp(&other.path));
        tree.marks.sort_by(|one, other| one.0.cmp(&other.0));
        Ok((!tree.files.is_empty()).then_some(tree))
    }

    /// Whether everything is still there, and nobody has touched it.
    pub(crate) fn stands(&self) -> bool {
        let project = self.root.ancestors().nth(PLACE.len());
        project.is_some_and(|project| Self::of(project).is_ok_and(|now| now.as_ref() == Some(self)))
    }

    /// What a file that declares says.
    pub(crate) fn text(&self, path: &Path) -> Option<&str> {
        self.files.iter().find(|file| file.path == path)?.text.as_deref()
    }
}

fn since_the_epoch(time: std::time::SystemTime) -> Option<(i64, i64)> {
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((i64::try_from(since.as_secs()).ok()?, i64::from(since.subsec_nanos())))
}

impl Piece {
    fn read(path: &Path, found: &std::fs::Metadata, bytes: &mut u64, root: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| shown(path, error);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut file = std::fs::File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?;
        if (opened.dev(), opened.ino()) != (found.dev(), found.ino()) || !opened.is_file() {
            return Err(shown(path, "changes while it is looked at"));
        }
        if opened.nlink() != 1 {
            return Err(shown(
                path,
                "has another name (a hard link), by which it could be written from elsewhere: put a copy there",
            ));
        }
        let declares = path.ends_with("SKILL.md") || path.ends_with("agents/openai.yaml");
        let (mut hasher, mut text, mut size) = (blake3::Hasher::new(), Vec::new(), 0);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let got = file.read(&mut buffer).map_err(failed)?;
            let chunk = buffer.get(..got).unwrap_or_default();
            if chunk.is_empty() {
                break;
            }
            size += chunk.len() as u64;
            *bytes += chunk.len() as u64;
            if *bytes > MOST_BYTES {
                return Err(shown(root, format!("holds more than {MOST_BYTES} bytes")));
            }
            if declares && size > LONGEST_DECLARATION {
                return Err(shown(path, format!("is longer than {LONGEST_DECLARATION} bytes")));
            }
            hasher.update(chunk);
            if declares {
                text.extend_from_slice(chunk);
            }
        }
        let text = declares.then(|| String::from_utf8(text)).transpose();
        Ok(Self {
            path: path.to_path_buf(),
            size,
            executable: opened.mode() & 0o111 != 0,
            hash: hasher.finalize(),
            text: text.map_err(|_| shown(path, "is not UTF-8"))?,
        })
    }
}

fn shown(path: &Path, what: impl std::fmt::Display) -> String {
    format!("{} {what}", printable(path.as_os_str().as_encoded_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn project() -> tempfile::TempDir {
        let project = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(project.path().join(".agents/skills/x/scripts")).unwrap();
        std::fs::write(project.path().join(".agents/skills/x/SKILL.md"), "---\n").unwrap();
        std::fs::write(project.path().join(".agents/skills/x/scripts/run"), "run").unwrap();
        project
    }

    #[test]
    fn every_file_is_seen_and_every_change() {
        let project = project();
        let skills = project.path().join(".agents/skills");
        let tree = Tree::of(project.path()).unwrap().unwrap();
        assert_eq!(tree.files.len(), 2);
        assert_eq!(tree.text(&skills.join("x/SKILL.md")), Some("---\n"));
        assert!(tree.stands());
        // What else lies in `.agents` is nobody's concern here.
        std::fs::write(project.path().join(".agents/notes"), "").unwrap();
        assert!(tree.stands());
        let run = skills.join("x/scripts/run");
        let changes: [&dyn Fn(); 5] = [
            &|| std::fs::write(&run, "other").unwrap(),
            &|| std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap(),
            &|| std::fs::create_dir(skills.join("empty")).unwrap(),
            &|| std::fs::write(skills.join(".hidden"), "").unwrap(),
            // The same bytes, in another file.
            &|| {
                std::fs::remove_file(&run).unwrap();
                std::fs::write(&run, "other").unwrap();
            },
        ];
        for (at, change) in changes.iter().enumerate() {
            let tree = Tree::of(project.path()).unwrap().unwrap();
            // Further apart than the kernel's clock ticks.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            assert!(!tree.stands(), "{at}");
        }
        std::fs::remove_dir_all(&skills).unwrap();
        assert_eq!(Tree::of(project.path()), Ok(None));
    }

    #[test]
    fn what_could_be_changed_from_elsewhere_is_refused() {
        type Plant = fn(&Path) -> std::io::Result<()>;
        let plants: [(Plant, &str); 8] = [
            (|at| symlink("/etc", at.join(".agents/skills/etc")), "is a symbolic link"),
            (|at| symlink("run", at.join(".agents/skills/x/scripts/r")), "is a symbolic link"),
            (
                |at| std::fs::hard_link(at.join(".agents/skills/x/SKILL.md"), at.join("other")),
                "has another name",
            ),
            (
                |at| Ok(nix::unistd::mkfifo(&at.join(".agents/skills/x/f"), nix::sys::stat::Mode::S_IRWXU)?),
                "is neither a file nor a directory",
            ),
            (|at| std::fs::write(at.join(".agents/skills/x/SKILL.md"), b"\xff"), "is not UTF-8"),
            (
                |at| {
                    let file = std::fs::File::create(at.join(".agents/skills/x/large"))?;
                    file.set_len(MOST_BYTES + 1)
                },
                "holds more than",
            ),
            (
                |at| {
                    (0..=MOST_ENTRIES)
                        .try_for_each(|n| std::fs::write(at.join(format!(".agents/skills/{n}")), ""))
                },
                "holds more than",
            ),
            (
                |at| {
                    std::fs::rename(at.join(".agents/skills"), at.join("moved"))?;
                    symlink("../moved", at.join(".agents/skills"))
                },
                "is no directory",
            ),
        ];
        for (plant, expected) in plants {
            let project = project();
            plant(project.path()).unwrap();
            let error = Tree::of(project.path()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let project = project();
        std::fs::rename(project.path().join(".agents"), project.path().join("moved")).unwrap();
        symlink("moved", project.path().join(".agents")).unwrap();
        assert!(Tree::of(project.path()).unwrap_err().contains("is no directory"));
    }
}
