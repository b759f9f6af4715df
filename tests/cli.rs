//! The command as a user meets it: words, exit status, output, and the control socket behind it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread::JoinHandle,
};

use greyhound::control::{
    report::{
        ByteOrInherit, ErrorsReport, HeaderReport, NextHopReport, NumberOrWord, PathMtuReport,
        PathShare, PeerReport, PortReport, Reasons, Statistics, Status, Traffic, TunnelReport,
        UnreachableReport, WorkerReport,
    },
    socket::{ControlSocket, SocketError, serve},
};
use tokio::sync::oneshot;

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let directory =
            std::env::temp_dir().join(format!("greyhound-{test}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Scratch(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A router that does nothing but answer.
struct FakeRouter {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeRouter {
    fn start(path: &Path, statistics: Statistics) -> FakeRouter {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let path = path.to_owned();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let socket = ControlSocket::bind(&path).unwrap();
                ready.send(()).unwrap();
                tokio::select! {
                    _ = serve(&socket, async |request| statistics.clone().answer(&request), |_, _| ()) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        FakeRouter {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for FakeRouter {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(JoinHandle::join);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

fn greyhound(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_greyhound"));
    command.args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn reasons(reasons: &[(&str, u64)]) -> Reasons {
    reasons
        .iter()
        .map(|(reason, count)| ((*reason).to_owned(), *count))
        .collect()
}

fn headers(headers: &[(&str, usize)]) -> Vec<HeaderReport> {
    let report = |(header, bytes): &(&str, usize)| HeaderReport {
        header: (*header).to_owned(),
        bytes: *bytes,
    };
    headers.iter().map(report).collect()
}

fn sample() -> Statistics {
    Statistics {
        tunnels: vec![
            TunnelReport {
                name: "gre1".into(),
                mode: "gre".into(),
                local: "192.0.2.1".into(),
                remote: "192.0.2.2".into(),
                state: "up".into(),
                mtu: 1464,
                underlay_mtu: 1500,
                overhead: headers(&[("IPv4", 20), ("GRE", 16)]),
                ikey: Some(42),
                okey: Some(42),
                icsum: true,
                ocsum: true,
                iseq: true,
                oseq: true,
                tos: ByteOrInherit::Fixed(0),
                pmtudisc: true,
                next_hop: Some(NextHopReport {
                    device: "eth0".into(),
                    via: "192.0.2.2".into(),
                    lladdr: Some("02:00:00:00:00:02".into()),
                }),
                rx: Traffic {
                    packets: 1000,
                    bytes: 64000,
                },
                tx: Traffic {
                    packets: 7,
                    bytes: 448,
                },
                fast: PathShare {
                    rx_packets: 999,
                    tx_packets: 0,
                    ..PathShare::default()
                },
                slow: PathShare {
                    rx_packets: 1,
                    tx_packets: 7,
                    ..PathShare::default()
                },
                drops: reasons(&[("sequence_old", 2), ("gre_checksum", 30), ("recursion", 0)]),
                errors: ErrorsReport {
                    too_big: 3,
                    unreachable: 7,
                    ..ErrorsReport::default()
                },
                path_mtu: vec![PathMtuReport {
                    remote: "192.0.2.2".into(),
                    mtu: 1400,
                    expires_seconds: 587,
                }],
                unreachable: Some(UnreachableReport {
                    remote: "192.0.2.2".into(),
                    from: "192.0.2.254".into(),
                    code: 1,
                    reason: "host".into(),
                    seconds_ago: 3,
                }),
                ..TunnelReport::default()
            },
            TunnelReport {
                name: "gre2".into(),
                mode: "gre".into(),
                local: "192.0.2.1".into(),
                remote: "192.0.2.3".into(),
                state: "no-route".into(),
                mtu: 1472,
                ikey: Some(1),
                ocsum: true,
                ttl: ByteOrInherit::Fixed(64),
                tos: ByteOrInherit::Fixed(0xb8),
                ignore_df: true,
                dev: Some("eth0".into()),
                ..TunnelReport::default()
            },
            TunnelReport {
                name: "six".into(),
                mode: "ip6gre".into(),
                local: "2001:db8::1".into(),
                remote: "2001:db8::2".into(),
                state: "up".into(),
                mtu: 1448,
                underlay_mtu: 1500,
                underlay_mtu_from: Some("route".into()),
                next_hop: Some(NextHopReport {
                    device: "eth0".into(),
                    via: "fe80::1".into(),
                    lladdr: None,
                }),
                overhead: headers(&[("IPv6", 40), ("limit", 8), ("GRE", 4)]),
                ttl: ByteOrInherit::Fixed(64),
                tos: ByteOrInherit::Inherit,
                flowlabel: Some(NumberOrWord::Number(0x12345)),
                encaplimit: Some(NumberOrWord::Number(4)),
                ..TunnelReport::default()
            },
        ],
        workers: vec![WorkerReport {
            cpu: 1,
            rx_packets: 1000,
            punted: 3,
            ports: vec![PortReport {
                device: "eth0".into(),
                mode: "copy".into(),
                why_not_zero_copy: Some("Operation not supported".into()),
                rx_dropped: 5,
                ..PortReport::default()
            }],
            ..WorkerReport::default()
        }],
        drops: reasons(&[("gre_checksum", 30)]),
        router: Status {
            version: "0.1.0".into(),
            pid: 7,
            ..Status::default()
        },
        ..Statistics::default()
    }
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    for wrong in [
        &["fly"][..],
        &["run", "--json"],
        &["stats", "a", "b"],
        &["tunnel"],
        &[],
    ] {
        let output = greyhound(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{wrong:?}"
        );
    }
    for right in [&["--version"][..], &["--help"], &["stats", "--help"]] {
        assert_eq!(greyhound(right).status.code(), Some(0), "{right:?}");
    }
}

#[test]
fn without_a_router_there_is_one_clear_line() {
    let scratch = Scratch::new("none");
    let path = scratch.path("control.sock");
    let output = greyhound(&["tunnel", "show", "--socket", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "greyhound: no greyhound answers on {}: is `greyhound run` running?\n",
        path.display()
    );
    assert_eq!(text(&output.stderr), expected);
}

#[test]
fn tunnel_show_speaks_iproute2() {
    let scratch = Scratch::new("show");
    let path = scratch.path("control.sock");
    let _router = FakeRouter::start(&path, sample());
    let path = path.to_str().unwrap();
    let output = greyhound(&["tunnel", "show", "--socket", path]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout),
        "\
gre1: gre/ip  remote 192.0.2.2  local 192.0.2.1  ttl inherit  key 42  csum seq  mtu 1464
    state up  via 192.0.2.2 dev eth0 lladdr 02:00:00:00:00:02
    mtu 1464 = 1500 of eth0 - 20 IPv4 - 16 GRE
    path mtu 1364 = 1400 of the path to 192.0.2.2 - 20 IPv4 - 16 GRE, for 587 s
    unreachable 192.0.2.2 (host), said 192.0.2.254 3 s ago
    RX:            bytes      packets         fast         slow   share
                   64000         1000          999            1   99.9%
    TX:            bytes      packets         fast         slow   share
                     448            7            0            7    0.0%
    drops: gre_checksum 30  sequence_old 2
    errors: unreachable 7  too_big 3
gre2: gre/ip  remote 192.0.2.3  local 192.0.2.1  dev eth0  ttl 64  tos 0xb8  ikey 1  ocsum  nopmtudisc  ignore-df  mtu 1472
    state no-route
    RX:            bytes      packets         fast         slow   share
                       0            0            0            0       -
    TX:            bytes      packets         fast         slow   share
                       0            0            0            0       -
six: gre/ipv6  remote 2001:db8::2  local 2001:db8::1  encaplimit 4  hoplimit 64  tclass inherit  flowlabel 0x12345  mtu 1448
    state up  via fe80::1 dev eth0
    mtu 1448 = 1500 of the route by eth0 - 40 IPv6 - 8 limit - 4 GRE
    RX:            bytes      packets         fast         slow   share
                       0            0            0            0       -
    TX:            bytes      packets         fast         slow   share
                       0            0            0            0       -
(`ip -s link` and tcpdump on these devices see the slow column alone)
"
    );
    let output = greyhound(&["--json", "--socket", path, "tunnel", "show", "gre2"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(
        (&json[0]["name"], &json[0]["ttl"]),
        (&"gre2".into(), &64.into())
    );

    let output = greyhound(&["tunnel", "show", "gre9", "--socket", path]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "greyhound: no tunnel \"gre9\": there are gre1, gre2, six\n"
    );
}

#[test]
fn tunnel_show_has_a_line_for_each_peer() {
    let hop = |lladdr: Option<&str>| {
        Some(NextHopReport {
            device: "eth0".into(),
            via: "192.0.2.254".into(),
            lladdr: lladdr.map(str::to_owned),
        })
    };
    let peer = |address: Option<&str>, remote: &str, state: &str, next_hop| PeerReport {
        address: address.map(str::to_owned),
        remote: remote.to_owned(),
        state: state.to_owned(),
        next_hop,
    };
    let mac = "02:00:00:00:00:fe";
    let tunnel = TunnelReport {
        name: "gre1".into(),
        mode: "gre".into(),
        local: "192.0.2.1".into(),
        remote: "any".into(),
        state: "up".into(),
        pmtudisc: true,
        peers: vec![
            peer(Some("10.0.3.0/24"), "198.51.100.3", "up", hop(Some(mac))),
            peer(Some("172.16.0.4"), "198.51.100.4", "no-route", None),
            peer(None, "198.51.100.5", "unresolved", hop(None)),
        ],
        ..TunnelReport::default()
    };
    let scratch = Scratch::new("peers");
    let path = scratch.path("control.sock");
    let statistics = Statistics {
        tunnels: vec![tunnel, TunnelReport::default()],
        ..Statistics::default()
    };
    let _router = FakeRouter::start(&path, statistics);
    let path = path.to_str().unwrap();
    let output = greyhound(&["tunnel", "show", "gre1", "--socket", path]);
    let shown = text(&output.stdout);
    let lines: Vec<&str> = shown.lines().take(5).collect();
    assert_eq!(
        lines,
        [
            "gre1: gre/ip  remote any  local 192.0.2.1  ttl inherit  tos inherit",
            "    state up",
            "    peer 10.0.3.0/24  remote 198.51.100.3  up  via 192.0.2.254 dev eth0 lladdr 02:00:00:00:00:fe",
            "    peer 172.16.0.4  remote 198.51.100.4  no-route",
            "    peer by route  remote 198.51.100.5  unresolved  via 192.0.2.254 dev eth0",
        ]
    );
    let output = greyhound(&["tunnel", "show", "--json", "--socket", path]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json[0]["peers"][1]["state"], "no-route");
    assert_eq!(json[0]["peers"][2]["address"], serde_json::Value::Null);
    // Who has none says nothing of it.
    assert!(json[1].get("peers").is_none());
}

#[test]
fn statistics_keep_the_contract() {
    let scratch = Scratch::new("stats");
    let path = scratch.path("control.sock");
    let _router = FakeRouter::start(&path, sample());
    let path = path.to_str().unwrap();
    let output = greyhound(&["stats", "--json", "--socket", path]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for pointer in [
        "/tunnels/0/name",
        "/tunnels/0/mode",
        "/tunnels/0/local",
        "/tunnels/0/remote",
        "/tunnels/0/state",
        "/tunnels/0/rx/packets",
        "/tunnels/0/rx/bytes",
        "/tunnels/0/tx/packets",
        "/tunnels/0/tx/bytes",
        "/tunnels/0/fast/rx_packets",
        "/tunnels/0/fast/tx_packets",
        "/tunnels/0/slow/rx_packets",
        "/tunnels/0/slow/tx_packets",
        "/tunnels/0/drops/gre_checksum",
        "/workers/0/id",
        "/workers/0/cpu",
        "/workers/0/rx_packets",
        "/workers/0/tx_packets",
        "/workers/0/punted",
        "/workers/0/drops",
        "/workers/0/ports/0/device",
        "/workers/0/ports/0/queue",
        "/workers/0/ports/0/mode",
        "/workers/0/ports/0/rx_dropped",
        "/workers/0/ports/0/rx_ring_full",
        "/workers/0/ports/0/fill_ring_empty",
        "/drops/gre_checksum",
    ] {
        assert!(
            json.pointer(pointer).is_some_and(|value| !value.is_null()),
            "{pointer}"
        );
    }
    assert_eq!(
        serde_json::from_value::<Statistics>(json).unwrap(),
        sample()
    );

    let human = greyhound(&["stats", "gre1", "--socket", path]).stdout;
    let human = text(&human);
    let head = "tunnel  state  rx packets  rx bytes  tx packets  tx bytes   fast  drops\n\
                gre1    up           1000     64000           7       448  99.2%     32\n";
    assert!(human.starts_with(head), "{human}");
    assert!(
        human.contains("worker 0: not zero-copy: Operation not supported\n"),
        "{human}"
    );
    assert!(human.contains("\ndrops: gre_checksum 30\n"), "{human}");
    assert!(!human.contains("gre2"), "{human}");
}

#[test]
fn a_reader_that_leaves_ends_the_watch_in_silence() {
    let scratch = Scratch::new("pipe");
    let path = scratch.path("control.sock");
    let _router = FakeRouter::start(&path, sample());
    let mut child = Command::new(env!("CARGO_BIN_EXE_greyhound"))
        .args([
            "stats",
            "--watch",
            "--json",
            "--socket",
            path.to_str().unwrap(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next().unwrap().unwrap();
        serde_json::from_str::<Statistics>(&line).unwrap();
    }
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn garbage_gets_an_error_and_disturbs_nobody() {
    let scratch = Scratch::new("garbage");
    let path = scratch.path("control.sock");
    let _router = FakeRouter::start(&path, sample());
    let mut stream = BufReader::new(UnixStream::connect(&path).unwrap());
    let mut ask = |request: &[u8]| {
        stream.get_mut().write_all(request).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line
    };
    for garbage in [
        &b"\n"[..],
        b"hello\n",
        b"\xff\xfe\x00\n",
        b"{\"verb\": \"fly\"}\n",
        b"{\"verb\": \"stats\", \"x\": 1}\n",
        b"{\"verb\": \"stats\", \"name\": 3}\n",
        b"[[[[\n",
    ] {
        let answer = ask(garbage);
        assert!(
            answer.starts_with("{\"error\":\"not a request: "),
            "{garbage:?}: {answer}"
        );
    }
    let answer = ask(b"{\"verb\": \"status\"}\n");
    assert!(
        answer.starts_with("{\"ok\":") && answer.contains("\"pid\":7"),
        "{answer}"
    );
    // Longer than any request may be: an error, and the connection is closed.
    let answer = ask(&[b'x'; 64 * 1024]);
    assert_eq!(answer, "{\"error\":\"request longer than 65536 bytes\"}\n");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn too_many_clients_are_told_so() {
    let scratch = Scratch::new("busy");
    let path = scratch.path("control.sock");
    let _router = FakeRouter::start(&path, sample());
    let mut clients = Vec::new();
    for _ in 0..32 {
        let mut client = BufReader::new(UnixStream::connect(&path).unwrap());
        client
            .get_mut()
            .write_all(b"{\"verb\": \"status\"}\n")
            .unwrap();
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"ok\":"), "{line}");
        clients.push(client);
    }
    let output = greyhound(&["stats", "--socket", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "greyhound: busy: 32 clients are connected already\n"
    );
}

#[test]
fn the_socket_is_private_and_goes_with_its_router() {
    let scratch = Scratch::new("mode");
    let path = scratch.path("made/for/it/control.sock");
    let router = FakeRouter::start(&path, sample());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o660);
    drop(router);
    assert!(!path.exists() && !path.parent().unwrap().exists());
}

#[test]
fn a_dead_routers_socket_is_replaced_and_a_live_ones_is_not() {
    let scratch = Scratch::new("stale");
    let path = scratch.path("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let router = FakeRouter::start(&path, sample());
    runtime().block_on(async {
        let refused = ControlSocket::bind(&path).unwrap_err();
        assert!(matches!(refused, SocketError::InUse(_)), "{refused}");
        assert!(
            refused
                .to_string()
                .starts_with("another greyhound answers on "),
            "{refused}"
        );
    });
    let output = greyhound(&["stats", "--socket", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    drop(router);
    fs::write(&path, "precious").unwrap();
    runtime().block_on(async {
        let refused = ControlSocket::bind(&path).unwrap_err();
        assert!(matches!(refused, SocketError::NotASocket(_)), "{refused}");
    });
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn check_refuses_a_broken_configuration_and_an_unfit_host() {
    let scratch = Scratch::new("check");
    let path = scratch.path("greyhound.toml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        let output = greyhound(&["check", "--json", "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["fit"], false);
        report["findings"].as_array().unwrap().clone()
    };
    let findings = check("[router]\nxdp = 3\n");
    assert_eq!(findings.len(), 1);
    let found = findings[0]["found"].as_str().unwrap();
    assert!(
        found.contains("greyhound.toml:2: [router]: xdp = 3: expected"),
        "{found}"
    );

    let findings = check("[router]\nunderlay = [\"no-such-u\"]\noverlay = [\"no-such-o\"]\n");
    let absent = |name: &str| {
        findings.iter().any(|f| {
            f["subject"] == name
                && f["severity"] == "fail"
                && f["found"] == "there is no such device"
        })
    };
    assert!(absent("no-such-u") && absent("no-such-o"), "{findings:?}");
}
