"""Draws what the catalog of a database at head says, and writes its comments on a page (`make pictures`)."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from leadprotect import phases
from tests.support.database import ROOT, Database
from tests.support.profiles import Profile
from tests.support.schema_page import SUBJECTS, Subject
from tests.support.servers import embedded
from tests.support.shipped import prepared
from tests.support.svg import LINE, PAD, WIDE, Picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GAP = 20
BORDER = [
    "the border: which territory's rows are seen and worked on at all",
    "a setting of the transaction chooses among those that the acting role holds",
    "the acting role is the login, or the one that SET ROLE chose",
    "leadprotect territory add makes the next one",
]

COLUMNS = """
    SELECT c.relname::text, a.attname::text,
           replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz'),
           EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary
                   AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    ORDER BY c.relname, a.attnum
"""
KEYS = """
    SELECT r.relname::text, f.relname::text FROM pg_constraint AS k
    JOIN pg_class AS r ON r.oid = k.conrelid JOIN pg_class AS f ON f.oid = k.confrelid
    WHERE k.contype = 'f' AND k.connamespace = {schema_name}::regnamespace AND NOT r.relispartition ORDER BY 1, 2
"""
RELATIONS = """
    SELECT c.relname::text, coalesce(obj_description(c.oid, 'pg_class'), ''), c.relkind = 'v',
           ARRAY(SELECT DISTINCT g.grantee::regrole::text FROM aclexplode(c.relacl) AS g
                 WHERE g.privilege_type = 'SELECT' AND g.grantee <> c.relowner ORDER BY 1)
    FROM pg_class AS c WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind IN ('r', 'p', 'v')
    AND NOT c.relispartition ORDER BY 1
"""
FUNCTIONS = """
    SELECT p.proname::text, coalesce(pg_catalog.pg_get_function_identity_arguments(p.oid), ''),
           pg_catalog.pg_get_function_result(p.oid), coalesce(obj_description(p.oid, 'pg_proc'), ''),
           p.proowner::regrole::text,
           ARRAY(SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'everybody' ELSE g.grantee::regrole::text END
                 FROM aclexplode(p.proacl) AS g WHERE g.grantee <> p.proowner ORDER BY 1)
    FROM pg_proc AS p WHERE p.pronamespace = {schema_name}::regnamespace
    AND p.prorettype <> 'trigger'::regtype ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Function:
    """One of ours, as the catalog has it."""

    name: str
    arguments: str
    result: str
    comment: str
    owner: str
    callers: list[str]


@dataclass(frozen=True)
class Relation:
    """A table or the view."""

    name: str
    comment: str
    view: bool
    readers: list[str]


@dataclass(frozen=True)
class Catalog:
    """What a database at head says of itself."""

    columns: list[tuple[str, str, str, bool]]
    keys: list[tuple[str, str]]
    relations: list[Relation]
    functions: list[Function]
    territories: list[str]


def read(database: Database) -> Catalog:
    return Catalog(
        database.sql(COLUMNS),
        database.sql(KEYS),
        [Relation(*row) for row in database.sql(RELATIONS)],
        [Function(*row) for row in database.sql(FUNCTIONS)],
        [database.settings.role(code.lower()) for code in database.sql("SELECT code FROM {schema}.territories")],
    )


# --- the pictures


def phases_picture() -> str:
    """Expand, migrate, the gate, contract, and the ways back."""
    made = Picture("Expand, migrate, contract: three phases, a gate before the third, and a way back from each", 1080)
    counted = Counter(phases.phase(one) for one in phases.chain())
    told = {
        "expand": ["adds schema, functions, triggers", "nothing changes for anybody", "old and new versions run"],
        "migrate": ["backfill: owners from activities", "triggers keep them current", "nothing is enforced yet"],
        "contract": ["row security is enforced", "denials are recorded", "the transition goes away"],
    }
    x, ends = PAD, 0
    for phase in phases.ORDER:
        kind = "mark" if phase == "contract" else "box"
        ends = made.box(x, 76, 270, f"{phase}, {counted[phase]} revisions", told[phase], kind)
        x += 300 if phase == "expand" else 486
    made.box(610, 70, 160, "the gate", ["asks data,", "catalog and", "logins: would", "anybody lose?"], "stop")
    for begin, end in ((282, 312), (582, 610), (770, 798)):
        made.arrow((begin, 120), (end, 120))
    made.text(PAD, 34, "alembic upgrade head", "part")
    made.text(
        222, 34, "the same command in every deploy: it goes as far as it may, and stops before a closed gate", "dim"
    )
    for right, left in ((933, 447), (427, 147)):
        made.arrow((right, ends), (right, ends + 32), (left, ends + 32), (left, ends + 4))
    made.text(PAD, ends + 66, "alembic downgrade", "part")
    made.text(
        222,
        ends + 66,
        "metadata only: your tables as they were, our rows kept in a quarantine, back with the next upgrade",
        "dim",
    )
    return made.written()


def tables_picture(catalog: Catalog) -> str:
    """Every table with its columns, by subject, and the foreign keys between them."""
    tables: dict[str, list[str]] = {}
    for table, column, kind, key in catalog.columns:
        tables.setdefault(table, []).append(f"{'*' if key else ' '} {column}  {kind}")
    width = int(max(len(line) for lines in tables.values() for line in lines) * WIDE * 1.05) + 2 * PAD
    made = Picture("The tables of leadprotect, by subject, with their foreign keys", 4 * (width + 3 * GAP) + GAP)
    made.text(GAP, 30, "Tables of the schema leadprotect", "part")
    made.text(
        GAP,
        50,
        "* primary key; an arrow is a foreign key. No key leads to your tables: a deleted lead keeps its history.",
        "dim",
    )
    bottoms, places = [70] * 4, {}
    for subject in SUBJECTS:
        inside = [table for table in tables if subject_names(subject, table)]
        if not inside:
            continue
        at = bottoms.index(min(bottoms))
        x, y = GAP + at * (width + 3 * GAP), bottoms[at] + GAP
        made.text(x, y + 12, subject.title, "part")
        y += 24
        for table in inside:
            places[table] = (x, y)
            y = made.box(x, y, width, table, tables[table]) + GAP
        bottoms[at] = y
    for number, (table, referred) in enumerate(catalog.keys):
        (x, y), (to_x, to_y) = places[table], places[referred]
        side = x + width + 12 + 4 * number
        if x == to_x:
            made.arrow((x + width, y + LINE), (side, y + LINE), (side, to_y + LINE), (to_x + width + 2, to_y + LINE))
        else:
            lane = to_x + width + 12 + 4 * number if to_x < x else x + width + 12 + 4 * number
            made.arrow(
                (x if to_x < x else x + width, y + LINE),
                (lane, y + LINE),
                (lane, to_y + LINE),
                (to_x + width + 2, to_y + LINE),
            )
    return made.written()


def roles_picture(catalog: Catalog) -> str:
    """Which role may read and call what, as granted; and who owns it all."""
    everybody = callable_by("everybody", catalog)
    offices = ["app", "manager", "auditor", "operator"]
    made = Picture("The roles of leadprotect, and what each may read and call", 1240)
    made.text(GAP, 30, "Roles", "part")
    made.text(
        GAP,
        50,
        "None of them has a login. A login of yours is a member of an office and of the territories that it serves.",
        "dim",
    )
    made.box(GAP, 66, 895, " or ".join(sorted(catalog.territories)), BORDER, "mark")
    y = made.box(GAP + 915, 66, 285, "everybody (PUBLIC)", [f"calls {name}" for name in everybody], "host")
    ends = []
    for number, office in enumerate(offices):
        role, x = f"leadprotect_{office}", GAP + number * 305
        reads = [one.name for one in catalog.relations if role in one.readers]
        calls = callable_by(role, catalog)
        lines = ["reads", *(f"  {name}" for name in reads), "calls", *(f"  {name}" for name in calls)]
        ends.append(made.box(x, y + 50, 285, role, lines))
        if office != "operator":  # his work is about every territory
            made.arrow((x + 142, y + 50), (x + 142, y + 3))
            made.text(x + 154, y + 30, "within", "dim")
    y = max(ends) + 40
    owned = Counter(one.owner for one in catalog.functions)
    tables = sum(not one.view for one in catalog.relations)
    told = [f"owns {tables} tables and {owned['leadprotect_owner']} functions, and reads no table of yours"]
    made.box(GAP, y, 585, "leadprotect_owner", [*told, "its rights hold inside those functions alone"])
    told = [f"owns {owned['leadprotect_reader']} functions, reads the columns of yours that are granted,"]
    made.box(GAP + 615, y, 585, "leadprotect_reader", [*told, "and writes nothing"])
    return made.written()


def callable_by(role: str, catalog: Catalog) -> list[str]:
    return sorted({one.name for one in catalog.functions if role in one.callers})


# --- the page


def page(catalog: Catalog) -> str:
    """Tables, view and functions with their comments, by subject."""
    lines = [
        textwrap.dedent("""\
        # Objects in the database

        Made by `make pictures` from the comments and grants of a database at head. The text of each stands in
        {download}`schema.sql <schema.sql>`; how a service uses them, in [SQL](sql.md).

        ![Tables of leadprotect by subject](../images/tables.svg)

        {download}`The picture alone <../images/tables.svg>`. Which role may do what:

        ![Roles of leadprotect](../images/roles.svg)

        {download}`The picture alone <../images/roles.svg>`.
        """)
    ]
    for subject in SUBJECTS:
        relations = [one for one in catalog.relations if subject_names(subject, one.name)]
        functions = [one for one in catalog.functions if subject_names(subject, one.name) and one.callers]
        if relations or functions:
            lines += ["", f"## {subject.title}", "", " ".join(subject.prose.replace("<", "&lt;").split())]
        if relations:
            lines += ["", "| table or view | what | read by |", "|---|---|---|"]
            lines += [f"| `{one.name}` | {cell(one.comment)} | {short(one.readers)} |" for one in relations]
        if functions:
            lines += ["", "| function | what | called by |", "|---|---|---|"]
            lines += [f"| {signature(one)} | {cell(one.comment)} | {short(one.callers)} |" for one in functions]
    return "\n".join(lines) + "\n"


def signature(one: Function) -> str:
    return f"`{one.name}({cell(one.arguments)})` returns `{cell(one.result)}`"


def subject_names(subject: Subject, name: str) -> bool:
    """Whether an object belongs to a subject of the page of the schema."""
    return any(fnmatchcase(name, pattern) for pattern in subject.objects.split())


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def short(roles: Iterable[str]) -> str:
    return ", ".join(role.removeprefix("leadprotect_") for role in roles)


MADE: dict[str, Callable[[Catalog], str]] = {
    "docs/images/phases.svg": lambda _: phases_picture(),
    "docs/images/tables.svg": tables_picture,
    "docs/images/roles.svg": roles_picture,
    "docs/reference/objects.md": page,
}
"""File -> what writes it."""


def main() -> None:
    with embedded() as server:
        defaults = Profile("pictures", server.major)
        Database(server, defaults, "postgres").sql("CREATE DATABASE pictures")
        catalog = read(prepared(Database(server, defaults, "pictures"), "head", required=False))
    for name, write in MADE.items():
        (ROOT / name).write_text(write(catalog), encoding="utf-8")


if __name__ == "__main__":
    main()
