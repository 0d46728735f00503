"""What a benchmark leaves: tables on the terminal, a plot and the numbers in a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadprotect.lab.bench.backfill import Measured, medians, without_samples
from leadprotect.lab.data import ACTIVITIES_PER_LEAD
from leadprotect.lab.rollouts import RELEASES, summaries
from leadprotect.lab.sheet import Sheet
from leadprotect.lab.traffic import RATE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from leadprotect.lab.bench.access import Access
    from leadprotect.lab.bench.comparison import Line
    from leadprotect.lab.bench.scale import Growth
    from leadprotect.lab.rollouts import Rollout, SimulatedRollout, Summary


PUBLISHED = Path("docs/benchmarks")
"""The figures that the documentation shows, in a checkout."""

SCALE_PAGE = """# Cost as it grows

`leadprotect bench scale COMMAND`: leads with five activities each, and a row of the audit for each lead that
has a territory, on the embedded PostgreSQL with 2 GB of shared buffers. Measured with: MACHINE.

Microseconds are CPU of the backend for one call; seconds are time on the wall of a machine that others share. What
is reckoned was not measured: what grows with the leads is taken so many times, what does not grow with them grows by as
much as in the last step, as a tree and the misses of a cache do.

TABLE

VERDICT
"""

ROLLOUT_PAGE = """# A rollout over many servers, simulated

`leadprotect bench rollout COMMAND`

Nothing here was measured: it is a simulation with a seed, and the same command gives the same page. LEADS leads
in SERVERS territories of different sizes, each on a server of its own; WORKERS servers are under way at once.
A server takes SECONDS s for a million leads, some a quarter more or less; one in LOST fails on its way, and goes on
after REPAIR minutes on average. A bad release shows on a server NOTICE minutes after its contract, as the gates need.
Then no other server begins contract, and all that have it go back. The others follow the canaries when these have
stood for BAKE minutes.

A server is *harmed* when it had contract of a release that it does not bear. Medians of RUNS rollouts; in brackets what
nineteen of twenty stay below.

TABLE

![Servers harmed by a bad release, with canaries and without](rollout.png)

{download}`Numbers <rollout.json>`
"""

RECKONED = (10, 100)
"""Times the most leads that were measured."""

P99_MS = 10.0
"""What the live writes must stay below."""


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
    }


def access_tables(measured: Access) -> list[Sheet]:
    """One for each server, and one of what a service sees there."""
    shown = [
        table
        for server in dict.fromkeys(line.server for line in measured.lines)
        for table in (
            _ratios(f"{server}: CPU of the backend", measured.lines, server),
            _ratios(f"{server}: CPU of client and backend, as a service calls", measured.clients, server),
        )
    ]
    if measured.counts:
        numbers = ("instructions", "times SELECT 1")
        counts = Sheet(("server", "what", *numbers), "Instructions", numbers)
        for one in measured.counts:
            counts.add(one.server, one.what, f"{one.instructions:,.0f}", f"{one.times:.2f}")
        shown.append(counts)
    return shown


def _ratios(title: str, lines: list[Line], server: str) -> Sheet:
    waited = any(line.p50 for line in lines)
    numbers = ("ratio", "quartiles", "figure", "us", *(["p50 us"] if waited else []))
    shown = Sheet(("what", "against", *numbers), title, numbers, folds=("what", "against"))
    for line in lines:
        if line.server == server:
            p50 = [f"{line.p50:,.0f}"] if waited else []
            figure = "" if line.figure is None else f"{line.figure:g}" + ("" if line.reached else " missed")
            spread = f"{line.low:.2f}-{line.high:.2f}"
            shown.add(line.what, line.base, f"{line.measured:.2f}", spread, figure, f"{line.microseconds:,.1f}", *p50)
    return shown


def save_access(measured: Access, folder: Path, *, leads: int) -> dict[str, Any]:
    """Write access.json and access.png; returns the numbers."""
    numbers = {"leads": leads, **{key: [*map(dataclasses.asdict, lines)] for key, lines in vars(measured).items()}}
    written = _write_numbers(numbers, folder / "access.json")
    chart_access(measured.lines, folder / "access.png")
    return written


def previous(name: str, folder: Path) -> dict[str, Any]:
    """The numbers that are compared with: the published ones, else those that `folder` holds; empty without any."""
    for file in (PUBLISHED / f"{name}.json", folder / f"{name}.json"):
        if file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
    return {}


def access_ratios(numbers: dict[str, Any]) -> dict[str, float]:
    """What was measured -> its ratio."""
    lines = (*numbers.get("lines", ()), *numbers.get("clients", ()))
    return {f"{line['server']}: {line['what']} / {line['base']}": line["measured"] for line in lines}


def backfill_ratios(numbers: dict[str, Any]) -> dict[str, float]:
    """Mode -> its time, as a multiple of the monolithic statement's."""
    return {line["mode"]: line["ratio"] for line in numbers.get("summary", ()) if line["ratio"] is not None}


def comparison_table(before: dict[str, float], now: dict[str, float]) -> Sheet:
    """Each ratio with what it was."""
    what, *numbers = ("against what was measured before", "before", "now", "change")
    shown = Sheet((what, *numbers), numbers=tuple(numbers), folds=(what,))
    for name, ratio in now.items():
        was = before.get(name)
        change = "" if not was else f"{100 * (ratio / was - 1):+.0f} %"
        shown.add(name, "new" if was is None else f"{was:.2f}", f"{ratio:.2f}", change)
    return shown


def unlike(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Why the two may differ though nothing has changed."""
    found = []
    if before.get("leads") != now.get("leads"):
        found.append(f"before, there were {before.get('leads', 0):,} leads, and now {now.get('leads', 0):,}")
    machines = [dict(one.get("machine", {})) for one in (before, now)]
    for one in machines:
        one.pop("measured_at", None)
    if machines[0] != machines[1]:
        found.append("before, another machine measured: " + ", ".join(map(str, machines[0].values())))
    return found


def chart_access(lines: list[Line], path: Path) -> None:
    """Each ratio that has a figure, as a share of it with its quartiles; a bar per server; needs the extra report."""
    servers = list(dict.fromkeys(line.server for line in lines))
    with_figure = [(line, line.figure) for line in lines if line.figure is not None]
    rows = list(dict.fromkeys((line.what, line.base) for line, _ in with_figure))[::-1]
    height = 0.8 / len(servers)
    with _figure(path, 1, 1, figsize=(13, 0.5 * len(rows) + 1.2)) as ((panel,),):
        for number, server in enumerate(servers):
            shown = [(line, figure) for line, figure in with_figure if line.server == server]
            at = [rows.index((line.what, line.base)) + (number - (len(servers) - 1) / 2) * height for line, _ in shown]
            spread = [
                [max(line.measured - line.low, 0) / figure for line, figure in shown],
                [max(line.high - line.measured, 0) / figure for line, figure in shown],
            ]
            bars = panel.barh(at, [line.measured / figure for line, figure in shown], height, xerr=spread, label=server)
            told = [f"{line.measured:.2f} of {figure:g}" for line, figure in shown]
            panel.bar_label(bars, told, padding=6, fontsize=8)
        panel.axvline(1, color="black", zorder=0)
        panel.set(xscale="log", title="times the base, as a share of the figure: beyond the line it is missed")
        panel.set_yticks(range(len(rows)), [f"{what} / {base}" for what, base in rows], fontsize=9)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.margins(x=0.15, y=0.01)
        panel.grid(visible=True, axis="x", alpha=0.3)
        panel.legend(loc="lower right")


def scale_table(counts: list[int], measured: list[Growth]) -> Sheet:
    """What each part costs at each number of leads, and at many times the most as it grew."""
    what, *numbers = _heads(counts)
    return Sheet((what, *numbers), "Scale", tuple(numbers), (what,), [*map(tuple, _scaled(counts, measured))])


def _heads(counts: list[int]) -> list[str]:
    reckoned = (f"{counts[-1] * times:,}, reckoned" for times in RECKONED)
    return ["what", *(f"{count:,}" for count in counts), *reckoned, "figure"]


def _scaled(counts: list[int], measured: list[Growth]) -> list[list[str]]:
    last = counts[-1] / counts[-2] if len(counts) > 1 else 1.0
    return [
        [
            f"{one.what}, {one.unit}",
            *(_short(value) for value in one.values),
            *(_short(one.reckoned(times, last)) for times in RECKONED),
            _verdict(one),
        ]
        for one in measured
    ]


def faster_than_the_leads(counts: list[int], measured: list[Growth]) -> list[str]:
    """What costs more for each lead the more there are, by a quarter and more; the clock on the wall sways by less."""
    last = counts[-1] / counts[-2] if len(counts) > 1 else 1.0
    return [one.what for one in measured if not one.more and one.step() > 1.25 * last]


def _verdict(one: Growth) -> str:
    if one.figure is None:
        return ""
    reached = one.values[-1] >= one.figure if one.more else one.values[-1] <= one.figure
    return f"{'>=' if one.more else '<='} {_short(one.figure)}" + ("" if reached else ", missed")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


def save_scale(counts: list[int], measured: list[Growth], folder: Path) -> dict[str, Any]:
    """Write scale.json, and the page of the documentation beside it; returns the numbers."""
    numbers = {"leads": counts, "parts": [*map(dataclasses.asdict, measured)]}
    written = _write_numbers(numbers, folder / "scale.json")
    heads = _heads(counts)
    rows = [heads, ["---"] * len(heads), *_scaled(counts, measured)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    said = {"COMMAND": " ".join(f"--leads {count}" for count in counts), "TABLE": table}
    faster = faster_than_the_leads(counts, measured)
    said["VERDICT"] = (
        f"Faster than the leads grew: {', '.join(faster)}." if faster else "Nothing grew faster than the leads."
    )
    said["MACHINE"] = ", ".join(f"{key} {value}" for key, value in written["machine"].items())
    page = SCALE_PAGE
    for name, value in said.items():
        page = page.replace(name, value)
    (folder / "scale").with_suffix(".md").write_text(page, encoding="utf-8")
    return written


def rollout_table(found: Sequence[Summary]) -> Sheet:
    """How long, and how many servers and leads are harmed."""
    (release, *numbers), rows = _rollouts(found)
    return Sheet((release, *numbers), "Rollout, simulated", tuple(numbers), (release,), [*map(tuple, rows)])


def _rollouts(found: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    heads = ["release", "canaries", "hours", "servers harmed", "at most", "leads harmed, million", "million lead hours"]
    rows = [
        [
            one.release,
            str(one.canary or "none"),
            f"{one.finished_s / 3600:.1f} ({one.finished_p95_s / 3600:.1f})",
            f"{one.harmed:g} ({one.harmed_p95:g})",
            str(one.most_harmed),
            f"{one.leads / 1e6:.1f} ({one.leads_p95 / 1e6:.1f})",
            f"{one.lead_hours / 1e6:.2f}",
        ]
        for one in found
    ]
    return heads, rows


def save_rollout(
    plan: Rollout, worlds: Mapping[tuple[str, int], list[SimulatedRollout]], folder: Path, *, command: str
) -> dict[str, Any]:
    """Write rollout.json, rollout.png and the page; returns the numbers."""
    found = summaries(worlds)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"command": command, "plan": dataclasses.asdict(plan), "summaries": [*map(dataclasses.asdict, found)]}
    (folder / "rollout.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (folder / "rollout").with_suffix(".md").write_text(rollout_page(plan, found, command), encoding="utf-8")
    _chart_rollout(worlds, folder / "rollout.png")
    return numbers


def rollout_page(plan: Rollout, found: Sequence[Summary], command: str) -> str:
    """The page of documentation, which says what was simulated by which command."""
    heads, rows = _rollouts(found)
    said = {
        "COMMAND": command,
        "LEADS": f"{plan.leads:,}",
        "SERVERS": str(plan.servers),
        "WORKERS": str(plan.workers),
        "SECONDS": f"{plan.seconds_per_million:g}",
        "LOST": f"{1 / plan.lost:g}" if plan.lost else "none",
        "REPAIR": f"{plan.repair / 60:g}",
        "NOTICE": f"{plan.notice / 60:g}",
        "BAKE": f"{plan.bake / 60:g}",
        "RUNS": f"{found[0].runs:,}",
        "TABLE": "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)),
    }
    page = ROLLOUT_PAGE
    for name, value in said.items():
        page = page.replace(name, value)
    return page


def _chart_rollout(worlds: Mapping[tuple[str, int], list[SimulatedRollout]], path: Path) -> None:
    """The share of rollouts in which at most so many servers were harmed; needs the extra report."""
    bad = [name for name, share in RELEASES.items() if share]
    with _figure(path, 1, len(bad), figsize=(5 * len(bad), 3.2), sharey=True) as panels:
        for panel, release in zip(panels[0], bad, strict=True):
            found = {canary: [one.harmed for one in each] for (name, canary), each in worlds.items() if name == release}
            most = range(max(map(max, found.values())) + 1)
            for canary, counts in found.items():
                shares = [sum(one <= count for one in counts) / len(counts) for count in most]
                panel.step(most, shares, where="post", label=f"{canary or 'no'} canar{'y' if canary == 1 else 'ies'}")
            panel.set(title=release, xlabel="servers harmed at most", ylim=(0, 1.02))
            panel.legend(fontsize="x-small", loc="lower right")
        panels[0][0].set_ylabel("share of rollouts")


def backfill_table(measured: list[Measured]) -> Sheet:
    """Seconds, and what the live writes met."""
    numbers = ("s", "ratio", "owners/s", "p99 ms", "longest", "failed")
    shown = Sheet(("mode", *numbers), "Backfill", numbers, folds=("mode",))
    for line in medians(measured):
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
        shown.add(
            line["mode"],
            f"{line['seconds']:.1f}",
            ratio,
            f"{line['owners_per_second']:,.0f}",
            f"{line['live_p99_ms']:.1f}",
            f"{line['live_longest_ms']:.0f}",
            f"{line['live_failed']:,}",
        )
    return shown


def save_backfill(measured: list[Measured], folder: Path, *, leads: int, name: str = "backfill") -> dict[str, Any]:
    """Write NAME.json and NAME.png; returns the numbers."""
    content: dict[str, Any] = {
        "leads": leads,
        "activities": leads * ACTIVITIES_PER_LEAD,
        "live_writes_per_second": RATE,
        "summary": medians(measured),
        "runs": without_samples(measured),
    }
    written = _write_numbers(content, folder / f"{name}.json")
    chart_backfill(measured, folder / f"{name}.png")
    return written


def chart_backfill(measured: list[Measured], path: Path) -> None:
    """Throughput over time with the live p99 of each half second on the same axis; needs the extra report."""
    last = {found.mode: found for found in measured if found.mode != "no backfill"}
    end = max(found.seconds for found in last.values())
    with _figure(path, len(last), 1, figsize=(9, 2.3 * len(last)), sharex=True) as panels:
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


def save_numbers(name: str, numbers: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write NAME.json, with the machine that measured; returns the numbers."""
    return _write_numbers(numbers, folder / f"{name}.json")


def _write_numbers(numbers: dict[str, Any], file: Path) -> dict[str, Any]:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": machine(), **numbers}
    file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return written


@contextmanager
def _figure(path: Path, rows: int, columns: int, **how: Any) -> Iterator[Any]:
    """Rows of panels to draw on, which are written to `path`."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - an extra

    figure, panels = plt.subplots(rows, columns, squeeze=False, **how)
    yield panels
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
