"""Saving over preference of every policy and zone, drawn from the benchmark's JSON file.

python -m bench._carbon_plot figures.json carbon-savings.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

COLOURS = {"TX": "#b3541e", "CA": "#d8a200", "SA": "#1b7f5c", "NL": "#2b5fa8", "GB": "#7a3b8f"}
SHOWN = {
    "SPROUT, published": "o",
    "classed 0.75": "s",
    "classed 0.75, predicted": "D",
    "budgeted 0.9, floor 0.8 a class": "v",
    "budgeted 0.9, pooled": "^",
}


def draw(report: Path, image: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figures = json.loads(report.read_text(encoding="utf-8"))
    points = [("SPROUT, published", zone, p["preference"], p["saving"]) for zone, p in figures["published"].items()]
    points += [(r["policy"], r["zone"], r["score"]["preference"], r["score"]["saving"]) for r in figures["rows"]]
    canvas, axes = pyplot.subplots(figsize=(7.5, 4.8), dpi=120)
    for policy, zone, preference, saving in points:
        if policy in SHOWN:
            axes.plot(preference, saving, SHOWN[policy], color=COLOURS[zone], markersize=7)
    axes.axvline(100.0, color="0.6", linewidth=0.8)
    axes.set_xlabel("preference, % of L0's (100: as good as the undirected answer)")
    axes.set_ylabel("carbon saved, % of L0's")
    axes.set_title("Directive policies on held-out prompts, 720 h of 2023, five grids", fontsize=10)
    marks = [Line2D([], [], color="0.3", marker=mark, linestyle="", label=name) for name, mark in SHOWN.items()]
    zones = [Line2D([], [], color=colour, marker="o", linestyle="", label=zone) for zone, colour in COLOURS.items()]
    axes.add_artist(axes.legend(handles=marks, loc="lower right", fontsize=8))
    axes.legend(handles=zones, loc="lower left", fontsize=8, ncols=5, columnspacing=0.8, handletextpad=0.1)
    axes.set_ylim(bottom=min(saving for _, _, _, saving in points) - 9.0)
    axes.grid(color="0.92")
    canvas.tight_layout()
    canvas.savefig(image)


def main(argv: Sequence[str]) -> int:
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    draw(Path(argv[0]), Path(argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
