"""``leadprotect guard``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leadprotect.cli.interrupts import SIGNALS
from leadprotect.cli.output import event
from leadprotect.cli.terminal import echo
from leadprotect.cli.words import Duration
from leadprotect.errors import InvalidRequest, LockUnavailable
from leadprotect.gates import report, rollout
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
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout instead of text on stderr.")
def guard_command(command: tuple[str, ...], *, file: Path | None, serve: str | None, **options: Any) -> None:
    """Watch a rollout: run it step by step while the gates are good, else pause or roll back.

    COMMAND is `alembic upgrade REVISION`, which is run one revision at a time, or `leadprotect backfill
    TERRITORY...`. The gates are those of `leadprotect gate check`. When one says ROLLBACK, what runs is cancelled,
    the backfill is paused, and the database goes back to where the run began. Ctrl-C and SIGTERM leave it paused.

    Exit codes: 0 done and watched to the end; 1 refused, or the command failed; 2 wrong usage; 10 paused, a person
    decides; 11 another guard is at work; 20 rolled back and verified; 21 a rollback was refused or did not end,
    a human is needed; 30 the gates are unknown, or were not good at the start.
    """
    as_json = options.pop("as_json")
    try:
        guarded = rollout.read_command(command)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    settings = _settings(guarded)
    server = report.PageServer(serve) if serve else None
    tell = partial(_tell, as_json=as_json)
    if server:
        tell(Told.now("guard", f"the page is at {server.url}"))
    made = Guard(
        guarded, settings, ask=partial(_ask, settings), tell=tell, show=partial(_show, server, file),
        dry_run=options.pop("dry_run"), interval=options.pop("interval"),
        patience=_patience(**options),
    )  # fmt: skip
    _listen(made)
    try:
        outcome = made.run()
    except LockUnavailable as error:
        echo(f"Error: {error}", err=True)
        sys.exit(ANOTHER)
    _say(outcome, as_json=as_json)
    if server:
        server.close()
    sys.exit(outcome.code)


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


def _show(server: report.PageServer | None, file: Path | None, record: Record) -> None:
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


def _listen(made: Guard) -> None:
    """A signal is one more thing that happens: what runs is stopped in good order, and what is half done is said."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda which, _frame: made.interrupt(signal.Signals(which).name))
