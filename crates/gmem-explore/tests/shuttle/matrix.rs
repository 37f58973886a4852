//! The matrix in ARCHITECTURE.md has a test for each cell, and no test is without a cell.

use super::pairs::CELLS;
use super::verb::ALL;
use std::collections::BTreeSet;

/// The name of the test of a cell.
fn name(row: &str, column: &str) -> String {
    format!("{row}_{column}").replace(' ', "_")
}

/// The columns of the matrix, and the names of the tests of its cells.
fn matrix(text: &str) -> (Vec<String>, BTreeSet<String>) {
    let section = text.split("## What orders two operations").nth(1).expect("the section is there");
    let section = section.split("\n## ").next().expect("a section has a text");
    let rows = section.lines().skip_while(|line| !line.starts_with("| |")).take_while(|line| line.starts_with('|'));
    let mut rows =
        rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('*').to_string()).collect::<Vec<_>>());
    let columns = rows.next().expect("the matrix has a header").split_off(1);
    let mut names = BTreeSet::new();
    for row in rows.skip(1) {
        let cells = row[1..].iter().zip(&columns).filter(|(cell, _)| !cell.is_empty());
        names.extend(cells.map(|(_, column)| name(&row[0], column)));
    }
    (columns, names)
}

#[test]
fn every_cell_of_the_matrix_has_its_test_and_every_test_its_cell() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).expect("the document is in the repository");
    let (columns, cells) = matrix(&text);
    assert_eq!(columns, ALL.map(|verb| verb.name()), "the columns are the verbs");
    let tests: BTreeSet<String> = CELLS.iter().map(|(test, ..)| test.to_string()).collect();
    assert_eq!(cells, tests, "cells of the document, tests in pairs.rs");
    for (test, row, column) in CELLS {
        assert_eq!(*test, name(row.name(), column.name()), "a test has the name of what it does");
    }
    // Each two verbs, and each with itself.
    assert_eq!(cells.len(), ALL.len() * (ALL.len() + 1) / 2);
}
