//! The keys that a configuration may have: what the reader accepts, and what the manual page and the README say of them.
//!
//! There is no second list. `cargo run --example pages -- README.md` brings the README's tables up to date.

/// One setting, in the light Markdown of the README.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Two are names for the same thing. Three are a key, and one for each direction.
    pub names: &'static [&'static str],
    pub default: &'static str,
    pub meaning: &'static str,
}

/// A table of the file: how it is written there, and its keys.
pub const TABLES: &[(&str, &[Key])] = &[
    ("[router]", ROUTER),
    ("[[tunnel]]", TUNNEL),
    ("[[tunnel.peer]]", PEER),
    ("keepalive = {…}", KEEPALIVE),
];

impl Key {
    /// How a table's row begins.
    pub fn heading(&self) -> String {
        match *self.names {
            [both, one, other] => format!("`{both}`, or `{one}` and `{other}`"),
            _ => format!("`{}`", self.names.join("` or `")),
        }
    }
}

/// Every name that stands in a table.
pub(super) fn names(keys: &[Key]) -> Vec<&'static str> {
    keys.iter().flat_map(|key| key.names).copied().collect()
}

/// Under `[router]`.
pub const ROUTER: &[Key] = &[
    Key {
        names: &["underlay"],
        default: "needed",
        meaning: r#"devices that carry tunnel packets, e.g. `["eth0"]`"#,
    },
    Key {
        names: &["overlay"],
        default: r#"needed, unless `xdp = "off"`"#,
        meaning: "devices that face the inner networks; a device may be in both lists",
    },
    Key {
        names: &["workers"],
        default: r#"`"auto"`"#,
        meaning: r#"CPUs of the workers, e.g. `[2, 3]`; queue n runs on the n-th. `"auto"`: those of the devices' memory node first, from the last one down"#,
    },
    Key {
        names: &["xdp"],
        default: r#"`"auto"`"#,
        meaning: r#"`"auto"` tries zero-copy, then copy, then generic, and logs what it got and why; `"zero-copy"`, `"copy"`, `"generic"` take that one only; `"off"`: slow path alone"#,
    },
    Key {
        names: &["spread"],
        default: r#"`"auto"`"#,
        meaning: r#"whether a worker passes [tunnel packets on by the flow inside](#one-queue-many-workers) to the other workers: `true`, `false`, or `"auto"`: while one queue receives nearly all of them"#,
    },
    Key {
        names: &["busy_poll"],
        default: "`false`",
        meaning: "workers [poll their devices](docs/performance.md#busy-polling) and never sleep: the first packet waits for no interrupt, and each worker takes a whole CPU",
    },
    Key {
        names: &["control"],
        default: r#"`"/run/greyhound/control.sock"`"#,
        meaning: "the control socket, mode 0660; `--socket` of the other verbs",
    },
    Key {
        names: &["persist"],
        default: "`true`",
        meaning: "tunnel devices survive a crash",
    },
    Key {
        names: &["accelerate"],
        default: "`false`",
        meaning: r#"`true`, or names such as `["gre1"]`: [the kernel's own tunnel devices](#tunnels-of-the-kernels) get the fast path"#,
    },
    Key {
        names: &["metrics"],
        default: "none",
        meaning: r#"where Prometheus is answered, e.g. `"127.0.0.1:9747"`: `/metrics`, `/healthz`, `/readyz`. Whoever reaches it may read; see [monitoring](#monitoring)"#,
    },
];

/// In a `[[tunnel]]`.
pub const TUNNEL: &[Key] = &[
    Key {
        names: &["name"],
        default: "needed",
        meaning: "the device's name, 1 to 15 bytes",
    },
    Key {
        names: &["mode"],
        default: "needed",
        meaning: r#"`"gre"`, `"ip6gre"`, `"gretap"`, `"ip6gretap"`, `"ipip"`, `"sit"`, `"ip6ip6"` or `"ipip6"`"#,
    },
    Key {
        names: &["local"],
        default: "needed",
        meaning: "our outer address, unicast, of the family that the mode has outside. The fast path takes a tunnel's packets only while it is on this host",
    },
    Key {
        names: &["remote"],
        default: "none",
        meaning: "the other end's; or a multicast group, joined on `dev`; or absent: [many peers](#one-tunnel-many-peers)",
    },
    Key {
        names: &["peer"],
        default: "none",
        meaning: "the ends of a tunnel without `remote`, a `[[tunnel.peer]]` each",
    },
    Key {
        names: &["key", "ikey", "okey"],
        default: "none",
        meaning: "`gre` and `ip6gre`, as the next two: 0 to 4294967295, or a dotted quad; no key is not key 0. With a group as `remote` over IPv4 the default is the group",
    },
    Key {
        names: &["csum", "icsum", "ocsum"],
        default: "`false`",
        meaning: "GRE checksum",
    },
    Key {
        names: &["seq", "iseq", "oseq"],
        default: "`false`",
        meaning: "sequence numbers",
    },
    Key {
        names: &["ttl", "hoplimit"],
        default: r#"`"inherit"`; over IPv6 64"#,
        meaning: "outer TTL, 1 to 255, or the inner one. `hoplimit` over IPv6 only",
    },
    Key {
        names: &["tos", "tclass"],
        default: "`0`",
        meaning: r#"outer TOS, 0 to 255, or `"inherit"`; the ECN bits are the inner packet's in any case. `tclass` over IPv6 only"#,
    },
    Key {
        names: &["dscp"],
        default: r#"`"none"`"#,
        meaning: r#"over IPv6: `"inherit"` gives received packets the outer DSCP (RFC 2983's uniform model); otherwise they keep theirs"#,
    },
    Key {
        names: &["flowlabel"],
        default: r#"`"hash"`"#,
        meaning: r#"over IPv6: from the inner flow's hash, `"inherit"`, or a number up to 0xfffff"#,
    },
    Key {
        names: &["encaplimit"],
        default: "4",
        meaning: r#"over IPv6: how often outer packets may be encapsulated again, 0 to 255, or `"none"`, which saves 8 bytes. A packet that brings a limit of its own gets one less than that"#,
    },
    Key {
        names: &["encap"],
        default: r#"`"none"`"#,
        meaning: r#"`gre` and `ip6gre`: `"gre-in-udp"` puts GRE into UDP to port 4754 (RFC 8086), which takes 8 bytes. The far end is another Greyhound, or a Linux tunnel with `encap fou encap-sport auto encap-dport 4754` and `ip fou add port 4754 ipproto 47`"#,
    },
    Key {
        names: &["encap_sport"],
        default: r#"`"auto"`"#,
        meaning: "the UDP source port: 49152 to 65535 by the inner flow's hash, or one fixed port",
    },
    Key {
        names: &["encap_csum", "encap_csum6"],
        default: "over IPv4 `false`, over IPv6 `true`",
        meaning: "UDP checksums are sent. A received one must be right; over IPv6 there must be one unless this is `false`. Linux sends none over IPv6 unless told `encap-udp6-csum` (as `ip` takes it; its help text calls it `encap-csum6`). `encap_csum6` over IPv6 only",
    },
    Key {
        names: &["pmtudisc"],
        default: "`true`",
        meaning: "over IPv4: outer DF always set; `false`: as the inner IPv4 packet has it",
    },
    Key {
        names: &["ignore_df"],
        default: "`false`",
        meaning: "with `pmtudisc = false`: never set the outer DF",
    },
    Key {
        names: &["mtu"],
        default: r#"`"auto"`"#,
        meaning: r#"the device's MTU; `"auto"`: the underlay's less the outer headers, and no less than 1280 where IPv6 is carried; `tunnel show` and `check` show the sum. More than the underlay carries is refused, unless outer packets may be cut"#,
    },
    Key {
        names: &["clamp_mss"],
        default: "`false`",
        meaning: "lower the MSS option of TCP SYNs that pass, in frames too, both families, both directions, to what the tunnel carries: its MTU less 40 or 60 bytes",
    },
    Key {
        names: &["keepalive"],
        default: "`false`",
        meaning: "`gre` and `ip6gre`, with a unicast `remote` and without `encap`: `true`, or a table such as `{interval = 10, retries = 3}`. See [keepalives](#keepalives)",
    },
    Key {
        names: &["bridge"],
        default: "none",
        meaning: "`gretap` and `ip6gretap`: the overlay device at the other end of [the wire](#ethernet-over-gre), this tunnel's alone",
    },
    Key {
        names: &["nvgre"],
        default: "`false`",
        meaning: "`gretap` and `ip6gretap`: `key` is a virtual subnet (RFC 7637), 0x1000 to 0xfffffe; no checksum, no sequence numbers",
    },
    Key {
        names: &["dev"],
        default: "none",
        meaning: "the underlay device that the tunnel is bound to. With a multicast remote: the only underlay device, if there is one only",
    },
    Key {
        names: &["address"],
        default: "none",
        meaning: r#"addresses for the device, e.g. `["172.16.0.1/30"]`"#,
    },
    Key {
        names: &["routes"],
        default: "none",
        meaning: r#"routes through the device, e.g. `["10.2.0.0/24"]`; the remote's own address must not be among them"#,
    },
];

/// In a `[[tunnel.peer]]`.
pub const PEER: &[Key] = &[
    Key {
        names: &["address"],
        default: "needed",
        meaning: r#"inside: an address, or a prefix such as `"10.0.3.0/24"`"#,
    },
    Key {
        names: &["remote"],
        default: "needed",
        meaning: "outside: where packets go whose next hop inside is `address`",
    },
];

/// In a tunnel's `keepalive`.
pub const KEEPALIVE: &[Key] = &[
    Key {
        names: &["interval"],
        default: "10",
        meaning: "seconds from one keepalive to the next, 1 to 32767",
    },
    Key {
        names: &["retries"],
        default: "3",
        meaning: "so many in a row without an answer, and the tunnel is down; 1 to 255",
    },
];
