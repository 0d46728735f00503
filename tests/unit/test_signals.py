"""The WAL throttle in a closed loop with a simulated server, which writes in proportion to the speed it is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadprotect.backfilling.signals import paced

MIB = 2**20
LIMIT = 128 * MIB


def rates(full_speed: float, of_others: float, seconds: int) -> list[float]:
    """Bytes of WAL in each second, of the backfill and others together."""
    factor, seen = 1.0, []
    for _ in range(seconds):
        seen.append(of_others + full_speed * factor)
        factor = paced(factor, LIMIT, seen[-1])
    return seen


@pytest.mark.parametrize(
    ("full_speed", "of_others"), [(150 * MIB, 0), (150 * MIB, 100 * MIB), (300 * MIB, 90 * MIB), (900 * MIB, 30 * MIB)]
)
def test_the_rate_comes_to_the_limit_and_stays_there(full_speed: float, of_others: float) -> None:
    seen = rates(full_speed, of_others, 60)

    assert all(0.98 * LIMIT <= rate <= 1.02 * LIMIT for rate in seen[30:])


def test_below_the_limit_nothing_is_slowed_down() -> None:
    assert [100 * MIB] * 20 == rates(100 * MIB, 0, 20)


def test_where_others_alone_pass_the_limit_it_goes_on_at_a_tenth() -> None:
    assert 200 * MIB + 10 * MIB == pytest.approx(rates(100 * MIB, 200 * MIB, 30)[-1])


def test_when_others_become_quiet_full_speed_comes_back() -> None:
    factor = 0.1
    for _ in range(10):
        factor = paced(factor, LIMIT, 100 * MIB * factor)

    assert 1.0 == factor


@given(st.floats(0.1, 1), st.floats(0, 1e12))
def test_a_factor_is_between_a_tenth_and_one(factor: float, rate: float) -> None:
    assert 0.1 <= paced(factor, LIMIT, rate) <= 1
