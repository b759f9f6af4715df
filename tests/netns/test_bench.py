"""`scripts/bench.sh` in its smallest way: everybody is measured or named with the reason, and every frame is accounted for."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from xml.etree import ElementTree

import pytest

from greyhound import binary

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVERYBODY = {"greyhound", "bare", "ovs", "tc", "kernel", "xdp"}
DIRECTIONS = {"encapsulate", "decapsulate"}


def bench(*options: str) -> subprocess.CompletedProcess:
    """The script, as a user calls it; nothing of it may be left behind."""
    before = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.split()
    done = subprocess.run([ROOT / "scripts/bench.sh", *options], env=os.environ | {"GREYHOUND": str(binary())},
                          capture_output=True, text=True, timeout=280)
    after = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in after if name.startswith("greyhound-bench-") and name not in before]
    return done


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    done = bench("--quick", "--parts", "rate", "--sizes", "64", "--rounds", "1", "--seconds", "0.3", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text()) | {"terminal": done.stdout}


def test_everybody_is_measured_or_named(report):
    """Nobody is left out silently, and those that need no more than this machine has are measured."""
    measured, missing = {c["key"] for c in report["contestants"]}, report["missing"]
    assert measured | set(missing) == EVERYBODY and not measured & set(missing)
    assert {"greyhound", "bare", "tc", "xdp"} <= measured
    for contestant in report["contestants"]:
        assert contestant["title"] in report["terminal"]
        rows = [r for r in report["summary"] if r["contestant"] == contestant["key"]]
        assert {r["direction"] for r in rows} == DIRECTIONS
        assert all(r["min_pps"] <= r["median_pps"] <= r["max_pps"] and r["median_pps"] > 0 for r in rows)
    for contestant in missing.values():
        assert contestant["reason"] and f"{contestant['title']}: {contestant['reason']}" in report["terminal"]
    assert report["machine"]["kernel"] == os.uname().release and report["commit"] and "--quick" in report["command"]


def test_every_frame_is_accounted_for(report):
    """What the source sent was refused by the device, arrived, or was lost by who was measured."""
    assert len(report["results"]) == 2 * len(report["contestants"])
    for result in report["results"]:
        frames = result["frames"]
        assert frames["sent"] == frames["refused"] + frames["arrived"] + frames["lost"], result
        assert min(frames.values()) >= 0 and frames["arrived"] > 0, result
        if result["contestant"] in ("greyhound", "bare"):
            # Behind the rings nothing is lost.
            assert frames["lost"] == frames["no_room"] + sum(result.get("drops", {}).values()), result


def test_the_chart_shows_everybody(report, tmp_path):
    """Again from the JSON alone: a bar for every row, and the same medians."""
    file, chart, readme = tmp_path / "bench.json", tmp_path / "bench.svg", tmp_path / "README.md"
    file.write_text(json.dumps({name: value for name, value in report.items() if name != "terminal"}))
    readme.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    done = bench("--rounds", "0", "--json", str(file), "--svg", str(chart), "--readme", str(readme))
    assert done.returncode == 0, done.stderr
    titles = [e.text for e in ElementTree.parse(chart).iter("{http://www.w3.org/2000/svg}title")]
    for contestant in report["contestants"]:
        assert len([t for t in titles if t.startswith(contestant["title"])]) == 2
        assert f"| {contestant['title']} | " in readme.read_text()
    assert readme.read_text().startswith("before\n") and readme.read_text().endswith("after\n") and "old" not in readme.read_text()
    assert json.loads(file.read_text())["summary"] == report["summary"]


def test_a_ratio_is_that_of_the_same_round(report):
    """One round: the ratio of two rates."""
    rates = {(r["contestant"], r["direction"]): r["pps"] for r in report["results"]}
    for row in report["summary"]:
        wanted = rates[row["contestant"], row["direction"]] / rates["bare", row["direction"]]
        assert row["ratio"] == pytest.approx(wanted)


def test_below_saturation(tmp_path):
    """The rate without loss lost nothing, and delays are in order."""
    file = tmp_path / "bench.json"
    done = bench("--parts", "calm", "--only", "greyhound,tc", "--rounds", "1", "--seconds", "0.2", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    calm = json.loads(file.read_text())["calm"]
    assert {(c["contestant"], c["direction"]) for c in calm} == {(who, way) for who in ("greyhound", "tc") for way in DIRECTIONS}
    for result in calm:
        assert result["frames"]["sent"] == result["frames"]["arrived"] > 0 and result["lossless_pps"] > 0
        for delays in (result["delay_ns"], result["idle_delay_ns"]):
            assert 0 < delays["p50"] <= delays["p99"] <= delays["p999"] <= delays["max"]
        assert (result["idle_share"] is None) == (result["contestant"] == "tc")


@pytest.mark.parametrize("options, words", [
    (["--only", "greyhound,nobody"], "--only nobody: one of greyhound"),
    (["--sizes", "63"], "64 to 1400"),
    (["--in", "eth1"], "all of --source, --in, --out, --sink"),
])
def test_bad_options(options, words):
    """Said in one line, before anything is built."""
    done = bench(*options)
    assert done.returncode == 2 and words in done.stderr


def test_a_device_that_is_in_use_is_refused():
    """Who has addresses on a device would lose it."""
    name = f"b{os.getpid()}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "192.0.2.77/32", "dev", name], check=True)
        done = bench("--source", name, "--in", f"{name}p", "--out", "lo", "--sink", "lo")
        assert done.returncode == 1 and f"{name} has addresses" in done.stderr
        assert subprocess.run(["ip", "link", "show", name], check=False).returncode == 0
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)
