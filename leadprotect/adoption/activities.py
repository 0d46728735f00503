"""Who owns a lead, by the host: a column of the lead, or activities, and what an activity says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from leadprotect.adoption.called import (
    ACTIVITIES,
    KINDS,
    MOMENTS,
    OWNERS,
    QUALIFY,
    TIMES,
    TYPES,
    USERS,
    first_of,
    is_activities,
    is_id,
    is_text,
    names_people,
    one_of,
    rank,
    says_of_what,
    snake,
)
from leadprotect.adoption.survey import HostTable, values_of
from leadprotect.settings import Settings, ident, table
from leadprotect.settings.expressions import constant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from leadprotect.adoption.look import Look
    from leadprotect.adoption.survey import HostColumn


def owner_column(look: Look, leads: HostTable) -> str | None:
    """The column in which the host names an owner himself."""

    def fits(one: HostColumn) -> bool:
        if one.type not in TYPES or one.name in leads.keys:
            return False
        target = leads.refers.get(one.name)
        return names_people(target, look.tables[target].keys if target in look.tables else ())

    return look.column("owner_column", leads, OWNERS, fits)


def owners_from(look: Look, leads: HostTable, owner: str | None, activities: HostTable | None) -> None:
    """Where owners come from: the column first, where there is one of the users' type."""
    if owner is None or owner not in leads.columns or look.given.get("owners_from") == "activities":
        return
    kind = TYPES.get(leads.columns[owner].type)
    users = look.proposal.settings.get("user_id_type", kind)
    if kind != users:
        look.proposal.remarks.append(
            f"{leads.name}.{owner} looks like an owner, but users are {users} and it is {kind}: it is left out"
        )
        return
    look.say("owner_column", owner, "the owner that the host keeps himself")
    if activities is None:
        look.say("owners_from", "column", "no table of activities refers to the leads")
        _linked(look, leads)
        look.say("user_id_type", kind, f"{owner} is {leads.columns[owner].type}")
    else:
        look.say("owners_from", "column, activities", f"{owner} says who owns a lead, activities where it is empty")


def which_activities(look: Look, leads: HostTable, owner: str | None) -> HostTable | None:
    """The table, or view, of activities; None where there is none, or it is open."""
    if said := look.given.get("activities_table"):
        return look.views.get(said) or look.known("activities_table", said)
    if look.given.get("owners_from") == "column":  # then none is asked who owns a lead
        return None
    fit = [one for one in look.tables.values() if one is not leads and _serves(leads, one)]
    ranked = sorted(fit, key=lambda one: (rank(one.plain, ACTIVITIES), leads.name not in one.refers.values(), one.name))
    best = [one.name for one in ranked if is_activities(one)]
    first = [
        name
        for name in best
        if rank(look.tables[name].plain, ACTIVITIES) == rank(look.tables[best[0]].plain, ACTIVITIES)
    ]
    if len(first) == 1:
        return look.tables[first[0]]
    if not best and owner is not None:
        return None
    question = f"which table holds the activities of {leads.name}, with a user and a time?"
    answer = look.ask("activities_table", question, best or [one.name for one in ranked])
    return look.tables[answer] if answer else None


def _linked(look: Look, leads: HostTable) -> None:
    """Activities that a table of links leads to: no setting names two tables, a view of the host's does."""
    for link in look.tables.values():
        lead = _lead_of(leads, link)
        for column, target in link.refers.items():
            one = look.tables.get(target)
            if lead is None or one is None or column == lead or not (is_activities(one) and one.keys):
                continue
            user, at = first_of(one, USERS, is_id), first_of(one, MOMENTS, lambda each: each.type in TIMES)
            if user and at and not _lead_of(leads, one):
                kind, says = first_of(one, KINDS, is_text), _subjects(link).get(lead)
                shown = [*(("l", name) for name in (*link.keys[:1], lead, says) if name),
                         *(("a", name) for name in (user, at, kind) if name)]  # fmt: skip
                look.proposal.remarks.append(
                    f"{one.name} may say who works on a lead, and {link.name} of which. If its users are to own "
                    f"leads, make a view: CREATE VIEW {table(link.name + '_of_leads')} AS SELECT "
                    f"{', '.join(f'{alias}.{ident(name)}' for alias, name in shown)} "
                    f"FROM {table(link.name)} AS l JOIN {table(one.name)} AS a "
                    f"ON a.{ident(one.keys[0])} = l.{ident(column)}; and name it: leadprotect init "
                    f"--set 'activities_table={link.name}_of_leads' --set 'activity_base_table={link.name}'"
                )
                return


def has_activities(look: Look, one: HostTable) -> bool:
    """Whether a table that refers to this one could hold its activities."""
    return any(_serves(one, other) for other in look.referring(one))


def _serves(leads: HostTable, one: HostTable) -> bool:
    return bool(
        _lead_of(leads, one) and first_of(one, USERS, is_id)
        and any(column.type in TIMES for column in one.columns.values())
    )  # fmt: skip


def _lead_of(leads: HostTable, one: HostTable) -> str | None:
    """The column that names the lead: by its foreign key, or by its name."""
    by_key = [column for column, target in one.refers.items() if target == leads.name]
    named = (r"lead(_id)?", rf"{re.escape(snake(one_of(leads)))}(_id)?")
    return next(iter(by_key), None) or first_of(one, named, is_id) or next(iter(_subjects(one)), None)


def _subjects(one: HostTable) -> dict[str, str]:
    """Columns with an id of whatever a second one names: the id -> the column that says what it is of."""
    found = {}
    for name, column in one.columns.items():
        if not is_id(column) or name in one.refers:
            continue
        says = next((other for other in says_of_what(name) if other in one.columns), None)
        if says is not None and is_text(one.columns[says]):
            found[name] = says
    return found


def describe_activity(look: Look, leads: HostTable, one: HostTable) -> None:
    """Say what the columns of an activity are, and which activities make an owner."""
    lead = _lead_of(leads, one)
    if one.kind == "v":
        _base_of(look, one)
        look.say("activity_id_column", first_of(one, ("id", r".*_?id"), is_id), "called like a key")
    else:
        look.say("activity_id_column", next(iter(one.keys), None), "unique alone")
    if lead in (subjects := _subjects(one)):
        _of_subject(look, leads, one, lead, subjects[lead])
    else:
        _say_lead(look, one, lead)
        _say_condition(look, None, _kept(one))
    user = look.column("activity_user_id_column", one, USERS, lambda column: is_id(column) and column.name != lead)
    if user is None:
        user = look.ask("activity_user_id_column", f"which column of {one.name} names the user?", one.columns)
    look.say("activity_user_id_column", user, "called like a user")
    if user in one.columns:
        kind = one.columns[user].type
        look.say("user_id_type", TYPES.get(kind), f"{user} is {kind}")
    at = look.column("activity_at_column", one, MOMENTS, lambda column: column.type in TIMES)
    look.say("activity_at_column", at, "called like when it happened")
    _kind(look, one)


def _base_of(look: Look, view: HostTable) -> None:
    """A view has no triggers: of which table its rows are is said, or asked."""
    base = look.given.get("activity_base_table")
    if base is None:
        question = f"{view.name} is a view: of which table is each row of it one?"
        look.ask("activity_base_table", question, [], plausible=False)
    else:
        look.say("activity_base_table", look.known("activity_base_table", base).name, "as you said")


def _of_subject(look: Look, leads: HostTable, one: HostTable, lead: str, says: str) -> None:
    """An activity of anything: which of them are of leads stands in a second column."""
    found = values_of(look.conn, one, says) or {}
    likely = _called_like(leads, found)
    if not likely:
        told = ", ".join(found) or _nothing(one)
        question = f"which value of {one.name}.{says} means a lead (there is: {told})?"
        answer = look.ask("activity_condition", question, [_means(says, value) for value in found])
        _say_condition(look, answer, _kept(one))
    else:
        _say_condition(look, (_means(says, likely[0]), f"{lead} is the id of whatever {says} names"), _kept(one))
    _say_lead(look, one, lead)


def _say_lead(look: Look, one: HostTable, lead: str | None) -> None:
    """Which column names the lead, in the type of the lead's."""
    cast = lead and _cast(look, one, lead)
    as_kind = "" if cast == lead or lead is None else f", as {TYPES.get(one.columns[lead].type)}"
    look.say("activity_lead_id_column", cast, f"names the lead{as_kind}")


def _called_like(leads: HostTable, values: Iterable[str]) -> list[str]:
    """Which of the values mean leads, the likeliest first."""
    called = (rf"(.*[\\.:/])?{re.escape(snake(one_of(leads)))}s?", r"(.*[\\.:/])?leads?")
    ranked = sorted((rank(value, called), value) for value in values)
    return [value for place, value in ranked if place < len(called)]


def _cast(look: Look, one: HostTable, lead: str) -> str:
    """A column of ids in the type of the lead's."""
    wanted, kind = look.proposal.settings.get("lead_id_type"), TYPES.get(one.columns[lead].type)
    castable = wanted and kind != wanted and (kind == "text" or not {"uuid"} & {kind, wanted})
    return f"{ident(lead)}::{wanted}" if castable else lead


def among_others(look: Look, leads: HostTable) -> Iterator[tuple[str, str]]:
    """Tables that hold rows of leads beside those of anything else, each with what makes it a table of lead_tables."""
    wanted = look.proposal.settings.get("lead_id_type")
    for one in look.tables.values():
        for lead, says in _subjects(one).items():
            if (
                one.name in look.given.get("lead_tables", "")
                or one.kind != "r"
                or TYPES.get(one.columns[lead].type) not in (wanted, "text")
            ):
                continue
            if likely := _called_like(leads, values_of(look.conn, one, says) or {}):
                cast = _cast(look, one, lead)
                id_there = f"CASE WHEN {_means(says, likely[0])} THEN {ident(lead) if cast == lead else cast} END"
                yield f"{one.name} ({lead}, where {says} is {likely[0]})", _of_leads_alone(look, leads, one, id_there)


def in_another_type(look: Look, leads: HostTable, one: HostTable, lead: str) -> str | None:
    """What makes a column of the type of the lead's id, where the one that names the lead has another."""
    cast = _cast(look, one, lead)
    return None if cast == lead else _of_leads_alone(look, leads, one, cast)


def _of_leads_alone(look: Look, leads: HostTable, one: HostTable, id_there: str) -> str:
    """The statements that make a column with the id of a lead, and its index."""
    column, of, wanted = ident(f"{snake(one_of(leads))}_ref"), table(one.name), look.proposal.settings["lead_id_type"]
    return (
        f"ALTER TABLE {of} ADD COLUMN {column} {wanted} GENERATED ALWAYS AS ({id_there}) STORED; "
        f"CREATE INDEX CONCURRENTLY ON {of} ({column}) WHERE {column} IS NOT NULL;"
    )


def _kept(one: HostTable) -> tuple[str, str] | None:
    """What leaves out rows that the host counts as deleted, and why."""
    for name, column in one.columns.items():
        if not re.fullmatch(r"(is_)?(deleted|archived|voided|cancell?ed|removed)(_at|_on)?", snake(name)):
            continue
        if column.type == "boolean":
            condition = f"NOT {ident(name)}" if column.required else f"{ident(name)} IS NOT TRUE"
            return condition, f"{name} says which rows count no more"
        if column.type in TIMES:
            return f"{ident(name)} IS NULL", f"{name} says which rows count no more"
    return None


def _say_condition(look: Look, *parts: tuple[str, str] | str | None) -> None:
    told = [part if isinstance(part, tuple) else (part, "as you said") for part in parts if part]
    if told:
        look.say("activity_condition", " AND ".join(one for one, _ in told), "; ".join(why for _, why in told))


def _kind(look: Look, one: HostTable) -> None:
    of_what = set(_subjects(one).values())
    column = look.column("activity_kind_column", one, KINDS, lambda each: is_text(each) and each.name not in of_what)
    if column is None and look.guess:
        look.say("activity_kind_column", "", "no column says a kind in words, so every activity makes an owner")
        others = [name for name, target in one.refers.items() if rank(target.partition(".")[2], KINDS) < len(KINDS)]
        if others:
            look.proposal.remarks.append(
                f"{one.name}.{', '.join(others)} may say which activities make an owner: name them in "
                f"activity_condition, such as {ident(others[0])} IN (1, 2)"
            )
        return
    if column is None:
        column = look.ask("activity_kind_column", f"which column of {one.name} says what kind an activity is?",
                           [each.name for each in one.columns.values() if is_text(each)])  # fmt: skip
    if not column:  # it is said that every activity counts
        return
    look.say("activity_kind_column", column, "called like a kind")
    found = values_of(look.conn, one, column)
    told = ", ".join(f"{value} {count:,}" for value, count in list((found or {}).items())[:8])
    usual = [kind for kind in Settings().qualifying_kinds if kind in (found or {})]
    likely = usual or [value for value in found or () if QUALIFY.search(value)]
    if likely:
        look.say("qualifying_kinds", ", ".join(likely), f"look like what makes an owner, among {told}")
    elif "qualifying_kinds" not in look.given:
        there = f" (there are: {told})" if told else f" (there is: {_nothing(one)})"
        answer = look.ask(
            "qualifying_kinds",
            f"which kinds of {one.name}.{column} make an owner{there}?",
            [", ".join(found)] if found else [],
        )
        look.say("qualifying_kinds", answer, f"every kind that stands there: {told}")


def _nothing(one: HostTable) -> str:
    """What stands where no row is seen."""
    return "nothing that this login is shown" if one.binding else "nothing yet"


def _means(column: str, value: str) -> str:
    """The condition that a column holds a value."""
    return f"{ident(column)} = {constant(value)}"
