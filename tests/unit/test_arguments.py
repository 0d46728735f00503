"""Ids as callers pass them: taken as they are, or refused; never made into another one."""

from __future__ import annotations

import random
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from leadprotect.access.among import LeadList
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
    with pytest.raises(InvalidRequest, match=re.escape(f"lead_id: {wrong!r} is not of type")):
        LeadList(iter([None, wrong]))


@pytest.mark.parametrize("lead_id_type", ["text", "uuid"], indirect=True)
@pytest.mark.usefixtures("lead_id_type")
def test_one_lead_is_not_taken_for_many() -> None:
    """A text in place of a list would ask for each of its characters."""
    for one in ("lead 7", b"lead 7", ONE, 7, None):
        with pytest.raises(InvalidRequest, match=rf"lead_ids: {type(one).__name__} is no collection of ids"):
            as_lead_ids(one)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=rf"lead_ids: {type(one).__name__} is no collection of ids"):
            LeadList(one)  # type: ignore[arg-type]
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


def found(*leads: UUID) -> str:
    """As the server answers."""
    sent = LeadList([*leads]).value(None)  # type: ignore[arg-type]
    return str(sent.array.hex())


@pytest.mark.parametrize("lead_id_type", ["uuid"], indirect=True)
@pytest.mark.usefixtures("lead_id_type")
def test_a_list_is_told_lead_by_lead_in_whatever_form_each_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leadprotect.access.among.let_send", lambda *_: None)
    two, three = UUID(int=2), UUID("ffffffff-eeee-4ddd-8ccc-bbbbbbbbbbbb")
    for asked in ([ONE, two, three], [str(ONE), str(two), str(three)], [str(ONE), two, three.urn]):
        assert [True, False, True] == LeadList(asked).told(found(three, ONE))
        assert [False] * 3 == LeadList(asked).told(None) == LeadList(asked).told(found())
    assert [False, True, False, True] == LeadList([None, str(ONE), None, str(ONE).upper()]).told(found(ONE))
    assert [] == LeadList([]).told(None)
    assert bytes.fromhex("00000001 00000000 00000b86 00000002 00000001") == LeadList([ONE, two]).value(None).array[:20]  # type: ignore[arg-type]


@pytest.mark.parametrize("lead_id_type", ["uuid"], indirect=True)
@pytest.mark.usefixtures("lead_id_type")
def test_a_list_takes_what_a_single_lead_takes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of a list are read together: a letter that is left out of one must not come from the next."""
    monkeypatch.setattr("leadprotect.access.among.let_send", lambda *_: None)
    chance = random.Random(19)  # noqa: S311 - not for secrets
    right = [str(UUID(int=chance.getrandbits(128))) for _ in range(4)]
    refused = 0
    for _ in range(3000):
        asked = [*right]
        for _ in range(chance.choice((1, 1, 2))):
            which, place = chance.randrange(4), chance.randrange(37)
            kept = asked[which][place + chance.choice((0, 1)) :]
            asked[which] = asked[which][:place] + chance.choice(("", "-", " ", "a", "A", "\n", "\u0661", "00")) + kept
        try:
            alone = [as_lead_id(one) for one in asked]
        except InvalidRequest:
            refused += 1
            with pytest.raises(InvalidRequest):
                LeadList(asked)
        else:
            sent = LeadList(asked).value(None)  # type: ignore[arg-type]
            assert LeadList(alone).value(None).array == sent.array  # type: ignore[arg-type]
    assert 1000 < refused < 2900
