-- Bytes travel in one `payload`; the JSON beside it says where each piece begins and how long it is. A field that is
-- false or null is left out of the JSON.

CREATE OR REPLACE FUNCTION charm_not_the_base_v1(channel text, base text) RETURNS bytea
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'version % of channel % is not what a value was sent as a change to', base, channel
        USING ERRCODE = 'CH001';
END
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
-- new bytes around them, and have behind that [base version, SHA-256, head, start, length, rest].
CREATE OR REPLACE FUNCTION charm_put_checkpoint_v1(unit jsonb, payload bytea) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    thread CONSTANT text := unit ->> 'thread';
    ns CONSTANT text := unit ->> 'ns';
    id CONSTANT text := unit ->> 'id';
    parent CONSTANT text := unit ->> 'parent';
    root CONSTANT text := unit ->> 'root';
    at CONSTANT double precision := unit ->> 'at';
    head charm_heads;
    overtaken boolean;  -- null without a head
    listed charm_threads;
    made_by text;  -- the parent; null if it is not stored
    status text := 'stored';
    change jsonb;
BEGIN
    IF EXISTS (
        SELECT FROM charm_checkpoints WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id
    ) THEN
        SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
        IF unit ? 'fenced' AND unit ->> 'on_conflict' IN ('branch', 'beside')
            AND NOT charm_grew_from_v1(thread, ns, id, head.checkpoint_id)
        THEN
            RETURN json_build_object('status', 'branched', 'head', charm_head_v1(head));
        END IF;
        RETURN json_build_object('status', status);
    END IF;
    SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
    SELECT * INTO listed FROM charm_threads WHERE thread_id = thread;
    SELECT device INTO made_by FROM charm_checkpoints
    WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = parent;
    overtaken := unit ? 'fenced' AND head.checkpoint_id <> coalesce(unit ->> 'over', parent, '');
    IF listed.deleted_through IS NOT NULL AND (
        parent <= listed.deleted_through COLLATE "C" AND made_by IS NULL
        OR root <= listed.deleted_through COLLATE "C" AND NOT charm_is_stored_v1(thread, '', root)
        OR ns = '' AND id = ANY (listed.deleted_firsts)
    ) THEN
        status := 'deleted';
    ELSIF overtaken AND unit ->> 'on_conflict' = 'raise' THEN
        status := 'conflict';
    ELSIF parent IS NOT NULL AND made_by IS NULL AND NOT unit ? 'whole' THEN
        status := 'orphaned';
    ELSIF overtaken AND unit ->> 'on_conflict' = 'branch' OR unit ->> 'on_conflict' = 'beside' THEN
        status := 'branched';
    END IF;

    IF status NOT IN ('stored', 'branched') THEN
        DELETE FROM checkpoint_writes WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id;
    ELSE
        INSERT INTO charm_checkpoints VALUES (
            thread, ns, id, unit ->> 'run', root, unit ->> 'device', at,
            substring(payload FROM (unit #>> '{exact,0}')::integer + 1 FOR (unit #>> '{exact,1}')::integer),
            substring(payload FROM (unit #>> '{exact,2}')::integer + 1 FOR (unit #>> '{exact,3}')::integer)
        );
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT thread, ns, b ->> 0, b ->> 1, b ->> 2,
            substring(payload FROM (b ->> 3)::integer + 1 FOR (b ->> 4)::integer)
        FROM jsonb_array_elements(unit -> 'blobs') b
        ON CONFLICT DO NOTHING;
        FOR n IN 0 .. coalesce(jsonb_array_length(unit -> 'changes'), 0) - 1 LOOP
            change := unit -> 'changes' -> n;
            -- Put together from right to left: what costs is to copy the long part, and to decompress it.
            INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
            SELECT thread, ns, c.channel, c.version, c.type, CASE
                WHEN sha256(rebuilt.value) = decode(c.digest, 'hex') THEN rebuilt.value
                ELSE charm_not_the_base_v1(c.channel, c.base)
            END
            FROM (VALUES (
                change ->> 0, change ->> 1, change ->> 2, (change ->> 3)::integer, (change ->> 4)::integer,
                change ->> 5, change ->> 6, (change ->> 7)::integer, (change ->> 8)::integer,
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
        INSERT INTO checkpoints
            (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        VALUES (thread, ns, id, parent, unit -> 'checkpoint', unit -> 'metadata');
        IF status = 'stored' THEN
            PERFORM charm_move_head_v1(thread, ns, id, unit ->> 'device', at, head.moved_at);
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

-- A write is [task_id, idx, channel, task_path, type, offset, size].
CREATE OR REPLACE FUNCTION charm_put_writes_v1(unit jsonb, payload bytea) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    thread CONSTANT text := unit ->> 'thread';
    ns CONSTANT text := unit ->> 'ns';
    id CONSTANT text := unit ->> 'id';
    is_stored CONSTANT boolean := EXISTS (
        SELECT FROM charm_checkpoints WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id
    );
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
            SELECT FROM jsonb_array_elements(unit -> 'writes') w CROSS JOIN LATERAL (
                SELECT * FROM checkpoint_writes s
                WHERE s.thread_id = thread AND s.checkpoint_ns = ns AND s.checkpoint_id = id
                AND s.task_id = w ->> 0 AND s.idx = (w ->> 1)::integer LIMIT 1
            ) s
            WHERE (s.channel, s.task_path, s.type, s.blob) IS DISTINCT FROM (
                w ->> 2, w ->> 3, w ->> 4, substring(payload FROM (w ->> 5)::integer + 1 FOR (w ->> 6)::integer)
            )
        ) THEN
            RETURN json_build_object('status', 'conflict', 'head', charm_head_v1(head));
        END IF;
    END IF;
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, task_path, type, blob)
    SELECT thread, ns, id, w ->> 0, (w ->> 1)::integer, w ->> 2, w ->> 3, w ->> 4,
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
    ns CONSTANT text := unit ->> 'ns';
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
            thread, ns, id, unit ->> 'device', (unit ->> 'at')::double precision, head.moved_at
        );
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
