"""The pictures, and the page of objects, show what the catalog says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from tests.support.database import ROOT
from tests.support.pictures import MADE, read

if TYPE_CHECKING:
    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")


def test_what_is_drawn_and_listed_is_what_stands(database: Database) -> None:
    catalog = read(database)
    for name, write in MADE.items():
        assert write(catalog) == (ROOT / name).read_text(encoding="utf-8"), "run `make pictures`"


def test_every_table_role_and_function_that_somebody_may_call_is_there(database: Database) -> None:
    catalog = read(database)
    drawn = {name: (ROOT / name).read_text(encoding="utf-8") for name in MADE}
    for one in catalog.relations:
        assert f">{one.name}<" in drawn["docs/images/tables.svg"] or one.view
        assert f"| `{one.name}` | {one.comment} |" in drawn["docs/reference/objects.md"]
    called = {one.name for one in catalog.functions if one.callers}
    assert len(called) > 50
    assert [] == [name for name in called if f"| `{name}(" not in drawn["docs/reference/objects.md"]]
    assert [] == [one.name for one in catalog.functions if one.callers and not one.comment]


@pytest.mark.parametrize("name", [name for name in MADE if name.endswith(".svg")])
def test_a_picture_is_sound_and_says_what_it_shows(name: str) -> None:
    root = ET.parse(ROOT / name).getroot()  # noqa: S314 - our own file
    assert root.tag.endswith("}svg")
    assert len(str(root[0].text)) > 30
