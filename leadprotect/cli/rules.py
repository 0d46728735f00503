"""``leadprotect rules``."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

import click

from leadprotect.access.ownership import share, unshare
from leadprotect.access.protections import LeadRule, grant, revoke, rules, suspend
from leadprotect.cli import output
from leadprotect.cli.acting import TERRITORY, changes, reading, transaction
from leadprotect.cli.terminal import echo
from leadprotect.cli.words import TIME
from leadprotect.database.connection import connect
from leadprotect.decision import PROTECTIONS
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from leadprotect.decision import Protection

PROTECTION = click.argument("protection", type=click.Choice(PROTECTIONS))
LEAD = click.option("--lead", metavar="ID", help="For this lead only.  [default: the whole territory]")
BEGIN = click.option("--from", "begin", type=TIME, help="Its begin, with a zone.  [default: now]")
UNTIL = click.option("--until", type=TIME, help="Its end, with a zone.  [default: open]")


@click.group("rules")
def rules_group() -> None:
    """Who may edit besides the owner, and who is suspended."""


@rules_group.command("list")
@TERRITORY
@click.option("--user", metavar="USER", help="Rules about this user only.")
@LEAD
@click.option("--ended", is_flag=True, help="Also those that are over.")
@click.option("--json", "as_text", is_flag=True, help="A JSON array instead of text.")
def list_command(*, territory: str, user: str | None, lead: str | None, ended: bool, as_text: bool) -> None:
    """Show the rules of a territory; for managers and auditors of it, reads only."""
    with connect(current()) as conn, reading(conn, territory):
        found = rules(conn, user_id=user, lead_id=lead, ended=ended)
    if as_text:
        click.echo(output.as_json(list(found), indent=2))
    else:
        echo("\n".join(_told(rule, territory) for rule in found) or f"no rule in {territory}")


@rules_group.command("grant")
@click.argument("user")
@PROTECTION
@changes
@LEAD
@BEGIN
@UNTIL
def grant_command(
    user: str, protection: Protection, *, territory: str, actor: str, note: str | None, dry_run: bool,
    as_json: bool, lead: str | None, begin: datetime | None, until: datetime | None,
) -> None:  # fmt: skip
    """Make a rule: COLLABORATOR may edit, VIEW_ONLY suspends, SOLE_OWNER shuts out collaborators of the territory."""
    with connect(current()) as conn, transaction(conn, actor, territory, dry_run=dry_run):
        grant(conn, user, protection, lead_id=lead, effective_from=begin, effective_to=until, note=note)
    told = {"granted": protection, "user": user, "lead": lead, "territory": territory, "until": until}
    said = f"{user} has the rule {protection} {_where(lead, territory)}{_end(until)}"
    _say(said, told, dry_run=dry_run, as_json=as_json)


@rules_group.command("revoke")
@click.argument("user")
@PROTECTION
@changes
@LEAD
def revoke_command(
    user: str,
    protection: Protection,
    *,
    territory: str,
    actor: str,
    note: str | None,
    dry_run: bool,
    as_json: bool,
    lead: str | None,
) -> None:
    """End the rules of one kind of a user; an edit under way is waited for."""
    with connect(current()) as conn, transaction(conn, actor, territory, dry_run=dry_run):
        before = [rule for rule in rules(conn, user_id=user) if rule.protection == protection]
        revoke(conn, user, protection, lead_id=lead, note=note)
        after = [rule for rule in rules(conn, user_id=user) if rule.protection == protection]
    ended = len(before) - len(after)
    others = f"; {len(after)} for leads or the territory as a whole stay" if after else ""
    told = {
        "revoked": protection,
        "user": user,
        "lead": lead,
        "territory": territory,
        "ended": ended,
        "left": len(after),
    }
    said = f"{ended} rule{'s' * (ended != 1)} {protection} of {user} ended {_where(lead, territory)}{others}"
    _say(said, told, dry_run=dry_run, as_json=as_json)


@rules_group.command("suspend")
@click.argument("user")
@changes
@LEAD
@UNTIL
def suspend_command(
    user: str,
    *,
    territory: str,
    actor: str,
    note: str | None,
    dry_run: bool,
    as_json: bool,
    lead: str | None,
    until: datetime | None,
) -> None:
    """Let a user edit nothing from now on; he keeps what he owns. Ended by: rules revoke USER VIEW_ONLY."""
    with connect(current()) as conn, transaction(conn, actor, territory, dry_run=dry_run):
        suspend(conn, user, lead_id=lead, effective_to=until, note=note)
    told = {"suspended": user, "lead": lead, "territory": territory, "until": until}
    _say(f"{user} is suspended {_where(lead, territory)}{_end(until)}", told, dry_run=dry_run, as_json=as_json)


@rules_group.command("share")
@click.argument("lead")
@click.argument("user")
@changes
@BEGIN
@UNTIL
def share_command(
    lead: str, user: str, *, territory: str, actor: str, note: str | None, dry_run: bool,
    as_json: bool, begin: datetime | None, until: datetime | None,
) -> None:  # fmt: skip
    """Let a user edit a lead besides its owner; for the owner, whom --as names, and for managers."""
    with connect(current()) as conn, transaction(conn, actor, territory, dry_run=dry_run):
        share(conn, lead, user, effective_from=begin, effective_to=until, note=note)
    told = {"shared": lead, "user": user, "territory": territory, "until": until}
    _say(f"lead {lead} of {territory} is shared with {user}{_end(until)}", told, dry_run=dry_run, as_json=as_json)


@rules_group.command("unshare")
@click.argument("lead")
@click.argument("user")
@changes
def unshare_command(
    lead: str, user: str, *, territory: str, actor: str, note: str | None, dry_run: bool, as_json: bool
) -> None:
    """End every share of a lead with a user now; an edit under way is waited for."""
    with connect(current()) as conn, transaction(conn, actor, territory, dry_run=dry_run):
        unshare(conn, lead, user, note=note)
    told = {"unshared": lead, "user": user, "territory": territory}
    _say(f"lead {lead} of {territory} is shared with {user} no more", told, dry_run=dry_run, as_json=as_json)


def _say(done: str, told: Mapping[str, object], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        click.echo(output.as_json({**told, "dry_run": dry_run}))
        return
    echo(f"dry run, rolled back: {done}" if dry_run else done)


def _where(lead: str | None, territory: str) -> str:
    return f"for lead {lead} of {territory}" if lead else f"in {territory}"


def _end(until: datetime | None) -> str:
    return f" until {until.isoformat(sep=' ', timespec='minutes')}" if until else ""


def _told(rule: LeadRule, territory: str) -> str:
    """Two lines, so that an id stands whole whatever the width of the terminal."""
    where = territory if rule.lead_id is None else f"{territory} for lead {rule.lead_id}"
    until = "" if rule.effective_to is None else f" until {_moment(rule.effective_to)}"
    by = rule.made_by if rule.shared_by is None else f"{rule.made_by} for the owner {rule.shared_by}"
    over = "" if rule.active else ", ended before its time"
    lasts = f"from {_moment(rule.effective_from)}{until}{over}"
    return f"{rule.protection} of {rule.user_id} in {where}\n  {lasts}, made by {by}"


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M UTC}"
