//! Writes what the package needs besides the program: manual pages and shell completions, from the definitions that the
//! program itself uses.
//!
//! `pages DIRECTORY YYYY-MM-DD` writes them; `pages FILE.md` brings a document's tables of keys up to date.

mod pages;

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        [document] if document.ends_with(".md") => update(Path::new(document)),
        [directory, date] => write(Path::new(directory), date),
        _ => {
            eprintln!("usage: pages DIRECTORY YYYY-MM-DD | pages FILE.md");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pages: {e}");
            ExitCode::FAILURE
        }
    }
}

fn update(document: &Path) -> std::io::Result<()> {
    let text = fs::read_to_string(document)?;
    fs::write(document, pages::with_tables(&text))
}

fn write(directory: &Path, date: &str) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, content) in pages::all(date)? {
        fs::write(directory.join(name), content)?;
    }
    Ok(())
}
