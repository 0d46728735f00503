"""``leadprotect repair``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo, verbatim
from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.doctor.repair import plan, repair
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leadprotect.doctor.finding import Symptom

_LOCK_TIMEOUT_MS = 2_000


@click.command("repair")
@click.option("--yes", is_flag=True, help="Run the SQL that was shown without asking.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object; asks nothing: without --yes, what would be run."
)
def repair_command(*, yes: bool, as_json: bool) -> None:
    """Put back what doctor finds changed among leadprotect's own objects, by the shipped text.

    Shows the SQL first, and asks. Row security, functions, policies, triggers, the view and grants are put back in
    one transaction; no row of anybody is touched. What is not leadprotect's is named, for a DBA to judge.
    Exit code 0: nothing is left to repair; 1: something is, or it was refused.
    """
    s = current()
    with connect(s, lock_timeout=_LOCK_TIMEOUT_MS) as conn, mapped_errors():
        todo = plan(conn, settings=s)
        if as_json:
            runs = yes and bool(todo.statements)
            left = repair(conn, todo, settings=s) if runs else todo.own
            others = plan(conn, settings=s).others if runs else todo.others
            click.echo(output.as_json({"statements": todo.statements, "run": yes, "left": left, "others": others}))
            sys.exit(bool(left))
        if not todo.statements:
            echo("nothing of leadprotect's own is to be repaired")
            _name(todo.others, "only a DBA can judge")
            return
        _name(todo.own, "to be repaired")
        verbatim("\n" + "\n".join(todo.statements) + "\n")
        if not (yes or click.confirm("Run this SQL?")):
            echo("nothing was changed")
            sys.exit(1)
        left = repair(conn, todo, settings=s)
        others = plan(conn, settings=s).others  # what stood there for want of ours is no longer to be judged
    echo("repaired" if not left else "not everything could be repaired")
    _name(left, "left")
    _name(others, "only a DBA can judge")
    sys.exit(bool(left))


def _name(found: Iterable[Symptom], title: str) -> None:
    for one in found:
        echo(f"{title}: {one.level}  {one.check}  {one.where}: {one.what}")
