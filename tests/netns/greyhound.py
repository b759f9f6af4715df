"""A Greyhound process under test: its configuration, its life, its statistics."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

from topology import DEADLINE, Namespace, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]


def binary() -> str:
    """The binary under test: $GREYHOUND, else the release, else the debug build of this tree."""
    named = os.environ.get("GREYHOUND")
    built = [ROOT / "target" / profile / "greyhound" for profile in ("release", "debug")]
    for path in [pathlib.Path(named)] if named else built:
        if path.is_file():
            return str(path)
    raise FileNotFoundError("no greyhound binary: build one, or name it in GREYHOUND")


def toml(value) -> str:
    """A value in TOML's words."""
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)  # Strings, integers and booleans are written alike in both.


def config(control: str | os.PathLike, tunnels: list[dict], **router) -> str:
    """A configuration file; `router` overrides the test beds' devices."""
    table = {"underlay": ["outer0"], "overlay": ["inner0"], "control": str(control)} | router
    lines = ["[router]"] + [f"{key} = {toml(value)}" for key, value in table.items()]
    for tunnel in tunnels:
        peers = tunnel.get("peer", [])
        keys = {key: value for key, value in tunnel.items() if key != "peer"}
        lines += ["", "[[tunnel]]"] + [f"{key} = {toml(value)}" for key, value in keys.items()]
        for peer in peers:
            lines += ["[[tunnel.peer]]"] + [f"{key} = {toml(value)}" for key, value in peer.items()]
    return "\n".join(lines) + "\n"


class Greyhound:
    """`greyhound run` in a namespace. Its log is printed when it is closed: pytest shows it for failed tests."""

    def __init__(self, ns: Namespace, directory: pathlib.Path, name: str = "router"):
        self.ns, self.name = ns, name
        self.config_file = directory / f"{name}.toml"
        # A Unix socket's path is bounded at 107 bytes; pytest's directories are long.
        self.socket = pathlib.Path("/run") / f"{ns.name}-{name}.sock"
        self.log_file = directory / f"{name}.log"
        self.process: subprocess.Popen | None = None

    def configure(self, tunnels: list[dict], **router) -> None:
        """Writes the configuration file."""
        self.config_file.write_text(config(self.socket, tunnels, **router), encoding="utf-8")

    def spawn(self) -> subprocess.Popen:
        """Starts the process and does not wait for anything."""
        with self.log_file.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.ns.command(binary(), "run", "--config", str(self.config_file)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        return self.process

    def start(self, tunnels: list[dict] | None = None, **router) -> Greyhound:
        """Starts the router (with a new configuration if one is given) and waits until every tunnel is up."""
        if tunnels is not None:
            self.configure(tunnels, **router)
        self.spawn()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Waits until the control socket answers and no tunnel is other than up."""

        def ready() -> bool:
            code = self.process.poll()
            assert code is None, f"greyhound ended with {code}:\n{self.log()}"
            done = self.ask("stats", "--json", check=False)
            if done.returncode != 0:
                return False
            return all(tunnel["state"] == "up" for tunnel in json.loads(done.stdout)["tunnels"])

        wait_until(ready, f"{self.name} answers on {self.socket} with its tunnels up")

    def ask(self, *verb: str, check: bool = True) -> subprocess.CompletedProcess:
        """Runs a verb of the command line against this router."""
        done = subprocess.run(
            [binary(), *verb, "--socket", str(self.socket)],
            capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"greyhound {' '.join(verb)}: {done.returncode}\n{done.stderr}"
        return done

    @contextlib.contextmanager
    def connected(self) -> Iterator[Callable[[dict], dict]]:
        """One connection to the control socket, for many requests."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(self.socket))
            lines = connection.makefile("rwb")

            def ask(request: dict) -> dict:
                lines.write(json.dumps(request).encode() + b"\n")
                lines.flush()
                return json.loads(lines.readline())

            yield ask

    def stats(self) -> dict:
        """`greyhound stats --json`."""
        return json.loads(self.ask("stats", "--json").stdout)

    def tunnel(self, name: str = "gre1") -> dict:
        """One tunnel's statistics."""
        return next(tunnel for tunnel in self.stats()["tunnels"] if tunnel["name"] == name)

    def drops(self) -> dict[str, int]:
        """Drops by reason, without the reasons that never occurred."""
        return {reason: n for reason, n in self.stats()["drops"].items() if n}

    @contextlib.contextmanager
    def expect_drops(self, **expected: int) -> Iterator[None]:
        """What happens inside makes each named drop counter rise by so much, and no other one."""
        before = self.drops()

        def risen() -> dict[str, int]:
            return {reason: n - before.get(reason, 0) for reason, n in self.drops().items() if n != before.get(reason)}

        yield
        with contextlib.suppress(AssertionError):
            wait_until(lambda: risen() == expected, f"drops {expected}")
        assert risen() == expected

    def log(self) -> str:
        """What the process has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def signal(self, number: int) -> int:
        """Sends a signal and waits for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def terminate(self) -> int:
        """An orderly stop."""
        return self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """A crash."""
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        """Ends the process if it still runs, and prints its log for pytest to show."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        self.socket.unlink(missing_ok=True)
        print(f"--- {self.name}: {self.config_file}\n{self.config_file.read_text() if self.config_file.exists() else ''}")
        print(f"--- {self.name}: log\n{self.log()[-8000:]}")
