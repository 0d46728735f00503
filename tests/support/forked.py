"""Commands in processes of their own that begin at once: forks of one process that has imported what they need.

To the test and to the server such a process is what ``python -m`` makes; it has no half a second of imports before it.
What is about an interpreter that begins anew (its options, its path, what it imports) starts one itself.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self

ROOT = Path(__file__).parents[2]
IMPORTED = ("alembic.config", "leadprotect.cli", "leadprotect.migration.environment", "sqlalchemy.dialects.postgresql")
LONGEST = 1 << 17  # bytes of a job: its words and its environment


class Forked:
    """A running ``python -m``; asked and ended like a `subprocess.Popen` in text mode, whose stdin is empty.

    `stdout` goes nowhere unless it is asked for. It is the first of a session of its own.
    """

    def __init__(
        self, words: Iterable[str], env: Mapping[str, str], *, cwd: Path | None = None, stdout: bool = False
    ) -> None:
        self.args = [*words]
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        if stdout:
            self.stdout, out = _pipe()
        else:
            out = os.open(os.devnull, os.O_WRONLY)
        self.stderr, err = _pipe()
        self._ended, ends = os.pipe()
        job = json.dumps([self.args, str(cwd or Path.cwd()), dict(env)]).encode()
        assert len(job) < LONGEST
        home = _home()
        socket.send_fds(home, [job], [out, err, ends])
        for one in (out, err, ends):
            os.close(one)
        self.pid = int(home.recv(16))

    def poll(self) -> int | None:
        """The exit code, once it has ended; negative is the signal that ended it."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = int(os.read(self._ended, 16))
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended; raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            select.select([self._ended], [], [], timeout)
        if (code := self.poll()) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it says on stdout and stderr until it ends."""
        with ThreadPoolExecutor(2) as pool:
            told = [pool.submit(_read, one) for one in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            out, err = (one.result() for one in told)
        return out, err

    def send_signal(self, number: int) -> None:
        """Only while it runs: later the number may be somebody else's."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for one in (self.stdout, self.stderr):
            if one:
                one.close()
        self.wait()


def run(words: Iterable[str], env: Mapping[str, str], *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end, as `subprocess.run` does."""
    with Forked(words, env, cwd=cwd, stdout=True) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _read(file: IO[str] | None) -> str:
    return file.read() if file else ""


def _pipe() -> tuple[IO[str], int]:
    read, write = os.pipe()
    return os.fdopen(read, encoding="utf-8"), write


@cache
def _home() -> socket.socket:
    """Where to ask the process that forks; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LEADPROTECT_")}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(its.fileno())], cwd=ROOT, env=clean, pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    its.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _child(home: socket.socket) -> str:
    """Fork for each job that comes; returns in the fork, which is to run that module."""
    heard, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready = select.select([home.fileno(), heard], [], [])[0]
        if heard in ready:
            os.read(heard, 1024)
            _tell(running)
        if home.fileno() in ready:
            job, files, *_ = socket.recv_fds(home, LONGEST, 3)
            if not job:
                sys.exit()
            out, err, ends = files
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for target, one in ((1, out), (2, err)):
                    os.dup2(one, target)
                for one in (home.detach(), heard, woken, out, err, ends, *running.values()):
                    os.close(one)
                return _become(*json.loads(job))
            os.close(out)
            os.close(err)
            running[pid] = ends
            home.send(str(pid).encode())


def _tell(running: dict[int, int]) -> None:
    """Say how each that has ended has ended."""
    for pid in [*running]:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            ends = running.pop(pid)
            os.write(ends, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(ends)


def _become(words: list[str], folder: str, environment: dict[str, str]) -> str:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv = words
    return words[0]


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    gc.freeze()
    runpy.run_module(_child(socket.socket(fileno=int(sys.argv[1]))), run_name="__main__", alter_sys=True)
