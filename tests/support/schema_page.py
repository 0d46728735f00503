"""Writes docs/reference/schema.sql: what stands in a database at head, on one page (`make schema`)."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from leadprotect.settings import Settings, names
from tests.support.database import ROOT, Database
from tests.support.profiles import Profile
from tests.support.revisions import HEAD, MIGRATE_HEAD, SCRIPTS
from tests.support.servers import embedded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PAGE = ROOT / "docs" / "reference" / "schema.sql"
DEFAULTS = {"observation_window": "7 days"}
RULE = "-- " + "=" * 97

INTRODUCTION = f"""\
The schema of leadprotect with default settings, as it stands after {HEAD}.

Made by `make schema` from a real database with pg_dump; a test keeps it current. Do not edit. It is
a picture to read, no script to run: it leaves out the host's tables, the roles, and what is said below.

What is here. Seven tables hold facts: the territories and their VAT rates, who owns each lead (one row
per lead and territory) and who did before, who else may edit (the rules), every attempt (the audit),
and the seals over the attempts. The others hold the state of the migration, and a secret. One question
is asked everywhere: may the user in context edit this lead? decision() answers it. A service asks
through can_edit_lead() or assert_edit_and_audit(), a list of leads through v_lead_protection, and after
contract the server itself in the policies and triggers on the host's table, whatever code wrote.

Who may see what. A role leadprotect_<territory> admits to a territory; the context (three settings of a
transaction) chooses among those that the acting role holds. Each table with a territory carries that
border as the policy lp_border, restrictive and for everybody. Nobody writes but through our functions:
those that do are SECURITY DEFINER, and lp_inside opens the tables to their owner only inside of them.
That is leadprotect_owner: it owns what is here, and cannot read the host's tables. Where a heading says
"owner leadprotect_reader", the function is owned by a role that reads the columns of the host which are
granted in the last part, and writes nothing (where a setting names the host's own column for the owner,
that column, from contract on). Neither of the two has a login.

What is left out. The months of lead_access_audit: each is a partition like lead_access_audit_default,
which stands here as their example, with the same policies and the same trigger. The owners, except in
the headings. Of the host's tables everything that is not ours.

How to read. Each object comes with all that belongs to it: comments, keys, indexes, triggers, row
security, policies, grants. Its heading names the revision that made it; why it is so is told at the
top of that file and beside the statement, in migrations/versions. Objects of a part stand in the
order in which the revisions make them."""


@dataclass(frozen=True)
class Subject:
    """A part of the page: its title, what a DBA should know first, and the names (or patterns) of its objects."""

    title: str
    prose: str
    objects: str


SUBJECTS = (
    Subject(
        "Territories and the border",
        """The territories with their terms, and the border: which of them the acting role is in. Territories are
        rows; publish_territories() makes the constant that the policies ask from them. Everybody may ask
        admitted_territory(): other schemas can build on the same border.""",
        "leadprotect acting_role is_member claimed admitted_territory inside own_border all_territories "
        "territory_roles territory_role publish_territories is_code unreadable territories territory_vat_rates "
        "territory_terms",
    ),
    Subject(
        "Ownership and rules",
        """Who owns a lead, who owned it, and who else may edit it. Sellers claim, release and share their leads;
        managers assign, transfer, grant and revoke. Nobody writes these tables by hand: the functions check,
        lock, write and record in one step. change_owner() and change_sharing() are the same for the library:
        they return a denial where the public functions raise.""",
        "user_lead_assignments user_lead_assignment_history keep_assignment lead_protection_rules protection_type "
        "end_lead_rules end_rules is_manager require_manager lead_for_ownership claim_lead release_lead assign_lead "
        "transfer_lead *_owner change_owners change_together change_sharing try_change_sharing share_lead unshare_lead "
        "lead_shares grant_protection revoke_protection make_rule revoke_rule decide_as_manager change_rule v_owner_*",
    ),
    Subject(
        "Hand-overs",
        """Leads that move to the database of another territory. Each has a row of its state on either side, and is
        frozen on both until it is gone here: source 'moving' in user_lead_assignments. send_lead() and
        receive_lead() begin, hand_over() does each further step, and handover_holds() lets no transaction commit half
        of one.""",
        "lead_handovers handover_holds is_enforced hold_for_move require_not_moving send_lead receive_lead hand_over "
        "standing_handovers",
    ),
    Subject(
        "Decision",
        """May the user in context edit this lead, and why? Read decision() first: the others bring it the
        context, or answer for many leads at once. None of them writes.""",
        "parse_user context claiming set_context host_lead host_leads protected_leads in_force begins decision decide "
        "unsuspended editable_among editable_leads can_edit_lead explain_edit has_rules v_lead_protection "
        "protection_page",
    ),
    Subject(
        "Attempts and audit",
        """An attempt is decided again under locks, and recorded in a row that nobody changes. A denial raises, which
        takes its row back: record_denial() writes it in a transaction of its own, if the number and its proof are
        ours. The audit is partitioned by month: operators make the months, auditors read, and managers may ask
        who_could_edit().""",
        "lead_action lead_access_outcome lead_access_audit lead_access_audit_default refuse_change secure_audit_table "
        "audit_partitions add_audit_partition clear_audit_default create_audit_partitions who_could_edit rule_changes "
        "require_fresh_rules collaboration decide_locked bounded write_audit denial_secret denial_proof draw_denial "
        "proved_denials deny record_denial answered require record_edit_attempt try_edit allow_edit allow_edits "
        "assert_edit_and_audit",
    ),
    Subject(
        "Seals",
        """A chain of hashes per territory over the rows of the audit, so that an auditor can prove that none was
        changed, added or lost. Operators call seal_audit() regularly, and detach_audit_month() for a month that
        is sealed and old.""",
        "lead_access_audit_seals audit_anchors note_anchor audit_origin audit_settled_until sealed_numbers "
        "append_audit_seal seal_audit "
        "detach_audit_month audit_number_gaps",
    ),
    Subject(
        "Transition",
        """From expand to contract, activities make owners: the triggers of that time keep assignments current while
        the backfill walks, and note who writes without a context. The functions stay after contract, their triggers
        do not: undoing contract needs them.""",
        "contextless_writes note_contextless_write in_transition require_transition unsettled_leads note_unsettled "
        "own_moved_lead own_active_lead own_named_lead derived_owners "
        "earlier_activity",
    ),
    Subject(
        "Shadow",
        """Before contract nothing is denied; what would be is noted here while somebody lets it: `leadprotect shadow`
        puts the triggers on leads and lead_tables, and takes them away. A statement is decided as contract will, and
        nothing that goes wrong in that reaches it. Operators read the sums.""",
        "shadow_runs shadow_notes shadow_note shadow_failed shadow_saw shadow_run shadow_noted shadow_fold "
        "shadow_binds shadow_reason shadow_border shadow_edits shadow_inserts shadow_lead shadow_rows shadow_truncate",
    ),
    Subject(
        "Backfill and verification",
        """Owners for the leads that were there before us. Operators call these functions, mostly through `leadprotect
        backfill`: a job per territory, cut into chunks that workers lease. Verification counts what is left.""",
        "backfill_* chunk_bounds next_leads own_leads bare_leads probed_leads unowned_leads "
        "few_are_bare unowned_count sources_indexed",
    ),
    Subject(
        "Gate",
        """What holds contract back. gate_conditions() lists each condition and whether it is met, for operators;
        the revisions of contract call require_open_gate(). leadprotect guard keeps its run and its heartbeat here.""",
        "accepted_conditions accept_condition accepted_share tolerated shell_word acting_logins granting lead_tally "
        "leaking_views ways_around host_code column_code "
        "lost_searches what_changes lead_table_conditions shadow_condition gate_conditions require_open_gate "
        "guard_runs guard_beat "
        "guard_release",
    ),
    Subject(
        "Host",
        """What stands on the host's tables, the functions behind it, and what the tables were like before (that is
        how a downgrade gives them back). The triggers fire ALWAYS: session_replication_role does not silence them.""",
        "forget_lead asked_by edit_own_one edit_together acts_bound recorded_edit audit_edit audit_edits "
        "audit_truncate refuse_move refuse_taken own_new_lead hold_leads write_owner_column follow_lead follow_leads "
        "follow_owner_column hide_owner_column owner_column_differs settle_owner_column settings_at_contract "
        "host_row_security acts_bound_on edit_through child_edit child_edits child_move child_leads child_truncate "
        "lead_table_row_security alembic_version revision_undo host:*",
    ),
)


@dataclass(frozen=True)
class Fragment:
    """One entry of pg_dump: its type, name and schema as the header has them, and its statements."""

    kind: str
    name: str
    schema: str
    owner: str
    body: str


@dataclass
class Thing:
    """An object with all that belongs to it; `name` without arguments, so that overloads stand together."""

    name: str
    fragments: list[Fragment] = field(default_factory=list)

    @property
    def heading(self) -> str:
        first = self.fragments[0]
        return self.name.removeprefix("host:") if first.schema == "host" else f"{first.kind.lower()} {self.name}"


def page(database: Database) -> str:
    """Migrate a database that has the host's tables, with the default settings, and write its page."""
    database.upgrade(MIGRATE_HEAD)
    database.sql("UPDATE {schema}.backfill_jobs SET registered_at = now() - interval '8 days'")
    database.upgrade(HEAD)
    dump = [str(database.server.programs / "pg_dump"), "--schema-only", database.url]
    text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    return written(things(fragments(text, database.settings)), database.settings)


# --- what pg_dump says

BLOCK = re.compile(r"^--\n-- Name: (.*?); Type: (.*?); Schema: (.*?); Owner: (.*)\n--\n", re.MULTILINE)
MONTH = re.compile(r"lead_access_audit_\d{4}_\d{2}")
NOISE = re.compile(r"^(SET default_|\\restrict|\\unrestrict|--$|-- PostgreSQL database dump|ALTER .* OWNER TO \S+;$)")


def fragments(dump: str, settings: Settings) -> Iterator[Fragment]:
    """Our objects, and what we add to the host's, these with the schema `host`."""
    _, *parts = BLOCK.split(dump)
    for name, kind, schema, owner, text in zip(*(parts[start::5] for start in range(5)), strict=True):
        lines = [line for line in text.splitlines() if not NOISE.match(line)]
        ours = settings.schema in {schema, name.removeprefix("SCHEMA ")} or settings.version_table in name
        if not ours:
            lines = added(kind, lines, settings)
        body = "\n".join(lines).strip()
        if body and not MONTH.search(name + body):
            flags = kind == "TABLE" and not ours
            yield Fragment("ROW SECURITY" if flags else kind, name, schema if ours else "host", owner, body)


def added(kind: str, lines: list[str], settings: Settings) -> list[str]:
    """What is ours of an entry of the host: the flags of row security, grants to our roles, what bears our name."""
    if kind == "ROW SECURITY":
        return lines
    if kind == "TABLE":
        return [line for line in lines if line.endswith(" ROW LEVEL SECURITY;")]
    if kind == "ACL":
        return [line for line in lines if settings.schema in line]
    return lines if any(settings.schema in line for line in lines) else []


ORDER = {"ROW SECURITY": 1, "POLICY": 2, "ACL": 3}
"""Kinds that pg_dump puts elsewhere: after all that makes the object, and in this order."""


def things(given: Iterable[Fragment]) -> list[Thing]:
    """Put each fragment under its object."""
    entries = list(given)
    parts = dict(filter(None, map(held, entries)))
    found: dict[str, Thing] = {}
    for entry in entries:
        name = host_name(entry) if entry.schema == "host" else own_name(entry)
        name = parts.get(name, name)
        found.setdefault(name, Thing(name)).fragments.append(entry)
    for thing in found.values():
        thing.fragments.sort(key=lambda entry: ORDER.get(entry.kind, 0))
    return list(found.values())


def held(entry: Fragment) -> tuple[str, str] | None:
    """Name of an index, a key or a sequence of a column -> its table."""
    if entry.kind == "CONSTRAINT":
        table, name = entry.name.split(" ", 1)
        return name, table
    places = {"INDEX": r" ON (?:ONLY )?\w+\.(\w+)", "SEQUENCE OWNED BY": r" OWNED BY \w+\.(\w+)"}
    match = re.search(places[entry.kind], entry.body) if entry.kind in places else None
    return (entry.name, match[1]) if match and entry.schema != "host" else None


def own_name(entry: Fragment) -> str:
    """The object of ours that an entry belongs to."""
    name = entry.name
    if entry.kind in {"COMMENT", "ACL"}:  # TABLE t, COLUMN t.c, FUNCTION f(x text), TRIGGER t ON x
        what, name = name.split(" ", 1)
        name = name.split(" ON ")[-1] if what in {"CONSTRAINT", "POLICY", "TRIGGER"} else name
    return re.split(r"[ (.]", name, maxsplit=1)[0]


def host_name(entry: Fragment) -> str:
    """What stands on a table of the host is an object of its own."""
    table = re.search(r" (?:ON(?: TABLE)?|TABLE(?: ONLY)?) (\w+\.\w+)", entry.body)
    on = table[1] if table else entry.schema
    kinds = {"ACL": "grants on", "ROW SECURITY": "row security of"}
    said = kinds.get(entry.kind) or f"{entry.kind.lower()} {entry.name.split(' ')[-1]} on"
    return f"host:{said} {on}"


# --- what the revisions say


def origins(settings: Settings) -> dict[str, tuple[str, int]]:
    """Object -> the revision that makes it (of grants all that add one), and its place in the order of statements."""
    known, place = dict(names(settings)), count()
    # what is made for each table of activities, by its placeholders of the first one
    known |= {key.removesuffix("__"): text for key, text in known.items() if key.endswith("__")}
    found: dict[str, tuple[str, int]] = {}
    for script in SCRIPTS:
        source = Path(script.path).read_text(encoding="utf-8")
        source = re.sub(r"\{([a-z_]+)\}", lambda match: known.get(match[1], match[0]), source).replace('"', "")
        for match in MADE.finditer(source):
            for name in made(match):
                first, position = found.setdefault(name, (script.revision, next(place)))
                if match["granted"] and script.revision not in first:
                    found[name] = (f"{first}, {script.revision}", position)
    found[settings.version_table] = ("Alembic itself", next(place))
    return found


MADE = re.compile(
    r"CREATE SCHEMA (?:IF NOT EXISTS )?(?P<schema>\w+)"
    r"|CREATE (?:OR REPLACE )?[A-Z ]+ (?:leadprotect|%s)\.(?P<object>\w+)"  # %s: made anew at run time
    r"|CREATE (?P<kind>TRIGGER|POLICY|INDEX(?= CONCURRENTLY)) (?:CONCURRENTLY )?(?P<part>\w+)[^;]*? ON (?P<on>\w+\.\w+)"
    r"|GRANT [^;]*?\sON (?P<granted>\w+\.\w+) TO"
    r"|ALTER TABLE (?P<secured>\w+\.\w+) ENABLE ROW LEVEL SECURITY"
)


def made(match: re.Match[str]) -> Iterator[str]:
    """Names that `Thing` has for what a statement makes."""
    said = match.groupdict()
    if said["schema"] or said["object"]:
        yield said["schema"] or said["object"]
    if said["part"]:
        yield f"host:{said['kind'].lower()} {said['part']} on {said['on']}"
    if said["granted"]:
        yield f"host:grants on {said['granted']}"
    if said["secured"]:
        yield f"host:row security of {said['secured']}"


# --- the page


def written(found: Sequence[Thing], settings: Settings) -> str:
    """The page: introduction, contents, who may call what, then each subject."""
    made_by = origins(settings)
    for thing in found:
        if thing.name not in made_by:
            raise LookupError(f"{thing.heading}: no revision has a CREATE for it that `MADE` in {__name__} recognizes")
    found = sorted(found, key=lambda thing: made_by[thing.name][1])
    sorted_in = {subject.title: [thing for thing in found if subject_of(thing) is subject] for subject in SUBJECTS}
    parts = [part(subject, sorted_in[subject.title], made_by, settings) for subject in SUBJECTS]
    calls = "\n".join([RULE, "-- Who calls which function", RULE, "", *callers(found, settings)])
    top = "\n".join(f"-- {line}".rstrip() for line in INTRODUCTION.splitlines())
    begin = len(top.splitlines()) + len(parts) + 6
    contents, line = [f"--   {begin:5}  Who calls which function"], begin + len(calls.splitlines()) + 1
    for subject, text in zip(SUBJECTS, parts, strict=True):
        contents.append(f"--   {line:5}  {subject.title}")
        line += len(text.splitlines()) + 1
    return "\n".join([top, "--", "-- Contents, with the line:", "--", *contents, "", calls, "", "\n\n".join(parts), ""])


def subject_of(thing: Thing) -> Subject:
    """The one subject that names an object; a `LookupError` where it is none or two."""
    fitting = [
        subject for subject in SUBJECTS if any(fnmatchcase(thing.name, name) for name in subject.objects.split())
    ]
    if len(fitting) != 1:
        titles = " and ".join(f'"{subject.title}"' for subject in fitting) or "no subject"
        raise LookupError(
            f"{thing.heading} stands in {titles} of docs/reference/schema.sql. Write its name into the `objects` of "
            "one Subject in SUBJECTS, tests/support/schema_page.py, then run `make schema`"
        )
    return fitting[0]


def part(subject: Subject, found: Iterable[Thing], made_by: dict[str, tuple[str, int]], settings: Settings) -> str:
    lines = [RULE, f"-- {subject.title}", "--", *comment(" ".join(subject.prose.split())), RULE]
    for thing in found:
        owner = thing.fragments[0].owner
        said = f", owner {owner}" if thing.fragments[0].schema != "host" and owner == settings.role("reader") else ""
        lines += ["", f"-- {thing.heading}, {made_by[thing.name][0]}{said}", ""]
        lines += statements(thing)
    return "\n".join(lines)


def statements(thing: Thing) -> Iterator[str]:
    """The statements of an object, without empty lines between grants and between short ones of a kind."""
    before: Fragment | None = None
    for entry in thing.fragments:
        several = entry.kind != "ACL" and "\n" in f"{before and before.body}{entry.body}"
        if before and (before.kind != entry.kind or several):
            yield ""
        yield from entry.body.splitlines()
        before = entry


def callers(found: Iterable[Thing], settings: Settings) -> Iterator[str]:
    """Each office with the functions that are granted to it; a function without an office serves the others."""
    granted = {thing.name: grantees(thing) for thing in found if thing.fragments[0].kind == "FUNCTION"}
    roles = ["PUBLIC", *(settings.role(office) for office in ("app", "manager", "auditor", "operator"))]
    for role in roles:
        yield from [f"-- {role}", *comment(", ".join(name for name, to in granted.items() if role in to), "   "), "--"]
    inner = [name for name, to in granted.items() if to.isdisjoint(roles)]
    yield "-- nobody: they serve policies, triggers, revisions and the functions above"
    yield from comment(", ".join(inner), "   ")


def grantees(thing: Thing) -> set[str]:
    """Roles that may call a function: PUBLIC alone, as PostgreSQL has it, unless that is taken away."""
    text = "\n".join(entry.body for entry in thing.fragments if entry.kind == "ACL")
    taken = re.findall(r"^REVOKE ALL ON FUNCTION .* FROM PUBLIC;$", text, re.MULTILINE)
    overloads = [entry for entry in thing.fragments if entry.kind == "FUNCTION"]
    if len(taken) < len(overloads):
        return {"PUBLIC"}
    return set(re.findall(r"^GRANT ALL ON FUNCTION .* TO (\w+);$", text, re.MULTILINE))


def comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"-- {indent}", subsequent_indent=f"-- {indent}")


def main() -> None:
    with embedded() as server:
        defaults = Profile("page", server.major)
        Database(server, defaults, "postgres").sql("CREATE DATABASE page")
        database = Database(server, defaults, "page", DEFAULTS)
        os.environ.update(database.environment)
        database.create_host_tables()
        PAGE.write_text(page(database), encoding="utf-8")


if __name__ == "__main__":
    main()
