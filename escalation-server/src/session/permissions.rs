//! Profiles as `config.toml` writes them: `[permissions.NAME]`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::config::ConfigError;
use crate::profile::{Access, Entry, Place, Profile, is_pattern, pattern_error};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PermissionsTable {
    #[serde(default)]
    filesystem: BTreeMap<String, toml::Value>,
    #[serde(default)]
    network: NetworkTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkTable {
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    unix_sockets: Vec<String>,
}

/// The key that bounds how deep patterns are looked for.
const DEPTH: &str = "glob_scan_max_depth";

/// A profile from its table. `place` is where the table stands, for messages; what loads but means
/// nothing here is noted.
pub(super) fn permissions(
    name: &str,
    table: PermissionsTable,
    place: &str,
    home: &Path,
    notes: &mut Vec<String>,
) -> Result<Profile, ConfigError> {
    let mut entries = Vec::new();
    let mut glob_depth = None;
    for (key, value) in table.filesystem {
        let place = format!("{place}.filesystem.\"{key}\"");
        let error = |what: String| ConfigError::Value { place: place.clone(), what };
        let mut add = |below: Option<&str>, text: &str| -> Result<(), ConfigError> {
            let entry = entry(&key, below, text, home).map_err(error)?;
            if let Place::Unknown(token) = &entry.place {
                notes.push(format!("{place}: `{token}` is not known to this version and gives nothing"));
            }
            entries.push(entry);
            Ok(())
        };
        match value {
            toml::Value::Integer(depth) if key == DEPTH => {
                let depth = u32::try_from(depth).ok().and_then(NonZeroU32::new);
                glob_depth =
                    Some(depth.ok_or_else(|| error("expected a number of levels, at least 1".to_owned()))?);
            }
            toml::Value::String(text) => add(None, &text)?,
            toml::Value::Table(below) => {
                for (subpath, value) in below {
                    let text = value.as_str().ok_or_else(|| {
                        error(format!("`{subpath}`: expected \"read\", \"write\" or \"none\""))
                    })?;
                    add(Some(&subpath), text)?;
                }
            }
            _ => {
                return Err(error(
                    "expected \"read\", \"write\", \"none\" or a table of subpaths".to_owned(),
                ));
            }
        }
    }
    let place = format!("{place}.network.unix_sockets");
    let mut unix_sockets = Vec::new();
    for text in &table.network.unix_sockets {
        let path = match text.strip_prefix('$').map(|name| (name, std::env::var_os(name))) {
            Some((name, _)) if name.contains('/') => {
                let what =
                    format!("`{text}`: expected `$NAME` alone, of a variable that holds the whole path");
                return Err(ConfigError::Value { place, what });
            }
            Some((name, None)) => {
                notes.push(format!("{place}: the variable {name} is not set, so it names no socket"));
                continue;
            }
            Some((_, Some(value))) => PathBuf::from(value),
            None => expand(text, home),
        };
        if !path.is_absolute() {
            let what =
                format!("`{text}`: expected an absolute path, `~/…`, or `$NAME` of a variable with one");
            return Err(ConfigError::Value { place, what });
        }
        unix_sockets.push(path);
    }
    Ok(Profile {
        filesystem: Some(entries),
        glob_depth,
        network: table.network.enabled,
        unix_sockets,
        ..Profile::named(name)
    })
}

fn entry(key: &str, below: Option<&str>, text: &str, home: &Path) -> Result<Entry, String> {
    let access = access(text)?;
    let pattern = is_pattern(key) || below.is_some_and(is_pattern);
    if !pattern {
        return Ok(Entry { place: place(key, below, home)?, access });
    }
    // A whole subtree under another spelling.
    if access != Access::None {
        let whole = |text: &str| text.strip_suffix("/**").filter(|rest| !is_pattern(rest)).map(str::to_owned);
        return match (below, whole(key), below.and_then(whole)) {
            (None, Some(key), _) => Ok(Entry { place: place(&key, None, home)?, access }),
            (Some(_), _, Some(below)) if !is_pattern(key) => {
                Ok(Entry { place: place(key, Some(&below), home)?, access })
            }
            _ => Err("patterns can only take access: expected \"none\"".to_owned()),
        };
    }
    let pattern = match (key, below) {
        (":project_roots", Some(below)) => below.to_owned(),
        (key, below) => {
            let base = expand(key, home);
            if !base.is_absolute() || key.starts_with(':') {
                return Err("expected an absolute pattern, `~/…`, or one below :project_roots".to_owned());
            }
            below.map_or(base.clone(), |below| base.join(below)).display().to_string()
        }
    };
    if let Some(what) = pattern_error(&pattern) {
        return Err(what.to_owned());
    }
    crate::sandbox::check_pattern(&pattern).map_err(|error| format!("not a pattern: {error}"))?;
    Ok(Entry { place: Place::Glob(pattern), access })
}

pub(super) fn expand(text: &str, home: &Path) -> PathBuf {
    match text.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if text == "~" => home.to_path_buf(),
        None => PathBuf::from(text),
    }
}

fn access(text: &str) -> Result<Access, String> {
    match text {
        "read" => Ok(Access::Read),
        "write" => Ok(Access::Write),
        "none" => Ok(Access::None),
        other => Err(format!("expected \"read\", \"write\" or \"none\", got \"{other}\"")),
    }
}

fn place(key: &str, below: Option<&str>, home: &Path) -> Result<Place, String> {
    let below = match below {
        None | Some(".") => None,
        Some(text)
            if text.starts_with('/') || text.split('/').any(|part| matches!(part, "" | "." | "..")) =>
        {
            return Err(format!("`{text}`: expected a plain path below"));
        }
        Some(text) => Some(PathBuf::from(text)),
    };
    match (key, below) {
        (":project_roots", below) => Ok(Place::ProjectRoots(below)),
        (":root", None) => Ok(Place::Root),
        (":tmpdir", None) => Ok(Place::Tmpdir),
        (":slash_tmp", None) => Ok(Place::SlashTmp),
        (":minimal", None) => Ok(Place::Minimal),
        (":root" | ":tmpdir" | ":slash_tmp" | ":minimal", Some(_)) => {
            Err("only :project_roots and paths have subpaths".to_owned())
        }
        (token, _) if token.starts_with(':') => Ok(Place::Unknown(token.to_owned())),
        (path, below) => {
            let path = expand(path, home);
            if !path.is_absolute() {
                return Err("expected an absolute path, `~/…` or a special place".to_owned());
            }
            Ok(Place::Path(below.map_or(path.clone(), |below| path.join(below))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profile, ConfigError> {
        let mut file: BTreeMap<String, BTreeMap<String, PermissionsTable>> = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: "c".into(), error: Box::new(error) })?;
        let (name, table) = file.remove("permissions").unwrap().into_iter().next().unwrap();
        permissions(&name, table, "c: permissions.p", Path::new("/home/u"), &mut Vec::new())
    }

    #[test]
    fn profiles_say_what_they_mean() {
        let profile = parse(
            "[permissions.p.filesystem]\n\":root\" = \"read\"\n\":project_roots\" = { \".\" = \"write\", \"docs\" = \"read\" }\n\
             \"~/cache\" = \"write\"\n[permissions.p.network]\nenabled = true",
        )
        .unwrap();
        assert!(profile.network);
        let entries = profile.filesystem.unwrap();
        assert!(
            entries.contains(&Entry { place: Place::Path("/home/u/cache".into()), access: Access::Write })
        );
        assert!(
            entries
                .contains(&Entry { place: Place::ProjectRoots(Some("docs".into())), access: Access::Read })
        );
    }

    #[test]
    fn what_cannot_be_held_is_refused_by_name() {
        for (text, expected) in [
            ("[permissions.p.filesystem]\n\"/a/*.env\" = \"read\"", "only take access"),
            ("[permissions.p.filesystem]\n\"*.env\" = \"none\"", "absolute pattern"),
            ("[permissions.p.filesystem]\n\"/a/{b\" = \"maybe\"", "got \"maybe\""),
            ("[permissions.p.filesystem]\nglob_scan_max_depth = 0", "at least 1"),
            ("[permissions.p.filesystem]\n\"rel\" = \"read\"", "absolute"),
            ("[permissions.p.filesystem]\n\":project_roots\" = { \"../x\" = \"read\" }", "plain path"),
            ("[permissions.p]\nnetwrok = 1", "netwrok"),
            ("[permissions.p.network]\nunix_sockets = ['run/x']", "absolute path"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
