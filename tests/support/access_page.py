"""The tables of the page of benchmarks, written from the numbers that `leadprotect bench access` left.

``python -m tests.support.access_page`` writes them into the page; a test compares.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.database import ROOT

FOLDER = ROOT / "docs/benchmarks"
PAGE = FOLDER / "index.md"
HEADER = "| what | against | 18 | 15 | figure |\n|---|---|---|---|---|\n"
SERVERS = ("PostgreSQL 18", "PostgreSQL 15")
# also the base of what a row of a lead costs
BESIDE_NOTES = ("count of a territory, NULL allowed", "the same with one comparison, NULL allowed")
# told of in words, or in a table of their own
ELSEWHERE = re.compile("pipelined|threads")


def tables(numbers: dict[str, Any]) -> tuple[str, str, str]:
    """What the server decides, what a service sees, and rows of `lead_tables`."""
    lines, clients = numbers["lines"], numbers["clients"]
    notes = [line for line in lines if line["what"].startswith("notes of")]
    return (
        _table([line for line in lines if line not in notes]),
        _table([line for line in clients if not ELSEWHERE.search(line["base"])]),
        _table([*notes, *(line for line in lines if line["what"] in BESIDE_NOTES)]),
    )


def _table(lines: list[dict[str, Any]]) -> str:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        rows.setdefault((line["what"], line["base"]), {})[line["server"]] = line
    return HEADER + "".join(
        f"| {what} | {base} | {' | '.join(_cell(one[server]) for server in SERVERS)} | {_figure(one)} |\n"
        for (what, base), one in rows.items()
    )


def _cell(line: dict[str, Any]) -> str:
    missed = line["figure"] is not None and round(line["measured"], 2) > line["figure"]
    return f"{line['measured']:.2f} ({line['low']:.2f}-{line['high']:.2f})" + (", missed" if missed else "")


def _figure(one: dict[str, Any]) -> str:
    return " / ".join(
        dict.fromkeys(f"{one[server]['figure']:g}" for server in SERVERS if one[server]["figure"] is not None)
    )


def written(page: str, numbers: dict[str, Any]) -> str:
    """The page with these tables in the place of its own."""
    made = iter(tables(numbers))
    page, count = re.subn(rf"^{re.escape(HEADER)}(?:\|.*\n)*", lambda _: next(made), page, flags=re.MULTILINE)
    if count != len(tables(numbers)):
        raise ValueError(count)
    return page


def published() -> dict[str, Any]:
    """The numbers beside the page."""
    return dict(json.loads((FOLDER / "access.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), published()), encoding="utf-8")
