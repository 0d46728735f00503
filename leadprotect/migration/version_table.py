"""Alembic's version table of our chain: made as ours before Alembic touches it, and gone with the last revision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.settings import Settings, ident, making_roles, render

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("leadprotect")

# In a schema of the host our owner creates it with rights that are lent for this moment. What default
# privileges would give others is taken away before anybody sees the table.
_TABLE = """
    DO $do$
    DECLARE
      made boolean := pg_catalog.to_regnamespace({schema_name}) IS NULL;
      lent text[];
      other text;
    BEGIN
      IF made THEN
        CREATE SCHEMA {schema} AUTHORIZATION {owner};
      ELSIF NOT EXISTS (
        SELECT FROM pg_catalog.pg_namespace AS n
        WHERE n.oid = {schema_name}::regnamespace AND pg_catalog.pg_get_userbyid(n.nspowner) = {owner_name})
      THEN
        RAISE EXCEPTION 'schema % does not belong to %', {schema_name}, {owner_name};
      END IF;
      lent := ARRAY(
        SELECT verb FROM pg_catalog.unnest(ARRAY['USAGE', 'CREATE']) AS verb
        WHERE NOT pg_catalog.has_schema_privilege({owner_name}, {versions_schema}, verb));
      FOREACH other IN ARRAY lent LOOP
        EXECUTE pg_catalog.format('GRANT %s ON SCHEMA %I TO {owner}', other, {versions_schema});
      END LOOP;
      SET LOCAL ROLE {owner};
      CREATE TABLE {versions} (
        version_num varchar(32) NOT NULL,
        CONSTRAINT {versions_key} PRIMARY KEY (version_num)
      );
      COMMENT ON TABLE {versions} IS 'What Alembic keeps: the revisions of leadprotect that are applied';
      COMMENT ON COLUMN {versions}.version_num IS 'the revision';
      FOR other IN
        SELECT pg_catalog.format('%s FROM %s', given.target,
                 CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END)
        FROM (
          SELECT 'TABLE {versions}', c.relowner, c.relacl FROM pg_catalog.pg_class AS c
          WHERE c.oid = '{versions}'::regclass
          UNION ALL
          SELECT 'SCHEMA {schema}', n.nspowner, n.nspacl FROM pg_catalog.pg_namespace AS n
          WHERE made AND n.oid = {schema_name}::regnamespace) AS given (target, owner, list)
        CROSS JOIN LATERAL pg_catalog.aclexplode(given.list) AS acl
        LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = acl.grantee
        WHERE acl.grantee <> given.owner
        GROUP BY 1
      LOOP
        EXECUTE 'REVOKE ALL ON ' || other || ' CASCADE';
      END LOOP;
      RESET ROLE;
      FOREACH other IN ARRAY lent LOOP
        EXECUTE pg_catalog.format('REVOKE %s ON SCHEMA %I FROM {owner}', other, {versions_schema});
      END LOOP;
    END
    $do$
    """
_DROP = """
    DO $do$
    DECLARE
      versions oid := (
        SELECT c.oid FROM pg_catalog.pg_class AS c
        WHERE c.oid = pg_catalog.to_regclass('{versions}')
          AND pg_catalog.pg_get_userbyid(c.relowner) = {owner_name});
    BEGIN
      -- none, or the table of a host's own Alembic
      IF versions IS NULL THEN
        RETURN;
      END IF;
      IF EXISTS (SELECT FROM {versions}) OR EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n'
          AND d.refobjid = pg_catalog.to_regnamespace({schema_name})
          AND NOT (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = versions))
      THEN
        RETURN;
      END IF;
      DROP TABLE {versions} RESTRICT;
      IF pg_catalog.to_regnamespace({schema_name}) IS NOT NULL THEN
        DROP SCHEMA {schema} RESTRICT;
      END IF;
    END
    $do$
    """


def making(s: Settings) -> Sequence[str]:
    """The statements that make our owner, our schema where there is none, and the version table as its owner."""
    key = ident(s.version_table + "_pkc")  # as Alembic calls it
    return (
        render(making_roles("SELECT {owner_name}", "{owner_name}"), s),
        render(_TABLE.replace("{versions_key}", key), s),
    )


def dropping(s: Settings) -> str:
    """The statement that drops an empty version table with our schema, where nothing else is in that."""
    return render(_DROP, s)


def make(conn: psycopg.Connection[Any], s: Settings) -> None:
    """Make the version table, in one transaction of `conn`."""
    with conn.transaction():
        for statement in making(s):
            conn.execute(statement.encode())


def drop_empty(conn: psycopg.Connection[Any], s: Settings) -> None:
    """Drop version table and schema when nothing is applied and nothing else is in it; says what is in the way."""
    try:
        with conn.transaction():
            conn.execute(dropping(s).encode())
    except (
        psycopg.errors.DependentObjectsStillExist,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.LockNotAvailable,
    ) as error:
        reason = ". ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
        log.warning("the empty version table of schema %s stays: %s", s.schema, reason)
