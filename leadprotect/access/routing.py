"""The engine of a territory's database, and one question asked of several of them at once."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import psycopg

from leadprotect.database.bound import bind_settings
from leadprotect.database.connection import no_connection
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import is_lost, sending
from leadprotect.database.waiting import loop_of_caller
from leadprotect.errors import (
    ConnectionUnusable,
    DatabasesUnavailable,
    InvalidRequest,
    ProtectionUnavailable,
    SettingsError,
)
from leadprotect.settings import current, url
from leadprotect.settings.databases import SECTION
from leadprotect.settings.load import of_database

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from leadprotect.database.statements import Send
    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

    AnyEngine = Engine | AsyncEngine
    Router = Callable[[str], AnyEngine]

K = TypeVar("K")
"""The ids of leads as the caller has them."""

CONNECT_TIMEOUT_S = 10
"""A server that answers nothing at all must not hold up the others for minutes; the URL may say otherwise."""

_engines: dict[tuple[str, bool], tuple[Settings, AnyEngine]] = {}
"""URL as the settings have it, and whether it is for await -> the settings it was made with, and the engine."""

_routes: dict[tuple[str, bool], tuple[Settings, AnyEngine]] = {}
"""Territory, and whether it is for await -> the settings of the process that say so, and its engine."""

_lock = threading.Lock()


def route(territory: str) -> Engine:
    """The engine of the database that holds `territory`, as section ``[leadprotect.databases]`` of the settings says.

    There is one for each database and process, with a pool of SQLAlchemy's usual size: territories that share a
    database share it. It connects when it is first used, with what the URL, or the function that tells it, says then.
    Its ``dispose()`` closes what is idle; it goes on afterwards, in the child of a fork, too.

    Raises `SettingsError` without the section, `InvalidRequest` for a territory that it does not name.
    """
    engine: Any = _routed(territory, awaited=False)
    return engine  # type: ignore[no-any-return]


def awaited_route(territory: str) -> AsyncEngine:
    """The same for ``await``: one for each database and process, which belongs to one event loop."""
    engine: Any = _routed(territory, awaited=True)
    return engine  # type: ignore[no-any-return]


def dispose_routes() -> None:
    """Close what lies in the pools of this process, and forget the engines."""
    with _lock:
        kept = [engine for _, engine in _engines.values()]
        _engines.clear()
        _routes.clear()
    for engine in kept:
        _close(engine)


atexit.register(dispose_routes)


def _routed(territory: str, *, awaited: bool) -> AnyEngine:
    s = current.whole()
    made_for, engine = _routes.get((territory, awaited), (None, None))
    if engine is not None and made_for is s:
        return engine
    every = (*s.databases, *s.elsewhere)
    if not every:
        raise SettingsError(f"route: there is no section [{SECTION}]; write into it: {territory} = postgresql://...")
    one = next((one for one in every if territory in one.territories), None)
    if one is None:
        held = ", ".join(code for one in every for code in one.territories)
        raise InvalidRequest(f"territory: {territory!r} is in no database of [{SECTION}]; those hold {held}")
    engine = _kept(of_database(s, one), one, awaited=awaited)
    _routes[territory, awaited] = s, engine
    return engine


def _kept(settings: Settings, one: TerritoryDatabase, *, awaited: bool) -> AnyEngine:
    with _lock:
        made_with, engine = _engines.get((one.url, awaited), (None, None))
        if engine is not None and made_with == settings:
            return engine
        made = _made(settings, awaited=awaited)
        _engines[one.url, awaited] = settings, made
    if engine is not None:  # the settings of this process have changed
        _close(engine)
    return made


def _made(settings: Settings, *, awaited: bool) -> AnyEngine:
    from sqlalchemy import create_engine  # noqa: PLC0415 - half a second that a command line need not spend

    def parameters() -> dict[str, Any]:
        given = psycopg.conninfo.conninfo_to_dict(url(settings))
        if "PGCONNECT_TIMEOUT" not in os.environ:
            given.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        return given

    async def opened() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(**parameters())

    engine: AnyEngine
    if awaited:
        try:
            from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - an extra
        except ImportError:
            raise InvalidRequest("leadprotect.aio needs the extra aio: pip install 'leadprotect[aio]'") from None
        engine = create_async_engine("postgresql+psycopg://", async_creator=opened)
    else:
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(**parameters()))
    bind_settings(engine, settings)
    return engine


def _close(engine: Any) -> None:
    """What waits for a loop can't be closed from here: its sockets close when they are collected."""
    if hasattr(engine, "sync_engine"):
        engine.sync_engine.dispose(close=False)
    else:
        engine.dispose()


def _forked() -> None:
    """A child that used or closed them would talk on its parent's sockets."""
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    for _, engine in _engines.values():
        getattr(engine, "sync_engine", engine).dispose(close=False)


os.register_at_fork(after_in_child=_forked)


# --- one question, several databases


class Question(Protocol):
    """What is asked of each territory: which of some leads; `send` says how to read what it has sent."""

    def ask(self, conn: Connection, territory: str, leads: list[Any]) -> list[bool]:
        """The answers, in their order."""

    def send(self, conn: Connection, send: Send, territory: str, leads: list[Any]) -> Callable[[], list[bool]]:
        """Send it on a synchronous connection; what comes back reads the answers."""


_Told = tuple[dict[str, list[bool]], dict[str, ProtectionUnavailable]]
"""Of one database: the answers by territory, and why the others have none."""


def ask_each(router: Router, leads: Iterable[tuple[str, K]], question: Question) -> dict[tuple[str, K], bool]:
    """What the question answers for the leads of each territory, keys as given: every database at once.

    Raises `DatabasesUnavailable`, with the answers of the others, where some gave none.
    """
    asked = list(leads)
    by_territory: defaultdict[str, list[tuple[str, K]]] = defaultdict(list)
    try:
        for pair in asked:
            territory, _ = pair
            by_territory[territory].append(pair)
    except (TypeError, ValueError):
        raise InvalidRequest("lead_ids: of several databases; give pairs of (territory, lead_id)") from None
    by_engine: dict[AnyEngine, dict[str, list[K]]] = {}
    for territory, pairs in by_territory.items():
        by_engine.setdefault(router(territory), {})[territory] = [lead for _, lead in pairs]
    # in the order in which they were asked, whatever comes first
    answers: dict[tuple[str, K], bool | None] = dict.fromkeys(asked)
    failed: dict[str, ProtectionUnavailable] = {}
    for found, silent in _at_once([(engine, parts, question) for engine, parts in by_engine.items()]):
        for territory, told in found.items():
            answers.update(zip(by_territory[territory], told, strict=True))
        failed |= silent
    if failed:
        had = {one: may for one, may in answers.items() if may is not None}
        raise DatabasesUnavailable(failed, had, len(answers))
    return cast("dict[tuple[str, K], bool]", answers)


def _at_once(parts: list[tuple[Any, ...]]) -> list[_Told]:
    """Sent to all before one is read where a session of each stands open, else each in a thread of its own.

    Threads would take turns with the interpreter, and each its own time to begin. To open a session may take as long
    as it may, and the others don't wait for that.
    """
    if not all(_at_hand(engine) for engine, *_ in parts):
        return _in_threads(parts)
    with ExitStack() as stack:
        visits = [stack.enter_context(closing(_sent_and_read(*part))) for part in parts]
        sent = [next(visit) for visit in visits]
        # one that could not be sent has told all it has to
        told = [next(visit, first) for visit, first in zip(visits, sent, strict=True)]
    # a session that was lost while nobody used it is no answer of its server's
    again = iter(_in_threads([part for part, found in zip(parts, told, strict=True) if found is None]))
    return [next(again) if found is None else found for found in told]


def _at_hand(engine: Any) -> bool:
    """Whether it has a session of psycopg's that nobody uses, and that can be sent to without waiting."""
    idle = getattr(getattr(engine, "pool", None), "checkedin", None)
    return callable(idle) and idle() > 0 and engine.dialect.driver == "psycopg" and psycopg.Pipeline.is_supported()


def _sent_and_read(engine: Engine, parts: dict[str, list[Any]], question: Question) -> Generator[_Told | None]:
    """Once sent, it yields nothing, and once read, what was told; again nothing where the session is lost."""
    found: dict[str, list[bool]] = {}
    failed: ProtectionUnavailable | None = None
    lost = False
    with engine.connect() as conn:
        try:
            conn.begin()  # of which listeners of the host are told
            with mapped_errors(), sending(conn) as send:
                reading = {code: question.send(conn, send, code, leads) for code, leads in parts.items()}
                send("ROLLBACK", ())
                yield None
                for code, read in reading.items():
                    found[code] = read()
        except ProtectionUnavailable as error:
            failed = error
            if lost := is_lost(conn):
                conn.invalidate()
    yield None if lost else (found, {code: failed for code in parts if failed and code not in found})


def _in_threads(parts: list[tuple[Any, ...]]) -> list[_Told]:
    """One of them in this thread; in the context of the caller, where its trace is."""
    if not parts:
        return []
    with ThreadPoolExecutor(len(parts), "leadprotect-route") as pool:
        others = [pool.submit(contextvars.copy_context().run, _visited, *part) for part in parts[1:]]
        first = _visited(*parts[0])
        return [first, *(other.result() for other in others)]


def _visited(engine: Any, parts: dict[str, list[Any]], question: Question) -> _Told:
    """The answers of one database, territory by territory in one session, and who got none."""
    found: dict[str, list[bool]] = {}

    def visit(conn: Connection) -> None:
        for territory, leads in parts.items():
            found[territory] = question.ask(conn, territory, leads)

    try:
        with mapped_errors():
            _connected(engine, visit)
    except ProtectionUnavailable as error:
        return found, {territory: error for territory in parts if territory not in found}
    return found, {}


def _connected(engine: Any, visit: Callable[[Connection], None]) -> None:
    if hasattr(engine, "sync_engine"):
        loop = loop_of_caller()
        asyncio.run_coroutine_threadsafe(_awaited(engine, visit), loop).result()
        return
    with _opening():
        conn = engine.connect()
    with conn:
        visit(conn)


async def _awaited(engine: Any, visit: Callable[[Connection], None]) -> None:
    with _opening():
        conn = await engine.connect()
    try:
        await conn.run_sync(visit)
    finally:
        await conn.close()


@contextmanager
def _opening() -> Iterator[None]:
    """A connection of an engine, which may be the host's own."""
    from sqlalchemy import exc  # noqa: PLC0415 - whoever has an engine has it loaded

    try:
        yield
    except exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.OperationalError):
            raise no_connection(error.orig) from None
        raise
    except (exc.TimeoutError, SettingsError) as error:  # the pool has none left, or nobody tells the URL
        raise ConnectionUnusable(f"no connection to the database: {error}") from None
