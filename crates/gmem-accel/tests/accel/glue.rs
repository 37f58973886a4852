//! The promise of the project: a driver's glue is small.

#[test]
fn the_glue_has_at_most_seventy_lines_of_code() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/glue.rs")).unwrap();
    let code = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count();
    assert!((30..=70).contains(&code), "{code} lines of code");
}
