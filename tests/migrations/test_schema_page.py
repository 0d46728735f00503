"""docs/reference/schema.sql shows the present state by subject, made from a database at head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from leadprotect.settings.files import migrations
from tests.support.revisions import REVISIONS
from tests.support.schema_page import DEFAULTS, PAGE, SUBJECTS, Fragment, Thing, page, subject_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

HEADING = re.compile(r"^-- ([^,\n]+), (lp_\d{4}_\w+|Alembic itself)(?:, lp_\w+)*(?:, owner \w+)?$", re.MULTILINE)


def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def objects() -> list[tuple[str, str, str]]:
    """Heading, revision and statements of each object of the page."""
    parts = HEADING.split(text())[1:]
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def unknown(name: str) -> Thing:
    return Thing(name, [Fragment("TABLE", name, "leadprotect", "", f"CREATE TABLE leadprotect.{name} ();")])


def test_the_page_of_the_schema_is_current(make_database: Callable[..., Database]) -> None:
    database = make_database("host", **DEFAULTS)
    current = page(database)
    assert text().splitlines() == current.splitlines(), "run `make schema`"
    relations = "SELECT relname::text FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND relkind <> 'I' "
    functions = "SELECT proname::text FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace"
    for name in database.sql(relations + "AND relname !~ '_20\\d\\d_\\d\\d' UNION " + functions):
        assert re.search(rf"\b{name}\b", current), name


def test_the_page_does_not_change_with_the_calendar() -> None:
    assert re.findall(r"20\d\d_\d\d", text()) == []
    assert "lead_access_audit_default" in text()


def test_the_contents_name_the_line_of_each_subject() -> None:
    lines = text().splitlines()
    contents = re.findall(r"^-- +(\d+)  (.+)$", text(), re.MULTILINE)
    assert [subject.title for subject in SUBJECTS] == [title for _, title in contents[1:]]
    assert [f"-- {title}" for _, title in contents] == [lines[int(line)] for line, _ in contents]


def test_every_object_names_a_revision_that_exists() -> None:
    assert len(objects()) > 100
    assert {revision for _, revision, _ in objects()} <= {*REVISIONS, "Alembic itself"}
    for heading, revision, _ in objects():
        kind, name, *_ = heading.split(" ")
        if kind in {"function", "table", "view", "type", "sequence"} and revision in REVISIONS:
            assert name in (migrations() / "versions" / f"{revision}.py").read_text(encoding="utf-8"), heading


def test_a_grant_stands_under_its_object() -> None:
    for heading, _, statements in objects():
        name = heading.split(" ")[-1]
        for grant in re.findall(r"^(?:GRANT|REVOKE|CREATE POLICY|CREATE TRIGGER) .*", statements, re.MULTILINE):
            assert re.search(rf"\b{re.escape(name)}\b", grant), heading


def test_an_object_without_a_subject_stops_the_page_and_says_where_to_add_it() -> None:
    with pytest.raises(LookupError, match=r"table strange stands in no subject .* SUBJECTS, tests/support/schema_page"):
        subject_of(unknown("strange"))


def test_an_object_of_two_subjects_stops_the_page() -> None:
    with pytest.raises(LookupError, match='in "Ownership and rules" and "Backfill and verification" of'):
        subject_of(unknown("backfill_owner"))


NAMELESS = """
    SELECT 'function ' || p.oid::regprocedure FROM pg_proc AS p
    WHERE p.pronamespace = {schema_name}::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
    UNION ALL
    SELECT 'relation ' || c.oid::regclass FROM pg_class AS c
    WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S') AND NOT c.relispartition
      AND obj_description(c.oid, 'pg_class') IS NULL
    UNION ALL
    SELECT 'column ' || c.oid::regclass || '.' || a.attname FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
      AND col_description(c.oid, a.attnum) IS NULL
    """


def test_everything_that_a_dba_meets_says_why_it_is_there(database: Database) -> None:
    assert database.sql(NAMELESS) == []
    database.sql("COMMENT ON FUNCTION {schema}.is_manager() IS NULL")  # the control
    assert len(database.sql(NAMELESS)) == 1
