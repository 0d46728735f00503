"""``leadprotect bench``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group("bench")
def bench_group() -> None:
    """Measure on servers of its own: the embedded one, and every installed PostgreSQL from 15 up."""


@bench_group.command("access")
@click.option(
    "--leads", type=click.IntRange(min=10_000), default=1_000_000, show_default=True, help="Leads to generate."
)
@click.option("--seconds", type=click.IntRange(min=1), default=5, show_default=True, help="Of each pgbench run.")
@click.option("--output", type=FOLDER, default=Path("docs/benchmarks"), show_default=True, help="For plot and numbers.")
def access_command(leads: int, seconds: int, output: Path) -> None:
    """Access checks against SELECT 1, a plain INSERT and the unprotected query."""
    from leadprotect.lab.bench import access as bench_access  # noqa: PLC0415 - the other commands need no extra
    from leadprotect.lab.bench import report, servers  # noqa: PLC0415

    console = Console(highlight=False)
    lines, latencies = [], {}
    for start in (*(servers.system(major) for major in servers.installed()), servers.embedded()):
        with start as server:
            found, times = bench_access.access(server, leads=leads, seconds=seconds, say=console.print)
            lines += found
            latencies[f"PostgreSQL {server.major}"] = times
    for table in report.tables(lines):
        console.print(table)
    report.save(lines, latencies, output, leads=leads)
    console.print(f"plot and numbers are in {output}")


@bench_group.command("backfill")
@click.option(
    "--leads",
    type=click.IntRange(min=1000),
    default=1_000_000,
    show_default=True,
    help="Leads to generate, times 5 activities.",
)
@click.option("--scale", type=click.FloatRange(min=0.001), default=1.0, help="Times so many.  [default: 1]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Every mode runs so often.")
@click.option("--output", type=FOLDER, default=Path("docs/benchmarks"), show_default=True, help="For plot and numbers.")
def backfill_command(leads: int, scale: float, rounds: int, output: Path) -> None:
    """The backfill against one monolithic INSERT..SELECT, both under live traffic."""
    from leadprotect.lab.bench import backfill as bench_backfill  # noqa: PLC0415 - the other commands need no extra
    from leadprotect.lab.bench import chart, servers  # noqa: PLC0415

    console = Console(highlight=False)
    count = round(leads * scale)
    with servers.embedded() as server:
        measured = bench_backfill.backfill(server, leads=count, rounds=rounds, say=console.print)
    console.print(chart.table(measured))
    chart.save(measured, output, leads=count, name="backfill" if scale == 1.0 else f"backfill_{scale:g}x")
    console.print(f"plot and numbers are in {output}")
