"""What the benchmark of the backfill refuses, and what it tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from rich.console import Console

from leadprotect.cli import main
from leadprotect.errors import InvalidRequest
from leadprotect.lab.bench import report
from leadprotect.lab.bench.access import Line
from leadprotect.lab.bench.backfill import Measured, check_disk, medians
from leadprotect.lab.bench.report import backfill_table
from tests.support.commands import members

if TYPE_CHECKING:
    from pathlib import Path

MODES = ("no backfill", "monolith, DISTINCT ON", "monolith, LATERAL", "leadprotect, 1 worker", "leadprotect, 2 workers")
MEASURED = [Measured(mode, seconds=10.0, owners=875_000, writes=1_800, failed=799) for mode in MODES]


def test_more_leads_than_the_disk_holds_are_refused_before_they_are_made() -> None:
    check_disk(0)
    with pytest.raises(InvalidRequest, match=r"10,000,000,000,000 leads need about .* GiB in .*TMPDIR"):
        check_disk(10**13)


def test_owners_a_second_are_told_of_every_mode() -> None:
    assert [87_500.0] * 5 == [line["owners_per_second"] for line in medians(MEASURED)]


def test_the_table_is_readable_in_80_columns() -> None:
    console = Console(width=80, record=True)
    console.print(backfill_table(MEASURED))

    assert all(
        any(line.startswith(f"│ {mode}") for line in console.export_text(clear=False).splitlines()) for mode in MODES
    )


# --- what was published


NUMBERS = {
    "machine": {"measured_at": "2026-11-25", "cores": "2"},
    "leads": 1_000_000,
    "lines": [{"server": "PostgreSQL 18", "what": "a check", "measured": 2.0}],
    "summary": [{"mode": "no backfill", "ratio": None}, {"mode": "leadprotect, 1 worker", "ratio": 0.96}],
}


def test_a_figure_is_reached_with_the_digits_that_are_shown() -> None:
    measured = {1.304: True, 1.306: False}
    assert measured == {ratio: Line("", "", "", ratio, 1.3, 0.0).reached for ratio in measured}


def test_a_run_is_compared_with_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {} == report.previous("access", tmp_path / "mine")
    write(tmp_path / "mine", {"leads": 5})
    assert {"leads": 5} == report.previous("access", tmp_path / "mine")
    write(tmp_path / report.PUBLISHED, NUMBERS)
    assert NUMBERS == report.previous("access", tmp_path / "mine")
    assert {"PostgreSQL 18: a check": 2.0} == report.access_ratios(NUMBERS)
    assert {"leadprotect, 1 worker": 0.96} == report.backfill_ratios(NUMBERS)


def write(folder: Path, numbers: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "access.json").write_text(json.dumps(numbers), encoding="utf-8")


def test_the_comparison_tells_both_and_the_change_in_80_columns() -> None:
    console = Console(width=80, record=True)
    console.print(report.comparison_table({"a check": 2.0}, {"a check": 1.5, "another": 1.0}))
    said = console.export_text()
    assert ["2.00", "1.50", "-25 %"] == [word for word in ("2.00", "1.50", "-25 %") if word in said]
    assert "new" in said


def test_what_may_differ_though_nothing_has_changed_is_said() -> None:
    now = NUMBERS | {"leads": 10_000, "machine": {"measured_at": "2026-11-28", "cores": "4"}}
    assert [] == report.unlike(NUMBERS, NUMBERS | {"machine": {"measured_at": "2026-11-28", "cores": "2"}})
    few, other = report.unlike(NUMBERS, now)
    assert "before, there were 1,000,000 leads, and now 10,000" == few
    assert "before, another machine measured: 2" == other


@pytest.mark.parametrize("part", ["access", "backfill", "all"])
@pytest.mark.parametrize("more", [["--publish", "--output", "x"], ["--output", str(report.PUBLISHED)]], ids=" ".join)
def test_published_figures_are_written_over_by_who_asks_for_it_alone(part: str, more: list[str]) -> None:
    ran = CliRunner().invoke(main, ["bench", part, *more])
    assert 2 == ran.exit_code
    assert "--publish" in ran.output


def test_one_set_of_options_serves_both_parts() -> None:
    def options(part: str) -> set[str]:
        return {option.name or "" for option in members(members(main)["bench"])[part].params}  # type: ignore[arg-type]

    assert options("all") == options("access") | options("backfill")
