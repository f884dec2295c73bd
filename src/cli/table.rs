//! Tables in the style of kubectl: no borders, aligned columns, three spaces between them; rows can be added later.
//! Out of scope: which columns there are.

use comfy_table::{
    Attribute, Cell, ColumnConstraint, ContentArrangement, Table as Grid, Width, presets,
};

use super::paint::{Colors, Severity, one_line};

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
}

impl<T: ToString> From<T> for Field {
    fn from(value: T) -> Self {
        Self::with_severity(value.to_string(), Severity::Neutral)
    }
}

/// Draws rows in one or more calls under one header.
#[derive(Debug)]
pub struct Table {
    header: Option<Vec<&'static str>>,
    widths: Vec<u16>,
    colors: Colors,
}

impl Table {
    /// A table. Its header is drawn before the first rows.
    pub fn new(header: Vec<&'static str>, colors: Colors) -> Self {
        Self {
            widths: vec![0; header.len()],
            header: Some(header),
            colors,
        }
    }

    /// Formats rows as lines of text; columns are at least as wide as in all earlier rows.
    pub fn draw(&mut self, rows: Vec<Vec<Field>>) -> String {
        let mut table = Grid::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        match self.colors {
            Colors::Enabled => table.enforce_styling(),
            Colors::Disabled => table.force_no_tty(),
        };
        if let Some(header) = self.header.take() {
            table.set_header(header.into_iter().map(|text| self.title(text)));
        }
        for row in rows {
            table.add_row(row.into_iter().map(|field| self.cell(field)));
        }
        let min_widths = self.widths.iter();
        for (column, &width) in table.column_iter_mut().zip(min_widths) {
            column.set_padding((0, 3));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 3)));
        }
        for (known, content) in self
            .widths
            .iter_mut()
            .zip(table.column_max_content_widths())
        {
            *known = content.max(*known);
        }
        table
            .lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }

    fn title(&self, text: &'static str) -> Cell {
        match self.colors {
            Colors::Enabled => Cell::new(text).add_attribute(Attribute::Bold),
            Colors::Disabled => Cell::new(text),
        }
    }

    fn cell(&self, field: Field) -> Cell {
        let cell = Cell::new(one_line(&field.text));
        match (self.colors, field.severity.color()) {
            (Colors::Enabled, Some(color)) => cell.fg(color),
            _ => cell,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn colours_do_not_shift_columns() {
        let rows = || {
            vec![
                vec![Field::with_severity("ok", Severity::Good), "1".into()],
                vec![Field::with_severity("failed", Severity::Error), "2".into()],
            ]
        };
        let plain = Table::new(vec!["S", "N"], Colors::Disabled).draw(rows());
        let colored = Table::new(vec!["S", "N"], Colors::Enabled).draw(rows());
        assert!(colored.contains("\u{1b}["));
        let mut stripped = String::new();
        let mut in_escape = false;
        for c in colored.chars() {
            match (in_escape, c) {
                (_, '\u{1b}') => in_escape = true,
                (true, 'm') => in_escape = false,
                (true, _) => {}
                (false, c) => stripped.push(c),
            }
        }
        let trimmed: String = stripped
            .lines()
            .map(|l| format!("{}\n", l.trim_end()))
            .collect();
        assert_eq!(trimmed, plain);
    }
}
