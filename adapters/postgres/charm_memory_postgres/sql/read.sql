-- Rows are looked up one by one (LATERAL with a LIMIT or OFFSET): a join may be planned as a scan of a whole table, since
-- how many rows an array or a JSON holds is only guessed. COLLATE "default" is that of LangGraph's columns: a value that
-- comes from a column of ours would bring "C" with it, and their indexes could not be used.
--
-- The writes of a checkpoint are taken in the order of their table's key. Nobody needs that order, but as long as a table
-- was not analyzed, an index of all of a thread's writes seems as good as the key, and this tells the two apart.
--
-- Reads answer rows of (kind, fact, data), so that a value goes from its table to the client as it is. The first is of
-- the kind "info". All are STABLE: everything read is of one moment.

-- A checkpoint less the values that it keeps itself at versions that are `known`.
CREATE OR REPLACE FUNCTION charm_less_v1(checkpoint jsonb, known jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_set(checkpoint, '{channel_values}', coalesce(jsonb_object_agg(v.key, v.value), '{}'))
    FROM charm_inline_v1(checkpoint) v
    WHERE (known ->> v.key = checkpoint -> 'channel_versions' ->> v.key) IS NOT TRUE
$$;

-- Of a checkpoint that is no head: each "blob" of these `versions` that is packed, less those that are `known`.
CREATE OR REPLACE FUNCTION charm_packed_of_v1(thread text, ns text, versions jsonb, known jsonb)
RETURNS TABLE (kind text, fact json, data bytea)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM charm_packed p WHERE p.thread_id = thread AND p.checkpoint_ns = ns) THEN
        RETURN;
    END IF;
    RETURN QUERY
        SELECT 'blob', json_build_array(p.channel, p.version, p.type, NULL),
            charm_unpacked_v1(thread, ns, p.channel, p.version)
        FROM jsonb_each_text(versions) v CROSS JOIN LATERAL (
            SELECT * FROM charm_packed p
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = v.key AND p.version = v.value LIMIT 1
        ) p
        WHERE (known ->> v.key = v.value) IS NOT TRUE AND NOT EXISTS (
            SELECT FROM checkpoint_blobs b
            WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = v.key AND b.version = v.value
        );
END
$$;

-- Checkpoints by key, in the order of the keys, each with what belongs to it behind it: "metadata" as it was written,
-- where that is not the same, every "blob" ([channel, version, type, xid]), and every "write" and, for old formats,
-- "send" ([task_id, idx, channel, task_path, type]). The `xid` is of the transaction that stored it. Where `held` has
-- [version, xid] for a channel, a "held" stands for the same blob without its data.
-- `known` maps places to channels and versions whose values are left out; so
-- are blobs of the versions that the namespace's checkpoint before it in the answer has.
CREATE OR REPLACE FUNCTION charm_entries_v1(
    threads text[], namespaces text[], ids text[], with_values boolean, known jsonb, held jsonb
) RETURNS TABLE (kind text, fact json, data bytea)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    thread text COLLATE "default";
    ns text COLLATE "default";
    id text COLLATE "default";
    place text;
    sent jsonb := known;
    step record;
BEGIN
    FOR n IN 1 .. coalesce(cardinality(ids), 0) LOOP
        thread := threads[n];
        ns := namespaces[n];
        id := ids[n];
        place := json_build_array(thread, ns);
        SELECT k.parent_checkpoint_id AS parent, k.checkpoint, k.metadata, c.metadata AS exact_metadata, c.body,
            c.run_id, c.root_id, c.device, c.created_at, (
                SELECT h.checkpoint_id FROM charm_heads h WHERE h.thread_id = thread AND h.checkpoint_ns = ns
            ) AS head
        INTO step
        FROM charm_checkpoints c CROSS JOIN LATERAL (
            SELECT * FROM checkpoints k
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = id LIMIT 1
        ) k
        WHERE c.thread_id = thread AND c.checkpoint_ns = ns AND c.checkpoint_id = id;
        CONTINUE WHEN NOT FOUND;

        kind := 'checkpoint';
        fact := json_build_object(
            'thread', thread, 'ns', ns, 'id', id, 'parent', step.parent, 'metadata', step.metadata,
            'checkpoint', CASE
                WHEN NOT with_values THEN step.checkpoint - 'channel_values'
                WHEN known ? place THEN charm_less_v1(step.checkpoint, known -> place)
                ELSE step.checkpoint
            END,
            'run', step.run_id, 'root', step.root_id, 'device', step.device, 'at', step.created_at,
            'head', step.head
        );
        data := step.body;
        RETURN NEXT;
        IF step.exact_metadata IS NOT NULL THEN
            RETURN QUERY SELECT 'metadata', NULL::json, step.exact_metadata;
        END IF;
        CONTINUE WHEN NOT with_values;

        RETURN QUERY
            SELECT CASE WHEN b.is_held THEN 'held' ELSE 'blob' END,
                json_build_array(b.channel, b.version, b.type, b.xid), CASE WHEN b.is_held THEN NULL ELSE b.blob END
            FROM jsonb_each_text(step.checkpoint -> 'channel_versions') v CROSS JOIN LATERAL (
                SELECT b.*, b.xmin::text AS xid,
                    held -> b.channel = jsonb_build_array(b.version, b.xmin::text) AS is_held
                FROM checkpoint_blobs b
                WHERE b.thread_id = thread AND b.checkpoint_ns = ns
                AND b.channel = v.key AND b.version = v.value AND b.type <> 'empty' LIMIT 1
            ) b
            WHERE (sent -> place ->> v.key = v.value) IS NOT TRUE;
        IF id IS DISTINCT FROM step.head THEN
            RETURN QUERY SELECT * FROM charm_packed_of_v1(thread, ns, step.checkpoint -> 'channel_versions', sent -> place);
        END IF;
        RETURN QUERY
            SELECT 'write', json_build_array(w.task_id, w.idx, w.channel, w.task_path, w.type), w.blob
            FROM (
                SELECT * FROM checkpoint_writes w
                WHERE w.thread_id = thread AND w.checkpoint_ns = ns AND w.checkpoint_id = id
                ORDER BY w.task_id, w.idx OFFSET 0
            ) w
            ORDER BY w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx;
        IF coalesce((step.checkpoint ->> 'v')::numeric, 1) < 4 THEN
            RETURN QUERY
                SELECT 'send', json_build_array(w.task_id, w.idx, w.channel, w.task_path, w.type), w.blob
                FROM (
                    SELECT * FROM checkpoint_writes w
                    WHERE w.thread_id = thread AND w.checkpoint_ns = ns AND w.checkpoint_id = step.parent
                    ORDER BY w.task_id, w.idx OFFSET 0
                ) w
                ORDER BY w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx;
        END IF;
        sent := sent || jsonb_build_object(place, step.checkpoint -> 'channel_versions');
    END LOOP;
END
$$;

-- One checkpoint, or the head for a null id.
CREATE OR REPLACE FUNCTION charm_read_v1(thread text, ns text, id text, held jsonb DEFAULT NULL)
RETURNS TABLE (kind text, fact json, data bytea)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    head text;
    through text;
BEGIN
    SELECT h.checkpoint_id INTO head FROM charm_heads h WHERE h.thread_id = thread AND h.checkpoint_ns = ns;
    SELECT t.deleted_through INTO through FROM charm_threads t WHERE t.thread_id = thread;
    kind := 'info';
    fact := json_build_object('head', head, 'deleted_through', through);
    RETURN NEXT;
    RETURN QUERY SELECT * FROM charm_entries_v1(ARRAY[thread], ARRAY[ns], ARRAY[coalesce(id, head)], true, '{}', held);
END
$$;

-- A thread's live heads, each [ns, id, device, moved_at, mark of its pending writes], and the checkpoints of those that
-- are not as in `held`, which maps namespaces to [[id, mark], …], the newest first.
CREATE OR REPLACE FUNCTION charm_pull_v1(thread text, held jsonb)
RETURNS TABLE (kind text, fact json, data bytea)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    live record;
    tombstone json;
BEGIN
    WITH RECURSIVE names AS (
        (SELECT h.* FROM charm_heads h WHERE h.thread_id = thread ORDER BY h.checkpoint_ns LIMIT 1)
        UNION ALL
        -- From name to name. Those of tasks ("node:task") may be thousands, most of them done with: passed over.
        SELECT next.* FROM names n CROSS JOIN LATERAL (
            SELECT h.* FROM charm_heads h
            WHERE h.thread_id = thread AND h.checkpoint_ns >= CASE
                WHEN n.checkpoint_ns LIKE '%:%' THEN split_part(n.checkpoint_ns, ':', 1) || ';'
                ELSE n.checkpoint_ns || chr(1)
            END
            ORDER BY h.checkpoint_ns LIMIT 1
        ) next
    ), heads AS (
        SELECT * FROM names WHERE checkpoint_ns NOT LIKE '%:%'
        UNION ALL
        SELECT h.* FROM names root
        CROSS JOIN LATERAL (
            SELECT * FROM charm_checkpoints c
            WHERE c.thread_id = thread AND c.root_id = root.checkpoint_id AND c.checkpoint_ns LIKE '%:%' OFFSET 0
        ) c
        CROSS JOIN LATERAL (
            SELECT * FROM charm_heads h WHERE h.thread_id = thread AND h.checkpoint_ns = c.checkpoint_ns LIMIT 1
        ) h
        WHERE root.checkpoint_ns = '' AND h.checkpoint_id = c.checkpoint_id
    ), marked AS (
        SELECT h.*, w.mark,
            (held -> h.checkpoint_ns) @> jsonb_build_array(jsonb_build_array(h.checkpoint_id, w.mark)) AS is_held
        FROM heads h CROSS JOIN LATERAL (
            SELECT coalesce(encode(sha256(string_agg(
                sha256(w.blob) || convert_to(json_build_array(
                    w.task_path, w.task_id, w.idx, w.channel, w.type
                )::text, 'UTF8'), ''
                ORDER BY w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx
            )), 'base64'), '') AS mark
            FROM (
                SELECT * FROM checkpoint_writes w
                WHERE w.thread_id = thread AND w.checkpoint_ns = h.checkpoint_ns COLLATE "default"
                AND w.checkpoint_id = h.checkpoint_id COLLATE "default"
                ORDER BY w.task_id, w.idx OFFSET 0
            ) w
        ) w
    ), differing AS (
        SELECT * FROM marked WHERE is_held IS NOT TRUE
    )
    SELECT
        (
            SELECT json_agg(json_build_array(checkpoint_ns, checkpoint_id, device, moved_at, mark) ORDER BY checkpoint_ns)
            FROM marked
        ) AS heads,
        array_agg(thread) AS threads,
        array_agg(checkpoint_ns ORDER BY checkpoint_ns) AS namespaces,
        array_agg(checkpoint_id ORDER BY checkpoint_ns) AS ids,
        jsonb_object_agg(json_build_array(thread, checkpoint_ns)::text, (
            SELECT k.versions FROM jsonb_array_elements(held -> d.checkpoint_ns) WITH ORDINALITY m (mark, place)
            CROSS JOIN LATERAL (
                SELECT k.checkpoint -> 'channel_versions' AS versions FROM checkpoints k
                WHERE k.thread_id = thread AND k.checkpoint_ns = d.checkpoint_ns COLLATE "default"
                AND k.checkpoint_id = m.mark ->> 0 LIMIT 1
            ) k
            ORDER BY m.place LIMIT 1
        )) AS known
    INTO live FROM differing d;

    SELECT json_build_array(t.deleted_at, t.deleted_through) INTO tombstone FROM charm_threads t
    WHERE t.thread_id = thread AND t.deleted_through IS NOT NULL;
    kind := 'info';
    fact := json_build_object('heads', live.heads, 'tombstone', tombstone);
    RETURN NEXT;
    RETURN QUERY SELECT * FROM charm_entries_v1(live.threads, live.namespaces, live.ids, true, live.known, NULL);
END
$$;

-- How many bytes the values of a checkpoint have.
CREATE OR REPLACE FUNCTION charm_size_v1(thread text, ns text, id text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT sum(b.size)
    FROM checkpoints k
    CROSS JOIN jsonb_each_text(k.checkpoint -> 'channel_versions') v
    CROSS JOIN LATERAL (
        (
            SELECT octet_length(b.blob) AS size FROM checkpoint_blobs b
            WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = v.key AND b.version = v.value LIMIT 1
        ) UNION ALL (
            SELECT p.size FROM charm_packed p
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = v.key AND p.version = v.value LIMIT 1
        )
        LIMIT 1
    ) b
    WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = id
$$;

-- A page of checkpoints by descending (checkpoint_id, thread_id, checkpoint_ns): at most `limit`, and not many more
-- bytes of values than `max_bytes`.
CREATE OR REPLACE FUNCTION charm_scan_v1(query jsonb) RETURNS TABLE (kind text, fact json, data bytea)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    page record;
    last integer;
BEGIN
    -- Built from what is asked, so that it is planned for just that. Nothing of the query's texts is put in.
    EXECUTE format(
        $sql$
            SELECT array_agg(thread_id) AS threads, array_agg(checkpoint_ns) AS namespaces,
                array_agg(checkpoint_id) AS ids, count(*) AS number
            FROM (
                SELECT thread_id, checkpoint_ns, checkpoint_id FROM charm_checkpoints
                WHERE true %s %s %s %s %s %s
                ORDER BY checkpoint_id DESC, thread_id DESC, checkpoint_ns DESC
                LIMIT ($1 ->> 'limit')::integer + 1
            ) keys
        $sql$,
        CASE WHEN query ? 'thread' THEN $sql$AND thread_id = $1 ->> 'thread'$sql$ END,
        CASE WHEN query ? 'ns' THEN $sql$AND checkpoint_ns = $1 ->> 'ns'$sql$ END,
        CASE WHEN query ? 'id' THEN $sql$AND checkpoint_id = $1 ->> 'id'$sql$ END,
        CASE WHEN query ? 'before' THEN $sql$AND checkpoint_id < $1 ->> 'before'$sql$ END,
        CASE WHEN query ? 'runs'
            THEN $sql$AND run_id = ANY (ARRAY(SELECT jsonb_array_elements_text($1 -> 'runs')))$sql$ END,
        CASE WHEN query ? 'after' THEN $sql$
            AND (checkpoint_id, thread_id, checkpoint_ns)
                < ($1 #>> '{after,0}', $1 #>> '{after,1}', $1 #>> '{after,2}')$sql$ END
    ) INTO page USING query;

    last := least(page.number, (query ->> 'limit')::integer);
    IF (query ->> 'values')::boolean AND last > 1 THEN
        SELECT greatest(1, count(*) FILTER (WHERE coalesce(so_far, 0) <= (query ->> 'max_bytes')::bigint)) INTO last
        FROM (
            SELECT sum(charm_size_v1(e.t, e.n, e.i)) OVER (ORDER BY e.place) AS so_far
            FROM unnest(
                page.threads[:last] COLLATE "default", page.namespaces[:last] COLLATE "default",
                page.ids[:last] COLLATE "default"
            ) WITH ORDINALITY e (t, n, i, place)
        ) sizes;
    END IF;
    kind := 'info';
    fact := json_build_object('entries', last, 'more', page.number > last);
    RETURN NEXT;
    RETURN QUERY SELECT * FROM charm_entries_v1(
        page.threads[:last], page.namespaces[:last], page.ids[:last], (query ->> 'values')::boolean, '{}', NULL
    );
END
$$;

-- Up the parent chain, as far as channels are without a value: each "ancestor" with what belongs to it behind it, every
-- "write" and every "blob" as above, and "inline" values ([channel, version, value]).
CREATE OR REPLACE FUNCTION charm_lineage_v1(thread text, ns text, id text, channels text[])
RETURNS TABLE (kind text, fact json, data bytea)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    at text := coalesce(
        id, (SELECT h.checkpoint_id FROM charm_heads h WHERE h.thread_id = thread AND h.checkpoint_ns = ns)
    );
    ancestor record;
    steps integer := 0;
    most_steps integer;
    seeded text[];
    piece record;
    is_packed CONSTANT boolean := EXISTS (
        SELECT FROM charm_packed p WHERE p.thread_id = thread AND p.checkpoint_ns = ns
    );
BEGIN
    kind := 'info';
    RETURN NEXT;
    SELECT k.parent_checkpoint_id INTO at FROM checkpoints k
    WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = at;
    WHILE at IS NOT NULL AND channels <> '{}' LOOP
        SELECT k.parent_checkpoint_id, k.checkpoint -> 'channel_versions' AS versions,
            k.checkpoint -> 'channel_values' AS plain
        INTO ancestor FROM checkpoints k
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = at;
        EXIT WHEN NOT FOUND;
        kind := 'ancestor';
        fact := to_json(at);
        data := NULL;
        RETURN NEXT;
        RETURN QUERY
            SELECT 'write', json_build_array(w.task_id, w.idx, w.channel, w.task_path, w.type), w.blob
            FROM (
                SELECT * FROM checkpoint_writes w
                WHERE w.thread_id = thread AND w.checkpoint_ns = ns AND w.checkpoint_id = at
                ORDER BY w.task_id, w.idx OFFSET 0
            ) w
            WHERE w.channel = ANY (channels)
            ORDER BY w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx;
        seeded := '{}';
        FOR piece IN
            SELECT c.channel, b.version, b.type, b.blob, ancestor.plain -> c.channel AS plain,
                ancestor.versions ->> c.channel AS plain_version
            FROM unnest(channels) c (channel) LEFT JOIN LATERAL (
                (
                    SELECT b.version, b.type, b.blob FROM checkpoint_blobs b
                    WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = c.channel
                    AND b.version = ancestor.versions ->> c.channel AND b.type <> 'empty' LIMIT 1
                ) UNION ALL (
                    SELECT p.version, p.type, charm_unpacked_v1(thread, ns, p.channel, p.version) FROM charm_packed p
                    WHERE is_packed AND p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = c.channel
                    AND p.version = ancestor.versions ->> c.channel LIMIT 1
                )
                LIMIT 1
            ) b ON true
            WHERE b.type IS NOT NULL OR jsonb_typeof(ancestor.plain -> c.channel) <> 'null'
        LOOP
            seeded := seeded || piece.channel;
            IF piece.type IS NULL THEN
                kind := 'inline';
                fact := json_build_array(piece.channel, piece.plain_version, piece.plain);
            ELSE
                kind := 'blob';
                fact := json_build_array(piece.channel, piece.version, piece.type, NULL);
            END IF;
            data := piece.blob;
            RETURN NEXT;
        END LOOP;
        channels := ARRAY(SELECT c FROM unnest(channels) c WHERE c <> ALL (seeded));
        at := ancestor.parent_checkpoint_id;
        -- A forged cycle of parents ends.
        steps := steps + 1;
        IF steps = 1000 THEN
            SELECT count(*) INTO most_steps FROM charm_checkpoints c
            WHERE c.thread_id = thread AND c.checkpoint_ns = ns;
        END IF;
        EXIT WHEN steps > most_steps;
    END LOOP;
END
$$;

-- By [namespace, id, bytes] what is stored for each checkpoint of a thread: each value once, with the greatest id that has
-- it.
CREATE OR REPLACE FUNCTION charm_sizes_v1(thread text) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH steps AS MATERIALIZED (
        SELECT k.checkpoint_ns AS ns, k.checkpoint_id COLLATE "C" AS id, k.checkpoint -> 'channel_versions' AS versions,
            pg_column_size(k.checkpoint) + pg_column_size(k.metadata) AS size
        FROM checkpoints k WHERE k.thread_id = thread
    ), named AS (
        SELECT s.ns, v.key AS channel, v.value AS version, max(s.id) AS id
        FROM steps s CROSS JOIN jsonb_each_text(s.versions) v GROUP BY 1, 2, 3
    ), stored AS (
        SELECT s.ns, s.id, s.size FROM steps s
        UNION ALL
        SELECT c.checkpoint_ns, c.checkpoint_id, coalesce(pg_column_size(c.body), 0) + coalesce(pg_column_size(c.metadata), 0)
        FROM charm_checkpoints c WHERE c.thread_id = thread
        UNION ALL
        SELECT n.ns, n.id, pg_column_size(b.blob) FROM named n JOIN checkpoint_blobs b
            ON b.checkpoint_ns = n.ns AND b.channel = n.channel AND b.version = n.version
        WHERE b.thread_id = thread AND b.blob IS NOT NULL
        UNION ALL
        SELECT n.ns, n.id, pg_column_size(p.data) FROM named n JOIN charm_packed p
            ON p.checkpoint_ns = n.ns AND p.channel = n.channel AND p.version = n.version
        WHERE p.thread_id = thread
        UNION ALL
        SELECT s.ns, s.id, pg_column_size(w.blob) FROM steps s JOIN checkpoint_writes w
            ON w.checkpoint_ns = s.ns AND w.checkpoint_id = s.id
        WHERE w.thread_id = thread
    )
    SELECT json_agg(json_build_array(e.ns, e.id, e.size))
    FROM (SELECT s.ns, s.id, sum(s.size) AS size FROM stored s GROUP BY s.ns, s.id) e
$$;
