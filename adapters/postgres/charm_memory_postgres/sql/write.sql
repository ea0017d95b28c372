-- Bytes travel in one `payload`; the JSON beside it says where each piece begins and how long it is. A field that is
-- false or null is left out of the JSON.

DROP FUNCTION IF EXISTS charm_not_the_base_v1(text, text);
CREATE OR REPLACE FUNCTION charm_not_the_base_v1(what text) RETURNS bytea
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is not what it was when something was sent as a change to it', what USING ERRCODE = 'CH001';
END
$$;

-- What bytes are known by that are rebuilt here.
CREATE OR REPLACE FUNCTION charm_digest_v1(value bytea) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT encode(substring(sha256(value) FOR 15), 'base64')
$$;

-- The payload with what it quotes: [place, start in the source, length, number of the unit, source]. A source is the value
-- of a channel, or [task_id, idx] of a write, of the checkpoint that a unit's checkpoint grew from or its writes belong to.
CREATE OR REPLACE FUNCTION charm_with_quotations_v1(units jsonb, quotations jsonb, digest text, payload bytea)
RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
    whole bytea := '';
    taken integer := 0;
    quoted jsonb;
    unit jsonb;
    thread text;
    ns text;
    origin text;
    source bytea;
    size integer;
BEGIN
    FOR n IN 0 .. jsonb_array_length(quotations) - 1 LOOP
        quoted := quotations -> n;
        unit := units -> (quoted ->> 3)::integer;
        thread := unit ->> 'thread';
        ns := coalesce(unit ->> 'ns', '');
        origin := CASE WHEN unit ? 'checkpoint' THEN unit ->> 'parent' ELSE unit ->> 'id' END;
        IF jsonb_array_length(quoted) = 5 THEN
            SELECT b.blob INTO source FROM checkpoint_blobs b
            WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = quoted ->> 4 AND b.version = (
                SELECT k.checkpoint -> 'channel_versions' ->> (quoted ->> 4) FROM checkpoints k
                WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = origin LIMIT 1
            ) LIMIT 1;
        ELSE
            SELECT w.blob INTO source FROM checkpoint_writes w
            WHERE w.thread_id = thread AND w.checkpoint_ns = ns AND w.checkpoint_id = origin
            AND w.task_id = quoted ->> 4 AND w.idx = (quoted ->> 5)::integer LIMIT 1;
        END IF;
        size := (quoted ->> 0)::integer - octet_length(whole);
        whole := whole || substring(payload FROM taken + 1 FOR size)
            || substring(source FROM (quoted ->> 1)::integer + 1 FOR (quoted ->> 2)::integer);
        taken := taken + size;
    END LOOP;
    whole := whole || substring(payload FROM taken + 1);
    RETURN CASE
        WHEN charm_digest_v1(whole) = digest THEN whole ELSE charm_not_the_base_v1('a value that was quoted')
    END;
END
$$;

-- A checkpoint that is told as a change to its parent: new is the `version` of the channels that are `changed`, or have a
-- value without a version; the nodes in `seen` saw the parent's versions of these channels.
CREATE OR REPLACE FUNCTION charm_grown_v1(parent jsonb, unit jsonb, version text) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object(
        'id', unit -> 'id', 'channel_values', '{}'::jsonb,
        'channel_versions', (parent -> 'channel_versions') || coalesce((
            SELECT jsonb_object_agg(c.name, version) FROM (
                SELECT jsonb_array_elements_text(unit -> 'changed')
                UNION ALL
                SELECT v ->> 0 FROM (VALUES (unit -> 'blobs'), (unit -> 'changes')) told (list)
                CROSS JOIN jsonb_array_elements(told.list) v WHERE v ->> 1 IS NULL
            ) c (name)
        ), '{}'),
        'versions_seen', (parent -> 'versions_seen') || coalesce((
            SELECT jsonb_object_agg(node.key, coalesce((
                SELECT jsonb_object_agg(c.name, parent -> 'channel_versions' -> c.name)
                FROM jsonb_array_elements_text(node.value) c (name)
            ), '{}'))
            FROM jsonb_each(unit -> 'seen') node
        ), '{}')
    ) || (unit -> 'checkpoint')
$$;

CREATE OR REPLACE FUNCTION charm_head_v1(head charm_heads) RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN head.checkpoint_id IS NOT NULL
        THEN json_build_array(head.checkpoint_ns, head.checkpoint_id, head.device, head.moved_at) END
$$;

CREATE OR REPLACE FUNCTION charm_is_stored_v1(thread text, ns text, id text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM charm_checkpoints WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id
    );
END
$$;

-- Whether a head is a checkpoint, or has it among its ancestors; null without a head.
CREATE OR REPLACE FUNCTION charm_grew_from_v1(thread text, ns text, id text, head text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE chain (id) AS (
        SELECT head
        UNION
        SELECT k.parent_checkpoint_id FROM chain c CROSS JOIN LATERAL (
            SELECT * FROM checkpoints k
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = c.id LIMIT 1
        ) k
    )
    SELECT CASE WHEN head IS NOT NULL THEN EXISTS (SELECT FROM chain c WHERE c.id = charm_grew_from_v1.id) END
$$;

-- A blob is [channel, version, type, offset, size]. `changes` are those that are sent as ranges of an earlier version with
-- new bytes around them, and have behind that [base version, digest, head, start, length, rest].
--
-- With a `version`, the unit is told as a change to the parent's checkpoint: see `charm_grown_v1`. Then a blob without a
-- version has that one, a base without one the parent's, the metadata is what differs, and the device may be left out.
CREATE OR REPLACE FUNCTION charm_put_checkpoint_v1(unit jsonb, payload bytea) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    thread CONSTANT text := unit ->> 'thread';
    ns CONSTANT text := coalesce(unit ->> 'ns', '');
    id CONSTANT text := unit ->> 'id';
    parent CONSTANT text := unit ->> 'parent';
    root CONSTANT text := unit ->> 'root';
    at CONSTANT double precision := unit ->> 'at';
    head charm_heads;
    overtaken boolean;  -- null without a head
    listed charm_threads;
    made_by text;  -- the parent; null if it is not stored
    status text := 'stored';
    on_conflict CONSTANT text := coalesce(unit ->> 'on_conflict', 'raise');
    device text := unit ->> 'device';
    made_from jsonb;
    version text;
    metadata jsonb := unit -> 'metadata';
    change jsonb;
    made jsonb;
    whole jsonb;  -- versions of which it is known that they are
    own text[];
    strays boolean;
BEGIN
    IF EXISTS (
        SELECT FROM charm_checkpoints WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id
    ) THEN
        SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
        IF NOT unit ? 'unfenced' AND on_conflict IN ('branch', 'beside')
            AND NOT charm_grew_from_v1(thread, ns, id, head.checkpoint_id)
        THEN
            RETURN json_build_object('status', 'branched', 'head', charm_head_v1(head));
        END IF;
        RETURN json_build_object('status', status);
    END IF;
    SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
    SELECT * INTO listed FROM charm_threads WHERE thread_id = thread;
    SELECT c.device INTO made_by FROM charm_checkpoints c
    WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = parent;
    overtaken := NOT unit ? 'unfenced' AND head.checkpoint_id <> coalesce(unit ->> 'over', parent, '');
    IF listed.deleted_through IS NOT NULL AND (
        parent <= listed.deleted_through COLLATE "C" AND made_by IS NULL
        OR root <= listed.deleted_through COLLATE "C" AND NOT charm_is_stored_v1(thread, '', root)
        OR ns = '' AND id = ANY (listed.deleted_firsts)
    ) THEN
        status := 'deleted';
    ELSIF overtaken AND on_conflict = 'raise' THEN
        status := 'conflict';
    ELSIF parent IS NOT NULL AND made_by IS NULL AND NOT unit ? 'whole' THEN
        status := 'orphaned';
    ELSIF overtaken AND on_conflict = 'branch' OR on_conflict = 'beside' THEN
        status := 'branched';
    END IF;

    IF status NOT IN ('stored', 'branched') THEN
        DELETE FROM checkpoint_writes WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id;
    ELSE
        IF unit ? 'version' THEN
            SELECT k.checkpoint, k.metadata || (unit -> 'metadata') INTO made_from, metadata FROM checkpoints k
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = parent LIMIT 1;
            IF made_from IS NULL OR made_by = 'another saver' THEN
                PERFORM charm_not_the_base_v1(format('checkpoint %s', parent));
            END IF;
            device := coalesce(device, made_by);
            -- [how much of the parent's greatest, the rest]
            SELECT left(max(v.value COLLATE "C"), (unit #>> '{version,0}')::integer) || (unit #>> '{version,1}')
            INTO version FROM jsonb_each_text(made_from -> 'channel_versions') v;
            version := coalesce(version, unit #>> '{version,1}');
        END IF;
        INSERT INTO charm_checkpoints (
            thread_id, checkpoint_ns, checkpoint_id, run_id, root_id, device, created_at, body, metadata, labels
        ) VALUES (
            thread, ns, id, unit ->> 'run', root, device, at,
            substring(payload FROM (unit #>> '{exact,0}')::integer + 1 FOR (unit #>> '{exact,1}')::integer),
            substring(payload FROM (unit #>> '{exact,2}')::integer + 1 FOR (unit #>> '{exact,3}')::integer),
            unit -> 'labels'
        );
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT thread, ns, b ->> 0, coalesce(b ->> 1, version), b ->> 2,
            substring(payload FROM (b ->> 3)::integer + 1 FOR (b ->> 4)::integer)
        FROM jsonb_array_elements(unit -> 'blobs') b
        ON CONFLICT DO NOTHING;
        FOR n IN 0 .. coalesce(jsonb_array_length(unit -> 'changes'), 0) - 1 LOOP
            change := unit -> 'changes' -> n;
            -- Put together from right to left: what costs is to copy the long part, and to decompress it.
            INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
            SELECT thread, ns, c.channel, c.version, c.type, CASE
                WHEN charm_digest_v1(rebuilt.value) = c.digest THEN rebuilt.value
                ELSE charm_not_the_base_v1(format('version %s of channel %s', c.base, c.channel))
            END
            FROM (VALUES (
                change ->> 0, coalesce(change ->> 1, version), change ->> 2,
                (change ->> 3)::integer, (change ->> 4)::integer,
                coalesce(change ->> 5, made_from -> 'channel_versions' ->> (change ->> 0)), change ->> 6, (change ->> 7)::integer, (change ->> 8)::integer,
                (change ->> 9)::integer, (change ->> 10)::integer
            )) c (channel, version, type, at, size, base, digest, head, start, length, rest)
            LEFT JOIN LATERAL (
                SELECT substring(payload FROM c.at + 1 FOR c.head) || (
                    substring(b.blob FROM c.start + 1 FOR c.length) || (
                        substring(payload FROM c.at + c.head + 1 FOR c.size - c.head) || CASE
                            WHEN c.rest = 0 THEN ''
                            ELSE substring(b.blob FROM octet_length(b.blob) - c.rest + 1)
                        END
                    )
                ) AS value
                FROM checkpoint_blobs b
                WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = c.channel AND b.version = c.base
                LIMIT 1
            ) rebuilt ON true
            ON CONFLICT DO NOTHING;
        END LOOP;
        IF made_by = 'another saver' THEN
            -- Such keep plain values in each checkpoint. Of those that did not change, this one has only the version.
            INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
            SELECT thread, ns, v.key, n.version, 'json', convert_to(v.value::text, 'UTF8')
            FROM checkpoints k CROSS JOIN LATERAL charm_inline_v1(k.checkpoint) v CROSS JOIN LATERAL (
                SELECT unit #>> ARRAY['checkpoint', 'channel_versions', v.key] AS version
            ) n
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = parent
            AND k.checkpoint -> 'channel_versions' ->> v.key = n.version
            ON CONFLICT DO NOTHING;
        END IF;
        made := CASE WHEN made_from IS NULL THEN unit -> 'checkpoint' ELSE charm_grown_v1(made_from, unit, version) END;
        INSERT INTO checkpoints
            (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        VALUES (thread, ns, id, parent, made, metadata);
        strays := parent IS DISTINCT FROM head.checkpoint_id;
        IF NOT strays THEN
            -- What grows from the head has mostly its versions, and one of its own, which channels that are empty have, too.
            whole := made_from -> 'channel_versions';
            IF whole IS NULL AND parent IS NOT NULL THEN
                SELECT k.checkpoint -> 'channel_versions' INTO whole FROM checkpoints k
                WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = parent LIMIT 1;
            END IF;
            own := ARRAY(
                SELECT coalesce(b ->> 1, version)
                FROM jsonb_array_elements(coalesce(unit -> 'blobs', '[]') || coalesce(unit -> 'changes', '[]')) b
            );
            SELECT EXISTS (
                SELECT FROM jsonb_each_text(made -> 'channel_versions') v
                WHERE v.value IS DISTINCT FROM whole ->> v.key AND v.value <> ALL (own)
            ) INTO strays;
        END IF;
        IF strays THEN
            PERFORM charm_make_whole_v1(thread, ns, ARRAY[parent, id]);
        END IF;
        IF status = 'stored' THEN
            PERFORM charm_move_head_v1(thread, ns, id, device, at, head.moved_at, CASE
                WHEN ns = '' THEN coalesce(unit -> 'labels', charm_labels_of_v1(metadata))
            END);
        END IF;
    END IF;
    RETURN json_build_object(
        'status', status,
        'xid', pg_current_xact_id()::xid::text,
        'head', CASE WHEN status IN ('conflict', 'orphaned', 'branched') THEN charm_head_v1(head) END,
        'deleted_at', CASE WHEN status = 'deleted' THEN listed.deleted_at END
    );
END
$$;

-- A write is [task_id, idx, channel, task_path, type, offset, size]; in `writes`, without a task or path it has those of
-- the first.
CREATE OR REPLACE FUNCTION charm_put_writes_v1(unit jsonb, payload bytea) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    thread CONSTANT text := unit ->> 'thread';
    ns CONSTANT text := coalesce(unit ->> 'ns', '');
    id CONSTANT text := unit ->> 'id';
    is_stored CONSTANT boolean := EXISTS (
        SELECT FROM charm_checkpoints WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id
    );
    task CONSTANT text := unit #>> '{writes,0,0}';
    path CONSTANT text := unit #>> '{writes,0,3}';
    died_at double precision;
    head charm_heads;
BEGIN
    IF NOT is_stored THEN
        SELECT deleted_at INTO died_at FROM charm_threads WHERE thread_id = thread AND id <= deleted_through;
        IF FOUND THEN
            RETURN json_build_object('status', 'deleted', 'deleted_at', died_at);
        END IF;
    END IF;
    IF unit ? 'fenced' THEN
        SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
        IF is_stored AND head.checkpoint_id IS DISTINCT FROM id THEN
            RETURN json_build_object('status', 'conflict', 'head', charm_head_v1(head));
        END IF;
        IF EXISTS (
            SELECT FROM (
                SELECT * FROM checkpoint_writes s
                WHERE s.thread_id = thread AND s.checkpoint_ns = ns AND s.checkpoint_id = id
                ORDER BY s.task_id, s.idx OFFSET 0  -- by the key, see read.sql
            ) s
            JOIN jsonb_array_elements(unit -> 'writes') w ON s.task_id = coalesce(w ->> 0, task) AND s.idx = (w ->> 1)::integer
            WHERE (s.channel, s.task_path, s.type, s.blob) IS DISTINCT FROM (
                w ->> 2, coalesce(w ->> 3, path), w ->> 4, substring(payload FROM (w ->> 5)::integer + 1 FOR (w ->> 6)::integer)
            )
        ) THEN
            RETURN json_build_object('status', 'conflict', 'head', charm_head_v1(head));
        END IF;
    END IF;
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, task_path, type, blob)
    SELECT thread, ns, id, coalesce(w ->> 0, task), (w ->> 1)::integer, w ->> 2, coalesce(w ->> 3, path), w ->> 4,
        substring(payload FROM (w ->> 5)::integer + 1 FOR (w ->> 6)::integer)
    FROM jsonb_array_elements(unit -> 'writes') w
    ON CONFLICT DO NOTHING;
    IF unit ? 'replacing' THEN
        INSERT INTO checkpoint_writes
            (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, task_path, type, blob)
        SELECT thread, ns, id, w ->> 0, (w ->> 1)::integer, w ->> 2, w ->> 3, w ->> 4,
            substring(payload FROM (w ->> 5)::integer + 1 FOR (w ->> 6)::integer)
        FROM jsonb_array_elements(unit -> 'replacing') w
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE
            SET channel = excluded.channel, task_path = excluded.task_path,
                type = excluded.type, blob = excluded.blob;
    END IF;
    RETURN json_build_object('status', 'stored');
END
$$;

CREATE OR REPLACE FUNCTION charm_promote_v1(unit jsonb) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    thread CONSTANT text := unit ->> 'thread';
    ns CONSTANT text := coalesce(unit ->> 'ns', '');
    id CONSTANT text := unit ->> 'id';
    head charm_heads;
    status text := 'stored';
BEGIN
    SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
    IF head.checkpoint_id = id THEN
        RETURN json_build_object('status', status);
    END IF;
    IF NOT EXISTS (
        SELECT FROM charm_checkpoints WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id
    ) THEN
        status := 'orphaned';
    ELSIF head.checkpoint_id <> unit ->> 'over' THEN
        status := 'conflict';
    ELSE
        PERFORM charm_move_head_v1(
            thread, ns, id, unit ->> 'device', (unit ->> 'at')::double precision, head.moved_at,
            CASE WHEN ns = '' THEN charm_labels_at_v1(thread, id) END
        );
        PERFORM charm_make_whole_v1(thread, ns, ARRAY[id]);
    END IF;
    RETURN json_build_object(
        'status', status, 'head', CASE WHEN status <> 'stored' THEN charm_head_v1(head) END
    );
END
$$;

-- An IF tests what is cheap first, by itself or before an AND: with a query in it, it would be planned and run each time.
CREATE OR REPLACE FUNCTION charm_write_v1(units jsonb, payload bytea) RETURNS json
-- Plans for any arguments from the first call on: to plan takes as long as to run.
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    unit jsonb;
    quotations CONSTANT jsonb := units #> '{0,quotations}';
    outcomes json[] := '{}';
BEGIN
    -- In one order for all, so that batches with threads in common do not wait for each other in a circle.
    IF jsonb_array_length(units) = 1 THEN
        PERFORM charm_lock_v1(units #>> '{0,thread}');
    ELSE
        PERFORM charm_lock_v1(thread) FROM (
            SELECT DISTINCT (u ->> 'thread') COLLATE "C" AS thread FROM jsonb_array_elements(units) u ORDER BY 1
        ) threads;
    END IF;
    IF quotations IS NOT NULL THEN
        payload := charm_with_quotations_v1(units, quotations, units #>> '{0,digest}', payload);
    END IF;
    FOR n IN 0 .. jsonb_array_length(units) - 1 LOOP
        unit := units -> n;
        outcomes := outcomes || CASE
            WHEN unit ? 'checkpoint' THEN charm_put_checkpoint_v1(unit, payload)
            WHEN unit ? 'writes' THEN charm_put_writes_v1(unit, payload)
            ELSE charm_promote_v1(unit)
        END;
    END LOOP;
    RETURN array_to_json(outcomes);
END
$$;
