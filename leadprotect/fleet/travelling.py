"""The rows of a lead as JSON: read and locked here, written and compared there, deleted here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database.statements import rows
from leadprotect.errors import InvalidRequest, LeadProtectError
from leadprotect.fleet.exchange import Sent
from leadprotect.settings import ident, literal, render, table, type_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import psycopg

    from leadprotect.fleet.manifest import Manifest, Reference, Travelling
    from leadprotect.settings import Settings

    Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Cargo:
    """The rows of one lead as JSON, one tuple for each table of the plan, and the SHA-256 of all of them."""

    rows: tuple[tuple[str, ...], ...]
    digest: str


class CannotTravel(LeadProtectError):
    """Some leads have to stay, each for its own reason: `why` by lead; nothing of them was changed."""

    def __init__(self, why: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"lead {lead}: {text}" for lead, text in why.items()))
        self.why = dict(why)


def picking_up(made: Manifest, leads: Iterable[str], *, lock: bool) -> list[Sent]:
    """Read the rows of these leads, each table of the manifest by a statement; `cargo` takes the answers.

    What somebody else has locked is not waited for.
    """
    leads = [*leads]
    return [_of_these(_read(one, lock=lock), one, leads) for one in made.tables]


def _read(one: Travelling, *, lock: bool) -> str:
    order = ", ".join(f"t.{ident(column)}" for column in one.order) or "1"
    return (
        f"SELECT t.{ident(one.key)}::text, row_to_json(t)::text "
        f"FROM {table(one.table)} AS t WHERE t.{ident(one.key)} = {THESE} "
        f"ORDER BY t.{ident(one.key)}, {order}{' FOR UPDATE NOWAIT' if lock else ''}"
    )


THESE = "ANY (@::[])"
"""The leads of a statement, which `_of_these` sends with it."""


def _of_these(statement: str, one: Travelling, leads: Sequence[str]) -> Sent:
    """The statement with these leads; of one lead by equality.

    The server keeps a plan for that. One for an array it takes for ten, and plans each time anew where there is one.
    https://www.postgresql.org/docs/current/sql-prepare.html#SQL-PREPARE-NOTES
    """
    if len(leads) == 1:
        return Sent(_marked(statement.replace(THESE, f"@::{one.key_type}")), (leads[0],))
    return Sent(_marked(statement.replace(THESE, f"ANY (@::{one.key_type}[])")), ([*leads],))


def locking(made: Manifest, leads: Iterable[str]) -> Sent:
    """Lock the leads themselves, so that no row comes to them by a key."""
    one = made.leads
    key = f"t.{ident(one.key)}"
    query = f"SELECT FROM {table(one.table)} AS t WHERE {key} = {THESE} ORDER BY {key} FOR UPDATE NOWAIT"
    return _of_these(query, one, [*leads])


def cargo(made: Manifest, leads: Sequence[str], answers: Sequence[Sequence[tuple[str, str]]]) -> dict[str, Cargo]:
    """What was read, by the ids as text; raises `LeadProtectError` for a lead that is not seen."""
    found: dict[str, list[tuple[str, ...]]] = {lead: [] for lead in leads}
    for read in answers[: len(made.tables)]:
        of_lead: dict[str, list[str]] = {lead: [] for lead in leads}
        for lead, text in read:
            of_lead[lead].append(text)
        for lead, texts in of_lead.items():
            found[lead].append(tuple(texts))
    if unseen := [lead for lead, (own, *_) in found.items() if len(own) != 1]:
        raise LeadProtectError(f"the row of lead {unseen[0]} is not seen by this login, or can't be locked by it")
    return {lead: Cargo(tuple(parts), _digest(parts)) for lead, parts in found.items()}


def _digest(parts: Iterable[Iterable[str]]) -> str:
    return hashlib.sha256(json.dumps([[*texts] for texts in parts]).encode()).hexdigest()


def writing_leads(made: Manifest, sent: Mapping[str, Cargo]) -> list[Sent]:
    """Insert the leads themselves, with what they hold there."""
    return _inserting(made.leads, [text for one in sent.values() for text in one.rows[0]], dict(made.given))


def writing_others(made: Manifest, sent: Mapping[str, Cargo]) -> list[Sent]:
    """Insert the rows of the other tables, each after what it refers to."""
    return [
        asked
        for place, one in enumerate(made.tables[1:], 1)
        for asked in _inserting(one, [text for each in sent.values() for text in each.rows[place]], {})
    ]


def _inserting(one: Travelling, texts: Sequence[str], given: Mapping[str, str | None]) -> list[Sent]:
    if not texts:
        return []
    names = ", ".join(ident(column) for column in one.columns)
    values = ", ".join(
        f"@::{kind}" if column in given else f"r.{ident(column)}"
        for column, kind in zip(one.columns, one.types, strict=True)
    )
    statement = (
        f"INSERT INTO {table(one.table)} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} "
        f"FROM json_populate_recordset(NULL::{table(one.table)}, @::json) AS r"
    )
    params = [given[column] for column in one.columns if column in given]
    return [Sent(_marked(statement), (*params, f"[{','.join(texts)}]"))]


def looking(made: Manifest, leads: Iterable[str]) -> list[Sent]:
    """What keeps some of the leads here, though each row can be read; `refuse_kept` takes the answers."""
    leads = [*leads]
    given = set(dict(made.given))
    ties = [
        Sent(_marked(_tie(one, incoming=incoming)), (leads, leads))
        for one in made.references
        for incoming in (False, True)
        if incoming or one.source is not made.leads or not given.intersection(one.columns)
    ]
    return [*ties, *(Sent(_marked(_bounds(one, column)), (leads,)) for one in made.tables for column in one.arrays)]


def _tie(one: Reference, *, incoming: bool) -> str:
    """Leads of ours that a lead which stays names, or that name one, with that other lead and how."""
    source, target = f"s.{ident(one.source.key)}", f"t.{ident(one.target.key)}"
    own, other = (target, source) if incoming else (source, target)
    on = " AND ".join(f"s.{ident(a)} = t.{ident(b)}" for a, b in zip(one.columns, one.target_columns, strict=True))
    release = ", ".join(f"{ident(column)} = NULL" for column in one.columns)
    how = f"{one.source.table}.{', '.join(one.columns)} ({one.name}): move both in one slice, or let go of it: "
    remedy = f"UPDATE {table(one.source.table)} SET {release} WHERE {ident(one.source.key)} = "
    said = "lead %s, which stays, names it by " if incoming else "it names lead %s, which stays, by "
    text = f"{said}{(how + remedy).replace('%', '%%')}%L;"
    return (
        f"SELECT DISTINCT {own}::text, format({literal(text)}, {other}, {source}) "
        f"FROM {table(one.source.table)} AS s JOIN {table(one.target.table)} AS t ON {on} "
        f"WHERE {own} = ANY (@::{one.target.key_type}[]) AND ({other} = ANY (@::{one.target.key_type}[])) IS NOT TRUE"
    )


def _bounds(one: Travelling, column: str) -> str:
    """Leads with an array that does not begin at 1, which JSON does not tell."""
    said = f"an array in {one.table}.{column} does not begin at 1, which can't travel: write it anew"
    return (
        f"SELECT DISTINCT t.{ident(one.key)}::text, {literal(said)} FROM {table(one.table)} AS t "
        f"WHERE t.{ident(one.key)} = ANY (@::{one.key_type}[]) AND EXISTS (SELECT FROM "
        f"generate_series(1, array_ndims(t.{ident(column)})) AS d (n) WHERE array_lower(t.{ident(column)}, d.n) <> 1)"
    )


def refuse_kept(answers: Iterable[Sequence[tuple[str, str]]]) -> None:
    """Raises `CannotTravel` for the leads that `looking` has found."""
    why = {lead: text for found in answers for lead, text in found}
    if why:
        raise CannotTravel(why)


def trying(made: Manifest, leads: Iterable[str]) -> list[Sent]:
    """Delete the rows and take that back, where code or keys of the host could keep them; none where nothing could."""
    if not made.tries:
        return []
    now = [Sent(f"SET CONSTRAINTS {', '.join(made.deferred)} IMMEDIATE")] if made.deferred else []
    return [
        Sent("SAVEPOINT lp_trial"), *now, *deleting(made, leads), Sent("ROLLBACK TO SAVEPOINT lp_trial"),
    ]  # fmt: skip


def first_of_trial(made: Manifest) -> int:
    """Where the answers of `deleting` begin among those of `trying`."""
    return 1 + bool(made.deferred)


def refuse_numbers(made: Manifest, sent: Mapping[str, Cargo]) -> None:
    """Raises `CannotTravel` for leads with a number that a sequence there would give once more."""
    why: dict[str, list[str]] = {}
    places = {one.table: place for place, one in enumerate(made.tables)}
    given = set(dict(made.given))
    for each in made.numbers:
        place = places[each.table]
        if place == 0 and each.column in given:
            continue
        again = [
            (lead, number)
            for lead, one in sent.items()
            for text in one.rows[place]
            if (number := json.loads(text).get(each.column)) is not None and each.comes_again(int(number))
        ]
        other = f" (or --renumber {each.table})" if place else ""
        for lead, number in again:
            why.setdefault(lead, []).append(
                f"the sequence {each.sequence} there would give {each.table}.{each.column} {number} once more: give "
                f"each server numbers of its own{other}: ALTER SEQUENCE {each.sequence} MAXVALUE {number - 1};"
            )
    if why:
        raise CannotTravel({lead: " ".join(told) for lead, told in why.items()})


def compare(made: Manifest, sent: Mapping[str, Cargo], arrived: Mapping[str, Cargo]) -> None:
    """Compare what arrived, column by column; raises `InvalidRequest` naming the table and the column."""
    for place, one in enumerate(made.tables):
        compared = set(one.compared) - (dict(made.given).keys() if place == 0 else set())
        for lead, each in sent.items():
            changed = _changed(each.rows[place], arrived[lead].rows[place], compared)
            if changed is not None:
                which = f" (triggers {', '.join(one.triggers)})" if one.triggers else ""
                raise InvalidRequest(
                    f"lead {lead} would not arrive as it is: {one.table}{changed}, by code of that database{which}; "
                    "let its triggers and defaults leave what arrives as it is"
                )


def _changed(sent: Sequence[str], came: Sequence[str], columns: set[str]) -> str | None:
    if len(sent) != len(came):
        return f" would have {len(came)} rows instead of {len(sent)}"
    parsed = ([{name: one.get(name) for name in columns} for one in map(_parsed, texts)] for texts in (sent, came))
    for before, after in zip(*(sorted(one, key=repr) for one in parsed), strict=True):
        for name in sorted(columns):
            if before[name] != after[name]:
                return f".{name} would be changed"
    return None


def _parsed(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    return found


def deleting(made: Manifest, leads: Iterable[str]) -> list[Sent]:
    """Delete all rows of these leads, the leads themselves last; `all_gone` takes the last answer, `same` all."""
    leads = [*leads]
    away = "DELETE FROM {} AS t WHERE t.{key} = {these} RETURNING t.{key}::text, row_to_json(t)::text"
    return [
        _of_these(away.format(table(one.table), key=ident(one.key), these=THESE), one, leads)
        for one in reversed(made.tables)
    ]


def same(made: Manifest, sent: Mapping[str, Cargo], gone: Sequence[Sequence[tuple[str, str]]]) -> bool:
    """Whether what was deleted is what was sent, row by row."""
    rows_sent = [
        sorted((lead, text) for lead, one in sent.items() for text in one.rows[place])
        for place in reversed(range(len(made.tables)))
    ]
    return rows_sent == [sorted(found) for found in gone]


def all_gone(leads: Sequence[str], gone: Sequence[object]) -> None:
    """Raises `LeadProtectError` where code of the host keeps a lead; the transaction does not commit then."""
    if len(gone) != len(leads):
        raise LeadProtectError(
            f"{len(leads) - len(gone)} leads could not be deleted, since code of the host keeps them; let its "
            "triggers and rules on the leads delete what moves"
        )


def _marked(statement: str) -> str:
    """`@` stands for a value, so that a name of the host with % in it means itself."""
    return statement.replace("%", "%%").replace("@::", "%s::")


def ordered(conn: Connection, s: Settings, leads: Sequence[str]) -> list[str]:
    """The ids as the server writes and sorts them, each once; raises `InvalidRequest` for what is no id."""
    statement = render(
        f"SELECT DISTINCT u.lead, u.lead::text FROM unnest(%s::text[]::{type_name(s.lead_id_type)}[]) "
        "AS u (lead) ORDER BY u.lead",
        s,
    )
    return [text for _, text in rows(conn, statement, ([*leads],))]
