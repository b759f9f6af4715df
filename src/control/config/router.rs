//! The `[router]` section.

use std::{net::SocketAddr, path::PathBuf};

use super::{
    Accelerate, ConfigError, DEFAULT_CONTROL, RouterConfig, Spread, Workers, XdpMode, keys,
    reader::{Section, Value},
};

const LATER: &[&str] = &[];

/// The longest path that `struct sockaddr_un` holds, in bytes (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;
/// The largest CPU number that the kernel can be built for (NR_CPUS on x86-64), less one.
const CPU_LIMIT: i64 = 8191;

const DEVICES: &str = r#"a list of device names such as ["eth0"]"#;

pub(super) fn parse(section: &Section<'_>) -> Result<RouterConfig, ConfigError> {
    section.only(&keys::names(keys::ROUTER), LATER)?;
    let xdp = section.optional("xdp", XdpMode::Auto, xdp_mode)?;
    let overlay = section.optional("overlay", Vec::new(), devices)?;
    if overlay.is_empty() && xdp != XdpMode::Off {
        let message = format!("overlay names no device: expected {DEVICES}, or xdp = \"off\"");
        return Err(section.error(&message));
    }
    let underlay = devices(&section.need("underlay", DEVICES)?)?;
    if underlay.is_empty() {
        return Err(section.error(&format!("underlay names no device: expected {DEVICES}")));
    }
    let accelerate = section.optional("accelerate", Accelerate::None, accelerate)?;
    if let (Some(value), true) = (section.get("accelerate"), accelerate != Accelerate::None) {
        if xdp == XdpMode::Off {
            let message = r#"not with xdp = "off", which leaves no fast path: expected false, or another xdp"#;
            return Err(value.complain(message));
        }
        let names = value.items().unwrap_or_default();
        let is_device = |name: &str| underlay.iter().chain(&overlay).any(|device| device == name);
        if let Some(name) = names.iter().find(|name| name.text().is_some_and(is_device)) {
            return Err(name.complain(
                "an underlay or overlay device: expected a tunnel device of the kernel's",
            ));
        }
    }
    Ok(RouterConfig {
        accelerate,
        underlay,
        overlay,
        workers: section.optional("workers", Workers::Auto, workers)?,
        xdp,
        control: section.optional("control", DEFAULT_CONTROL.into(), control)?,
        persist: section.optional("persist", true, |v| v.boolean())?,
        metrics: section.optional("metrics", None, |v| metrics(v).map(Some))?,
        spread: section.optional("spread", Spread::Auto, spread)?,
        busy_poll: section.optional("busy_poll", false, |v| v.boolean())?,
    })
}

/// Whether the kernel takes this as a device's name: dev_valid_name(), and no `%`, which it would expand.
pub(super) fn is_device_name(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace();
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(forbidden)
        && !name.chars().any(char::is_control)
}

/// What to say to a name that the kernel would refuse.
pub(super) const DEVICE_NAME: &str = "a device name: 1 to 15 bytes without space, '/', ':' or '%'";

fn devices(value: &Value<'_>) -> Result<Vec<String>, ConfigError> {
    let mut names: Vec<String> = Vec::new();
    for item in value.items().ok_or_else(|| value.refuse(DEVICES))? {
        let name = item.text().filter(|name| is_device_name(name));
        let name = name.ok_or_else(|| item.refuse(DEVICE_NAME))?;
        if names.iter().any(|other| other == name) {
            return Err(item.complain("named twice: expected each device once"));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn accelerate(value: &Value<'_>) -> Result<Accelerate, ConfigError> {
    match value.boolean() {
        Ok(true) => return Ok(Accelerate::All),
        Ok(false) => return Ok(Accelerate::None),
        Err(_) if value.items().is_none_or(|items| items.is_empty()) => {
            return Err(value.refuse(
                r#"true, false or a list of the kernel's tunnel devices such as ["gre1"]"#,
            ));
        }
        Err(_) => {}
    }
    Ok(Accelerate::Named(devices(value)?))
}

fn xdp_mode(value: &Value<'_>) -> Result<XdpMode, ConfigError> {
    let modes = [
        XdpMode::Auto,
        XdpMode::ZeroCopy,
        XdpMode::Copy,
        XdpMode::Generic,
        XdpMode::Off,
    ];
    modes
        .into_iter()
        .find(|mode| value.text() == Some(mode.as_str()))
        .ok_or_else(|| value.refuse("auto, zero-copy, copy, generic or off"))
}

fn workers(value: &Value<'_>) -> Result<Workers, ConfigError> {
    let expected = r#""auto" or a list of CPUs such as [2, 3]"#;
    if value.text() == Some("auto") {
        return Ok(Workers::Auto);
    }
    let items = value.items().filter(|items| !items.is_empty());
    let mut cpus = Vec::new();
    for item in items.ok_or_else(|| value.refuse(expected))? {
        let cpu = item.integer(0..=CPU_LIMIT);
        let cpu = cpu.ok_or_else(|| item.refuse(&format!("a CPU, 0..{CPU_LIMIT}")))? as usize;
        if cpus.contains(&cpu) {
            return Err(item.complain("named twice: expected each CPU once"));
        }
        cpus.push(cpu);
    }
    Ok(Workers::Cpus(cpus))
}

fn spread(value: &Value<'_>) -> Result<Spread, ConfigError> {
    match (value.text(), value.boolean()) {
        (Some("auto"), _) => Ok(Spread::Auto),
        (_, Ok(true)) => Ok(Spread::On),
        (_, Ok(false)) => Ok(Spread::Off),
        _ => Err(value.refuse(r#""auto", true or false"#)),
    }
}

fn control(value: &Value<'_>) -> Result<PathBuf, ConfigError> {
    let fits = |path: &&str| {
        path.starts_with('/') && !path.ends_with('/') && path.len() <= SOCKET_PATH_LIMIT
    };
    let path = value.text().filter(fits).ok_or_else(|| {
        value.refuse(&format!(
            "an absolute path of at most {SOCKET_PATH_LIMIT} bytes"
        ))
    })?;
    Ok(path.into())
}

fn metrics(value: &Value<'_>) -> Result<SocketAddr, ConfigError> {
    let address = value.text().and_then(|text| text.parse().ok());
    let address = address.filter(|address: &SocketAddr| address.port() != 0);
    address
        .ok_or_else(|| value.refuse("an address and a port such as 127.0.0.1:9747 or [::1]:9747"))
}
