//! Text of guests, clients, plugins and the kernel as one line of limited length without characters that control a terminal.
//! Out of scope: text that is shown as it was written (`cli::sanitize`).

use std::borrow::Cow;

/// The maximum length of the message of an event, in bytes.
pub const MAX_LEN: usize = 4096;

/// What replaces the rest of a message that is too long.
const CUT: &str = "…";

/// The message of an event as it is stored. Messages contain text of manifests, guests, VMMs, plugins and the kernel.
pub fn message(text: &str) -> Cow<'_, str> {
    line(text, MAX_LEN)
}

/// One line of at most `max_len` bytes.
pub fn line(text: &str, max_len: usize) -> Cow<'_, str> {
    let is_clean = text.len() <= max_len && !text.chars().any(is_unsafe);
    if is_clean {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len().min(max_len));
    for found in text.chars() {
        let shown = match found {
            '\n' | '\r' | '\t' => ' ',
            other if is_unsafe(other) => char::REPLACEMENT_CHARACTER,
            other => other,
        };
        if clean.len() + shown.len_utf8() + CUT.len() > max_len {
            clean.push_str(CUT);
            break;
        }
        clean.push(shown);
    }
    Cow::Owned(clean)
}

/// Control characters, and the marks that change the direction of text (Unicode, UAX 9).
fn is_unsafe(found: char) -> bool {
    found.is_control()
        || matches!(
            found,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
        )
        || matches!(found, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        for (text, expected) in [
            ("", ""),
            ("VM is ready", "VM is ready"),
            ("naïve → ok", "naïve → ok"),
            ("two\nlines\tand\r\n", "two lines and  "),
            ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
            ("\u{9b}31m", "\u{fffd}31m"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\u{fffd}b\u{fffd}c\u{fffd}"),
        ] {
            assert_eq!(message(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        for unit in ["x", "é", "→", "\n", "𝄞"] {
            let exact = "x".repeat(MAX_LEN);
            assert_eq!(message(&exact), exact);
            let long = unit.repeat(2 * MAX_LEN);
            let cut = message(&long);
            assert!(
                cut.len() <= MAX_LEN && cut.len() > MAX_LEN - 8,
                "{}",
                cut.len()
            );
            assert!(cut.ends_with(CUT));
        }
    }
}
