//! Positions and limits of the YAML reader.
//! Out of scope: agreement with `serde_yaml::Value`, which is tested in the reader's file.

use super::*;

fn position(line: usize, column: usize) -> Position {
    Position { line, column }
}

fn member<'a>(node: &'a Node, key: &str) -> &'a Member {
    let Value::Map(members) = &node.value else {
        panic!("{node:?} is not a mapping");
    };
    members.iter().find(|m| m.key == key).expect("the key")
}

fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        _ => panic!("{node:?} is not a list"),
    }
}

#[test]
fn values_of_every_type_have_positions() {
    let text = "a: 1\nb:\n  - x\n  - {c: true, d: }\n  - [[], 'q']\ne: |\n  z\nf: {}\n";
    let root = &read(text).unwrap()[0];
    assert_eq!(root.at, position(1, 1));
    assert_eq!(member(root, "a").value.at, position(1, 4));
    let b = &member(root, "b").value;
    assert_eq!(b.at, position(2, 1));
    let b = items(b);
    assert_eq!(b[0].at, position(3, 5));
    assert_eq!(b[1].at, position(4, 6));
    assert_eq!(member(&b[1], "c").value.value, Value::Bool(true));
    assert_eq!(member(&b[1], "c").value.at, position(4, 9));
    assert_eq!(member(&b[1], "d").value.value, Value::Null);
    assert_eq!(items(&b[2])[1].at, position(5, 10));
    assert_eq!(member(root, "e").value.value, Value::Text("z\n".into()));
    assert_eq!(member(root, "f").value.at, position(8, 1));
}

#[test]
fn an_alias_has_the_position_of_its_anchor_and_columns_are_characters() {
    let root = &read("é: &x 5\nb: *x\nc: [*x, 6]\n").unwrap()[0];
    assert_eq!(member(root, "é").value.at, position(1, 4));
    assert_eq!(member(root, "b").value.at, position(1, 4));
    let c = items(&member(root, "c").value);
    assert_eq!((&c[0].value, &c[1].value), (&Value::Int(5), &Value::Int(6)));
    assert_eq!(c[1].at, position(3, 9));
}

#[test]
fn duplicate_keys_and_documents_are_kept() {
    let all = read("a: 1\na: 2\n---\n---\nb: 3\n").unwrap();
    assert_eq!(all.len(), 3);
    assert!(matches!(&all[0].value, Value::Map(members) if members.len() == 2));
    assert_eq!(all[1].value, Value::Null);
    assert_eq!(member(&all[2], "b").key_position, position(5, 1));
    assert_eq!(read("").unwrap()[0].value, Value::Null);
    assert_eq!(read("# only a comment\n").unwrap()[0].value, Value::Null);
}

#[test]
fn texts_above_the_limits_are_refused_quickly_with_a_clear_message() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (this, last) in ('b'..='i').zip('a'..) {
        bomb += &format!(
            "{this}: &{this} [*{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}]\n"
        );
    }
    let cases = [
        ("x".repeat(MAX_BYTES + 1), "bytes"),
        ("[".repeat(MAX_BYTES), "brackets"),
        ("- ".repeat(MAX_BYTES / 2), "deep"),
        ("? ".repeat(MAX_BYTES / 2), "deep"),
        (format!("{}{}", "[".repeat(40), "]".repeat(40)), "deep"),
        (bomb, "aliases"),
        (
            format!(
                "a: &a [{}]\nb: [{}]\n",
                "x, ".repeat(2000),
                "*a, ".repeat(2000)
            ),
            "values",
        ),
        ("- \n".repeat(MAX_VALUES + 1), "values"),
        ("a: &a [*a]\n".to_owned(), "deep"),
        ("a: !secret b\n".to_owned(), "tag !secret"),
    ];
    for (text, expected) in cases {
        let fault = read(&text).unwrap_err();
        assert!(fault.message.contains(expected), "{}", fault.message);
        assert!(!fault.message.contains("refused:"), "{}", fault.message);
    }
}

#[test]
fn a_syntax_error_contains_its_position_once() {
    let fault = read("a: [1, 2\nb: 3\n").unwrap_err();
    assert_eq!(fault.at, position(2, 2));
    assert!(
        !fault.message.contains("line 2 column 2"),
        "{}",
        fault.message
    );
}
