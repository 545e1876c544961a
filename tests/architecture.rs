//! The house's rules, as absences.

use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::{checkout, prefix, text};

fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let listed = Command::new("find").arg(checkout().join(below)).args(["-name", "*.rs"]).output().unwrap();
    text(&listed.stdout)
        .lines()
        .map(|line| (PathBuf::from(line), std::fs::read_to_string(line).unwrap()))
        .collect()
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Who may import whom: a room, and the rooms below it that it may name.
const ROOMS: [(&str, &[&str]); 10] = [
    ("front", &["session", "approval", "record", "runner", "sandbox", "flow", "sys"]),
    ("session", &["runner", "sandbox", "approval", "record", "policy", "profile", "flow", "sys"]),
    ("runner", &["sandbox", "profile", "sys"]),
    ("sandbox", &["profile", "sys"]),
    ("approval", &["sys"]),
    ("record", &["flow"]),
    ("policy", &["flow"]),
    ("profile", &[]),
    ("flow", &[]),
    ("sys", &[]),
];

#[test]
fn imports_point_down() {
    let root = checkout().join("escalation-server/src");
    let mut looked = 0;
    for (room, may) in ROOMS {
        for (path, text) in sources(&format!("escalation-server/src/{room}")) {
            let code = code(&text);
            for (other, _) in ROOMS.iter().filter(|(other, _)| *other != room && !may.contains(other)) {
                assert!(
                    !code.contains(&format!("crate::{other}::")),
                    "{} names {other}",
                    path.strip_prefix(&root).unwrap().display()
                );
            }
            looked += 1;
        }
    }
    assert!(looked > 30, "{looked} files were found");
}

/// Whether a text names this, and not just something that ends so.
fn names(text: &str, word: &str) -> bool {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(part))
}

#[test]
fn pure_rooms_touch_nothing() {
    for room in ["policy", "profile"] {
        for (path, text) in sources(&format!("escalation-server/src/{room}")) {
            for word in ["std::fs", "std::env", "std::time", "tokio", "std::process", "nix::", "libc::"] {
                assert!(!names(&code(&text), word), "{} uses {word}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_code_has_its_rooms() {
    let allowed = |path: &Path| {
        path.starts_with(checkout().join("escalation-server/src/sys"))
            || path == checkout().join("shim/src/sys.rs")
            || path == checkout().join("shim/src/hook.rs")
    };
    for below in ["shim", "escalation-server", "tests"] {
        for (path, text) in sources(below).into_iter().filter(|(path, _)| !allowed(path)) {
            for line in code(&text).lines() {
                let word = line
                    .split(|letter: char| !letter.is_alphanumeric() && letter != '_')
                    .any(|word| word == "unsafe");
                assert!(!word || path.ends_with("architecture.rs"), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn bincode_has_one_user() {
    for below in ["shim", "escalation-server", "tests"] {
        for (path, text) in sources(below) {
            if !path.ends_with("wire/frame.rs") && !path.ends_with("architecture.rs") {
                assert!(!code(&text).contains("bincode"), "{}", path.display());
            }
        }
    }
}

#[test]
fn the_threat_model_names_tests_that_there_are() {
    let model = std::fs::read_to_string(checkout().join("docs/threat-model.md")).unwrap();
    let table = model.split("## What is not").next().unwrap();
    let mut named = 0;
    for row in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attack")) {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let mut suite = String::new();
        for name in tests.split('`').skip(1).step_by(2) {
            let (within, name) = name.split_once(": ").unwrap_or((&suite, name));
            let (within, name) = (within.to_owned(), name.trim_end_matches('…'));
            let files = sources(&format!("tests/{within}"));
            let is_file = files.iter().any(|(path, _)| path.file_stem().is_some_and(|stem| stem == name));
            let is_test = files.iter().any(|(_, text)| text.contains(&format!("#[test]\nfn {name}")));
            assert!(is_file || is_test || name == "protocol", "{row}");
            suite = within;
            named += 1;
        }
    }
    assert!(named > 60, "{named} tests are named");
}

#[test]
fn files_stay_readable() {
    for below in ["shim", "escalation-server"] {
        for (path, text) in sources(below) {
            let lines = code(&text).lines().count();
            assert!(lines <= 700, "{} has {lines} lines", path.display());
        }
    }
}

const EXECUTES: [&str; 14] = [
    "execve",
    "execv",
    "execvp",
    "execvpe",
    "execl",
    "execlp",
    "execle",
    "execveat",
    "fexecve",
    "posix_spawn",
    "posix_spawnp",
    "system",
    "popen",
    "wordexp",
];

/// Names that an object wants from elsewhere.
fn imports(object: &Path, dynamic: bool) -> Vec<String> {
    let mut command = Command::new("nm");
    command.args(if dynamic { &["-D", "--undefined-only"][..] } else { &["--undefined-only"] }).arg(object);
    let output = command.output().expect("nm runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let names = text(&output.stdout);
    names
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(|name| name.split('@').next().unwrap_or(name).to_owned())
        .collect()
}

#[test]
fn of_zsh_only_the_shim_executes() {
    let tree = checkout().join("target/zsh-patched-tree").canonicalize().expect("the patched tree");
    let found = Command::new("find").arg(tree.join("Src")).args(["-name", "*.o"]).output().unwrap();
    let objects: Vec<PathBuf> = text(&found.stdout).lines().map(PathBuf::from).collect();
    assert!(objects.len() > 60, "{} objects", objects.len());
    for object in objects {
        let bad: Vec<_> =
            imports(&object, false).into_iter().filter(|name| EXECUTES.contains(&name.as_str())).collect();
        assert!(bad.is_empty(), "{} imports {bad:?}", object.display());
    }
    let found = Command::new("find").arg(prefix().join("lib")).args(["-name", "*.so"]).output().unwrap();
    let modules: Vec<PathBuf> = text(&found.stdout).lines().map(PathBuf::from).collect();
    assert!(modules.len() > 20, "{} modules", modules.len());
    for module in modules {
        let bad: Vec<_> =
            imports(&module, true).into_iter().filter(|name| EXECUTES.contains(&name.as_str())).collect();
        assert!(bad.is_empty(), "{} imports {bad:?}", module.display());
    }
    // And the hook is there.
    let main = tree.join("Src/exec.o");
    assert!(imports(&main, false).contains(&"postern_execve".to_owned()));
}

#[test]
fn what_forks_is_small() {
    let of = |command: &str, options: &[&str], file: &str| {
        let output =
            Command::new(command).args(options).arg(prefix().join("libexec/postern").join(file)).output();
        text(&output.expect("binutils are installed").stdout).to_owned()
    };
    // Each of these words is on a page that every command's process is given a copy of.
    let words = of("readelf", &["-rW"], "postern-spawner").lines().count();
    assert!((1_000..16_000).contains(&words), "{words} words to relocate");
    let strings = of("strings", &[], "postern-spawner");
    assert!(strings.contains("different builds"));
    for not_its_own in ["sqlite", "starlark", "ratatui"] {
        assert!(!strings.contains(not_its_own), "{not_its_own}");
    }
    let needed = of("readelf", &["-dW"], "zsh");
    assert!(
        needed.contains("libc.so") && !needed.contains("libgcc_s") && needed.contains("BIND_NOW"),
        "{needed}"
    );
}

#[test]
fn the_patch_stays_small() {
    let directory = checkout().join("zsh-patches");
    let patches = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let changed: usize = patches
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let body = text.split("\ndiff --git").skip(1).collect::<String>();
            body.lines()
                .filter(|line| {
                    (line.starts_with('+') || line.starts_with('-'))
                        && !line.starts_with("+++")
                        && !line.starts_with("---")
                })
                .count()
        })
        .sum();
    assert!((20..=120).contains(&changed), "{changed} lines");
}

#[test]
fn every_option_is_in_the_readme() {
    let readme = std::fs::read_to_string(checkout().join("README.md")).unwrap();
    for option in
        ["--sandbox", "--profile", "--permissions", "--rules", "--config", "--cwd", "--add-dir", "--pass-fd"]
    {
        assert!(readme.contains(option), "{option}");
    }
}
