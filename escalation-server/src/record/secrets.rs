//! What looks like a secret is recorded as its hash. The patterns are documented in `docs/log.md`.

use postern_shim::wire::Bytes;

/// Words in the name of an option or variable whose value is one.
const NAMES: [&str; 8] =
    ["token", "secret", "password", "passwd", "api_key", "apikey", "api-key", "credential"];
/// How well-known tokens begin.
const PREFIXES: [&str; 9] =
    ["ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "sk-", "xoxb-", "xoxp-", "AKIA"];

fn hashed(value: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(value).to_hex();
    format!("[secret blake3:{}]", hash.get(..16).unwrap_or_default()).into_bytes()
}

fn names_a_secret(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    NAMES.iter().any(|word| name.contains(word))
}

/// A word without the secret that its own text gives away: a header's value, a token, the password
/// in a URL.
fn without_secret(word: &[u8]) -> Option<Vec<u8>> {
    let lower = word.to_ascii_lowercase();
    let at = |wanted: &[u8]| lower.windows(wanted.len()).position(|found| found == wanted);
    for header in [&b"authorization:"[..], b"bearer "] {
        if let Some((name, value)) = at(header).and_then(|at| word.split_at_checked(at + header.len()))
            && !value.trim_ascii().is_empty()
        {
            return Some([name, b" ", &hashed(value.trim_ascii())].concat());
        }
    }
    let long_enough = |prefix: &&str| word.starts_with(prefix.as_bytes()) && word.len() > prefix.len() + 8;
    if PREFIXES.iter().any(long_enough) {
        return Some(hashed(word));
    }
    let (scheme, rest) = word.split_at_checked(at(b"://")? + 3)?;
    let authority = rest.split(|byte| b"/?#".contains(byte)).next()?;
    let (user, host) = authority.split_at_checked(authority.iter().rposition(|&byte| byte == b'@')?)?;
    let (user, password) = user.split_at_checked(user.iter().position(|&byte| byte == b':')? + 1)?;
    Some([scheme, user, &hashed(password), host, rest.get(authority.len()..)?].concat())
}

/// A text of several words, fit to be kept: as it is, or its hash where a word gives a secret away.
pub(super) fn redact_text(text: &[u8]) -> Vec<u8> {
    let words: Vec<Bytes> = text
        .split(u8::is_ascii_whitespace)
        .map(|word| Bytes(word.iter().copied().filter(|byte| !b"'\"".contains(byte)).collect()))
        .collect();
    if redact(&words) == words && without_secret(text).is_none() { text.to_vec() } else { hashed(text) }
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
            if value_of_option && !bytes.starts_with(b"-") {
                return Bytes(hashed(bytes));
            }
            without_secret(bytes).map_or_else(|| word.clone(), Bytes)
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
            &["curl", "-H", "Authorization: Bearer abcdef"],
            &["git", "clone", "https://user:abcdef@host/path"],
        ] {
            let text = redacted(secret);
            assert!(!text.contains("abcdef"), "{text}");
            assert!(text.contains("[secret blake3:"), "{text}");
        }
        assert_eq!(redacted(&["ls", "-l", "tokens.txt"]), "ls -l tokens.txt");
        assert_eq!(redacted(&["git", "clone", "https://git@host/path"]), "git clone https://git@host/path");
    }

    #[test]
    fn a_text_with_a_secret_is_its_hash() {
        for text in
            ["curl --token abcdef x | cat", "curl -H 'Authorization: Bearer abcdef'", "A_TOKEN='abcdef' b"]
        {
            let kept = String::from_utf8(redact_text(text.as_bytes())).unwrap();
            assert!(!kept.contains("abcdef") && kept.starts_with("[secret"), "{kept}");
        }
        assert_eq!(redact_text(b"make -j4 && ls"), b"make -j4 && ls");
    }
}
