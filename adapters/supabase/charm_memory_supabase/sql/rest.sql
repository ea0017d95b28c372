-- What can be called over HTTPS: each one request, one transaction, with the caller's rights. PostgREST finds a function by
-- the names of its arguments, runs one that is STABLE in a read only transaction, and cuts no answer that is one value.
--
-- `request` says what charm-memory-postgres's functions take, bytes as base64. With `owner` a service key does what that
-- user could do.

CREATE OR REPLACE FUNCTION charm_as_v1(request jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF request ? 'owner' THEN
        IF current_user <> 'service_role' THEN
            RAISE EXCEPTION 'only a service key may act for an owner' USING ERRCODE = 'insufficient_privilege';
        END IF;
        PERFORM set_config('request.jwt.claims', json_build_object(
            'sub', request ->> 'owner', 'role', 'authenticated'
        )::text, true);
        PERFORM set_config('role', 'authenticated', true);
    END IF;
    IF row_security_active('charm_threads') AND charm_user_v1() IS NULL THEN
        RAISE EXCEPTION 'the token names no user' USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- Without line breaks, which JSON would tell in two letters.
CREATE OR REPLACE FUNCTION charm_base64_v1(data bytea) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(encode(data, 'base64'), E'\n', '')
$$;

-- Puts bytes together that were sent once and are wanted again. `moves` are numbers by threes: take so many bytes of
-- `data`, then copy, from there, so many of what was made so far. The rest of `data` comes last.
CREATE OR REPLACE FUNCTION charm_unpack_v1(data bytea, moves jsonb) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    steps CONSTANT integer[] := ARRAY(SELECT n::integer FROM jsonb_array_elements_text(moves) n);
    made bytea := '';
    taken integer := 0;
BEGIN
    FOR n IN 1 .. cardinality(steps) / 3 LOOP
        made := made || substring(data FROM taken + 1 FOR steps[n * 3 - 2]);
        taken := taken + steps[n * 3 - 2];
        made := made || substring(made FROM steps[n * 3 - 1] + 1 FOR steps[n * 3]);
        -- Twice as much as a client looks at: copies of copies would have no end.
        IF octet_length(made) > 131072 THEN
            RAISE EXCEPTION 'the request is not packed as it should be' USING ERRCODE = 'data_exception';
        END IF;
    END LOOP;
    RETURN made || substring(data FROM taken + 1);
END
$$;

-- `data` and `moves` are packed bytes, of which the first are the JSON of the units, so many as `units` says.
CREATE OR REPLACE FUNCTION public.charm_rest_write_v1(request jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    packed CONSTANT bytea := charm_unpack_v1(decode(request ->> 'data', 'base64'), request -> 'moves');
    size CONSTANT integer := request ->> 'units';
    units CONSTANT jsonb := convert_from(substring(packed FOR size), 'UTF8');
BEGIN
    PERFORM charm_as_v1(request);
    IF row_security_active('charm_threads') THEN
        -- What a server reads of all threads together must not fail for one user's.
        IF EXISTS (
            SELECT FROM jsonb_array_elements(units) u
            WHERE u ? 'at' AND jsonb_typeof(u -> 'at') <> 'number'
            OR u ? 'checkpoint' AND (
                jsonb_typeof(u #> '{checkpoint,v}') IS DISTINCT FROM 'number'
                OR jsonb_typeof(u #> '{checkpoint,channel_versions}') <> 'object'
                OR jsonb_typeof(u -> 'metadata') IS DISTINCT FROM 'object' OR NOT u ? 'at'
            )
        ) THEN
            RAISE EXCEPTION 'this is no checkpoint' USING ERRCODE = 'data_exception';
        END IF;
        PERFORM charm_claim_v1(ARRAY(SELECT DISTINCT u ->> 'thread' FROM jsonb_array_elements(units) u));
    END IF;
    RETURN charm_write_v1(units, substring(packed FROM size + 1));
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_read_v1(request jsonb) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN (
        SELECT json_agg(json_build_array(r.kind, r.fact, charm_base64_v1(r.data)))
        FROM charm_read_v1(request ->> 'thread', request ->> 'ns', request ->> 'id', request -> 'held') r
    );
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_pull_v1(request jsonb) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN (
        SELECT json_agg(json_build_array(r.kind, r.fact, charm_base64_v1(r.data)))
        FROM charm_pull_v1(request ->> 'thread', request -> 'held') r
    );
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_scan_v1(request jsonb) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN (
        SELECT json_agg(json_build_array(r.kind, r.fact, charm_base64_v1(r.data)))
        FROM charm_scan_v1(request) r
    );
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_lineage_v1(request jsonb) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN (
        SELECT json_agg(json_build_array(r.kind, r.fact, charm_base64_v1(r.data)))
        FROM charm_lineage_v1(
            request ->> 'thread', request ->> 'ns', request ->> 'id',
            ARRAY(SELECT jsonb_array_elements_text(request -> 'channels'))
        ) r
    );
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_threads_v1(request jsonb) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN charm_threads_v1(request);
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_delete_v1(request jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN to_json(CASE
        WHEN request ? 'seen'
            THEN charm_delete_if_v1(request ->> 'thread', request -> 'seen', (request ->> 'at')::double precision)
        ELSE charm_delete_v1(request ->> 'thread', (request ->> 'at')::double precision)
    END);
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_copy_v1(request jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    source CONSTANT text := request ->> 'source';
    target CONSTANT text := request ->> 'target';
    told text;
BEGIN
    PERFORM charm_as_v1(request);
    IF row_security_active('charm_threads') THEN
        IF NOT EXISTS (SELECT FROM charm_checkpoints c WHERE c.thread_id = source) THEN
            RETURN to_json('missing'::text);
        END IF;
        PERFORM charm_claim_v1(ARRAY[source, target]);
    END IF;
    told := charm_copy_v1(source, target, (request ->> 'at')::double precision);
    IF told = 'copied' AND NOT row_security_active('charm_threads') THEN
        UPDATE charm_threads t SET owner = s.owner FROM charm_threads s
        WHERE t.thread_id = target AND s.thread_id = source;
    END IF;
    RETURN to_json(told);
END
$$;

CREATE OR REPLACE FUNCTION public.charm_rest_prune_v1(request jsonb) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN to_json(charm_prune_v1(request ->> 'thread', request -> 'doomed'));
END
$$;

-- Which release's this is, and what is open that should not be.
CREATE OR REPLACE FUNCTION public.charm_rest_about_v1(request jsonb) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_as_v1(request);
    RETURN json_build_object(
        'tables', (SELECT max(v) FROM charm_migrations),
        'functions', 3,
        'schema', current_schema,
        'role', current_user,
        'user', charm_user_v1(),
        'to_anon', (
            SELECT json_agg(p.proname ORDER BY p.proname) FROM pg_proc p
            WHERE p.pronamespace = 'public'::regnamespace AND starts_with(p.proname, 'charm_rest_')
            AND has_function_privilege('anon', p.oid, 'EXECUTE')
        ),
        'anon_in_schema', has_schema_privilege('anon', current_schema, 'USAGE'),
        'without_policies', (
            SELECT json_agg(c.relname ORDER BY c.relname) FROM pg_class c
            WHERE c.relnamespace = quote_ident(current_schema)::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT c.relrowsecurity
        )
    );
END
$$;

-- What is made in `public` is everybody's in a Supabase project.
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = quote_ident(current_schema)::regnamespace
        OR p.pronamespace = 'public'::regnamespace AND starts_with(p.proname, 'charm_rest_')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, anon', f);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO authenticated, service_role', f);
    END LOOP;
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM PUBLIC, anon', current_schema);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO authenticated, service_role', current_schema);
END
$$;
