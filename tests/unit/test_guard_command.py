"""What may stand behind ``leadprotect guard --``, and the page of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.errors import InvalidRequest
from leadprotect.gates import report
from leadprotect.gates.machine import Phase, State
from leadprotect.gates.record import Record
from leadprotect.gates.rollout import Backfill, Upgrade, read_command
from leadprotect.gates.verdict import Answer, Evaluation, Verdict
from leadprotect.phases import chain
from tests.support.browser import opened
from tests.support.scripted import evaluation

if TYPE_CHECKING:
    from pathlib import Path

NOT_OURS = [
    "rm -rf /",
    "sh -c alembic",
    "alembic",
    "alembic downgrade base",
    "alembic current",
    "alembic stamp head",
    "alembic upgrade head --sql",
    "alembic upgrade",
    "alembic --nonsense upgrade head",
    "leadprotect",
    "leadprotect purge",
    "leadprotect backfill",
    "leadprotect backfill stop DE",
    "leadprotect backfill DE --dry-run",
    "leadprotect guard -- alembic upgrade head",
]


@pytest.mark.parametrize("words", NOT_OURS)
def test_a_command_that_is_not_ours_is_wrong_usage(words: str) -> None:
    with pytest.raises(InvalidRequest):
        read_command(words.split())
    result = CliRunner().invoke(main, ["guard", "--", *words.split()])
    assert (2, "Error: ") == (result.exit_code, result.stderr.split("\n\n")[-1][:7])


def test_nothing_behind_the_dashes_is_wrong_usage() -> None:
    assert 2 == CliRunner().invoke(main, ["guard", "--"]).exit_code


def test_the_options_of_alembic_go_to_each_step() -> None:
    rollout = read_command(
        ["/usr/bin/alembic", "-c", "alembic.ini", "-x", "contract=hold", "upgrade", "--tag", "t", "head"]
    )
    assert isinstance(rollout, Upgrade)
    words = rollout.step("lp_0002_expand_assignments")
    assert "alembic -c alembic.ini -x contract=hold upgrade --tag t lp_0002_expand_assignments" == " ".join(words)


def test_a_target_is_cut_into_its_revisions_and_a_relative_one_stays_what_it_meant() -> None:
    all_of_them = chain()
    rollout = read_command(["alembic", "upgrade", "head"])
    assert isinstance(rollout, Upgrade)
    assert [*all_of_them] == rollout.pending(None)
    assert [*all_of_them[3:]] == rollout.pending(all_of_them[2])
    assert [] == rollout.pending(all_of_them[-1])
    assert [*all_of_them[:3]] == rollout.applied(all_of_them[2])
    two = read_command(["alembic", "upgrade", "+2"])
    assert isinstance(two, Upgrade)
    two.fix_target(all_of_them[2])
    assert [all_of_them[4]] == two.pending(all_of_them[3])
    with pytest.raises(InvalidRequest, match="no_such"):
        Upgrade(two.words, two.config, (), (), "no_such").pending(None)


def test_a_backfill_is_run_by_this_python_whatever_its_path_was() -> None:
    rollout = read_command(["/opt/bin/leadprotect", "-c", "other.ini", "backfill", "DE", "--workers", "2"])
    assert isinstance(rollout, Backfill)
    assert "leadprotect -c other.ini backfill DE --workers 2" == " ".join(rollout.step())
    assert "other.ini" == rollout.ini


def test_the_settings_are_those_that_the_command_will_read(tmp_path: Path) -> None:
    (tmp_path / "other.ini").write_text("[leadprotect]\nno_such_key = 1\n")
    for words in (
        ["leadprotect", "-c", str(tmp_path / "other.ini"), "backfill", "DE"],
        ["alembic", "-c", str(tmp_path / "other.ini"), "upgrade", "head"],
    ):
        result = CliRunner().invoke(main, ["guard", "--", *words])
        assert (1, True) == (result.exit_code, "unknown key 'no_such_key'" in result.stderr)


@pytest.mark.parametrize(
    "option", ["--interval=0.1s", "--interval=1min", "--bake=soon", "--flaps=-1", "--on-rollback=no"]
)
def test_an_option_that_can_t_be_right_is_named(option: str) -> None:
    result = CliRunner().invoke(main, ["guard", option, "--", "alembic", "upgrade", "head"])
    assert 2 == result.exit_code
    assert option.split("=", maxsplit=1)[0] in result.stderr


# --- the page


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("0.0.0.0:0", "has no login"),
        ("192.0.2.1:80", "has no login"),
        ("[::]:0", "has no login"),
        ("127.0.0.1", "expected an address and a port"),
        ("127.0.0.1:x", "expected an address and a port"),
        ("example:80", "expected an address and a port"),
        ("127.0.0.1:70000", "0-65535"),
    ],
)
def test_the_page_is_served_to_this_machine_only(where: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        report.PageServer(where)
    assert str(refused.value).startswith(f"--serve {where}: ")


def test_without_a_folder_of_revisions_it_is_told_in_one_line(tmp_path: Path) -> None:
    rollout = read_command(["alembic", "-c", str(tmp_path / "no.ini"), "upgrade", "head"])
    assert isinstance(rollout, Upgrade)
    with pytest.raises(InvalidRequest, match=r"alembic -c .* upgrade head: No 'script_location' key found"):
        rollout.pending(None)


ANOTHER_END = pytest.mark.nightly("by day a refused rollout is drawn, with all that somebody said")


def recorded(*, code: int | None) -> Record:
    """A run in which somebody said something nasty."""
    record = Record("alembic upgrade head", "database </script><b>x", 5.0)
    for at, said in enumerate(("PROCEED", "PROCEED", "UNKNOWN", "ROLLBACK")):
        record.evaluated(at, evaluation(said))
        nan = Answer("<i>nan", "a<b", float("nan"), None, Verdict.UNKNOWN, "<!-- <script>")
        record.evaluated(at, Evaluation(evaluation(said).at, (nan,)))
        phase = Phase.HELD if said == "UNKNOWN" else Phase.RUNNING
        record.advanced(at, State(phase=phase, why="</script><script>alert(1)</script>"))
    record.lines.append((1.0, "step", "</script><script>alert(2)</script>"))
    record.advanced(5, State(phase=Phase.ENDED, code=code) if code is not None else State(phase=Phase.BAKING))
    return record


@pytest.mark.parametrize("code", [21, pytest.param(None, marks=ANOTHER_END), pytest.param(0, marks=ANOTHER_END)])
def test_what_was_said_can_t_break_out_of_the_page(code: int | None, tmp_path: Path) -> None:
    report.write(recorded(code=code), tmp_path / "guard.html")
    page = (tmp_path / "guard.html").read_text(encoding="utf-8")
    assert 1 == page.count("</script>")
    assert ["guard.html"] == [file.name for file in tmp_path.iterdir()]
    seen = opened(page, width=390, count=("#gates tbody tr", "#pauses tbody tr", "script", "i > *"))
    assert ((), 2, 1) == (seen.console, seen.count("#gates tbody tr"), seen.count("#pauses tbody tr"))
    assert "</script><script>alert(2)</script>" in seen.measured["text"]
    assert {None: "Guard: baking", 0: "Guard: done", 21: "Guard: refused"}[code] == seen.measured["title"]


def test_a_long_run_keeps_its_page_small() -> None:
    record = Record("alembic upgrade head", "database x", 5.0)
    for at in range(20_000):
        record.evaluated(at, evaluation("PROCEED"))
    points = record.gates["scripted"].points
    assert 600 <= len(points) <= 1200
    assert [0, 19_999] == [points[0][0], points[-1][0]]
