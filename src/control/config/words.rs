//! A tunnel in the words of `ip tunnel add`, turned into the lines that would stand in the file: one set of rules for both.

use std::fmt::Write;

/// Words that stand alone. With "no" in front they say the opposite, as `nopmtudisc` and `noignore-df`.
const FLAGS: &[&str] = &[
    "csum",
    "icsum",
    "ocsum",
    "seq",
    "iseq",
    "oseq",
    "pmtudisc",
    "ignore_df",
    "nvgre",
    "clamp_mss",
    "encap_csum",
    "encap_csum6",
    "keepalive",
];
/// Keys that take several values: the word may come again.
const LISTS: &[(&str, &str)] = &[
    ("address", "address"),
    ("route", "routes"),
    ("routes", "routes"),
];
/// Bytes that iproute2 reads as hexadecimal, with or without 0x (`rtnl_dsfield_a2n`).
const HEXADECIMAL: &[&str] = &["tos", "tclass"];

/// The `[[tunnel]]` that `name` and `words` stand for. The words are iproute2's, or the file's keys; dashes and underscores
/// are alike. What they mean to each other is judged where the file's are.
pub(super) fn to_toml(name: &str, words: &[String]) -> Result<String, String> {
    let mut lines = format!("[[tunnel]]\nname = {}\n", quoted(name));
    let mut lists: Vec<(&str, Vec<String>)> = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let key = word.replace('-', "_");
        if key == "keepalive" && words.peek().is_some_and(|next| is_number(next)) {
            let _ = writeln!(lines, "keepalive = {}", keepalive(&mut words));
            continue;
        }
        if let Some((flag, value)) = flag(&key) {
            let _ = writeln!(lines, "{flag} = {value}");
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{word} at the end: expected a value behind it"))?;
        match LISTS.iter().find(|(word, _)| *word == key) {
            Some((_, key)) => match lists.iter_mut().find(|(known, _)| known == key) {
                Some((_, values)) => values.push(quoted(value)),
                None => lists.push((key, vec![quoted(value)])),
            },
            None if is_bare(&key) => {
                // "any" is iproute2's word for an address that is not set.
                if !(matches!(&*key, "local" | "remote") && value == "any") {
                    let _ = writeln!(lines, "{} = {}", renamed(&key), written(&key, value)?);
                }
            }
            None => return Err(format!("{word:?}: expected a word of `ip tunnel add`")),
        }
    }
    for (key, values) in lists {
        let _ = writeln!(lines, "{key} = [{}]", values.join(", "));
    }
    Ok(lines)
}

/// As Cisco's routers have it: `keepalive [period [retries]]`.
fn keepalive<'w>(words: &mut std::iter::Peekable<impl Iterator<Item = &'w String>>) -> String {
    let mut fields = Vec::new();
    for field in ["interval", "retries"] {
        if let Some(number) = words.next_if(|next| is_number(next)) {
            fields.push(format!("{field} = {number}"));
        }
    }
    format!("{{{}}}", fields.join(", "))
}

/// Of digits that TOML reads alike.
fn is_number(word: &str) -> bool {
    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    digits && (word == "0" || !word.starts_with('0'))
}

fn flag(key: &str) -> Option<(&str, bool)> {
    if FLAGS.contains(&key) {
        return Some((key, true));
    }
    let negated = key.strip_prefix("no")?.trim_start_matches('_');
    FLAGS.contains(&negated).then_some((negated, false))
}

/// `type` is the word of `ip link add`, `mode` that of `ip tunnel add`.
fn renamed(key: &str) -> &str {
    match key {
        "type" => "mode",
        key => key,
    }
}

/// Whether it can stand in front of an equals sign.
fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn written(key: &str, value: &str) -> Result<String, String> {
    if HEXADECIMAL.contains(&key) && value != "inherit" {
        let digits = value.trim_start_matches("0x");
        let byte = u8::from_str_radix(digits, 16);
        return match byte {
            Ok(byte) => Ok(byte.to_string()),
            Err(_) => Err(format!(
                "{key} {value}: expected 0 to ff, in hexadecimal as `ip tunnel` reads it, or inherit"
            )),
        };
    }
    let number = value
        .strip_prefix("0x")
        .map_or_else(|| value.parse(), |digits| u32::from_str_radix(digits, 16));
    Ok(match number {
        // As iproute2: a TTL of 0 is the inner packet's.
        Ok(0) if key == "ttl" => quoted("inherit"),
        Ok(number) => number.to_string(),
        Err(_) => quoted(value),
    })
}

/// A string as TOML has it; JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(line: &str) -> Result<String, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let text = to_toml("gre1", &words)?;
        Ok(text.replacen("[[tunnel]]\nname = \"gre1\"\n", "", 1))
    }

    #[test]
    fn iproute2s_words_are_the_files_keys() {
        for (words, expected) in [
            (
                "mode gre local 192.0.2.1 remote 192.0.2.2 key 42 ttl 64",
                "mode = \"gre\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\nkey = 42\nttl = 64\n",
            ),
            (
                "type gre csum iseq nopmtudisc noignore-df ignore_df",
                "mode = \"gre\"\ncsum = true\niseq = true\npmtudisc = false\nignore_df = false\nignore_df = true\n",
            ),
            (
                "key 1.2.3.4 ttl inherit dev eth0",
                "key = \"1.2.3.4\"\nttl = \"inherit\"\ndev = \"eth0\"\n",
            ),
            ("ttl 0 tos 10", "ttl = \"inherit\"\ntos = 16\n"),
            (
                "tos 0xb8 tclass inherit",
                "tos = 184\ntclass = \"inherit\"\n",
            ),
            ("key 0x10 remote any", "key = 16\n"),
            ("keepalive ttl 9", "keepalive = true\nttl = 9\n"),
            (
                "keepalive 5 2 nokeepalive",
                "keepalive = {interval = 5, retries = 2}\nkeepalive = false\n",
            ),
            (
                "keepalive 5 csum",
                "keepalive = {interval = 5}\ncsum = true\n",
            ),
            (
                "address 10.0.0.1/30 route 10.2.0.0/24 route 10.3.0.0/24",
                "address = [\"10.0.0.1/30\"]\nroutes = [\"10.2.0.0/24\", \"10.3.0.0/24\"]\n",
            ),
            ("dev a\"b", "dev = \"a\\\"b\"\n"),
        ] {
            assert_eq!(toml(words).as_deref(), Ok(expected), "{words}");
        }
    }

    #[test]
    fn what_is_no_word_is_refused() {
        for (words, expected) in [
            (
                "mode gre local",
                "local at the end: expected a value behind it",
            ),
            (
                "tos 100",
                "tos 100: expected 0 to ff, in hexadecimal as `ip tunnel` reads it, or inherit",
            ),
            ("a=b c", "\"a=b\": expected a word of `ip tunnel add`"),
        ] {
            assert_eq!(toml(words), Err(expected.to_owned()));
        }
    }
}
