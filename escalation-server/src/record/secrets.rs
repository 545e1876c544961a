//! What looks like a secret is recorded as its hash. The patterns are documented in `docs/log.md`.

use postern_shim::wire::Bytes;

/// Words in the name of an option or variable whose value is one.
const NAMES: [&str; 8] =
    ["token", "secret", "password", "passwd", "api_key", "apikey", "api-key", "credential"];
/// How well-known tokens begin.
const PREFIXES: [&str; 10] =
    ["ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "sk-", "xoxb-", "xoxp-", "AKIA", "Bearer "];

fn hashed(value: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(value).to_hex();
    format!("[secret blake3:{}]", hash.get(..16).unwrap_or_default()).into_bytes()
}

fn names_a_secret(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    NAMES.iter().any(|word| name.contains(word))
}

/// An argument vector, fit to be kept.
pub(super) fn redact(argv: &[Bytes]) -> Vec<Bytes> {
    let mut after_option = false;
    argv.iter()
        .map(|word| {
            let bytes = word.as_slice();
            let value_of_option =
                std::mem::replace(&mut after_option, bytes.starts_with(b"-") && names_a_secret(bytes));
            let equals = bytes.iter().position(|&byte| byte == b'=');
            if let Some((name, value)) = equals.map(|at| bytes.split_at(at + 1))
                && names_a_secret(name)
                && !value.is_empty()
            {
                after_option = false;
                return Bytes([name, &hashed(value)].concat());
            }
            let token = PREFIXES
                .iter()
                .any(|prefix| bytes.starts_with(prefix.as_bytes()) && bytes.len() > prefix.len() + 8);
            if token || (value_of_option && !bytes.starts_with(b"-")) {
                Bytes(hashed(bytes))
            } else {
                word.clone()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(words: &[&str]) -> String {
        let argv: Vec<Bytes> = words.iter().map(|word| Bytes(word.as_bytes().to_vec())).collect();
        redact(&argv)
            .iter()
            .map(|word| String::from_utf8_lossy(word.as_slice()).into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for secret in [
            &["curl", "--token", "abcdef"][..],
            &["env", "DB_PASSWORD=abcdef", "psql"],
            &["tool", "--api-key=abcdef"],
            &["git", "clone", "ghp_abcdef0123456789"],
        ] {
            let text = redacted(secret);
            assert!(!text.contains("abcdef"), "{text}");
            assert!(text.contains("[secret blake3:"), "{text}");
        }
        assert_eq!(redacted(&["ls", "-l", "tokens.txt"]), "ls -l tokens.txt");
    }
}
