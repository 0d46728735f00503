"""What the page of scale reckons is what the published figures give."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.database import ROOT

PAGE = (ROOT / "docs/explanation/scale.md").read_text(encoding="utf-8")
PUBLISHED = ROOT / "docs/benchmarks"
SERVERS, LEADS, EDITS = 100, 10_000_000, 100
MONTH_S = 30 * 86_400


def numbers(name: str) -> Any:
    return json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))


SCALE = {part["what"]: part["values"][-1] for part in numbers("scale")["parts"]}
UPDATE = next(
    line["microseconds"]
    for line in numbers("access")["lines"]
    if (line["server"], line["what"]) == ("PostgreSQL 18", "UPDATE of one own lead by key")
)
(FILLED,) = (one["seconds"] for one in numbers("backfill_10x")["summary"] if one["mode"] == "leadprotect, 1 worker")
ATTEMPTS = EDITS * MONTH_S
AT_ONCE = SERVERS / 8


def of_a_core(microseconds: float) -> tuple[str, str]:
    return f"{EDITS * microseconds / 1e6:.1%}".replace("%", " % of a core"), f"{EDITS * microseconds / 1e4:.1f} cores"


RECKONED = {
    "assertion with its record, CPU": of_a_core(SCALE["assertion with its record"]),
    "check before it, CPU": of_a_core(SCALE["check"]),
    "UPDATE of a lead by key, CPU": of_a_core(UPDATE),
    "rows of the audit a month of 30 days": (
        f"{ATTEMPTS / 1e6:.0f} million",
        f"{ATTEMPTS * SERVERS / 1e9:.1f} billion",
    ),
    "bytes of these": (f"{ATTEMPTS * 340 / 1e9:.0f} GB", f"{ATTEMPTS * SERVERS * 340 / 1e12:.1f} TB"),
    "owners": (f"{LEADS * 255 / 1e9:.2f} GB", f"{LEADS * SERVERS * 255 / 1e9:.0f} GB"),
    "sealing, CPU a day": (
        f"{EDITS * 0.0864 * SCALE['seal, CPU of the backend a million rows']:.0f} s",
        f"{EDITS * 0.0864 * SCALE['seal, CPU of the backend a million rows'] * SERVERS / 3600:.1f} hours",
    ),
    "verifying a month, CPU": (
        f"{ATTEMPTS / 1e6 * SCALE['verify, CPU of the backend a million rows'] / 60:.0f} min",
        f"{ATTEMPTS / 1e6 * SCALE['verify, CPU of the backend a million rows'] * SERVERS / 3600:.0f} hours",
    ),
    "backfill, one worker": (f"{FILLED / 60:.1f} min", f"{FILLED * AT_ONCE / 60:.0f} min"),
    "upgrade before contract, two index builds": (
        f"{SCALE['upgrade before contract, with two index builds'] / 60:.1f} min",
        f"{SCALE['upgrade before contract, with two index builds'] * AT_ONCE / 3600:.1f} hours",
    ),
    "gate, asked once": (f"{SCALE['gate, asked once'] / 60:.1f} min", "each"),
}


@pytest.mark.parametrize("what", RECKONED)
def test_a_row_is_reckoned_from_what_was_published(what: str) -> None:
    (row,) = re.findall(rf"^\| {re.escape(what)} \|(.*)\|$", PAGE, re.MULTILINE)
    _, one, every = (cell.strip() for cell in row.split("|"))
    assert RECKONED[what][0] == one
    assert every.startswith(RECKONED[what][1])
