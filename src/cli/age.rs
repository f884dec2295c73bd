//! Formats ages as kubectl does, and times.
//! Out of scope: the clock.

use crate::api::meta::Timestamp;

/// A time to the second, in UTC: `2026-11-29T12:00:00Z`.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// From `then` to `now`: `12s`, `3m20s`, `5h7m`, `3d4h`, `2y30d`. A `then` in the future is `0s`.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    short(now.as_second().saturating_sub(then.as_second()).max(0))
}

/// The format of Kubernetes' `duration.HumanDuration`: two units while the second one is significant.
fn short(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two_units = |large: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two_units(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two_units(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two_units(days, 'd', hours % 24, 'h'),
        () if days < 730 => format!("{days}d"),
        () if days < 8 * 365 => two_units(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::{seconds, short};

    #[test]
    fn a_time_has_no_fraction_of_a_second() {
        let time = "2026-11-29T12:00:00.987654321Z".parse().unwrap();
        assert_eq!(seconds(time), "2026-11-29T12:00:00Z");
    }

    #[test]
    fn ages_are_formatted_as_in_kubectl() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3599, "59m"),
            (4 * 3600 + 7 * 60, "4h7m"),
            (10 * 3600, "10h"),
            (5 * 86_400 + 3600, "5d1h"),
            (100 * 86_400, "100d"),
            (3 * 365 * 86_400 + 86_400, "3y1d"),
        ] {
            assert_eq!(short(seconds), text);
        }
    }
}
