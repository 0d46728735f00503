"""Proposes the settings for a database, each with its reason, and says what only a person can tell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from leadprotect.adoption.activities import (
    among_others,
    describe_activity,
    in_another_type,
    owner_column,
    owners_from,
    which_activities,
)
from leadprotect.adoption.called import snake
from leadprotect.adoption.leads import describe_lead, which_leads, why_leads
from leadprotect.adoption.look import Look, Proposal, Proposed
from leadprotect.adoption.survey import HostTable, changing, claims_read, exempt_logins, read_only, tables_of
from leadprotect.settings import Settings, ident, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

_SETTING = re.compile(r"current_setting\('([^']+)'")


def propose(conn: psycopg.Connection[Any], *, given: Mapping[str, str], guess: bool = False) -> Proposal:
    """Look at the database of `conn` in a read-only transaction, and propose what `given` does not say.

    With `guess` the likeliest answer is taken where more than one is possible. `conn` is in autocommit.
    """
    look = Look(conn, dict(given), guess=guess)
    with read_only(conn):
        _leads_and_what_hangs_on_them(look)
    known = look.proposal.settings
    look.proposal.proposed += [Proposed(key, value, "as you said") for key, value in given.items() if key not in known]
    return look.proposal


def _leads_and_what_hangs_on_them(look: Look) -> None:
    schema = look.given.get("schema", Settings().schema)
    there = {one.name: one for one in tables_of(look.conn, but=(schema, f"{schema}_quarantine"))}
    look.tables = {name: one for name, one in there.items() if one.kind != "v"}
    look.views = {name: one for name, one in there.items() if one.kind == "v"}
    leads = which_leads(look)
    if leads is None:
        return
    look.say("leads_table", leads.name, why_leads(look, leads))
    describe_lead(look, leads)
    owner = owner_column(look, leads)
    activities = which_activities(look, leads, owner)
    if activities is not None:
        look.say("activities_table", activities.name, f"refers to {leads.name}, with a user and a time")
        describe_activity(look, leads, activities)
    owners_from(look, leads, owner, activities)
    _lead_tables(look, leads, activities)
    _denied_edit(look, leads)
    _hidden(look, leads, *([activities] if activities else []))
    _row_security(look, leads)
    _logins(look, leads)


def _lead_tables(look: Look, leads: HostTable, activities: HostTable | None) -> None:
    """Tables whose rows go with their lead: whoever may not see the one may not read the other."""
    found, why, open_to_all = [], [], []
    for one in look.referring(leads):
        column = next((name for name, target in one.refers.items() if target == leads.name), "")
        what = f"{one.name} ({column})"
        if column not in one.cascades:
            open_to_all.append(what)
            continue
        if one.kind != "r":
            look.proposal.remarks.append(f"{what} holds data of leads and is partitioned: lead_tables can't protect it")
        elif made := in_another_type(look, leads, one, column):
            if one.name not in look.given.get("lead_tables", ""):
                look.proposal.remarks.append(
                    f"{what} holds data of leads, and its type is another than that of their ids: lead_tables takes it "
                    f"by a column of that type, which rewrites the table: {made}"
                )
        elif column not in one.indexed:
            index = f"CREATE INDEX CONCURRENTLY ON {table(one.name)} ({ident(column)});"
            look.proposal.remarks.append(
                f"{what} holds data of leads: name it in lead_tables once it has an index: {index}"
            )
        else:
            adds = one is activities or re.search(r"activit|event|log|histor|audit|note|comment", snake(one.plain))
            found.append(what + (" append" if adds else ""))
            why.append(one.plain)
    if found:
        goes = f"rows of {', '.join(why)} go with their lead (ON DELETE CASCADE)"
        look.say("lead_tables", ", ".join(found), f"{goes}, so they are seen by whom it is seen by")
    if open_to_all and "lead_tables" not in look.given:
        refer, stay = ("refer", "stay") if len(open_to_all) > 1 else ("refers", "stays")
        look.proposal.remarks.append(
            f"{', '.join(open_to_all)} {refer} to {leads.name} too, and {stay} as readable as today: name in "
            "lead_tables what holds data of a lead"
        )
    for where, column in among_others(look, leads):
        look.proposal.remarks.append(
            f"{where} holds data of leads beside other rows, and stays as readable as today: lead_tables takes it by a "
            f"column of leads alone, which rewrites the table: {column}"
        )


def _denied_edit(look: Look, leads: HostTable) -> None:
    """Code of several steps goes on after an UPDATE of 0 rows, and ends half done; an error ends it whole."""
    if found := changing(look.conn, leads):
        reason = f"{', '.join(found)} changes leads among other steps: with hide it would go on, half done"
        look.say("denied_edit", "raise", reason)


def _hidden(look: Look, *read: HostTable) -> None:
    """What is told by rows is told by those that this login is shown."""
    if bound := dict.fromkeys(one.name for one in read if one.binding):
        look.proposal.hidden = (
            f"row security of {' and '.join(bound)} binds {look.conn.info.user} and hides rows of it: run init as "
            "a login that sees all of them (DATABASE_URL of a superuser or one with BYPASSRLS), and migrate as ever"
        )


def _row_security(look: Look, leads: HostTable) -> None:
    if leads.forced:
        look.say("host_rls", "force", f"{leads.name} is FORCEd already, so its owner is bound as he is today")
    if not leads.row_security:
        return
    told = ", ".join(leads.policies) or "none"
    look.proposal.remarks.append(
        f"{leads.name} has row security of its own (policies: {told}): it goes on deciding, and is narrowed only"
    )
    named = list(dict.fromkeys(name for text in leads.policies.values() for name in _SETTING.findall(text)))
    claims = claims_read(look.conn)
    for key, pattern in (
        ("user_guc", r"^sub$|user|uid|seller|member"),
        ("territory_guc", r"territor|region|market|country"),
    ):
        if found := next((name for name in named if re.search(pattern, name)), None):
            look.say(key, found, "the host's policies read it")
        elif claim := next(((name, of) for name, of in claims if re.search(pattern, of, re.IGNORECASE)), None):
            look.say(key, " ->> ".join(claim), "the host's policies, or functions that they call, read it so")
            kind = look.proposal.settings.get("user_id_type")
            if key == "user_guc" and kind in ("bigint", "integer") and key not in look.given:
                look.proposal.remarks.append(
                    f"users are {kind} here: a claim {claim[1]} that holds anything else is no context; put the "
                    f"number into a claim of its own, and name it: user_guc = {claim[0]} ->> user_id"
                )
        elif key == "territory_guc" and claims and "user_guc" in look.proposal.settings:
            holds = f"users are declared in {claims[0][0]}, and no field of it is called like a territory"
            look.proposal.remarks.append(
                f"{holds}: put one into it, and name it: territory_guc = {claims[0][0]} ->> territory"
            )


def _logins(look: Look, leads: HostTable) -> None:
    if found := exempt_logins(look.conn, leads):
        look.proposal.remarks.append(
            f"{', '.join(found)} only read{'s' if len(found) == 1 else ''} {leads.name}, or no row security binds "
            f"{'it' if len(found) == 1 else 'them'}: name in exempt_roles who is to see every territory afterwards"
        )
