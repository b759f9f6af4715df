//! Manual pages, completions and tables of keys as text. The tests look at them too.

use std::io;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use greyhound::{
    cli::Cli,
    control::config::{
        DEFAULT_CONFIG,
        keys::{Key, TABLES},
    },
};
use roff::{Inline, Roff, bold, italic, roman};

/// Every file by its name. `date` is the manual pages', as YYYY-MM-DD.
pub fn all(date: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![
        ("greyhound.8".to_owned(), command_page(date)?),
        ("greyhound.toml.5".to_owned(), keys_page(date).into_bytes()),
    ];
    for (shell, name) in [
        (Shell::Bash, "greyhound.bash"),
        (Shell::Zsh, "_greyhound"),
        (Shell::Fish, "greyhound.fish"),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "greyhound", &mut script);
        files.push((name.to_owned(), script));
    }
    Ok(files)
}

// ---- greyhound(8)

fn command_page(date: &str) -> io::Result<Vec<u8>> {
    let mut command = plain(Cli::command());
    command.build();
    let man = Man::new(command.clone());
    let mut page = heading("greyhound", "8", date).into_bytes();
    man.render_name_section(&mut page)?;
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    for (index, verb) in verbs(&command).iter().enumerate() {
        if index > 0 {
            synopsis.control("br", []);
        }
        synopsis.text(usage(verb));
    }
    page.extend(synopsis.render().into_bytes());
    page.extend(prose(BEFORE_VERBS));
    for verb in verbs(&command) {
        page.extend(verb_section(&verb)?);
    }
    page.extend(prose(BEHIND_VERBS));
    Ok(ascii(&String::from_utf8_lossy(&page)).into_bytes())
}

/// `--help` is every verb's, and is said once.
fn plain(command: Command) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    names
        .into_iter()
        .fold(command.disable_help_flag(true), |command, name| {
            command.mut_subcommand(name, plain)
        })
        .disable_help_subcommand(true)
}

/// The commands that do something: those without verbs of their own.
fn verbs(command: &Command) -> Vec<Command> {
    if !command.has_subcommands() {
        return vec![command.clone()];
    }
    command.get_subcommands().flat_map(verbs).collect()
}

fn usage(verb: &Command) -> Vec<Inline> {
    let name = verb.get_bin_name().unwrap_or_default().to_owned();
    let usage = verb.clone().render_usage().to_string();
    let words = usage.trim_start_matches("Usage: ").trim();
    let rest = words.strip_prefix(&name).unwrap_or(words).to_owned();
    vec![bold(name), roman(rest)]
}

fn verb_section(verb: &Command) -> io::Result<Vec<u8>> {
    let mut section = Roff::new();
    section.control("SS", [verb.get_bin_name().unwrap_or_default()]);
    let about = verb.get_about().map(ToString::to_string);
    section.text([roman(format!("{}.", about.unwrap_or_default()))]);
    let mut options = Vec::new();
    Man::new(verb.clone()).render_options_section(&mut options)?;
    let options = String::from_utf8_lossy(&options).replacen(".SH OPTIONS\n", "", 1);
    Ok([section.render(), options].concat().into_bytes())
}

const BEFORE_VERBS: &[(&str, &[&str])] = &[(
    "DESCRIPTION",
    &[
        "Greyhound is a tunnel router. Each tunnel of `greyhound.toml`(5) is a network device of the kernel's; routes, \
         neighbours and forwarding switches are the kernel's, whoever sets them. Plain packets are taken out of the \
         kernel's path by an XDP program, encapsulated or decapsulated by a worker thread, and sent out of the other \
         device. All other packets go through the kernel.",
        "`greyhound run` is the router, and stays in the foreground. The other verbs, but `check`, ask the running one. \
         Verbs may be shortened, as long as they remain unambiguous. Options may stand before the verb or behind it. \
         Every verb has `--help`.",
        "What the fast path carries is not seen by netfilter, tc, connection tracking and packet captures of this host. \
         `greyhound check` names what would be passed by.",
    ],
)];

const BEHIND_VERBS: &[(&str, &[&str])] = &[
    (
        "EXIT STATUS",
        &[
            "0: done. 1: refused or failed, with one line on standard error; of `check`, that the host is not fit. \
             2: a usage error.",
        ],
    ),
    (
        "SIGNALS",
        &[
            "`SIGTERM` and `SIGINT` end the router and remove its devices. `SIGHUP` reads the configuration again, as \
             `greyhound reload` does.",
        ],
    ),
    (
        "FILES",
        &[
            "`/etc/greyhound/greyhound.toml`: the configuration. `/run/greyhound/control.sock`: where the running router \
           answers. Everybody who can open it may look at counters; changes and captures are for root and the router's own user.",
        ],
    ),
    (
        "SEE ALSO",
        &["`greyhound.toml`(5), `ip-tunnel`(8), `ip-link`(8), `ip-route`(8), `ethtool`(8)"],
    ),
];

// ---- greyhound.toml(5)

fn keys_page(date: &str) -> String {
    let mut page = Roff::new();
    page.control("SH", ["NAME"]);
    page.text([roman("greyhound.toml - configuration of greyhound(8)")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text(marked(&format!(
        "`{DEFAULT_CONFIG}` is read by `greyhound run`, `check` and `reload`. It is TOML. An unknown key, a wrong type or an \
         impossible value is refused before anything is touched, with file, line, what was found and what would be \
         accepted. The words are iproute2's, with underscores."
    )));
    for (table, keys) in TABLES {
        page.control("SH", [*table]);
        for key in *keys {
            page.control("TP", []);
            page.text(marked(&key.heading()));
            page.text(marked(&sentences(key)));
        }
    }
    page.control("SH", ["EXAMPLE"]);
    page.control("nf", []);
    let settings = EXAMPLE.lines().filter(|line| !line.starts_with('#'));
    let mut lines = settings.skip_while(|line| line.is_empty()).peekable();
    while let Some(line) = lines.next() {
        match (line, lines.peek()) {
            ("", None | Some(&"")) => {}
            ("", _) => _ = page.control("sp", []),
            _ => _ = page.text([roman(line)]),
        }
    }
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]);
    page.text(marked("`greyhound`(8), `ip-tunnel`(8)"));
    ascii(&(heading("greyhound.toml", "5", date) + &page.render()))
}

const EXAMPLE: &str = include_str!("../../packaging/greyhound.toml");

fn sentences(key: &Key) -> String {
    let mut letters = key.meaning.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    let meaning: String = first.into_iter().chain(letters).collect();
    match key.default {
        "needed" => format!("{meaning}. It must be there."),
        "none" => format!("{meaning}."),
        default if default.starts_with("needed") => format!("{meaning}. It is {default}."),
        default => format!("{meaning}. Default: {default}."),
    }
}

// ---- what both have

fn heading(name: &str, section: &str, date: &str) -> String {
    let version = concat!("greyhound ", env!("CARGO_PKG_VERSION"));
    let manual = match section {
        "5" => "File Formats",
        _ => "System Administration",
    };
    let mut page = Roff::new();
    page.control(
        "TH",
        [&*name.to_uppercase(), section, date, version, manual],
    );
    page.render()
}

/// What any roff takes, with or without preconv(1).
fn ascii(page: &str) -> String {
    page.replace('…', "...")
}

fn prose(sections: &[(&str, &[&str])]) -> Vec<u8> {
    let mut page = Roff::new();
    for (title, paragraphs) in sections {
        page.control("SH", [*title]);
        for (index, paragraph) in paragraphs.iter().enumerate() {
            if index > 0 {
                page.control("PP", []);
            }
            page.text(marked(paragraph));
        }
    }
    page.render().into_bytes()
}

/// The README's light Markdown: code is bold, links are their text.
fn marked(text: &str) -> Vec<Inline> {
    let pieces = unlinked(text);
    let pieces = pieces.split('`').enumerate();
    let pieces = pieces.filter(|(_, piece)| !piece.is_empty());
    pieces
        .map(|(index, piece)| match index % 2 {
            0 => roman(piece),
            _ if piece.bytes().all(|b| b.is_ascii_uppercase()) => italic(piece),
            _ => bold(piece),
        })
        .collect()
}

fn unlinked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("](#") {
        let (start, words) = before.rsplit_once('[').unwrap_or((before, ""));
        out += start;
        out += words;
        rest = link.split_once(')').map_or("", |(_, behind)| behind);
    }
    out + rest
}

// ---- the README's tables

/// A document's tables of keys as they should be. A table follows a line `<!-- keys: [router] -->`.
pub fn with_tables(document: &str) -> String {
    let mut out = String::new();
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        out += &format!("{line}\n");
        let wanted = line.strip_prefix("<!-- keys: ");
        let wanted = wanted.and_then(|rest| rest.strip_suffix(" -->"));
        let Some((_, keys)) = TABLES.iter().find(|(table, _)| Some(*table) == wanted) else {
            continue;
        };
        while lines.next_if(|line| line.starts_with('|')).is_some() {}
        out += "| key | default | meaning |\n|---|---|---|\n";
        for key in *keys {
            out += &format!(
                "| {} | {} | {} |\n",
                key.heading(),
                key.default,
                key.meaning
            );
        }
    }
    out
}
