//! The names that are most similar to a misspelt one.
//! Out of scope: messages.

use super::super::yaml::Value;

/// The maximum number of suggestions.
const MAX_SUGGESTIONS: usize = 3;

/// The names similar to `found`, the most similar first: those that start with it, and those that differ in at most a third of their
/// characters.
pub fn nearest<'k>(found: &str, names: &[&'k str]) -> Vec<&'k str> {
    let mut near: Vec<(usize, &str)> = distances(found, names)
        .into_iter()
        .filter(|(distance, name)| *distance <= name.len().max(found.len()).div_ceil(3))
        .collect();
    // Another name is as good as the best one only if it is as similar.
    let best = near.first().map_or(0, |(distance, _)| *distance);
    near.retain(|(distance, _)| *distance == best);
    near.truncate(MAX_SUGGESTIONS);
    near.into_iter().map(|(_, name)| name).collect()
}

/// The names that differ least from `found`, even if they differ much.
pub fn least_different<'k>(found: &str, names: &[&'k str]) -> Vec<&'k str> {
    let all = distances(found, names);
    let some = all.into_iter().take(MAX_SUGGESTIONS);
    some.map(|(_, name)| name).collect()
}

fn distances<'k>(found: &str, names: &[&'k str]) -> Vec<(usize, &'k str)> {
    // No known name is half as long, and the cost of the distance is the product of the lengths.
    const LONGEST: usize = 40;
    let normalize = |text: &str| text.replace('-', "_").to_ascii_lowercase();
    let found = normalize(&found.chars().take(LONGEST).collect::<String>());
    let distance = |name: &str| match found.len() >= 3 && name.starts_with(&found) {
        true => 0,
        false => strsim::damerau_levenshtein(&found, name),
    };
    let mut all: Vec<(usize, &str)> = names
        .iter()
        .map(|name| (distance(&normalize(name)), *name))
        .collect();
    all.sort();
    all
}

/// `"a"`, `"a" or "b"`, `"a", "b" or "c"`.
pub fn quoted(names: &[&str]) -> String {
    let all: Vec<String> = names
        .iter()
        .map(|name| Value::Text((*name).to_owned()).to_string())
        .collect();
    match all.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_words_are_suggested_and_at_most_three() {
        let names = ["ram_mb", "ram_gb", "ram_bytes", "name", "count", "network"];
        assert_eq!(nearest("ram_kb", &names), ["ram_gb", "ram_mb"]);
        assert_eq!(nearest("ram", &names), ["ram_bytes", "ram_gb", "ram_mb"]);
        assert_eq!(nearest("Count", &names), ["count"]);
        assert_eq!(nearest("zzzzzz", &names), [""; 0]);
        assert_eq!(least_different("zzzzzz", &names).len(), 3);
        assert_eq!(quoted(&["a", "b", "c"]), "\"a\", \"b\" or \"c\"");
    }
}
