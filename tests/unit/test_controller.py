"""The controller in a closed loop with a simulated database: how long a slice of n rows lasts there."""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadprotect.backfilling.slices import (
    CEILING_S,
    DIVISOR,
    FIRST,
    GROWTH,
    LARGEST,
    SMALLEST,
    TARGET_S,
    Bisection,
    Controller,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAST, USUAL, SLOW = 90_000, 30_000, 3_000
COMMIT_S = 0.001


def database(rate: Callable[[int], float]) -> Callable[[int, int], float]:
    """Seconds of slice `number` with `rows` rows; `rate` is rows per second."""
    return lambda number, rows: COMMIT_S + rows / rate(number)


def drive(seconds: Callable[[int, int], float], slices: int, controller: Controller | None = None) -> Iterator[float]:
    controller = controller or Controller()
    for number in range(slices):
        lasted = seconds(number, controller.rows)
        yield lasted
        controller.observe(controller.rows, lasted)


def near(target: float, lasted: float) -> bool:
    return 0.8 * target <= lasted <= 1.2 * target


@pytest.mark.parametrize("rate", [SLOW, 10_000, USUAL, FAST, 120_000])
def test_slices_reach_50_ms_within_ten_of_them(rate: int) -> None:
    lasted = list(drive(database(lambda _: rate), 30))

    assert [True] * 20 == [near(TARGET_S, one) for one in lasted[10:]]


@pytest.mark.parametrize("rate", [SLOW, 10_000, USUAL, FAST, 120_000])
def test_from_the_smallest_slice_they_reach_it_within_23(rate: int) -> None:
    lasted = list(drive(database(lambda _: rate), 40, Controller(SMALLEST)))

    assert [True] * 17 == [near(TARGET_S, one) for one in lasted[23:]]


def test_noise_of_a_third_leaves_the_median_at_the_target() -> None:
    chance = random.Random(1)  # noqa: S311 - noise, no secret
    lasted = list(drive(database(lambda _: USUAL * chance.uniform(0.67, 1.33)), 300))

    assert near(TARGET_S, statistics.median(lasted[10:]))
    assert sum(one > CEILING_S for one in lasted) == 0


def test_a_database_that_turns_slow_gets_shorter_slices_at_once() -> None:
    lasted = list(drive(database(lambda number: USUAL if number < 20 else SLOW), 40))

    assert lasted[20] > CEILING_S
    assert [True] * 19 == [near(TARGET_S, one) for one in lasted[21:]]


def test_a_spike_costs_a_few_slices_and_no_second_long_one() -> None:
    lasted = list(drive(database(lambda number: USUAL / 10 if number == 20 else USUAL), 60))

    assert lasted[20] > CEILING_S
    assert max(lasted[21:]) <= 1.2 * TARGET_S
    assert near(TARGET_S, lasted[-1])


def test_after_a_stall_of_seconds_it_starts_small_and_comes_back() -> None:
    controller = Controller()
    usual = database(lambda _: USUAL)
    lasted = list(drive(lambda number, rows: 5.0 if number == 20 else usual(number, rows), 22, controller))

    assert 5.0 == lasted[20]
    assert SMALLEST == controller.rows or controller.rows <= SMALLEST * GROWTH**2
    assert near(TARGET_S, list(drive(usual, 30, controller))[-1])


def test_the_short_slice_at_the_end_of_a_chunk_changes_little() -> None:
    controller = Controller()
    list(drive(database(lambda _: USUAL), 20, controller))
    before = controller.rows
    controller.observe(7, COMMIT_S + 7 / USUAL)

    assert before * 0.98 <= controller.rows <= before


@given(st.lists(st.tuples(st.integers(0, LARGEST), st.floats(0, 60)), max_size=50))
def test_it_never_leaves_its_bounds_nor_grows_faster_than_a_fifth(seen: list[tuple[int, float]]) -> None:
    controller = Controller()
    for rows, seconds in seen:
        before = controller.rows
        controller.observe(rows, seconds)
        assert SMALLEST <= controller.rows <= LARGEST
        assert controller.rows <= max(round(before * GROWTH), SMALLEST)


def test_the_first_slice_is_small_enough_for_a_slow_disk() -> None:
    assert (FIRST, FIRST) == (Controller().rows, Controller(FIRST).rows)
    assert (SMALLEST, LARGEST) == (Controller(1).rows, Controller(10**6).rows)


@given(st.integers(1, LARGEST), st.integers(0, LARGEST - 1))
def test_a_locked_row_is_found_by_cutting_and_everything_else_is_done(size: int, locked: int) -> None:
    """The rows before the locked one, the locked one alone, then as before."""
    locked %= size
    bisection, position, tries = Bisection(), 0, 0
    while True:
        rows = min(bisection.rows or size, size - position)
        tries += 1
        if position <= locked < position + rows:
            if rows == 1:
                break
            bisection.failed(rows, slow=False)
        else:
            position += rows
            bisection.passed(rows, size)
    bisection.put_aside()

    assert (locked, None) == (position, bisection.rows)
    assert tries <= (DIVISOR + 1) * 6


def test_after_a_timeout_slices_double_until_they_are_as_usual() -> None:
    bisection = Bisection()
    bisection.failed(1000, slow=True)
    sizes = []
    while bisection.rows:
        sizes.append(bisection.rows)
        for _ in range(1000):
            bisection.passed(bisection.rows or 0, 900)
            if bisection.rows != sizes[-1]:
                break

    assert [125, 250, 500] == sizes
