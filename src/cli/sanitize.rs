//! Makes text from guests, plugins, manifests and the kernel safe for a terminal: it can be read, but it cannot control anything.
//! Out of scope: where the text comes from; colours of our own output.
//!
//! # Why
//! A terminal executes what it receives: an escape sequence sets its title or types into its input (`ESC [6n`), U+202E reverses
//! the order of what follows, and a zero-width character makes two names look the same.

use unicode_width::UnicodeWidthChar;

/// The number of combining marks that one character keeps: no script stacks more, and a long run covers the lines above it.
const MAX_MARKS: usize = 4;

/// The maximum length of an escape sequence or a control string. A longer one ends here, so that an unterminated one does not hide what
/// follows.
const MAX_SEQUENCE: usize = 1024;

/// The maximum length of the parameters of a colour sequence (SGR).
const MAX_PARAMETERS: usize = 64;

/// What a terminal does with a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// It is shown.
    Visible,
    /// It is shown on the previous character.
    Mark,
    /// It moves, breaks the line, or starts a sequence: C0, C1, DEL, U+2028, U+2029.
    Control,
    /// It is not shown, or it changes the order of others.
    Invisible,
}

fn class(c: char) -> Class {
    match c {
        '\u{2028}' | '\u{2029}' => Class::Control,
        _ if c.is_control() => Class::Control,
        _ if is_invisible(c) => Class::Invisible,
        _ if c.width() == Some(0) => Class::Mark,
        _ => Class::Visible,
    }
}

/// `Default_Ignorable_Code_Point` of Unicode without variation selectors, `Bidi_Control`, and characters that look like a blank but are
/// letters.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// One line of text: control characters become blanks, invisible ones U+FFFD.
pub fn line(text: &str) -> String {
    let mut marks = 0;
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let class = class(c);
        marks = if class == Class::Mark { marks + 1 } else { 0 };
        match class {
            Class::Visible => safe.push(c),
            Class::Mark if marks <= MAX_MARKS => safe.push(c),
            Class::Mark => {}
            Class::Control => safe.push(' '),
            Class::Invisible => safe.push(char::REPLACEMENT_CHARACTER),
        }
    }
    safe
}

/// Escapes in JSON all that [`line()`] would replace. Outside of strings JSON has only ASCII, so the value is the same.
pub fn json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let is_safe = c == '\n' || class(c) == Class::Visible;
        match is_safe {
            true => safe.push(c),
            false => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    safe.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    safe
}

/// Where a stream is in an escape sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// In text.
    Text,
    /// After ESC, with the number of intermediate characters.
    Escape(usize),
    /// In a control sequence, with its characters so far.
    Control(String),
    /// In a control string (OSC, DCS, SOS, PM, APC) of this length so far.
    ControlString(usize),
    /// The same, after an ESC in it.
    StringEscape,
}

/// Sanitizes a stream of bytes for a terminal, in chunks that may end anywhere: text in UTF-8, tabs, line feeds and colours (SGR) pass.
#[derive(Debug)]
pub struct Sanitizer {
    state: State,
    /// The begin of a character of which the rest has not arrived.
    partial: Vec<u8>,
    /// A carriage return: whether a line feed follows is not known yet.
    has_return: bool,
    marks: usize,
    is_colored: bool,
}

impl Default for Sanitizer {
    fn default() -> Self {
        Self {
            state: State::Text,
            partial: Vec::new(),
            has_return: false,
            marks: 0,
            is_colored: false,
        }
    }
}

impl Sanitizer {
    /// What the terminal may receive of this chunk.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut input = std::mem::take(&mut self.partial);
        input.extend_from_slice(bytes);
        let mut safe = String::with_capacity(input.len());
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            let (text, invalid) = match std::str::from_utf8(rest) {
                Ok(text) => (text, 0),
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    // `error_len` is `None` if the input ends within a character.
                    let invalid = error.error_len().unwrap_or_else(|| {
                        self.partial = after.to_vec();
                        0
                    });
                    (std::str::from_utf8(valid).unwrap_or_default(), invalid)
                }
            };
            text.chars().for_each(|c| self.character(c, &mut safe));
            if invalid > 0 {
                self.character(char::REPLACEMENT_CHARACTER, &mut safe);
            }
            rest = &rest[text.len() + invalid + self.partial.len()..];
        }
        safe
    }

    /// What ends the stream: the default colours, unless they are set.
    pub fn finish(&mut self) -> &'static str {
        match std::mem::take(&mut self.is_colored) {
            true => "\u{1b}[0m",
            false => "",
        }
    }

    fn character(&mut self, c: char, safe: &mut String) {
        self.state = match (std::mem::replace(&mut self.state, State::Text), c) {
            // CAN and SUB cancel a sequence, and so does the end of the line: what follows is to be seen.
            (_, '\u{18}' | '\u{1a}') => State::Text,
            (State::Text, '\u{1b}') => State::Escape(0),
            (State::Text, _) => {
                self.text(c, safe);
                State::Text
            }
            (_, '\n') => {
                self.text(c, safe);
                State::Text
            }
            (State::ControlString(_), '\u{1b}') => State::StringEscape,
            (State::StringEscape, '\\') => State::Text,
            (State::ControlString(_) | State::StringEscape, '\u{7}') => State::Text,
            (State::ControlString(length), _) if length < MAX_SEQUENCE => {
                State::ControlString(length + 1)
            }
            (State::ControlString(_), _) => State::Text,
            (State::Escape(_) | State::Control(_) | State::StringEscape, '\u{1b}') => {
                State::Escape(0)
            }
            (State::Escape(0), '[') => State::Control(String::new()),
            (State::Escape(0) | State::StringEscape, ']' | 'P' | 'X' | '^' | '_') => {
                State::ControlString(0)
            }
            (State::StringEscape, '[') => State::Control(String::new()),
            (State::Escape(length), ' '..='/') if length < MAX_SEQUENCE => {
                State::Escape(length + 1)
            }
            (State::Escape(_) | State::StringEscape, _) => State::Text,
            (State::Control(mut sequence), ' '..='?') if sequence.len() < MAX_SEQUENCE => {
                sequence.push(c);
                State::Control(sequence)
            }
            (State::Control(sequence), _) => {
                if c == 'm' {
                    self.color(&sequence, safe);
                }
                State::Text
            }
        };
    }

    /// A colour, if the sequence is one: `ESC [>4m` for example is not.
    fn color(&mut self, parameters: &str, safe: &mut String) {
        let is_parameter = |c: char| c.is_ascii_digit() || c == ';' || c == ':';
        if parameters.len() <= MAX_PARAMETERS && parameters.chars().all(is_parameter) {
            self.is_colored = !matches!(parameters, "" | "0");
            safe.push_str(&format!("\u{1b}[{parameters}m"));
        }
    }

    fn text(&mut self, c: char, safe: &mut String) {
        // A carriage return alone would let a guest write over its line, so it starts a new one.
        if std::mem::take(&mut self.has_return) && c != '\r' && c != '\n' {
            safe.push('\n');
        }
        let class = class(c);
        self.marks = if class == Class::Mark {
            self.marks + 1
        } else {
            0
        };
        match (class, c) {
            (_, '\r') => self.has_return = true,
            (_, '\n' | '\t') | (Class::Visible, _) => safe.push(c),
            (Class::Mark, _) if self.marks <= MAX_MARKS => safe.push(c),
            (Class::Mark | Class::Control, _) => {}
            (Class::Invisible, _) => safe.push(char::REPLACEMENT_CHARACTER),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sanitized(chunks: &[&[u8]]) -> String {
        let mut sanitizer = Sanitizer::default();
        let mut safe: String = chunks.iter().map(|chunk| sanitizer.push(chunk)).collect();
        safe.push_str(sanitizer.finish());
        safe
    }

    /// The text without the sequences that may be in it; panics at all others.
    #[track_caller]
    fn parse(safe: &str) -> String {
        let mut plain = String::new();
        let mut rest = safe;
        let mut marks = 0;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c == '\u{1b}' {
                let sequence = rest.strip_prefix('[').expect("a control sequence");
                let end = sequence
                    .find(|c: char| !c.is_ascii_digit() && !";:".contains(c))
                    .expect("an end");
                assert_eq!(&sequence[end..=end], "m", "{safe:?}");
                rest = &sequence[end + 1..];
                continue;
            }
            marks = if class(c) == Class::Mark {
                marks + 1
            } else {
                0
            };
            assert!(marks <= MAX_MARKS, "{safe:?}");
            let is_safe =
                matches!(c, '\n' | '\t') || matches!(class(c), Class::Visible | Class::Mark);
            assert!(is_safe, "{c:?} in {safe:?}");
            plain.push(c);
        }
        plain
    }

    #[test]
    fn sequences_of_guests_do_not_reach_the_terminal() {
        let cases: &[(&str, &str)] = &[
            ("plain\ttext\n", "plain\ttext\n"),
            ("\u{1b}[31mred\u{1b}[0m", "\u{1b}[31mred\u{1b}[0m"),
            ("\u{1b}[38;2;1;2;3mx", "\u{1b}[38;2;1;2;3mx\u{1b}[0m"),
            ("\u{1b}[4:3mx\u{1b}[m", "\u{1b}[4:3mx\u{1b}[m"),
            ("a\u{1b}]0;title\u{7}b", "ab"),
            ("a\u{1b}]0;title\u{1b}\\b", "ab"),
            ("a\u{1b}]0;never ended\nb", "a\nb"),
            ("a\u{1b}[6nb", "ab"),
            ("a\u{1b}[2J\u{1b}[1;1Hb", "ab"),
            ("a\u{1b}[>4mb\u{1b}[?1mc", "abc"),
            ("a\u{1b}[1 mb", "ab"),
            ("a\u{1b}Pq\u{1b}[31m\u{1b}\\b", "a\u{1b}[31mb\u{1b}[0m"),
            ("a\u{1b}cb\u{1b}(Bc\u{1b}7d", "abcd"),
            ("a\u{1b}\u{1b}[6nb", "ab"),
            ("a\u{1b}[\u{18}b", "ab"),
            ("a\u{9b}6nb", "a6nb"),
            ("a\u{85}b", "ab"),
            ("boot\r\nlogin: \r\n", "boot\nlogin: \n"),
            ("10%\r20%\r\n", "10%\n20%\n"),
            ("a\r\r\nb", "a\nb"),
            ("a\u{8}\u{7}\u{b}\u{c}\u{7f}b", "ab"),
            (
                "a\u{202e}b\u{2066}c\u{200b}d\u{feff}e",
                "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e",
            ),
            ("a\u{2028}b", "ab"),
            ("e\u{301}", "e\u{301}"),
            ("é 語 🦀", "é 語 🦀"),
        ];
        for (input, expected) in cases {
            assert_eq!(sanitized(&[input.as_bytes()]), *expected, "{input:?}");
            parse(expected);
        }
        assert_eq!(sanitized(&[b"a\xff\x9b6nb\xc3"]), "a\u{fffd}\u{fffd}6nb");
        let stacked = format!("z{}", "\u{30d}".repeat(100));
        assert_eq!(
            sanitized(&[stacked.as_bytes()]).chars().count(),
            1 + MAX_MARKS
        );
        assert_eq!(line(&stacked).chars().count(), 1 + MAX_MARKS);
    }

    #[test]
    fn a_sequence_that_never_ends_hides_a_bounded_part_of_the_text() {
        for begin in ["\u{1b}]", "\u{1b}P", "\u{1b}[", "\u{1b}#"] {
            let text = format!("{begin}{}shown", "0".repeat(2 * MAX_SEQUENCE));
            assert!(
                sanitized(&[text.as_bytes()]).ends_with("shown"),
                "{begin:?}"
            );
        }
    }

    #[test]
    fn a_line_has_neither_controls_nor_invisible_characters() {
        let text = "a\n\u{1b}[31mb\u{9b}c\u{202e}d\u{2028}e\u{200b}f\u{e0041}g";
        assert_eq!(line(text), "a  [31mb c\u{fffd}d e\u{fffd}f\u{fffd}g");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value =
            serde_json::json!({"a\u{202e}": "b\u{9b}\u{7f}\u{2028}c\u{e0041}\n\u{1b}d\u{301}é"});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let safe = json(&text);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
            value
        );
        assert!(
            safe.chars()
                .all(|c| c == '\n' || class(c) == Class::Visible),
            "{safe}"
        );
    }

    /// Bytes of sequences, of characters of all classes, and of neither.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let sequences = prop::sample::select(vec![
            "\u{1b}", "[", "]", "P", "\\", "\u{7}", "\u{9b}", "\u{9d}", "\u{90}", "m", "1;31", "?",
            ">", " ", "\r", "\n", "\t", "\u{18}", "\u{202e}", "\u{2028}", "\u{301}", "\u{200d}",
            "語", "🦀", "n", "0;title",
        ]);
        prop_oneof![
            3 => sequences.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..4),
            1 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
        ]
    }

    proptest! {
        #[test]
        fn only_text_and_colours_pass_wherever_chunks_end(
            pieces in prop::collection::vec(piece(), 0..40),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = pieces.concat();
            let whole = sanitized(&[&bytes]);
            parse(&whole);
            let mut ends: Vec<usize> = ends.iter().map(|end| end.index(bytes.len() + 1)).collect();
            ends.extend([0, bytes.len()]);
            ends.sort_unstable();
            let chunks: Vec<&[u8]> = ends.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(sanitized(&chunks), whole);
            let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(sanitized(&bytewise), sanitized(&[&bytes]));
        }

        #[test]
        fn a_line_is_always_one_line(text in any::<String>()) {
            let safe = line(&text);
            prop_assert_eq!(parse(&safe), safe.clone());
            prop_assert!(!safe.contains(['\n', '\t']));
        }
    }
}
