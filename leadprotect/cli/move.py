"""``leadprotect move``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from leadprotect.access.arguments import as_user_id
from leadprotect.cli import output
from leadprotect.cli.owner import LEADS, _leads, _progress
from leadprotect.cli.terminal import echo
from leadprotect.errors import ConnectionUnusable, InvalidRequest, LeadProtectError
from leadprotect.fleet.move import AT_ONCE, MoveRun, cancel_moves, move, resume_moves
from leadprotect.settings import current
from leadprotect.settings.databases import ON, SECTION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadprotect.settings import Settings

_RESUMES = "what was begun is frozen on both sides until it ends: leadprotect move --resume"
_NAMED = 20
FILE = "--from-file"


@click.command("move")
@LEADS
@click.option("--to", metavar="CODE", help="The territory whose database they go to.")
@click.option("--from", "origin", metavar="CODE", help="Where they are.  [default: --on, or the only other territory]")
@click.option("--as", "actor", required=True, metavar="USER", help="Who does it: recorded beside the login.")
@click.option(
    FILE, "file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), metavar="PATH",
    help="More leads, one id a line; - is the standard input.",
)  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Every lead of the territory that they leave.")
@click.option("--set", "values", multiple=True, metavar="COLUMN=VALUE", help="What a column of the lead holds there.")
@click.option("--renumber", multiple=True, metavar="TABLE", help="One of lead_tables whose rows get new numbers there.")
@click.option("--correlation", metavar="ID", help="Stands in both audits.  [default: a new UUID]")
@click.option("--slice", "at_once", type=click.IntRange(1), default=AT_ONCE, show_default=True, help="Leads at a time.")
@click.option("--resume", "resumes", is_flag=True, help="End every hand-over that stands between the databases.")
@click.option("--cancel", "cancels", is_flag=True, help="Give leads that are on their way back to their owners.")
@click.option("--dry-run", is_flag=True, help="Do it on both sides, and roll back; what is denied is recorded.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def move_command(
    leads: tuple[str, ...], *, to: str | None, origin: str | None, actor: str, file: Path | None, every: bool,
    values: tuple[str, ...], renumber: tuple[str, ...], correlation: str | None, at_once: int, resumes: bool,
    cancels: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Move leads to the database of another territory; for managers of both.

    The databases are those of [leadprotect.databases]. Run again after a crash, it goes on with what it had begun.

    Exit codes: 0 all are there, 1 some are not, and each is named with why.
    """
    try:
        user = as_user_id(actor)
    except InvalidRequest as error:
        raise click.BadParameter(str(error), param_hint="--as") from None
    s, given = current(), _values(values)
    s = replace(s, databases=(*s.databases, *s.elsewhere), elsewhere=())  # --on names where they are, and not only that
    if resumes + cancels > 1 or (resumes and (leads or file or every or to)):
        raise click.UsageError("--resume takes what stands, and no lead; --cancel takes leads")
    try:
        with _progress() as tell:
            if cancels:
                done = cancel_moves(s, _leads(leads, file, FILE), actor=user)
            elif resumes:
                moved = resume_moves(
                    s, actor=user, values=given, renumber=renumber, at_once=at_once, tell=_counted(tell)
                )
            else:
                if to is None:
                    raise click.UsageError("--to CODE says where the leads go")
                named = _named(leads, file, every=every)
                moved = (
                    move(
                        s, named, to=to, origin=origin or _origin(s, to), actor=user, correlation_id=correlation,
                        values=given, renumber=renumber, at_once=at_once, dry_run=dry_run, tell=_counted(tell),
                    ),
                )  # fmt: skip
    except ConnectionUnusable as error:
        raise LeadProtectError(f"{error}\n{_RESUMES}") from None
    if cancels:
        click.echo(output.as_json({"cancelled": done})) if as_json else echo(f"{done:,} went back to their owners")
        return
    _say(moved, as_json=as_json)
    sys.exit(1 if any(one.refused for one in moved) else 0)


def _named(leads: tuple[str, ...], file: Path | None, *, every: bool) -> list[str] | None:
    if not every:
        return _leads(leads, file, FILE)
    if leads or file:
        raise click.UsageError("--all names the leads itself: leave out LEAD and --from-file")
    return None


def _counted(tell: Callable[[int, int], object]) -> Callable[[int, int | None], object]:
    return lambda done, total: tell(done, total or done)


def _values(given: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for one in given:
        column, equals, value = one.partition("=")
        if not equals or not column:
            raise click.BadParameter(f"{one!r} is not COLUMN=VALUE", param_hint="--set")
        found[column] = value
    return found


def _origin(s: Settings, to: str) -> str:
    """Where leads are that go to `to`, if nothing was said and it can be only one territory."""
    every = [code for one in s.databases for code in one.territories]
    if every and to not in every:
        raise click.BadParameter(f"{to!r} is in no database of [{SECTION}]: {', '.join(every)}", param_hint="--to")
    others = [code for code in every if code != to]
    if on := os.environ.get(ON):
        return on
    if len(others) == 1:
        return others[0]
    raise click.UsageError(f"--from CODE says where they are: one of {', '.join(others) or 'nothing'}")


def _say(moved: Sequence[MoveRun], *, as_json: bool) -> None:
    if as_json:
        click.echo(output.as_json({"moved": list(moved)}, indent=2))
        return
    if not moved:
        echo("nothing stands between the databases")
    for one in moved:
        verb = "would move" if one.dry_run else "moved"
        echo(
            f"{one.moved:,} lead{'s' * (one.moved != 1)} {verb} from {one.origin} to {one.to}; "
            f"correlation id {one.correlation_id}"
        )
        for each in one.refused[:_NAMED]:
            echo(f"  {each.lead_id}: {each.why}", err=True)
        if len(one.refused) > _NAMED:
            echo(f"  and {len(one.refused) - _NAMED:,} more; --json names all", err=True)
        if any(each.standing for each in one.refused):
            echo("  some stand still: leadprotect move --resume, or --cancel LEAD", err=True)
