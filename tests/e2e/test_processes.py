"""A signal at each moment in which a process is started: none of them leaves it behind."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.house import MODULES, PACKAGE

if TYPE_CHECKING:
    from pathlib import Path

STORM = """
import json, signal, subprocess, sys
from pathlib import Path

import psutil

from leadprotect import processes
from leadprotect.cli.interrupts import Killed, tidied_when_killed
from leadprotect.lab.commands import run_to_end
from leadprotect.migration.host_change import run_for_host

SLEEP = ["sleep", "1"]


def bare():
    with subprocess.Popen(SLEEP) as process:
        try:
            process.wait()
        except BaseException:
            process.terminate()
            raise


def started():
    with processes.Started(SLEEP) as process:
        process.wait()


ways = {
    "bare": bare,
    "started": started,
    "run_program": lambda: processes.run_program(SLEEP, text="a line"),
    "run_to_end": lambda: run_to_end(("sleeps",), folder=Path(), heard=print),
    "run_for_host": lambda: run_for_host(SLEEP),
}


class Moments:
    # where Python hears of signals: when a function begins, and when one written in C has returned
    def __init__(self, which):
        self.which, self.seen, self.forked = which, 0, False

    def __call__(self, frame, event, called):
        if event not in ("call", "c_return") or not self.forked:
            self.forked = self.forked or event == "c_return" and called.__name__ == "fork_exec"
            return
        self.seen += 1
        if self.seen > self.which:
            sys.setprofile(None)
            signal.raise_signal(number)


way, number = ways[sys.argv[1]], signal.Signals[sys.argv[2]]
for each in processes.SIGNALS:  # whoever runs this may ignore one, and what is ignored stays so
    signal.signal(each, signal.default_int_handler)
left, which, over = [], 0, False
while not over and which < int(sys.argv[3]):
    try:
        with tidied_when_killed():
            sys.setprofile(Moments(which))
            way()
            over = True  # it has ended before so many moments
    except Killed:
        pass
    for each in processes.SIGNALS:
        signal.signal(each, signal.default_int_handler)
    for child in psutil.Process().children():
        if child.status() != psutil.STATUS_ZOMBIE:
            left.append(which)
            child.kill()
        child.wait()
    which += 1
sys.setprofile(None)
print(json.dumps([which, left]))
"""


STARTS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}
MOMENTS = 48
"""More than there are of Python from the fork to the block; what comes then is the block's."""


def left_at(way: str, number: str, folder: Path, *, moments: int = MOMENTS) -> tuple[int, list[int]]:
    """How many moments were tried after the fork, and those at which a signal left the process behind."""
    (folder / "sleeps.py").write_text("import time\ntime.sleep(1)\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", STORM, way, number, str(moments)],
        env=os.environ | {"PYTHONPATH": str(folder)}, cwd=folder, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    tried, left = json.loads(done.stdout.splitlines()[-1])
    return tried, left


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("started", "SIGINT"),
        ("started", "SIGHUP"),
        *((way, "SIGTERM") for way in ("run_program", "run_to_end", "run_for_host")),
    ],
)
def test_a_signal_while_a_process_is_started_ends_it(way: str, number: str, tmp_path: Path) -> None:
    moments, left = left_at(way, number, tmp_path)
    assert moments > 30
    assert [] == left


def test_a_process_started_as_python_does_is_left_by_some(tmp_path: Path) -> None:
    """The control: at these moments it runs already, and nobody knows of it."""
    _, left = left_at("bare", "SIGTERM", tmp_path, moments=10)
    assert list(range(10)) == left


def test_nobody_else_starts_a_process() -> None:
    """Those who do hear of a signal in no other way than that it ends what they have started."""
    known = {
        "processes.py",
        "lab/servers.py",  # uninterrupted as a whole
        "gates/rollout.py",  # a signal is one more thing that happens to a guard
        "fleet/run.py",  # in threads, which hear of no signal, under the lock of whoever ends them
    }
    starting = {
        str(path.relative_to(PACKAGE))
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in STARTS
    }
    assert known == starting
