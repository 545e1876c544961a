//! Patterns of denied paths, expanded into the paths that exist.

use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::{DirEntry, WalkDir};

use super::closed::{can_be_searched, is_not_there};
use super::facts::Refusal;
use crate::profile::Denied;

/// Paths that the patterns of one profile may match.
const MOST: usize = 8192;
/// What a sandbox has of its own, whatever the machine has there.
const REPLACED: [&str; 2] = ["/proc", "/dev"];

fn matcher(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    // `*` and `?` stay within a name, `**` does not; an unclosed bracket is itself.
    let built = |pattern: &str| GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = built(pattern).or_else(|error| match error.kind() {
        globset::ErrorKind::UnclosedClass => built(&pattern.replace('[', "[[]")),
        _ => Err(error),
    })?;
    Ok(glob.compile_matcher())
}

/// # Errors
/// What is wrong with a pattern.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    matcher(pattern).map(drop).map_err(|error| error.to_string())
}

/// Whether a path is denied. A pattern that is none matches everything: it denies.
pub(crate) fn matches(denied: &Denied, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix(&denied.root) else { return false };
    matcher(&denied.pattern).map_or(true, |matcher| matcher.is_match(below))
}

/// The existing paths that patterns match, free of symlinks: of a link that matches, what it leads
/// to. Directories that are links are not followed.
///
/// # Errors
/// A pattern that cannot be looked for: from `/` without a depth, over too many paths, or a
/// directory that cannot be read.
pub(super) fn expand(patterns: &[Denied], depth: Option<NonZeroU32>) -> Result<Vec<PathBuf>, Refusal> {
    let mut found = Vec::new();
    for denied in patterns {
        let refuse = |what: String| Refusal::Pattern { pattern: denied.to_string(), what };
        let matcher = matcher(&denied.pattern).map_err(|error| refuse(error.to_string()))?;
        if denied.root == Path::new("/") && depth.is_none() {
            return Err(refuse("it is looked for from `/`: give glob_scan_max_depth".to_owned()));
        }
        let depth = depth.map_or(usize::MAX, |depth| depth.get() as usize);
        let walk = WalkDir::new(&denied.root).max_depth(depth).into_iter();
        let own = |path: &Path| REPLACED.iter().any(|replaced| path == Path::new(replaced));
        for entry in walk.filter_entry(|entry| !own(entry.path())) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if is_harmless(&error) => continue,
                Err(error)
                    if error
                        .io_error()
                        .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied) =>
                {
                    let at = error.path().unwrap_or(&denied.root).display();
                    return Err(refuse(format!(
                        "{at} cannot be listed, and what matches there may be reached: give yourself the right to list it \
                         (chmod u+rx), or deny by name what is below it"
                    )));
                }
                Err(error) => return Err(refuse(error.to_string())),
            };
            let below = entry.path().strip_prefix(&denied.root).unwrap_or(entry.path());
            if below.as_os_str().is_empty() || !matcher.is_match(below) {
                continue;
            }
            found.extend(target(entry).map_err(|error| refuse(error.to_string()))?);
            if found.len() > MOST {
                return Err(refuse(format!("it matches more than {MOST} paths: narrow it")));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// What is there, be it where a link leads; none where that leads to nothing.
fn target(entry: DirEntry) -> io::Result<Option<PathBuf>> {
    if !entry.path_is_symlink() {
        return Ok(Some(entry.into_path()));
    }
    match entry.path().canonicalize() {
        Ok(found) => Ok(Some(found)),
        Err(error) => {
            let named = entry.path().read_link().unwrap_or_default();
            let leads = entry.path().parent().map_or_else(PathBuf::new, |beside| beside.join(named));
            if is_not_there(&leads, &error) || error.raw_os_error() == Some(libc::ELOOP) {
                Ok(None)
            } else {
                Err(error)
            }
        }
    }
}

/// What went away meanwhile, and what this user reaches neither by listing nor by its name: nobody inside has more
/// rights.
fn is_harmless(error: &walkdir::Error) -> bool {
    let path = error.path().unwrap_or(Path::new("/"));
    error.io_error().is_some_and(|error| is_not_there(path, error)) && !can_be_searched(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matches_is_found_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        // A name that is a pattern to others.
        let root = directory.path().canonicalize().unwrap().join("g[1]{a}");
        for path in ["a/.env", "a/b/x.env", "a/b/c/y.env", "a/plain"] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(root.join("a/plain"), root.join("link.env")).unwrap();
        std::os::unix::fs::symlink(&root, root.join("a/loop")).unwrap();
        let find = |pattern: &str, depth: Option<u32>| {
            let denied = Denied { root: root.clone(), pattern: pattern.to_owned() };
            let found = expand(&[denied], depth.and_then(NonZeroU32::new)).unwrap();
            let below = |path: PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
            found.into_iter().map(below).collect::<Vec<_>>()
        };
        assert_eq!(find("**/*.env", None), ["a/.env", "a/b/c/y.env", "a/b/x.env", "a/plain"]);
        assert_eq!(find("**/*.env", Some(2)), ["a/.env", "a/plain"]);
        assert_eq!(find("a/*.env", None), ["a/.env"]);
        assert!(matches(
            &Denied { root: root.clone(), pattern: "**/*.env".to_owned() },
            &root.join("a/b/x.env")
        ));
        assert_eq!(find("a/?", None), ["a/b"]);
        assert_eq!(find("a/[", None), [] as [&str; 0]);
    }

    #[test]
    fn the_whole_machine_is_not_walked_by_accident() {
        let all = Denied { root: "/".into(), pattern: "**/*.env".to_owned() };
        assert!(expand(&[all], None).is_err());
    }
}
