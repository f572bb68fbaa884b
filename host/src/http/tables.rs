//! Keeps the tables of the docs true that are made from the code.

/// See that each table is in a file of `docs/` between its marks as it is here; write it there
/// where `PICLOUD_WRITE_DOCS` is set.
pub fn check(file: &str, tables: &[(&str, String)]) {
    let path = format!("{}/../docs/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let true_text = tables.iter().fold(text.clone(), |text, (mark, table)| {
        with_table(&text, mark, table)
    });
    if std::env::var_os("PICLOUD_WRITE_DOCS").is_some() {
        std::fs::write(path, &true_text).unwrap();
        return;
    }
    assert!(
        text == true_text,
        "docs/{file} is not true any more; run this test with PICLOUD_WRITE_DOCS=1"
    );
}

/// Put a table between its marks.
fn with_table(text: &str, mark: &str, table: &str) -> String {
    let (before, rest) = text.split_once(&format!("<!-- {mark}: ")).unwrap();
    let (head, rest) = rest.split_once("-->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    format!("{before}<!-- {mark}: {head}-->\n{table}<!-- end -->{after}")
}
