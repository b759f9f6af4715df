"""`greyhound check` on a host that is right, and on the same host made wrong on purpose, one thing at a time."""

from __future__ import annotations

import json
import subprocess

import pytest

from beds import Single
from greyhound import binary
from topology import DEADLINE, Bench


def examine(bed: Single) -> tuple[int, list[dict]]:
    command = bed.router.command(binary(), "check", "--json", "--config", str(bed.greyhound.config_file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL)
    report = json.loads(done.stdout)
    assert report["fit"] == (done.returncode == 0)
    return done.returncode, report["findings"]


def bad(findings: list[dict]) -> set[tuple[str, str, str]]:
    """What is not in order: severity, subject, check."""
    return {(f["severity"], f["subject"], f["check"]) for f in findings if f["severity"] != "ok"}


def nft(bed: Single, *rules: str) -> None:
    for rule in rules:
        bed.router.run("nft", *rule.split(" "))


WRONG = {
    "an underlay that is down": (
        lambda bed: bed.router.ip("link", "set", "outer0", "down"), {("fail", "outer0", "device")}),
    "an overlay that is gone": (
        lambda bed: bed.router.ip("link", "del", "inner0"), {("fail", "inner0", "device")}),
    "a local address that is not here": (
        lambda bed: bed.router.ip("addr", "del", f"{Bench.LOCAL}/24", "dev", "outer0"), {("fail", "gre1", "local")}),
    "no forwarding": (
        lambda bed: bed.router.sysctl("net.ipv4.ip_forward", 0), {("fail", "host", "forwarding")}),
    "strict reverse paths": (
        lambda bed: bed.router.sysctl("net.ipv4.conf.all.rp_filter", 1), {("warn", "host", "rp_filter")}),
    "filters that are passed by": (
        lambda bed: nft(bed, "add table inet t", "add chain inet t f { type filter hook forward priority 0 ; }",
                        "add rule inet t f counter"),
        {("warn", "host", "netfilter")}),
    "an input chain that drops": (
        lambda bed: nft(bed, "add table inet t", "add chain inet t i { type filter hook input priority 0 ; policy drop ; }"),
        {("warn", "host", "input")}),
    "shaping": (
        lambda bed: bed.router.run("tc", "qdisc", "add", "dev", "outer0", "root", "tbf", "rate", "1mbit", "burst", "10k",
                                   "latency", "50ms"),
        {("warn", "outer0", "tc")}),
    "policy routing": (
        lambda bed: bed.router.ip("rule", "add", "from", "10.77.0.0/16", "table", "77"), {("warn", "host", "rules")}),
    "a device in a bridge": (
        lambda bed: (bed.router.ip("link", "add", "br0", "type", "bridge"),
                     bed.router.ip("link", "set", "inner0", "master", "br0")),
        {("fail", "inner0", "master")}),
    "an underlay for small packets": (
        lambda bed: bed.router.ip("link", "set", "outer0", "mtu", "1000"), {("warn", "gre1", "mtu")}),
}


@pytest.mark.parametrize("what", WRONG)
def test_made_wrong(single, what):
    """It is found, with its cure, and nothing of the kind was found before."""
    bed = single(start=False)
    spoil, expected = WRONG[what]
    _, before = examine(bed)
    spoil(bed)
    code, after = examine(bed)
    new = bad(after) - bad(before)
    assert expected <= new, (new, [f for f in after if f["severity"] != "ok"])
    assert code == int(any(severity == "fail" for severity, _, _ in bad(after)))
    for finding in after:
        if (finding["severity"], finding["subject"], finding["check"]) in expected:
            assert finding["found"] and finding["mend"], finding


def test_the_command_mends_it(single):
    """What the finding says is typed, and the finding is gone."""
    bed = single(start=False)
    bed.router.sysctl("net.ipv4.ip_forward", 0)
    bed.router.ip("link", "set", "inner0", "down")
    for _ in range(4):
        _, findings = examine(bed)
        failed = [f for f in findings if f["severity"] == "fail"]
        if not failed:
            return
        for finding in failed:
            bed.router.run(*finding["mend"].split(" "))
    pytest.fail(f"still failing: {failed}")
