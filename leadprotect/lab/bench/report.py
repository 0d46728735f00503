"""What a benchmark leaves: a table on the terminal, a plot and the numbers in a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from leadprotect.lab.bench.access import Line


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
    }


def tables(lines: list[Line]) -> list[Table]:
    """One for each server, readable in 80 columns."""
    shown = []
    for server in dict.fromkeys(line.server for line in lines):
        one = Table("what", "against", "ratio", "figure", "p95 ms", title=server, title_justify="left")
        for line in lines:
            if line.server == server:
                figure = "" if line.figure is None else f"<= {line.figure:g}" + ("" if line.reached else " missed")
                one.add_row(line.what, line.base, f"{line.measured:.2f}", figure, f"{line.milliseconds:.3f}")
        shown.append(one)
    return shown


def save(lines: list[Line], latencies: dict[str, dict[str, list[float]]], folder: Path, *, leads: int) -> None:
    """Write access.json and access.png."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"machine": machine(), "leads": leads, "lines": [dataclasses.asdict(line) for line in lines]}
    (folder / "access.json").write_text(json.dumps(numbers, indent=2) + "\n")
    plot(latencies, folder / "access.png")


def plot(latencies: dict[str, dict[str, list[float]]], path: Path) -> None:
    """The share of calls that took at most so many milliseconds, one panel per server; needs the extra report."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - an extra

    figure, panels = plt.subplots(1, len(latencies), figsize=(5 * len(latencies), 4), sharey=True, squeeze=False)
    for panel, (server, scripts) in zip(panels[0], latencies.items(), strict=True):
        for script, times in scripts.items():
            ordered = sorted(times)
            panel.plot(ordered, [(n + 1) / len(ordered) for n in range(len(ordered))], label=script)
        panel.set(xscale="log", title=server, xlabel="milliseconds", ylim=(0, 1))
        panel.axvline(50, color="grey", linestyle=":", label="objective of the service")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="lower right")
    panels[0][0].set_ylabel("share of calls")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
