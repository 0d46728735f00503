"""Proposes the settings for a database, each with its reason, and says what only a person can tell."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leadprotect.adoption.called import (
    ACTIVITIES,
    CODES,
    CUSTOMERS,
    KINDS,
    LEADS,
    MOMENTS,
    OWNERS,
    PLACES,
    QUALIFY,
    TERRITORIES,
    TEXTS,
    TIMES,
    TYPES,
    USERS,
    first_of,
    is_activities,
    is_aside,
    is_id,
    is_text,
    like,
    names_people,
    one_of,
    rank,
    says_of_what,
    snake,
)
from leadprotect.adoption.survey import (
    HostTable,
    by_few_values,
    changing,
    claims_read,
    compared,
    exempt_logins,
    meant_by,
    read_only,
    tables_of,
    values_of,
    values_told,
)
from leadprotect.database.catalog import relation
from leadprotect.errors import SettingsError
from leadprotect.preflight.columns import columns_of
from leadprotect.settings import KEYS, Settings, ident, literal, table
from leadprotect.settings.codes import as_setting, suffix_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import psycopg

    from leadprotect.adoption.survey import HostColumn

_SETTING = re.compile(r"current_setting\('([^']+)'")
_SURE = 2
"""How many points the best table must have before the next."""


@dataclass(frozen=True)
class Proposed:
    """A setting with its reason."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class Open:
    """What only a person can tell; `candidates` are what he may mean, the likeliest first."""

    key: str
    question: str
    candidates: tuple[str, ...]


@dataclass
class Proposal:
    """Settings for a database, what is open, and what to know before the first upgrade.

    `hidden` says that rows were, from the login that looked; then what is told by rows is not all.
    """

    proposed: list[Proposed] = field(default_factory=list)
    open: list[Open] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hidden: str = ""

    @property
    def settings(self) -> dict[str, str]:
        """Key -> value, as section ``[leadprotect]`` has them."""
        return {one.key: one.value for one in self.proposed}


def propose(conn: psycopg.Connection[Any], *, given: Mapping[str, str], guess: bool = False) -> Proposal:
    """Look at the database of `conn` in a read-only transaction, and propose what `given` does not say.

    With `guess` the likeliest answer is taken where more than one is possible. `conn` is in autocommit.
    """
    look = _Look(conn, dict(given), guess=guess)
    with read_only(conn):
        look.leads_and_what_hangs_on_them()
    known = look.proposal.settings
    look.proposal.proposed += [Proposed(key, value, "as you said") for key, value in given.items() if key not in known]
    return look.proposal


@dataclass
class _Look:
    """One look at a database: what is known so far."""

    conn: psycopg.Connection[Any]
    given: dict[str, str]
    guess: bool
    proposal: Proposal = field(default_factory=Proposal)
    tables: dict[str, HostTable] = field(default_factory=dict)
    views: dict[str, HostTable] = field(default_factory=dict)

    def leads_and_what_hangs_on_them(self) -> None:
        schema = self.given.get("schema", Settings().schema)
        there = {one.name: one for one in tables_of(self.conn, but=(schema, f"{schema}_quarantine"))}
        self.tables = {name: one for name, one in there.items() if one.kind != "v"}
        self.views = {name: one for name, one in there.items() if one.kind == "v"}
        leads = self._leads()
        if leads is None:
            return
        self._say("leads_table", leads.name, self._why_leads(leads))
        self._lead(leads)
        owner = self._owner(leads)
        activities = self._activities(leads, owner)
        if activities is not None:
            self._say("activities_table", activities.name, f"refers to {leads.name}, with a user and a time")
            self._activity(leads, activities)
        self._owners_from(leads, owner, activities)
        self._lead_tables(leads, activities)
        self._denied_edit(leads)
        self._hidden(leads, *([activities] if activities else []))
        self._row_security(leads)
        self._logins(leads)

    # --- saying

    def _say(self, key: str, value: str | None, reason: str) -> None:
        if key in self.given:
            value, reason = self.given[key], "as you said"
        if value is not None and key in KEYS:
            self.proposal.proposed.append(Proposed(key, value, reason))

    def _ask(self, key: str, question: str, candidates: Iterable[str], *, plausible: bool = True) -> str | None:
        """The likeliest one where guessing is allowed and the candidates are more than a list; else it stays open."""
        those = tuple(candidates)
        if self.guess and those and plausible:
            return those[0]
        self.proposal.open.append(Open(key, question, those))
        return None

    def _column(
        self, key: str, of: HostTable, patterns: tuple[str, ...], fits: Callable[[HostColumn], bool]
    ) -> str | None:
        """The column that a setting names: as given, or the best by its name among those whose type fits."""
        if key in self.given:
            return self.given[key]
        named = ((rank(one.name, patterns), one.name) for one in of.columns.values() if fits(one))
        return next((name for place, name in sorted(named) if place < len(patterns)), None)

    # --- the leads

    def _leads(self) -> HostTable | None:
        if said := self.given.get("leads_table"):
            return self._known("leads_table", said)
        scored = sorted(
            ((self._points(one), one.name) for one in self.tables.values()), key=lambda pair: (-pair[0], pair[1])
        )
        those = [(points, name) for points, name in scored if points > 0][:5]
        if those and (len(those) == 1 or those[0][0] >= those[1][0] + _SURE):
            return self.tables[those[0][1]]
        if those:
            best = self._ask("leads_table", "which table holds the leads?", [name for _, name in those])
        else:  # by another name they have owners, and activities
            owned = [one for one in self.tables.values() if one.keys and self._owner(one)]
            owned.sort(
                key=lambda one: (
                    not self._has_activities(one), rank(one.plain, CUSTOMERS), -len(self._referring(one)), one.name
                )
            )  # fmt: skip
            question = "no table is called like leads: which one holds them?"
            best = self._ask("leads_table", question, [one.name for one in owned[:5]], plausible=False)
        return self.tables[best] if best else None

    def _known(self, key: str, name: str) -> HostTable:
        if name not in self.tables:
            raise SettingsError(
                f"{key}: there is no table {name}; there are {', '.join(sorted(self.tables)) or 'none'}"
            )
        return self.tables[name]

    def _points(self, one: HostTable) -> int:
        place = rank(one.plain, LEADS)
        if place == len(LEADS) or is_aside(one) or not one.keys:
            return 0
        referred = min(len(self._referring(one)), 3)
        territory = 2 if first_of(one, TERRITORIES, is_text) else 0
        return 2 * (len(LEADS) - place) + referred + territory

    def _referring(self, one: HostTable) -> list[HostTable]:
        return [other for other in self.tables.values() if one.name in other.refers.values() and other is not one]

    def _why_leads(self, leads: HostTable) -> str:
        count = len(self._referring(leads))
        referred = (
            f", and {count} table{'s' if count > 1 else ''} refer{'' if count > 1 else 's'} to it" if count else ""
        )
        return f"called like leads{referred}"

    def _lead(self, leads: HostTable) -> None:
        key = self.given.get("lead_id_column") or next(
            (name for name in leads.keys if leads.columns[name].type in TYPES), None
        )
        if key is None:
            question = f"no column of {leads.name} is unique alone: which one identifies a lead?"
            key = self._ask("lead_id_column", question, leads.columns, plausible=False)
        if key is not None:
            self._say("lead_id_column", key, "unique alone")
            kind = leads.columns[key].type if key in leads.columns else ""
            self._say("lead_id_type", TYPES.get(kind), f"its type is {kind}")
        self._territory(leads)

    def _territory(self, leads: HostTable) -> None:
        if said := self.given.get("territory_expression"):
            self._say("territory_expression", said, "as you said")
            return self._territories(leads, "the expression", values_told(self.conn, leads, said))
        column = self._column("territory_column", leads, TERRITORIES, is_text)
        if column is None and (place := self._place(leads)):
            return self._of_place(leads, place)
        if column is None:
            texts = by_few_values(self.conn, leads, [one.name for one in leads.columns.values() if is_text(one)])
            question = f"no text column of {leads.name} is called like a territory: which one tells it?"
            column = self._ask("territory_column", question, texts, plausible=False)
        if column is None:
            return None
        found = values_of(self.conn, leads, column)
        if not self._expression(leads, column, found or {}):
            self._say("territory_column", column, "called like a territory")
        return self._territories(leads, column, found)

    def _territories(self, leads: HostTable, column: str, found: dict[str, int] | None) -> None:
        """Which territories there are, by what stands in the data."""
        if "territories" in self.given:
            return
        codes = _codes([value for value in found or () if value])
        if not found:
            why = "can't be read" if found is None else "shows nothing" if leads.binding else "holds nothing yet"
            answer = self._ask("territories", f"{leads.name}.{column} {why}: which territories are there?", [])
            self._say("territories", answer, "")
            return
        told = ", ".join(f"{value} {count:,}" for value, count in list(found.items())[:8])
        self._say("territories", ", ".join(codes.values()) or None, f"what stands in {column}: {told}")
        if odd := [value for value in found if value not in codes]:
            self.proposal.remarks.append(
                f"{leads.name}.{column} holds {', '.join(map(repr, odd[:5]))}, which can be no code of a territory: "
                "those leads would be in none that anybody may be admitted to"
            )

    def _place(self, leads: HostTable) -> str | None:
        """The column that refers to a table of places, the likeliest first."""
        named = sorted(
            (rank(self.tables[target].plain, PLACES), column)
            for column, target in leads.refers.items()
            if target in self.tables and target != leads.name
        )
        return next((column for place, column in named if place < len(PLACES)), None)

    def _of_place(self, leads: HostTable, column: str) -> None:
        """A lead refers to its place, whose code is the territory: what each id means is written down."""
        places = self.tables[leads.refers[column]]
        code = first_of(places, CODES, is_text)
        means = meant_by(self.conn, leads, column, code) if code else None
        if not means:
            question = f"{column} of {leads.name} refers to {places.name}: which of its rows is which territory?"
            example = f"CASE {ident(column)} WHEN ... THEN 'DE' END"
            self._ask("territory_expression", question, [example], plausible=False)
            return
        told = " ".join(f"WHEN {literal(key)} THEN {literal(value)}" for key, value, _ in means)
        self._say(
            "territory_expression", f"CASE {ident(column)} {told} END", f"{column} refers to {places.name}.{code}"
        )
        self._territories(leads, f"{places.name}.{code}", {value: count for _, value, count in means})
        self.proposal.remarks.append(
            f"the territory is written down for each row of {places.name}: leads of a row that comes later are in no "
            "territory until territory_expression names it"
        )

    def _expression(self, leads: HostTable, column: str, found: dict[str, int]) -> bool:
        """What tells the territory where one column alone does not: of another type, or empty where a second speaks."""
        if "territory_column" in self.given:
            return False
        seen = columns_of(self.conn, relation(self.conn, *leads.name.split(".", 1))).get(column)
        if seen is not None and seen.base not in TEXTS:
            expression = seen.as_expression.partition(" = ")[2]
            self._say("territory_expression", expression, f"{column} is {seen.type}, and its text is wanted")
            return True
        for other in like(leads, TERRITORIES, is_text):
            theirs = {} if other == column else values_of(self.conn, leads, other) or {}
            # codes of another shape are another thing than the first column's
            theirs = {code: count for code, count in theirs.items() if code}
            if not theirs or set(theirs) != set(_codes([*theirs])) or not set(map(len, theirs)) <= set(map(len, found)):
                continue
            alone, differ = compared(self.conn, leads, column, other)
            if alone and not differ:
                why = f"{column} is empty in {alone:,} of the rows looked at where {other} holds such a code"
                found |= {code: found.get(code, 0) + count for code, count in theirs.items()}
                self._say(
                    "territory_expression", f"coalesce({ident(column)}, {ident(other)})", f"{why}; they never differ"
                )
                return True
        return False

    # --- the activities

    def _owner(self, leads: HostTable) -> str | None:
        """The column in which the host names an owner himself."""

        def fits(one: HostColumn) -> bool:
            if one.type not in TYPES or one.name in leads.keys:
                return False
            target = leads.refers.get(one.name)
            return names_people(target, self.tables[target].keys if target in self.tables else ())

        return self._column("owner_column", leads, OWNERS, fits)

    def _owners_from(self, leads: HostTable, owner: str | None, activities: HostTable | None) -> None:
        """Where owners come from: the column first, where there is one of the users' type."""
        if owner is None or owner not in leads.columns or self.given.get("owners_from") == "activities":
            return
        kind = TYPES.get(leads.columns[owner].type)
        users = self.proposal.settings.get("user_id_type", kind)
        if kind != users:
            self.proposal.remarks.append(
                f"{leads.name}.{owner} looks like an owner, but users are {users} and it is {kind}: it is left out"
            )
            return
        self._say("owner_column", owner, "the owner that the host keeps himself")
        if activities is None:
            self._say("owners_from", "column", "no table of activities refers to the leads")
            self._linked(leads)
            self._say("user_id_type", kind, f"{owner} is {leads.columns[owner].type}")
        else:
            self._say(
                "owners_from", "column, activities", f"{owner} says who owns a lead, activities where it is empty"
            )

    def _activities(self, leads: HostTable, owner: str | None) -> HostTable | None:
        if said := self.given.get("activities_table"):
            return self.views.get(said) or self._known("activities_table", said)
        if self.given.get("owners_from") == "column":  # then none is asked who owns a lead
            return None
        fit = [one for one in self.tables.values() if one is not leads and self._serves(leads, one)]
        ranked = sorted(
            fit, key=lambda one: (rank(one.plain, ACTIVITIES), leads.name not in one.refers.values(), one.name)
        )
        best = [one.name for one in ranked if is_activities(one)]
        first = [
            name
            for name in best
            if rank(self.tables[name].plain, ACTIVITIES) == rank(self.tables[best[0]].plain, ACTIVITIES)
        ]
        if len(first) == 1:
            return self.tables[first[0]]
        if not best and owner is not None:
            return None
        question = f"which table holds the activities of {leads.name}, with a user and a time?"
        answer = self._ask("activities_table", question, best or [one.name for one in ranked])
        return self.tables[answer] if answer else None

    def _linked(self, leads: HostTable) -> None:
        """Activities that a table of links leads to: no setting names two tables, a view of the host's does."""
        for link in self.tables.values():
            lead = self._lead_of(leads, link)
            for column, target in link.refers.items():
                one = self.tables.get(target)
                if lead is None or one is None or column == lead or not (is_activities(one) and one.keys):
                    continue
                user, at = first_of(one, USERS, is_id), first_of(one, MOMENTS, lambda each: each.type in TIMES)
                if user and at and not self._lead_of(leads, one):
                    kind, says = first_of(one, KINDS, is_text), self._subjects(link).get(lead)
                    shown = [*(("l", name) for name in (*link.keys[:1], lead, says) if name),
                             *(("a", name) for name in (user, at, kind) if name)]  # fmt: skip
                    self.proposal.remarks.append(
                        f"{one.name} may say who works on a lead, and {link.name} of which. If its users are to own "
                        f"leads, make a view: CREATE VIEW {table(link.name + '_of_leads')} AS SELECT "
                        f"{', '.join(f'{alias}.{ident(name)}' for alias, name in shown)} "
                        f"FROM {table(link.name)} AS l JOIN {table(one.name)} AS a "
                        f"ON a.{ident(one.keys[0])} = l.{ident(column)}; and name it: leadprotect init "
                        f"--set 'activities_table={link.name}_of_leads' --set 'activity_base_table={link.name}'"
                    )
                    return

    def _has_activities(self, one: HostTable) -> bool:
        return any(self._serves(one, other) for other in self._referring(one))

    def _serves(self, leads: HostTable, one: HostTable) -> bool:
        return bool(
            self._lead_of(leads, one) and first_of(one, USERS, is_id)
            and any(column.type in TIMES for column in one.columns.values())
        )  # fmt: skip

    def _lead_of(self, leads: HostTable, one: HostTable) -> str | None:
        """The column that names the lead: by its foreign key, or by its name."""
        by_key = [column for column, target in one.refers.items() if target == leads.name]
        named = (r"lead(_id)?", rf"{re.escape(snake(one_of(leads)))}(_id)?")
        return next(iter(by_key), None) or first_of(one, named, is_id) or next(iter(self._subjects(one)), None)

    def _subjects(self, one: HostTable) -> dict[str, str]:
        """Columns with an id of whatever a second one names: the id -> the column that says what it is of."""
        found = {}
        for name, column in one.columns.items():
            if not is_id(column) or name in one.refers:
                continue
            says = next((other for other in says_of_what(name) if other in one.columns), None)
            if says is not None and is_text(one.columns[says]):
                found[name] = says
        return found

    def _activity(self, leads: HostTable, one: HostTable) -> None:
        lead = self._lead_of(leads, one)
        if one.kind == "v":
            self._base_of(one)
            self._say("activity_id_column", first_of(one, ("id", r".*_?id"), is_id), "called like a key")
        else:
            self._say("activity_id_column", next(iter(one.keys), None), "unique alone")
        if lead in (subjects := self._subjects(one)):
            self._of_subject(leads, one, lead, subjects[lead])
        else:
            self._say("activity_lead_id_column", lead, "names the lead")
            self._say_condition(None, self._kept(one))
        user = self._column("activity_user_id_column", one, USERS, lambda column: is_id(column) and column.name != lead)
        if user is None:
            user = self._ask("activity_user_id_column", f"which column of {one.name} names the user?", one.columns)
        self._say("activity_user_id_column", user, "called like a user")
        if user in one.columns:
            kind = one.columns[user].type
            self._say("user_id_type", TYPES.get(kind), f"{user} is {kind}")
        at = self._column("activity_at_column", one, MOMENTS, lambda column: column.type in TIMES)
        self._say("activity_at_column", at, "called like when it happened")
        self._kind(one)

    def _base_of(self, view: HostTable) -> None:
        """A view has no triggers: of which table its rows are is said, or asked."""
        base = self.given.get("activity_base_table")
        if base is None:
            question = f"{view.name} is a view: of which table is each row of it one?"
            self._ask("activity_base_table", question, [], plausible=False)
        else:
            self._say("activity_base_table", self._known("activity_base_table", base).name, "as you said")

    def _of_subject(self, leads: HostTable, one: HostTable, lead: str, says: str) -> None:
        """An activity of anything: which of them are of leads stands in a second column."""
        found = values_of(self.conn, one, says) or {}
        called = (rf"(.*[\\.:/])?{re.escape(snake(one_of(leads)))}s?", r"(.*[\\.:/])?leads?")
        ranked = sorted((rank(value, called), value) for value in found)
        likely = [value for place, value in ranked if place < len(called)]
        if not likely:
            told = ", ".join(found) or _nothing(one)
            question = f"which value of {one.name}.{says} means a lead (there is: {told})?"
            answer = self._ask("activity_condition", question, [_means(says, value) for value in found])
            self._say_condition(answer, self._kept(one))
        else:
            self._say_condition(
                (_means(says, likely[0]), f"{lead} is the id of whatever {says} names"), self._kept(one)
            )
        wanted, kind = self.proposal.settings.get("lead_id_type"), TYPES.get(one.columns[lead].type)
        cast = f"{ident(lead)}::{wanted}" if wanted and kind != wanted else lead
        self._say("activity_lead_id_column", cast, "names the lead" if cast == lead else f"names the lead, as {kind}")

    def _kept(self, one: HostTable) -> tuple[str, str] | None:
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

    def _say_condition(self, *parts: tuple[str, str] | str | None) -> None:
        told = [part if isinstance(part, tuple) else (part, "as you said") for part in parts if part]
        if told:
            self._say("activity_condition", " AND ".join(one for one, _ in told), "; ".join(why for _, why in told))

    # --- what else holds data of a lead

    def _lead_tables(self, leads: HostTable, activities: HostTable | None) -> None:
        """Tables whose rows go with their lead: whoever may not see the one may not read the other."""
        found, why, open_to_all = [], [], []
        for one in self._referring(leads):
            column = next((name for name, target in one.refers.items() if target == leads.name), "")
            what = f"{one.name} ({column})"
            if column not in one.cascades:
                open_to_all.append(what)
                continue
            if one.kind != "r":
                self.proposal.remarks.append(
                    f"{what} holds data of leads and is partitioned: lead_tables can't protect it"
                )
            elif column not in one.indexed:
                index = f"CREATE INDEX CONCURRENTLY ON {table(one.name)} ({ident(column)});"
                self.proposal.remarks.append(
                    f"{what} holds data of leads: name it in lead_tables once it has an index: {index}"
                )
            else:
                adds = one is activities or re.search(r"activit|event|log|histor|audit|note|comment", snake(one.plain))
                found.append(what + (" append" if adds else ""))
                why.append(one.plain)
        if found:
            goes = f"rows of {', '.join(why)} go with their lead (ON DELETE CASCADE)"
            self._say("lead_tables", ", ".join(found), f"{goes}, so they are seen by whom it is seen by")
        if open_to_all and "lead_tables" not in self.given:
            refer, stay = ("refer", "stay") if len(open_to_all) > 1 else ("refers", "stays")
            self.proposal.remarks.append(
                f"{', '.join(open_to_all)} {refer} to {leads.name} too, and {stay} as readable as today: name in "
                "lead_tables what holds data of a lead"
            )

    def _denied_edit(self, leads: HostTable) -> None:
        """Code of several steps goes on after an UPDATE of 0 rows, and ends half done; an error ends it whole."""
        if found := changing(self.conn, leads):
            reason = f"{', '.join(found)} changes leads among other steps: with hide it would go on, half done"
            self._say("denied_edit", "raise", reason)

    def _kind(self, one: HostTable) -> None:
        of_what = set(self._subjects(one).values())
        column = self._column(
            "activity_kind_column", one, KINDS, lambda each: is_text(each) and each.name not in of_what
        )
        if column is None and self.guess:
            self._say("activity_kind_column", "", "no column says a kind in words, so every activity makes an owner")
            others = [name for name, target in one.refers.items() if rank(target.partition(".")[2], KINDS) < len(KINDS)]
            if others:
                self.proposal.remarks.append(
                    f"{one.name}.{', '.join(others)} may say which activities make an owner: name them in "
                    f"activity_condition, such as {ident(others[0])} IN (1, 2)"
                )
            return
        if column is None:
            column = self._ask("activity_kind_column", f"which column of {one.name} says what kind an activity is?",
                               [each.name for each in one.columns.values() if is_text(each)])  # fmt: skip
        if column is None:
            return
        self._say("activity_kind_column", column, "called like a kind")
        found = values_of(self.conn, one, column)
        told = ", ".join(f"{value} {count:,}" for value, count in list((found or {}).items())[:8])
        usual = [kind for kind in Settings().qualifying_kinds if kind in (found or {})]
        likely = usual or [value for value in found or () if QUALIFY.search(value)]
        if likely:
            self._say("qualifying_kinds", ", ".join(likely), f"look like what makes an owner, among {told}")
        elif "qualifying_kinds" not in self.given:
            there = f" (there are: {told})" if told else f" (there is: {_nothing(one)})"
            answer = self._ask(
                "qualifying_kinds",
                f"which kinds of {one.name}.{column} make an owner{there}?",
                [", ".join(found)] if found else [],
            )
            self._say("qualifying_kinds", answer, f"every kind that stands there: {told}")

    # --- who is bound

    def _hidden(self, *read: HostTable) -> None:
        """What is told by rows is told by those that this login is shown."""
        if bound := dict.fromkeys(one.name for one in read if one.binding):
            self.proposal.hidden = (
                f"row security of {' and '.join(bound)} binds {self.conn.info.user} and hides rows of it: run init as "
                "a login that sees all of them (DATABASE_URL of a superuser or one with BYPASSRLS), and migrate as ever"
            )

    def _row_security(self, leads: HostTable) -> None:
        if leads.forced:
            self._say("host_rls", "force", f"{leads.name} is FORCEd already, so its owner is bound as he is today")
        if not leads.row_security:
            return
        told = ", ".join(leads.policies) or "none"
        self.proposal.remarks.append(
            f"{leads.name} has row security of its own (policies: {told}): it goes on deciding, and is narrowed only"
        )
        named = list(dict.fromkeys(name for text in leads.policies.values() for name in _SETTING.findall(text)))
        claims = claims_read(self.conn)
        for key, pattern in (
            ("user_guc", r"^sub$|user|uid|seller|member"),
            ("territory_guc", r"territor|region|market|country"),
        ):
            if found := next((name for name in named if re.search(pattern, name)), None):
                self._say(key, found, "the host's policies read it")
            elif claim := next(((name, of) for name, of in claims if re.search(pattern, of, re.IGNORECASE)), None):
                self._say(key, " ->> ".join(claim), "the host's policies, or functions that they call, read it so")
                kind = self.proposal.settings.get("user_id_type")
                if key == "user_guc" and kind in ("bigint", "integer") and key not in self.given:
                    self.proposal.remarks.append(
                        f"users are {kind} here: a claim {claim[1]} that holds anything else is no context; put the "
                        f"number into a claim of its own, and name it: user_guc = {claim[0]} ->> user_id"
                    )
            elif key == "territory_guc" and claims and "user_guc" in self.proposal.settings:
                holds = f"users are declared in {claims[0][0]}, and no field of it is called like a territory"
                self.proposal.remarks.append(
                    f"{holds}: put one into it, and name it: territory_guc = {claims[0][0]} ->> territory"
                )

    def _logins(self, leads: HostTable) -> None:
        if found := exempt_logins(self.conn, leads):
            self.proposal.remarks.append(
                f"{', '.join(found)} only read{'s' if len(found) == 1 else ''} {leads.name}, or no row security binds "
                f"{'it' if len(found) == 1 else 'them'}: name in exempt_roles who is to see every territory afterwards"
            )


def _nothing(one: HostTable) -> str:
    """What stands where no row is seen."""
    return "nothing that this login is shown" if one.binding else "nothing yet"


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


def _means(column: str, value: str) -> str:
    """The condition that a column holds a value; a class with its namespace is told by its end."""
    plain = re.split(r"\\|%", value)[-1]
    tested = f"right({ident(column)}, {len(plain)})" if plain != value else ident(column)
    return f"{tested} = {literal(plain)}"
