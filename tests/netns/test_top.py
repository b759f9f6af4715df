"""`greyhound top` in a real terminal: what stands on the screen, what keys and signals do, and how it is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest
from beds import v4
from greyhound import binary
from topology import DEADLINE, wait_until

pyte = pytest.importorskip("pyte", reason="needs python3-pyte")

TUNNELS = {"name": "gre2", "mode": "gre", "local": "10.9.0.1", "remote": "10.9.0.2", "key": 9}


class Terminal:
    """A pseudo-terminal, the program in it, and the screen that its output makes."""

    def __init__(self, *argv: str, size: tuple[int, int] = (80, 24), **environment: str):
        self.screen = pyte.Screen(*size)
        self.stream = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        self._size(size)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.raw = b""
        env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "LC_ALL", "LANG")}
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=self._own_session,
            env=env | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environment,
        )

    @staticmethod
    def _own_session() -> None:
        """With the terminal on standard input as the one that controls it."""
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _size(self, size: tuple[int, int]) -> None:
        columns, lines = size
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """As a window that is drawn larger or smaller."""
        self.screen.resize(lines, columns)
        self._size((columns, lines))
        self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self) -> None:
        """Takes in what has been written."""
        while select.select([self.master], [], [], 0)[0]:
            try:
                piece = os.read(self.master, 65536)
            except OSError:  # Nobody has the other end open any more.
                return
            if not piece:
                return
            self.raw += piece
            self.stream.feed(piece)

    def lines(self) -> list[str]:
        self.read()
        return [line.rstrip() for line in self.screen.display]

    def shows(self, *texts: str) -> list[str]:
        """Waits until all of these stand on the screen."""
        end = time.monotonic() + DEADLINE
        while True:
            lines = self.lines()
            text = "\n".join(lines)
            missing = [wanted for wanted in texts if wanted not in text]
            if not missing:
                return lines
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n" + "\n".join(lines)
            assert time.monotonic() < end, f"not on the screen: {missing}\n" + "\n".join(lines)
            time.sleep(0.02)

    def is_given_back(self) -> bool:
        """The line discipline as it was, the cursor seen, the first screen shown."""
        self.read()
        same = termios.tcgetattr(self.slave)[:4] == self.before[:4]
        left = self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h") >= 0
        cursor = self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l")
        return same and left and cursor

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal():
    """Starts `greyhound top` on a control socket."""
    with contextlib.ExitStack() as stack:
        def start(control, **options) -> Terminal:
            top = Terminal(binary(), "top", "--socket", str(control), **options)
            stack.callback(top.close)
            return top

        yield start


def table(lines: list[str]) -> list[str]:
    """The tunnels' names, in the order of their rows; none where there is no table."""
    head = next((n for n, line in enumerate(lines) if line.startswith(" tunnel ")), len(lines))
    return [line.split()[0] for line in lines[head + 1:-1] if line.strip()]


def two_tunnels(single, **router):
    bed = single(tunnel={"ttl": 64}, start=False, **router)
    bed.greyhound.start([bed.tunnel, TUNNELS], **router)
    return bed


def test_it_shows_what_goes_on(single, terminal):
    """Traffic, workers, ports and drops within 80 by 24; a tunnel opened and left again; help; order."""
    bed = two_tunnels(single)
    bed.warm()
    top = terminal(bed.greyhound.socket)
    top.shows("tunnels 2/2 up", " worker cpu busy", " outer0 ", " inner0 ", " copy ", "? help")

    def moves() -> bool:
        bed.send_inside(*(v4() for _ in range(50)))
        bed.send_outside(*(bed.around(v4(src="10.2.0.2", dst="10.1.0.2"), proto=0x1234) for _ in range(5)))
        lines = top.lines()
        row = next((line for line in lines if line.startswith(" gre1 ")), "").split()
        # name, state, rx, tx, packets, fast, drops, and what of its history is not blank
        return len(row) == 8 and row[1] == "up" and row[3] != "0b" and row[5] == "100%" and row[6] != "0" \
            and any(line.startswith(" drops: unknown_protocol ") for line in lines)

    wait_until(moves, "the numbers of gre1 move")
    assert table(top.lines()) == ["gre1", "gre2"]
    top.press("nn")
    wait_until(lambda: table(top.lines()) == ["gre2", "gre1"], "by name, turned round")
    assert "by name, turned round" in top.lines()[-1]
    top.press("/gre1")
    top.shows("filter: gre1_")
    wait_until(lambda: table(top.lines()) == ["gre1"], "filtered")
    top.press("\r\r")
    top.shows("gre1: gre/ip", "remote 10.9.0.2", "state up", "drops: unknown_protocol", "esc back")
    top.press("?")
    top.shows("sort by traffic, name, state")
    top.press("x")
    top.shows(' only "gre1"')
    top.press("\x1b")
    wait_until(lambda: table(top.lines()) == ["gre2", "gre1"], "no filter")
    top.press("q")
    assert top.process.wait(DEADLINE) == 0
    assert top.is_given_back()


def test_size(single, terminal):
    """It follows the window, says when that is too small, and is whole again after."""
    bed = two_tunnels(single)
    top = terminal(bed.greyhound.socket, size=(120, 40))
    top.shows(" tunnel ", "? help")
    top.resize(80, 12)
    wait_until(lambda: "? help" in top.lines()[11] and table(top.lines()) == ["gre1", "gre2"], "it fits 80 by 12")
    top.resize(30, 5)
    wait_until(lambda: top.lines() == ["too small: 40 x 10 at least", "", "", "", ""], "it says that it does not fit")
    top.resize(80, 24)
    wait_until(lambda: "? help" in top.lines()[23] and table(top.lines()) == ["gre1", "gre2"], "it fits 80 by 24")


def test_a_router_that_stops_is_waited_for(single, terminal):
    """Without a router it says so; when there is one it shows it; so too when that one is gone and another comes."""
    bed = single(tunnel={"ttl": 64}, xdp="off", start=False)
    top = terminal(bed.greyhound.socket)
    top.shows("no greyhound answers on ", "waiting for a router")
    bed.greyhound.start()
    top.shows("tunnels 1/1 up", " gre1 ", "no fast path: everything takes the slow one")
    assert bed.greyhound.terminate() == 0
    top.shows("the router does not answer: waiting for it", " gre1 ")
    bed.greyhound.start()
    wait_until(lambda: "does not answer" not in top.lines()[1], "the next one is shown")
    top.shows("tunnels 1/1 up", " gre1 ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(terminal, tmp_path, number):
    """Whoever ends it finds the terminal as it was."""
    top = terminal(tmp_path / "none.sock")
    top.shows("waiting for a router")
    assert not top.is_given_back()
    top.process.send_signal(number)
    assert top.process.wait(DEADLINE) == 128 + number
    assert top.is_given_back()


def test_ctrl_z_gives_the_terminal_to_the_shell(tmp_path):
    """And takes it again when it goes on."""
    line = f"{binary()} top --socket {tmp_path / 'none.sock'}; echo the shell again; read; fg >/dev/null; exit $?"
    with contextlib.closing(Terminal("bash", "-mc", line)) as top:
        top.shows("waiting for a router")
        top.press("\x1a")
        top.shows("the shell again")
        assert top.is_given_back()
        top.screen.reset()
        top.press("\n")
        top.shows("waiting for a router")
        top.press("\x03")
        assert top.process.wait(DEADLINE) == 0
        assert top.is_given_back()


def test_colours_and_blocks(single, terminal):
    """Colours unless NO_COLOR says no; block elements only where the locale has them."""
    bed = single(tunnel={"ttl": 64}, xdp="off")
    for environment, coloured, blocks in (({}, True, True), ({"NO_COLOR": "1", "LC_ALL": "C"}, False, False)):
        top = terminal(bed.greyhound.socket, **environment)

        def is_drawn() -> bool:
            bed.send_inside(v4())
            row = next((line for line in top.lines() if line.startswith(" gre1 ")), "")
            return row.endswith("█" if blocks else "@")

        wait_until(is_drawn, "a sparkline is drawn")
        coloured_cells = any(cell.fg != "default" for row in top.screen.buffer.values() for cell in row.values())
        assert coloured_cells == coloured
        assert any(ord(c) > 127 for line in top.lines() for c in line) == blocks


def test_no_terminal(tmp_path):
    """Into a pipe there is one line, and no control sequence."""
    done = subprocess.run([binary(), "top", "--socket", str(tmp_path / "s")], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "greyhound: top needs a terminal; `greyhound stats --watch` writes to anything\n"
