"""The router as a service: what it tells the manager, what it may do, who may ask it, and that nobody disturbs it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess

import pytest

from beds import v4
from conftest import need
from greyhound import ROOT, Greyhound, binary
from topology import DEADLINE, wait_until
from wire import GRE, forwarded, ip_bytes

CAPABILITIES = ("net_admin", "net_raw", "bpf", "perfmon", "ipc_lock")
NOBODY = 65534


class Manager:
    """A service manager's notification socket."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(DEADLINE)

    def until(self, wanted: str) -> list[str]:
        """Everything that is said up to the line that begins with `wanted`."""
        said = []
        while not any(line.startswith(wanted) for line in said):
            said += self._socket.recv(4096).decode().splitlines()
        return said

    def close(self) -> None:
        self._socket.close()
        self.path.unlink()


@pytest.fixture
def manager(tmp_path, monkeypatch):
    path = pathlib.Path(f"/run/gh{os.getpid()}-notify")
    with contextlib.closing(Manager(path)) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield manager


def test_the_manager_is_told(single, manager, monkeypatch):
    """Ready when tunnels can carry, a status line, the watchdog fed, a reload begun and ended, stopping."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    bed = single()
    said = manager.until("READY=1")
    assert any(line.startswith("STATUS=") and "fast path on, 1 worker(s)" in line for line in said), said
    manager.until("WATCHDOG=1")
    manager.until("WATCHDOG=1")
    bed.greyhound.process.send_signal(signal.SIGHUP)
    said = manager.until("RELOADING=1")
    manager.until("READY=1")
    assert bed.greyhound.terminate() == 0
    manager.until("STOPPING=1")


def test_a_start_that_fails_is_never_ready(single, manager):
    bed = single(start=False, overlay=["nowhere0"])
    assert bed.greyhound.spawn().wait(DEADLINE) == 1
    manager._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager._socket.recv(4096)


def test_the_unit_is_one(tmp_path):
    """systemd finds nothing to complain about, and little that is exposed."""
    analyze = need("systemd-analyze")
    unit = tmp_path / "greyhound.service"
    text = (ROOT / "packaging/greyhound.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/usr/sbin/greyhound", binary()), encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", "--recursive-errors=no", str(unit)], capture_output=True, text=True)
    assert done.returncode == 0 and str(unit) not in done.stderr, done.stderr
    done = subprocess.run(
        [analyze, "security", "--no-pager", "--offline=yes", "--threshold=50", str(unit)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def held(process: subprocess.Popen) -> set[str]:
    """The capability sets that threads of a process have, in hexadecimal."""
    tasks = pathlib.Path(f"/proc/{process.pid}/task")
    lines = [line for task in tasks.iterdir() for line in (task / "status").read_text().splitlines()]
    return {line.split()[1] for line in lines if line.startswith(("CapEff", "CapPrm"))}


def test_what_is_not_needed_is_given_up(single):
    """No thread keeps more than the five, and reading files."""
    bed = single()
    bits = {"net_admin": 12, "net_raw": 13, "ipc_lock": 14, "perfmon": 38, "bpf": 39, "dac_read_search": 2}
    expected = sum(1 << bit for bit in bits.values())
    assert {int(mask, 16) for mask in held(bed.greyhound.process)} == {expected}


@pytest.mark.parametrize("missing", ["net_admin", "net_raw", "bpf", "perfmon"])
def test_a_missing_capability_is_named(single, missing):
    bed = single(start=False)
    done = bed.router.run(
        need("setpriv"), f"--bounding-set=-{missing},-sys_admin", binary(), "run", "--config",
        str(bed.greyhound.config_file), check=False,
    )
    assert done.returncode == 1
    assert f"missing CAP_{missing.upper()} (" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_anybody_with_the_capabilities_can_run_it(single, xdp, monkeypatch):
    """As nobody, with the five and nothing else: both ways, a reload, an orderly end."""
    bed = single(start=False, xdp=xdp)
    greyhound = bed.greyhound
    home = pathlib.Path(f"/run/gh{os.getpid()}-nobody")
    home.mkdir(mode=0o755)
    try:
        os.chown(home, NOBODY, NOBODY)
        greyhound.socket = home / "control.sock"
        greyhound.config_file = home / "greyhound.toml"
        greyhound.configure([bed.tunnel], xdp=xdp)
        program = home / "greyhound"
        program.write_bytes(pathlib.Path(binary()).read_bytes())
        program.chmod(0o755)
        caps = ",".join(f"+{name}" for name in CAPABILITIES)
        plain = bed.router.command
        # As udev would have it; in the mount namespace of `ip netns exec`.
        tun = 'mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec "$@"'
        prefix = ["sh", "-c", tun, "sh", need("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}",
                  "--clear-groups", f"--inh-caps={caps}", f"--ambient-caps={caps}", "--bounding-set=-all," + caps]
        monkeypatch.setattr(bed.router, "command", lambda *argv: plain(*prefix, str(program), *argv[1:]))
        greyhound.spawn()
        monkeypatch.setattr(bed.router, "command", plain)
        greyhound.wait_ready()
        bed.warm()
        uid = pathlib.Path(f"/proc/{greyhound.process.pid}").stat().st_uid
        assert uid in (NOBODY, 0)  # Root where the process is not dumpable.
        assert greyhound.ask("reload").stdout == "unchanged 1\n"
        assert greyhound.terminate() == 0
        assert "gre1" not in bed.router.devices()
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=True)


def test_others_may_look_and_not_touch(single):
    """Who can open the socket can read; only root and the router's own user can change anything."""
    bed = single()
    os.chmod(bed.greyhound.socket, 0o666)
    program = pathlib.Path(f"/run/gh{os.getpid()}-look")
    program.write_bytes(pathlib.Path(binary()).read_bytes())
    program.chmod(0o755)
    try:
        as_nobody = [need("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", str(program)]

        def ask(*verb: str) -> subprocess.CompletedProcess:
            return subprocess.run([*as_nobody, *verb, "--socket", str(bed.greyhound.socket)], capture_output=True, text=True)

        assert ask("tunnel", "show").returncode == 0
        for verb in (["reload"], ["tunnel", "del", "gre1"]):
            done = ask(*verb)
            words = " ".join(verb[:2])
            assert done.returncode == 1
            assert done.stderr == (
                f"greyhound: {words}: uid {NOBODY} may only look: this is for root and the router's own user\n"
            )
        assert "gre1" in bed.router.devices()
    finally:
        program.unlink()


def test_a_second_router_on_the_same_devices_is_refused(single, tmp_path):
    """With the first one's name, before anything is touched; another network namespace has devices of its own."""
    bed = single()
    with contextlib.closing(Greyhound(bed.router, tmp_path, "second")) as second:
        second.configure([bed.tunnel | {"name": "gre9", "key": 9}])
        done = bed.router.run(binary(), "run", "--config", str(second.config_file), check=False)
    assert done.returncode == 1
    line = f"greyhound: outer0 is another greyhound's (pid {bed.greyhound.process.pid}) already: "
    assert done.stderr.startswith(line) and len(done.stderr.splitlines()) == 1, done.stderr
    assert "gre9" not in bed.router.devices()
    packet = v4()
    assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)


def test_hostile_clients_change_nothing(single):
    """Garbage, half messages, giants, a thousand connections, clients that never read: the router answers and carries."""
    bed = single()
    bed.warm()
    path, open_ones = str(bed.greyhound.socket), []

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)  # Waits while the backlog is full.
        client.settimeout(DEADLINE)
        open_ones.append(client)
        return client

    try:
        for garbage in (b"\0" * 4096 + b"\n", b'{"verb":', b"[" * 60000 + b"\n", os.urandom(5000) + b"\n",
                        b'{"verb": "tunnel add", "name": "x", "words": [' + b'"mode",' * 5000 + b'"gre"]}\n',
                        b'{"verb": "tunnel del", "name": "' + b"x" * 60000 + b'"}\n', b"x" * (1 << 20)):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connect().sendall(garbage)
        for client in open_ones:
            client.close()
        open_ones.clear()
        answered = 0
        for _ in range(1000):
            client = connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(b'{"verb": "stats"}\n')
                answered += 1
        assert answered
        packet = v4()
        assert ip_bytes(bed.encapsulated(packet)[GRE].payload) == forwarded(packet)
    finally:
        for client in open_ones:
            client.close()
    wait_until(lambda: bed.greyhound.ask("stats", "--json", check=False).returncode == 0, "the router answers again")
    assert [t["name"] for t in bed.greyhound.stats()["tunnels"]] == ["gre1"]
    assert bed.greyhound.process.poll() is None
