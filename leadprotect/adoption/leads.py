"""Which table holds the leads, and what identifies one and tells its territory."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from leadprotect.adoption.activities import has_activities, owner_column
from leadprotect.adoption.called import (
    CODES,
    CUSTOMERS,
    LEADS,
    PLACES,
    TERRITORIES,
    TEXTS,
    TYPES,
    first_of,
    is_aside,
    is_text,
    like,
    rank,
)
from leadprotect.adoption.survey import HostTable, by_few_values, compared, meant_by, values_of, values_told
from leadprotect.database.catalog import relation
from leadprotect.errors import SettingsError
from leadprotect.preflight.columns import columns_of
from leadprotect.settings import ident
from leadprotect.settings.codes import as_setting, suffix_of
from leadprotect.settings.expressions import constant

if TYPE_CHECKING:
    from leadprotect.adoption.look import Look

_SURE = 2
"""How many points the best table must have before the next."""


def which_leads(look: Look) -> HostTable | None:
    """The table that holds the leads: as given, or the best by its name and what refers to it; None: it is open."""
    if said := look.given.get("leads_table"):
        return look.known("leads_table", said)
    scored = sorted(
        ((_points(look, one), one.name) for one in look.tables.values()), key=lambda pair: (-pair[0], pair[1])
    )
    those = [(points, name) for points, name in scored if points > 0][:5]
    if those and (len(those) == 1 or those[0][0] >= those[1][0] + _SURE):
        return look.tables[those[0][1]]
    if those:
        best = look.ask("leads_table", "which table holds the leads?", [name for _, name in those])
    else:  # by another name they have owners, and activities
        keyed = [one for one in look.tables.values() if one.keys]
        owned = [one for one in keyed if rank(one.plain, CUSTOMERS) < len(CUSTOMERS) or owner_column(look, one)]
        owned.sort(
            key=lambda one: (
                not has_activities(look, one), rank(one.plain, CUSTOMERS), -len(look.referring(one)), one.name
            )
        )  # fmt: skip
        question = "no table is called like leads: which one holds them?"
        best = look.ask("leads_table", question, [one.name for one in owned[:5]], plausible=False)
    return look.tables[best] if best else None


def _points(look: Look, one: HostTable) -> int:
    place = rank(one.plain, LEADS)
    if place == len(LEADS) or is_aside(one) or not one.keys:
        return 0
    referred = min(len(look.referring(one)), 3)
    territory = 2 if first_of(one, TERRITORIES, is_text) else 0
    return 2 * (len(LEADS) - place) + referred + territory


def why_leads(look: Look, leads: HostTable) -> str:
    """The reason to take this table."""
    count = len(look.referring(leads))
    referred = f", and {count} table{'s' if count > 1 else ''} refer{'' if count > 1 else 's'} to it" if count else ""
    return f"called like leads{referred}"


def describe_lead(look: Look, leads: HostTable) -> None:
    """Say what identifies a lead, and what tells its territory."""
    key = look.given.get("lead_id_column") or next(
        (name for name in leads.keys if leads.columns[name].type in TYPES), None
    )
    if key is None:
        question = f"no column of {leads.name} is unique alone: which one identifies a lead?"
        key = look.ask("lead_id_column", question, leads.columns, plausible=False)
    if key is not None:
        look.say("lead_id_column", key, "unique alone")
        kind = leads.columns[key].type if key in leads.columns else ""
        look.say("lead_id_type", TYPES.get(kind), f"its type is {kind}")
    _territory(look, leads)


def _territory(look: Look, leads: HostTable) -> None:
    if said := look.given.get("territory_expression"):
        look.say("territory_expression", said, "as you said")
        return _territories(look, leads, "the expression", values_told(look.conn, leads, said))
    column = look.column("territory_column", leads, TERRITORIES, is_text)
    if column is not None and column not in leads.columns:
        raise SettingsError(
            f"territory_column: {leads.name} has no column {column}; it has {', '.join(sorted(leads.columns))}"
        )
    if column is None and (place := _place(look, leads)):
        return _of_place(look, leads, place)
    if column is None:
        texts = by_few_values(look.conn, leads, [one.name for one in leads.columns.values() if is_text(one)])
        question = f"no text column of {leads.name} is called like a territory: which one tells it?"
        column = look.ask("territory_column", question, texts, plausible=False)
    if column is None:
        return None
    found = values_of(look.conn, leads, column)
    if not _expression(look, leads, column, found or {}):
        look.say("territory_column", column, "called like a territory")
    return _territories(look, leads, column, found)


def _territories(look: Look, leads: HostTable, column: str, found: dict[str, int] | None) -> None:
    """Which territories there are, by what stands in the data."""
    if "territories" in look.given:
        return
    codes = _codes([value for value in found or () if value])
    if not found:
        why = "can't be read" if found is None else "shows nothing" if leads.binding else "holds nothing yet"
        answer = look.ask("territories", f"{leads.name}.{column} {why}: which territories are there?", [])
        look.say("territories", answer, "")
        return
    told = ", ".join(f"{value or 'no territory'} {count:,}" for value, count in list(found.items())[:8])
    look.say("territories", ", ".join(codes.values()) or None, f"what stands in {column}: {told}")
    if odd := [value for value in found if value and value not in codes]:
        look.proposal.remarks.append(
            f"{leads.name}.{column} holds {', '.join(map(repr, odd[:5]))}, which can be no code of a territory: "
            "those leads would be in none that anybody may be admitted to"
        )


def _place(look: Look, leads: HostTable) -> str | None:
    """The column that refers to a table of places, the likeliest first."""
    named = sorted(
        (rank(look.tables[target].plain, PLACES), column)
        for column, target in leads.refers.items()
        if target in look.tables and target != leads.name
    )
    return next((column for place, column in named if place < len(PLACES)), None)


def _of_place(look: Look, leads: HostTable, column: str) -> None:
    """A lead refers to its place, whose code is the territory: what each id means is written down."""
    places = look.tables[leads.refers[column]]
    code = first_of(places, CODES, is_text)
    means = meant_by(look.conn, leads, column, code) if code else None
    if not means:
        question = f"{column} of {leads.name} refers to {places.name}: which of its rows is which territory?"
        example = f"CASE {ident(column)} WHEN ... THEN 'DE' END"
        look.ask("territory_expression", question, [example], plausible=False)
        return
    told = " ".join(f"WHEN {constant(key)} THEN {constant(value)}" for key, value, _ in means)
    look.say("territory_expression", f"CASE {ident(column)} {told} END", f"{column} refers to {places.name}.{code}")
    _territories(look, leads, f"{places.name}.{code}", {value: count for _, value, count in means})
    look.proposal.remarks.append(
        f"the territory is written down for each row of {places.name}: leads of a row that comes later are in no "
        "territory until territory_expression names it"
    )


def _expression(look: Look, leads: HostTable, column: str, found: dict[str, int]) -> bool:
    """What tells the territory where one column alone does not: of another type, or empty where a second speaks."""
    if "territory_column" in look.given:
        return False
    seen = columns_of(look.conn, relation(look.conn, *leads.name.split(".", 1))).get(column)
    if seen is not None and seen.base not in TEXTS:
        look.say("territory_expression", seen.as_text, f"{column} is {seen.type}, and its text is wanted")
        return True
    for other in like(leads, TERRITORIES, is_text):
        theirs = {} if other == column else values_of(look.conn, leads, other) or {}
        # codes of another shape are another thing than the first column's
        theirs = {code: count for code, count in theirs.items() if code}
        if not theirs or set(theirs) != set(_codes([*theirs])) or not set(map(len, theirs)) <= set(map(len, found)):
            continue
        alone, differ = compared(look.conn, leads, column, other)
        if alone and not differ:
            why = f"{column} is empty in {alone:,} of the rows looked at where {other} holds such a code"
            found |= {code: found.get(code, 0) + count for code, count in theirs.items()}
            look.say("territory_expression", f"coalesce({ident(column)}, {ident(other)})", f"{why}; they never differ")
            return True
    return False


def _codes(values: list[str]) -> dict[str, str]:
    """What can be a territory, as the setting has it; what is no plain word gets a suffix that nobody has yet."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for value in values:
        plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().lower()
        spelled = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:16]
        for suffix in (None, spelled):
            try:
                said = suffix_of(value, suffix)
            except SettingsError:
                continue
            if said not in taken:
                taken.add(said)
                found[value] = as_setting(value, said)
                break
    return found
