//! Missing or incomplete input: which groups are kept, and which are deleted.
//! Out of scope: real directories.

use super::*;

#[test]
fn a_file_without_a_list_of_groups_deletes_nothing_and_an_empty_list_deletes() {
    let before = stored(&[file("a.yaml", group("a", ""))]);
    for text in [
        "",
        "\n\n",
        " \t\n",
        "# nothing\n",
        "---\n",
        "---\n---\n",
        "--- # nothing\n...\n",
        "\u{feff}",
        "~\n",
        "null",
        "config:\n",
        "config: {}\n",
        "config:\n  host_groups:\n",
        "config: {host_groups: ~}\n",
        "config: {host_groups: {}}\n",
        "[]\n",
        "{}\n",
        "\0\0\0\0",
    ] {
        let intake = twice(&before, &[file("a.yaml", text)]);
        assert_eq!(names(&intake.deletions), [""; 0], "{text:?}");
        assert_eq!(intake.again, None, "{text:?}: no grace period");
        assert!(
            !intake.problems.is_empty(),
            "{text:?}: no problem is reported"
        );
    }
    for text in [
        "config: {host_groups: []}",
        "config:\n  host_groups: []\n",
        "config:\n  host_groups: []\n---\n",
    ] {
        let intake = twice(&before, &[file("a.yaml", text)]);
        assert_eq!(names(&intake.deletions), ["a"], "{text:?}");
    }
}

#[test]
fn a_group_that_is_missing_for_less_than_the_grace_period_is_not_deleted() {
    let full = [file("a.yaml", group("a", ""))];
    let before = stored(&full);
    let (mut history, half_grace) = (History::default(), REMOVAL_GRACE / 2);
    let (empty, full_listing) = (listing(&[]), listing(&full));
    // Missing, present, and missing again: the grace period starts again.
    for (index, listing) in [&empty, &full_listing, &empty, &empty]
        .into_iter()
        .enumerate()
    {
        let intake = at(&before, listing, &mut history, half_grace * index as u32);
        assert_eq!(names(&intake.deletions), [""; 0], "reading {index}");
    }
    let intake = at(&before, &empty, &mut history, half_grace * 4);
    assert_eq!(names(&intake.deletions), ["a"]);
}

#[test]
fn nothing_is_deleted_because_of_another_directory() {
    let files = [
        file("a.yaml", group("a", "")),
        file("b.yaml", group("b", "")),
    ];
    let before = stored(&files);
    let other = |change: fn(&mut DirectoryId)| {
        let mut id = here();
        change(&mut id);
        id
    };
    for id in [
        other(|id| id.device += 1),
        other(|id| id.inode += 1),
        other(|id| id.created_ns = Some(4)),
        other(|id| id.created_ns = None),
    ] {
        for remaining in [&[][..], &files[1..]] {
            let listing = Listing {
                id: id.clone(),
                ..listing(remaining)
            };
            let intake = plan_listing_after_grace(&before, &listing);
            assert_eq!(names(&intake.deletions), [""; 0], "{id:?}");
            assert_eq!(intake.kept.len(), 2 - remaining.len());
            assert_eq!(intake.relocated.len(), remaining.len());
            // A file with an empty list of groups deletes.
            let none = file("a.yaml", "config: {host_groups: []}\n");
            let listing = Listing {
                files: [&[none][..], remaining].concat(),
                ..listing
            };
            assert_eq!(
                names(&plan_listing_after_grace(&before, &listing).deletions),
                ["a"]
            );
        }
    }
    // Stored by a version that did not record directories.
    let mut unknown = before.clone();
    unknown[0].seen_in = None;
    assert_eq!(names(&twice(&unknown, &files[1..]).deletions), [""; 0]);
    assert_eq!(names(&first(&unknown, &files).relocated), ["a"]);
}

#[test]
fn a_file_that_is_truncated_within_a_line_removes_nothing() {
    let one = |name: &str, count: u32| {
        format!(
            "    - name: {name}\n      network: {{mode: isolated, drop: [10.0.0.0/8]}}\n      count: {count}\n"
        )
    };
    let complete = format!(
        "config:\n  host_groups:\n{}{}",
        one("first", 12),
        one("second", 34)
    );
    let before = stored(&[file("a.yaml", complete.as_str())]);
    let mut truncations = 0;
    for length in 0..complete.len() {
        let truncated = &complete[..length];
        // A file truncated at the end of a line cannot be distinguished from an edit.
        if truncated.ends_with('\n') || complete[length..].starts_with('\n') {
            continue;
        }
        truncations += 1;
        for is_known in [true, false] {
            let mut history = History::default();
            if is_known {
                at(
                    &before,
                    &listing(&[file("a.yaml", complete.as_str())]),
                    &mut history,
                    Duration::ZERO,
                );
            }
            for after in 1..4 {
                let listing = listing(&[file("a.yaml", truncated)]);
                let intake = at(&before, &listing, &mut history, REMOVAL_GRACE * after);
                assert_eq!(
                    names(&intake.deletions),
                    [""; 0],
                    "{is_known} {truncated:?}"
                );
                let counts = intake.upserts.iter().map(|(draft, _)| draft.spec.count);
                assert_eq!(
                    counts.min().unwrap_or(99).min(12),
                    12,
                    "{is_known} {truncated:?}"
                );
            }
        }
    }
    assert!(truncations > 100, "{truncations}");
    // The last group is removed, without a line feed at the end: an edit.
    let shorter = complete[..complete.len() - one("second", 34).len()].trim_end();
    let mut memory = History::default();
    at(
        &before,
        &listing(&[file("a.yaml", complete.as_str())]),
        &mut memory,
        Duration::ZERO,
    );
    for (after, expected) in [(1, &[][..]), (2, &["second"])] {
        let listing = listing(&[file("a.yaml", shorter)]);
        let intake = at(&before, &listing, &mut memory, REMOVAL_GRACE * after);
        assert_eq!(names(&intake.deletions), expected);
    }
}

#[test]
fn a_file_that_is_open_for_writing_removes_nothing() {
    let group = |name: &str, count: u32| {
        format!("    - {{name: {name}, count: {count}, network: {{mode: isolated}}}}\n")
    };
    let head = "config:\n  host_groups:\n";
    let complete = format!("{head}{}{}", group("a", 2), group("b", 2));
    let before = stored(&[file("a.yaml", complete.as_str())]);
    let open = |text: &str| {
        let FileResult::Readable { path, source, .. } = file("a.yaml", text) else {
            unreachable!()
        };
        listing(&[FileResult::Readable {
            path,
            source,
            is_written: true,
        }])
    };
    for (text, upserts) in [
        (String::new(), 0),
        (head.to_owned(), 0),
        (format!("{head}{}", group("a", 2)), 0),
        (format!("{head}{}{}", group("a", 1), group("b", 2)), 0),
        (format!("{head}{}{}", group("a", 3), group("b", 2)), 1),
        (format!("{complete}{}", group("c", 1)), 1),
        (format!("{head}  []\n"), 0),
    ] {
        let mut memory = History::default();
        let intake = at(&before, &open(&text), &mut memory, Duration::ZERO);
        assert_eq!(
            (intake.upserts.len(), intake.problems.len()),
            (0, 0),
            "{text}: too early"
        );
        assert!(intake.again.is_some(), "{text}: another read is scheduled");
        for after in [REMOVAL_GRACE, REMOVAL_GRACE * 2, REMOVAL_GRACE * 9] {
            let intake = at(&before, &open(&text), &mut memory, after);
            assert_eq!(names(&intake.deletions), [""; 0], "{text}");
            assert_eq!(intake.upserts.len(), upserts, "{text}");
        }
    }
}

#[test]
fn a_group_that_may_have_moved_within_the_directory_is_not_deleted() {
    let before = stored(&[
        file("a.yaml", group("a", "")),
        file("b.yaml", group("b", "")),
    ]);
    let b = || file("b.yaml", group("b", ""));
    let unreadable = |path: &str| FileResult::Unreadable {
        path: path.into(),
        error: "Input/output error (os error 5)".into(),
    };
    for (now, deleted) in [
        (vec![b(), file("new.yaml", group("a", ""))], false),
        (vec![b(), file("new.yaml", group("a", "") + "  odd")], false),
        (vec![b(), unreadable("new.yaml")], false),
        (vec![unreadable("b.yaml")], true),
        (vec![b(), file("new.yaml", "confg: 1")], true),
    ] {
        let intake = twice(&before, &now);
        assert_eq!(names(&intake.deletions).contains(&"a"), deleted, "{now:?}");
    }
    for (other, deleted) in [
        ("A.YAML", false),
        ("a.json", false),
        ("a.YML", false),
        ("c.json", true),
    ] {
        let listing = Listing {
            others: vec![other.into()],
            ..listing(&[b()])
        };
        let intake = plan_listing_after_grace(&before, &listing);
        assert_eq!(names(&intake.deletions).contains(&"a"), deleted, "{other}");
    }
}

#[test]
fn the_range_of_a_kept_group_stays_reserved() {
    let range = ", range: 169.254.100.0/22";
    let before = stored(&[file("a.yaml", group("a", range))]);
    let listing = Listing {
        id: DirectoryId { inode: 9, ..here() },
        ..listing(&[file("b.yaml", group("b", range))])
    };
    let intake = plan_listing_after_grace(&before, &listing);
    assert_eq!((intake.upserts.len(), intake.problems.len()), (0, 1));
}
