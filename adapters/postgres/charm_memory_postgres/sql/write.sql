-- Bytes travel in one `payload`; the JSON beside it says where each piece begins and how long it is.

-- One channel's value: from the payload, or rebuilt from an earlier version that is stored and the bytes that are new.
-- `blob` is [channel, version, type, offset, size] or [… , [base version, md5, head, start, length, rest]].
CREATE OR REPLACE FUNCTION charm_value_v1(thread text, ns text, blob jsonb, payload bytea) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
    at integer := (blob ->> 3)::integer;
    size integer := (blob ->> 4)::integer;
    delta jsonb := blob -> 5;
    head integer;
    base bytea;
    value bytea;
BEGIN
    IF delta IS NULL THEN
        RETURN substring(payload FROM at + 1 FOR size);
    END IF;
    -- Concatenated, so that it is decompressed once and not for each range.
    SELECT b.blob || ''::bytea INTO base FROM checkpoint_blobs b
    WHERE b.thread_id = thread AND b.checkpoint_ns = ns
    AND b.channel = charm_value_v1.blob ->> 0 AND b.version = delta ->> 0;
    head := (delta ->> 2)::integer;
    value := substring(payload FROM at + 1 FOR head)
        || substring(base FROM (delta ->> 3)::integer + 1 FOR (delta ->> 4)::integer)
        || substring(payload FROM at + head + 1 FOR size - head)
        || substring(base FROM length(base) - (delta ->> 5)::integer + 1);
    IF value IS NULL OR md5(value) <> delta ->> 1 THEN
        RAISE EXCEPTION 'version % of channel % is not what it was sent as a change to', delta ->> 0, blob ->> 0
            USING ERRCODE = 'CH001';
    END IF;
    RETURN value;
END
$$;

CREATE OR REPLACE FUNCTION charm_head_v1(head charm_heads) RETURNS json
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN head.checkpoint_id IS NOT NULL
        THEN json_build_array(head.checkpoint_ns, head.checkpoint_id, head.device, head.moved_at) END
$$;

CREATE OR REPLACE FUNCTION charm_put_checkpoint_v1(unit jsonb, payload bytea) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    thread CONSTANT text := unit ->> 'thread';
    ns CONSTANT text := unit ->> 'ns';
    id CONSTANT text := unit ->> 'id';
    parent CONSTANT text := unit ->> 'parent';
    root CONSTANT text := unit ->> 'root';
    versions CONSTANT jsonb := unit -> 'checkpoint' -> 'channel_versions';
    head charm_heads;
    overtaken boolean;  -- null without a head
    dead charm_threads;
    status text := 'stored';
BEGIN
    IF EXISTS (
        SELECT FROM charm_checkpoints WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id
    ) THEN
        RETURN json_build_object('status', status);
    END IF;
    SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
    overtaken := (unit ->> 'fenced')::boolean AND head.checkpoint_id <> coalesce(parent, '');
    SELECT * INTO dead FROM charm_threads WHERE thread_id = thread AND deleted_through IS NOT NULL;
    IF FOUND AND (
        parent <= dead.deleted_through COLLATE "C" AND NOT EXISTS (
            SELECT FROM charm_checkpoints
            WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = parent
        )
        OR root <= dead.deleted_through COLLATE "C" AND NOT EXISTS (
            SELECT FROM charm_checkpoints
            WHERE thread_id = thread AND checkpoint_ns = '' AND checkpoint_id = root
        )
    ) THEN
        status := 'deleted';
    ELSIF overtaken AND unit ->> 'on_conflict' = 'raise' THEN
        status := 'conflict';
    ELSIF parent IS NOT NULL AND NOT EXISTS (
        SELECT FROM charm_checkpoints
        WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = parent
    ) THEN
        status := 'orphaned';
    ELSIF overtaken AND unit ->> 'on_conflict' = 'branch' THEN
        status := 'branched';
    END IF;

    IF status NOT IN ('stored', 'branched') THEN
        DELETE FROM checkpoint_writes WHERE thread_id = thread AND checkpoint_ns = ns AND checkpoint_id = id;
    ELSE
        INSERT INTO charm_checkpoints VALUES (
            thread, ns, id, unit ->> 'run', root, unit ->> 'device', (unit ->> 'at')::double precision,
            substring(payload FROM (unit #>> '{exact,0}')::integer + 1 FOR (unit #>> '{exact,1}')::integer),
            substring(payload FROM (unit #>> '{exact,2}')::integer + 1 FOR (unit #>> '{exact,3}')::integer)
        );
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT thread, ns, b ->> 0, b ->> 1, b ->> 2, charm_value_v1(thread, ns, b, payload)
        FROM jsonb_array_elements(unit -> 'blobs') b
        ON CONFLICT DO NOTHING;
        -- Other savers keep plain values in each checkpoint. Of those that did not change, this one has only the version.
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT thread, ns, v.key, versions ->> v.key, 'json', convert_to(v.value::text, 'UTF8')
        FROM checkpoints k, charm_inline_v1(k.checkpoint) v
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = parent
        AND k.checkpoint -> 'channel_versions' ->> v.key = versions ->> v.key
        ON CONFLICT DO NOTHING;
        INSERT INTO checkpoints
            (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        VALUES (thread, ns, id, parent, unit -> 'checkpoint', unit -> 'metadata');
        IF status = 'stored' THEN
            PERFORM charm_move_head_v1(
                thread, ns, id, unit ->> 'device', (unit ->> 'at')::double precision
            );
        END IF;
    END IF;
    RETURN json_build_object(
        'status', status,
        'head', CASE WHEN status IN ('conflict', 'orphaned', 'branched') THEN charm_head_v1(head) END,
        'deleted_at', CASE WHEN status = 'deleted' THEN dead.deleted_at END
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
    SELECT deleted_at INTO died_at FROM charm_threads WHERE thread_id = thread AND id <= deleted_through;
    IF FOUND AND NOT is_stored THEN
        RETURN json_build_object('status', 'deleted', 'deleted_at', died_at);
    END IF;
    IF (unit ->> 'fenced')::boolean THEN
        SELECT * INTO head FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
        IF is_stored AND head.checkpoint_id IS DISTINCT FROM id OR EXISTS (
            SELECT FROM jsonb_array_elements(unit -> 'writes') w CROSS JOIN LATERAL (
                SELECT * FROM checkpoint_writes s
                WHERE s.thread_id = thread AND s.checkpoint_ns = ns AND s.checkpoint_id = id
                AND s.task_id = w ->> 0 AND s.idx = (w ->> 1)::integer LIMIT 1
            ) s
            WHERE s.idx >= 0 AND (s.channel, s.task_path, s.type, s.blob) IS DISTINCT FROM (
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
    FROM jsonb_array_elements(unit -> 'writes') w WHERE (w ->> 1)::integer >= 0
    ON CONFLICT DO NOTHING;
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, task_path, type, blob)
    SELECT thread, ns, id, w ->> 0, (w ->> 1)::integer, w ->> 2, w ->> 3, w ->> 4,
        substring(payload FROM (w ->> 5)::integer + 1 FOR (w ->> 6)::integer)
    FROM jsonb_array_elements(unit -> 'writes') w WHERE (w ->> 1)::integer < 0
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE
        SET channel = excluded.channel, task_path = excluded.task_path,
            type = excluded.type, blob = excluded.blob;
    RETURN json_build_object('status', 'stored');
END
$$;

CREATE OR REPLACE FUNCTION charm_write_v1(units jsonb, payload bytea) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    unit jsonb;
    outcomes json[] := '{}';
BEGIN
    -- In one order for all, so that batches with threads in common do not wait for each other in a circle.
    PERFORM charm_lock_v1(thread) FROM (
        SELECT DISTINCT (u ->> 'thread') COLLATE "C" AS thread FROM jsonb_array_elements(units) u ORDER BY 1
    ) threads;
    FOR unit IN SELECT u FROM jsonb_array_elements(units) WITH ORDINALITY e (u, n) ORDER BY n LOOP
        outcomes := outcomes || CASE WHEN unit ? 'checkpoint'
            THEN charm_put_checkpoint_v1(unit, payload) ELSE charm_put_writes_v1(unit, payload) END;
    END LOOP;
    RETURN array_to_json(outcomes);
END
$$;
