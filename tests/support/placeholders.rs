//! Replaces what differs between two runs of the same commands by placeholders: ages, times, uids, what is derived from uids and from
//! the path of the state directory, pids. Tables are aligned again, so that the width of a value does not matter.
//! Colours, as [`MARKS`], have no width.
//! Out of scope: texts of a single test, such as its paths (`transcript`).

/// Characters that stand for colours: they are kept, and have no width.
pub const MARKS: std::ops::RangeInclusive<char> = '\u{e000}'..='\u{e00f}';

/// The titles of columns whose values are ages.
const AGES: [&str; 3] = ["AGE", "SINCE", "LAST SEEN"];

/// The blanks between two columns of a table.
const GAP: &str = "   ";

/// The text with placeholders.
pub fn normalize(text: &str) -> String {
    // `\r` is made visible, so that no editor and no checkout changes it.
    let text = text.replace('\r', "<CR>");
    let mut result = String::new();
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let Some(columns) = columns(line) else {
            result.push_str(&tokens(line));
            continue;
        };
        let indent = indent(line);
        let mut rows = vec![cells(line, &columns)];
        let titles = rows[0].clone();
        while let Some(row) =
            lines.next_if(|row| !row.trim().is_empty() && self::indent(row) >= indent)
        {
            let cells = cells(row, &columns);
            let cells = titles.iter().zip(cells);
            rows.push(cells.map(|(title, cell)| cell_of(title, &cell)).collect());
        }
        result.push_str(&table(&rows, indent));
    }
    result
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_mark(c: char) -> bool {
    MARKS.contains(&c)
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| !is_mark(*c)).collect()
}

/// Where the columns of a table start, in characters, if this is the line of their titles.
fn columns(line: &str) -> Option<Vec<usize>> {
    let is_title = |c: char| c.is_ascii_uppercase() || c == ' ' || c == '-';
    let titles = plain(line);
    let titles = titles.trim_end();
    if !titles.contains(GAP) || !titles.chars().all(is_title) {
        return None;
    }
    let mut starts = Vec::new();
    let mut blanks = GAP.len();
    for (at, c) in titles.chars().enumerate() {
        if c != ' ' && (blanks >= GAP.len() || starts.is_empty()) {
            starts.push(at);
        }
        blanks = if c == ' ' { blanks + 1 } else { 0 };
    }
    Some(starts)
}

fn cells(line: &str, columns: &[usize]) -> Vec<String> {
    let mut cells = vec![String::new(); columns.len()];
    let mut at = 0;
    for c in line.trim_end().chars() {
        // What is before the first column is the indentation.
        if let Some(column) = columns.iter().rposition(|start| *start <= at) {
            cells[column].push(c);
        }
        at += usize::from(!is_mark(c));
    }
    cells
        .iter()
        .map(|cell| cell.trim_end().to_owned())
        .collect()
}

fn cell_of(title: &str, cell: &str) -> String {
    let title = plain(title);
    match title.as_str() {
        title if AGES.contains(&title) && !cell.is_empty() => "<AGE>".to_owned(),
        "PID" if is_number(cell) => "<PID>".to_owned(),
        // A repair that is repeated, a counter of packets.
        "COUNT" if is_number(cell) => "<COUNT>".to_owned(),
        _ => tokens(cell),
    }
}

fn table(rows: &[Vec<String>], indent: usize) -> String {
    let length = |row: &Vec<String>, column: usize| plain(&row[column]).chars().count();
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| {
            rows.iter()
                .map(|row| length(row, column))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut result = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| {
                let blanks = width - plain(cell).chars().count();
                format!("{cell}{}", " ".repeat(blanks))
            })
            .collect();
        result.push_str(&" ".repeat(indent));
        result.push_str(cells.join(GAP).trim_end());
        result.push('\n');
    }
    result
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || ":.-_".contains(c)
}

/// A line of text, token by token. What a token means can depend on the one before it.
fn tokens(line: &str) -> String {
    let mut result = String::new();
    let mut before = String::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            if ",()".contains(c) {
                before.clear();
            }
            result.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (token, after) = rest.split_at(end);
        let word = token.trim_end_matches([':', '.']);
        result.push_str(&placeholder(&before, word, after));
        result.push_str(&token[word.len()..]);
        if !word.is_empty() {
            word.clone_into(&mut before);
        }
        rest = after;
    }
    result
}

fn placeholder(before: &str, word: &str, after: &str) -> String {
    let is_pid = ["pid", "Pid", "process"].contains(&before) && is_number(word);
    let shown = match word {
        _ if is_pid => "<PID>",
        _ if ["user", "User"].contains(&before) && is_number(word) => "<USER>",
        _ if is_counter(before) && is_number(word) => "<COUNT>",
        _ if after.starts_with(" ago)") => "<AGE>",
        _ if before == "rules" && word.len() == 12 && word.bytes().all(is_hex) => "<DIGEST>",
        _ if before == "in" && is_seconds(word) => "<TIME>",
        _ if is_uid(word) => "<UID>",
        _ if is_time(word) => "<TIME>",
        _ if is_mac(word) => "<MAC>",
        _ if is_hash(word, "slice-", 12) => "slice-<ID>",
        _ if is_hash(word, "sl", 13) => "<LINK>",
        _ if is_hash(word, "veth", 8) => "<VETH>",
        _ if ["digest", "Digest"].contains(&before) && word.bytes().all(is_hex) => "<DIGEST>",
        _ => return chain(word),
    };
    shown.to_owned()
}

/// `SLICE-<instance>-<role>`; the instance is derived from the path of the state directory.
fn chain(word: &str) -> String {
    let parts: Vec<&str> = word.splitn(3, '-').collect();
    match parts.as_slice() {
        ["SLICE", instance, role] if is_hash(instance, "", 5) => format!("SLICE-<ID>-{role}"),
        _ => word.to_owned(),
    }
}

/// The name of a counter of `vm metrics` that depends on the time.
/// `1.2s`
fn is_seconds(word: &str) -> bool {
    let number = word
        .strip_suffix('s')
        .and_then(|number| number.split_once('.'));
    number.is_some_and(|(whole, tenths)| is_number(whole) && is_number(tenths))
}

fn is_counter(name: &str) -> bool {
    let ends = ["_bytes", "_frames", ".entries"];
    ends.iter().any(|end| name.ends_with(end))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

fn is_uid(word: &str) -> bool {
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && word.bytes().all(|byte| byte == b'-' || is_hex(byte))
}

fn is_time(word: &str) -> bool {
    word.len() >= 20 && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T')
}

fn is_mac(word: &str) -> bool {
    let parts: Vec<&str> = word.split(':').collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(is_hex))
}

/// `prefix` and so many characters of a hash as `owner` makes them.
fn is_hash(word: &str, prefix: &str, length: usize) -> bool {
    let hash = word.strip_prefix(prefix).unwrap_or_default();
    let is_hash = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    hash.len() == length && hash.bytes().all(is_hash)
}
