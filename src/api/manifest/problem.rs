//! Locations in a manifest and problems at them.
//! Out of scope: finding problems.

use std::collections::HashMap;
use std::fmt;

/// A position in a text; line and column start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Position {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// A position in a manifest, displayed as `groups.yaml:14:9`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// [`super::Source::name`].
    pub file: String,
    /// Line; the first is 1.
    pub line: usize,
    /// Column in characters; the first is 1.
    pub column: usize,
}

impl Location {
    /// `place` in `file`.
    pub fn new(file: &str, position: Position) -> Self {
        Self {
            file: file.to_owned(),
            line: position.line,
            column: position.column,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A problem of a manifest. Its `Display` is one line:
/// `groups.yaml:14:9: config.host_groups[0].network.allow[1]: found "1.2.3", expected IP or CIDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The location.
    pub at: Location,
    /// The path of the field, such as `config.host_groups[0].network.allow[1]`; empty for a problem of the whole file.
    pub field: String,
    /// The message, without a final full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.is_empty() {
            true => write!(f, "{}: {}", self.at, self.message),
            false => write!(f, "{}: {}: {}", self.at, self.field, self.message),
        }
    }
}

impl std::error::Error for Problem {}

/// The maximum number of problems of a file that are shown: most have the same cause, and the first ones are read.
pub const MAX_SHOWN: usize = 10;

/// The first [`MAX_SHOWN`] problems of each file, followed by the number of its others. A problem of a key of `config:`, which every
/// group inherits, is shown once.
pub fn shown(problems: Vec<Problem>) -> Vec<Problem> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut shown: Vec<Problem> = Vec::new();
    for problem in problems {
        if shown.contains(&problem) {
            continue;
        }
        let count = counts.entry(problem.at.file.clone()).or_default();
        *count += 1;
        if *count <= MAX_SHOWN {
            shown.push(problem);
        }
    }
    for (file, count) in counts.iter().filter(|(_, count)| **count > MAX_SHOWN) {
        let Some(last) = shown.iter().rposition(|problem| problem.at.file == *file) else {
            continue;
        };
        let more = match count - MAX_SHOWN {
            1 => "and 1 more problem".to_owned(),
            more => format!("and {more} more problems"),
        };
        let summary = Problem {
            at: shown[last].at.clone(),
            field: String::new(),
            message: more,
        };
        shown.insert(last + 1, summary);
    }
    shown
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(file: &str, message: impl Into<String>) -> Self {
        Self {
            at: Location::new(file, Position::START),
            field: String::new(),
            message: message.into(),
        }
    }

    /// See [`excerpt`].
    pub fn excerpt(&self, text: &str) -> Option<String> {
        let position = Position {
            line: self.at.line,
            column: self.at.column,
        };
        excerpt(text, position)
    }
}

/// The maximum width of an excerpt's source line, in characters.
const EXCERPT_WIDTH: usize = 90;

/// The line of a position in `text`, with a caret under the column, for a terminal: two lines, the first with its number. Control
/// characters of the text are replaced by spaces, and a long line is cut. If the position is past the end of `text`, it is the last
/// line. `None` if `text` has no lines.
pub fn excerpt(text: &str, position: Position) -> Option<String> {
    let lines = lines(text);
    let (line, number, column) = match lines.get(position.line.saturating_sub(1)) {
        Some(line) => (*line, position.line, position.column),
        None => {
            let last = lines.last()?;
            (*last, lines.len(), last.chars().count() + 1)
        }
    };
    let before = column.saturating_sub(1).min(line.chars().count());
    // The caret is at the end of the cut line at most.
    let cut = (before + 1).saturating_sub(EXCERPT_WIDTH);
    let visible = line.chars().skip(cut).take(EXCERPT_WIDTH);
    let visible: String = visible
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let indent = " ".repeat(before - cut);
    let number = number.to_string();
    let gutter = " ".repeat(number.len());
    Some(format!(
        " {number} | {}\n {gutter} | {indent}^",
        visible.trim_end()
    ))
}

/// The lines of a YAML text (YAML 1.1, section 4.2: CR, NEL, LS and PS are line breaks, too), as the parser counts them.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
        lines.push(&rest[..at]);
        let after = &rest[at..];
        let width = match after.strip_prefix("\r\n") {
            Some(_) => 2,
            None => after.chars().next().map_or(1, char::len_utf8),
        };
        rest = &after[width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: usize, column: usize) -> Problem {
        Problem {
            at: Location::new("a.yaml", Position { line, column }),
            field: "config".into(),
            message: "is odd".into(),
        }
    }

    #[test]
    fn the_caret_is_below_the_column_for_any_preceding_characters() {
        let text = "config:\n\té: x\n";
        assert_eq!(
            problem(2, 5).excerpt(text).unwrap(),
            " 2 |  é: x\n   |     ^"
        );
        assert_eq!(
            problem(3, 1).excerpt(text).unwrap(),
            " 2 |  é: x\n   |      ^"
        );
        assert_eq!(problem(1, 1).excerpt(""), None);
    }

    #[test]
    fn an_excerpt_contains_no_control_characters_and_only_part_of_a_long_line() {
        let text = "a: \u{1b}[31mx\u{7}\n";
        assert_eq!(
            problem(1, 4).excerpt(text).unwrap(),
            " 1 | a:  [31mx\n   |    ^"
        );
        let long = format!("{}!{}", "x".repeat(500), "y".repeat(500));
        for column in [1, 90, 91, 501, 1001, 9999] {
            let excerpt = problem(1, column).excerpt(&long).unwrap();
            let (line, caret) = excerpt.split_once('\n').unwrap();
            assert!(line.len() <= EXCERPT_WIDTH + 5, "{line}");
            assert!(caret.len() <= EXCERPT_WIDTH + 6, "{caret}");
        }
        let excerpt = problem(1, 501).excerpt(&long).unwrap();
        let (line, caret) = excerpt.split_once('\n').unwrap();
        assert_eq!(line.find('!'), caret.find('^'));
    }

    #[test]
    fn lines_are_those_that_the_parser_counts() {
        let text = "a\rb\r\nc\u{85}d\u{2028}e\n\nf";
        assert_eq!(lines(text), ["a", "b", "c", "d", "e", "", "f"]);
        assert_eq!(lines("a\n"), ["a"]);
    }

    #[test]
    fn equal_problems_are_shown_once() {
        let problems = vec![problem(1, 1), problem(2, 1), problem(1, 1)];
        assert_eq!(shown(problems), [problem(1, 1), problem(2, 1)]);
    }

    #[test]
    fn the_first_problems_of_each_file_are_shown_and_the_others_counted() {
        let of = |file: &str, line| Problem::of_file(file, format!("problem {line}"));
        for (count, summary) in [
            (10, None),
            (11, Some("and 1 more problem")),
            (35, Some("and 25 more problems")),
        ] {
            let many = (0..count).map(|line| of("a", line));
            let all: Vec<Problem> = many.chain([of("b", 1)]).collect();
            let shown: Vec<String> = shown(all).into_iter().map(|p| p.message).collect();
            let expected = MAX_SHOWN + 1 + usize::from(summary.is_some());
            assert_eq!(shown.len(), expected, "{shown:?}");
            if let Some(summary) = summary {
                assert_eq!(shown[MAX_SHOWN], summary);
            }
        }
    }

    #[test]
    fn a_problem_is_one_line_and_a_problem_of_a_file_has_no_field() {
        assert_eq!(problem(3, 4).to_string(), "a.yaml:3:4: config: is odd");
        let problem = Problem::of_file("a.yaml", "cannot be read");
        assert_eq!(problem.to_string(), "a.yaml:1:1: cannot be read");
    }
}
