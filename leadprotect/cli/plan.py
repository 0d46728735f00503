"""``leadprotect plan``."""

from __future__ import annotations

import shutil
import sys
import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo, pasted, remedy_lines
from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import InvalidRequest
from leadprotect.planning.losses import EVERYBODY
from leadprotect.planning.plan import DeployPlan, plan_deploy
from leadprotect.planning.sheet import lasting, sheet, size
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leadprotect.planning.steps import PendingRevision

_LOCK_TIMEOUT_MS = 2_000
_WIDEST = 120


@click.command("plan")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--html", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write a page beside the text.")
def plan_command(*, as_json: bool, file: Path | None) -> None:
    """Say what `alembic upgrade head` would do to this database, before every deploy; reads only.

    Revisions with their locks, time, disk and WAL; the gate; who would lose what at contract, with what helps;
    the backfill; who is in the way now.

    Exit codes: 0 it would go through, or there is nothing to do; 3 it would stop at the gate; 1 it would be refused.
    """
    s = current()
    with connect(s, lock_timeout=_LOCK_TIMEOUT_MS) as conn, mapped_errors():
        found = plan_deploy(conn, settings=s)
    if file:
        try:
            file.write_text(sheet(found), encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"--html: {file} can't be written to ({error.strerror})") from None
    if as_json:
        more = {"exit_code": found.exit_code, "seconds": found.seconds}
        click.echo(output.as_json(output.fields_of(found) | more, indent=2))
    else:
        _show(found)
    sys.exit(found.exit_code)


def _show(found: DeployPlan) -> None:
    at = found.revision or "none"
    _say(found.verdict)
    _say(f"database  {found.database} as {found.login}, {found.server}", "", " " * 10)
    _say(f"revision  {at} ({'the head' if at == found.head else f'head is {found.head}'})", "", " " * 10)
    _refused(found)
    _steps(found)
    _conditions(found)
    _losses(found)
    _backfill(found)
    _obstacles(found)
    if found.lacking:
        _title("gone or changed, although the version table says it is there")
        _list(found.lacking)
        _command("leadprotect status")
    if found.unseen:
        _title("not seen by this login")
        _list(found.unseen)


def _refused(found: DeployPlan) -> None:
    if found.refusals:
        _title("would be refused")
        _list(found.refusals)
    if found.statements:
        _title("a DBA can run")
        for statement in found.statements:
            _command(statement)


def _steps(found: DeployPlan) -> None:
    if not found.steps:
        return
    total = f"about {lasting(found.seconds)}" if found.seconds is not None else "not all measured"
    applied = f"{total} for those that it would apply" if found.applies else "none of them would be applied now"
    _title(f"revisions ({applied})")
    kinds = groupby(
        found.steps, key=lambda step: step.revision if step.locks else (step.phase, step.revision in found.applies)
    )
    for _, several in kinds:
        _step(found, list(several))
    _title("tables that they touch")
    for table in found.tables:
        counted = "not counted: ANALYZE it" if table.rows is None else f"about {table.rows:,} rows"
        _say(f"{table.name}  {counted}, {size(table.bytes)}, indexes {size(table.index_bytes)}", "  ", "      ")


def _step(found: DeployPlan, steps: list[PendingRevision]) -> None:
    first, last = steps[0], steps[-1]
    held = "" if first.revision in found.applies else "  waits" if first.asks_gate else ""
    seconds = [step.seconds for step in steps]
    took = "not measured" if None in seconds else lasting(sum(one for one in seconds if one is not None))
    disk, wal = sum(step.disk_bytes for step in steps), sum(step.wal_bytes for step in steps)
    name = first.revision if first is last else f"{first.revision} to {last.revision} ({len(steps)})"
    _say(f"{name}{held}", "  ", "    ")
    _say(f"{took}, {size(disk)} of disk, {size(wal)} of WAL", "      ")
    for lock in first.locks:
        _say(f"{lock.mode} on {lock.table}: stops {lock.stops}", "      ")
    if not first.locks:
        echo("      no lock on your tables that stops anybody")
    if "measured" in first.how:
        _say(first.how, "      ")


def _conditions(found: DeployPlan) -> None:
    if not found.conditions:
        return
    _title("gate of contract" if found.gate_asked else "gate of contract, as far as it can be foreseen")
    for condition in found.conditions:
        _say(f"{'yes' if condition.met else 'NO '}  {condition.name}: {condition.detail}", "  ", "       ")
        # who would lose what follows login by login, each with its remedy
        told = not found.gate_asked and condition.name in {loss.condition for loss in found.losses}
        if not condition.met and condition.remedy and not told:
            _command(condition.remedy, "       ")


def _losses(found: DeployPlan) -> None:
    if not found.losses:
        return
    _title("who would lose what at contract")
    if found.phase == "none":
        _say("what is granted here exists once the first revisions are applied", "  ")
    ordered = sorted(found.losses, key=lambda loss: (loss.login is None, loss.login or "", loss.condition is None))
    for login, several in groupby(ordered, key=lambda loss: loss.login):
        echo(f"  {login or 'everybody ' + EVERYBODY}")
        told: set[str | None] = set()
        for loss in several:
            _say(f"{loss.kind}: {loss.what}{' (closes the gate)' if loss.condition else ''}", "    ", "      ")
            if loss.remedy and loss.remedy not in told:
                _command(loss.remedy, "      ")
            told.add(loss.remedy)


def _backfill(found: DeployPlan) -> None:
    if not found.backfill:
        return
    _title("backfill")
    for one in found.backfill:
        bound = f"from a sample of {one.sampled:,}" if one.sampled else "at most, from the catalog"
        _say(
            f"{one.territory}: {one.assignable:,} of {one.leads:,} leads get an owner, about {lasting(one.seconds)}, "
            f"{size(one.wal_bytes)} of WAL ({bound})",
            "  ",
        )


def _obstacles(found: DeployPlan) -> None:
    if not found.obstacles:
        return
    _title("in the way now")
    for one in found.obstacles:
        who = f"pid {one.pid} ({one.application or 'without application_name'}" if one.pid else ""
        age = f"transaction {lasting(one.age)} old" if one.age is not None else ""
        about = f"{who}{', ' + age if age else ''}) " if who else f"({age}) " if age else ""
        _say(f"{about}{one.what}", "  ", "    ")
        _command(one.remedy, "    ")


def _title(text: str) -> None:
    echo(f"\n{text}")


def _list(lines: Iterable[str]) -> None:
    for line in lines:
        _say(f"- {line}", "  ", "    ")


def _say(text: str, indent: str = "", further: str | None = None) -> None:
    """Prose, folded at the width of the terminal; words stay whole, and so does what is to be run, in a line below."""
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    rest = indent if further is None else further
    for step in remedy_lines(text):
        echo(indent + step if pasted(step) else textwrap.fill(
            step, width, initial_indent=indent, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        ))  # fmt: skip
        indent = rest


def _command(text: str, indent: str = "    ") -> None:
    """What is to be pasted: each statement on a line of its own, and never folded by us."""
    for line in text.replace("; ", ";\n").splitlines():
        echo(f"{indent}{line}")
