//! Decides whether a database is what was acknowledged, by comparing it with the positions that are stored outside it. Pure.
//! Out of scope: reading them.

use super::position::{ContentDigest, LogPosition};

/// What was found outside the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The newest position on the state disk.
    pub disk: Option<LogPosition>,
    /// The newest position of this boot, in the run directory.
    pub run: Option<LogPosition>,
    /// There is, or was, an integrity record: a database of format 2 has existed here.
    pub has_record: bool,
}

/// What was found in the database.
#[derive(Clone, Copy, Debug)]
pub(super) struct DatabaseState {
    /// Its own position record.
    pub position: Option<LogPosition>,
    /// The digest of its content.
    pub content: ContentDigest,
    /// It contains no keys.
    pub empty: bool,
}

/// The result of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verification {
    /// The database is exactly what was acknowledged last, or has one more batch that was not acknowledged.
    Whole(LogPosition),
    /// The database has never had a batch of format 2: its creation or conversion must be started (`None`) or completed.
    Uninitialized(Option<LogPosition>),
}

impl Evidence {
    /// The newest position.
    ///
    /// # Errors
    /// The two positions belong to different databases.
    pub fn newest(&self) -> Result<Option<LogPosition>, String> {
        match (self.disk, self.run) {
            (Some(disk), Some(run)) if disk.id != run.id => Err(
                "it is not the database that was used last in this boot: the state directory was replaced"
                    .into(),
            ),
            (disk, run) => Ok(disk.into_iter().chain(run).max_by_key(|position| position.seq)),
        }
    }

    /// Why a missing database is a loss. `None`: it never had any content.
    pub fn loss(&self) -> Option<String> {
        match self.newest() {
            Err(why) => Some(why),
            Ok(Some(log_position)) if log_position.seq == 0 => None,
            Ok(Some(position)) => Some(format!(
                "its files are missing, although change {} was acknowledged",
                position.seq
            )),
            Ok(None) if self.has_record => {
                Some("its files are missing and its integrity record is damaged".into())
            }
            Ok(None) => None,
        }
    }
}

/// Compares a database with the evidence outside it.
///
/// # Errors
/// A message that describes how the database differs from what was acknowledged.
pub(super) fn verify(evidence: &Evidence, state: &DatabaseState) -> Result<Verification, String> {
    let newest = evidence.newest()?;
    let Some(log_position) = state.position else {
        return match newest {
            Some(log_position)
                if log_position.seq == 0 && log_position.content == state.content =>
            {
                Ok(Verification::Uninitialized(Some(log_position)))
            }
            Some(log_position) if state.empty => Err(format!(
                "it is empty, although change {} was acknowledged",
                log_position.seq
            )),
            Some(log_position) => Err(format!(
                "it is older than change {}, which was acknowledged",
                log_position.seq
            )),
            None if evidence.has_record => Err("it has no readable integrity record".into()),
            None => Ok(Verification::Uninitialized(None)),
        };
    };
    if log_position.content != state.content {
        return Err(format!(
            "its content does not match its recorded position, change {}",
            log_position.seq
        ));
    }
    match newest {
        None => Err(format!(
            "its integrity record is missing or damaged, so it is not known whether change {} is the last that was acknowledged",
            log_position.seq
        )),
        Some(newest) if newest == log_position || log_position.follows(&newest) => {
            Ok(Verification::Whole(log_position))
        }
        Some(newest) if newest.id != log_position.id => {
            Err("its integrity record belongs to another database".into())
        }
        Some(newest) if newest.seq > log_position.seq => Err(format!(
            "it ends at change {}, but change {} was acknowledged",
            log_position.seq, newest.seq
        )),
        Some(newest) => Err(format!(
            "its change {} does not follow change {} of its integrity record",
            log_position.seq, newest.seq
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{DatabaseState, Evidence, Verification, verify};
    use crate::store::position::{ContentDigest, LogPosition};

    fn content(n: u64) -> ContentDigest {
        let mut content = ContentDigest::default();
        content.add(b"n", &n.to_le_bytes());
        content
    }

    /// Positions 0 to 5 of one database.
    fn history(id: u8) -> Vec<LogPosition> {
        let mut marks = vec![LogPosition::first([id; 16], ContentDigest::default())];
        for seq in 1..6 {
            let last = marks[marks.len() - 1];
            marks.push(last.next(seq, content(seq)));
        }
        marks
    }

    fn at(position: LogPosition) -> DatabaseState {
        DatabaseState {
            position: Some(position),
            content: position.content,
            empty: false,
        }
    }

    fn evidence(disk: Option<LogPosition>, run: Option<LogPosition>) -> Evidence {
        Evidence {
            disk,
            run,
            has_record: true,
        }
    }

    #[test]
    fn only_the_acknowledged_position_or_its_successor_is_accepted() {
        let marks = history(1);
        for (n, state) in marks.iter().enumerate().skip(1) {
            for (m, sealed) in marks.iter().enumerate() {
                let expected = n == m || n == m + 1;
                for evidence in [
                    evidence(Some(*sealed), None),
                    evidence(None, Some(*sealed)),
                    evidence(Some(*sealed), Some(*sealed)),
                    // The record in the run directory is written last.
                    evidence(Some(*sealed), Some(marks[m.saturating_sub(1)])),
                    // Only the record on the state disk was replaced with an older one.
                    evidence(Some(marks[m / 2]), Some(*sealed)),
                ] {
                    let found = verify(&evidence, &at(*state));
                    assert_eq!(found.is_ok(), expected, "{n} recorded at {m}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_database_that_differs_from_its_integrity_record_is_damaged_whatever_it_contains() {
        let (ours, other) = (history(1), history(2));
        let forged = DatabaseState {
            content: content(9),
            ..at(ours[3])
        };
        let headless = |n: usize| DatabaseState {
            position: None,
            content: ours[n].content,
            empty: n == 0,
        };
        let fork = ours[2].next(9, content(9));
        for (evidence, state) in [
            (evidence(Some(ours[3]), None), at(other[3])),
            (evidence(Some(ours[3]), Some(other[3])), at(ours[3])),
            (evidence(Some(ours[3]), Some(other[1])), at(ours[3])),
            (evidence(Some(ours[3]), Some(ours[3])), forged),
            (evidence(Some(ours[3]), None), headless(3)),
            (evidence(Some(ours[3]), None), headless(0)),
            (evidence(Some(ours[0]), None), headless(3)),
            (evidence(None, None), at(ours[3])),
            (evidence(None, None), headless(0)),
            (evidence(Some(ours[3]), None), at(fork)),
            (Evidence::default(), at(ours[1])),
        ] {
            let found = verify(&evidence, &state);
            assert!(found.is_err(), "{evidence:?} {state:?}: {found:?}");
        }
    }

    #[test]
    fn a_database_without_a_batch_is_created() {
        let none = DatabaseState {
            position: None,
            content: ContentDigest::default(),
            empty: true,
        };
        let begun = LogPosition::first([1; 16], ContentDigest::default());
        for (evidence, position) in [
            (Evidence::default(), None),
            (evidence(Some(begun), None), Some(begun)),
        ] {
            assert_eq!(
                verify(&evidence, &none),
                Ok(Verification::Uninitialized(position))
            );
            assert_eq!(evidence.loss(), None);
        }
        let unsealed = DatabaseState {
            content: content(7),
            empty: false,
            ..none
        };
        let begun = LogPosition::first([1; 16], content(7));
        let found = verify(&evidence(Some(begun), None), &unsealed);
        assert_eq!(
            found,
            Ok(Verification::Uninitialized(Some(begun))),
            "format 1"
        );
    }

    #[test]
    fn a_missing_database_is_a_loss_once_something_was_acknowledged() {
        let marks = history(1);
        assert!(evidence(Some(marks[1]), None).loss().is_some());
        assert!(evidence(None, Some(marks[5])).loss().is_some());
        assert!(evidence(None, None).loss().is_some(), "a damaged record");
        assert_eq!(evidence(Some(marks[0]), None).loss(), None);
    }
}
