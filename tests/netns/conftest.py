"""Fixtures: every test gets a bed of its own, in both modes of steering."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
pytest.register_assert_rewrite("beds", "conformance", "greyhound", "topology", "wire")

from beds import Pair, Single  # noqa: E402
from conformance import RESULTS  # noqa: E402


def pytest_configure():
    """Whoever stops the tests with SIGTERM gets the namespaces removed, as with Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Without root no namespace can be made: the tests are skipped, each by name."""
    if os.geteuid() != 0:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="needs root"))


_measured: list[str] = []


@pytest.fixture
def measured():
    """Notes something that was measured; the notes stand in the closing summary."""
    return _measured.append


def pytest_terminal_summary(terminalreporter):
    """The notes of `measured`, and the conformance table."""
    for note in [*_measured, *RESULTS.lines()]:
        terminalreporter.write_line(note)


@pytest.fixture(params=["auto", "off"])
def xdp(request) -> str:
    """Steering as good as the devices allow, and none: the slow path alone."""
    return request.param


@pytest.fixture
def single(tmp_path):
    """One router; call it with a tunnel to get it running."""
    beds: list[Single] = []

    def build(**kwargs) -> Single:
        beds.append(Single(tmp_path, **kwargs))
        return beds[-1]

    yield build
    for bed in beds:
        bed.close()


@pytest.fixture
def pair(tmp_path):
    """Two routers back to back; call it with the tunnels to get them running."""
    beds: list[Pair] = []

    def build(*args, **kwargs) -> Pair:
        beds.append(Pair(tmp_path, *args, **kwargs))
        return beds[-1]

    yield build
    for bed in beds:
        bed.close()


def need(program: str) -> str:
    """The path of a program, or a skip that names it."""
    return shutil.which(program) or pytest.skip(f"needs {program}")
