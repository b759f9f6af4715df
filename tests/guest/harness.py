"""Tests that run in a virtual machine by the standard library alone: one result each, and their sum."""

from __future__ import annotations

import contextlib
import io
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "netns"))

_tests: list[tuple[str, Callable[[pathlib.Path], None]]] = []


class Skipped(Exception):
    """This kernel cannot show it; why."""


def test(*cases):
    """Registers a function as a test, once for each case; it is called with the case and a directory of its own."""

    def register(function):
        for case in cases or (None,):
            name = function.__name__ + (f"[{case}]" if case is not None else "")
            arguments = () if case is None else (case,)
            _tests.append((name, lambda directory, a=arguments: function(*a, directory)))
        return function

    return register


def run() -> int:
    """Runs the tests whose names contain the first word of the command line, all without one; the exit status."""
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    passed = failed = skipped = 0
    for name, function in _tests:
        if only not in name:
            continue
        began = time.monotonic()
        said = io.StringIO()
        try:
            with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(said):
                function(pathlib.Path(directory))
        except Skipped as why:
            skipped += 1
            print(f"    skipped: {name}: {why}", flush=True)
        except Exception:  # Whatever it is, it is this test's failure.
            failed += 1
            print(f"{said.getvalue()}{traceback.format_exc()}    FAIL  {name}", flush=True)
        else:
            passed += 1
            print(f"    ok    {name} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0 if passed else 77
