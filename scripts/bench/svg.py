"""The chart: rates at saturation by frame length, a panel per direction. Plain SVG that follows the reader's light or dark."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

import table

WIDTH, PANEL, LEFT, RIGHT = 960, 230, 56, 16
TOP, GAP, FOOT = 84, 64, 64
# Told apart in light and dark, and by those who see no red or green (after Okabe and Ito).
COLOURS = {"greyhound": "#0072b2", "bare": "#8a8f98", "ovs": "#e69f00", "tc": "#009e73", "kernel": "#cc79a7", "xdp": "#56b4e9"}
STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-size: 16px; font-weight: 600 }
    .small { font-size: 12px; fill: #57606a }
    .grid { stroke: #d0d7de }
    .whisker { stroke: #24292f }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .small { fill: #9198a1 }
      .grid { stroke: #3d444d }
      .whisker { stroke: #e6edf3 }
    }
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def ceiling(most: float) -> tuple[float, float]:
    """The top of the scale above `most`, and the distance of its lines: 1, 2 or 5 times a power of ten, at most six lines."""
    power = 10 ** math.floor(math.log10(most / 5))
    step = next(power * n for n in (1, 2, 5, 10) if most / (power * n) <= 6)
    return math.ceil(most / step) * step, step


def legend(report: dict) -> list[str]:
    drawn, x, y = [], LEFT, 44
    for contestant in report["contestants"]:
        width = 24 + 7 * len(contestant["title"])
        if x + width > WIDTH - RIGHT:
            x, y = LEFT, y + 20
        drawn.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="2" fill="{COLOURS[contestant["key"]]}"/>')
        drawn.append(text(x + 18, y, contestant["title"], "small"))
        x += width
    return drawn


def panel(report: dict, direction: str, top: float, most: float, step: float) -> list[str]:
    """One direction: a group of bars for each length, whiskers from the least to the largest round."""
    def height(pps: float) -> float:
        return top + PANEL * (1 - pps / 1e6 / most)

    drawn = [text(LEFT, top - 12, f"{table.NAMES[direction]}, million packets a second")]
    for n in range(round(most / step) + 1):
        y = height(n * step * 1e6)
        drawn += [line(LEFT, y, WIDTH - RIGHT, y, "grid"), text(LEFT - 8, y + 4, f"{n * step:g}", "small", "end")]
    found = {(r["contestant"], r["size"]): r for r in report["summary"] if r["direction"] == direction}
    group = (WIDTH - LEFT - RIGHT) / len(report["sizes"])
    bar = min(28.0, 0.84 * group / len(report["contestants"]))
    for at, (size, label) in enumerate(zip(report["sizes"], table.columns(report))):
        middle = LEFT + group * (at + 0.5)
        drawn.append(text(middle, top + PANEL + 18, label, "small", "middle"))
        for n, contestant in enumerate(report["contestants"]):
            row = found.get((contestant["key"], size))
            if row:
                x = middle + bar * (n - len(report["contestants"]) / 2)
                y = height(row["median_pps"])
                words = escape(f"{contestant['title']}, {label}: {row['median_pps'] / 1e6:.2f} Mpps")
                drawn.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" height="{top + PANEL - y:.1f}" rx="1.5" '
                             f'fill="{COLOURS[contestant["key"]]}"><title>{words}</title></rect>')
                drawn.append(line(x + bar / 2 - 1, height(row["max_pps"]), x + bar / 2 - 1, height(row["min_pps"]), "whisker"))
    return drawn


def chart(report: dict) -> str:
    most, step = ceiling(max(row["max_pps"] for row in report["summary"]) / 1e6)
    height = TOP + 2 * PANEL + GAP + FOOT
    machine = report["machine"]
    kind = "virtual machine, " if machine["virtual"] else ""
    body = [text(LEFT, 22, f"GRE on {report['devices']}: bars are medians of {report['rounds']} rounds, lines reach from the least to the largest",
                 "title"), *legend(report)]
    for n, direction in enumerate(table.NAMES):
        body += panel(report, direction, TOP + n * (PANEL + GAP) + 16, most, step)
    body.append(text(LEFT, height - 4, f"{machine['cpu']} ({kind}{machine['cpus']} CPUs), Linux {machine['kernel']}, commit {report['commit']}, "
                     f"{report['date']}; {report['flows']} flows; IMIX: {report['imix']}", "small"))
    lines = "\n".join(f"  {one}" for one in body)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
            f"  <style>{STYLE}  </style>\n{lines}\n</svg>\n")
