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
    create_acting_logins()
    create_leaking_views()
    create_ways_around()
    create_host_code()
    create_column_code()
    create_lost_searches()
    create_what_changes()
    create_lead_tables()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.lead_table_conditions(text, name[], text[]),
          {schema}.what_changes(text),
          {schema}.lost_searches(regclass),
          {schema}.column_code(),
          {schema}.host_code(regclass, text),
          {schema}.ways_around(text, name[]),
          {schema}.leaking_views(regclass, text, name[]),
          {schema}.acting_logins(regclass, name[], text[], name[])
        """)
    )
    op.execute("RESET ROLE")


def create_acting_logins() -> None:
    # Who may do something with a table; roles of ours make no service of anybody. Whom a login can act as: itself, and
    # each role that SET ROLE lets it choose. A login with privileges of its own is judged by itself, a pool by the roles
    # it sets. The territories are arguments, and no role of ours need be there: a plan asks before the schema stands.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.acting_logins(target regclass, exempt_roles name[], codes text[], borders name[])
        RETURNS TABLE (
          login name, role name, reads boolean, edits boolean, inserts boolean, owns_it boolean, owns_leads boolean, bypasses boolean,
          exempt boolean, member boolean, serves boolean, territories text[], narrow boolean)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
          WITH holders AS MATERIALIZED (
            SELECT h.oid, h.rolname, {app_name} = ANY (uses.roles) AS serves, c.relowner, leads.oid AS leads, leads.relowner AS lead_owner
            FROM pg_class AS c JOIN pg_class AS leads ON leads.oid = {leads_name}::regclass CROSS JOIN pg_roles AS h CROSS JOIN LATERAL (
              SELECT ARRAY(SELECT o.rolname FROM pg_roles AS o
                           WHERE o.rolname IN ({app_name}, {reader_name}, {auditor_name}) AND pg_has_role(h.oid, o.oid, 'USAGE')) AS roles) AS uses
            WHERE c.oid = target AND h.rolname <> ALL (ARRAY[{offices}]::name[]) AND (
              has_table_privilege(h.oid, target, 'SELECT, INSERT, UPDATE, DELETE') OR has_any_column_privilege(h.oid, target, 'INSERT')
              -- what contract lets an auditor read for v_lead_protection makes no service of him, and what our reader
              -- reads, and writes where the host keeps owners, none of whoever migrates, be it another database of this server
              OR EXISTS (
                SELECT FROM pg_attribute AS a
                WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped
                  AND (has_column_privilege(h.oid, a.attrelid, a.attnum, 'UPDATE')
                      AND NOT (target = leads.oid AND a.attname = {owner_column_name} AND {reader_name} = ANY (uses.roles))
                    OR has_column_privilege(h.oid, a.attrelid, a.attnum, 'SELECT')
                      AND NOT (target = leads.oid AND a.attname IN ({lead_id_column_name}, {territory_column_names}) AND uses.roles && ARRAY[{reader_name}, {auditor_name}]::name[]))))),
          acting AS (
            SELECT l.rolname AS login, l.oid AS login_oid, l.rolbypassrls, h.*, h.oid = l.oid AS itself,
                   l.rolname = ANY (exempt_roles) OR h.rolname = ANY (exempt_roles) AS exempt,
                   ARRAY(SELECT t.code FROM unnest(codes, borders) AS t (code, role) JOIN pg_roles AS b ON b.rolname = t.role
                         WHERE pg_has_role(h.oid, b.oid, 'USAGE') ORDER BY t.code) AS held
            FROM pg_roles AS l JOIN holders AS h ON pg_has_role(l.oid, h.oid, 'MEMBER')
            WHERE l.rolcanlogin AND NOT l.rolsuper AND has_database_privilege(l.oid, current_database(), 'CONNECT'))
          SELECT DISTINCT ON (a.login) a.login, a.rolname,
                 has_table_privilege(a.oid, target, 'SELECT') OR has_any_column_privilege(a.oid, target, 'SELECT'),
                 has_table_privilege(a.oid, target, 'UPDATE, DELETE') OR has_any_column_privilege(a.oid, target, 'UPDATE'),
                 has_table_privilege(a.oid, target, 'INSERT'),
                 pg_has_role(a.login_oid, a.relowner, 'MEMBER'), pg_has_role(a.login_oid, a.lead_owner, 'MEMBER'),
                 a.rolbypassrls, a.exempt,
                 EXISTS (SELECT FROM pg_roles AS o WHERE o.rolname = {app_name} AND pg_has_role(a.login_oid, o.oid, 'MEMBER')),
                 a.serves, a.held,
                 (SELECT bool_and(has_column_privilege(a.oid, a.leads, needed.name, 'SELECT'))
                  FROM unnest(ARRAY[{lead_id_column_name}, {territory_column_names}]) AS needed (name))
          FROM acting AS a
          ORDER BY a.login, a.exempt, a.itself DESC, (a.serves AND cardinality(a.held) > 0) DESC, a.rolname;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.acting_logins(regclass, name[], text[], name[]) IS
        'The logins that may do something with a table, each with the role by which it does, and what it holds of ours';
        REVOKE ALL ON FUNCTION {schema}.acting_logins(regclass, name[], text[], name[]) FROM PUBLIC
        """)
    )


def create_leaking_views() -> None:
    # Row security binds who reads the table by its name: not through a view that reads as an owner whom it does
    # not bind. `reader` is who reads in a view's name, 0 whoever asks: the first view on the way up from the
    # table that is no security_invoker decides.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.leaking_views(target regclass, host_rls text, exempt_roles name[])
        RETURNS TABLE (login name, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          what text := CASE WHEN target = {leads_name}::regclass THEN 'leads' ELSE target::text END;
        BEGIN
          RETURN QUERY
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
            FROM rules JOIN relations AS v ON v.oid = rules.view WHERE rules.source = target
            UNION
            SELECT v.oid, CASE WHEN below.reader <> 0 THEN below.reader WHEN v.invoker THEN 0::oid ELSE v.relowner END
            FROM reached AS below JOIN rules ON rules.source = below.oid JOIN relations AS v ON v.oid = rules.view),
          leaks AS MATERIALIZED (
            SELECT DISTINCT v.oid, v.relkind, v.relowner, v.relacl
            FROM reached JOIN relations AS v ON v.oid = reached.oid JOIN pg_roles AS o ON o.oid = reached.reader
            WHERE NOT v.invoker AND (o.rolsuper OR o.rolbypassrls
              -- who reads every lead reads every row of a lead
              OR host_rls <> 'force' AND EXISTS (
                SELECT FROM pg_class AS c
                WHERE c.oid IN (target, {leads_name}::regclass) AND pg_has_role(o.oid, c.relowner, 'USAGE')))),
          grants AS (
            SELECT l.oid, l.relowner, g.grantee, g.grantor, g.is_grantable FROM leaks AS l, aclexplode(l.relacl) AS g
            WHERE g.privilege_type = 'SELECT'
            UNION
            SELECT l.oid, l.relowner, g.grantee, g.grantor, g.is_grantable
            FROM leaks AS l JOIN pg_attribute AS a ON a.attrelid = l.oid, aclexplode(a.attacl) AS g
            WHERE g.privilege_type = 'SELECT'
            UNION
            SELECT l.oid, l.relowner, 'pg_read_all_data'::regrole, NULL, false FROM leaks AS l),
          readers AS (
            SELECT g.oid, g.grantee, min(r.rolname) AS login, bool_or(g.grantor <> g.relowner) AS passed_on,
                   string_agg((
                     -- since PostgreSQL 16 each grantor's grant is one of its own
                     SELECT string_agg(format('REVOKE %I FROM %I%s;', pg_get_userbyid(m.roleid), r.rolname,
                              CASE WHEN to_jsonb(m) ? 'set_option' AND m.grantor <> 10
                                THEN format(' GRANTED BY %I', pg_get_userbyid(m.grantor)) ELSE '' END), ' ')
                     FROM pg_auth_members AS m
                     WHERE m.member = r.oid AND pg_has_role(m.roleid, 'pg_read_all_data', 'MEMBER')), ' ' ORDER BY r.rolname)
                     FILTER (WHERE g.grantor IS NULL) AS members
            FROM grants AS g JOIN pg_roles AS r
              ON CASE g.grantee WHEN 0 THEN true ELSE pg_has_role(r.oid, g.grantee, 'MEMBER') END
            WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND r.rolname <> ALL (exempt_roles)
              AND NOT pg_has_role(r.oid, g.relowner, 'MEMBER')
              AND has_database_privilege(r.oid, current_database(), 'CONNECT')
            GROUP BY g.oid, g.grantee)
          SELECT min(r.login)::name AS login,
                 format('%s reads %s as its owner %I, so login %I sees those of every territory', l.oid::regclass,
                        what, pg_get_userbyid(l.relowner), min(r.login)) AS detail,
                 CASE l.relkind WHEN 'v' THEN format('ALTER VIEW %s SET (security_invoker = true);', l.oid::regclass)
                   -- what somebody passed on goes with his right to
                   ELSE concat_ws(' ', (
                     SELECT string_agg(DISTINCT format('REVOKE GRANT OPTION FOR SELECT ON %s FROM %I CASCADE;', l.oid::regclass,
                              pg_get_userbyid(g.grantee)), ' ')
                     FROM grants AS g WHERE g.oid = l.oid AND g.grantor = l.relowner AND g.is_grantable AND bool_or(r.passed_on)),
                     string_agg(coalesce(r.members, format('REVOKE SELECT ON %s FROM %s;', l.oid::regclass,
                       CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END)), ' ')) END AS remedy
          FROM leaks AS l JOIN readers AS r ON r.oid = l.oid
          GROUP BY l.oid, l.relkind, l.relowner ORDER BY l.oid::regclass::text LIMIT 20;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.leaking_views(regclass, text, name[]) IS
        'The views that show rows of a table past its row security to a login, and what closes each';
        REVOKE ALL ON FUNCTION {schema}.leaking_views(regclass, text, name[]) FROM PUBLIC
        """)
    )


def create_ways_around() -> None:
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
                 string_agg(format(CASE WHEN c.relispartition THEN 'ALTER TABLE %2$s DETACH PARTITION %1$s;' ELSE 'ALTER TABLE %1$s NO INHERIT %2$s;' END,
                                   i.inhrelid::regclass, i.inhparent::regclass), ' ')
          INTO met, detail, remedy
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE {leads_name}::regclass IN (i.inhparent, i.inhrelid);
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
          INTO met, detail, remedy FROM {schema}.leaking_views({leads_name}::regclass, host_rls, exempt_roles) AS leak;
          RETURN NEXT;
        END
        $body$;
        REVOKE ALL ON FUNCTION {schema}.ways_around(text, name[]) FROM PUBLIC;
        COMMENT ON FUNCTION {schema}.ways_around(text, name[]) IS
        'Conditions of the gate: what would show leads past row security'
        """)
    )


def create_host_code() -> None:
    # Code that runs beside a statement on another table, with rights that row security binds: it finds 0 rows of what
    # whoever runs it may not edit, and nobody is told. A text that is put together at run time is not seen. Who may edit a
    # lead may edit what hangs on it, so triggers of the leads themselves go on as before.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.host_code(target regclass, host_rls text)
        RETURNS TABLE (name text, function regprocedure, runs regclass)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN QUERY
          SELECT beside.name, beside.function, beside.runs FROM pg_class AS l JOIN pg_namespace AS home ON home.oid = l.relnamespace
          CROSS JOIN LATERAL (
            SELECT format('trigger %I on %s', t.tgname, t.tgrelid::regclass) AS name, p.oid::regprocedure AS function,
                   t.tgrelid::regclass AS runs, p.prosrc AS text, CASE WHEN p.prosecdef THEN p.proowner END AS acts_as
            FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid NOT IN (l.oid, {leads_name}::regclass) AND NOT t.tgisinternal AND t.tgenabled <> 'D'
              AND p.pronamespace <> 'pg_catalog'::regnamespace
              -- a plan asks this before the schema is there
              AND p.pronamespace IS DISTINCT FROM to_regnamespace({schema_name})
            UNION ALL
            SELECT format('rule %I on %s', r.rulename, r.ev_class::regclass), NULL, r.ev_class::regclass, pg_get_ruledef(r.oid), c.relowner
            FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
            WHERE r.ev_class <> l.oid AND r.rulename <> '_RETURN') AS beside
          CROSS JOIN LATERAL (
            SELECT regexp_replace(replace(lower(beside.text), '"', ''), '[[:space:];(),]+', ' ', 'g') || ' ' AS words) AS plain
          WHERE l.oid = target AND EXISTS (
              SELECT FROM unnest(ARRAY['update ', 'update only ', 'delete from ', 'delete from only ', 'merge into ']) AS verb,
                unnest(ARRAY[lower(l.relname), lower(home.nspname) || '.' || lower(l.relname)]) AS called
              WHERE strpos(plain.words, verb || regexp_replace(called, '[[:space:];(),]+', ' ', 'g') || ' ') > 0)
            AND NOT coalesce((
              SELECT o.rolsuper OR o.rolbypassrls
                OR host_rls <> 'force' AND NOT l.relforcerowsecurity AND pg_has_role(o.oid, l.relowner, 'USAGE')
              FROM pg_roles AS o WHERE o.oid = beside.acts_as), false)
          LIMIT 20;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.host_code(regclass, text) IS
        'The triggers and rules on other tables that change a table with rights that its row security will bind';
        REVOKE ALL ON FUNCTION {schema}.host_code(regclass, text) FROM PUBLIC
        """)
    )


def create_column_code() -> None:
    # What a trigger of the leads does elsewhere, it does as our reader where a function of ours writes the owner's
    # column, who may write nothing else: a change of owner would fail with the host's error. A text in quotes and
    # IS DISTINCT FROM are no statements; what is put together at run time is EXECUTE.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.column_code()
        RETURNS TABLE (name text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT format('trigger %I on %s', t.tgname, t.tgrelid::regclass),
                 format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_temp;', p.oid::regprocedure, n.nspname)
          FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
          JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_language AS g ON g.oid = p.prolang
          WHERE {named} AND t.tgrelid = {leads_name}::regclass AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
            AND NOT p.prosecdef AND n.nspname NOT IN ('pg_catalog', {schema_name})
            AND n.oid <> {schema_name}::regnamespace AND g.lanname NOT IN ('c', 'internal')
            AND t.tgtype & 16 <> 0 AND (t.tgattr = '' OR EXISTS (
              SELECT FROM pg_attribute AS a
              WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr) AND a.attname = {owner_column_name}))
            AND (g.lanname <> 'plpgsql' OR regexp_replace(regexp_replace(lower(p.prosrc),
                '--[^\\n]*|''[^'']*''', ' ', 'g'), 'distinct\\s+from', ' ', 'g')
              ~ '\\m(insert\\s+into|update\\s+[a-z_"]|delete\\s+from|merge\\s+into|from\\s+[a-z_"(]|execute|call\\s|nextval|perform\\s+(?!pg_notify|set_config|pg_catalog\\.))')
          ORDER BY 1 LIMIT 20;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.column_code() IS
        'The triggers of the leads that read or write elsewhere and will do so as our reader, where our functions write the owner''s column';
        REVOKE ALL ON FUNCTION {schema}.column_code() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.column_code() TO {owner}, {operator}
        """)
    )


def create_lost_searches() -> None:
    # The first part of an index that tells of hidden rows: an expression, which is computed, or what operators compare of
    # which one is not leakproof; what LIKE asks for is looked up by others. What an expression gives can be kept in a
    # column where its own equality is leakproof; for anything else a function asks, and draws the border itself.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.lost_searches(target regclass)
        RETURNS TABLE (index text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN QUERY
          SELECT i.indexrelid::regclass::text,
            CASE WHEN lost.computed AND lost.same AND NOT lost.prefix THEN
              format('ALTER TABLE %s ADD COLUMN %I %s GENERATED ALWAYS AS (%s) STORED; CREATE INDEX CONCURRENTLY ON %1$s (%2$I); '
                     '/* it rewrites the table, then ask WHERE %2$I = ... */',
                     i.indrelid::regclass, left(c.relname, 59) || '_key', key.type, key.text)
            ELSE
              format('%10$sCREATE FUNCTION %1$s(wanted %2$s) RETURNS SETOF %3$s LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp '
                     'AS $$ BEGIN RETURN QUERY SELECT l.* FROM %3$s AS l WHERE %4$s OPERATOR(%5$s) wanted AND (%6$s OR %7$s = %8$s.admitted_territory()); END $$; '
                     'REVOKE ALL ON FUNCTION %1$s(%2$s) FROM PUBLIC; GRANT EXECUTE ON FUNCTION %1$s(%2$s) TO %9$I; '
                     '/* %11$s, then ask FROM %1$s(...) */',
                     format('%I.%I', n.nspname, left('leads_by_' || c.relname, 63)), asked.type, i.indrelid::regclass, key.text, asked.operator,
                     $outside$ {outside_l}$outside$, $territory$ {territory_of_l}$territory$, {schema_name}, {app_name},
                     CASE WHEN asks.may THEN '' ELSE format('GRANT USAGE ON SCHEMA %s TO %I; ', {schema_name}, asks.name) END,
                     CASE WHEN asks.may THEN '' ELSE 'the first as a superuser, the others ' END || 'as the owner of the leads')
            END
          FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
          -- before the first upgrade there is no schema of ours
          CROSS JOIN LATERAL (
            SELECT o.rolname AS name, coalesce(has_schema_privilege(o.oid, to_regnamespace({schema_name})::oid, 'USAGE'), o.rolsuper) AS may
            FROM pg_roles AS o WHERE o.oid = c.relowner) AS asks
          CROSS JOIN LATERAL (
            SELECT part.place, k.opcfamily, k.opcintype, i.indkey[part.place] = 0 AS computed, k.opcname LIKE '%pattern_ops' AS prefix, leaks.same
            FROM generate_series(0, i.indnkeyatts - 1) AS part (place) JOIN pg_opclass AS k ON k.oid = i.indclass[part.place]
            CROSS JOIN LATERAL (
              SELECT coalesce(bool_or(f.proleakproof), false) AS some,
                     coalesce(bool_and(f.proleakproof) FILTER (WHERE o.amoprighttype = o.amoplefttype), true) AS every,
                     coalesce(bool_or(f.proleakproof) FILTER (WHERE p.oprname = '='), false) AS same
              FROM pg_amop AS o JOIN pg_operator AS p ON p.oid = o.amopopr JOIN pg_proc AS f ON f.oid = p.oprcode
              WHERE o.amopfamily = k.opcfamily AND o.amoplefttype = k.opcintype) AS leaks
            WHERE i.indkey[part.place] = 0 OR k.opcname LIKE '%pattern_ops' OR NOT (leaks.some AND leaks.every)
            ORDER BY part.place LIMIT 1) AS lost
          JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = lost.place + 1
          -- what it is computed from, where it is computed at all, in brackets as an operator needs them
          CROSS JOIN LATERAL (
            SELECT CASE WHEN lost.computed THEN '(' || pg_get_indexdef(i.indexrelid, lost.place + 1, false) || ')'
                     ELSE 'l.' || pg_get_indexdef(i.indexrelid, lost.place + 1, false) END AS text,
                   format_type(CASE WHEN lost.computed THEN a.atttypid ELSE
                     (SELECT h.atttypid FROM pg_attribute AS h WHERE h.attrelid = i.indrelid AND h.attnum = i.indkey[lost.place]) END, NULL) AS type) AS key
          -- contains and matches are what people search by; else the first that the index knows
          LEFT JOIN LATERAL (
            SELECT 'pg_catalog.~~' AS operator, 'text' AS type WHERE lost.prefix
            UNION ALL (
              SELECT format('%s.%s', quote_ident(s.nspname), p.oprname),
                     CASE WHEN y.typtype = 'p' THEN key.type ELSE format_type(y.oid, NULL) END
              FROM pg_amop AS o JOIN pg_operator AS p ON p.oid = o.amopopr JOIN pg_namespace AS s ON s.oid = p.oprnamespace
              JOIN pg_type AS y ON y.oid = o.amoprighttype
              WHERE NOT lost.prefix AND o.amopfamily = lost.opcfamily AND o.amoppurpose = 's' AND p.oprresult = 'boolean'::regtype
              ORDER BY p.oprname NOT IN ('@>', '@@', '~~', '%', '='), o.amoplefttype <> lost.opcintype, o.amopstrategy LIMIT 1)) AS asked ON true
          WHERE i.indrelid = target AND i.indisvalid AND c.relname <> {leads_index_name};
        END
        $body$;
        COMMENT ON FUNCTION {schema}.lost_searches(regclass) IS
        'Indexes of the leads that row security takes from whom it binds, because what they compare may tell of hidden rows; and what gives each search back';
        REVOKE ALL ON FUNCTION {schema}.lost_searches(regclass) FROM PUBLIC
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
                   'row security leaves every index of ' || {leads_label} || ' to searches'),
                 string_agg(slow.remedy, E'\\n' ORDER BY slow.index)
          INTO detail, remedy
          FROM {schema}.lost_searches({leads_name}::regclass) AS slow;
          RETURN NEXT;
          remedy := NULL;

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

          condition := 'host_code';
          SELECT count(*) = 0 OR {schema}.accepted_share('host_code') IS NOT NULL,
                 coalesce(string_agg(code.name, ', ' ORDER BY code.name)
                   || ' changes leads: of those that whoever runs it may not edit, silently none'
                   || CASE WHEN {schema}.accepted_share('host_code') IS NOT NULL THEN '; accepted' ELSE '' END,
                   'no trigger or rule on another table changes leads'),
                 'let it run as the owner of the leads (SECURITY DEFINER), or answer for it: alembic -x accept=host_code:1 upgrade head'
          INTO met, detail, remedy
          FROM {schema}.host_code({leads_name}::regclass, host_rls) AS code;
          IF met THEN
            remedy := NULL;
          END IF;
          RETURN NEXT;

          IF {named} THEN
            condition := 'owner_column_code';
            SELECT count(*) = 0 OR {schema}.accepted_share('owner_column_code') IS NOT NULL,
                   coalesce(string_agg(code.name, ', ' ORDER BY code.name) || format(' will run as %I where our functions write %s', {reader_name}, {owner_column_name})
                     || CASE WHEN {schema}.accepted_share('owner_column_code') IS NOT NULL THEN '; accepted' ELSE '' END,
                     'no trigger of the leads does elsewhere what ' || {reader_name} || ' may not'),
                   string_agg(code.remedy, ' ' ORDER BY code.name) || ' or answer for it: alembic -x accept=owner_column_code:1 upgrade head'
            INTO met, detail, remedy
            FROM {schema}.column_code() AS code;
            IF met THEN
              remedy := NULL;
            END IF;
            RETURN NEXT;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.what_changes(text) IS
        'What works otherwise after contract, although nobody is locked out: named by the gate';
        REVOKE ALL ON FUNCTION {schema}.what_changes(text) FROM PUBLIC
        """)
    )


def create_lead_tables() -> None:
    # COPY is named for the leads, too. The tables come from the settings of whoever asks, three names for each: schema, table, and column with the
    # lead's id. Their policies read the leads as whoever asks.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.lead_table_conditions(host_rls text, exempt_roles name[], lead_tables text[])
        RETURNS TABLE (condition text, met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          one text[];
          target regclass;
          known text[] := ARRAY(SELECT t.code FROM {schema}.territories AS t ORDER BY t.code);
          borders name[] := ARRAY(SELECT {schema}.territory_role(t.code) FROM {schema}.territories AS t ORDER BY t.code);
          lead_owner oid := (SELECT relowner FROM pg_class WHERE oid = {leads_name}::regclass);
          locked text[] := '{}';
          unlocks text[] := '{}';
          ways text[] := '{}';
          closes text[] := '{}';
          keys text[] := '{}';
          mends text[] := '{}';
          codes text[] := '{}';
          found record;
        BEGIN
          -- what row security takes from whoever it binds, without a look at his rights
          condition := 'copy_from';
          met := true;
          SELECT coalesce('COPY ... FROM into ' || {leads_label} || ' or lead_tables is refused to ' || string_agg(quote_ident(r.rolname), ', ' ORDER BY r.rolname)
                   || ': let it INSERT, or copy into a table of its own first', 'no login that row security binds may COPY into leads')
          INTO detail
          FROM pg_roles AS r JOIN pg_class AS c ON c.oid = {leads_name}::regclass
          WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND has_table_privilege(r.oid, c.oid, 'INSERT')
            AND has_database_privilege(r.oid, current_database(), 'CONNECT')
            AND (host_rls = 'force' OR c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'));
          RETURN NEXT;

          condition := 'queues';
          SELECT coalesce(string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.oid::regprocedure::text)
                   || ' takes leads with SKIP LOCKED: those that its user may not edit are left out without a word',
                   'no function of the host takes leads with SKIP LOCKED'),
                 CASE WHEN count(*) > 0 THEN
                   'SELECT l.{lead_id} FROM {leads} AS l WHERE {schema}.can_edit_lead(l.{lead_id}) LIMIT 1 FOR UPDATE SKIP LOCKED' END
          INTO detail, remedy
          FROM pg_proc AS p JOIN pg_roles AS o ON o.oid = p.proowner JOIN pg_class AS l ON l.oid = {leads_name}::regclass
          WHERE p.pronamespace NOT IN ('pg_catalog'::regnamespace, {schema_name}::regnamespace)
            AND coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) ~* 'skip\\s+locked'
            AND coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) ~* format('(?<!\\w)%s(?!\\w)', regexp_replace(l.relname, '(\\W)', '\\\\\\1', 'g'))
            AND NOT (p.prosecdef AND (o.rolsuper OR o.rolbypassrls
              OR host_rls <> 'force' AND NOT l.relforcerowsecurity AND pg_has_role(o.oid, l.relowner, 'USAGE')));
          RETURN NEXT;
          remedy := NULL;
          IF cardinality(lead_tables) = 0 THEN
            RETURN;
          END IF;
          FOREACH one SLICE 1 IN ARRAY lead_tables LOOP
            target := (
              SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
              JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
              WHERE n.nspname = one[1] AND c.relname = one[2] AND a.attname = one[3]);
            IF target IS NULL THEN
              locked := locked || format('there is no table %I.%I with a column %I', one[1], one[2], one[3]);
              unlocks := unlocks || 'correct lead_tables;'::text;
              CONTINUE;
            END IF;
            FOR found IN
              SELECT CASE
                  WHEN a.owns_it AND NOT a.owns_leads AND a.member THEN
                    format('login %I owns %s and not %s, so the row security of the one does not bind it', a.login, target, {leads_label})
                  WHEN NOT (a.serves AND a.territories <> '{}') AND NOT a.exempt THEN
                    format('%s has privileges on %s but is no member of %s and a territory', a.role, target, {app_name})
                  ELSE format('%s has privileges on %s and may not read id and territory of %s, by which its rows are seen',
                              a.role, target, {leads_label}) END AS detail,
                CASE
                  WHEN a.owns_it AND NOT a.owns_leads AND a.member THEN
                    format('ALTER TABLE %s OWNER TO %I;', target, pg_get_userbyid(lead_owner))
                  WHEN NOT (a.serves AND a.territories <> '{}') AND NOT a.exempt THEN {schema}.granting(a.role)
                  ELSE format('GRANT SELECT ({lead_id}, {territory_columns}) ON %s TO %I;', {leads_name}::regclass, a.role) END AS remedy
              FROM {schema}.acting_logins(target, exempt_roles, known, borders) AS a
              WHERE NOT a.bypasses AND CASE WHEN a.owns_it AND host_rls <> 'force' THEN NOT a.owns_leads AND a.member AND NOT a.exempt
                      WHEN a.owns_leads THEN false
                      ELSE NOT (a.serves AND a.territories <> '{}') AND NOT a.exempt OR NOT a.narrow END
              ORDER BY a.login LIMIT 20
            LOOP
              locked := locked || found.detail;
              unlocks := CASE WHEN found.remedy = ANY (unlocks) THEN unlocks ELSE unlocks || found.remedy END;
            END LOOP;
            FOR found IN
              SELECT format('%s inherits from %s, so the rows in it are not protected', i.inhrelid::regclass, i.inhparent::regclass) AS detail,
                     format(CASE WHEN c.relispartition THEN 'ALTER TABLE %2$s DETACH PARTITION %1$s;' ELSE 'ALTER TABLE %1$s NO INHERIT %2$s;' END,
                       i.inhrelid::regclass, i.inhparent::regclass) AS remedy
              FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE target IN (i.inhparent, i.inhrelid)
              UNION ALL
              SELECT leak.detail, leak.remedy FROM {schema}.leaking_views(target, host_rls, exempt_roles) AS leak
            LOOP
              ways := ways || found.detail;
              closes := closes || found.remedy;
            END LOOP;
            codes := codes || ARRAY(
              SELECT format('%s changes rows of %s: of those that whoever runs it may not edit, silently none', code.name, target)
              FROM {schema}.host_code(target, host_rls) AS code ORDER BY 1);
            -- what such a key leaves behind would be everybody's, so the trigger refuses it
            FOR found IN
              SELECT format('%I takes the rows of %s from a lead that is deleted or renumbered: refused after contract, and with it the deletion',
                            k.conname, target) AS detail,
                     format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %2$I %s;', target, k.conname,
                       regexp_replace(pg_get_constraintdef(k.oid), 'ON (DELETE|UPDATE) SET (NULL|DEFAULT)( \\([^)]*\\))?', 'ON \\1 CASCADE', 'g')) AS remedy
              FROM pg_constraint AS k
              JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attname = one[3] AND a.attnum = ANY (k.conkey)
              WHERE k.contype = 'f' AND k.conrelid = target AND k.confrelid = {leads_name}::regclass
                AND (k.confdeltype IN ('n', 'd') OR k.confupdtype IN ('n', 'd'))
            LOOP
              keys := keys || found.detail;
              mends := mends || found.remedy;
            END LOOP;
          END LOOP;

          condition := 'lead_tables';
          met := cardinality(locked) = 0;
          detail := coalesce(nullif(array_to_string(locked, ', '), ''), 'every login with privileges on lead_tables is a member, and reads leads');
          remedy := nullif(array_to_string(unlocks, ' '), '');
          RETURN NEXT;
          condition := 'lead_tables_ways';
          met := cardinality(ways) = 0;
          detail := coalesce(nullif(array_to_string(ways, ', '), ''), 'no view or child shows rows of lead_tables past row security');
          remedy := nullif(array_to_string(closes, ' '), '');
          RETURN NEXT;
          condition := 'lead_tables_keys';
          met := cardinality(keys) = 0 OR {schema}.accepted_share('lead_tables_keys') IS NOT NULL;
          detail := coalesce(nullif(array_to_string(keys, ', '), ''), 'no foreign key takes rows of lead_tables out of protection');
          remedy := CASE WHEN NOT met THEN
            array_to_string(mends, ' ') || ' or answer for it: alembic -x accept=lead_tables_keys:1 upgrade head' END;
          RETURN NEXT;
          condition := 'lead_tables_code';
          met := cardinality(codes) = 0 OR {schema}.accepted_share('lead_tables_code') IS NOT NULL;
          detail := coalesce(nullif(array_to_string(codes, ', '), ''), 'no trigger or rule on another table changes rows of lead_tables');
          remedy := CASE WHEN NOT met THEN 'let it run as the owner of the table (SECURITY DEFINER), or answer for it: '
            || 'alembic -x accept=lead_tables_code:1 upgrade head' END;
          RETURN NEXT;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.lead_table_conditions(text, name[], text[]) IS
        'Conditions of the gate about COPY and lead_tables: who would be locked out, and what would show their rows or take them away';
        REVOKE ALL ON FUNCTION {schema}.lead_table_conditions(text, name[], text[]) FROM PUBLIC
        """)
    )
