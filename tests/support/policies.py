"""Writes tests/support/policies.json: row security of a database at head, as an analyser reads it (`make policies`)."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from leadprotect.doctor.present import MONTH
from leadprotect.lab.commands import import_quietly
from tests.support.database import Database
from tests.support.profiles import Profile
from tests.support.servers import embedded
from tests.support.shipped import prepared

if TYPE_CHECKING:
    import click
    from click.testing import Result

FILE = Path(__file__).with_suffix(".json")
_KEPT = ("tables", "policies")


def pgrls(*arguments: str) -> Result:
    """A command of pgrls, in this process: as one of its own it takes 0.8 s before it does anything."""
    done = CliRunner().invoke(analyser(), arguments)
    assert done.exit_code in {0, 1}, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@cache
def analyser() -> click.Command:
    import_quietly("pgrls.cli")
    command: click.Command = importlib.import_module("pgrls.cli").main
    return command


def snapshot(database: Database) -> str:
    """What `pgrls diff` compares: tables and policies, without months of the audit and grants of the host."""
    done = pgrls("snapshot", "--schemas", "leadprotect,public", "--database-url", database.url)
    found: dict[str, Any] = json.loads(done.stdout)
    for key, value in found.items():
        if isinstance(value, list):
            found[key] = [one for one in value if not _of_a_month(one)] if key in _KEPT else []
    for one in found["tables"]:
        if one["schema"] != "leadprotect":
            one["grants"] = []
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def _of_a_month(one: dict[str, Any]) -> bool:
    return MONTH.fullmatch(one.get("table_name", one.get("name", ""))) is not None


def main() -> None:
    with embedded() as server:
        defaults = Profile("policies", server.major)
        Database(server, defaults, "postgres").sql("CREATE DATABASE policies")
        FILE.write_text(snapshot(prepared(Database(server, defaults, "policies"), "head", required=False)), "utf-8")


if __name__ == "__main__":
    main()
