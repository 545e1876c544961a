//! Profiles and legacy modes as JSON, for programs. Two shapes are read: entries, and the older
//! lists of readable and writable paths; the older one is written where it can say everything.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::resolve::{Access, Entry, Place, Profile, is_pattern, normal, pattern_error};

/// Text that is no profile.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {what}")]
pub(crate) struct JsonError {
    /// The key's path, as `fileSystem.entries[0].access`.
    at: String,
    what: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(default, alias = "file_system", skip_serializing_if = "Option::is_none")]
    file_system: Option<FileSystem>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Network {
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default, alias = "unix_sockets", skip_serializing_if = "Vec::is_empty")]
    unix_sockets: Vec<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FileSystem {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read: Option<Vec<PathBuf>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    write: Option<Vec<PathBuf>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<WrittenEntry>>,
    #[serde(default, alias = "glob_scan_max_depth", skip_serializing_if = "Option::is_none")]
    glob_scan_max_depth: Option<NonZeroU32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntry {
    path: WrittenPath,
    access: Access,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "snake_case")]
enum WrittenPath {
    Path { path: PathBuf },
    GlobPattern { pattern: String },
    Special { value: Special },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
enum Special {
    Root,
    Minimal,
    CurrentWorkingDirectory,
    ProjectRoots {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subpath: Option<PathBuf>,
    },
    Tmpdir,
    SlashTmp,
    Unknown {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subpath: Option<PathBuf>,
    },
}

/// What relative paths and `~` stand for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) home: &'a Path,
}

fn deserialize<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, JsonError> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut parser)
        .map_err(|error| JsonError { at: error.path().to_string(), what: error.inner().to_string() })?;
    parser.end().map_err(|error| JsonError { at: ".".to_owned(), what: error.to_string() })?;
    Ok(value)
}

/// Reads a profile in either shape. Without `fileSystem` it gives no file.
///
/// # Errors
/// [`JsonError`].
pub(crate) fn from_json(name: &str, text: &str, base: Base<'_>) -> Result<Profile, JsonError> {
    let Written { network, file_system } = deserialize(text)?;
    let FileSystem { read, write, entries, glob_scan_max_depth } = file_system.unwrap_or_default();
    let error = |at: String, what: &str| JsonError { at, what: what.to_owned() };
    if entries.is_some() && (read.is_some() || write.is_some()) {
        return Err(error("fileSystem".to_owned(), "give `entries`, or `read` and `write`, not both"));
    }
    let listed = |paths: Option<Vec<PathBuf>>, key: &'static str, access| {
        paths
            .into_iter()
            .flatten()
            .enumerate()
            .map(move |(at, path)| (format!("fileSystem.{key}[{at}]"), path, access))
    };
    let mut result = Vec::new();
    for (at, path, access) in listed(read, "read", Access::Read).chain(listed(write, "write", Access::Write))
    {
        if path.as_os_str().is_empty() {
            return Err(error(at, "expected a path"));
        }
        result.push(Entry { place: place(&path, base), access });
    }
    for (at, WrittenEntry { path, access }) in entries.into_iter().flatten().enumerate() {
        let at = format!("fileSystem.entries[{at}]");
        let place = match path {
            WrittenPath::Path { path } if path.as_os_str().is_empty() => {
                return Err(error(at, "expected a path"));
            }
            WrittenPath::Path { path } => place(&path, base),
            WrittenPath::GlobPattern { .. } if access != Access::None => {
                return Err(error(at, "patterns can only take access: expected \"none\""));
            }
            WrittenPath::GlobPattern { pattern } if !is_pattern(&pattern) => {
                return Err(error(at, "there is no wildcard in the pattern; give a path"));
            }
            WrittenPath::GlobPattern { pattern } => match pattern_error(&pattern) {
                Some(what) => return Err(error(at, what)),
                None => Place::Glob(pattern),
            },
            WrittenPath::Special { value } => special(value).map_err(|what| error(at, what))?,
        };
        result.push(Entry { place, access });
    }
    let Network { enabled, unix_sockets } = network.unwrap_or_default();
    for (at, path) in unix_sockets.iter().enumerate() {
        if path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().starts_with(b"$") {
            let at = format!("network.unixSockets[{at}]");
            return Err(error(at, "expected a path; variables are for config.toml"));
        }
    }
    Ok(Profile {
        filesystem: Some(result),
        glob_depth: glob_scan_max_depth,
        network: enabled.unwrap_or(false),
        unix_sockets: unix_sockets.iter().map(|path| absolute(path, base)).collect(),
        ..Profile::named(name)
    })
}

fn place(path: &Path, base: Base<'_>) -> Place {
    match absolute(path, base) {
        path if path == Path::new("/") => Place::Root,
        path => Place::Path(path),
    }
}

fn absolute(path: &Path, base: Base<'_>) -> PathBuf {
    normal(&match path.strip_prefix("~") {
        Ok(below) => base.home.join(below),
        Err(_) => base.directory.join(path),
    })
}

fn special(value: Special) -> Result<Place, &'static str> {
    Ok(match value {
        Special::Root => Place::Root,
        Special::Minimal => Place::Minimal,
        Special::CurrentWorkingDirectory => Place::Cwd,
        Special::ProjectRoots { subpath } => {
            let plain =
                |path: &Path| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if subpath.as_deref().is_some_and(|path| !plain(path)) {
                return Err("expected a subpath without `.` and `..`");
            }
            Place::ProjectRoots(subpath.filter(|path| !path.as_os_str().is_empty()))
        }
        Special::Tmpdir => Place::Tmpdir,
        Special::SlashTmp => Place::SlashTmp,
        Special::Unknown { path, subpath } => Place::Unknown(match subpath {
            Some(below) => format!("{path} {}", below.display()),
            None => path,
        }),
    })
}

/// Writes a profile: in the older shape if that says it all.
pub(crate) fn to_json(profile: &Profile) -> serde_json::Value {
    // No restriction is said as all of it.
    let all = [Entry { place: Place::Root, access: Access::Write }];
    let entries = profile.filesystem.as_deref().unwrap_or(&all);
    let listed = |wanted: Access| {
        let paths = entries.iter().filter_map(|entry| match &entry.place {
            Place::Path(path) if entry.access == wanted => Some(path.clone()),
            _ => None,
        });
        Some(paths.collect::<Vec<_>>()).filter(|paths| !paths.is_empty())
    };
    let plain = |entry: &Entry| matches!(entry.place, Place::Path(_)) && entry.access != Access::None;
    let file_system = if profile.glob_depth.is_none() && entries.iter().all(plain) {
        FileSystem { read: listed(Access::Read), write: listed(Access::Write), ..FileSystem::default() }
    } else {
        let entries =
            entries.iter().map(|entry| WrittenEntry { path: written(&entry.place), access: entry.access });
        FileSystem {
            entries: Some(entries.collect()),
            glob_scan_max_depth: profile.glob_depth,
            ..FileSystem::default()
        }
    };
    let network = Network { enabled: Some(profile.network), unix_sockets: profile.unix_sockets.clone() };
    let written = Written { network: Some(network), file_system: Some(file_system) };
    serde_json::to_value(written).unwrap_or_default()
}

fn written(place: &Place) -> WrittenPath {
    let value = match place {
        Place::Path(path) => return WrittenPath::Path { path: path.clone() },
        Place::Glob(pattern) => return WrittenPath::GlobPattern { pattern: pattern.clone() },
        Place::Root => Special::Root,
        Place::Minimal => Special::Minimal,
        Place::Cwd => Special::CurrentWorkingDirectory,
        Place::ProjectRoots(subpath) => Special::ProjectRoots { subpath: subpath.clone() },
        Place::Tmpdir => Special::Tmpdir,
        Place::SlashTmp => Special::SlashTmp,
        Place::Unknown(token) => match token.split_once(' ') {
            Some((path, below)) => Special::Unknown { path: path.to_owned(), subpath: Some(below.into()) },
            None => Special::Unknown { path: token.clone(), subpath: None },
        },
    };
    WrittenPath::Special { value }
}

/// A sandbox policy as it was written before there were profiles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Legacy {
    #[serde(alias = "danger-full-access")]
    DangerFullAccess,
    #[serde(alias = "read-only")]
    ReadOnly {
        #[serde(default, alias = "network_access")]
        network_access: bool,
    },
    #[serde(alias = "workspace-write")]
    WorkspaceWrite {
        #[serde(default, alias = "writable_roots")]
        writable_roots: Vec<PathBuf>,
        #[serde(default, alias = "network_access")]
        network_access: bool,
        #[serde(default, alias = "exclude_tmpdir_env_var")]
        exclude_tmpdir_env_var: bool,
        #[serde(default, alias = "exclude_slash_tmp")]
        exclude_slash_tmp: bool,
    },
}

/// Reads a legacy sandbox policy as a profile.
///
/// # Errors
/// [`JsonError`].
pub(crate) fn from_legacy(text: &str, base: Base<'_>) -> Result<Profile, JsonError> {
    let entry = |place, access| Entry { place, access };
    let profile =
        |name: &str, entries, network| Profile { filesystem: Some(entries), network, ..Profile::named(name) };
    Ok(match deserialize(text)? {
        Legacy::DangerFullAccess => super::danger_full_access(),
        Legacy::ReadOnly { network_access } => {
            profile("read-only", vec![entry(Place::Root, Access::Read)], network_access)
        }
        Legacy::WorkspaceWrite {
            writable_roots,
            network_access,
            exclude_tmpdir_env_var,
            exclude_slash_tmp,
        } => {
            let mut entries = vec![entry(Place::Root, Access::Read), entry(Place::Cwd, Access::Write)];
            if !exclude_slash_tmp {
                entries.push(entry(Place::SlashTmp, Access::Write));
            }
            if !exclude_tmpdir_env_var {
                entries.push(entry(Place::Tmpdir, Access::Write));
            }
            let roots =
                writable_roots.iter().map(|path| entry(Place::Path(absolute(path, base)), Access::Write));
            entries.extend(roots);
            profile("workspace-write", entries, network_access)
        }
    })
}

/// Writes a profile as a legacy sandbox policy.
///
/// # Errors
/// What that cannot say: it is never widened to fit.
pub(crate) fn to_legacy(profile: &Profile, cwd: &Path) -> Result<serde_json::Value, String> {
    if let Some(path) = profile.unix_sockets.first() {
        return Err(format!("no legacy mode can say that {} may be connected to", path.display()));
    }
    let Some(entries) = &profile.filesystem else {
        return match profile.network {
            true => Ok(serde_json::to_value(Legacy::DangerFullAccess).unwrap_or_default()),
            false => Err("no legacy mode has every file and no network".to_owned()),
        };
    };
    let is_cwd = |place: &Place| match place {
        Place::Cwd | Place::ProjectRoots(None) => true,
        Place::Path(path) => path == cwd,
        _ => false,
    };
    let given = |wanted: &Place| {
        let at = entries.iter().filter(|entry| entry.place == *wanted).map(|entry| entry.access);
        at.max().filter(|access| *access != Access::None)
    };
    if given(&Place::Root) != Some(Access::Read) {
        return Err("a legacy mode reads everything, and this profile does not say `root` = read".to_owned());
    }
    let mut roots = Vec::new();
    let (mut tmpdir, mut slash_tmp, mut workspace) = (false, false, false);
    for entry in entries {
        match (&entry.place, entry.access) {
            (Place::Unknown(_) | Place::Root | Place::Minimal, Access::Read) | (Place::Unknown(_), _) => {}
            (place, Access::Write) if is_cwd(place) => workspace = true,
            (Place::Tmpdir, Access::Write) => tmpdir = true,
            (Place::SlashTmp, Access::Write) => slash_tmp = true,
            (Place::Path(path), Access::Write) => roots.push(path.clone()),
            (_, Access::Read) if !entries.iter().any(|other| other.access == Access::Write) => {}
            (place, access) => {
                return Err(format!("no legacy mode can say {place:?} = {access:?}"));
            }
        }
    }
    let legacy = if workspace {
        Legacy::WorkspaceWrite {
            writable_roots: roots,
            network_access: profile.network,
            exclude_tmpdir_env_var: !tmpdir,
            exclude_slash_tmp: !slash_tmp,
        }
    } else if tmpdir || slash_tmp || !roots.is_empty() {
        return Err(
            "a legacy mode that writes anywhere writes the working directory, and this profile does not"
                .to_owned(),
        );
    } else {
        Legacy::ReadOnly { network_access: profile.network }
    };
    Ok(serde_json::to_value(legacy).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::{Bases, read_only, workspace_write};

    fn base() -> Base<'static> {
        Base { directory: Path::new("/base"), home: Path::new("/home/u") }
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let path = proptest::collection::vec("[a-c]", 1..4)
            .prop_map(|parts| PathBuf::from(format!("/{}", parts.join("/"))));
        let place = prop_oneof![
            path.prop_map(Place::Path),
            Just(Place::Root),
            Just(Place::Cwd),
            Just(Place::Minimal),
            Just(Place::Tmpdir),
            Just(Place::SlashTmp),
            Just(Place::ProjectRoots(None)),
            Just(Place::ProjectRoots(Some("a/b".into()))),
            Just(Place::Unknown(":later".to_owned())),
        ];
        let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::None)];
        prop_oneof![
            (place, access).prop_map(|(place, access)| Entry { place, access }),
            "[a-c]{1,3}"
                .prop_map(|name| Entry { place: Place::Glob(format!("**/{name}")), access: Access::None }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entries in proptest::collection::vec(entry(), 0..6), depth in 0u32..3, network in any::<bool>(), sockets in proptest::collection::vec("[a-c]", 0..2)) {
            let profile = Profile {
                filesystem: Some(entries), glob_depth: NonZeroU32::new(depth), network,
                unix_sockets: sockets.into_iter().map(|name| PathBuf::from(format!("/{name}"))).collect(),
                ..Profile::named("p")
            };
            let mut again = from_json("p", &to_json(&profile).to_string(), base()).unwrap();
            // The older shape lists readable paths before writable ones.
            let mut profile = profile;
            for profile in [&mut profile, &mut again] {
                profile.filesystem.as_mut().unwrap().sort_by_key(|entry| format!("{entry:?}"));
                profile.filesystem.as_mut().unwrap().dedup();
            }
            prop_assert_eq!(profile, again);
        }

        /// A legacy mode gives exactly what the profile gives, or there is none.
        #[test]
        fn a_legacy_mode_is_never_wider(entries in proptest::collection::vec(entry(), 0..5), probe in proptest::collection::vec("[a-c]", 0..4)) {
            let profile = Profile { filesystem: Some(entries), ..Profile::named("p") };
            let bases = Bases {
                project: "/w".into(), project_writable: true, added: Vec::new(), cwd: "/w".into(),
                cwd_writable: true, tmpdir: "/tmp/x".into(), slash_tmp: Some("/tmp".into()),
            };
            if let Ok(legacy) = to_legacy(&profile, Path::new("/w")) {
                let again = from_legacy(&legacy.to_string(), base()).unwrap().resolve(&bases);
                let probe = PathBuf::from(format!("/{}", probe.join("/")));
                let resolved = profile.resolve(&bases);
                for probe in [probe.as_path(), Path::new("/w/a"), Path::new("/tmp/a"), Path::new("/tmp/x/a")] {
                    prop_assert!(again.access(probe) <= resolved.access(probe), "{}", probe.display());
                }
                prop_assert!(resolved.denied.is_empty());
            }
        }
    }

    #[test]
    fn both_shapes_and_spellings_are_read() {
        let older =
            from_json("p", r#"{"file_system": {"read": ["~/x"], "write": ["y/../z"]}}"#, base()).unwrap();
        let path = |path: &str, access| Entry { place: Place::Path(path.into()), access };
        assert_eq!(
            older.filesystem.unwrap(),
            [path("/home/u/x", Access::Read), path("/base/z", Access::Write)]
        );
        let text = r#"{"network": {"enabled": true}, "fileSystem": {"globScanMaxDepth": 3, "entries": [
            {"path": {"type": "special", "value": {"kind": "project_roots", "subpath": "docs"}}, "access": "write"},
            {"path": {"type": "glob_pattern", "pattern": "**/*.env"}, "access": "none"}]}}"#;
        let profile = from_json("p", text, base()).unwrap();
        assert!(profile.network && profile.glob_depth == NonZeroU32::new(3));
        assert_eq!(to_json(&profile)["fileSystem"]["entries"][1]["path"]["type"], "glob_pattern");
    }

    #[test]
    fn errors_name_the_key() {
        for (text, at) in [
            (
                r#"{"fileSystem": {"entries": [{"path": {"type": "path", "path": "/a"}, "access": "all"}]}}"#,
                "fileSystem.entries[0].access",
            ),
            (r#"{"fileSystem": {"globScanMaxDepth": 0}}"#, "fileSystem.globScanMaxDepth"),
            (
                r#"{"fileSystem": {"entries": [{"path": {"type": "glob_pattern", "pattern": "*"}, "access": "read"}]}}"#,
                "fileSystem.entries[0]",
            ),
            (r#"{"network": {"on": true}}"#, "network"),
            (r#"{"files": {}}"#, "files"),
        ] {
            let error = from_json("p", text, base()).unwrap_err().to_string();
            assert!(error.contains(at), "{text}: {error}");
        }
    }

    #[test]
    fn legacy_modes_come_and_go() {
        for text in [
            r#"{"type":"dangerFullAccess"}"#,
            r#"{"type":"readOnly","networkAccess":true}"#,
            r#"{"type":"workspaceWrite","writableRoots":["/a"],"networkAccess":false,"excludeTmpdirEnvVar":true,"excludeSlashTmp":false}"#,
        ] {
            let profile = from_legacy(text, base()).unwrap();
            let again = to_legacy(&profile, Path::new("/w")).unwrap();
            assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
        }
        assert!(to_legacy(&workspace_write(), Path::new("/w")).is_ok());
        let mut extra = read_only();
        extra
            .filesystem
            .as_mut()
            .unwrap()
            .push(Entry { place: Place::Path("/a".into()), access: Access::Write });
        assert!(to_legacy(&extra, Path::new("/w")).unwrap_err().contains("working directory"));
    }
}
