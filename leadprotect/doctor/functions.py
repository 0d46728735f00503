"""Our functions: their text, rights and owner are those of the release, and nobody else's stand among them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from leadprotect import phases
from leadprotect.database.privileges import Object, revoking
from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check
from leadprotect.doctor.likeness import neutral_name, real_role
from leadprotect.doctor.shipped import body_of, following, known, shipped, shipped_script, sources
from leadprotect.doctor.versions import applied
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg


@check("danger", "It decides, records or guards otherwise than the release that was installed.", needs="text")
def function_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A function whose text is not what this release writes with the settings of today."""
    made = sources(shipped_script(s, known(applied(conn, s))), s)
    wanted = shipped(s).functions
    for one in present.functions(conn, s):
        texts = made.get(one.name, [])
        if one.body is not None:
            same = any(one.body == variant["body"] for variant in wanted.get(one.key, ()))
        else:
            same = _timeless(one.source) in [_timeless(body_of(text)) for text in texts]
        if texts and one.key in wanted and not same:
            yield Fault(one.signature, "its text is not the shipped one", _fitting(texts, one))


@check("danger", "What calls it fails, or is decided by nobody.", needs="text")
def function_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A function of the release that is gone."""
    text = shipped_script(s, known(applied(conn, s)))
    standing = {one.name for one in present.functions(conn, s)}
    owners = {key.split("(")[0]: found[0]["owner"] for key, found in shipped(s).functions.items()}
    for name, texts in sources(text, s).items():
        if name not in standing:
            owner = s.role("reader" if owners.get(name) == neutral_name(s.role("reader"), s) else "owner")
            whose = f"ALTER FUNCTION {ident(s.schema)}.{name} OWNER TO {ident(owner)};"
            yield Fault(f"{s.schema}.{name}", "it is missing", "\n".join([*texts, whose, *following(text, s, name)]))


@check("danger", "Whoever has the rights of its owner is run by it.", needs="text")
def function_stray(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A function in our schema that no release of leadprotect made."""
    wanted = shipped(s).functions
    for one in present.functions(conn, s):
        if one.key not in wanted and one.key not in present.MADE_ANEW:
            yield Fault(one.signature, f"function of {one.owner} that leadprotect did not make", _drop(one))


@check(
    "danger",
    "Its body runs with other names, other rights or other row security than it was written for.",
    needs="text",
)
def function_unpinned(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A function whose pinned settings, SECURITY DEFINER, volatility, STRICT or LEAKPROOF are not as shipped."""
    made = sources(shipped_script(s, known(applied(conn, s))), s)
    for one, wanted in _pairs(conn, s):
        flags = {"volatility": "volatile", "STRICT": "strict", "LEAKPROOF": "leakproof"}
        changed = [flag for flag, key in flags.items() if getattr(one, key) != wanted[key]]
        if changed or (one.definer, sorted(one.config)) != (wanted["definer"], sorted(wanted["config"])):
            differs = [
                *(["SECURITY DEFINER"] if one.definer != wanted["definer"] else []),
                *sorted({*one.config} ^ {*wanted["config"]}),
                *changed,
            ]
            mends = _fitting(made.get(one.name, []), one)  # which resets all settings, too
            yield Fault(one.signature, f"not as shipped: {', '.join(differs)}", mends)


@check("danger", "It runs with the rights of whoever owns it, and he may change it.", needs="text")
def function_owner(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A function of another owner than the shipped one."""
    for one, wanted in _pairs(conn, s):
        office = "reader" if wanted["owner"] == neutral_name(s.role("reader"), s) else "owner"
        if one.owner != s.role(office):
            mends = f"ALTER FUNCTION {one.signature} OWNER TO {ident(s.role(office))};"
            yield Fault(one.signature, f"it belongs to {one.owner}, not to {s.role(office)}", mends)


@check("danger", "Whoever may call it does what its owner may do.", needs="text")
def function_grants(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A function that others may call than shipped, PUBLIC above all; a warning where somebody may not any more."""
    complete = not phases.pending(applied(conn, s))
    for one, wanted in _pairs(conn, s):
        shipped_grants = {(role, privilege) for role, privilege in wanted["grants"]}
        for role, privilege in sorted(one.grants - shipped_grants):
            on = Object("function", one.oid, f"FUNCTION {one.signature}")
            kept = (role, "EXECUTE") in shipped_grants
            mends = revoking(conn, on, real_role(role, s), "EXECUTE", option=kept)
            yield Fault(one.signature, f"{role} has {privilege}", mends)
        held = {role for role, _ in one.grants}
        for role in sorted({role for role, _ in shipped_grants} - held) if complete else ():
            whom = role if role == "PUBLIC" else ident(real_role(role, s))
            mends = f"GRANT EXECUTE ON FUNCTION {one.signature} TO {whom};"
            yield Fault(one.signature, f"{role} may not call it", mends, "warning")


def _timeless(text: str | None) -> str | None:
    """The observation window may be shortened later: what is written of it into a text is no fault."""
    return text and re.sub(r"interval '[0-9.]+ seconds'", "interval", text)


def _pairs(conn: psycopg.Connection[Any], s: Settings) -> Iterator[tuple[present.Function, dict[str, Any]]]:
    """Each function with what was shipped; where two bear one name, they differ in their text alone."""
    wanted = shipped(s).functions
    for one in present.functions(conn, s):
        if one.key in wanted:
            yield one, wanted[one.key][0]


def _fitting(texts: list[str], one: present.Function) -> str | None:
    """Of statements that make functions of one name, the one with these arguments."""
    arguments = one.signature.partition("(")[2].rstrip(")").split(", ")
    return next(
        (text for text in texts if all(part in text.replace("pg_catalog.", "") for part in arguments)), None
    ) or (texts[0] if texts else None)


def _drop(one: present.Function) -> str:
    return f"DROP ROUTINE {one.signature};"  # or a procedure, or an aggregate
