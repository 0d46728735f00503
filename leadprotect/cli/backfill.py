"""``leadprotect backfill``."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from leadprotect.backfill import Progress
from leadprotect.backfill import backfill as _backfill
from leadprotect.cli import main


@main.command()
@click.argument("territories", nargs=-1, required=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=20_000, show_default=True, help="Leads per chunk.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Sessions that work.")
def backfill(territories: tuple[str, ...], *, batch_size: int, workers: int) -> None:
    """Give every lead with a qualifying activity its owner, while the database is live."""
    console = Console(file=sys.stderr)
    with Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("backfill " + " ".join(territories), total=None, note="")

        def show(progress: Progress) -> None:
            note = f"{progress.rate:,.0f} leads/s, slices of {progress.slice_rows:,}"
            bar.update(task, completed=progress.scanned, total=progress.total or None, note=note)

        results = _backfill(None, territories, batch_size=batch_size, workers=workers, on_progress=show)
    for result in results:
        click.echo(f"{result.territory}: {result.scanned:,} leads scanned, {result.assigned:,} owners assigned")
