"""The simulated rollout: the same seed tells the same story, and what must hold in each."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.errors import InvalidRequest
from leadprotect.lab.bench.report import rollout_page
from leadprotect.lab.rollouts import RELEASES, Rollout, run_all, simulate, summaries, worlds
from tests.support.database import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Rollout(servers=30, leads=30_000_000, workers=4)
BAD = replace(SMALL, share_bad=1.0)
RUNS = 40


def test_the_same_seed_gives_the_same_answer_and_another_one_another() -> None:
    first, again, another = (summaries(worlds(SMALL, canaries=(0, 2), seed=seed, runs=5)) for seed in (7, 7, 8))
    assert first == again != another


def test_a_good_release_comes_to_every_server_and_harms_none() -> None:
    for plan in (SMALL, replace(SMALL, canary=1), replace(SMALL, canary=30)):
        for found in run_all(plan, seed=1, runs=RUNS):
            assert (30, 0, 0, False) == (found.reached, found.harmed, found.leads, found.went_back)


@pytest.mark.parametrize("canary", [1, 3])
def test_a_canary_that_shows_the_fault_within_its_bake_time_is_all_that_is_ever_harmed(canary: int) -> None:
    for found in run_all(replace(BAD, canary=canary), seed=1, runs=RUNS):
        assert found.harmed == found.reached <= canary
        assert found.went_back
    # the control: without it some rollout harms more
    assert max(found.harmed for found in run_all(BAD, seed=1, runs=RUNS)) > canary


def test_a_bake_time_that_is_shorter_than_it_takes_to_notice_is_none() -> None:
    hasty = replace(BAD, canary=1, bake=0.0, notice=3600.0)
    assert max(found.harmed for found in run_all(hasty, seed=1, runs=RUNS)) > 1


def test_a_canary_unlike_the_others_shows_nothing() -> None:
    """Three in ten do not bear it: whoever draws one of the seven has lost an hour, and harms as many."""
    some = replace(SMALL, share_bad=0.3, canary=1)
    assert max(found.harmed for found in run_all(some, seed=1, runs=RUNS)) > 1
    caught = [sum(one.harmed <= c for one in run_all(replace(some, canary=c), seed=1, runs=RUNS)) for c in (1, 8)]
    assert caught[0] < caught[1]


def test_nobody_is_harmed_who_was_not_reached_and_no_more_leads_than_there_are() -> None:
    for share in RELEASES.values():
        for found in run_all(replace(SMALL, share_bad=share), seed=2, runs=RUNS):
            assert 0 <= found.harmed <= found.reached <= 30
            assert 0 <= found.leads <= SMALL.leads + 30
            assert found.went_back == (found.harmed > 0)


def test_a_canary_costs_a_good_release_at_least_its_bake_time() -> None:
    plain, careful = (
        run_all(replace(SMALL, lost=0.0, canary=canary, workers=30), seed=3, runs=RUNS) for canary in (0, 1)
    )
    assert all(b.finished >= a.finished for a, b in zip(plain, careful, strict=True))
    assert all(b.finished >= SMALL.bake for b in careful)


def test_one_server_takes_what_its_leads_take() -> None:
    alone = simulate(replace(SMALL, servers=1, leads=1_000_000, lost=0.0), seed="1")
    assert 0.3 * SMALL.seconds_per_million < alone.finished < 3 * SMALL.seconds_per_million


@pytest.mark.parametrize("wrong", [{"servers": 0}, {"workers": 0}, {"canary": 31}, {"lost": 1.0}, {"bake": -1.0}])
def test_what_no_rollout_can_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        simulate(replace(SMALL, **wrong), seed="1")  # type: ignore[arg-type] # names of its fields


def test_the_published_page_is_what_its_command_gives() -> None:
    published = json.loads((ROOT / "docs/benchmarks/rollout.json").read_text(encoding="utf-8"))
    plan, first = Rollout(**published["plan"]), published["summaries"][0]
    canaries = sorted({one["canary"] for one in published["summaries"]})
    words = published["command"].split()
    seed = int(words[words.index("--seed") + 1])
    found = summaries(worlds(plan, canaries=canaries, seed=seed, runs=first["runs"]))
    assert published["summaries"] == [*map(asdict, found)]
    page = (ROOT / "docs/benchmarks/rollout").with_suffix(".md")
    assert page.read_text(encoding="utf-8") == rollout_page(plan, found, published["command"])


def test_the_command_tells_what_it_was_asked_for_and_leaves_page_picture_and_numbers(tmp_path: Path) -> None:
    asked = "--servers 5 --leads 5000000 --workers 2 --seed 7 --runs 2 --bake 660s --canary 0 --canary 1"
    ran = CliRunner().invoke(main, ["bench", "rollout", *asked.split(), "--json", "--output", str(tmp_path)])
    assert 0 == ran.exit_code, ran.output
    assert asked == json.loads(ran.stdout)["command"]
    assert {"rollout.json", "rollout.png"} < {file.name for file in tmp_path.iterdir()}
    assert asked in (tmp_path / "rollout").with_suffix(".md").read_text(encoding="utf-8")
