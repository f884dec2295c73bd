//! The last part of generated names.
//! Out of scope: whether a name is taken.

/// Characters of generated names, without similar characters (`0` and `o`) and without vowels, so that a name contains no word.
/// The first character is a letter.
const LETTERS: &[u8; 20] = b"bcdfghjkmnpqrstvwxyz";
const LETTERS_AND_DIGITS: &[u8; 28] = b"bcdfghjkmnpqrstvwxyz23456789";

/// The number of characters.
const LENGTH: usize = 5;

/// The last part of a new name.
pub(super) fn random_tail() -> String {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    let first = LETTERS[usize::from(bytes[0]) % LETTERS.len()];
    // Bytes 6 and 8 of a random uuid are not all random.
    let more = bytes[1..LENGTH].iter();
    let more = more.map(|byte| LETTERS_AND_DIGITS[usize::from(*byte) % LETTERS_AND_DIGITS.len()]);
    std::iter::once(first).chain(more).map(char::from).collect()
}

/// Whether this is the last part of a name that is generated, or that `count` gives.
pub(super) fn is_generated(tail: &str) -> bool {
    let bytes = tail.as_bytes();
    let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let is_random = bytes.len() == LENGTH
        && LETTERS.contains(&bytes[0])
        && bytes[1..]
            .iter()
            .all(|byte| LETTERS_AND_DIGITS.contains(byte));
    is_number || is_random
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_names_that_are_given_are_told_from_others() {
        assert!(is_generated(&random_tail()));
        for (tail, expected) in [
            ("1", true),
            ("4096", true),
            ("bcdf2", true),
            ("", false),
            ("web", false),
            ("apple", false),
            ("2bcdf", false),
            ("1a", false),
        ] {
            assert_eq!(is_generated(tail), expected, "{tail}");
        }
    }
}
