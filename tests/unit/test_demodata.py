from __future__ import annotations

from leadprotect.lab.demo import data

DATA = data.invent(2000)
LEADS = list(DATA.leads())
ACTIVITIES = list(DATA.activities())


def test_the_same_seed_gives_the_same_data() -> None:
    again = data.invent(2000)
    assert (LEADS, ACTIVITIES, DATA.users) == (list(again.leads()), list(again.activities()), again.users)


def test_another_seed_gives_other_data() -> None:
    assert LEADS != list(data.invent(2000, seed=2).leads())


def test_every_id_is_used_once() -> None:
    ids = [row[0] for row in [*LEADS, *ACTIVITIES, *DATA.users]]
    assert len(ids) == len(set(ids))


def test_leads_lie_in_both_territories_and_a_few_in_none() -> None:
    count = {territory: sum(lead[1] == territory for lead in LEADS) for territory in ("DE", "CH", None)}
    assert len(LEADS) == sum(count.values())
    assert count["DE"] > count["CH"] > count[None] > 0


def test_swiss_leads_lie_in_swiss_places() -> None:
    places = {territory: {lead[3] for lead in LEADS if lead[1] == territory} for territory in ("DE", "CH")}
    assert {"Berlin", "Köln"} <= places["DE"] - places["CH"]
    assert {"Zürich", "Basel"} <= places["CH"] - places["DE"]


def test_about_an_eighth_of_the_leads_has_no_qualifying_activity() -> None:
    qualified = {lead for _, lead, user, kind, _ in ACTIVITIES if user and kind in data.QUALIFYING}
    part = 1 - len(qualified) / len(LEADS)
    assert 0.09 < part < 0.15


def test_activities_hold_what_real_ones_do() -> None:
    kinds = {activity[3] for activity in ACTIVITIES}
    assert kinds == {*data.QUALIFYING, *data.OTHER_KINDS}
    assert any(activity[2] is None for activity in ACTIVITIES)
    assert any(activity[4] is None for activity in ACTIVITIES)


def test_sellers_work_in_one_territory() -> None:
    territory = {lead[0]: lead[1] for lead in LEADS}
    sellers = {
        code: {user for _, lead, user, *_ in ACTIVITIES if user and territory[lead] == code} for code in ("DE", "CH")
    }
    assert set() == sellers["DE"] & sellers["CH"]
