//! The text below the options in the help of a command, divided into prose and blocks of lines.
//! Out of scope: the formats of it.

use clap::Command;

/// The text below the options.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// Paragraphs.
    pub prose: Vec<String>,
    /// Lines that are shown as they are, such as examples, each with its heading.
    pub blocks: Vec<(String, Vec<String>)>,
}

impl Footer {
    /// The footer of a command.
    pub fn of(command: &Command) -> Self {
        let text = command.get_after_help().map(ToString::to_string);
        Self::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut footer = Self::default();
        for paragraph in text.split("\n\n") {
            let mut lines = paragraph.lines();
            match lines.next().map(|line| (line, line.strip_suffix(':'))) {
                Some((_, Some(heading))) => {
                    let lines = lines.map(str::to_owned).collect();
                    footer.blocks.push((heading.to_owned(), lines));
                }
                Some((_, None)) => footer.prose.push(paragraph.replace('\n', " ")),
                None => {}
            }
        }
        footer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_blocks_are_distinguished() {
        let footer = Footer::parse("One.\n\nTwo\nlines.\n\nExamples:\n  a\n    b\n\nFiles:\n  c");
        assert_eq!(footer.prose, ["One.", "Two lines."]);
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(
            footer.blocks,
            [
                ("Examples".to_owned(), lines(&["  a", "    b"])),
                ("Files".to_owned(), lines(&["  c"])),
            ]
        );
        assert_eq!(Footer::parse(""), Footer::default());
    }
}
