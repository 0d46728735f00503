"""``leadprotect guard --fleet``: a guard for every database of the settings."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from leadprotect.cli import output
from leadprotect.cli.interrupts import on_signal
from leadprotect.cli.terminal import echo, show_table
from leadprotect.fleet.guards import PLACE, FleetGuard
from leadprotect.gates.machine import ENDS, OnRollback

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from leadprotect.fleet.guards import FleetOutcome, Heard
    from leadprotect.settings import Settings


def guard_all(
    settings: Settings,
    command: Sequence[str],
    *,
    canary: str | None,
    together: bool,
    workers: int | None,
    file: Path | None,
    as_json: bool,
    **options: Any,
) -> NoReturn:
    """A guard for each database, with these options of its own, and a row for each at the end."""
    if canary is None:
        raise click.UsageError("--fleet: say whose database goes first: --canary CODE; or none: --canary none")
    if settings.elsewhere:
        raise click.UsageError("--on means one database, and --fleet all of them")
    width = max((len(one.name) for one in settings.databases), default=0)
    guards = FleetGuard(
        settings, (*_as_given(options, file), "--", *command), canary=None if canary == "none" else canary,
        workers=workers, together=together, goes_back=options["on_rollback"] == OnRollback.DOWNGRADE,
        dry_run=options["dry_run"], tell=partial(_tell, width=width, as_json=as_json),
    )  # fmt: skip
    on_signal(guards.interrupt)
    found = guards.run()
    if as_json:
        click.echo(output.event("fleet", found))
    else:
        _show_guards(found)
    sys.exit(found.exit_code)


def _as_given(options: dict[str, Any], file: Path | None) -> Iterator[str]:
    """The options of a guard as words; a page is named after its territories."""
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            yield option
        elif value is not False:
            yield from (option, f"{value}s" if isinstance(value, float) else str(value))
    if file:
        yield from ("--report", str(file.with_stem(f"{file.stem}-{PLACE}")))


def _tell(heard: Heard, *, width: int, as_json: bool) -> None:
    if as_json:
        said = heard.event or {"event": "said", "what": heard.line}
        click.echo(output.as_json({**said, "database": heard.database.split("+")}))
        return
    given = heard.event
    if given.get("event") == "said":
        lines = [f"{given['at'][11:19]}  {given['who']:<8}  {given['what']}"]
    elif given.get("event") == "ended":
        lines = [
            f"{ENDS[given['code']].replace('_', ' ')}: {given['why']}",
            *(f"  {line}" for line in given["following"]),
        ]
    else:
        lines = [heard.line]
    for line in lines:
        echo(f"{heard.database:{width}} | {line}", err=True)


def _show_guards(found: FleetOutcome) -> None:
    rows = [
        (" ".join(one.territories), one.ended, "" if one.exit_code is None else one.exit_code, one.revision, one.why)
        for one in found.databases
    ]
    echo("\nguard --fleet")
    show_table(
        ("database", "ended", "exit code", "revision", "why"), rows, numbers=("exit code",), folds=("ended", "why")
    )
