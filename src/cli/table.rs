//! Tables in the style of kubectl: no borders, aligned columns, three spaces between them; rows can be added later.
//! Out of scope: which columns there are.

use comfy_table::{
    Attribute, Cell, ColumnConstraint, ContentArrangement, Table as Grid, Width, presets,
};

use super::paint::{Colours, Tone, one_line};

/// Text and severity of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    text: String,
    tone: Tone,
}

impl Field {
    /// A text with a severity.
    pub fn toned(text: impl Into<String>, tone: impl Into<Tone>) -> Self {
        Self {
            text: text.into(),
            tone: tone.into(),
        }
    }

    /// The value, or `<none>`.
    pub fn maybe(value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => Self::toned(value.to_string(), Tone::Plain),
            None => Self::toned("<none>", Tone::Plain),
        }
    }
}

impl<T: ToString> From<T> for Field {
    fn from(value: T) -> Self {
        Self::toned(value.to_string(), Tone::Plain)
    }
}

/// Draws rows in one or more calls under one header.
#[derive(Debug)]
pub struct Table {
    header: Option<Vec<&'static str>>,
    widths: Vec<u16>,
    colours: Colours,
}

impl Table {
    /// A table whose header is drawn before the first rows.
    pub fn new(header: Vec<&'static str>, colours: Colours) -> Self {
        Self {
            widths: vec![0; header.len()],
            header: Some(header),
            colours,
        }
    }

    /// Formats rows as lines of text; columns are at least as wide as in all earlier rows.
    pub fn draw(&mut self, rows: Vec<Vec<Field>>) -> String {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        match self.colours {
            Colours::Seen => grid.enforce_styling(),
            Colours::Unseen => grid.force_no_tty(),
        };
        if let Some(header) = self.header.take() {
            grid.set_header(header.into_iter().map(|text| self.title(text)));
        }
        for row in rows {
            grid.add_row(row.into_iter().map(|field| self.cell(field)));
        }
        let known = self.widths.iter();
        for (column, &width) in grid.column_iter_mut().zip(known) {
            column.set_padding((0, 3));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 3)));
        }
        for (known, content) in self.widths.iter_mut().zip(grid.column_max_content_widths()) {
            *known = content.max(*known);
        }
        grid.lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }

    fn title(&self, text: &'static str) -> Cell {
        match self.colours {
            Colours::Seen => Cell::new(text).add_attribute(Attribute::Bold),
            Colours::Unseen => Cell::new(text),
        }
    }

    fn cell(&self, field: Field) -> Cell {
        let cell = Cell::new(one_line(&field.text));
        match (self.colours, field.tone.color()) {
            (Colours::Seen, Some(color)) => cell.fg(color),
            _ => cell,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_rows_are_aligned_with_earlier_ones() {
        let mut table = Table::new(vec!["NAME", "STATUS"], Colours::Unseen);
        let first = table.draw(vec![vec!["a-long-name".into(), "x".into()]]);
        let later = table.draw(vec![vec!["b".into(), "y".into()]]);
        assert_eq!(first, "NAME          STATUS\na-long-name   x\n");
        assert_eq!(later, "b             y\n");
    }

    #[test]
    fn control_characters_are_replaced() {
        let mut table = Table::new(vec!["A"], Colours::Unseen);
        assert_eq!(
            table.draw(vec![vec!["x\n\u{1b}[31my".into()]]),
            "A\nx  [31my\n"
        );
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let rows = || {
            vec![
                vec![Field::toned("ok", Tone::Good), "1".into()],
                vec![Field::toned("failed", Tone::Bad), "2".into()],
            ]
        };
        let bare = Table::new(vec!["S", "N"], Colours::Unseen).draw(rows());
        let seen = Table::new(vec!["S", "N"], Colours::Seen).draw(rows());
        assert!(seen.contains("\u{1b}["));
        let mut stripped = String::new();
        let mut inside = false;
        for c in seen.chars() {
            match (inside, c) {
                (_, '\u{1b}') => inside = true,
                (true, 'm') => inside = false,
                (true, _) => {}
                (false, c) => stripped.push(c),
            }
        }
        let trimmed: String = stripped
            .lines()
            .map(|l| format!("{}\n", l.trim_end()))
            .collect();
        assert_eq!(trimmed, bare);
    }
}
