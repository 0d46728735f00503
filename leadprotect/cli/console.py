"""Tables and bars for a terminal; apart from plain lines, since a command without them need not load rich."""

from __future__ import annotations

from typing import Any

from rich.console import Console as RichConsole

from leadprotect.cli.terminal import plain


class Console(RichConsole):
    """Tables and bars, without markup in what they show: ``[/b]`` is what somebody wrote, and no style."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Any:
        """As rich does, plain."""
        return super().render_str(plain(text), **how)
