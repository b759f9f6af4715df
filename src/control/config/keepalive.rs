//! A tunnel's `keepalive`: what Cisco's routers call `keepalive [period [retries]]`, with their defaults and bounds.

use std::ops::RangeInclusive;

use super::{
    ConfigError, Keepalive, keys,
    reader::{Section, Value},
};

const EXPECTED: &str = "true, false or a table such as {interval = 10, retries = 3}";
const INTERVAL: RangeInclusive<i64> = 1..=32767;
const RETRIES: RangeInclusive<i64> = 1..=255;

const DEFAULT: Keepalive = Keepalive {
    interval: 10,
    retries: 3,
};

pub(super) fn parse(value: &Value<'_>) -> Result<Option<Keepalive>, ConfigError> {
    let Some(table) = value.table() else {
        let is_on = value.boolean().map_err(|_| value.refuse(EXPECTED))?;
        return Ok(is_on.then_some(DEFAULT));
    };
    table.only(&keys::names(keys::KEEPALIVE), &[])?;
    Ok(Some(Keepalive {
        interval: number(&table, "interval", INTERVAL, DEFAULT.interval)?,
        retries: number(&table, "retries", RETRIES, DEFAULT.retries)?,
    }))
}

fn number<N: TryFrom<i64>>(
    table: &Section<'_>,
    key: &str,
    bounds: RangeInclusive<i64>,
    default: N,
) -> Result<N, ConfigError> {
    let (least, most) = (*bounds.start(), *bounds.end());
    table.optional(key, default, |value| {
        let found = value.integer(bounds).and_then(|n| N::try_from(n).ok());
        found.ok_or_else(|| value.refuse(&format!("{least} to {most}")))
    })
}
