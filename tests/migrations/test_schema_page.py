"""docs/reference/schema.sql shows the present state, made from a database at head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.schema_page import DEFAULTS, PAGE, page

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")


def test_the_page_of_the_schema_is_current(make_database: Callable[..., Database]) -> None:
    current = page(make_database("host", **DEFAULTS))
    assert PAGE.read_text(encoding="utf-8").splitlines() == current.splitlines(), "run `make schema`"


def test_the_page_does_not_change_with_the_calendar() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"20\d\d_\d\d", text) == []
    assert "lead_access_audit_default" in text
