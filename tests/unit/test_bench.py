"""What the benchmark of the backfill refuses, and what it tells."""

from __future__ import annotations

import pytest
from rich.console import Console

from leadprotect.errors import InvalidRequest
from leadprotect.lab.bench.backfill import Measured, check_disk, medians
from leadprotect.lab.bench.report import backfill_table

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
