-- Rows are looked up one by one (LATERAL with a LIMIT or OFFSET): a join may be planned as a scan of a whole table, since
-- how many rows an array or a JSON holds is only guessed. COLLATE "default" is that of LangGraph's columns: a value that
-- comes from a column of ours would bring "C" with it, and their indexes could not be used.
--
-- Reads answer one JSON and one payload. Pieces of the payload stand in the order in which the JSON tells their sizes:
-- each entry's exact body and metadata, then blobs, then writes. All are STABLE: everything read is of one moment.

-- Checkpoints by key, in the order of the keys. A blob that several of them have is sent once. A write is [place of its
-- entry, kind, task_id, idx, channel, task_path, type, size]; kind "s" is one of the parent's, for old formats.
CREATE OR REPLACE FUNCTION charm_entries_v1(
    threads text[], namespaces text[], ids text[], with_values boolean,
    OUT info json, OUT payload bytea
)
-- Else it would be planned anew for each call, which takes as long as the call.
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    entries json;
    blobs json;
    writes json;
    exact bytea;
    blob_data bytea;
    write_data bytea;
BEGIN
    SELECT
        json_agg(json_build_object(
            'thread', k.thread_id, 'ns', k.checkpoint_ns, 'id', k.checkpoint_id, 'parent', k.parent_checkpoint_id,
            'checkpoint', CASE WHEN with_values THEN k.checkpoint ELSE k.checkpoint - 'channel_values' END,
            'metadata', k.metadata, 'run', c.run_id, 'root', c.root_id, 'device', c.device, 'at', c.created_at,
            'body', octet_length(c.body), 'exact_metadata', octet_length(c.metadata),
            'head', (SELECT h.checkpoint_id FROM charm_heads h WHERE h.thread_id = e.t AND h.checkpoint_ns = e.n)
        ) ORDER BY e.place),
        string_agg(coalesce(c.body, '') || coalesce(c.metadata, ''), '' ORDER BY e.place)
    INTO entries, exact
    FROM unnest(threads COLLATE "default", namespaces COLLATE "default", ids COLLATE "default") WITH ORDINALITY e (t, n, i, place)
    CROSS JOIN LATERAL (
        SELECT * FROM charm_checkpoints c
        WHERE c.thread_id = e.t AND c.checkpoint_ns = e.n AND c.checkpoint_id = e.i LIMIT 1
    ) c
    CROSS JOIN LATERAL (
        SELECT * FROM checkpoints k
        WHERE k.thread_id = e.t AND k.checkpoint_ns = e.n AND k.checkpoint_id = e.i LIMIT 1
    ) k;

    IF with_values THEN
        SELECT
            json_agg(json_build_array(
                b.thread_id, b.checkpoint_ns, b.channel, b.version, b.type, coalesce(octet_length(b.blob), 0)
            )),
            string_agg(b.blob, '')
        INTO blobs, blob_data
        FROM (
            SELECT DISTINCT e.t, e.n, v.key, v.value
            FROM unnest(threads COLLATE "default", namespaces COLLATE "default", ids COLLATE "default") e (t, n, i)
            CROSS JOIN LATERAL (
                SELECT k.checkpoint -> 'channel_versions' AS versions FROM checkpoints k
                WHERE k.thread_id = e.t AND k.checkpoint_ns = e.n AND k.checkpoint_id = e.i LIMIT 1
            ) k
            CROSS JOIN jsonb_each_text(k.versions) v
        ) wanted
        CROSS JOIN LATERAL (
            SELECT * FROM checkpoint_blobs b
            WHERE b.thread_id = wanted.t AND b.checkpoint_ns = wanted.n
            AND b.channel = wanted.key AND b.version = wanted.value AND b.type <> 'empty' LIMIT 1
        ) b;

        SELECT
            json_agg(json_build_array(
                w.place, w.kind, w.task_id, w.idx, w.channel, w.task_path, w.type, octet_length(w.blob)
            )),
            string_agg(w.blob, '')
        INTO writes, write_data
        FROM (
            SELECT e.place - 1 AS place, wanted.kind, w.*
            FROM unnest(threads COLLATE "default", namespaces COLLATE "default", ids COLLATE "default") WITH ORDINALITY e (t, n, i, place)
            CROSS JOIN LATERAL (
                SELECT 'w' AS kind, e.i AS id
                UNION ALL
                SELECT 's', k.parent_checkpoint_id FROM checkpoints k
                WHERE k.thread_id = e.t AND k.checkpoint_ns = e.n AND k.checkpoint_id = e.i
                AND coalesce((k.checkpoint ->> 'v')::numeric, 1) < 4
            ) wanted
            CROSS JOIN LATERAL (
                SELECT * FROM checkpoint_writes w
                WHERE w.thread_id = e.t AND w.checkpoint_ns = e.n AND w.checkpoint_id = wanted.id OFFSET 0
            ) w
            ORDER BY e.place, w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx
        ) w;
    END IF;
    info := json_build_object('entries', entries, 'blobs', blobs, 'writes', writes);
    payload := coalesce(exact, '') || coalesce(blob_data, '') || coalesce(write_data, '');
END
$$;

-- One checkpoint, or the head for a null id.
CREATE OR REPLACE FUNCTION charm_read_v1(thread text, ns text, id text, OUT info json, OUT payload bytea)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    head text;
    through text;
    found record;
BEGIN
    SELECT h.checkpoint_id INTO head FROM charm_heads h WHERE h.thread_id = thread AND h.checkpoint_ns = ns;
    SELECT t.deleted_through INTO through FROM charm_threads t WHERE t.thread_id = thread;
    SELECT * INTO found FROM charm_entries_v1(ARRAY[thread], ARRAY[ns], ARRAY[coalesce(id, head)], true);
    info := json_build_object('head', head, 'deleted_through', through, 'found', found.info);
    payload := found.payload;
END
$$;

-- How many bytes the values of a checkpoint have.
CREATE OR REPLACE FUNCTION charm_size_v1(thread text, ns text, id text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT sum(octet_length(b.blob))
    FROM checkpoints k
    CROSS JOIN jsonb_each_text(k.checkpoint -> 'channel_versions') v
    CROSS JOIN LATERAL (
        SELECT b.blob FROM checkpoint_blobs b
        WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = v.key AND b.version = v.value LIMIT 1
    ) b
    WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = id
$$;

-- A page of checkpoints by descending (checkpoint_id, thread_id, checkpoint_ns): at most `limit`, and not many more
-- bytes of values than `max_bytes`.
CREATE OR REPLACE FUNCTION charm_scan_v1(query jsonb, OUT info json, OUT payload bytea)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    page record;
    found record;
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
    SELECT * INTO found FROM charm_entries_v1(
        page.threads[:last], page.namespaces[:last], page.ids[:last], (query ->> 'values')::boolean
    );
    info := json_build_object('more', page.number > last, 'found', found.info);
    payload := found.payload;
END
$$;

-- Up the parent chain, as far as channels are without a value. A blob is [place of its ancestor, channel, version, type,
-- size], a write [place, task_id, idx, channel, task_path, type, size], an inline value [place, channel, version, value].
CREATE OR REPLACE FUNCTION charm_lineage_v1(
    thread text, ns text, id text, channels text[], OUT info json, OUT payload bytea
)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    at text := coalesce(
        id, (SELECT h.checkpoint_id FROM charm_heads h WHERE h.thread_id = thread AND h.checkpoint_ns = ns)
    );
    ancestor record;
    place integer := 0;
    steps integer := 0;
    most_steps integer;
    blobs json[] := '{}';
    writes json[] := '{}';
    inline json[] := '{}';
    ids text[] := '{}';
    blob_data bytea[] := '{}';
    write_data bytea[] := '{}';
    seeded text[];
    piece record;
BEGIN
    SELECT k.parent_checkpoint_id INTO at FROM checkpoints k
    WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = at;
    WHILE at IS NOT NULL AND channels <> '{}' LOOP
        SELECT k.parent_checkpoint_id, k.checkpoint -> 'channel_versions' AS versions,
            k.checkpoint -> 'channel_values' AS plain
        INTO ancestor FROM checkpoints k
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = at;
        EXIT WHEN NOT FOUND;
        seeded := '{}';
        FOR piece IN
            SELECT w.* FROM checkpoint_writes w
            WHERE w.thread_id = thread AND w.checkpoint_ns = ns AND w.checkpoint_id = at AND w.channel = ANY (channels)
            ORDER BY w.task_path COLLATE "C", w.task_id COLLATE "C", w.idx
        LOOP
            writes := writes || json_build_array(
                place, piece.task_id, piece.idx, piece.channel, piece.task_path, piece.type, octet_length(piece.blob)
            );
            write_data := write_data || piece.blob;
        END LOOP;
        FOR piece IN
            SELECT c.channel, b.version, b.type, b.blob, ancestor.plain -> c.channel AS plain,
                ancestor.versions ->> c.channel AS plain_version
            FROM unnest(channels) c (channel) LEFT JOIN LATERAL (
                SELECT * FROM checkpoint_blobs b
                WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = c.channel
                AND b.version = ancestor.versions ->> c.channel AND b.type <> 'empty' LIMIT 1
            ) b ON true
            WHERE b.type IS NOT NULL OR jsonb_typeof(ancestor.plain -> c.channel) <> 'null'
        LOOP
            seeded := seeded || piece.channel;
            IF piece.type IS NULL THEN
                inline := inline || json_build_array(place, piece.channel, piece.plain_version, piece.plain);
            ELSE
                blobs := blobs || json_build_array(
                    place, piece.channel, piece.version, piece.type, coalesce(octet_length(piece.blob), 0)
                );
                blob_data := blob_data || coalesce(piece.blob, '');
            END IF;
        END LOOP;
        channels := ARRAY(SELECT c FROM unnest(channels) c WHERE c <> ALL (seeded));
        ids := ids || at;
        place := place + 1;
        at := ancestor.parent_checkpoint_id;
        -- A forged cycle of parents ends.
        steps := steps + 1;
        IF steps = 1000 THEN
            SELECT count(*) INTO most_steps FROM charm_checkpoints c
            WHERE c.thread_id = thread AND c.checkpoint_ns = ns;
        END IF;
        EXIT WHEN steps > most_steps;
    END LOOP;
    info := json_build_object('ids', ids, 'blobs', blobs, 'writes', writes, 'inline', inline);
    payload := coalesce((SELECT string_agg(p, '' ORDER BY n) FROM unnest(blob_data) WITH ORDINALITY u (p, n)), '')
        || coalesce((SELECT string_agg(p, '' ORDER BY n) FROM unnest(write_data) WITH ORDINALITY u (p, n)), '');
END
$$;

-- Threads by descending (updated_at, thread_id), or the named one.
CREATE OR REPLACE FUNCTION charm_threads_v1(
    most integer, after_at double precision, after_thread text, only_thread text
) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    ids text[];
BEGIN
    IF only_thread IS NOT NULL THEN
        ids := ARRAY[only_thread];
    ELSE
        ids := ARRAY(
            SELECT t.thread_id FROM charm_threads t
            WHERE t.updated_at IS NOT NULL
            AND (t.updated_at, t.thread_id) < (coalesce(after_at, 'infinity'), coalesce(after_thread, ''))
            ORDER BY t.updated_at DESC, t.thread_id DESC LIMIT most
        );
    END IF;
    RETURN (
        SELECT json_agg(json_build_object(
            'thread', t.thread_id, 'created_at', t.created_at, 'updated_at', t.updated_at,
            'heads', (
                SELECT json_agg(json_build_array(h.checkpoint_ns, h.checkpoint_id, h.device, h.moved_at)
                    ORDER BY h.checkpoint_ns)
                FROM charm_heads h WHERE h.thread_id = e.id
            ),
            'pending', (
                SELECT json_agg(DISTINCT w.channel) FROM checkpoint_writes w
                WHERE w.thread_id = e.id AND w.checkpoint_ns = '' AND w.checkpoint_id = (
                    SELECT h.checkpoint_id FROM charm_heads h WHERE h.thread_id = e.id AND h.checkpoint_ns = ''
                )
            )
        ) ORDER BY e.place)
        FROM unnest(ids) WITH ORDINALITY e (id, place)
        JOIN charm_threads t ON t.thread_id = e.id AND t.updated_at IS NOT NULL
        WHERE e.place <= most
    );
END
$$;
