//! The words of a shell command, as far as documentation uses the shell: quotes, backslashes, comments, operators, redirections and
//! command substitutions.
//! Out of scope: expansion; control structures are words like others.

/// The simple commands of a command line: each its words, without redirections and assignments before it. Those of command
/// substitutions come after the others.
pub fn simple_commands(line: &str) -> Result<Vec<Vec<String>>, String> {
    let mut reader = Reader::default();
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some('\n') => reader.end_word(),
                Some(next) => reader.push(next),
                None => return Err("ends in a backslash".to_owned()),
            },
            '\'' => reader.quoted(until(&mut characters, '\'')?),
            '"' => reader.double_quoted(until(&mut characters, '"')?)?,
            '$' if characters.peek() == Some(&'(') => {
                characters.next();
                reader.substitution(until(&mut characters, ')')?)?;
            }
            '#' if reader.word.is_none() => while characters.next_if(|c| *c != '\n').is_some() {},
            '|' | '&' | ';' | '(' | ')' | '\n' => reader.end_command(),
            '>' | '<' => reader.redirect(),
            c if c.is_whitespace() => reader.end_word(),
            c => reader.push(c),
        }
    }
    reader.end_command();
    Ok([reader.commands, reader.substituted].concat())
}

fn until(characters: &mut impl Iterator<Item = char>, end: char) -> Result<String, String> {
    let mut text = String::new();
    for c in characters {
        if c == end {
            return Ok(text);
        }
        text.push(c);
    }
    Err(format!("no closing {end}"))
}

#[derive(Default)]
struct Reader {
    commands: Vec<Vec<String>>,
    substituted: Vec<Vec<String>>,
    words: Vec<String>,
    word: Option<String>,
    redirects: bool,
}

impl Reader {
    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn quoted(&mut self, text: String) {
        self.word.get_or_insert_default().push_str(&text);
    }

    fn double_quoted(&mut self, text: String) -> Result<(), String> {
        // A quoted substitution is one word.
        if let Some((before, rest)) = text.split_once("$(") {
            let (inner, after) = rest.split_once(')').ok_or("no closing )")?;
            self.quoted(before.to_owned());
            self.substitution(inner.to_owned())?;
            self.quoted(after.to_owned());
        } else {
            self.quoted(text.replace("\\\"", "\""));
        }
        Ok(())
    }

    fn substitution(&mut self, text: String) -> Result<(), String> {
        self.quoted(format!("$({text})"));
        self.substituted.extend(simple_commands(&text)?);
        Ok(())
    }

    /// The next word is the name of a file. Digits before the operator are a descriptor.
    fn redirect(&mut self) {
        if self
            .word
            .as_ref()
            .is_some_and(|word| word.chars().all(|c| c.is_ascii_digit()))
        {
            self.word = None;
        }
        self.end_word();
        self.redirects = true;
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else {
            return;
        };
        let assigns = self.words.is_empty()
            && word.split('=').next().is_some_and(is_variable)
            && word.contains('=');
        if !std::mem::take(&mut self.redirects) && !assigns {
            self.words.push(word);
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        if !self.words.is_empty() {
            self.commands.push(std::mem::take(&mut self.words));
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
