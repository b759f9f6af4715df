//! Reading values out of the TOML tree, with the place of each for messages.

use std::ops::RangeInclusive;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::ConfigError;

/// The longest piece of the file that a message quotes, in characters.
const QUOTE_LIMIT: usize = 60;

/// The file's text and its name.
pub(super) struct Source<'t> {
    pub file: &'t str,
    pub text: &'t str,
}

/// One table of the file.
pub(super) struct Section<'t> {
    source: &'t Source<'t>,
    /// How messages call it: `[router]`, `tunnel "gre1"`; empty for the file itself.
    title: String,
    table: &'t DeTable<'t>,
    at: usize,
}

/// One value, and the key that it stands under.
pub(super) struct Value<'t> {
    source: &'t Source<'t>,
    title: &'t str,
    key: &'t str,
    value: &'t Spanned<DeValue<'t>>,
}

impl<'t> Source<'t> {
    pub fn parse(&'t self) -> Result<Spanned<DeTable<'t>>, ConfigError> {
        DeTable::parse(self.text).map_err(|e| {
            let at = e.span().map_or(self.text.len(), |span| span.start);
            let why = e.message().lines().collect::<Vec<_>>().join(", ");
            let column = self
                .before(at)
                .rsplit('\n')
                .next()
                .map_or(0, |line| line.chars().count())
                + 1;
            self.error(at, format!("not valid TOML at column {column}: {why}"))
        })
    }

    fn before(&self, at: usize) -> &str {
        self.text.get(..at).unwrap_or(self.text)
    }

    fn error(&self, at: usize, message: String) -> ConfigError {
        ConfigError::Refused {
            file: self.file.to_owned(),
            line: self.before(at).matches('\n').count() + 1,
            message,
        }
    }

    /// What stands there, on one line.
    fn quote(&self, value: &Spanned<DeValue<'_>>) -> String {
        let text = self.text.get(value.span()).unwrap_or_default();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if text.chars().count() <= QUOTE_LIMIT {
            return text;
        }
        text.chars().take(QUOTE_LIMIT).chain("…".chars()).collect()
    }
}

impl<'t> Section<'t> {
    pub fn root(source: &'t Source<'t>, table: &'t DeTable<'t>) -> Self {
        Section {
            source,
            title: String::new(),
            table,
            at: 0,
        }
    }

    /// Refuses every key that is not `accepted`; those of `later` with the words that fit.
    pub fn only(&self, accepted: &[&str], later: &[&str]) -> Result<(), ConfigError> {
        let stranger = self
            .table
            .keys()
            .filter(|key| !accepted.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        let Some(stranger) = stranger else {
            return Ok(());
        };
        let key = stranger.get_ref().as_ref();
        let list = accepted.join(", ");
        let what = if later.contains(&key) {
            format!("{key} is not available in this version")
        } else if let Some(near) = nearest(key, accepted) {
            format!("unknown key {key:?} (did you mean {near}?)")
        } else {
            format!("unknown key {key:?}")
        };
        let message = titled(&self.title, &format!("{what}; accepted: {list}"));
        Err(self.source.error(stranger.span().start, message))
    }

    pub fn get<'a>(&'a self, key: &'a str) -> Option<Value<'a>> {
        let (_, value) = self.table.get_key_value(key)?;
        Some(Value {
            source: self.source,
            title: &self.title,
            key,
            value,
        })
    }

    /// A value that must be there.
    pub fn need<'a>(&'a self, key: &'a str, expected: &str) -> Result<Value<'a>, ConfigError> {
        self.get(key)
            .ok_or_else(|| self.error(&format!("{key} is missing: expected {expected}")))
    }

    /// What `read` makes of a value that may be absent.
    pub fn optional<T>(
        &self,
        key: &str,
        default: T,
        read: impl FnOnce(&Value<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        self.get(key).map_or(Ok(default), |value| read(&value))
    }

    /// A complaint about the section as a whole.
    pub fn error(&self, message: &str) -> ConfigError {
        self.source.error(self.at, titled(&self.title, message))
    }

    /// The table under `key`, which must be there.
    pub fn table(&self, key: &str) -> Result<Section<'t>, ConfigError> {
        let title = format!("[{key}]");
        let Some(value) = self.table.get(key) else {
            return Err(self.error(&format!("section {title} is missing")));
        };
        let DeValue::Table(table) = value.get_ref() else {
            let value = self.need(key, &title)?;
            return Err(value.refuse(&format!("a section {title}")));
        };
        let at = value.span().start;
        Ok(Section {
            source: self.source,
            title,
            table,
            at,
        })
    }

    /// The tables of the array `key`, none when it is absent, each named after its `name`.
    pub fn tables(&self, key: &str) -> Result<Vec<Section<'t>>, ConfigError> {
        let Some(value) = self.table.get(key) else {
            return Ok(Vec::new());
        };
        let wrong = || -> ConfigError {
            let at = value.span().start;
            let message = format!("expected [[{key}]] in double brackets, once per {key}");
            self.source.error(at, titled(&self.title, &message))
        };
        let array = value.get_ref().as_array().ok_or_else(wrong)?;
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let table = item.get_ref().as_table().ok_or_else(wrong)?;
            let name = table.get("name").and_then(|name| name.get_ref().as_str());
            let title = match name {
                Some(name) => format!("{key} {name:?}"),
                None => format!("{key} number {}", index + 1),
            };
            sections.push(Section {
                source: self.source,
                title: titled(&self.title, &title),
                table,
                at: item.span().start,
            });
        }
        Ok(sections)
    }
}

fn titled(title: &str, message: &str) -> String {
    match title {
        "" => message.to_owned(),
        _ => format!("{title}: {message}"),
    }
}

impl<'t> Value<'t> {
    /// What stands in the file is not what is `expected`.
    pub fn refuse(&self, expected: &str) -> ConfigError {
        self.complain(&format!("expected {expected}"))
    }

    /// Any other complaint about the value.
    pub fn complain(&self, message: &str) -> ConfigError {
        let found = self.source.quote(self.value);
        let message = format!("{} = {found}: {message}", self.key);
        self.source
            .error(self.value.span().start, titled(self.title, &message))
    }

    pub fn boolean(&self) -> Result<bool, ConfigError> {
        self.value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.refuse("true or false"))
    }

    /// A table of its own; none for anything else.
    pub fn table(&self) -> Option<Section<'t>> {
        let table = self.value.get_ref().as_table()?;
        Some(Section {
            source: self.source,
            title: titled(self.title, self.key),
            table,
            at: self.value.span().start,
        })
    }

    pub fn text(&self) -> Option<&'t str> {
        self.value.get_ref().as_str()
    }

    /// An integer within `range`; none for anything else.
    pub fn integer(&self, range: RangeInclusive<i64>) -> Option<i64> {
        let integer = self.value.get_ref().as_integer()?;
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
        range.contains(&number).then_some(number)
    }

    /// The items of a list, each under the list's key; none for anything else.
    pub fn items(&self) -> Option<Vec<Value<'t>>> {
        let array = self.value.get_ref().as_array()?;
        Some(array.iter().map(|value| Value { value, ..*self }).collect())
    }
}

/// The word of `known` that `word` was probably meant to be.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let limit = (word.chars().count() / 3).max(1);
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many characters must be changed, added or removed (Levenshtein); `-` and case count for nothing,
/// because they are slips of habit: iproute2 writes `ignore-df`.
fn distance(a: &str, b: &str) -> usize {
    let a = a.to_lowercase().replace('-', "_");
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
