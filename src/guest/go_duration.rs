//! Durations as Go writes them: `200ms`, `1m30s`, `1.5s`.
//! Out of scope: negative ones.

use std::time::Duration;

/// The error for a text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration \"{0}\": expected a number with a unit, such as 200ms or 1m30s")]
pub struct InvalidDuration(String);

/// The maximum length of an invalid text in a message, in characters.
const SHOWN: usize = 32;

/// Units and their lengths in seconds; a unit is after those that begin with it.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Parses a duration; `0` needs no unit.
///
/// # Errors
/// [`InvalidDuration`].
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || {
        InvalidDuration(
            text.chars()
                .filter(|c| !c.is_control())
                .take(SHOWN)
                .collect(),
        )
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = rest.find(|c| !is_number(c)).ok_or_else(invalid)?;
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        let unit = UNITS.iter().find(|(unit, _)| rest[end..].starts_with(unit));
        let (unit, length) = unit.ok_or_else(invalid)?;
        seconds += number * length;
        rest = &rest[end + unit.len()..];
    }
    Some(seconds)
        .filter(|_| !text.is_empty())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go_are_parsed_and_others_are_errors() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("200ms", 200),
            ("60s", 60_000),
            ("2m0s", 120_000),
            ("1.5s", 1500),
            ("1h0m0.5s", 3_600_500),
            ("1500µs", 1),
        ] {
            assert_eq!(parse(text).unwrap().as_millis(), milliseconds, "{text}");
        }
        for text in [
            "",
            "1",
            "s",
            "-1s",
            "1.s.",
            "..s",
            "1d",
            "1s ",
            "99999999999999999999h",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
