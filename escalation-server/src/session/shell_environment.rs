//! Which of the caller's variables the sandboxed shell gets: it does not need the operator's secrets.

use std::collections::BTreeMap;

use globset::{GlobBuilder, GlobMatcher};
use postern_shim::wire::Bytes;
use serde::Deserialize;

use super::environ::split;

/// `[shell_environment]` in `config.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Table {
    inherit: Inherit,
    exclude: Vec<String>,
    include: Vec<String>,
    include_only: Vec<String>,
    set: BTreeMap<String, String>,
}

/// Where it begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Inherit {
    #[default]
    All,
    Core,
    None,
}

impl Default for Table {
    fn default() -> Self {
        let exclude = ["*KEY*", "*SECRET*", "*TOKEN*", "*PASSWORD*"].map(str::to_owned).to_vec();
        Self {
            inherit: Inherit::All,
            exclude,
            include: Vec::new(),
            include_only: Vec::new(),
            set: BTreeMap::new(),
        }
    }
}

/// What `core` is: who and where one is, and how to talk to people.
const CORE: [&str; 13] = [
    "HOME", "LOGNAME", "PATH", "SHELL", "USER", "USERNAME", "TMPDIR", "TEMP", "TMP", "TERM", "LANG", "TZ",
    "LC_*",
];

/// The rules for the shell's environment, ready to be asked.
#[derive(Debug, Clone)]
pub(crate) struct ShellEnvironment {
    inherit: Inherit,
    core: Vec<Pattern>,
    exclude: Vec<Pattern>,
    include: Vec<Pattern>,
    include_only: Vec<Pattern>,
    set: BTreeMap<String, String>,
}

/// A pattern of names; in capitals and others they are the same to it.
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    lower: String,
    /// None where every wildcard is a `*`: compiling that costs a start more than all else here.
    matcher: Option<GlobMatcher>,
}

impl Pattern {
    fn new(text: &str) -> Result<Self, globset::Error> {
        let plain = text.bytes().all(|byte| byte == b'*' || byte == b'_' || byte.is_ascii_alphanumeric());
        let compiled =
            || GlobBuilder::new(text).case_insensitive(true).build().map(|glob| glob.compile_matcher());
        let matcher = if plain { None } else { Some(compiled()?) };
        Ok(Self { text: text.to_owned(), lower: text.to_ascii_lowercase(), matcher })
    }

    fn is_match(&self, name: &str) -> bool {
        match &self.matcher {
            Some(matcher) => matcher.is_match(name),
            None => stars_match(&self.lower, &name.to_ascii_lowercase()),
        }
    }
}

/// Whether a name is what a pattern's pieces are in their order, with anything for each `*`.
fn stars_match(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut name) = name.strip_suffix(last) else { return false };
    middle.split('*').all(|piece| match name.split_once(piece) {
        Some((_, after)) => {
            name = after;
            true
        }
        None => false,
    })
}

/// What becomes of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) name: Bytes,
    pub(crate) arrives: bool,
    pub(crate) why: String,
}

impl ShellEnvironment {
    /// # Errors
    /// A pattern that is none, or a name that no variable can have; which key of the table, and what.
    pub(super) fn new(table: &Table) -> Result<Self, (&'static str, String)> {
        let patterns = |key: &'static str, texts: &[String]| {
            let compiled = texts.iter().map(|text| Pattern::new(text));
            compiled.collect::<Result<Vec<_>, _>>().map_err(|error| (key, error.to_string()))
        };
        if let Some(name) = table.set.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(("set", format!("`{name}` is no name of a variable")));
        }
        if let Some((name, _)) = table.set.iter().find(|(_, value)| value.contains('\0')) {
            return Err(("set", format!("the value of `{name}` has a NUL byte in it")));
        }
        Ok(Self {
            inherit: table.inherit,
            core: patterns("inherit", &CORE.map(str::to_owned))?,
            exclude: patterns("exclude", &table.exclude)?,
            include: patterns("include", &table.include)?,
            include_only: patterns("include_only", &table.include_only)?,
            set: table.set.clone(),
        })
    }

    /// Whether a variable of the caller's arrives, and why.
    fn fate(&self, name: &[u8]) -> (bool, String) {
        let text = String::from_utf8_lossy(name);
        let among = |patterns: &[Pattern]| {
            patterns.iter().find(|pattern| pattern.is_match(&text)).map(|pattern| pattern.text.clone())
        };
        if self.set.contains_key(&*text) {
            return (true, "set".to_owned());
        }
        let inherited = match self.inherit {
            Inherit::All => true,
            Inherit::Core => among(&self.core).is_some(),
            Inherit::None => false,
        };
        if let Some(pattern) = among(&self.include) {
            return (true, format!("include {pattern}"));
        }
        if !inherited {
            let inherit = if self.inherit == Inherit::Core { "core" } else { "none" };
            return (false, format!("inherit {inherit}"));
        }
        if let Some(pattern) = among(&self.exclude) {
            return (false, format!("exclude {pattern}"));
        }
        if !self.include_only.is_empty() {
            return match among(&self.include_only) {
                Some(pattern) => (true, format!("include_only {pattern}")),
                None => (false, "include_only".to_owned()),
            };
        }
        (true, "inherited".to_owned())
    }

    /// What becomes of each of these variables, and of those that are set besides, by name.
    pub(crate) fn fates(&self, caller: &[Bytes]) -> Vec<Fate> {
        let mut fates: BTreeMap<Vec<u8>, (bool, String)> = caller
            .iter()
            .map(|variable| split(variable).0.to_vec())
            .map(|name| (name.clone(), self.fate(&name)))
            .collect();
        fates.extend(self.set.keys().map(|name| (name.clone().into_bytes(), (true, "set".to_owned()))));
        fates.into_iter().map(|(name, (arrives, why))| Fate { name: Bytes(name), arrives, why }).collect()
    }

    /// The shell's environment, of the caller's.
    pub(crate) fn apply(&self, caller: &[Bytes]) -> Vec<Bytes> {
        let set = |name: &[u8]| self.set.keys().any(|own| own.as_bytes() == name);
        let kept = caller.iter().filter(|variable| {
            let name = split(variable).0;
            self.fate(name).0 && !set(name)
        });
        let own = self.set.iter().map(|(name, value)| Bytes(format!("{name}={value}").into_bytes()));
        kept.cloned().chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrives(table: &str) -> Vec<String> {
        let table: Table = toml::from_str(table).unwrap();
        let caller = ["HOME=/h", "GH_TOKEN=x", "aws_secret_id=x", "EDITOR=vi", "LC_ALL=C", "MONKEY=1"];
        let caller = caller.map(|variable| Bytes(variable.as_bytes().to_vec()));
        let shell = ShellEnvironment::new(&table).unwrap().apply(&caller);
        shell.iter().map(|variable| String::from_utf8_lossy(variable.as_slice()).into_owned()).collect()
    }

    #[test]
    fn secrets_stay_away_by_default() {
        assert_eq!(arrives(""), ["HOME=/h", "EDITOR=vi", "LC_ALL=C"]);
    }

    #[test]
    fn each_key_does_what_it_says() {
        assert_eq!(arrives("inherit = 'core'"), ["HOME=/h", "LC_ALL=C"]);
        assert_eq!(arrives("inherit = 'none'\nset = { A = 'b' }"), ["A=b"]);
        assert_eq!(arrives("include = ['monkey']"), ["HOME=/h", "EDITOR=vi", "LC_ALL=C", "MONKEY=1"]);
        assert_eq!(
            arrives("exclude = []\ninclude_only = ['*_*']"),
            ["GH_TOKEN=x", "aws_secret_id=x", "LC_ALL=C"]
        );
        assert_eq!(arrives("set = { EDITOR = 'true' }"), ["HOME=/h", "LC_ALL=C", "EDITOR=true"]);
    }

    #[test]
    fn stars_match_as_patterns_do() {
        let names = ["", "A", "B", "AB", "BA", "ABA", "AAB", "XABX", "AXB", "a_b", "ABAB"];
        let patterns =
            ["", "*", "**", "A", "a*", "*b", "*AB*", "A*B", "A*A", "*a*b*", "A**B", "A*B*", "AB*AB"];
        for pattern in patterns {
            let glob = GlobBuilder::new(pattern).case_insensitive(true).build().unwrap().compile_matcher();
            let own = Pattern::new(pattern).unwrap();
            assert!(own.matcher.is_none());
            for name in names {
                assert_eq!(own.is_match(name), glob.is_match(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (table, key) in [("exclude = ['[']", "exclude"), ("set = { 'A=B' = '' }", "set")] {
            assert_eq!(ShellEnvironment::new(&toml::from_str(table).unwrap()).unwrap_err().0, key);
        }
        assert!(toml::from_str::<Table>("inherits = 'all'").is_err());
    }
}
