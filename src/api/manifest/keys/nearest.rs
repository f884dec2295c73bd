//! The words that are most similar to a misspelt one.
//! Out of scope: messages.

use super::super::yaml::Value;

/// The maximum number of suggestions.
const MAX_SUGGESTIONS: usize = 3;

/// The words similar to `found`, the most similar first: those that start with it, and those that differ in at most a third of their
/// characters.
pub fn nearest<'k>(found: &str, words: &[&'k str]) -> Vec<&'k str> {
    let mut near: Vec<(usize, &str)> = distances(found, words)
        .into_iter()
        .filter(|(distance, word)| *distance <= word.len().max(found.len()).div_ceil(3))
        .collect();
    // Another word is as good as the best one only if it is as similar.
    let best = near.first().map_or(0, |(distance, _)| *distance);
    near.retain(|(distance, _)| *distance == best);
    near.truncate(MAX_SUGGESTIONS);
    near.into_iter().map(|(_, word)| word).collect()
}

/// The words that differ least from `found`, even if they differ much.
pub fn least_different<'k>(found: &str, words: &[&'k str]) -> Vec<&'k str> {
    let all = distances(found, words);
    let some = all.into_iter().take(MAX_SUGGESTIONS);
    some.map(|(_, word)| word).collect()
}

fn distances<'k>(found: &str, words: &[&'k str]) -> Vec<(usize, &'k str)> {
    // No known word is half as long, and the cost of the distance is the product of the lengths.
    const LONGEST: usize = 40;
    let normalize = |text: &str| text.replace('-', "_").to_ascii_lowercase();
    let found = normalize(&found.chars().take(LONGEST).collect::<String>());
    let distance = |word: &str| match found.len() >= 3 && word.starts_with(&found) {
        true => 0,
        false => strsim::damerau_levenshtein(&found, word),
    };
    let mut all: Vec<(usize, &str)> = words
        .iter()
        .map(|word| (distance(&normalize(word)), *word))
        .collect();
    all.sort();
    all
}

/// `"a"`, `"a" or "b"`, `"a", "b" or "c"`.
pub fn quoted(words: &[&str]) -> String {
    let all: Vec<String> = words
        .iter()
        .map(|word| Value::Text((*word).to_owned()).to_string())
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
        let words = ["ram_mb", "ram_gb", "ram_bytes", "name", "count", "network"];
        assert_eq!(nearest("ram_kb", &words), ["ram_gb", "ram_mb"]);
        assert_eq!(nearest("ram", &words), ["ram_bytes", "ram_gb", "ram_mb"]);
        assert_eq!(nearest("Count", &words), ["count"]);
        assert_eq!(nearest("zzzzzz", &words), [""; 0]);
        assert_eq!(least_different("zzzzzz", &words).len(), 3);
        assert_eq!(quoted(&["a", "b", "c"]), "\"a\", \"b\" or \"c\"");
    }
}
