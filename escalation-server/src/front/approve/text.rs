//! Prompts as lines that no terminal breaks or cuts: what one would put at the left edge could look
//! like another field.

use unicode_width::UnicodeWidthChar;

use crate::approval::{Field, Prompt};
use crate::flow::text::printable;

/// Continues a line; so wide is a mark, and the indent.
const MARK: &str = "\\ ";
/// Where text begins, beside its name.
const COLUMN: usize = 22;
/// The width from which there is room for that.
const BESIDE: usize = 60;
/// The least width at which nothing is cut.
pub(super) const LEAST: usize = 20;

/// What a letter takes at most.
fn columns(letter: char) -> usize {
    // One without a width of its own counts too: a heap of them on one letter could not be read.
    letter.width().unwrap_or(1).max(1)
}

pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// How many bytes of a line fit, at least one letter: up to a blank, if one is in the second half.
fn fitting(line: &str, width: usize) -> usize {
    let (mut used, mut blank) = (0, None);
    for (at, letter) in line.char_indices() {
        used += columns(letter);
        if used > width && at > 0 {
            return blank.unwrap_or(at);
        }
        if letter == ' ' && used > width / 2 + 1 {
            blank = Some(at + 1);
        }
    }
    line.len()
}

/// A line in pieces of at most this width. Each but the first has a mark besides.
pub(super) fn wrapped(line: &str, width: usize) -> Vec<String> {
    let (mut pieces, mut rest) = (Vec::new(), line);
    loop {
        let (piece, more) = rest.split_at(fitting(rest, width));
        pieces.push(format!("{}{piece}", if pieces.is_empty() { "" } else { MARK }));
        rest = more;
        if rest.is_empty() {
            return pieces;
        }
    }
}

/// Fields as lines of at most this width, from `LEAST` on.
pub(super) fn lines<'a>(fields: impl IntoIterator<Item = &'a Field>, across: usize) -> Vec<String> {
    let mut all = Vec::new();
    for field in fields {
        let name = printable(field.name.as_bytes());
        let start = if across >= BESIDE { COLUMN } else { 2 * MARK.len() };
        let room = across.saturating_sub(start + MARK.len());
        let mut pieces =
            field.text.lines().flat_map(|line| wrapped(&printable(line.as_bytes()), room)).peekable();
        let beside = MARK.len() + width(&name) < start;
        match pieces.peek() {
            None => continue,
            Some(piece) if beside => {
                let gap = start - MARK.len() - width(&name);
                all.push(format!("  {name}{:gap$}{piece}", ""));
                pieces.next();
            }
            Some(_) => {
                let room = across.saturating_sub(2 * MARK.len());
                all.extend(wrapped(&name, room).iter().map(|piece| format!("  {piece}")));
            }
        }
        all.extend(pieces.map(|piece| format!("{:start$}{piece}", "")));
    }
    all
}

/// The answers that a prompt accepts.
pub(super) fn answers(prompt: &Prompt) -> Field {
    Field { name: "answers".to_owned(), text: prompt.offered.join(", ") }
}

/// Exactly this width: filled with blanks, or cut with a mark.
pub(super) fn fitted(text: &str, across: usize) -> String {
    let taken = width(text);
    if taken <= across {
        return format!("{text}{:gap$}", "", gap = across - taken);
    }
    let (mut out, mut used) = (String::new(), 0);
    for letter in text.chars() {
        if used + columns(letter) + 1 > across {
            break;
        }
        used += columns(letter);
        out.push(letter);
    }
    if across > 0 {
        out.push('…');
    }
    let gap = across.saturating_sub(used + 1);
    format!("{out}{:gap$}", "")
}

/// The end of a text, if it is wider than this.
pub(super) fn tail(text: &str, across: usize) -> String {
    let mut rest = text;
    while width(rest) > across.saturating_sub(usize::from(rest.len() < text.len())) {
        let mut letters = rest.chars();
        if letters.next().is_none() {
            break;
        }
        rest = letters.as_str();
    }
    if rest.len() < text.len() && across > 0 { format!("…{rest}") } else { rest.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_blanks_where_there_are_any_and_nothing_is_lost() {
        let long = format!("{} {}", "word ".repeat(30), "x".repeat(200));
        let pieces = wrapped(&long, 54);
        assert!(pieces.iter().all(|piece| piece.chars().count() <= 56));
        assert!(pieces.iter().skip(1).all(|piece| piece.starts_with("\\ ")));
        let whole: String = pieces.iter().map(|piece| piece.strip_prefix("\\ ").unwrap_or(piece)).collect();
        assert_eq!(whole, long);
        assert_eq!(wrapped("", 54), [""]);
        assert_eq!(wrapped("ab", 0), ["a", "\\ b"]);
    }

    #[test]
    fn no_line_is_wider_than_its_pane_and_only_names_stand_where_names_do() {
        let text =
            format!("{} 漢字かな {}\nsecond {}", "word ".repeat(30), "漢".repeat(80), "e\u{301}".repeat(90));
        let field = |name: &str| Field { name: name.to_owned(), text: text.clone() };
        let fields = [field("command"), field("a name that is longer than its column is"), field("")];
        for across in LEAST..140 {
            let lines = lines(&fields, across);
            for line in &lines {
                assert!(width(line) <= across, "{across}: {line}");
            }
            let at_the_edge = lines.iter().filter(|line| !line.starts_with("    ")).count();
            let names = 1 + wrapped(&fields[1].name, across - 4).len();
            assert_eq!(at_the_edge, names, "{across}: {lines:#?}");
        }
    }

    #[test]
    fn what_is_fitted_is_as_wide_as_its_place() {
        assert_eq!((tail("abc", 3), tail("abcd", 3)), ("abc".to_owned(), "…cd".to_owned()));
        for across in 0..12 {
            for text in ["", "abc", "abcdefghijklmnop", "漢字かな漢字"] {
                assert_eq!(width(&fitted(text, across)), across, "{text} {across}");
                assert!(width(&tail(text, across)) <= across, "{text} {across}");
            }
        }
    }
}
