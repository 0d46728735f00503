"""Writes docs/reference/schema.sql: what stands in a database at head, on one page (`make schema`)."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from tests.support.database import MIGRATE_HEAD, ROOT, Database
from tests.support.profiles import Profile
from tests.support.revisions import HEAD
from tests.support.servers import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "reference" / "schema.sql"
HEADER = f"""\
-- The schema of leadprotect with default settings, as it stands after {HEAD}.
-- Made by `make schema` from a real database with pg_dump; a test keeps it current. Do not edit.
--
-- All objects belong to leadprotect_owner. The months of lead_access_audit are left out: each is a
-- partition like lead_access_audit_default, with the same policies and the same trigger.
"""
BLOCK = re.compile(r"^--\n-- Name: (.*?); Type: (.*?); Schema: (.*?); Owner: .*\n--\n", re.MULTILINE)
MONTH = re.compile(r"lead_access_audit_\d{4}_\d{2}")
NOISE = re.compile(r"^(SET default_|\\restrict|\\unrestrict|--$)")


DEFAULTS = {"observation_window": "7 days"}


def page(database: Database) -> str:
    """Migrate a database that has the host's tables, with the default settings, and write its page."""
    database.upgrade(MIGRATE_HEAD)
    database.sql("UPDATE {schema}.backfill_jobs SET registered_at = now() - interval '8 days'")
    database.upgrade(HEAD)
    dump = [str(database.server.programs / "pg_dump"), "--schema-only", "--no-owner", database.url]
    text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    return HEADER + "".join(f"\n-- {title}\n\n{body}\n" for title, body in blocks(text))


def blocks(dump: str) -> Iterator[tuple[str, str]]:
    """Our objects, and what we add to the host's: title and statements."""
    _, *parts = BLOCK.split(dump)
    for name, kind, schema, text in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
        lines = [line for line in text.splitlines() if not NOISE.match(line)]
        ours = "leadprotect" in {schema, name.removeprefix("SCHEMA ")}
        if not ours and kind == "ACL":  # the host's own grants stand in the same block
            lines = [line for line in lines if "leadprotect" in line]
        body = "\n".join(lines).strip()
        added = kind == "ROW SECURITY" or "leadprotect" in name + body
        if body and (ours or added) and not MONTH.search(name + body):
            yield f"{kind} {name}", body


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
