"""What was measured, as medians, and as a table for the terminal and the README."""

from __future__ import annotations

import statistics

NAMES = {"encapsulate": "Encapsulation", "decapsulate": "Decapsulation"}


def summary(report: dict) -> list[dict]:
    """For every contestant, direction and size: median, least and largest rate, and the median of its ratios to the bare forwarder."""
    runs: dict[tuple, dict[int, dict]] = {}
    for result in report["results"]:
        runs.setdefault((result["direction"], result["size"], result["contestant"]), {})[result["round"]] = result
    rows = []
    for (direction, size, contestant), by_round in runs.items():
        bare = runs.get((direction, size, "bare"), {})
        rates = [r["pps"] for r in by_round.values()]
        pairs = [r["pps"] / bare[n]["pps"] for n, r in by_round.items() if n in bare]
        row = {"contestant": contestant, "direction": direction, "size": size, "median_pps": statistics.median(rates),
               "min_pps": min(rates), "max_pps": max(rates)}
        if pairs:
            row |= {"ratio": statistics.median(pairs), "min_ratio": min(pairs), "max_ratio": max(pairs)}
        # The kernel counts user mode by ticks: few fall into one short measurement, so all are added up.
        users = sum(r["user_share"] for r in by_round.values())
        if users:
            row["user_clocks"] = users / sum(rates) * report["machine"]["mhz"] * 1e6
        rows.append(row)
    return rows


def columns(report: dict) -> list[str]:
    return [str(size) if isinstance(size, str) else f"{size} B" for size in report["sizes"]]


def rows_of(report: dict, direction: str, cell) -> list[tuple[str, list[str]]]:
    found = {(r["contestant"], r["size"]): r for r in report["summary"] if r["direction"] == direction}
    return [(c["title"], [cell(found[c["key"], size]) if (c["key"], size) in found else "" for size in report["sizes"]])
            for c in report["contestants"]]


def rate(row: dict) -> str:
    """Millions a second, and half of the spread in percent."""
    spread = 50 * (row["max_pps"] - row["min_pps"]) / row["median_pps"]
    return f"{row['median_pps'] / 1e6:.2f} ±{spread:.0f}%"


def ratio(row: dict) -> str:
    return f"{row['ratio']:.2f}" if "ratio" in row else ""


def text(report: dict) -> list[str]:
    """The tables for a terminal."""
    lines = []

    def table(title: str, heads: list[str], rows: list[tuple[str, list[str]]]) -> None:
        lines.extend(["", title, f"  {'':<38}" + "".join(f"{head:>11}" for head in heads)])
        lines.extend(f"  {name:<38}" + "".join(f"{cell:>11}" for cell in cells) for name, cells in rows)

    for direction, name in NAMES.items():
        table(f"{name}: million packets a second, median of {report['rounds']} rounds (± half of the spread)",
              columns(report), rows_of(report, direction, rate))
        if any("ratio" in row for row in report["summary"]):
            table(f"{name}: against the bare AF_XDP forwarder of the same round", columns(report), rows_of(report, direction, ratio))
    lines.extend(["", *notes(report)])
    return lines


def notes(report: dict) -> list[str]:
    machine = report["machine"]
    kind = "virtual machine, " if machine["virtual"] else ""
    lines = [f"{machine['cpu']} ({kind}{machine['cpus']} CPUs), Linux {machine['kernel']}, commit {report['commit']}, {report['date']}",
             f"{report['devices']}; {report['flows']} flows; IMIX: {report['imix']}; rounds of {report['seconds']:g} s, in turns; source on CPU 0"]
    lines += [f"{c['title']}: {c['cores']}" for c in report["contestants"]]
    lines += [f"not measured: {m['title']}: {m['reason']}" for m in report["missing"].values()]
    return lines
