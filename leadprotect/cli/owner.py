"""``leadprotect owner``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leadprotect.access.arguments import as_lead_id
from leadprotect.access.bulk import change_owners, transfer_all
from leadprotect.access.owners import Owned, owned
from leadprotect.cli import output
from leadprotect.cli.acting import TERRITORY, changes, reading, transaction
from leadprotect.cli.terminal import echo
from leadprotect.database.connection import connect
from leadprotect.errors import InvalidRequest, LeadProtectError
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tell = Callable[[int, int], object]

LEADS = click.argument("leads", nargs=-1, metavar="[LEAD]...")
FILE = click.option(
    "--file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), metavar="PATH",
    help="More leads, one id a line; - is the standard input.",
)  # fmt: skip
TO = click.option("--to", "new_owner", metavar="USER", required=True, help="The new owner.")
SLICE = click.option(
    "--slice", "at_once", type=click.IntRange(min=1), metavar="N",
    help="Commit after so many leads.  [default: all in one transaction]",
)  # fmt: skip


@click.group("owner")
def owner_group() -> None:
    """Who owns leads; assign, transfer and release them."""


@owner_group.command("show")
@LEADS
@FILE
@TERRITORY
@click.option("--json", "as_text", is_flag=True, help="A JSON array instead of text.")
def show_command(leads: tuple[str, ...], *, file: Path | None, territory: str, as_text: bool) -> None:
    """Show who owns leads, since when, by whom, and with whom they are shared; for managers and auditors."""
    asked = _leads(leads, file)
    with connect(current()) as conn, reading(conn, territory):
        found = owned(conn, asked)
    if as_text:
        click.echo(output.as_json(list(found), indent=2))
    else:
        echo("\n".join(_told(one, territory) for one in found))
    sys.exit(0 if all(one.here for one in found) else 1)


@owner_group.command("assign")
@LEADS
@FILE
@TO
@changes
@SLICE
def assign_command(leads: tuple[str, ...], *, file: Path | None, new_owner: str, **how: Any) -> None:
    """Give leads to a user, whoever owns them now; for managers of the territory."""
    _change("assign", _leads(leads, file), new_owner, **how)


@owner_group.command("transfer")
@LEADS
@FILE
@click.option("--all-of", metavar="USER", help="All leads that this user owns in the territory, instead of named ones.")
@TO
@changes
@SLICE
def transfer_command(
    leads: tuple[str, ...], *, file: Path | None, all_of: str | None, new_owner: str, **how: Any
) -> None:
    """Give owned leads to a user; for managers of the territory. An edit under way is waited for."""
    if all_of is None:
        _change("transfer", _leads(leads, file), new_owner, **how)
    elif leads or file:
        raise click.UsageError("--all-of names the leads itself: leave out LEAD and --file")
    else:
        _hand_over(all_of, new_owner, **how)


@owner_group.command("release")
@LEADS
@FILE
@changes
@SLICE
def release_command(leads: tuple[str, ...], *, file: Path | None, **how: Any) -> None:
    """Take leads from their owner, so that nobody owns them; no backfill gives them back."""
    _change("release", _leads(leads, file), None, **how)


def _change(
    change: str, leads: list[Any], new_owner: str | None,
    *, territory: str, actor: str, note: str | None, dry_run: bool, at_once: int | None, as_json: bool,
) -> None:  # fmt: skip
    size = len(leads) if dry_run or at_once is None else at_once
    done = 0
    with connect(current()) as conn, _progress() as tell:
        for first in range(0, len(leads), size):
            part = leads[first : first + size]
            with _part(done), transaction(conn, actor, territory, dry_run=dry_run):
                changed = change_owners(
                    conn, part, change, new_owner, note=note,
                    progress=_beyond(done, tell, len(leads)),
                )  # fmt: skip
            done += len(changed)
    _say(done, new_owner, territory, dry_run=dry_run, as_json=as_json)


def _hand_over(
    from_user: str, new_owner: str,
    *, territory: str, actor: str, note: str | None, dry_run: bool, at_once: int | None, as_json: bool,
) -> None:  # fmt: skip
    limit = None if dry_run else at_once
    done, last = 0, -1
    with connect(current()) as conn, _progress() as tell:
        while last and (limit or last < 0):
            with _part(done), transaction(conn, actor, territory, dry_run=dry_run):
                last = transfer_all(
                    conn, from_user, new_owner, note=note, limit=limit,
                    progress=_beyond(done, tell),
                )  # fmt: skip
            done += last
    _say(done, new_owner, territory, dry_run=dry_run, as_json=as_json)


@contextmanager
def _part(done: int) -> Iterator[None]:
    """Say what stays where a later slice fails."""
    try:
        yield
    except LeadProtectError as error:
        if not done:
            raise
        raise LeadProtectError(f"{error}\n{done:,} leads were done before, and stay so") from None


def _beyond(done: int, tell: Tell, total: int | None = None) -> Tell:
    """Tell of a slice what is done in all; the whole is `total`, or what is known of it now."""
    return lambda so_far, of_slice: tell(done + so_far, total or done + of_slice)


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal, once there is more than one step to wait for."""
    with click.progressbar(length=0, file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True) as bar:

        def tell(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield tell


def _say(done: int, new_owner: str | None, territory: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        told = {"changed": done, "owner": new_owner, "territory": territory, "dry_run": dry_run}
        click.echo(output.as_json(told))
        return
    verb = "belongs" if done == 1 else "belong"
    said = f"{done:,} lead{'s' * (done != 1)} of {territory} now {verb} to {new_owner or 'nobody'}"
    echo(f"dry run, rolled back: {said}" if dry_run else said)


def _leads(given: tuple[str, ...], file: Path | None, option: str = "--file") -> list[Any]:
    """Ids of the arguments and of the file that `option` names, each once, however it is written."""
    leads = {as_lead_id(lead): None for lead in given}
    for number, line in enumerate(_lines(file, option) if file else (), 1):
        try:
            leads |= {as_lead_id(line): None} if line and not line.startswith("#") else {}
        except InvalidRequest as error:
            raise InvalidRequest(f"{file}, line {number}: {error}") from None
    if not leads:
        raise click.UsageError(f"{file} names no lead" if file else f"name a lead, or a file of them with {option}")
    return list(leads)


def _lines(file: Path, option: str) -> list[str]:
    try:
        # a spreadsheet begins its file with a mark that is no part of the first id
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise click.BadParameter(f"{file} can't be read: {reason}", param_hint=option) from None


def _told(one: Owned, territory: str) -> str:
    """A line for each fact, so that an id stands whole whatever the width of the terminal."""
    if not one.here:
        return f"{one.lead_id}\n  no lead of {territory}"
    lines = [str(one.lead_id), f"  owner {'nobody' if one.owner is None else one.owner}"]
    if one.assigned_at:
        by = "" if one.assigned_by is None else f" by {one.assigned_by}"
        lines.append(f"  since {one.assigned_at.astimezone(UTC):%Y-%m-%d %H:%M UTC}, {one.source}{by}")
    return "\n".join([*lines, *(f"  shared with {user}" for user in one.shared_with)])
