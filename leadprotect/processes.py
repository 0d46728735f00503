"""Processes that we start: whatever ends us, at whatever moment, ends them too."""

from __future__ import annotations

import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command: Ctrl-C, a plain kill, a closed terminal."""

_END_S = 5.0


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What would end this process waits until the block is through."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a signal interrupts the main thread only
        return
    came: list[int] = []
    # what is ignored, as nohup does it, stays ignored, by whatever is started in the block, too
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda got, _: came.append(got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


class Started:
    """A process while the block lasts, `how` as `subprocess.Popen` takes it; it is waited for at the end.

    Where the block fails or is stopped, it is ended first, and killed if it has not ended `patience` seconds later;
    None waits as long as it takes. A signal that comes while it is being started is heard when it is known: else it
    would go on without us. Raises `OSError` where it can't be started.
    """

    def __init__(self, command: Sequence[str | Path], *, patience: float | None = _END_S, **how: Any) -> None:
        self._command, self._how, self._patience = command, how, patience
        self._process: subprocess.Popen[Any] | None = None

    # a class, not a generator: between the end of this method and the block no signal can be heard
    def __enter__(self) -> subprocess.Popen[Any]:
        """Start it."""
        try:
            with uninterrupted():
                self._process = subprocess.Popen(self._command, **self._how)  # noqa: S603 - no shell
        except BaseException:
            self._end()
            raise
        return self._process

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Wait for it; end it first where the block failed."""
        assert self._process is not None  # noqa: S101 - for the type checker
        if failed:
            self._end()
            return
        try:
            with self._process:
                """Its pipes are closed, and it is waited for."""
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        if (process := self._process) is None:
            return
        with process:
            process.terminate()
            try:
                process.wait(self._patience)
            except subprocess.TimeoutExpired:
                process.kill()


def run_program(
    command: Sequence[str | Path], *, text: str | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run it to its end with `text` as its input, and return what it said; it is ended where we are stopped."""
    given = subprocess.DEVNULL if text is None else subprocess.PIPE
    pipes = {"stdin": given, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Started(command, text=True, **pipes, **how) as process:
        said, failed = process.communicate(text)
    return subprocess.CompletedProcess(process.args, process.returncode, said, failed)
