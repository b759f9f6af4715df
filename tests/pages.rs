//! The manual pages, the completions and the README's tables of keys: they come from the program's own definitions, and
//! somebody else's tools take them.

#[path = "../examples/pages/pages.rs"]
mod pages;

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use greyhound::control::config::{Config, keys::TABLES};

/// What a tool says to a text on its standard input, its complaints included.
fn said(tool: &[&str], input: &[u8]) -> String {
    let mut child = Command::new(tool[0])
        .args(&tool[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{} (scripts/test.sh installs it): {e}", tool[0]));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{tool:?}: {said}");
    said
}

fn file(name: &str) -> Vec<u8> {
    let all = pages::all("2026-01-31").unwrap();
    let found = all.into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no {name}")).1
}

fn shown(page: &str) -> String {
    said(
        &["groff", "-man", "-Tascii", "-P-cbou", "-rLL=500n"],
        &file(page),
    )
}

fn path(relative: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(relative);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_manual_pages_are_clean() {
    for page in ["greyhound.8", "greyhound.toml.5"] {
        for tool in [
            &["mandoc", "-T", "lint", "-W", "warning"][..],
            &["groff", "-man", "-ww", "-z", "-Tutf8"],
            &["groff", "-man", "-ww", "-z", "-Tascii"],
        ] {
            assert_eq!(said(tool, &file(page)), "", "{page}: {tool:?}");
        }
    }
}

#[test]
fn the_manual_has_every_verb_and_every_option() {
    use clap::CommandFactory;
    fn each(command: &clap::Command, name: &str, page: &str) {
        let verb = format!("\n   {name}\n");
        let section = page.split_once(&*verb).map(|(_, rest)| rest);
        for under in command.get_subcommands() {
            each(under, &format!("{name} {}", under.get_name()), page);
        }
        if command.has_subcommands() {
            return;
        }
        let section = section.unwrap_or_else(|| panic!("no section {name}"));
        let section = section.split("\n   greyhound").next().unwrap();
        for option in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(
                section.contains(&format!("--{option}")),
                "{name} --{option}"
            );
        }
    }
    each(
        &greyhound::cli::Cli::command(),
        "greyhound",
        &shown("greyhound.8"),
    );
}

/// The reader's list is the page's; what is proved is that no row is lost or empty on its way.
#[test]
fn the_manual_has_every_key() {
    let page = shown("greyhound.toml.5");
    for (table, keys) in TABLES {
        let title = format!("\n{}\n", table.replace('…', "..."));
        let (_, section) = page
            .split_once(&*title)
            .unwrap_or_else(|| panic!("no {table}"));
        // A section's lines are indented, the next one's title is not.
        let section: Vec<&str> = section
            .lines()
            .take_while(|line| line.is_empty() || line.starts_with(' '))
            .collect();
        for key in *keys {
            let heading = format!("       {}", key.heading().replace('`', ""));
            assert!(
                section.iter().any(|line| line.starts_with(&heading)),
                "{heading} in {table}"
            );
            assert!(
                !key.meaning.is_empty() && !key.default.is_empty(),
                "{heading}"
            );
        }
    }
}

#[test]
fn the_readme_has_the_tables_of_keys() {
    let readme = path("README.md");
    let wanted = pages::with_tables(&readme);
    for (table, _) in TABLES {
        assert!(
            readme.contains(&format!("<!-- keys: {table} -->\n|")),
            "{table}"
        );
    }
    assert!(
        readme == wanted,
        "the README's tables of keys are old; run: cargo run --example pages -- README.md"
    );
}

#[test]
fn a_document_keeps_all_but_its_tables() {
    let old =
        "a\n<!-- keys: [[tunnel.peer]] -->\n| old |\n| older |\nb\n| c |\n<!-- keys: none -->\n";
    let new = pages::with_tables(old);
    assert!(new.starts_with("a\n<!-- keys: [[tunnel.peer]] -->\n| key | default | meaning |\n|---|---|---|\n| `address` |"));
    assert!(new.ends_with(" |\nb\n| c |\n<!-- keys: none -->\n"));
    assert!(!new.contains("old"));
}

#[test]
fn the_shells_take_the_completions() {
    for (name, shell) in [
        ("greyhound.bash", &["bash", "-n"][..]),
        ("_greyhound", &["zsh", "-n"]),
        ("greyhound.fish", &["fish", "--no-execute"]),
    ] {
        assert_eq!(said(shell, &file(name)), "", "{name}");
    }
    let ask = b"\nCOMP_WORDS=(greyhound tunnel sh) COMP_CWORD=2\n_greyhound greyhound sh tunnel\necho \"${COMPREPLY[@]}\"\n";
    let script = [file("greyhound.bash"), ask.to_vec()].concat();
    assert_eq!(said(&["bash"], &script), "show\n");
}

/// Also with every line that is commented out: an example that nobody could use would be none.
#[test]
fn the_example_configuration_is_accepted() {
    let example = path("packaging/greyhound.toml");
    Config::parse(&example, "greyhound.toml").unwrap();
    let whole: Vec<&str> = example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            // An explanation has a space behind the sign, a setting has none.
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        })
        .collect();
    let whole = whole
        .join("\n")
        .replace("[\"eth1\"]", "[\"eth1\", \"eth2\"]");
    let config = Config::parse(&whole, "greyhound.toml").unwrap();
    assert_eq!(config.tunnels.len(), 3);
}
