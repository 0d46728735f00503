"""``leadprotect shadow``."""

from __future__ import annotations

import sys
from datetime import UTC
from typing import TYPE_CHECKING

import click

from leadprotect.cli import output, words
from leadprotect.cli.terminal import echo
from leadprotect.database.connection import connect
from leadprotect.migration.shadow import (
    Reader,
    Shadow,
    ShadowReport,
    WouldBeDenied,
    fold,
    shadow_report,
    watch_shadow,
)
from leadprotect.migration.shadowing import start_shadow, stop_shadow
from leadprotect.settings import current

if TYPE_CHECKING:
    from datetime import datetime

LOCKED_OUT, NEVER = 1, 2

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
BUDGET = words.lock_budget()
_SEES = {
    "nothing": "would see no lead that has a territory",
    "everything": "goes on seeing everything",
    "declared": "would see the territory that it declares; whether it declares one, nobody sees from outside",
}


@click.group("shadow")
def shadow_group() -> None:
    """Note before contract what it would deny, while nothing is denied."""


@shadow_group.command("start")
@BUDGET
@JSON
def shadow_start_command(*, lock_budget: str | None, as_json: bool) -> None:
    """Begin to note: triggers on leads and lead_tables, each put there in milliseconds.

    Where a shadow runs nothing is done; what a killed start left is completed. What an earlier one noted is forgotten.
    """
    found = start_shadow(lock_budget=lock_budget)
    if as_json:
        click.echo(output.as_json(found, indent=2))
        return
    echo(f"the shadow runs since {_utc(found.started_at)}; nothing is denied")
    echo("leadprotect shadow watch --for 10min looks who reads, leadprotect shadow report shows what was noted")


@shadow_group.command("watch")
@click.option("--for", "seconds", type=words.Duration(), default="10min", show_default=True, help="How long to look.")
@JSON
def shadow_watch_command(*, seconds: float, as_json: bool) -> None:
    """Look who reads leads and lead_tables, five times a second, and note it; Ctrl-C keeps what was seen."""
    seen = watch_shadow(seconds=seconds)
    if as_json:
        click.echo(output.as_json({"logins": seen}))
        return
    echo(f"{seen} {'login was' if seen == 1 else 'logins were'} seen reading: leadprotect shadow report")


@shadow_group.command("report")
@JSON
def shadow_report_command(*, as_json: bool) -> None:
    """Show who would be denied what, how often, and what mends it.

    Exit codes: 0 nobody would be locked out, 1 somebody would be, 2 no shadow was ever started.
    """
    s = current()
    with connect(s) as conn:
        conn.autocommit = True
        found = shadow_report(conn)
        if found:
            fold(conn, s)
    if as_json:
        click.echo(output.as_json(found, indent=2))
    elif found is None:
        echo("no shadow was started yet: leadprotect shadow start")
    else:
        _show(found)
    sys.exit(NEVER if found is None else LOCKED_OUT if found.locked_out else 0)


@shadow_group.command("stop")
@BUDGET
@JSON
def shadow_stop_command(*, lock_budget: str | None, as_json: bool) -> None:
    """Take the triggers away; what was noted stays until the next start."""
    found = stop_shadow(lock_budget=lock_budget)
    if as_json:
        click.echo(output.as_json(found, indent=2))
    elif found is None:
        echo("no shadow was started yet: there is nothing to stop")
    else:
        echo(_when(found))
        echo("leadprotect shadow report shows what was noted")


def _show(found: ShadowReport) -> None:
    echo(_when(found.shadow))
    if found.missing:
        echo(f"not everything is noted: {', '.join(found.missing)} is missing or off: leadprotect shadow start")
    meant = [one for one in found.denied if not one.locks_out]
    _section("Locked out: no user of these logins could do it", found.locked_out)
    _section("Denied as it is meant: it depends on who asks for which lead", meant)
    if not found.denied:
        echo("\nno statement was noted that contract would deny")
    if found.readers:
        echo("\nSeen reading")
    for reader in found.readers:
        _show_reader(reader)
    if not found.readers:
        echo("\nnobody was looked for who reads: leadprotect shadow watch --for 10min")


def _section(title: str, found: tuple[WouldBeDenied, ...] | list[WouldBeDenied]) -> None:
    if found:
        echo(f"\n{title}")
    for one in found:
        acts = f" as {one.role}" if one.role != one.login else ""
        echo(f"  {one.login}{acts}: {one.kind} {one.host_table}, {one.reason}")
        echo(f"    {one.times:,} or more, {_utc(one.first_at)} to {_utc(one.last_at)}{_through(one.applications)}")
        echo(f"    {one.remedy}")


def _show_reader(one: Reader) -> None:
    echo(f"  {one.login}: SELECT {one.host_table}, {_SEES[one.sees]}")
    echo(f"    in {one.times:,} looks, {_utc(one.first_at)} to {_utc(one.last_at)}{_through(one.applications)}")
    if one.remedy:
        echo(f"    {one.remedy}")


def _through(applications: tuple[str, ...]) -> str:
    shown = ", ".join(applications[:5])
    return f", through {shown}" if shown else ""


def _when(found: Shadow) -> str:
    ended = f" and was stopped at {_utc(found.ended_at)}" if found.ended_at else ", and runs"
    return f"the shadow was started at {_utc(found.started_at)} by {found.started_by}{ended}"


def _utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
