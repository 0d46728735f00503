"""What the benchmark of the backfill refuses, and what it tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.cli.terminal import Grid
from leadprotect.errors import InvalidRequest
from leadprotect.lab.bench import report
from leadprotect.lab.bench.access import Access
from leadprotect.lab.bench.backfill import Measured, check_disk, medians
from leadprotect.lab.bench.clock import ratio
from leadprotect.lab.bench.comparison import Line
from leadprotect.lab.bench.report import backfill_table
from leadprotect.lab.bench.scale import Growth
from tests.support import access_page
from tests.support.commands import members

if TYPE_CHECKING:
    from pathlib import Path

    from leadprotect.lab.sheet import Sheet

COLUMNS = 80
MODES = ("no backfill", "monolith, DISTINCT ON", "monolith, LATERAL", "leadprotect, 1 worker", "leadprotect, 2 workers")
MEASURED = [Measured(mode, seconds=10.0, owners=875_000, writes=1_800, failed=799) for mode in MODES]


def test_more_leads_than_the_disk_holds_are_refused_before_they_are_made() -> None:
    check_disk(0)
    with pytest.raises(InvalidRequest, match=r"10,000,000,000,000 leads need about .* GiB in .*TMPDIR"):
        check_disk(10**13)


def test_owners_a_second_are_told_of_every_mode() -> None:
    assert [87_500.0] * 5 == [line["owners_per_second"] for line in medians(MEASURED)]


def test_the_table_is_readable_in_80_columns() -> None:
    lines = [*map(click.unstyle, printed(backfill_table(MEASURED)))]
    assert all(any(line.startswith(mode) for line in lines) for mode in MODES)
    assert max(map(len, lines)) <= COLUMNS


def printed(sheet: Sheet) -> list[str]:
    grid = Grid([*sheet.header], [*map(list, sheet.rows)])
    return [*grid.laid_out(COLUMNS, numbers=sheet.numbers, folds=sheet.folds)]


# --- what was published


NUMBERS = {
    "machine": {"measured_at": "2026-11-25", "cores": "2"},
    "leads": 1_000_000,
    "lines": [{"server": "PostgreSQL 18", "what": "a check", "base": "SELECT 1", "measured": 2.0}],
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
    assert {"PostgreSQL 18: a check / SELECT 1": 2.0} == report.access_ratios(NUMBERS)
    assert {"leadprotect, 1 worker": 0.96} == report.backfill_ratios(NUMBERS)


def write(folder: Path, numbers: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "access.json").write_text(json.dumps(numbers), encoding="utf-8")


def test_the_comparison_tells_both_and_the_change_in_80_columns() -> None:
    said = " ".join(printed(report.comparison_table({"a check": 2.0}, {"a check": 1.5, "another": 1.0})))
    assert ["2.00", "1.50", "-25 %"] == [word for word in ("2.00", "1.50", "-25 %") if word in said]
    assert "new" in said


def test_what_may_differ_though_nothing_has_changed_is_said() -> None:
    now = NUMBERS | {"leads": 10_000, "machine": {"measured_at": "2026-11-28", "cores": "4"}}
    assert [] == report.unlike(NUMBERS, NUMBERS | {"machine": {"measured_at": "2026-11-28", "cores": "2"}})
    few, other = report.unlike(NUMBERS, now)
    assert "before, there were 1,000,000 leads, and now 10,000" == few
    assert "before, another machine measured: 2" == other


def test_the_page_shows_the_numbers_beside_it() -> None:
    page, numbers = access_page.PAGE.read_text(encoding="utf-8"), access_page.published()
    assert access_page.written(page, numbers) == page
    numbers["lines"][0]["measured"] += 1
    assert access_page.written(page, numbers) != page


@pytest.mark.parametrize("part", ["access", "backfill", "scale", "fleet", "all"])
@pytest.mark.parametrize("more", [["--publish", "--output", "x"], ["--output", str(report.PUBLISHED)]], ids=" ".join)
def test_published_figures_are_written_over_by_who_asks_for_it_alone(part: str, more: list[str]) -> None:
    ran = CliRunner().invoke(main, ["bench", part, *more])
    assert 2 == ran.exit_code
    assert "--publish" in ran.output


def test_one_set_of_options_serves_both_parts() -> None:
    def options(part: str) -> set[str]:
        return {option.name or "" for option in members(members(main)["bench"])[part].params}  # type: ignore[arg-type]

    assert options("all") == options("access") | options("backfill")


# --- ratios and growth


def test_a_ratio_is_that_of_each_round_and_its_quartiles() -> None:
    found = ratio([2.0, 30.0, 4.0, 9.0, 8.0], [1.0, 10.0, 1.0, 1.0, 1.0])
    assert (3.0, 4.0, 8.0) == (found.low, found.median, found.high)


def test_what_a_service_sees_has_a_table_of_its_own_in_80_columns() -> None:
    one = Line("PostgreSQL 18", "can_edit_lead, own lead", "two rows joined", 1.5, 1.65, 30.0, 1.4, 1.6)
    other = Line("PostgreSQL 18", "acting_as and can_edit", "SELECT 1, psycopg", 9.0, 8.0, 120.0, 8.5, 9.5)
    those = report.access_tables(Access([one], [other], []))
    assert ["PostgreSQL 18: CPU of the backend", "PostgreSQL 18: CPU of client and backend, as a service calls"] == [
        sheet.title for sheet in those
    ]
    backend, client = (" ".join(printed(sheet)) for sheet in those)
    assert "1.40-1.60" in backend
    assert "missed" not in backend
    assert "8.50-9.50" in client
    assert "missed" in client


def test_ten_times_as_many_leads_are_reckoned_from_the_last_step() -> None:
    linear = Growth("gate", "s", (0.1, 1.0), linear=True)
    flat = Growth("check", "us", (20.0, 30.0), linear=False)
    assert 10.0 == linear.reckoned(10, 10)
    assert [40.0, 50.0] == [pytest.approx(flat.reckoned(times, 10)) for times in (10, 100)]
    rate = Growth("seal", "rows/s", (200.0, 100.0), linear=False, more=True)
    assert 1 / 0.015 == pytest.approx(rate.reckoned(10, 10))


def test_what_grows_faster_than_the_leads_is_named(tmp_path: Path) -> None:
    well, worse = Growth("gate", "s", (0.1, 1.0), linear=True), Growth("seal", "s", (0.1, 1.3), linear=True)
    rate = Growth("verify", "rows/s", (10.0, 200_000.0), linear=False, figure=100_000.0, more=True)
    report.save_scale([100_000, 1_000_000], [well, worse, rate], tmp_path)
    page = (tmp_path / "scale").with_suffix(".md").read_text(encoding="utf-8")
    assert "Faster than the leads grew: seal." in page
    assert "--leads 100000 --leads 1000000" in page
    report.save_scale([100_000, 1_000_000], [well], tmp_path)
    assert "Nothing grew faster" in (tmp_path / "scale").with_suffix(".md").read_text(encoding="utf-8")


def test_a_chart_has_a_row_for_each_ratio_with_a_figure(tmp_path: Path) -> None:
    lines = [
        Line(server, what, "base", 1.5, figure, 10.0, 1.4, 1.6)
        for server in ("PostgreSQL 15", "PostgreSQL 18")
        for what, figure in (("met", 2.0), ("missed", 1.0), ("without", None))
    ]
    report.chart_access(lines, tmp_path / "access.png")
    height = int.from_bytes((tmp_path / "access.png").read_bytes()[20:24], "big")
    assert round(100 * (0.5 * 2 + 1.2)) == height
