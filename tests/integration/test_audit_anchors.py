"""Anchors: what nobody of the audited database can change tells that the end of a chain was cut off, or made anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from leadprotect.audit import anchors
from leadprotect.audit.findings import KeptSeal
from leadprotect.errors import ConnectionUnusable, InvalidRequest, PreflightError, ProtectionUnavailable, SettingsError
from tests.conftest import use
from tests.support import servers
from tests.support.auditing import record, said, seal, tamper, verify
from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18", "other_names")
SEALS = "{schema}.lead_access_audit_seals"
CUT = f"DELETE FROM {SEALS} WHERE run = 2"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The URL of a database on another server."""
    with servers.embedded() as server:
        yield server.create_database("anchors")


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where anchors go: a file, or an empty database of another server."""
    if request.param == "file":
        yield str(tmp_path / "anchors.jsonl")
        return
    url = request.getfixturevalue("elsewhere")
    yield url
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS public.leadprotect_anchors")
        conn.execute("DROP FUNCTION IF EXISTS public.leadprotect_anchors_append_only")


BOTH = pytest.mark.parametrize("place", ["file", "server"], indirect=True)


def keep(database: Database, place: str, login: str = "auditor_both") -> anchors.Anchor:
    with database.connect(login) as conn:
        made = anchors.anchor(conn)
    if place.startswith("postgresql://"):
        assert anchors.send(place, made)
    else:
        anchors.append(Path(place), made)
    return made


def kept(database: Database, place: str, login: str = "auditor_both") -> set[KeptSeal]:
    with database.connect(login) as conn:
        return anchors.kept(conn, place)


def sealed_twice(database: Database) -> None:
    record(database)
    seal(database)
    record(database)
    seal(database)


@BOTH
def test_an_anchor_tells_how_far_each_chain_has_come(database: Database, place: str) -> None:
    sealed_twice(database)
    made = keep(database, place)
    heads = {chain.territory: (chain.seals, chain.head) for chain in verify(database).chains}
    assert heads == {chain.territory: (chain.seals, chain.hash) for chain in made.chains}
    assert {KeptSeal(code, number, own or "") for code, (number, own) in heads.items()} == kept(database, place)
    assert verify(database, known=kept(database, place)).intact
    record(database)
    seal(database)
    assert verify(database, known=kept(database, place)).intact


@BOTH
def test_a_chain_that_is_shorter_than_its_anchor_was_tampered_with(database: Database, place: str) -> None:
    sealed_twice(database)
    keep(database, place)
    tamper(database, CUT)
    tamper(database, "DELETE FROM {schema}.lead_access_audit WHERE id = 2")
    assert verify(database).intact  # the control: nothing inside the database tells
    found = verify(database, known=kept(database, place))
    assert "tampered" == found.verdict
    assert "DE 2: this seal was kept elsewhere, and is gone" in said(found)


@BOTH
def test_chains_that_were_made_anew_are_not_the_anchored_ones(database: Database, place: str) -> None:
    """Even the first seal is another one: the server and the table tell that it is the same audit."""
    sealed_twice(database)
    keep(database, place)
    tamper(database, f"TRUNCATE {SEALS}")
    tamper(database, "UPDATE {schema}.lead_access_audit SET reason = 'owner' WHERE id = 1")
    for _ in range(2):
        seal(database)
    assert verify(database).intact
    found = said(verify(database, known=kept(database, place)))
    assert [f"{code} 2: this seal is not the one that was kept elsewhere" for code in (None, "CH", "DE")] == found


def test_a_territory_that_was_taken_off_the_list_is_still_looked_for(database: Database, tmp_path: Path) -> None:
    sealed_twice(database)
    file = str(tmp_path / "anchors.jsonl")
    keep(database, file)
    # past the foreign keys, as whoever owns the server can
    database.sql_script("SET session_replication_role = replica; DELETE FROM {schema}.territories WHERE code = 'CH'")
    assert [None, "CH", "DE"] == [chain.territory for chain in verify(database).chains]
    assert verify(database, known=kept(database, file)).intact
    tamper(database, f"DELETE FROM {SEALS} WHERE territory = 'CH'")
    assert verify(database).intact
    assert "CH 2: this seal was kept elsewhere, and is gone" in said(verify(database, known=kept(database, file)))


def test_an_auditor_anchors_what_he_may_read_and_the_anchor_says_so(database: Database, tmp_path: Path) -> None:
    sealed_twice(database)
    file = str(tmp_path / "anchors.jsonl")
    made = keep(database, file, "auditor_de")
    assert ([None, "DE"], ("CH",)) == ([chain.territory for chain in made.chains], made.left_out)
    assert {None, "DE"} == {one.territory for one in kept(database, file)}
    keep(database, file)
    found = verify(database, "auditor_de", known=kept(database, file))
    assert ("not judged", ("CH",)) == (found.verdict, found.left_out)
    with database.connect("auditor") as conn, pytest.raises(ProtectionUnavailable, match="holds the role of no terri"):
        anchors.anchor(conn)


@pytest.mark.parametrize("login", ["seller_de", "manager_de", "operator", "outsider"])
def test_only_an_auditor_anchors(database: Database, login: str) -> None:
    seal(database)
    with database.connect(login) as conn, pytest.raises(ProtectionUnavailable):
        anchors.anchor(conn)


def test_anchors_are_only_ever_added(database: Database, elsewhere: str, tmp_path: Path) -> None:
    seal(database)
    file = tmp_path / "anchors.jsonl"
    for _ in range(2):
        keep(database, str(file))
        keep(database, elsewhere)
    assert 2 == len(file.read_text(encoding="utf-8").splitlines())
    with psycopg.connect(elsewhere, autocommit=True) as conn:
        for change in ("UPDATE {} SET anchor = ''", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="leadprotect_anchors only grows"):
                conn.execute(change.format(anchors.TABLE))
        conn.execute("ALTER TABLE public.leadprotect_anchors DISABLE TRIGGER append_only")
        conn.execute("DELETE FROM public.leadprotect_anchors")  # the control: the guard is what refuses
        conn.execute("DROP TABLE public.leadprotect_anchors; DROP FUNCTION public.leadprotect_anchors_append_only")


def test_a_login_that_may_make_no_table_is_told_what_a_dba_runs(database: Database, elsewhere: str) -> None:
    seal(database)
    with psycopg.connect(elsewhere, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS keeper")
        conn.execute("CREATE ROLE keeper LOGIN")
        url = elsewhere.replace("postgres@", "keeper@")
        with pytest.raises(
            PreflightError, match=r"the login may not make public\.leadprotect_anchors there"
        ) as refused:
            keep(database, url)
        conn.execute("\n".join(refused.value.statements))
        keep(database, url)
        assert 3 == len(kept(database, url))
        with psycopg.connect(url) as keeper, pytest.raises(psycopg.errors.InsufficientPrivilege):
            keeper.execute("DELETE FROM public.leadprotect_anchors")
        conn.execute("DROP TABLE public.leadprotect_anchors; DROP FUNCTION public.leadprotect_anchors_append_only")


def test_anchors_on_the_server_of_the_audit_are_told_apart(database: Database) -> None:
    seal(database)
    with database.connect("auditor_both") as conn:
        made = anchors.anchor(conn)
    assert not anchors.send(database.url, made)


def test_nothing_sealed_is_nothing_to_keep(database: Database) -> None:
    record(database)
    with database.connect("auditor_both") as conn, pytest.raises(InvalidRequest, match="run leadprotect audit seal"):
        anchors.anchor(conn)


# --- what is no anchor of this audit


def test_an_anchor_of_another_database_is_refused(
    database: Database, make_database: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "anchors.jsonl")
    other = make_database("head")
    seal(other)
    keep(other, file)
    use(database, monkeypatch)
    seal(database)
    with pytest.raises(InvalidRequest, match=rf"was made of another database .{other.name}., not of this one"):
        kept(database, file)
    keep(database, file)  # among those of others, this one's count
    assert 3 == len(kept(database, file))
    assert verify(database, known=kept(database, file)).intact


DAMAGED: dict[str, Callable[[str], str]] = {
    "a changed hash": lambda line: line.replace('"seals": 1', '"seals": 2'),
    "half a line": lambda line: line[: len(line) // 2],
    "no digest": lambda line: json.dumps({k: v for k, v in json.loads(line).items() if k != "digest"}),
    "another format": lambda line: line.replace("leadprotect-anchor-1", "leadprotect-anchor-0"),
    "no object": lambda _: "[1]",
    "an empty line": lambda _: "",
}


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_anchor_is_named_with_its_line(database: Database, tmp_path: Path, damage: str) -> None:
    seal(database)
    file = tmp_path / "anchors.jsonl"
    keep(database, str(file))
    assert kept(database, str(file))
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + DAMAGED[damage](whole.strip()) + "\n", encoding="utf-8")
    for ask in (kept, keep):
        with pytest.raises(InvalidRequest, match=r"anchors\.jsonl, line 2: this is no anchor, or it was damaged: take"):
            ask(database, str(file))


@pytest.mark.profiles("pg18")
def test_a_place_that_holds_no_anchor_is_told(database: Database, elsewhere: str, tmp_path: Path) -> None:
    seal(database)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(InvalidRequest, match="empty holds no anchor: leadprotect audit anchor writes one"):
        kept(database, str(empty))
    with pytest.raises(InvalidRequest, match="no-such-file: No such file or directory"):
        kept(database, str(tmp_path / "no-such-file"))
    with pytest.raises(InvalidRequest, match=r"leadprotect_anchors in anchors on .* holds no anchor"):
        kept(database, elsewhere)
    with psycopg.connect(elsewhere, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.leadprotect_anchors (id int)")
        with pytest.raises(InvalidRequest, match=r"can't be used .*: rename it, and leadprotect makes its own"):
            keep(database, elsewhere)
        conn.execute("DROP TABLE public.leadprotect_anchors")


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("host", ["/nowhere", "127.0.0.1:1"])
def test_a_server_that_does_not_answer_is_told_without_the_password(database: Database, host: str) -> None:
    seal(database)
    at = f"@{host}/x" if ":" in host else f"@/x?host={host}"
    for ask in (kept, keep):
        with pytest.raises(ConnectionUnusable, match=r"no connection to the anchors: .* or use a file") as refused:
            ask(database, f"postgresql://keeper:s3cret{at}")
        assert "s3cret" not in str(refused.value)
    with pytest.raises(SettingsError, match="the URL of the anchors: its password holds a character") as unread:
        kept(database, "postgresql://keeper:s3cr@et@127.0.0.1/x")
    assert "s3cr" not in str(unread.value)
