"""What monitoring systems see: metrics that Prometheus takes, health, readiness, and nothing that a client can break."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess

import pytest
from beds import v4
from greyhound import ROOT, binary
from test_books import both, total
from topology import DEADLINE, wait_until

ADDRESS = ("127.0.0.1", 9747)
METRICS = {"metrics": "127.0.0.1:9747"}
DASHBOARD = ROOT / "packaging" / "grafana" / "greyhound.json"


@pytest.fixture
def promtool() -> str:
    """Prometheus's own judge of metrics and of queries."""
    fetched = ROOT / "target" / "tools" / "promtool"
    found = shutil.which("promtool") or (str(fetched) if fetched.exists() else None)
    return found or pytest.skip("needs promtool: scripts/test.sh fetches it")


class Client:
    """A client in the router's namespace."""

    def __init__(self, ns):
        self.ns = ns

    def connect(self) -> socket.socket:
        sock = self.ns.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(DEADLINE)
        sock.connect(ADDRESS)
        return sock

    def raw(self, request: bytes) -> bytes:
        """Everything that is answered until the other side closes."""
        with self.connect() as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(request)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := sock.recv(65536):
                    answer += piece
            return answer

    def get(self, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
        """Status, headers and body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: router", *headers, "", ""]
        head, _, body = self.raw("\r\n".join(lines).encode()).partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        pairs = (field.split(": ", 1) for field in fields)
        named = {name.lower(): value for name, value in pairs}
        return int(status.split()[1]), named, body.decode()

    def metrics(self) -> dict[tuple[str, frozenset], float]:
        """Samples by name and labels."""
        status, _, text = self.get("/metrics")
        assert status == 200, text
        samples = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
                pairs = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))
                assert (name, pairs) not in samples, f"twice: {line}"
                samples[name, pairs] = float(value)
        return samples


def value(samples: dict, name: str, **labels) -> float:
    """One sample's, or the sum of those that have these labels."""
    wanted = {(key.rstrip("_"), str(text)) for key, text in labels.items()}
    found = [n for (sample, pairs), n in samples.items() if sample == name and wanted <= pairs]
    assert found, f"no {name} {labels}"
    return sum(found)


def test_metrics_say_what_statistics_say(single, xdp):
    """Every number of the statistics is found under the name that was promised."""
    bed = single(tunnel={"ttl": 64}, xdp=xdp, **METRICS)
    client = Client(bed.router)
    bed.warm()
    bed.send_outside(*(bed.around(v4(src="10.2.0.2", dst="10.1.0.2"), proto=0x1234) for _ in range(3)))
    wait_until(lambda: bed.greyhound.drops().get("unknown_protocol") == 3, "three are dropped")

    def same() -> bool:
        before, samples, stats = bed.greyhound.stats(), client.metrics(), bed.greyhound.stats()
        if before["tunnels"] != stats["tunnels"] or before["slow_path"] != stats["slow_path"]:
            return False
        (tunnel,) = stats["tunnels"]
        for way in ("rx", "tx"):
            for path in ("fast", "slow"):
                labels = {"tunnel": "gre1", "direction": way, "path": path}
                for what in ("packets", "bytes"):
                    if value(samples, f"greyhound_tunnel_{what}_total", **labels) != tunnel[path][f"{way}_{what}"]:
                        return False
            assert tunnel["fast"][f"{way}_bytes"] + tunnel["slow"][f"{way}_bytes"] == tunnel[way]["bytes"]
        assert value(samples, "greyhound_drops_total", tunnel="gre1", reason="unknown_protocol") == 3
        assert value(samples, "greyhound_drops_total") == total(stats["drops"])
        assert value(samples, "greyhound_tunnel_up", tunnel="gre1") == 1
        assert value(samples, "greyhound_slow_path_received_total", from_="devices") == stats["slow_path"]["from_devices"]
        for worker in both(stats):
            assert value(samples, "greyhound_worker_packets_total", worker=worker["id"], direction="rx") == worker["rx_packets"]
            for port in worker["ports"]:
                labels = {"device": port["device"], "queue": port["queue"]}
                assert value(samples, "greyhound_port_packets_total", direction="rx", **labels) == port["rx_packets"]
                for name in ("rx_dropped", "rx_ring_full", "fill_ring_empty", "rx_invalid", "tx_invalid", "tx_ring_empty"):
                    value(samples, f"greyhound_port_{name}_total", **labels)
        if xdp != "off":
            steered = stats["xdp"]["outer0"]["redirected_underlay"]
            labels = {"device": "outer0", "reason": "redirected_underlay"}
            assert value(samples, "greyhound_steering_frames_total", **labels) == steered > 0
            busy = value(samples, "greyhound_worker_busy_seconds_total", worker=0)
            assert 0 < busy < value(samples, "greyhound_worker_idle_seconds_total", worker=0) + busy
        return True

    wait_until(same, "metrics and statistics agree")


def test_prometheus_takes_them(single, promtool, tmp_path):
    """promtool finds nothing to complain of, and every query of the dashboard is one, of metrics that exist."""
    bed = single(tunnel={"ttl": 64, "keepalive": True}, **METRICS)
    client = Client(bed.router)
    bed.warm()
    _, headers, text = client.get("/metrics")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    judged = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=DEADLINE)
    assert (judged.returncode, judged.stdout + judged.stderr) == (0, "")

    families = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    documented = set(re.findall(r"^\| `(greyhound_\w+)`", (ROOT / "docs" / "counters.md").read_text(), re.M))
    assert documented == families
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    used = set(re.findall(r"\bgreyhound_\w+", " ".join(queries + [json.dumps(dashboard()["templating"])])))
    assert used and used <= families, used - families
    rules = tmp_path / "rules.yml"
    variables = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*", "$tunnel": ".*"}
    for name, text in variables.items():
        queries = [query.replace(name, text) for query in queries]
    rows = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries)]
    rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rows}]}))
    judged = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True, timeout=DEADLINE)
    assert judged.returncode == 0, judged.stdout + judged.stderr


def test_openmetrics_for_those_who_ask(single):
    """Prometheus asks for it: names without _total in the heads, units, and an end."""
    bed = single(tunnel={"ttl": 64}, xdp="off", **METRICS)
    accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, headers, text = Client(bed.router).get("/metrics", accept)
    assert status == 200 and headers["content-type"].startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n") and "# UNIT greyhound_tunnel_bytes bytes\n" in text
    families, current = {}, None
    for line in text.splitlines()[:-1]:
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split()
            assert current not in families and not current.endswith("_total")
            families[current] = kind
        elif line.startswith("# UNIT "):
            _, _, name, unit = line.split()
            assert name == current and name.endswith(f"_{unit}")
        elif not line.startswith("#"):
            name = re.match(r"\w+", line)[0]
            assert name == current + ("_total" if families[current] == "counter" else ""), line


def dashboard() -> dict:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def test_dashboard_is_one_that_grafana_imports():
    """What the dashboard kind of Grafana requires, as far as it can be said without Grafana."""
    board = dashboard()
    assert board["uid"] and board["title"] and isinstance(board["schemaVersion"], int) and "id" not in board
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert {"datasource", "job", "instance", "tunnel"} == variables
    ids, covered = set(), set()
    for panel in board["panels"]:
        assert panel["id"] not in ids
        ids.add(panel["id"])
        place = panel["gridPos"]
        assert 0 <= place["x"] and place["x"] + place["w"] <= 24 and place["h"] > 0, panel["title"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & covered, f"{panel['title']} lies on another"
        covered |= cells
        assert panel["type"] in {"row", "stat", "timeseries", "table"}
        if panel["type"] == "row":
            continue
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(refs) == len(set(refs))
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"\$(?:\{)?([a-z]\w*)", target["expr"])) <= variables


def test_health_and_readiness(single):
    """Ready while all is as configured; a device that is gone is named, and the process is well all the same."""
    bed = single(tunnel={"ttl": 64}, **METRICS)
    client = Client(bed.router)
    wait_until(lambda: client.get("/readyz")[0] == 200, "ready")
    assert client.get("/readyz")[2] == client.get("/healthz")[2] == "ok\n"
    bed.router.ip("link", "del", "inner0")
    status, _, why = wait_until(lambda: (a := client.get("/readyz"))[0] == 503 and a, "not ready")
    assert 'fast path off: router.overlay names "inner0"' in why
    assert client.get("/healthz")[0] == 200
    assert value(client.metrics(), "greyhound_ready") == 0
    assert bed.greyhound.stats()["router"]["problems"][0]["what"] == why.strip()


def test_the_rest_of_http(single):
    """Other paths, methods and garbage get their answers."""
    bed = single(tunnel={"ttl": 64}, xdp="off", **METRICS)
    client = Client(bed.router)
    assert client.get("/nonsense")[0] == 404
    assert client.get("/")[0] == 200
    status, headers, _ = client.get("/metrics", method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    status, headers, body = client.get("/metrics", method="HEAD")
    assert status == 200 and int(headers["content-length"]) > 1000 and body == ""
    assert client.raw(b"\x16\x03\x01\x02\x00\x01\x00" * 9)[:12] in (b"HTTP/1.1 400", b"")
    assert client.raw(b"GET /" + b"a" * 100_000)[:12] in (b"HTTP/1.1 414", b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
    assert client.raw(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")


def test_hostile_clients_keep_nobody_out(single):
    """Who says nothing is sent away, however many they are; the router does not notice."""
    bed = single(tunnel={"ttl": 64}, xdp="off", **METRICS)
    client = Client(bed.router)
    files = f"/proc/{bed.greyhound.process.pid}/fd"
    before = len(os.listdir(files))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(client.connect()) for _ in range(100)]
        for n, sock in enumerate(silent):
            sock.sendall([b"", b"G", b"GET /metrics HTTP/1.1\r\nHost:"][n % 3])
        threads = len(os.listdir(f"/proc/{bed.greyhound.process.pid}/task"))
        # One more for the control socket's client, who has just gone.
        assert len(os.listdir(files)) <= before + 32 + 1, "no more connections than there are places"
        assert bed.greyhound.tunnel()["state"] == "up"
        bed.encapsulated(v4())
        # Places are for all: those who say nothing lose theirs.
        assert client.get("/healthz")[2] == "ok\n"
        assert len(os.listdir(f"/proc/{bed.greyhound.process.pid}/task")) == threads


def test_an_address_that_is_taken(single):
    """One line, and nothing is left behind."""
    bed = single(tunnel={"ttl": 64}, xdp="off", start=False, **METRICS)
    with bed.router.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(ADDRESS)
        other.listen()
        assert bed.greyhound.spawn().wait(DEADLINE) == 1
    last = bed.greyhound.log().strip().splitlines()[-1]
    assert last == "greyhound: router.metrics: cannot listen on 127.0.0.1:9747: Address already in use (os error 98)"
    assert bed.router.link("gre1") is None


def test_takeover_takes_the_address_along(single):
    """The next process answers on the same socket, which was never closed."""
    bed = single(tunnel={"ttl": 64}, xdp="off", **METRICS)
    client = Client(bed.router)
    assert client.get("/readyz")[0] in (200, 503)
    old = bed.greyhound.process
    with bed.greyhound.log_file.open("a", encoding="utf-8") as log:
        successor = subprocess.Popen(
            bed.router.command(binary(), "run", "--takeover", "--config", str(bed.greyhound.config_file)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
    bed.greyhound.process = successor
    while old.poll() is None:
        assert client.get("/healthz")[0] == 200
    assert old.returncode == 0
    wait_until(lambda: client.get("/readyz")[0] == 200, "the successor is ready")
    assert bed.greyhound.stats()["router"]["pid"] == successor.pid
