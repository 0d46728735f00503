"""What a chain of two releases says: the phases of the second start anew after the contract of the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from leadprotect import phases

if TYPE_CHECKING:
    from pathlib import Path

FIRST = ["lp_0001_expand_a", "lp_0002_migrate_b", "lp_0003_contract_c", "lp_0004_contract_d"]
SECOND = ["lp_0005_expand_e", "lp_0006_migrate_f", "lp_0007_contract_g"]


@pytest.fixture(autouse=True)
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in [*FIRST, *SECOND]:
        (tmp_path / f"{revision}.py").touch()
    monkeypatch.setattr(phases, "version_path", lambda: str(tmp_path))


def test_the_chain_is_both_releases_in_their_order() -> None:
    assert (*FIRST, *SECOND) == phases.chain()


@pytest.mark.parametrize(
    ("present", "phase"),
    [
        (None, "none"),
        ("lp_0001_expand_a", "expand"),
        ("lp_0002_migrate_b", "migrate"),
        ("lp_0003_contract_c", "contract"),
        ("lp_0004_contract_d", "contract"),
        ("lp_0005_expand_e", "contract"),
        ("lp_0006_migrate_f", "contract"),
        ("lp_0007_contract_g", "contract"),
        ("lp_0008_expand_h", "unknown"),
    ],
)
def test_what_is_enforced_stays_so_while_a_later_release_expands(present: str | None, phase: str) -> None:
    assert phase == phases.reached(present)


def test_what_goes_back_to_the_phase_before_the_first_contract_leaves_nothing_enforced() -> None:
    assert ("lp_0001_expand_a", "lp_0002_migrate_b") == phases.before("contract")
    assert ("lp_0001_expand_a",) == phases.before("migrate")


@pytest.mark.parametrize(
    ("present", "waiting"),
    [(None, [*FIRST, *SECOND]), ("lp_0005_expand_e", SECOND[1:]), ("lp_0007_contract_g", []), ("lp_0008_expand_h", [])],
)
def test_what_waits_is_what_comes_after(present: str | None, waiting: list[str]) -> None:
    assert tuple(waiting) == phases.pending(present)
