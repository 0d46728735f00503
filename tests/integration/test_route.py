"""Services over several databases: the engine of a territory, and no question asked where it does not live."""

from __future__ import annotations

import asyncio
import pickle
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Engine, event, text

import leadprotect
from leadprotect import aio
from leadprotect.access import routing
from leadprotect.integrations.requests import detail_of, status_of
from leadprotect.settings import configured, parse
from tests.support.database import ROOT
from tests.support.territories import leave, split, url

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

DEAD = "postgresql://nobody@/crm?host=/nowhere"
Two = tuple["Database", "Database"]

pytestmark = pytest.mark.profiles("pg18", "other_names")


@pytest.fixture
def two(make_database: Callable[..., Database]) -> Two:
    """Two databases of one server: DE lives in the first, CH in the second, and in no other."""
    here, there = make_database("head"), make_database("head")
    leave(here, "CH")
    leave(there, "DE")
    split(here, there)
    return here, there


def database_of(engine: Engine) -> str:
    with engine.connect() as conn:
        found: str = conn.scalar(text("SELECT current_database()"))
    return found


# --- the engine


def test_a_territory_s_engine_leads_to_its_database_and_is_one_for_all_that_share_it(two: Two) -> None:
    here, there = two
    split(here, there, AT=url(here, "seller_both"))
    assert (here.name, there.name) == (database_of(leadprotect.route("DE")), database_of(leadprotect.route("CH")))
    assert leadprotect.route("AT") is leadprotect.route("DE") is leadprotect.route("DE")
    assert leadprotect.route("CH") is not leadprotect.route("DE")


def test_a_territory_that_no_database_holds_is_refused_by_name(two: Two) -> None:
    with pytest.raises(leadprotect.InvalidRequest, match=r"'FR' is in no database .* those hold DE, CH"):
        leadprotect.route("FR")
    configured(parse({}))
    with pytest.raises(leadprotect.SettingsError, match=r"no section \[leadprotect.databases\].* DE = postgresql://"):
        leadprotect.route("DE")
    assert two


def test_settings_that_name_the_same_keep_the_engine_and_others_close_it(two: Two) -> None:
    here, there = two
    engine = leadprotect.route("DE")
    assert here.name == database_of(engine)
    assert 1 == engine.pool.checkedin()  # type: ignore[attr-defined]
    split(here, there)
    assert engine is leadprotect.route("DE")
    split(there, here, DE=url(here, "manager_de"))
    assert engine is not leadprotect.route("DE")
    split(here, there, DE=url(here, "seller_both"), AT=url(here, "seller_both"))
    assert engine is not leadprotect.route("DE")
    assert 0 == engine.pool.checkedin()  # type: ignore[attr-defined]


WITHOUT_EXTRAS = """
import sys
sys.modules["greenlet"] = None  # it is of the extra aio
import leadprotect
from leadprotect import aio
from leadprotect.settings import configured, parse

url, user, lead = sys.argv[1:]
configured(parse({"territories": "DE"}, {}, {"DE": url}))
engine = leadprotect.route("DE")
with engine.begin() as conn, leadprotect.acting_as(conn, user, "DE"):
    print(leadprotect.can_edit(conn, lead))
print(leadprotect.can_edit_many(leadprotect.route, [("DE", lead)], user_id=user))
leadprotect.bind(engine, lambda: leadprotect.Context(user, "DE"))
with engine.begin() as conn:
    print(leadprotect.can_edit(conn, lead))
try:
    aio.route("DE")
except leadprotect.InvalidRequest as error:
    print(error)
"""


@pytest.mark.profiles("pg18")
def test_a_service_without_extras_has_its_engine(two: Two) -> None:
    here, _ = two
    user = here.user(1)
    words = [sys.executable, "-c", WITHOUT_EXTRAS, url(here, "seller_de"), user, str(here.lead("DE", owner=user))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    first, many, bound, awaited = done.stdout.splitlines()
    assert ("True", "True") == (first, bound)
    assert many.endswith("): True}")
    assert "leadprotect.aio needs the extra aio: pip install 'leadprotect[aio]'" == awaited


def test_the_url_is_asked_for_with_each_connection(two: Two, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = two
    (tmp_path / "vault_of_the_host.py").write_text(
        f"answers = [{url(here, 'seller_de')!r}, {here.url!r}]\ntold = iter(answers).__next__\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vault_of_the_host", raising=False)
    split(here, there, DE="vault_of_the_host:told")
    with leadprotect.route("DE").connect() as first, leadprotect.route("DE").connect() as second:
        logins = [conn.scalar(text("SELECT session_user")) for conn in (first, second)]
    assert [here.profile.login("seller_de"), "postgres"] == logins
    assert "postgresql" not in repr(routing._engines[("vault_of_the_host:told", False)][0].databases)  # noqa: SLF001


FORKED = """
import os, sys
import leadprotect
from sqlalchemy import text
from leadprotect.settings import configured, parse
configured(parse({}, {}, {"DE": sys.argv[1], "CH": sys.argv[1]}))
engine = leadprotect.route("DE")
def pid():
    with engine.connect() as conn:
        return conn.scalar(text("SELECT pg_backend_pid()"))
before = pid()
child = os.fork()
if not child:
    os._exit(0 if engine is leadprotect.route("CH") and pid() != before else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pid() == before)
"""


@pytest.mark.profiles("pg18")
def test_a_forked_child_talks_on_connections_of_its_own(host: Database) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, host.url], capture_output=True, text=True, check=False, timeout=60
    )
    assert "0 True" == done.stdout.strip(), done.stderr


# --- where it does not live


def refused(ask: Callable[[], object]) -> leadprotect.NotHere:
    with pytest.raises(leadprotect.NotHere) as error:
        ask()
    assert "not_here" == error.value.reason
    return error.value


def act(conn: Any, user: str, territory: str) -> None:
    with leadprotect.acting_as(conn, user, territory):
        pass


def test_a_block_on_the_engine_of_another_territory_is_refused_with_the_way_there(two: Two) -> None:
    here, there = two
    with leadprotect.route("DE").connect() as conn, leadprotect.acting_as(conn, here.user(1), "DE"):
        error = refused(lambda: act(conn, here.user(1), "CH"))
        assert ("CH", "CH") == (error.territory, error.database)
        assert there.name in str(error)
        assert there.profile.login("seller_both") not in str(error)
        assert "use a connection of leadprotect.route('CH')" in str(error)
        context = here.text("SELECT user_id, territory FROM {schema}.context()")
        assert (here.user(1), "DE") == tuple(conn.exec_driver_sql(context).one())
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, as a worker hands it on
        assert (str(error), "CH", "CH") == (str(again), again.territory, again.database)


def test_the_settings_are_believed_where_a_database_still_has_what_moved_away(
    two: Two, make_database: Callable[..., Database]
) -> None:
    both = make_database("head")
    split(both, two[1])
    with leadprotect.route("DE").connect() as conn:
        refused(lambda: act(conn, both.user(1), "CH"))
    # a connection that nobody told which of the databases it leads to has the word of its server
    with both.connect("seller_both") as own, leadprotect.acting_as(own, both.user(1), "CH"):
        assert not leadprotect.can_edit(own, both.lead("CH"))


WAYS: dict[str, Callable[[Any, Any, str], object]] = {
    "acting_as": lambda conn, _, user: act(conn, user, "CH"),
    "can_edit": lambda conn, lead, user: leadprotect.can_edit(conn, lead, user_id=user, territory="CH"),
    "explain": lambda conn, lead, user: leadprotect.explain(conn, lead, user_id=user, territory="CH"),
    "editing": lambda conn, lead, user: edited(conn, lead, user, "CH"),
}


def edited(conn: Any, lead: Any, user: str, territory: str) -> None:
    with leadprotect.editing(conn, lead, user, territory):
        pass


@pytest.mark.parametrize("way", WAYS)
def test_the_server_s_own_word_refuses_on_any_connection(two: Two, way: str) -> None:
    here, _ = two
    lead = here.lead("DE", owner=here.user(1))
    with here.connect("seller_both") as conn:
        error = refused(lambda: WAYS[way](conn, lead, here.user(1)))
        assert "it is in that of CH" in str(error)
        conn.rollback()
        edited(conn, lead, here.user(1), "DE")
    assert [("EDIT", "ALLOW", "owner")] == here.audit()


@pytest.mark.parametrize("way", WAYS)
def test_control_who_names_no_databases_is_answered_by_the_decision(two: Two, way: str) -> None:
    here, _ = two
    configured(parse(here.profile.settings))
    lead = here.lead("DE", owner=here.user(1))
    with here.connect("seller_both") as conn:
        if way == "editing":
            with pytest.raises(leadprotect.LeadAccessDenied, match=r"no_context|not_found"):
                WAYS[way](conn, lead, here.user(1))
        else:
            assert not WAYS[way](conn, lead, here.user(1))


def test_a_block_that_asks_for_a_result_in_its_pipeline_is_refused_before_that(two: Two) -> None:
    here, _ = two

    def ask(conn: psycopg.Connection[Any]) -> None:
        with leadprotect.editing(conn, here.new_id(), here.user(1), "CH"):
            conn.execute("SELECT 1").fetchone()

    with here.connect("seller_both") as conn:
        refused(lambda: ask(conn))
        assert psycopg.pq.TransactionStatus.IDLE == conn.info.transaction_status


def test_a_bound_engine_begins_no_transaction_for_a_territory_of_another(two: Two) -> None:
    here, _ = two
    engine = leadprotect.route("DE")
    unbind = leadprotect.bind(engine, lambda: (here.user(1), "CH"))
    with engine.connect() as conn:
        refused(lambda: conn.execute(text("SELECT 1")))
    unbind()
    assert here.name == database_of(engine)


def test_a_territory_in_no_database_and_one_that_its_own_lacks_are_told_apart(two: Two) -> None:
    here, there = two
    with leadprotect.route("DE").connect() as conn:
        assert "names no database for it: DE, CH have one" in str(refused(lambda: act(conn, here.user(1), "FR")))
    split(here, here, AT=url(there, "seller_both"))
    with leadprotect.route("AT").connect() as conn:
        error = refused(lambda: act(conn, here.user(1), "AT"))
    assert "leadprotect --on AT territory add AT" in str(error)


def test_an_added_territory_that_the_settings_do_not_know_is_served_where_it_lives(two: Two) -> None:
    here, _ = two
    here.sql("INSERT INTO {schema}.territories (code, name) VALUES ('FR', 'France')")
    here.sql("SELECT {schema}.publish_territories()")
    with leadprotect.route("DE").connect() as conn, leadprotect.acting_as(conn, here.user(1), "FR"):
        assert not leadprotect.can_edit(conn, here.new_id())


def test_to_a_client_it_is_a_request_at_the_wrong_server(two: Two) -> None:
    with leadprotect.route("DE").connect() as conn:
        error = refused(lambda: act(conn, two[0].user(1), "CH"))
    assert (421, "not_here") == (status_of(error), detail_of(error))


def test_to_know_it_costs_no_statement(two: Two) -> None:
    here, _ = two
    lead = here.lead("DE", owner=here.user(1))
    engine = leadprotect.route("DE")
    seen: list[str] = []
    with engine.connect() as conn:
        event.listen(conn, "before_cursor_execute", lambda *given: seen.append(given[2]))
        with leadprotect.acting_as(conn, here.user(1), "DE"):
            assert leadprotect.can_edit(conn, lead)
            assert leadprotect.can_edit(conn, lead, user_id=here.user(1), territory="DE")
    assert 4 == len(seen)


# --- many leads of several


def asked(two: Two) -> tuple[list[tuple[str, Any]], dict[tuple[str, Any], bool]]:
    """Leads of both, mixed, and what is right for user 1; the ids of the two databases may be the same."""
    found: dict[tuple[str, Any], bool] = {}
    for number in range(6):
        for database, code in zip(two, ("DE", "CH"), strict=True):
            found[code, database.lead(code, owner=database.user(1 + number % 2))] = number % 2 == 0
    return [*found], found


def test_many_leads_are_answered_in_the_order_asked_by_the_servers_that_hold_them(two: Two) -> None:
    pairs, right = asked(two)
    mixed = [*reversed(pairs), pairs[3]]
    answers = leadprotect.can_edit_many(leadprotect.route, mixed, user_id=two[0].user(1))
    assert right == answers
    assert [*dict.fromkeys(mixed)] == [*answers]
    assert {} == leadprotect.can_edit_many(leadprotect.route, [], user_id=two[0].user(1))


def test_territories_of_one_database_are_asked_in_one_session(two: Two, make_database: Callable[..., Database]) -> None:
    both = make_database("head")
    split(both, both)
    right = {(code, both.lead(code, owner=both.user(1))): True for code in ("DE", "CH")}
    sessions: list[object] = []
    event.listen(leadprotect.route("DE"), "checkout", lambda *given: sessions.append(given))
    assert right == leadprotect.can_edit_many(leadprotect.route, right, user_id=both.user(1))
    assert 1 == len(sessions)
    assert two


def test_the_servers_are_asked_at_once(two: Two) -> None:
    """Each waits for the other before it asks: one after the other they would wait for ever."""
    pairs, right = asked(two)
    meeting = threading.Barrier(2, timeout=60)
    for code in ("DE", "CH"):
        event.listen(leadprotect.route(code), "begin", lambda _: meeting.wait())
    assert right == leadprotect.can_edit_many(leadprotect.route, pairs, user_id=two[0].user(1))


def warm(*codes: str) -> list[int]:
    """A session of each stands open, and nobody uses it: its process on the server."""
    pids = []
    for code in codes:
        with leadprotect.route(code).connect() as conn:
            pids.append(conn.scalar(text("SELECT pg_backend_pid()")))
    return pids


def test_with_sessions_at_hand_all_are_asked_before_one_has_answered(two: Two) -> None:
    """Leads that somebody has locked let both wait; one after the other only the first would."""
    pairs, right = asked(two)
    sessions = warm("DE", "CH")
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = ANY (%s)"
    found: list[dict[Any, bool]] = []
    ask = threading.Thread(
        target=lambda: found.append(leadprotect.can_edit_many(leadprotect.route, pairs, user_id=two[0].user(1)))
    )
    with ExitStack() as locked:
        for database in two:
            conn = locked.enter_context(database.connect())
            database.query(conn, "LOCK TABLE {leads} IN ACCESS EXCLUSIVE MODE")
        ask.start()
        while {*two[0].sql(waiting, sessions)} != {*sessions}:
            assert ask.is_alive()
            time.sleep(0.01)
    ask.join()
    assert [right] == found


def test_a_session_that_was_ended_while_nobody_used_it_is_no_answer(two: Two) -> None:
    pairs, right = asked(two)
    (gone, stays) = warm("DE", "CH")
    two[0].sql("SELECT pg_terminate_backend(%s, 10000)", gone)
    assert right == leadprotect.can_edit_many(leadprotect.route, pairs, user_id=two[0].user(1))
    (new, same) = warm("DE", "CH")
    assert (gone, stays) != (new, same) == (new, stays)


def test_one_that_refuses_is_told_like_one_that_is_dead_and_its_session_is_of_use_again(two: Two) -> None:
    here, there = two
    pairs, right = asked(two)
    sessions = warm("DE", "CH")
    among = "ON FUNCTION {schema}.editable_among({lead_id_type}[])"
    there.sql(f"REVOKE EXECUTE {among} FROM {{app}}")
    with pytest.raises(leadprotect.DatabasesUnavailable, match=r"none of CH: the login lacks the role") as error:
        leadprotect.can_edit_many(leadprotect.route, pairs, user_id=here.user(1))
    assert {pair: may for pair, may in right.items() if pair[0] == "DE"} == error.value.answers
    with pytest.raises(leadprotect.NotHere):
        leadprotect.can_edit_many(lambda _: leadprotect.route("DE"), [("CH", None)], user_id=here.user(1))
    there.sql(f"GRANT EXECUTE {among} TO {{app}}")
    assert right == leadprotect.can_edit_many(leadprotect.route, pairs, user_id=here.user(1))
    assert sessions == warm("DE", "CH")
    # nothing that was declared stays
    for code in ("DE", "CH"):
        with leadprotect.route(code).connect() as conn, pytest.raises(leadprotect.ContextMissing):
            leadprotect.can_edit_many(conn, [])


def test_what_the_host_does_at_the_begin_of_a_transaction_holds_for_the_question(two: Two) -> None:
    """A pool that logs in as one and sets a role for each request has its border at that role."""
    here, there = two
    pairs, right = asked(two)
    split(here, there, DE=here.url, CH=there.url)
    for code, role in (("DE", "seller_de"), ("CH", "seller_de")):
        login = here.profile.login(role)
        event.listen(
            leadprotect.route(code), "begin", lambda conn, login=login: conn.execute(text(f'SET LOCAL ROLE "{login}"'))
        )
    for _ in ("in threads", "with sessions at hand"):
        answers = leadprotect.can_edit_many(leadprotect.route, pairs, user_id=here.user(1))
        assert {pair: may and pair[0] == "DE" for pair, may in right.items()} == answers


def test_a_dead_server_is_named_and_the_answers_of_the_others_are_kept(two: Two) -> None:
    here, there = two
    pairs, right = asked(two)
    split(here, there, CH=DEAD)
    with pytest.raises(
        leadprotect.DatabasesUnavailable, match=r"6 of 12 answers .* none of CH: no connection"
    ) as error:
        leadprotect.can_edit_many(leadprotect.route, pairs, user_id=here.user(1))
    assert {pair: may for pair, may in right.items() if pair[0] == "DE"} == error.value.answers
    assert {"CH"} == error.value.failed.keys()
    assert error.value.answers == pickle.loads(pickle.dumps(error.value)).answers  # noqa: S301 - our own
    assert isinstance(error.value, leadprotect.ProtectionUnavailable)


def test_a_mistake_of_the_caller_is_none_of_a_server_s(two: Two) -> None:
    user = two[0].user(1)
    many = leadprotect.can_edit_many
    for wrong, error in (
        (lambda: many(leadprotect.route, [("FR", 1)], user_id=user), leadprotect.InvalidRequest),
        (lambda: many(leadprotect.route, [("DE", object())], user_id=user), leadprotect.InvalidRequest),
        (lambda: many(leadprotect.route, [7], user_id=user), leadprotect.InvalidRequest),  # type: ignore[arg-type]
        (lambda: many(leadprotect.route, [("DE", None)], user_id=""), leadprotect.ContextMissing),
        (lambda: many(lambda _: leadprotect.route("DE"), [("CH", None)], user_id=user), leadprotect.NotHere),
    ):
        with pytest.raises(error):
            wrong()
    with two[0].acting("seller_de", 1) as conn, pytest.raises(leadprotect.InvalidRequest, match="leave it out"):
        leadprotect.can_edit_many(conn, [], user_id=user)  # type: ignore[call-overload]


# --- for await


def test_an_asynchronous_service_has_the_same(two: Two) -> None:
    here, _ = two
    pairs, right = asked(two)

    async def serve() -> dict[Any, bool]:
        engine = aio.route("DE")
        assert engine is aio.route("DE")
        async with engine.connect() as conn:
            with pytest.raises(leadprotect.NotHere, match=r"leadprotect.route\('CH'\)"):
                async with aio.acting_as(conn, here.user(1), "CH"):
                    pass
        found = await aio.can_edit_many(aio.route, pairs, user_id=here.user(1))
        assert found == await aio.can_edit_many(leadprotect.route, pairs, user_id=here.user(1))
        return found

    async def end() -> dict[Any, bool]:
        try:
            return await serve()
        finally:
            for code in ("DE", "CH"):
                await aio.route(code).dispose()

    assert right == asyncio.run(end())
    with pytest.raises(leadprotect.InvalidRequest, match=r"leadprotect.aio.can_edit_many"):
        leadprotect.can_edit_many(aio.route, pairs, user_id=here.user(1))


# --- the page


PAGE = ROOT / "docs/how-to/serve-several-databases.md"


def test_the_page_does_what_it_says(two: Two) -> None:
    here, there = two
    first, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lead, other = (one.lead(code, owner=one.user(1)) for one, code in zip(two, ("DE", "CH"), strict=True))
    known = {"leadprotect": leadprotect, "user_id": here.user(1), "lead_id": lead, "other_lead_id": other}
    exec(first, known | {"territory": "DE"})  # noqa: S102 - the page's own
    assert [("EDIT", "ALLOW", "owner")] == here.audit()
    exec(second, known)  # noqa: S102
    assert {("DE", lead): True, ("CH", other): True} == known["editable"]
    split(here, there, CH=DEAD)
    exec(second, known)  # noqa: S102
    assert {("DE", lead): True} == known["editable"]
