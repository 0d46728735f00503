"""``leadprotect guard``."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leadprotect.cli.guard_fleet import guard_all
from leadprotect.cli.interrupts import on_signal
from leadprotect.cli.output import event
from leadprotect.cli.terminal import echo
from leadprotect.cli.words import Duration
from leadprotect.errors import InvalidRequest, LockUnavailable
from leadprotect.fleet.guards import EVENT
from leadprotect.gates import heeding, report, rollout
from leadprotect.gates.check import Gates, evaluate
from leadprotect.gates.guard import Guard, Told
from leadprotect.gates.machine import OnRollback, Patience
from leadprotect.settings import current, load, url
from leadprotect.settings.files import CONFIG

if TYPE_CHECKING:
    from leadprotect.gates.guard import Outcome
    from leadprotect.gates.record import Record
    from leadprotect.gates.verdict import Evaluation
    from leadprotect.settings import Settings

ANOTHER = 11
ANSWERS = [str(one) for one in OnRollback]
_SHORTEST_S = 1.0


@click.command("guard", options_metavar="[OPTIONS] --")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND...")
@click.option("--dry-run", is_flag=True, help="Ask the gates and say what would be done; run and change nothing.")
@click.option("--on-rollback", type=click.Choice(ANSWERS), default=ANSWERS[0], show_default=True,
              help="What to do when a gate says ROLLBACK: go back; pause; or cancel what runs, and pause.")  # fmt: skip
@click.option(
    "--interval",
    type=Duration(least=_SHORTEST_S, longest="15s"),
    default="6s",
    show_default=True,
    help="How often the gates are asked, 1s to 15s.",
)
@click.option(
    "--bake",
    type=Duration(longest="7 days"),
    default="11min",
    show_default=True,
    help="How long to watch after the last step.",
)
@click.option("--resume-after", type=click.IntRange(min=1), default=3, show_default=True,
              help="Good answers in a row before a paused rollout goes on.")  # fmt: skip
@click.option(
    "--blind",
    type=Duration(longest="7 days"),
    default="10min",
    show_default=True,
    help="How long the gates may be unknown, in all.",
)
@click.option(
    "--longest-pause",
    type=Duration(longest="7 days"),
    default="1h",
    show_default=True,
    help="How long one pause may last.",
)
@click.option("--flaps", type=click.IntRange(min=0), default=5, show_default=True, help="How many pauses there may be.")
@click.option("--report", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path),
              help="A page of the run, written anew while it goes on.")  # fmt: skip
@click.option("--serve", metavar="ADDRESS", help="The same page, live, for browsers of this machine: 127.0.0.1:0.")
@click.option("--fleet", is_flag=True, help="A guard for every database of [leadprotect.databases], side by side.")
@click.option("--canary", metavar="CODE|none", help="With --fleet: whose database goes first, to its end; none waits.")
@click.option("--together", is_flag=True, help="With --fleet: one that pauses or goes back takes the others along.")
@click.option("--workers", type=click.IntRange(1), help="With --fleet: databases at once.  [default: 8]")
@click.option("--heed", is_flag=True, hidden=True, help="One of a fleet: told on stdin what the others mean for it.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout instead of text on stderr.")
def guard_command(
    command: tuple[str, ...], *, file: Path | None, serve: str | None, as_json: bool, heed: bool, **options: Any
) -> None:
    """Watch a rollout: run it step by step while the gates are good, else pause or roll back.

    COMMAND is `alembic upgrade REVISION`, which is run one revision at a time, or `leadprotect backfill
    TERRITORY...`. The gates are those of `leadprotect gate check`. When one says ROLLBACK, what runs is cancelled,
    the backfill is paused, and the database goes back to where the run began. Ctrl-C and SIGTERM leave it paused.

    With --fleet each database has a guard of its own. The canary goes first, and the others begin when it was watched
    to its end; the exit code is the worst, from 0, 10, 11, 30, 1, 20 to 21. The same command again does what is left.

    Exit codes: 0 done and watched to the end; 1 refused, or the command failed; 2 wrong usage; 10 paused, a person
    decides; 11 another guard is at work; 20 rolled back and verified; 21 a rollback was refused or did not end,
    a human is needed; 30 the gates are unknown, or were not good at the start.
    """
    try:
        guarded = rollout.read_command(command)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
    of_fleet = {name: options.pop(name) for name in ("canary", "together", "workers")}
    if options.pop("fleet"):
        _use_file(guarded, serve)
        guard_all(_settings(guarded), command, file=file, as_json=as_json, **of_fleet, **options)
    _check_one(of_fleet)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    settings = _settings(guarded)
    server = report.PageServer(serve) if serve else None
    tell = partial(_tell, as_json=as_json)
    if server:
        tell(Told.now("guard", f"the page is at {server.url}"))
    others = heeding.Others() if heed else None
    made = Guard(
        guarded, settings, ask=others.asked_too(partial(_ask, settings)) if others else partial(_ask, settings),
        tell=tell, show=partial(_show, server, file, others),
        dry_run=options.pop("dry_run"), interval=options.pop("interval"),
        patience=_patience(**options),
    )  # fmt: skip
    on_signal(made.interrupt)
    if others:
        others.listen(made.interrupt)
    try:
        outcome = made.run()
    except LockUnavailable as error:
        echo(f"Error: {error}", err=True)
        sys.exit(ANOTHER)
    _say(outcome, as_json=as_json)
    if server:
        server.close()
    sys.exit(outcome.code)


def _use_file(guarded: rollout.Rollout, serve: str | None) -> None:
    """What goes back with the others reads the file of the command, too."""
    if serve:
        raise click.UsageError("--serve shows one guard; with --fleet use --report, which writes a page for each")
    if isinstance(guarded, rollout.Upgrade) and guarded.config.config_file_name:
        os.environ[CONFIG] = str(Path(guarded.config.config_file_name).absolute())


def _check_one(of_fleet: dict[str, Any]) -> None:
    if given := [f"--{name}" for name, value in of_fleet.items() if value]:
        raise click.UsageError(f"{given[0]} is for a rollout over all databases: --fleet")


def _settings(guarded: rollout.Rollout) -> Settings:
    """Those that the command itself will read."""
    if isinstance(guarded, rollout.Upgrade):
        return load(guarded.config)
    if guarded.ini:
        os.environ[CONFIG] = str(Path(guarded.ini).absolute())
        current.cache_clear()
    return current()


def _patience(**options: Any) -> Patience:
    return Patience(**options | {"on_rollback": OnRollback(options["on_rollback"])})


def _ask(settings: Settings, before: Evaluation | None) -> Evaluation:
    return evaluate(Gates(settings=settings), lambda: url(settings), before=before)


def _show(server: report.PageServer | None, file: Path | None, others: heeding.Others | None, record: Record) -> None:
    if others and (stands := others.changed(record)):
        with _one_at_a_time:
            click.echo(event(EVENT, stands))
    if server:
        server.show(record)
    if file:
        report.write(record, file)


_one_at_a_time = threading.Lock()


def _tell(told: Told, *, as_json: bool) -> None:
    with _one_at_a_time:
        if as_json:
            click.echo(event("said", told))
        else:
            echo(f"{told.at:%H:%M:%S}  {told.who:<8}  {told.what}", err=True)


def _say(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        click.echo(event("ended", outcome))
        return
    echo(f"{outcome.ended}: {outcome.why}", err=True)
    for line in outcome.following:
        echo(f"  {line}", err=True)
