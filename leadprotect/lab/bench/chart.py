"""Table, plot and numbers of the backfill's benchmark."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from rich.table import Table

from leadprotect.lab.bench.backfill import ACTIVITIES, RATE, Measured, numbers, summary
from leadprotect.lab.bench.report import machine

if TYPE_CHECKING:
    from pathlib import Path

P99_MS = 10.0
"""What the live writes must stay below."""


def table(measured: list[Measured]) -> Table:
    """Readable in 80 columns."""
    shown = Table("", "s", "ratio", "owners/s", "p99 ms", "longest", "failed", title="Backfill", title_justify="left")
    for line in summary(measured):
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
        shown.add_row(
            line["mode"],
            f"{line['seconds']:.1f}",
            ratio,
            f"{line['owners_per_second']:,.0f}",
            f"{line['live_p99_ms']:.1f}",
            f"{line['live_longest_ms']:.0f}",
            f"{line['live_failed']:,}",
        )
    return shown


def save(measured: list[Measured], folder: Path, *, leads: int, name: str = "backfill") -> None:
    """Write NAME.json and NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "machine": machine(),
        "leads": leads,
        "activities": leads * ACTIVITIES,
        "live_writes_per_second": RATE,
        "summary": summary(measured),
        "runs": numbers(measured),
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    plot(measured, folder / f"{name}.png")


def plot(measured: list[Measured], path: Path) -> None:
    """Throughput over time with the live p99 of each half second on the same axis; needs the extra report."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - an extra

    last = {found.mode: found for found in measured if found.mode != "no backfill"}
    end = max(found.seconds for found in last.values())
    figure, panels = plt.subplots(len(last), 1, figsize=(9, 2.3 * len(last)), sharex=True, squeeze=False)
    for (panel,), found in zip(panels, last.values(), strict=True):
        times, rates = _rates(found.owners_over_time)
        panel.fill_between(times, rates, color="tab:blue", alpha=0.4, label="owners a second")
        panel.set(title=f"{found.mode}: {found.seconds:.1f} s", ylabel="owners / s", xlim=(0, end), ylim=(0, None))
        live = panel.twinx()
        live.plot(*_p99(found.writes_over_time), color="tab:red", linewidth=1, label="live p99, ms")
        live.axhline(P99_MS, color="grey", linestyle=":", label=f"{P99_MS:g} ms")
        live.set(yscale="log", ylabel="live p99, ms", ylim=(0.5, 2000))
        lines = [one for axis in (panel, live) for one in axis.get_legend_handles_labels()[0]]
        panel.legend(lines, [line.get_label() for line in lines], fontsize="x-small", loc="upper right")
    panels[-1][0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _rates(samples: list[tuple[float, float]], window: int = 2) -> tuple[list[float], list[float]]:
    pairs = list(zip(samples, samples[window:], strict=False))
    return [b[0] for _, b in pairs], [max((b[1] - a[1]) / (b[0] - a[0]), 0) for a, b in pairs]


def _p99(writes: list[tuple[float, float]], width: float = 0.5) -> tuple[list[float], list[float]]:
    buckets: dict[int, list[float]] = {}
    for at, ms in writes:
        buckets.setdefault(int(at / width), []).append(ms)
    chosen = sorted((number, times) for number, times in buckets.items() if len(times) > 1)
    return [number * width for number, _ in chosen], [statistics.quantiles(times, n=100)[98] for _, times in chosen]
