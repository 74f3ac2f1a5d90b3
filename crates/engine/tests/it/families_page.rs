//! The page of model families says what the code knows. `DUNLIN_UPDATE_GOLDEN=1 cargo test -p engine families_page` writes it.

use engine::model::families;
use std::fs;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/models.md");

#[test]
fn the_page_lists_every_family() {
    let rows: String = families::all().map(|(name, models)| format!("| `{name}` | {models} |\n")).collect();
    let page = format!(
        "# Model families\n\n\
         What dunlin runs, by the name that a GGUF file gives in `general.architecture`. `dunlin inspect` says what a file is \
         and\nwhether it is supported. This page is made from the code.\n\n\
         | Family | Models |\n|---|---|\n{rows}"
    );
    if std::env::var_os("DUNLIN_UPDATE_GOLDEN").is_some() {
        fs::write(PAGE, &page).expect("the checkout can be written");
    }
    let found = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(found == page, "docs/reference/models.md is old; DUNLIN_UPDATE_GOLDEN=1 writes it anew");
}
