//! Tables in the style of kubectl, never wider than the terminal; rows can be added later.
//! Out of scope: which columns there are.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::paint::{Colors, Severity, terminal_width};
use super::sanitize;

/// The blanks between two columns.
const GAP: usize = 3;

/// The least width of a column of free text; if there is less, the columns before it are dropped.
const MIN_FREE_TEXT: usize = 20;

/// The titles of columns of free text, which are the last ones: on a narrow terminal they wrap, after other columns are dropped.
const FREE_TEXT: [&str; 2] = ["MESSAGE", "FOUND"];

/// The end of a text that is cut off.
const ELLIPSIS: char = '…';

/// Text and severity of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    text: String,
    severity: Severity,
}

impl Field {
    /// A text with a severity.
    pub fn with_severity(text: impl Into<String>, severity: impl Into<Severity>) -> Self {
        Self {
            text: text.into(),
            severity: severity.into(),
        }
    }

    /// The value, or `<none>`.
    pub fn maybe(value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => Self::with_severity(value.to_string(), Severity::Neutral),
            None => Self::with_severity("<none>", Severity::Neutral),
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl<T: ToString> From<T> for Field {
    fn from(value: T) -> Self {
        Self::with_severity(value.to_string(), Severity::Neutral)
    }
}

/// Draws rows in one or more calls under one header.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    has_header: bool,
    has_free_text: bool,
    /// The widest cell of each column so far.
    widths: Vec<usize>,
    limit: Option<usize>,
    colors: Colors,
}

impl Table {
    /// A table for standard output. Its header is drawn before the first rows.
    pub fn new(header: Vec<&'static str>, colors: Colors) -> Self {
        Self {
            widths: vec![0; header.len()],
            has_free_text: header.last().is_some_and(|last| FREE_TEXT.contains(last)),
            header,
            has_header: true,
            limit: terminal_width(),
            colors,
        }
    }

    /// The same table without its header.
    #[must_use]
    pub fn without_header(mut self) -> Self {
        self.has_header = false;
        self
    }

    /// The same table, which is inserted into other text with this indentation.
    #[must_use]
    pub fn indented(mut self, indent: usize) -> Self {
        self.limit = self.limit.map(|limit| limit.saturating_sub(indent));
        self
    }

    #[cfg(test)]
    fn within(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Formats rows as lines of text; columns are at least as wide as in all earlier rows.
    pub fn draw(&mut self, rows: Vec<Vec<Field>>) -> String {
        let titles = std::mem::take(&mut self.has_header);
        let rows: Vec<Vec<Field>> = rows.into_iter().map(sanitized).collect();
        if titles {
            self.widen(self.header.clone().into_iter().map(UnicodeWidthStr::width));
        }
        for row in &rows {
            self.widen(row.iter().map(|field| field.text.width()));
        }
        let columns = self.visible();
        let mut text = String::new();
        if titles {
            let header: Vec<Field> = self.header.iter().map(Field::from).collect();
            text.push_str(&self.row(&header, &columns, true));
        }
        for row in &rows {
            text.push_str(&self.row(row, &columns, false));
        }
        text
    }

    fn widen(&mut self, widths: impl Iterator<Item = usize>) {
        for (known, width) in self.widths.iter_mut().zip(widths) {
            *known = width.max(*known);
        }
    }

    /// The columns that fit, each with its width.
    fn visible(&self) -> Vec<(usize, usize)> {
        let all: Vec<(usize, usize)> = self.widths.iter().copied().enumerate().collect();
        let Some(limit) = self.limit else {
            return all;
        };
        let (mut fixed, free_text) = match (self.has_free_text, all.split_last()) {
            (true, Some((last, others))) => (others.to_vec(), Some(*last)),
            _ => (all, None),
        };
        let needed = free_text.map_or(0, |(_, width)| width.min(MIN_FREE_TEXT) + GAP);
        while fixed.len() > 1 && total(&fixed) + needed > limit {
            fixed.pop();
        }
        if let [(_, width)] = fixed.as_mut_slice() {
            *width = limit.min(*width);
        }
        if let Some((column, width)) = free_text {
            let left = limit.saturating_sub(total(&fixed) + GAP);
            if left > 0 {
                fixed.push((column, width.min(left)));
            }
        }
        fixed
    }

    /// The lines of a row: several only if its free text wraps.
    fn row(&self, row: &[Field], columns: &[(usize, usize)], is_title: bool) -> String {
        let last = columns.last().filter(|_| self.has_free_text);
        let free_text = last.filter(|(column, _)| column + 1 == self.header.len());
        let Some((free_text, width)) = free_text else {
            return self.line(row, columns, is_title);
        };
        let field = &row[*free_text];
        let mut lines = String::new();
        for (number, part) in textwrap::wrap(&field.text, *width).iter().enumerate() {
            let mut fields: Vec<Field> = match number {
                0 => row.to_vec(),
                _ => vec![Field::from(""); row.len()],
            };
            fields[*free_text] = Field::with_severity(part.clone(), field.severity);
            lines += &self.line(&fields, columns, is_title);
        }
        lines
    }

    fn line(&self, row: &[Field], columns: &[(usize, usize)], is_title: bool) -> String {
        let mut line = String::new();
        let mut blanks = 0;
        for (column, width) in columns {
            let Some(field) = row.get(*column) else {
                continue;
            };
            let text = cut(&field.text, *width);
            let padding = width.saturating_sub(text.width());
            if !text.is_empty() {
                line.push_str(&" ".repeat(blanks));
                blanks = 0;
                line.push_str(&match is_title {
                    true => self.colors.bold(&text),
                    false => self.colors.paint(field.severity, &text),
                });
            }
            blanks += padding + GAP;
        }
        line.push('\n');
        line
    }
}

fn sanitized(row: Vec<Field>) -> Vec<Field> {
    let fields = row.into_iter().map(|field| Field {
        text: sanitize::line(&field.text).trim_end().to_owned(),
        ..field
    });
    fields.collect()
}

fn total(columns: &[(usize, usize)]) -> usize {
    let widths: usize = columns.iter().map(|(_, width)| width).sum();
    widths + GAP * columns.len().saturating_sub(1)
}

/// The text, or its begin with an ellipsis, within this width.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut result = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used + 1 > width {
            break;
        }
        result.push(c);
    }
    let mut result = result.trim_end().to_owned();
    if width > 0 {
        result.push(ELLIPSIS);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Field>> {
        vec![
            vec![
                Field::with_severity("ok", Severity::Good),
                "1".into(),
                "a short text".into(),
            ],
            vec![
                Field::with_severity("failed", Severity::Error),
                "2".into(),
                "a message that is much longer than the others in this table".into(),
            ],
        ]
    }

    #[test]
    fn later_rows_are_aligned_with_earlier_ones() {
        let mut table = Table::new(vec!["NAME", "STATUS"], Colors::Disabled);
        let first = table.draw(vec![vec!["a-long-name".into(), "x".into()]]);
        let later = table.draw(vec![vec!["b".into(), "y".into()]]);
        assert_eq!(first, "NAME          STATUS\na-long-name   x\n");
        assert_eq!(later, "b             y\n");
    }

    #[test]
    fn control_characters_are_replaced() {
        let mut table = Table::new(vec!["A"], Colors::Disabled);
        assert_eq!(
            table.draw(vec![vec!["x\n\u{1b}[31my".into()]]),
            "A\nx  [31my\n"
        );
    }

    #[test]
    fn colours_do_not_shift_columns_and_blanks_are_not_coloured() {
        let header = || vec!["S", "N", "MESSAGE"];
        let plain = Table::new(header(), Colors::Disabled).draw(rows());
        let colored = Table::new(header(), Colors::Enabled).draw(rows());
        assert!(colored.starts_with(
            "\u{1b}[1mS\u{1b}[0m        \u{1b}[1mN\u{1b}[0m   \u{1b}[1mMESSAGE\u{1b}[0m\n"
        ));
        assert!(colored.contains("\n\u{1b}[32mok\u{1b}[0m       1   a short text\n"));
        let mut stripped = colored;
        for code in [0, 1, 31, 32, 33] {
            stripped = stripped.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(stripped, plain);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 1..120 {
            for has_free_text in [true, false] {
                let mut table =
                    Table::new(vec!["RESULT", "NUMBER", "MESSAGE"], Colors::Disabled).within(width);
                table.has_free_text = has_free_text;
                let drawn = table.draw(rows());
                assert!(
                    drawn.lines().all(|line| line.width() <= width),
                    "{width}:\n{drawn}"
                );
                assert!(
                    drawn.lines().all(|line| !line.is_empty()),
                    "{width}:\n{drawn}"
                );
            }
        }
    }

    #[test]
    fn right_columns_are_dropped_and_free_text_wraps() {
        let header = |last| vec!["RESULT", "NUMBER", last];
        let fixed = Table::new(header("LAST"), Colors::Disabled)
            .within(40)
            .draw(rows());
        assert_eq!(fixed, "RESULT   NUMBER\nok       1\nfailed   2\n");
        let wrapped = Table::new(header("MESSAGE"), Colors::Disabled)
            .within(40)
            .draw(rows());
        assert_eq!(
            wrapped,
            "RESULT   NUMBER   MESSAGE\nok       1        a short text\nfailed   2        a message that is much\n                  \
             longer than the others\n                  in this table\n"
        );
        let narrow = Table::new(header("MESSAGE"), Colors::Disabled)
            .within(30)
            .draw(rows());
        assert_eq!(
            narrow,
            "RESULT   MESSAGE\nok       a short text\nfailed   a message that is\n         much longer than the\n         others in this table\n"
        );
    }
}
