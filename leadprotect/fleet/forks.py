"""A process for one database that is forked from this one, with all that it has loaded."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from leadprotect.settings import current
from leadprotect.settings.databases import ON

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.settings.databases import TerritoryDatabase

_SIGNALS: dict[signal.Signals, Callable[..., Any] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""What a new process does at each, where nobody ignores it."""


class Forked:
    """Runs `work` on `words` with the settings of one database, as soon as it may `go`; read it like a Popen.

    It is made while this process has one thread, and ends by itself where this one dies before that. Source:
    https://docs.python.org/3/library/os.html#os.fork (what becomes of other threads).
    """

    def __init__(self, one: TerritoryDatabase, words: list[str], work: Callable[[list[str]], object]) -> None:
        (may_go, self._go), (said, out), (failed, err) = (os.pipe() for _ in range(3))
        self._process = multiprocessing.get_context("fork").Process(
            target=_work,
            args=(one, words, work, (may_go, out, err), (self._go, said, failed)),
            daemon=True,  # one that never may go is not waited for when this process ends
        )
        self._process.start()
        for end in (may_go, out, err):
            os.close(end)
        self.stdout = os.fdopen(said, encoding="utf-8", errors="replace")
        self.stderr = os.fdopen(failed, encoding="utf-8", errors="replace")

    def go(self) -> None:
        """Let it begin."""
        with suppress(BrokenPipeError):  # it was ended before, which `wait` tells
            os.write(self._go, b".")

    def __enter__(self) -> Self:
        """As a Popen does."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was read, and wait for its end."""
        self.stdout.close()
        self.stderr.close()
        os.close(self._go)
        self.wait()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The same at its end; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("leadprotect", timeout or 0.0)
        return code

    def terminate(self) -> None:
        """As a plain kill does."""
        self._process.terminate()

    def kill(self) -> None:
        """At once."""
        self._process.kill()


def _work(
    one: TerritoryDatabase,
    words: list[str],
    work: Callable[[list[str]], object],
    mine: tuple[int, int, int],
    theirs: tuple[int, int, int],
) -> None:
    """In the child: a session of its own, the settings of its database, and what it says into the pipes."""
    os.setsid()  # Ctrl-C of a terminal reaches the parent alone, who stops all of them alike
    for number, handler in _SIGNALS.items():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    for end in theirs:
        os.close(end)
    may_go, out, err = mine
    os.dup2(out, 1)
    os.dup2(err, 2)
    if not os.read(may_go, 1):
        return
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr] # those of a command line are files
    os.environ[ON] = one.territories[0]
    current.cache_clear()
    random.seed()  # else all of them would wait equally long for the same lock
    work(words)
