//! Bytes as people and JSON see them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_shim::wire::Bytes;
use serde_json::{Value, json};

/// JSON of a byte string: text if it is UTF-8, else `{"bytes": base64}`.
pub(crate) fn to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => json!({ "bytes": STANDARD.encode(bytes) }),
    }
}

/// JSON of a list of byte strings.
pub(crate) fn list_to_json(list: &[Bytes]) -> Value {
    list.iter().map(|bytes| to_json(bytes.as_slice())).collect()
}

/// Text that cannot move a cursor, hide or reorder anything: control characters, bidirectional
/// marks and invisible ones stand as escapes, bytes that are not UTF-8 as `\xNN`.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || is_invisible(character) {
                out.extend(character.escape_unicode());
            } else {
                out.push(character);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{2800}' | '\u{3000}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Which characters are not ASCII, since some look like others that are; empty if there are none.
pub(crate) fn not_ascii(text: &str) -> String {
    let mut found: Vec<char> = text.chars().filter(|character| !character.is_ascii()).collect();
    found.sort_unstable();
    found.dedup();
    const MOST: usize = 40;
    // Letters of other scripts come after the accented ones of this.
    let named = found.iter().rev().take(MOST).map(|one| format!("{one} (U+{:04X})", u32::from(*one)));
    let named = named.collect::<Vec<_>>().join(", ");
    match found.len() {
        0 => named,
        count if count > MOST => format!("not ASCII, and perhaps not what it looks like: {named}, and more"),
        _ => format!("not ASCII, and perhaps not what it looks like: {named}"),
    }
}

/// The beginning of a command line, safe to print, for people who know what they typed.
pub(crate) fn summary(argv: &[Bytes]) -> String {
    const MOST: usize = 200;
    let line = command_line(argv.iter().map(Bytes::as_slice).take(16));
    match line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

/// Words as a shell would want them back, safe to print.
pub(crate) fn command_line<'a>(words: impl IntoIterator<Item = &'a [u8]>) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./=:,+@%^".contains(&byte);
    let quoted = words.into_iter().map(|word| {
        if !word.is_empty() && word.iter().copied().all(plain) {
            printable(word)
        } else {
            format!("'{}'", printable(word).replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_cannot_move_or_hide_anything() {
        assert_eq!(printable(b"a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(printable("evil\u{202e}txt.exe".as_bytes()), "evil\\u{202e}txt.exe");
        assert_eq!(printable(b"caf\xc3\xa9 \xff"), "café \\xff");
    }

    #[test]
    fn bytes_that_are_not_text_survive_json() {
        assert_eq!(to_json(b"plain"), json!("plain"));
        assert_eq!(to_json(b"\xff\x00"), json!({ "bytes": "/wA=" }));
    }

    #[test]
    fn words_come_back_as_the_shell_wants_them() {
        assert_eq!(command_line([&b"git"[..], b"commit", b"-m", b"it's"]), r"git commit -m 'it'\''s'");
    }
}
