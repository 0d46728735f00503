"""Roles, schema, and the territories with their border.

Why: everything that later revisions, services and auditors stand on. Nothing of the host changes
but two grants: leadprotect_reader may read the id and territory of leads, and of activities the
columns from which owners are derived. It owns the functions that read the host's tables and can
write nothing of ours, so code of the host that such a read runs has nothing to gain; leadprotect_owner
owns everything else and can't read the host's tables.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes (GRANT, since PostgreSQL 18).

Undone by: moving the tables to the quarantine schema, still row-secured, without grants; upgrade
takes them back with every row. Roles are cluster-wide and stay.
"""

from alembic import op
from alembic.util import CommandError
from sqlalchemy import DDL

from leadprotect.settings import activity_sources, ident, literal, making_roles, sql

revision = "lp_0001_expand_territories"
down_revision = None
branch_labels = ("leadprotect",)
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    require_transactions()
    refuse_partitions()
    create_roles()
    create_schema()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    describe_schema()
    create_border()
    create_territories()
    create_territory_list()
    create_reading_check()
    create_undo()
    op.execute("RESET ROLE")
    show_version()


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    enter_quarantine()
    op.execute("RESET ROLE")
    drop_schema()


def require_transactions() -> None:
    # Indexes are built outside of a transaction: one transaction for all would be committed halfway.
    if not op.get_context().opts.get("transaction_per_migration"):
        raise CommandError(
            "leadprotect's revisions need a transaction each, and this env.py makes one for all; nothing was touched. "
            "Write transaction_per_migration=True into the calls of context.configure() in your env.py"
        )


def refuse_partitions() -> None:
    # A script is written without the database, and can't name the partitions that an index needs one by one.
    if op.get_context().as_sql:
        op.execute(sql("{refuse_partitions}"))


def create_roles() -> None:
    # The owner alone may stand already: the version table is his.
    wanted = """SELECT unnest(ARRAY[{offices}])
            UNION ALL
            SELECT {role_prefix} || suffix FROM unnest(ARRAY[{territory_suffixes}]) AS suffix"""
    op.execute(sql(making_roles(wanted, "{owner_name}, {reader_name}")))


def create_schema() -> None:
    # The version table, or a DBA, may have needed it beforehand; it then belongs to leadprotect_owner already.
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {owner}"))
    # What our functions read of the host: these columns and no others.
    op.execute(sql("GRANT SELECT ({lead_id}, {territory_columns}), SELECT ({named_columns}) ON {leads} TO {reader}"))
    for source in activity_sources():
        op.execute(sql(source.fill("GRANT SELECT ({source_columns}) ON {source_read} TO {reader}")))
        # a condition, or an expression for the lead, names others
        op.execute(
            sql(
                source.fill("""
                DO $do$
                DECLARE
                  named name;
                BEGIN
                  FOR named IN
                    SELECT a.attname FROM pg_catalog.pg_attribute AS a
                    WHERE a.attrelid = {source_read_name}::regclass AND a.attnum > 0 AND a.attname = ANY ({source_words})
                  LOOP
                    EXECUTE pg_catalog.format('GRANT SELECT (%I) ON {source_read} TO {reader}', named);
                  END LOOP;
                END
                $do$
                """)
            )
        )
    op.execute(
        sql("""
        DO $do$
        DECLARE
          host text;
          ours text;
        BEGIN
          FOREACH host IN ARRAY ARRAY[{host_schemas}] LOOP
            FOREACH ours IN ARRAY ARRAY[{owner_name}, {reader_name}] LOOP
              IF NOT pg_catalog.has_schema_privilege(ours, host, 'USAGE') THEN
                EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', host, ours);
              END IF;
            END LOOP;
          END LOOP;
        END
        $do$
        """)
    )


def describe_schema() -> None:
    op.execute(
        sql("""
        COMMENT ON SCHEMA {schema} IS 'leadprotect: one owner per lead and territory, audited';
        REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;
        GRANT USAGE ON SCHEMA {schema} TO {reader}, {app}, {auditor}, {operator}, {manager}
        """)
    )


def create_border() -> None:
    # Policies rest on these, so they go to the quarantine and back with the tables.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regprocedure('{quarantine}.admitted_territory()') IS NOT NULL THEN
            ALTER FUNCTION {quarantine}.acting_role() SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.all_territories() SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.territory_roles() SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.territory_role(text) SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.is_member(text) SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.claimed(text, text) SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.admitted_territory() SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.own_border() SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.inside() SET SCHEMA {schema};
          END IF;
        END
        $do$
        """)
    )
    # A pool that logs in once and sets a role for each request has its border at that role. A definer
    # function changes neither: the server refuses SET ROLE inside one.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.acting_role()
        RETURNS name
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN coalesce(nullif(pg_catalog.current_setting('role'), 'none')::name, session_user);
        COMMENT ON FUNCTION {schema}.acting_role() IS
        'Who acts: the role that SET ROLE chose, or the login where none is chosen';
        REVOKE ALL ON FUNCTION {schema}.acting_role() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.acting_role() TO {reader}, {app}, {auditor}, {manager}, {operator}
        """)
    )
    # Constants, so that the border costs no look at a table: publish_territories() makes them anew below, and when a
    # territory is added. PUBLIC may execute them like the border itself, and codes are no secret.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.all_territories()
        RETURNS text[]
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN '{}'::text[];
        COMMENT ON FUNCTION {schema}.all_territories() IS
        'The codes of all territories, as a constant for the border: publish_territories() makes it';
        REVOKE ALL ON FUNCTION {schema}.all_territories() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.all_territories() TO PUBLIC;
        CREATE OR REPLACE FUNCTION {schema}.territory_roles()
        RETURNS jsonb
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN '{}'::jsonb;
        COMMENT ON FUNCTION {schema}.territory_roles() IS
        'The role of each territory, quoted, as a constant for the border: publish_territories() makes it';
        REVOKE ALL ON FUNCTION {schema}.territory_roles() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.territory_roles() TO PUBLIC;
        CREATE OR REPLACE FUNCTION {schema}.territory_role(code text)
        RETURNS text
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN {role_prefix} || pg_catalog.lower(code);
        COMMENT ON FUNCTION {schema}.territory_role(text) IS
        'The name of the role that a territory would have, as a constant: publish_territories() makes it';
        REVOKE ALL ON FUNCTION {schema}.territory_role(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.territory_role(text) TO PUBLIC
        """)
    )
    # USAGE: the admin option alone, and a membership that is not inherited, make no member. A name that is no
    # territory's has no members either, though a role may be called so: leadprotect_app is no territory app.
    # Each function in an expression is made ready, and its right asked for, in every check: the name of a
    # role, which stands still, is looked up and not put together.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.is_member(territory text)
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN coalesce(
          pg_catalog.pg_has_role(
            {schema}.acting_role(),
            pg_catalog.to_regrole({schema}.territory_roles() ->> territory)::oid,
            'USAGE'),
          false);
        COMMENT ON FUNCTION {schema}.is_member(text) IS
        'Whether the acting role holds the role of this territory';
        REVOKE ALL ON FUNCTION {schema}.is_member(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.is_member(text) TO {reader}, {app}, {auditor}, {manager}
        """)
    )
    # A pool keeps a token's claims in one setting. What is no JSON is nobody's claim: before PostgreSQL 16 nothing says so
    # but a cast that fails, and to catch that would need a subtransaction, which a parallel query can't have. So
    # its texts, numbers and brackets are replaced from the innermost on, until one value is left or none.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.claimed(said text, field text)
        RETURNS text
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          rest text := said;
          inner_most text;
          claim jsonb;
        BEGIN
          IF said IS NULL OR left(ltrim(said, E' \\t\\n\\r'), 1) <> '{' THEN
            RETURN NULL;
          ELSIF current_setting('server_version_num')::integer >= 160000 THEN
            IF NOT pg_input_is_valid(said, 'jsonb') THEN
              RETURN NULL;
            END IF;
          ELSE
            rest := regexp_replace(rest, '"(?:[^"\\\\\\u0001-\\u001f]|\\\\(?:["\\\\/bfnrt]|u(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}'
              || '|u[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2}))*"', '"', 'g');
            rest := regexp_replace(
              rest, '-?(?:0|[1-9][0-9]{0,255})(?:[.][0-9]{1,255})?(?:[eE][+-]?[0-9]{1,3})?|true|false|null', '0', 'g');
            rest := translate(rest, E' \\t\\n\\r', '');
            LOOP
              inner_most := regexp_replace(rest, '[{](?:":[0"](?:,":[0"])*)?[}]|[[](?:[0"](?:,[0"])*)?[]]', '0', 'g');
              EXIT WHEN inner_most = rest;
              rest := inner_most;
            END LOOP;
            IF rest <> '0' THEN
              RETURN NULL;
            END IF;
          END IF;
          IF field IS NULL THEN
            RETURN said;
          END IF;
          claim := said::jsonb -> field;
          RETURN CASE WHEN jsonb_typeof(claim) IN ('string', 'number') THEN claim #>> '{}' END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.claimed(text, text) IS
        'A text or number of a JSON object in a setting, the whole text without a field; NULL for whatever is none, never an error';
        REVOKE ALL ON FUNCTION {schema}.claimed(text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.claimed(text, text) TO PUBLIC
        """)
    )
    # PUBLIC may execute it, because restrictive policies TO PUBLIC call it for whoever asks; it tells
    # nobody more than his own setting. Policies ask it in a sub-select: once for a query. It has
    # nobody's rights and reads no table, so that the planner puts its body there: a read by key costs a
    # quarter of what it does with a function that is planned anew in each query before PostgreSQL 18.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.admitted_territory()
        RETURNS text
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN CASE
          WHEN pg_catalog.pg_has_role(
            coalesce(nullif(pg_catalog.current_setting('role'), 'none')::name, session_user),
            pg_catalog.to_regrole({schema}.territory_roles() ->> {declared_territory})::oid,
            'USAGE')
          THEN {declared_territory}
        END;
        COMMENT ON FUNCTION {schema}.admitted_territory() IS
        'The territory in context if the acting role holds its role, else NULL: the border that every policy asks';
        REVOKE ALL ON FUNCTION {schema}.admitted_territory() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.admitted_territory() TO PUBLIC
        """)
    )
    # IMMUTABLE is what lets the planner answer it. It holds for as long as the plan does: a plan under row
    # security is kept for one role, and made anew for another (plancache.c, dependsOnRLS). So the condition
    # is gone from what our functions run, and the border beside it, which would be made ready for every statement
    # and asked for none: a fifth of a check (docs/benchmarks/index.md).
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.inside()
        RETURNS boolean
        LANGUAGE plpgsql
        IMMUTABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN current_user IN ({owner_name}, {reader_name});
        END
        $body$;
        COMMENT ON FUNCTION {schema}.inside() IS
        'Whether one of our functions asks, for policies: whoever is a member of its owner is not it';
        REVOKE ALL ON FUNCTION {schema}.inside() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.inside() TO PUBLIC
        """)
    )
    # For whoever is bound: as one call, the parts of admitted_territory() are made ready where a row is asked about.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.own_border()
        RETURNS text
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN {schema}.admitted_territory();
        END
        $body$;
        COMMENT ON FUNCTION {schema}.own_border() IS
        'admitted_territory() for the policies of our own tables, which our functions pass before it is asked';
        REVOKE ALL ON FUNCTION {schema}.own_border() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.own_border() TO PUBLIC
        """)
    )


def create_territories() -> None:
    # Territory is text and never an enum: comparison of enums is not leakproof, so row security
    # could not use an index on it.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.territories') IS NOT NULL THEN
            ALTER TABLE {quarantine}.territories SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.territories (
              code text PRIMARY KEY,
              name text NOT NULL,
              currency text CHECK (currency ~ '^[A-Z]{3}$'),
              legal_framework text,
              suffix text CHECK (suffix ~ '^[a-z0-9][a-z0-9_]{0,15}$')
            );
            CREATE UNIQUE INDEX ix_territories_role ON {schema}.territories (coalesce(suffix, lower(code)));
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.territories IS 'The legal territories: reference data, no secret of another one';
        COMMENT ON COLUMN {schema}.territories.code IS 'what leads carry in their territory column';
        COMMENT ON COLUMN {schema}.territories.suffix IS 'what the name of its role ends with; NULL: the code in small letters';
        COMMENT ON COLUMN {schema}.territories.name IS 'for people';
        COMMENT ON COLUMN {schema}.territories.currency IS 'ISO 4217';
        COMMENT ON COLUMN {schema}.territories.legal_framework IS 'the law that contracts in this territory are made under';
        ALTER TABLE {schema}.territories ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.territories FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.territories;
        CREATE POLICY lp_inside ON {schema}.territories TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_reference ON {schema}.territories;
        CREATE POLICY lp_reference ON {schema}.territories FOR SELECT
        TO {app}, {auditor}, {operator}, {manager} USING (true);
        GRANT SELECT ON {schema}.territories TO {reader}, {app}, {auditor}, {operator}, {manager}
        """)
    )
    op.execute(
        sql("""
        INSERT INTO {schema}.territories (code, name, currency, legal_framework, suffix)
        SELECT wanted.code, coalesce(known.name, wanted.code), known.currency, known.legal_framework,
               nullif(wanted.suffix, lower(wanted.code))
        FROM unnest(ARRAY[{territories}], ARRAY[{territory_suffixes}]) AS wanted (code, suffix)
        LEFT JOIN (VALUES ('DE', 'Deutschland', 'EUR', 'BGB'), ('CH', 'Schweiz', 'CHF', 'OR'))
          AS known (code, name, currency, legal_framework) ON known.code = wanted.code
        ON CONFLICT (code) DO NOTHING
        """)
    )


def create_territory_list() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.publish_territories()
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          EXECUTE format(
            'CREATE OR REPLACE FUNCTION {schema}.all_territories() RETURNS text[] LANGUAGE sql STABLE PARALLEL SAFE RETURN %L::text[]',
            ARRAY(SELECT t.code FROM {schema}.territories AS t ORDER BY t.code));
          EXECUTE format(
            'CREATE OR REPLACE FUNCTION {schema}.territory_roles() RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE RETURN %L::jsonb',
            (SELECT jsonb_object_agg(t.code, quote_ident({role_prefix} || coalesce(t.suffix, lower(t.code)))) FROM {schema}.territories AS t));
          EXECUTE format(
            'CREATE OR REPLACE FUNCTION {schema}.territory_role(code text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE RETURN %L || %s',
            {role_prefix},
            coalesce(
              (SELECT 'CASE code' || string_agg(format(' WHEN %L THEN %L', t.code, t.suffix), '' ORDER BY t.code) || ' ELSE lower(code) END'
               FROM {schema}.territories AS t WHERE t.suffix IS NOT NULL),
              'lower(code)'));
        END
        $body$;
        COMMENT ON FUNCTION {schema}.publish_territories() IS 'Makes all_territories(), territory_roles() and territory_role() anew, from the table';
        REVOKE ALL ON FUNCTION {schema}.publish_territories() FROM PUBLIC;
        SELECT {schema}.publish_territories()
        """)
    )


def create_reading_check() -> None:
    # Policies of the host that are for everybody bind our reader too, though another one lets it see every row:
    # the planner runs what they call. That may name a table without its schema, need a privilege, or a setting.
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unreadable()
        RETURNS TABLE (host regclass, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_variable
        BEGIN
          FOREACH host IN ARRAY ARRAY[{host_names}]::regclass[] LOOP
            BEGIN
              IF host = {leads_name}::regclass THEN
                PERFORM l.{lead_id}, {territory_of_l} FROM {leads} AS l LIMIT 1;
              ELSE
                EXECUTE format('SELECT FROM %s LIMIT 1', host);
              END IF;
              CONTINUE;
            EXCEPTION
              WHEN lock_not_available THEN RAISE;
              WHEN OTHERS THEN -- without policies, it is what the settings call about a row
                detail := format('%s fails where %I reads it for leadprotect: %s', host, {reader_name}, SQLERRM);
                detail := (SELECT CASE WHEN c.relrowsecurity THEN 'a policy of ' ELSE '' END FROM pg_class AS c WHERE c.oid = host) || detail;
            END;
            SELECT string_agg({narrowing_of_p}, E'\\n' ORDER BY p.polname) INTO remedy
            FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
            WHERE p.polrelid = host AND p.polcmd IN ('r', '*') AND p.polroles = '{0}'
              AND p.polname <> ALL (ARRAY[{host_policies}]::name[]);
            RETURN NEXT;
          END LOOP;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.unreadable() IS
        'Which of the host''s tables our reader can''t read, because a policy of the host fails for it, and what mends that';
        REVOKE ALL ON FUNCTION {schema}.unreadable() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.unreadable() TO {owner}, {operator}
        """)
    )
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    op.execute(
        sql("""
        DO $do$
        DECLARE
          found record;
        BEGIN
          SELECT pg_catalog.string_agg(u.detail, E'\\n') AS details, pg_catalog.string_agg(u.remedy, E'\\n') AS remedies
          INTO found FROM {schema}.unreadable() AS u;
          IF found.details IS NOT NULL THEN
            RAISE EXCEPTION '%', found.details USING ERRCODE = 'LP412', HINT = coalesce(found.remedies, '');
          END IF;
        END
        $do$
        """)
    )


def create_undo() -> None:
    # An older version of leadprotect does not know the newest revisions: each of them leaves its way down. What
    # stands here is executed by who migrates, so nobody may write it; an upgrade does, as the owner.
    op.execute(
        sql("""
        CREATE TABLE {schema}.revision_undo (
          revision text PRIMARY KEY,
          down_revision text,
          statements text[] NOT NULL,
          host_locks jsonb NOT NULL,
          hash text NOT NULL,
          made_at timestamptz NOT NULL DEFAULT pg_catalog.now()
        );
        COMMENT ON TABLE {schema}.revision_undo IS
        'The downgrade of each applied revision, for leadprotect rollback of a version that does not know it';
        COMMENT ON COLUMN {schema}.revision_undo.revision IS 'the revision that it undoes';
        COMMENT ON COLUMN {schema}.revision_undo.down_revision IS 'what is applied afterwards; NULL is the base';
        COMMENT ON COLUMN {schema}.revision_undo.statements IS
        'one by one; COMMIT and BEGIN stand around those that run outside of a transaction';
        COMMENT ON COLUMN {schema}.revision_undo.host_locks IS 'the strongest lock on each table of the host';
        COMMENT ON COLUMN {schema}.revision_undo.hash IS 'SHA-256 of all of this: what differs is not executed';
        COMMENT ON COLUMN {schema}.revision_undo.made_at IS 'when the revision was applied';
        ALTER TABLE {schema}.revision_undo ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.revision_undo FORCE ROW LEVEL SECURITY;
        CREATE POLICY lp_inside ON {schema}.revision_undo TO {owner} USING ({inside}) WITH CHECK ({inside});
        CREATE POLICY lp_operator ON {schema}.revision_undo FOR SELECT TO {operator} USING (true);
        GRANT SELECT ON {schema}.revision_undo TO {operator}
        """)
    )


def with_versions(statement: str) -> DDL:
    """Fill in {version_table_name} as well: where Alembic keeps what is applied, as a constant; a host's own has another name."""
    known = op.get_context()
    table = literal(ident(*filter(None, (known.version_table_schema, known.version_table))))
    return sql(statement.replace("{version_table_name}", table))


def show_version() -> None:
    # leadprotect status tells an operator which revision is applied.
    op.execute(
        with_versions("""
        DO $do$
        DECLARE
          versions regclass := pg_catalog.to_regclass({version_table_name});
          home text := (
            SELECT n.nspname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE c.oid = versions);
        BEGIN
          IF versions IS NOT NULL THEN
            EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %I', versions, {operator_name});
          END IF;
          IF NOT pg_catalog.has_schema_privilege({operator_name}, home, 'USAGE') THEN
            EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', home, {operator_name});
          END IF;
        END
        $do$
        """)
    )


def enter_quarantine() -> None:
    # Still row-secured, without any grant.
    op.execute("RESET ROLE")
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        COMMENT ON SCHEMA {quarantine} IS
        'leadprotect after a downgrade: alembic upgrade takes every row back, leadprotect purge deletes';
        REVOKE ALL ON {schema}.territories FROM {reader}, {app}, {auditor}, {operator}, {manager};
        REVOKE ALL ON FUNCTION {schema}.is_member(text), {schema}.acting_role(), {schema}.admitted_territory(),
          {schema}.own_border(), {schema}.inside(), {schema}.all_territories(), {schema}.territory_roles(), {schema}.territory_role(text),
          {schema}.claimed(text, text)
        FROM PUBLIC, {reader}, {app}, {auditor}, {manager}, {operator};
        ALTER FUNCTION {schema}.own_border() SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.inside() SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.admitted_territory() SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.claimed(text, text) SET SCHEMA {quarantine};
        DROP FUNCTION {schema}.publish_territories(), {schema}.unreadable();
        DROP TABLE {schema}.revision_undo;
        ALTER FUNCTION {schema}.is_member(text) SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.all_territories() SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.territory_roles() SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.territory_role(text) SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.acting_role() SET SCHEMA {quarantine};
        ALTER TABLE {schema}.territories SET SCHEMA {quarantine}
        """)
    )


def drop_schema() -> None:
    hide_version()
    # The host's tables get their grants back as they were.
    op.execute(sql("REVOKE SELECT ({lead_id}, {territory_columns}), SELECT ({named_columns}) ON {leads} FROM {reader}"))
    for source in activity_sources():
        op.execute(sql(source.fill("REVOKE SELECT ON {source_read} FROM {reader}")))
    op.execute(
        sql("""
        DO $do$
        DECLARE
          granted record;
        BEGIN
          FOR granted IN
            SELECT n.nspname, r.rolname
            FROM pg_catalog.pg_namespace AS n, pg_catalog.aclexplode(n.nspacl) AS acl
            JOIN pg_catalog.pg_roles AS r ON r.oid = acl.grantee
            WHERE n.nspname IN ({host_schemas}) AND r.rolname IN ({owner_name}, {reader_name})
          LOOP
            EXECUTE pg_catalog.format('REVOKE USAGE ON SCHEMA %I FROM %I', granted.nspname, granted.rolname);
          END LOOP;
        END
        $do$
        """)
    )
    # Fails, and says what is in the way, when somebody put objects of his own into the schema. Where the
    # version table lives in it, Alembic still has to write there: env.py drops both afterwards.
    op.execute(
        with_versions("""
        DO $do$
        DECLARE
          versions oid := pg_catalog.to_regclass({version_table_name});
          other text;
        BEGIN
          SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) INTO other
          FROM pg_catalog.pg_depend AS d
          WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n'
            AND d.refobjid = {schema_name}::regnamespace AND d.objid IS DISTINCT FROM versions
          LIMIT 1;
          IF other IS NOT NULL THEN
            RAISE EXCEPTION 'cannot drop schema % because other objects depend on it', {schema_name}
              USING ERRCODE = 'dependent_objects_still_exist', DETAIL = other || ' depends on schema ' || {schema_name};
          END IF;
          IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_class AS c
            WHERE c.oid = versions AND c.relnamespace = {schema_name}::regnamespace) THEN
            SET LOCAL ROLE {owner};
            DROP SCHEMA {schema} RESTRICT;
            RESET ROLE;
          END IF;
        END
        $do$
        """)
    )


def hide_version() -> None:
    op.execute(
        with_versions("""
        DO $do$
        DECLARE
          versions regclass := pg_catalog.to_regclass({version_table_name});
          granted text := (
            SELECT n.nspname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE c.oid = versions AND EXISTS (
              SELECT FROM pg_catalog.aclexplode(n.nspacl) AS acl
              WHERE acl.grantee = pg_catalog.to_regrole(pg_catalog.quote_ident({operator_name}))));
        BEGIN
          IF versions IS NOT NULL THEN
            EXECUTE pg_catalog.format('REVOKE SELECT ON %s FROM %I', versions, {operator_name});
          END IF;
          IF granted IS NOT NULL THEN
            EXECUTE pg_catalog.format('REVOKE USAGE ON SCHEMA %I FROM %I', granted, {operator_name});
          END IF;
        END
        $do$
        """)
    )
