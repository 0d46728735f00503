from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import psutil
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from tests.support.revisions import CONTRACT, HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator

# one worker makes what all of them look at
pytestmark = pytest.mark.xdist_group("demo")

DEMO = [sys.executable, "-m", "leadprotect", "demo"]
ANNA, BERT, CARLA = (str(UUID(int=number)) for number in (0xA, 0xB, 0xC))
LEADS = [str(UUID(int=number << 64)) for number in range(1, 7)]
LEADS_CSV = f"""id,territory,company,city
{LEADS[0]},DE,Adler GmbH,Köln
{LEADS[1]},DE,Berg KG,Ulm
{LEADS[2]},CH,Christen AG,Chur
{LEADS[3]},CH,Däniken AG,Bern
{LEADS[4]},,Egger AG,Vaduz
{LEADS[5]},DE,,
"""
ACTIVITIES_CSV = f"""lead_id,user_id,kind,created_at
{LEADS[0]},{BERT},QUALIFIED_CALL,2026-01-01
{LEADS[0]},{ANNA},QUALIFIED_CALL,2026-02-01
{LEADS[0]},{BERT},NOTE,2026-03-01
{LEADS[1]},{BERT},SAMPLE_FEEDBACK,
{LEADS[2]},{CARLA},ROI_PRESENTATION,2026-01-01
{LEADS[3]},,QUALIFIED_CALL,2026-01-01
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the demo makes its folders; short, because a socket's path must be."""
    made = Path(tempfile.mkdtemp(prefix="lp-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """Settings of another installation, which must not disturb the demo."""
    own = {"TMPDIR": str(folder), "DATABASE_URL": "postgresql://nowhere.invalid/x", "LEADPROTECT_SCHEMA": "other"}
    return {name: value for name, value in os.environ.items() if not name.startswith("LEADPROTECT_")} | own


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> str:
    """What the demo prints into a log for the user's own files."""
    here = tmp_path_factory.mktemp("own")
    (here / "alembic.ini").write_text("[leadprotect]\nno_such_key = 1\n", encoding="utf-8")
    (here / "leads.csv").write_text(LEADS_CSV, encoding="utf-8")
    (here / "activities.csv").write_text(ACTIVITIES_CSV, encoding="utf-8")
    files = ["--leads", "leads.csv", "--activities", "activities.csv"]
    done = subprocess.run([*DEMO, *files], cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def cells(story: str, *expected: str) -> bool:
    """Whether a row of a table holds these cells, in this order."""
    return re.search(r"^ *" + r" +".join(map(re.escape, expected)) + r" *$", story, re.MULTILINE) is not None


def postgres_of(folder: Path) -> list[int]:
    """Servers whose data lies in the folder."""
    return [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "postgres" and str(folder) in " ".join(process.info["cmdline"] or ())
    ]


def made_in(folder: Path) -> list[Path]:
    """Folders of a demo; what the system keeps for a login is not its own."""
    return list(folder.glob("leadprotect-*"))


def test_before_the_migration_everybody_sees_everything(story: str) -> None:
    assert cells(story, "seller_de", "none", "3", "2", "1")
    assert cells(story, "seller_ch", "none", "3", "2", "1")


def test_the_migration_stops_before_contract_and_says_what_to_run(story: str) -> None:
    warning = " ".join(story[story.index("WARNING") : story.index("2. ")].split())
    assert f"stopped before {CONTRACT}, its gate is closed" in warning
    assert "leadprotect backfill CH DE" in warning
    assert "login seller_de has privileges on public.leads but is no member" in warning


def test_after_the_migration_the_login_is_the_border(story: str) -> None:
    assert cells(story, "seller_de", "DE", "3", "0", "1")
    assert cells(story, "seller_ch", "CH", "0", "2", "1")
    assert cells(story, "seller_de", "CH", "0", "0", "1")


def test_the_newest_qualifying_activity_made_the_owner(story: str) -> None:
    assert cells(story, f"user {ANNA[-8:]}", "seller_de", "yes", "owner")
    assert cells(story, f"user {BERT[-8:]}", "seller_de", "no", "not_owner")
    assert cells(story, f"user {CARLA[-8:]}", "seller_ch", "no", "not_found")


def test_the_denied_attempt_is_in_the_audit_and_changed_nothing(story: str) -> None:
    assert f"user {BERT[-8:]}: 0 rows changed" in story
    assert f"user {ANNA[-8:]}: 1 row changed" in story
    assert re.search(rf"seller_de +user {BERT[-8:]} +EDIT +DENY +not_owner", story)
    assert re.search(rf"seller_de +user {ANNA[-8:]} +EDIT +ALLOW +owner", story)


def test_the_rollback_kept_every_row(story: str) -> None:
    assert cells(story, "user_lead_assignments", "3", "3", "3")
    assert cells(story, "lead_access_audit", "2", "2", "2")


def test_a_log_has_no_colours_and_fits_in_eighty_columns(story: str) -> None:
    assert "\x1b" not in story
    told = story[: story.index("What to try next")]  # the hints are for copying, and hold a path
    assert [] == [line for line in told.splitlines() if len(line.rstrip()) > 80]


def test_nothing_stays_behind(story: str, folder: Path) -> None:
    assert "Done in" in story
    assert ([], []) == (made_in(folder), postgres_of(folder))


def test_a_refused_file_leaves_nothing(tmp_path: Path, folder: Path, environment: dict[str, str]) -> None:
    leads = tmp_path / "leads.csv"
    leads.write_text(f"id,territory\n{LEADS[0]},XX\n", encoding="utf-8")
    done = subprocess.run([*DEMO, "--leads", leads], env=environment, capture_output=True, text=True, check=False)
    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"Error: {leads}, line 2, column territory: ")
    assert '"XX"; it takes DE or CH, or nothing for a lead outside protection' in done.stderr
    assert ([], []) == (made_in(folder), postgres_of(folder))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--activities", __file__], "--activities needs --leads"),
        (["--leads", __file__, "--scale", "2"], "--scale is for generated leads"),
        (["--leads", "no-such-file.csv"], "does not exist"),
        (["--scale", "0"], "--scale"),
    ],
)
def test_wrong_usage_is_told_with_exit_code_2(options: list[str], expected: str) -> None:
    done = CliRunner().invoke(main, ["demo", *options])
    assert 2 == done.exit_code
    assert expected in done.stderr


def test_leads_without_activities_stay_unassigned_and_keep_leaves_a_server_to_try_things(
    tmp_path: Path, folder: Path, environment: dict[str, str]
) -> None:
    """The hints must not reach another database, whatever the shell of the user has set."""
    leads = tmp_path / "leads.csv"
    leads.write_text(f"id,territory\n{LEADS[0]},CH\n", encoding="utf-8")
    story = subprocess.check_output([*DEMO, "--leads", leads, "--keep"], env=environment, text=True)
    hints = [line.strip() for line in story[story.index("What to try next") :].splitlines()[1:]]
    begin = [line for line in hints if line.startswith(("cd ", "export ", "unset "))]
    commands = [line for line in hints if line.startswith(("alembic ", "psql "))]
    end = [line for line in hints if line.startswith("kill ")]
    try:
        assert (4, 2, 1, 1) == (len(begin), len(commands), len(end), len(postgres_of(folder)))
        commands[-1] = f"echo 'SELECT reason FROM leadprotect.lead_access_audit' | {commands[-1]}"
        said = in_a_shell([*begin, *commands, "alembic current"], environment)
        assert re.search(r"^ unassigned$", said, re.MULTILINE)
        assert said.endswith(f"\n{HEAD} (head)\n")
    finally:
        in_a_shell(end, environment)
    assert 2 == len(re.findall(r"seller_ch +no +unassigned", story))
    assert ([], []) == (made_in(folder), postgres_of(folder))


def in_a_shell(lines: list[str], environment: dict[str, str]) -> str:
    return subprocess.check_output(["sh", "-e"], input="\n".join(lines), env=environment, text=True)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly("Ctrl-C meets another command of the lab by day")),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly("tests/e2e/test_killed.py kills a demo by day")),
        (signal.SIGHUP, 129),
    ],
)
def test_a_stopped_demo_ends_its_server(
    number: int, code: int, folder: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """Ctrl-C reaches the whole process group, a plain kill only the demo itself."""
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))  # nohup ignores it
    with subprocess.Popen(
        [*DEMO, "--scale", "0.01"], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout
        for line in demo.stdout:
            if line.startswith("+ lp_0001"):
                break
        assert postgres_of(folder)
        if number == signal.SIGINT:
            os.killpg(demo.pid, number)
        else:
            demo.send_signal(number)
        demo.stdout.read()
    assert code == demo.returncode
    deadline = time.monotonic() + 60
    while postgres_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ([], []) == (made_in(folder), postgres_of(folder))
