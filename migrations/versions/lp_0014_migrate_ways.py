"""What contract would leave open, and what would work otherwise after it.

Why: row security binds whoever reads the table by its name. Children, views, exempt roles, foreign keys and
code of the host reach leads by other ways; the gate names them before anything is enforced.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the functions.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0014_migrate_ways"
down_revision = "lp_0013_migrate_verification"
branch_labels = None
depends_on = None
phase = "migrate"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    create_ways_around()
    create_what_changes()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("DROP FUNCTION {schema}.what_changes(text), {schema}.ways_around(text, name[])"))
    op.execute("RESET ROLE")


def create_ways_around() -> None:
    # Row security binds who reads the table by its name: not through a child, and not through a view
    # that reads as an owner whom it does not bind. `reader` is who reads leads in a view's name, 0 whoever
    # asks: the first view on the way up from the table that is no security_invoker decides.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.ways_around(host_rls text, exempt_roles name[])
        RETURNS TABLE (condition text, met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        BEGIN
          condition := 'inheritance';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s inherits from %s, so the leads in it are not protected', i.inhrelid::regclass,
                            i.inhparent::regclass), ', '), 'no table shares its rows with ' || {leads_label}),
                 string_agg(format('ALTER TABLE %s NO INHERIT %s;', i.inhrelid::regclass, i.inhparent::regclass), ' ')
          INTO met, detail, remedy
          FROM pg_inherits AS i WHERE {leads_name}::regclass IN (i.inhparent, i.inhrelid);
          RETURN NEXT;

          -- they run as the owner of the table, past row security; the triggers of contract decide them like
          -- any edit of whoever acts, so they are named and keep nothing closed
          condition := 'referential_actions';
          met := true;
          remedy := NULL;
          SELECT coalesce(
                   string_agg(format('%I on %s changes leads with %s: decided like an edit of each of them', k.conname,
                     k.conrelid::regclass, k.confrelid::regclass), ', ' ORDER BY k.conname),
                   'no foreign key changes leads with another table')
          INTO detail
          FROM pg_constraint AS k
          WHERE k.contype = 'f' AND k.conrelid = {leads_name}::regclass
            AND (k.confdeltype NOT IN ('a', 'r') OR k.confupdtype NOT IN ('a', 'r'));
          RETURN NEXT;

          -- what they change besides the statement is compared when it is done, so they are named only
          condition := 'host_triggers';
          SELECT coalesce(
                   string_agg(format('%s on %s may change leads: id and territory are compared after it', code.name,
                     {leads_label}), ', ' ORDER BY code.name), 'no trigger or rule of the host changes leads')
          INTO detail
          FROM (
            SELECT format('trigger %I', t.tgname) AS name
            FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid = {leads_name}::regclass AND NOT t.tgisinternal AND t.tgenabled <> 'D'
              AND t.tgtype & 3 = 3 AND p.pronamespace <> {schema_name}::regnamespace
            UNION ALL
            SELECT format('rule %I', r.rulename) FROM pg_rewrite AS r WHERE r.ev_class = {leads_name}::regclass) AS code;
          RETURN NEXT;

          condition := 'views';
          SELECT count(*) = 0,
                 coalesce(string_agg(leak.detail, ', '), 'no view shows leads past row security'),
                 string_agg(leak.remedy, ' ') || ' or name the readers in exempt_roles'
          INTO met, detail, remedy
          FROM (
            WITH RECURSIVE rules AS MATERIALIZED (
              SELECT DISTINCT d.refobjid AS source, r.ev_class AS view
              FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
              WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class),
            relations AS MATERIALIZED (
              SELECT c.oid, c.relkind, c.relowner, c.relacl, c.relkind = 'v' AND coalesce((
                       SELECT bool_or(o.option_value::boolean) FROM pg_options_to_table(c.reloptions) AS o
                       WHERE o.option_name = 'security_invoker'), false) AS invoker
              FROM pg_class AS c WHERE c.relkind IN ('v', 'm') AND c.oid IN (SELECT rules.view FROM rules)),
            reached AS (
              SELECT v.oid, CASE WHEN v.invoker THEN 0::oid ELSE v.relowner END AS reader
              FROM rules JOIN relations AS v ON v.oid = rules.view WHERE rules.source = {leads_name}::regclass
              UNION
              SELECT v.oid, CASE WHEN below.reader <> 0 THEN below.reader WHEN v.invoker THEN 0::oid ELSE v.relowner END
              FROM reached AS below JOIN rules ON rules.source = below.oid JOIN relations AS v ON v.oid = rules.view),
            leaks AS MATERIALIZED (
              SELECT DISTINCT v.oid, v.relkind, v.relowner, v.relacl
              FROM reached JOIN relations AS v ON v.oid = reached.oid JOIN pg_roles AS o ON o.oid = reached.reader
              WHERE NOT v.invoker AND (o.rolsuper OR o.rolbypassrls
                OR host_rls <> 'force' AND pg_has_role(o.oid, (SELECT relowner FROM pg_class
                                                               WHERE oid = {leads_name}::regclass), 'USAGE'))),
            grants AS (
              SELECT l.oid, l.relowner, g.grantee FROM leaks AS l, aclexplode(l.relacl) AS g
              WHERE g.privilege_type = 'SELECT'
              UNION
              SELECT l.oid, l.relowner, g.grantee
              FROM leaks AS l JOIN pg_attribute AS a ON a.attrelid = l.oid, aclexplode(a.attacl) AS g
              WHERE g.privilege_type = 'SELECT'
              UNION
              SELECT l.oid, l.relowner, 'pg_read_all_data'::regrole FROM leaks AS l),
            readers AS (
              SELECT g.oid, g.grantee, min(r.rolname) AS login
              FROM grants AS g JOIN pg_roles AS r
                ON CASE g.grantee WHEN 0 THEN true ELSE pg_has_role(r.oid, g.grantee, 'MEMBER') END
              WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND r.rolname <> ALL (exempt_roles)
                AND NOT pg_has_role(r.oid, g.relowner, 'MEMBER')
                AND has_database_privilege(r.oid, current_database(), 'CONNECT')
              GROUP BY g.oid, g.grantee)
            SELECT format('%s reads leads as its owner %I, so login %I sees those of every territory', l.oid::regclass,
                          pg_get_userbyid(l.relowner), min(r.login)) AS detail,
                   CASE l.relkind WHEN 'v' THEN format('ALTER VIEW %s SET (security_invoker = true);', l.oid::regclass)
                     ELSE string_agg(format('REVOKE SELECT ON %s FROM %s;', l.oid::regclass,
                       CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END), ' ') END AS remedy
            FROM leaks AS l JOIN readers AS r ON r.oid = l.oid
            GROUP BY l.oid, l.relkind, l.relowner ORDER BY l.oid::regclass::text LIMIT 20) AS leak;
          RETURN NEXT;
        END
        $body$;
        REVOKE ALL ON FUNCTION {schema}.ways_around(text, name[]) FROM PUBLIC;
        COMMENT ON FUNCTION {schema}.ways_around(text, name[]) IS
        'Conditions of the gate: what would show leads past row security'
        """)
    )


def create_what_changes() -> None:
    # Nothing of this is against the border: it is said before, not met after. Only what would go on without a word,
    # and do nothing, waits for somebody to answer for it.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.what_changes(host_rls text)
        RETURNS TABLE (condition text, met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          condition := 'searches';
          met := true;
          SELECT coalesce(string_agg(format('%s can''t be used by whom row security binds', slow.index), ', ' ORDER BY slow.index)
                   || ': what it compares may tell of rows that are hidden',
                   'row security leaves every index of ' || {leads_label} || ' to searches')
          INTO detail
          FROM (
            -- an expression is computed, or compared by operators, of which none is leakproof
            SELECT i.indexrelid::regclass::text AS index FROM pg_index AS i
            WHERE i.indrelid = {leads_name}::regclass AND i.indisvalid AND (i.indexprs IS NOT NULL OR NOT EXISTS (
              SELECT FROM pg_opclass AS c JOIN pg_amop AS o ON o.amopfamily = c.opcfamily AND o.amoplefttype = c.opcintype
              JOIN pg_operator AS p ON p.oid = o.amopopr JOIN pg_proc AS f ON f.oid = p.oprcode
              WHERE c.oid = i.indclass[0] AND f.proleakproof))) AS slow;
          RETURN NEXT;

          -- INSERT ... ON CONFLICT looks past row security at the row that has the value already
          condition := 'unique_keys';
          SELECT coalesce(string_agg(key.index, ', ' ORDER BY key.index)
                   || ': an INSERT tells whether a lead of any territory has the value, and its ON CONFLICT compares with that lead',
                   'no unique key but the id of the leads reaches over territories')
          INTO detail
          FROM (
            SELECT i.indexrelid::regclass::text AS index FROM pg_index AS i
            WHERE i.indrelid = {leads_name}::regclass AND i.indisunique AND NOT EXISTS (
              SELECT FROM pg_attribute AS a WHERE a.attrelid = i.indrelid
              AND a.attname IN ({lead_id_column_name}, {territory_column_names}) AND a.attnum = ANY (i.indkey::smallint[]))) AS key;
          RETURN NEXT;

          -- code that runs beside a statement on another table, with rights that row security binds: it finds 0 rows of
          -- the leads that whoever runs it may not edit, and nobody is told. A text that is put together at run time is not seen.
          condition := 'host_code';
          SELECT count(*) = 0 OR {schema}.accepted_share('host_code') IS NOT NULL,
                 coalesce(string_agg(code.name, ', ' ORDER BY code.name)
                   || ' changes leads: of those that whoever runs it may not edit, silently none'
                   || CASE WHEN {schema}.accepted_share('host_code') IS NOT NULL THEN '; accepted' ELSE '' END,
                   'no trigger or rule on another table changes leads'),
                 'let it run as the owner of the leads (SECURITY DEFINER), or answer for it: alembic -x accept=host_code:1 upgrade head'
          INTO met, detail, remedy
          FROM (
            SELECT beside.name FROM pg_class AS l JOIN pg_namespace AS home ON home.oid = l.relnamespace
            CROSS JOIN LATERAL (
              SELECT format('trigger %I on %s', t.tgname, t.tgrelid::regclass) AS name, p.prosrc AS text,
                     CASE WHEN p.prosecdef THEN p.proowner END AS acts_as
              FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
              WHERE t.tgrelid <> l.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
                AND p.pronamespace NOT IN ({schema_name}::regnamespace, 'pg_catalog'::regnamespace)
              UNION ALL
              SELECT format('rule %I on %s', r.rulename, r.ev_class::regclass), pg_get_ruledef(r.oid), c.relowner
              FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
              WHERE r.ev_class <> l.oid AND r.rulename <> '_RETURN') AS beside
            CROSS JOIN LATERAL (
              SELECT regexp_replace(replace(lower(beside.text), '"', ''), '[[:space:];(),]+', ' ', 'g') || ' ' AS words) AS plain
            WHERE l.oid = {leads_name}::regclass AND EXISTS (
                SELECT FROM unnest(ARRAY['update ', 'update only ', 'delete from ', 'delete from only ', 'merge into ']) AS verb,
                  unnest(ARRAY[lower(l.relname), lower(home.nspname) || '.' || lower(l.relname)]) AS called
                WHERE strpos(plain.words, verb || regexp_replace(called, '[[:space:];(),]+', ' ', 'g') || ' ') > 0)
              AND NOT coalesce((
                SELECT o.rolsuper OR o.rolbypassrls
                  OR host_rls <> 'force' AND NOT l.relforcerowsecurity AND pg_has_role(o.oid, l.relowner, 'USAGE')
                FROM pg_roles AS o WHERE o.oid = beside.acts_as), false)
            LIMIT 20) AS code;
          IF met THEN
            remedy := NULL;
          END IF;
          RETURN NEXT;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.what_changes(text) IS
        'What works otherwise after contract, although nobody is locked out: named by the gate';
        REVOKE ALL ON FUNCTION {schema}.what_changes(text) FROM PUBLIC
        """)
    )
