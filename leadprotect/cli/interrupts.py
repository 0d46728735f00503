"""A plain kill and a closed terminal end a command as Ctrl-C does: with everything tidied up."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from leadprotect.processes import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Killed(KeyboardInterrupt):
    """A signal asked for the end; `code` is the exit code that says which one."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


@contextmanager
def tidied_when_killed() -> Iterator[None]:
    """Raise `Killed` at the first signal, and let no other one disturb what is tidied up then."""
    if threading.current_thread() is not threading.main_thread():  # only that one hears of signals
        yield
        return
    # what is ignored, as nohup does it, stays ignored
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}

    def end(number: int, _frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Killed(number)

    for number in before:
        signal.signal(number, end)
    killed = False
    try:
        yield
    except Killed:
        killed = True  # what is left to do until the process ends stays undisturbed, too
        raise
    finally:
        for number, handler in () if killed else before.items():
            signal.signal(number, handler)


def on_signal(interrupt: Callable[[str], None]) -> None:
    """A signal is one more thing that happens: what runs is stopped in good order, and what is half done is said."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda which, _frame: interrupt(signal.Signals(which).name))
