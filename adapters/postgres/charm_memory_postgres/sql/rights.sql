-- Last: what an upgrade adds is for whoever works with what was there. Roles were let in by the script of the release
-- before, and it may be the owner's process that upgrades, by itself.
DO $$
DECLARE
    given record;
BEGIN
    IF EXISTS (SELECT FROM charm_migrations WHERE v >= :version) THEN
        RETURN;  -- nothing was added, and what the owner took away since stays so
    END IF;
    FOR given IN
        SELECT 'TABLE' AS kind, added.oid::regclass::text AS name, a.*
        FROM pg_class had CROSS JOIN aclexplode(coalesce(had.relacl, acldefault('r', had.relowner))) a
        CROSS JOIN pg_class added
        WHERE had.oid = 'charm_heads'::regclass AND added.oid = 'charm_packed'::regclass AND NOT EXISTS (
            SELECT FROM aclexplode(coalesce(added.relacl, acldefault('r', added.relowner))) has
            WHERE (has.grantee, has.privilege_type) = (a.grantee, a.privilege_type)
        )
        UNION ALL
        SELECT 'FUNCTION', added.oid::regprocedure::text, a.*
        FROM pg_proc had CROSS JOIN aclexplode(coalesce(had.proacl, acldefault('f', had.proowner))) a
        JOIN pg_proc added ON added.pronamespace = had.pronamespace AND starts_with(added.proname, 'charm_')
        WHERE had.oid = 'charm_lock_v1(text)'::regprocedure
        AND pg_has_role(added.proowner, 'USAGE')  -- not another program's
        AND NOT EXISTS (
            SELECT FROM aclexplode(coalesce(added.proacl, acldefault('f', added.proowner))) has
            WHERE has.grantee = a.grantee
        )
    LOOP
        EXECUTE format(
            'GRANT %s ON %s %s TO %s', given.privilege_type, given.kind, given.name,
            CASE WHEN given.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(given.grantee)) END
        ) || CASE WHEN given.is_grantable AND given.grantee <> 0 THEN ' WITH GRANT OPTION' ELSE '' END;
    END LOOP;
END
$$;
