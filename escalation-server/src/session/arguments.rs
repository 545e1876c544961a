//! What a command's arguments name, as far as the sandbox could change it: as much a part of what runs
//! as the program itself.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use postern_shim::wire::Bytes;

use super::intake::leads;
use crate::flow::Request;
use crate::profile::Reach;

/// A file that an argument names and the sandbox could write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) path: PathBuf,
    /// BLAKE3; none if it is too large, or cannot be read.
    pub(super) hash: Option<blake3::Hash>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) files: Vec<Written>,
    /// Whether none leads to anything that the sandbox could change, or make.
    pub(super) steady: bool,
    /// Whether every word was looked at.
    pub(super) complete: bool,
}

/// Bytes that are hashed for one command, and files that are.
const MOST_BYTES: u64 = 32 << 20;
const MOST_FILES: usize = 256;
/// Words that are looked at.
const MOST_WORDS: usize = 1 << 16;

impl Arguments {
    /// `kept` are variables that the command gets as its asker set them.
    pub(super) fn of(request: &Request, kept: &[&Bytes], reach: &Reach) -> Self {
        let mut found = Self { files: Vec::new(), steady: true, complete: true };
        let Some(cwd) = &request.attested.cwd else {
            return Self { steady: false, complete: false, ..found };
        };
        let mut left = MOST_BYTES;
        let words = request.argv.iter().skip(1).chain(kept.iter().copied());
        let mut looked = 0;
        for word in words {
            let word = word.as_slice();
            for text in [word].into_iter().chain(pieces(word)).filter(|text| !text.is_empty()) {
                looked += 1;
                if looked > MOST_WORDS {
                    return Self { steady: false, complete: false, ..found };
                }
                found.look(&cwd.path.join(OsStr::from_bytes(text)), text, reach, &mut left);
            }
        }
        found
    }

    /// The first file that cannot be looked at a second time.
    pub(super) fn unwatchable(&self) -> Option<&Path> {
        self.files.iter().find(|file| file.hash.is_none()).map(|file| &*file.path)
    }

    fn look(&mut self, path: &Path, text: &[u8], reach: &Reach, left: &mut u64) {
        // What stands there is another thing for each process.
        if ["/proc", "/dev/fd", "/dev/std"].iter().any(|place| text.starts_with(place.as_bytes())) {
            self.steady = false;
        }
        let metadata = path.symlink_metadata();
        if metadata.is_ok() && leads(path, reach).is_some() {
            return;
        }
        let Ok(metadata) = metadata else {
            // A word that is no path is no promise of one.
            self.steady &= text != b"-" && !text.iter().any(|byte| matches!(byte, b'/' | b'.'));
            return;
        };
        self.steady = false;
        if metadata.is_dir() || self.files.iter().any(|file| file.path == path) {
            return;
        }
        // By a link too: what it leads to now.
        if path.is_file() {
            let hash = if self.files.len() < MOST_FILES { hash(path, left) } else { None };
            self.files.push(Written { path: path.to_path_buf(), hash });
        }
    }
}

/// What may name a file within a word: the value of an option, with `=` or without, words of a command
/// line, members of a list.
fn pieces(word: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BETWEEN: &[u8] = b"=,:; \t\n'\"";
    const LONGEST_CLUSTER: usize = 32;
    let parts = word.split(|byte| BETWEEN.contains(byte)).filter(|part| part.len() < word.len());
    // Of short options the value may stick to the last: `-nfFILE`.
    let short = word.starts_with(b"-") && !word.starts_with(b"--");
    let values = (2..word.len()).take(if short { LONGEST_CLUSTER } else { 0 });
    parts.chain(values.filter_map(|at| word.get(at..)))
}

/// BLAKE3 of a file that may be anything.
fn hash(path: &Path, left: &mut u64) -> Option<blake3::Hash> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path).ok()?;
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
    *left = left.checked_sub(length)?;
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut file.take(length + 1), &mut hasher).ok()?;
    Some(hasher.finalize())
}
