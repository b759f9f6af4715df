"""What was measured, as medians, and as a table for the terminal and the README."""

from __future__ import annotations

import pathlib
import statistics

from bed import Trouble

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


def calm_summary(report: dict) -> list[dict]:
    """For every contestant and direction: medians of what was measured below saturation."""
    runs: dict[tuple, list[dict]] = {}
    for result in report["calm"]:
        runs.setdefault((result["direction"], result["contestant"]), []).append(result)
    rows = []
    for (direction, contestant), found in runs.items():
        def median(of, found=found):
            return statistics.median(of(r) for r in found)

        row = {"contestant": contestant, "direction": direction, "rounds": len(found), "lossless_pps": median(lambda r: r["lossless_pps"]),
               "source_bound": all(r["all_of_top"] for r in found)}
        for name in ("delay_ns", "idle_delay_ns"):
            row[name] = {share: median(lambda r, n=name, s=share: r[n][s]) for share in found[0][name]}
        if found[0]["idle_share"] is not None:
            row["idle_share"] = median(lambda r: r["idle_share"])
        rows.append(row)
    return rows


CALM_COLUMNS = ("Mpps", "p50 µs", "p99 µs", "p99.9 µs", "idle p50", "idle CPU", "user clk")


def calm_rows(report: dict, direction: str) -> list[tuple[str, list[str]]]:
    """64 bytes: the rate without loss, delays at half of it and from idle, and clocks in user mode per packet at saturation."""
    found = {r["contestant"]: r for r in report["calm_summary"] if r["direction"] == direction}
    clocks = {r["contestant"]: r.get("user_clocks") for r in report["summary"] if (r["direction"], r["size"]) == (direction, 64)}
    rows = []
    for contestant in report["contestants"]:
        row = found.get(contestant["key"])
        if not row:
            continue
        delay = row["delay_ns"]
        cells = [("≥" if row["source_bound"] else "") + f"{row['lossless_pps'] / 1e6:.2f}"]
        cells += [f"{delay[share] / 1e3:.1f}" for share in ("p50", "p99", "p999")]
        cells.append(f"{row['idle_delay_ns']['p50'] / 1e3:.0f}")
        cells.append(f"{100 * row['idle_share']:.1f} %" if "idle_share" in row else "")
        cells.append(f"{clocks[contestant['key']]:.0f}" if clocks.get(contestant["key"]) else "")
        rows.append((contestant["title"], cells))
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
        if not report["results"]:
            break
        table(f"{name}: million packets a second, median of {report['rounds']} rounds (± half of the spread)",
              columns(report), rows_of(report, direction, rate))
        if any("ratio" in row for row in report["summary"]):
            table(f"{name}: against the bare AF_XDP forwarder of the same round", columns(report), rows_of(report, direction, ratio))
    for direction, name in NAMES.items():
        rows = calm_rows(report, direction)
        if rows:
            table(f"{name}, 64 B: rate without loss, delay at half of it and from idle (µs), clocks in user mode per packet at saturation",
                  list(CALM_COLUMNS), rows)
    lines.extend(["", *notes(report)])
    return lines


def markdown(report: dict) -> str:
    """The tables for the README."""
    lines = []

    def table(heads: list[str], rows: list[tuple[str, list[str]]]) -> None:
        lines.extend(["", "| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)])
        lines.extend("| " + " | ".join([name, *cells]) + " |" for name, cells in rows)

    for direction, name in NAMES.items():
        table([f"{name}, Mpps (ratio)", *columns(report)], rows_of(report, direction, both))
    for direction, name in NAMES.items():
        rows = calm_rows(report, direction)
        if rows:
            table([f"{name}, 64 B", "without loss, Mpps", "p50 µs", "p99 µs", "p99.9 µs", "from idle, µs", "idle CPU", "user clocks"], rows)
    return "\n".join([*lines[1:], "", "  \n".join(notes(report))])


def both(row: dict) -> str:
    return f"{row['median_pps'] / 1e6:.2f}" + (f" ({row['ratio']:.2f})" if "ratio" in row else "")


BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def put_into(file: pathlib.Path, report: dict) -> None:
    """Replaces what stands between the two marks of a Markdown file."""
    words = file.read_text(encoding="utf-8")
    head, _, rest = words.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise Trouble(f"{file}: the lines {BEGIN} and {END} are not there")
    file.write_text(f"{head}{BEGIN}\n{markdown(report)}\n{END}{tail}", encoding="utf-8")


def notes(report: dict) -> list[str]:
    machine = report["machine"]
    kind = "virtual machine, " if machine["virtual"] else ""
    lines = [f"{machine['cpu']} ({kind}{machine['cpus']} CPUs), Linux {machine['kernel']}, commit {report['commit']}, {report['date']}",
             f"{report['devices']}; {report['flows']} flows; IMIX: {report['imix']}; rounds of {report['seconds']:g} s, in turns; source on CPU 0"]
    lines.append("; ".join(f"{c['title']}: {c['cores']}" for c in report["contestants"]))
    lines += [f"not measured: {m['title']}: {m['reason']}" for m in report["missing"].values()]
    return lines
