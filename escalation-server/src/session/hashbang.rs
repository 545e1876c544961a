//! The first line of a script, as the kernel reads it (execve(2), `fs/binfmt_script.c`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// How many bytes the kernel looks at (`BINPRM_BUF_SIZE`).
pub(super) const LOOKED_AT: usize = 256;

/// What a `#!` line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hashbang {
    pub(super) interpreter: PathBuf,
    /// All that follows, as one argument.
    pub(super) argument: Option<Vec<u8>>,
}

impl Hashbang {
    /// The line that a file begins with; none where the kernel would not take it for one. `head` is the
    /// file's first [`LOOKED_AT`] bytes, or all that it has.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let rest = head.get(..head.len().min(LOOKED_AT))?.strip_prefix(b"#!")?;
        let line = match rest.iter().position(|&byte| byte == b'\n') {
            Some(end) => rest.get(..end)?,
            // A name that goes on beyond what is looked at is none.
            None if head.len() >= LOOKED_AT => {
                let rest = rest.get(..LOOKED_AT - 1 - 2)?;
                skip_blanks(rest).iter().any(|&byte| ends_word(byte)).then_some(rest)?
            }
            None => rest,
        };
        let line = skip_blanks(line);
        let length = line.iter().rposition(|&byte| !is_blank(byte))? + 1;
        let line = line.get(..length)?;
        let at = line.iter().position(|&byte| ends_word(byte)).unwrap_or(line.len());
        let (name, after) = line.split_at(at);
        // A string ends at a zero byte.
        let argument = match after.first() {
            None | Some(0) => None,
            Some(_) => skip_blanks(after).split(|&byte| byte == 0).next().map(<[u8]>::to_vec),
        };
        (!name.is_empty()).then(|| Self { interpreter: PathBuf::from(OsStr::from_bytes(name)), argument })
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn ends_word(byte: u8) -> bool {
    is_blank(byte) || byte == 0
}

fn skip_blanks(bytes: &[u8]) -> &[u8] {
    let blanks = bytes.iter().take_while(|&&byte| is_blank(byte)).count();
    bytes.get(blanks..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// What the kernel makes of a file: the arguments that its interpreter gets; none if it is no script.
    fn kernel(path: &std::path::Path) -> Option<Vec<Vec<u8>>> {
        loop {
            match Command::new(path).arg("last").output() {
                Ok(output) => {
                    let words = output.stdout.split(|&byte| byte == 0).map(<[u8]>::to_vec);
                    let mut words: Vec<_> = words.collect();
                    words.pop();
                    return Some(words);
                }
                // Somebody's child still holds it as it was written.
                Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => std::thread::yield_now(),
                Err(_) => return None,
            }
        }
    }

    #[test]
    fn lines_are_read_as_the_kernel_reads_them() {
        let directory = std::env::temp_dir().join(format!("postern-hashbang-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("script");
        // Prints its arguments, each with a zero byte after it: `printf FORMAT [ARGUMENT] SCRIPT last`.
        let printf = "/usr/bin/env";
        let long = |length: usize| format!("#!{printf} {}", "x".repeat(length));
        let heads: Vec<Vec<u8>> = [
            "#!/usr/bin/printf %s\\0\n",
            "#! \t /usr/bin/printf \t %s\\0 \t \n",
            "#!/usr/bin/printf\t%s\\0",
            "#!/usr/bin/printf %s\\0\0more\n",
            "#!/usr/bin/printf %s\\0 two words \n",
            "#!/usr/bin/printf\r\n",
            "#!\n",
            "#!   \n",
            "#!",
            "#",
            " #!/usr/bin/printf %s\\0\n",
            "#!/usr/bin/printf\0%s\n",
        ]
        .into_iter()
        .map(|text| text.as_bytes().to_vec())
        .chain((236..246).map(|length| long(length).into_bytes()))
        .chain([format!("#!/{}\n", "x".repeat(300)).into_bytes()])
        .chain([format!("#!/usr/bin/printf %s\\0{}\n", " ".repeat(300)).into_bytes()])
        .collect();
        for head in heads {
            std::fs::write(&path, &head).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let ours = Hashbang::of(head.get(..head.len().min(LOOKED_AT)).unwrap());
            let shown = String::from_utf8_lossy(&head).into_owned();
            match (kernel(&path), &ours) {
                (None, None) => {}
                // A name that leads nowhere.
                (None, Some(line)) => assert!(!line.interpreter.exists(), "{shown:?}: {line:?}"),
                (Some(words), Some(line)) if line.interpreter.ends_with("printf") => {
                    let mut expected: Vec<Vec<u8>> = line.argument.iter().cloned().collect();
                    expected.extend([path.as_os_str().as_bytes().to_vec(), b"last".to_vec()]);
                    let format = String::from_utf8_lossy(&expected.remove(0)).replace("\\0", "\0");
                    let printed: Vec<u8> = expected
                        .iter()
                        .flat_map(|word| format.replace("%s", &String::from_utf8_lossy(word)).into_bytes())
                        .collect();
                    let mut wanted: Vec<_> = printed.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
                    wanted.pop();
                    assert_eq!(words, wanted, "{shown:?}: {line:?}");
                }
                // `env` says what it was told to run, and that there is no such thing.
                (Some(_), Some(line)) => assert_eq!(line.interpreter, PathBuf::from(printf)),
                (Some(_), None) => panic!("{shown:?} is a script to the kernel"),
            }
        }
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_follows_is_one_argument() {
        let line = Hashbang::of(b"#!/usr/bin/env -S bash -e\necho").unwrap();
        assert_eq!(line.interpreter, PathBuf::from("/usr/bin/env"));
        assert_eq!(line.argument.as_deref(), Some(&b"-S bash -e"[..]));
        assert_eq!(Hashbang::of(b"#!/bin/sh\n").unwrap().argument, None);
        assert_eq!(Hashbang::of(b"\x7fELF"), None);
    }
}
