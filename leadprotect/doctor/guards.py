"""Triggers: the guards of the evidence on our tables, and what keeps ownership and evidence on the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check, replacing
from leadprotect.doctor.shipped import known, shipped, shipped_script, trigger_statement
from leadprotect.doctor.versions import applied
from leadprotect.migration.shadow import lacking_triggers, shadow, standing_on
from leadprotect.settings import Settings, ident, literal, table
from leadprotect.settings.names import CHILD_TRIGGERS, HOST_TRIGGERS, NOT_APPENDED, trigger_names, unmade
from leadprotect.settings.sources import suffix

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_ALWAYS = "A"
_FIRES = {"D": "disabled", "O": "silent under session_replication_role = replica", "R": "silent but in replication"}
_TRANSITION = ("note_writes", "transition_territory", "own_named", "transition")
_LASTING = ("forget", "forget_id", "forget_all")


@check("danger", "Rows of the evidence can be changed or removed, and owners lose their history.", needs="text")
def guard_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A trigger that guards a table of ours is gone: of the audit, each partition, the seals, the assignments."""
    text, wanted = shipped_script(s, known(applied(conn, s))), shipped(s).tables
    for one in present.tables(conn, s):
        standing = {trigger.name for trigger in present.triggers(conn, s, one.oid)}
        for name in wanted.get(one.shipped_as, {}).get("triggers", {}):
            # a later revision may add one to the table of an earlier one
            if name not in standing and (again := _again(text, s, name, one)):
                yield Fault(f"{s.schema}.{one.name}", f"trigger {name} is missing", again)


@check("danger", "A session that may set session_replication_role, or nobody at all, meets it.", needs="schema")
def guard_off(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A trigger on a table of ours that is disabled, or does not fire ALWAYS."""
    for one in present.tables(conn, s):
        name = ident(s.schema, one.name)
        yield from (_off(trigger, f"{s.schema}.{one.name}", name) for trigger in _silent(conn, s, one.oid))


@check("danger", "It guards something else than the release that was installed.", needs="text")
def guard_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A trigger on a table of ours with another definition than the shipped one, or that was not shipped."""
    text, wanted = shipped_script(s, known(applied(conn, s))), shipped(s).tables
    for one in present.tables(conn, s):
        expected = wanted.get(one.shipped_as, {}).get("triggers", {})
        for trigger in present.triggers(conn, s, one.oid):
            drop = f"DROP TRIGGER {ident(trigger.name)} ON {ident(s.schema, one.name)};"
            where = f"{s.schema}.{one.name}"
            if trigger.name not in expected:
                yield Fault(where, f"trigger {trigger.name} is not leadprotect's", drop)
            elif trigger.definition != expected[trigger.name]["definition"]:
                again = _again(text, s, trigger.name, one)
                yield Fault(where, f"trigger {trigger.name} is not as shipped", replacing(drop, again))


@check("danger", "Edits of leads leave no row, or owners and rules outlive their lead.", needs="text")
def lead_trigger_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A trigger of ours that is gone from the host's leads, activities or lead_tables, as its phase wants it."""
    revision = applied(conn, s) or ""
    text, enforced = shipped_script(s, known(revision)), present.enforced(conn, s)
    for host in s.host_tables:
        standing = present.host_triggers(conn, s, present.host_tables(conn, s).get(host))
        for name in _expected(s, revision, host, enforced=enforced and s.host_rls != "off"):
            if name not in standing:
                again = trigger_statement(text, ident(name), table(host))
                always = f" ALTER TABLE {table(host)} ENABLE ALWAYS TRIGGER {ident(name)};"
                yield Fault(host, f"trigger {name} is missing", again and again + always)
    for child, oid in present.children(conn, s):
        standing = present.child_triggers(conn, s, child, oid)
        for name in shipped(s, child).child_triggers:
            if name not in standing and not (child.append and name in NOT_APPENDED):
                yield Fault(child.table, f"trigger {s.role(name)} is missing", _on_child(text, s, child.table, name))


@check("danger", "A session that may set session_replication_role, or nobody at all, meets it.")
def lead_trigger_off(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A trigger of ours on the host's leads, activities or lead_tables that is disabled, or does not fire ALWAYS."""
    for host, oid in present.host_tables(conn, s).items():
        for trigger in present.host_triggers(conn, s, oid).values():
            if trigger.enabled != _ALWAYS:
                yield _off(trigger, host, table(host))
    for child, oid in present.children(conn, s):
        for trigger in present.child_triggers(conn, s, child, oid).values():
            if trigger.enabled != _ALWAYS:
                yield _off(trigger, child.table, table(child.table))


@check("danger", "It fires for less than it was made for.", needs="text")
def lead_trigger_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A trigger of ours on the host's leads, activities or lead_tables with another definition than the shipped one."""
    text, wanted = shipped_script(s, known(applied(conn, s))), shipped(s).host_triggers
    for host, oid in present.host_tables(conn, s).items():
        for name, trigger in present.host_triggers(conn, s, oid).items():
            if trigger.definition != wanted[trigger_names(s)[name]]["definition"]:
                again = trigger_statement(text, ident(trigger.name), table(host))
                drop = f"DROP TRIGGER {ident(trigger.name)} ON {table(host)};"
                always = f"ALTER TABLE {table(host)} ENABLE ALWAYS TRIGGER {ident(trigger.name)};"
                mends = replacing(drop, again and f"{again} {always}")
                yield Fault(host, f"trigger {trigger.name} is not as shipped", mends)
    for child, oid in present.children(conn, s):
        expected = shipped(s, child).child_triggers
        for name, trigger in present.child_triggers(conn, s, child, oid).items():
            if trigger.definition != expected[name]["definition"]:
                drop = f"DROP TRIGGER {ident(trigger.name)} ON {table(child.table)};"
                mends = replacing(drop, _on_child(text, s, child.table, name))
                yield Fault(child.table, f"trigger {trigger.name} is not as shipped", mends)


@check("warning", "What is done there is not noted, or is decided twice.", needs="schema")
def shadow_left_over(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A shadow that still runs after contract, or that was started or stopped by half."""
    run, standing = shadow(conn, settings=s), standing_on(conn, s)
    runs = run is not None and run.ended_at is None
    if present.enforced(conn, s):
        for host in standing or ([s.schema] if runs else []):
            yield Fault(host, "a shadow runs after contract", "leadprotect shadow stop")
    elif runs:
        for lost in lacking_triggers(conn, s):
            yield Fault(lost, "a trigger of the shadow that runs is missing or off", "leadprotect shadow start")
    else:
        for host in standing:
            yield Fault(host, "a shadow was started or stopped by half", "leadprotect shadow stop")


def _on_child(text: str, s: Settings, host: str, name: str) -> str | None:
    trigger = ident(s.role(CHILD_TRIGGERS[name]))
    again = trigger_statement(text, trigger, table(host))
    return again and f"{again} ALTER TABLE {table(host)} ENABLE ALWAYS TRIGGER {trigger};"


def _expected(s: Settings, revision: str, host: str, *, enforced: bool) -> list[str]:
    """Names of our triggers on a table of the host at a revision."""
    at = revision[:7]
    # whoever may not read the version table knows lp_0017 as the least, and not whether lp_0018 followed
    of_activities = [
        s.role(name)
        for one in s.activities
        for name in ("note_writes", f"transition{suffix(one)}")
        if one.stands_on == host and "lp_0011" <= at < "lp_0017"
    ]
    if host != s.leads_table:
        return list(dict.fromkeys(of_activities))
    passing = [name for name in _TRANSITION[:3] if "lp_0010" <= at < "lp_0017" and name not in unmade(s)]
    lasting = [name for name in _LASTING if at >= "lp_0010"]
    # all the others that ship are contract's
    enforcing = [name for name in shipped(s).host_triggers if name not in (*_TRANSITION, *_LASTING, *unmade(s))]
    return [s.role(HOST_TRIGGERS[name]) for name in passing + lasting + (enforcing if enforced else [])]


def _silent(conn: psycopg.Connection[Any], s: Settings, oid: int) -> Iterator[present.Trigger]:
    return (trigger for trigger in present.triggers(conn, s, oid) if trigger.ours and trigger.enabled != _ALWAYS)


def _off(trigger: present.Trigger, where: str, name: str) -> Fault:
    mends = f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER {ident(trigger.name)};"
    return Fault(where, f"trigger {trigger.name} is {_FIRES[trigger.enabled]}", mends)


def _again(text: str, s: Settings, trigger: str, one: present.Table) -> str | None:
    name = ident(s.schema, one.name)
    if one.shipped_as.startswith("lead_access_audit"):
        return f"SELECT {ident(s.schema)}.secure_audit_table({literal(name)});"
    again = trigger_statement(text, trigger, f"{ident(s.schema)}.{one.name}")
    return again and f"{again} ALTER TABLE {name} ENABLE ALWAYS TRIGGER {ident(trigger)};"
