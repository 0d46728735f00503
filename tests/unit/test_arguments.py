"""Ids as callers pass them: taken as they are, or refused; never made into another one."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from leadprotect.access.arguments import as_lead_id, as_lead_ids
from leadprotect.errors import InvalidRequest

if TYPE_CHECKING:
    pass

ONE = UUID(int=1)


@pytest.fixture
def lead_id_type(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEADPROTECT_LEAD_ID_TYPE", request.param)


BIGINTS = [
    Decimal("1.5"),
    Decimal(1),
    1.0,
    True,
    "1_0",
    " 1 ",
    "+1",
    "1.0",
    "\u0661",
    "",
    b"1",
    2**63,
    "9" * 19,
    "9" * 5000,
]
UUIDS = [
    1,
    b"0" * 32,
    "0x" + "0" * 30,
    "1_" + "0" * 30,
    f" {ONE}",
    "+" + "0" * 31,
    "0 " * 16,
    "urn:uuid:1",
    "\u0660" * 32,
    str(ONE)[:-1],
    "",
]
TEXTS = [1, b"lead", "a\0b", "\ud800", ONE]
INTEGERS = [2**31, -(2**31) - 1, "2147483648", 1.0, True]
WRONG = [("bigint", BIGINTS), ("integer", INTEGERS), ("uuid", UUIDS), ("text", TEXTS)]


@pytest.mark.parametrize(
    ("lead_id_type", "wrong"), [(kind, wrong) for kind, some in WRONG for wrong in some], indirect=["lead_id_type"]
)
@pytest.mark.usefixtures("lead_id_type")
def test_what_is_no_id_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"lead_id: .* is not of type"):
        as_lead_id(wrong)
    with pytest.raises(InvalidRequest, match=re.escape(f"lead_id: {wrong!r} is not of type")):
        as_lead_ids(iter([None, wrong]))


@pytest.mark.parametrize("lead_id_type", ["text", "uuid"], indirect=True)
@pytest.mark.usefixtures("lead_id_type")
def test_one_lead_is_not_taken_for_many() -> None:
    """A text in place of a list would ask for each of its characters."""
    for one in ("lead 7", b"lead 7", ONE, 7, None):
        with pytest.raises(InvalidRequest, match=rf"lead_ids: {type(one).__name__} is no collection of ids"):
            as_lead_ids(one)  # type: ignore[arg-type]
    assert "text" == as_lead_ids([])[0]


RIGHT: list[tuple[str, Any, Any]] = [
    *(
        ("bigint", given, typed)
        for given, typed in [(7, 7), ("7", 7), ("-7", -7), (2**63 - 1, 2**63 - 1), (None, None)]
    ),
    *(("uuid", form, ONE) for form in [ONE, str(ONE), str(ONE).upper(), ONE.hex, f"{{{ONE}}}", ONE.urn]),
    ("text", " lead 1 ", " lead 1 "),
]


@pytest.mark.parametrize(("lead_id_type", "given", "typed"), RIGHT, indirect=["lead_id_type"])
@pytest.mark.usefixtures("lead_id_type")
def test_an_id_is_taken_in_every_form_of_its_type(given: Any, typed: Any) -> None:
    assert typed == as_lead_id(given)
    kind, ids = as_lead_ids([given, given])
    assert {given: typed} == ids or (kind, ids) == ("text", {given: str(typed)})
