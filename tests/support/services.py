"""The services of docs/examples, loaded as a server would load them."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from tests.support.database import Database

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def service_url(database: Database, login: str = "seller_both") -> str:
    """For SQLAlchemy: the login of a service, on the server's socket."""
    host = quote(database.server.host, safe="/")
    return f"postgresql+psycopg://{database.profile.login(login)}@/{database.name}?host={host}"


@contextmanager
def example(name: str, database: Database, patch: pytest.MonkeyPatch, **changed: str) -> Iterator[ModuleType]:
    """The module; `changed` says what of its text is replaced, and by what, for one that is broken."""
    patch.setenv("SERVICE_URL", service_url(database))
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    for before, after in changed.items():
        assert before in text
        text = text.replace(before, after)
    module = ModuleType(name)
    sys.modules[name] = module  # where a framework looks its annotations up
    try:
        exec(compile(text, EXAMPLES / f"{name}.py", "exec"), module.__dict__)  # noqa: S102 - our own example
        yield module
    finally:
        del sys.modules[name]
