-- What threads are found by: recency, status, and labels (the metadata of the root graph's head).
-- `charm_threads` says it of each thread; whatever changes a head or what waits at it keeps that right.

-- "interrupted", "failed" or "idle", by the pending writes of a checkpoint of the root graph.
CREATE OR REPLACE FUNCTION charm_status_v1(thread text, id text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    of_thread CONSTANT text COLLATE "default" := thread;
    of_id CONSTANT text COLLATE "default" := id;
BEGIN
    RETURN coalesce((
        SELECT CASE WHEN w.channel = '__interrupt__' THEN 'interrupted' ELSE 'failed' END FROM (
            SELECT w.channel FROM checkpoint_writes w
            WHERE w.thread_id = of_thread AND w.checkpoint_ns = '' AND w.checkpoint_id = of_id
            AND w.channel IN ('__interrupt__', '__error__')
            ORDER BY w.task_id, w.idx OFFSET 0
        ) w
        ORDER BY w.channel DESC LIMIT 1
    ), 'idle');
END
$$;

-- The texts, whole numbers and booleans at the top of a checkpoint's metadata; null if there are none. What tells of the
-- one step is left out, and so is what is too long, or beyond 64 bits.
CREATE OR REPLACE FUNCTION charm_labels_of_v1(metadata jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF jsonb_typeof(metadata) <> 'object' OR metadata - '{source,step,parents,writes}'::text[] = '{}' THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT jsonb_object_agg(e.key, e.value) FROM jsonb_each(metadata - '{source,step,parents,writes}'::text[]) e
        WHERE length(e.key) <= 200 AND CASE jsonb_typeof(e.value)
            WHEN 'string' THEN length(e.value #>> '{}') <= 200
            WHEN 'boolean' THEN true
            -- JSONB keeps the ".0" of a float.
            WHEN 'number' THEN e.value::text ~ '^-?[0-9]+$'
                AND e.value::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
        END
    );
END
$$;

-- The labels of a checkpoint of the root graph, null if it has none or is not stored.
CREATE OR REPLACE FUNCTION charm_labels_at_v1(thread text, id text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    of_thread CONSTANT text COLLATE "default" := thread;
    of_id CONSTANT text COLLATE "default" := id;
BEGIN
    RETURN (
        SELECT coalesce(c.labels, charm_labels_of_v1(k.metadata))
        FROM charm_checkpoints c CROSS JOIN LATERAL (
            SELECT k.metadata FROM checkpoints k
            WHERE k.thread_id = of_thread AND k.checkpoint_ns = '' AND k.checkpoint_id = of_id LIMIT 1
        ) k
        WHERE c.thread_id = of_thread AND c.checkpoint_ns = '' AND c.checkpoint_id = of_id
    );
END
$$;

-- What `charm_labels` knows a label by: 16 bytes, as names and texts are too long for an index.
CREATE OR REPLACE FUNCTION charm_label_v1(name text, value jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
    SELECT substring(sha256(convert_to(name || '=' || value::text, 'UTF8')) FOR 16)
$$;

-- Triggers without WHEN: such a condition is made ready anew for each statement, which takes longer than to call these.

CREATE OR REPLACE FUNCTION charm_thread_labelled() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    name text;
    value jsonb;
BEGIN
    IF OLD.labels IS NULL AND NEW.labels IS NULL
        OR OLD.labels = NEW.labels AND OLD.updated_at IS NOT DISTINCT FROM NEW.updated_at
    THEN
        RETURN NULL;
    END IF;
    -- One by one, by the whole key: never planned as a scan of the table.
    FOR name, value IN SELECT * FROM jsonb_each(OLD.labels) LOOP
        DELETE FROM charm_labels l
        WHERE l.label = charm_label_v1(name, value) AND l.updated_at = OLD.updated_at AND l.thread_id = OLD.thread_id;
    END LOOP;
    INSERT INTO charm_labels
    SELECT charm_label_v1(e.key, e.value), NEW.updated_at, NEW.thread_id FROM jsonb_each(NEW.labels) e;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER charm_changed AFTER INSERT OR UPDATE OR DELETE ON charm_threads
    FOR EACH ROW EXECUTE FUNCTION charm_thread_labelled();

-- Whoever's a pending write is.
CREATE OR REPLACE FUNCTION charm_status_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    write checkpoint_writes;
    becomes text;
BEGIN
    IF (OLD.channel IN ('__interrupt__', '__error__')) IS NOT TRUE
        AND (NEW.channel IN ('__interrupt__', '__error__')) IS NOT TRUE
    THEN
        RETURN NULL;
    END IF;
    write := coalesce(NEW, OLD);
    IF write.checkpoint_ns <> '' THEN
        RETURN NULL;
    END IF;
    becomes := CASE WHEN write.channel = '__interrupt__' THEN 'interrupted' ELSE 'failed' END;
    -- Before it is known which checkpoint is the head: one that is on its way has to see the write, or be seen here.
    PERFORM charm_lock_v1(write.thread_id);
    UPDATE charm_threads t SET status = charm_status_v1(write.thread_id, write.checkpoint_id)
    WHERE t.thread_id = write.thread_id
    AND (TG_OP <> 'INSERT' OR t.status NOT IN ('interrupted', becomes))
    AND EXISTS (
        SELECT FROM charm_heads h
        WHERE h.thread_id = write.thread_id AND h.checkpoint_ns = '' AND h.checkpoint_id = write.checkpoint_id
    );
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION charm_writes_truncated() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE charm_threads SET status = 'idle' WHERE status <> 'idle';
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER charm_changed AFTER INSERT OR UPDATE OR DELETE ON checkpoint_writes
    FOR EACH ROW EXECUTE FUNCTION charm_status_changed();
CREATE OR REPLACE TRIGGER charm_truncated AFTER TRUNCATE ON checkpoint_writes
    FOR EACH STATEMENT EXECUTE FUNCTION charm_writes_truncated();

-- Threads by descending (updated_at, thread_id), from behind `after` on; with a `status`, with all of `labels`, only one
-- `thread`.
--
-- Every page is a walk along indexes. Without labels: of each status the next ones. With labels: all lists that are asked
-- for (one of each label, one of the status) are in the same order, so whichever is behind jumps to where another is,
-- until all are at one thread. That takes as many jumps as the rarest of them has threads, at the most: a page by one
-- label, or by labels of which one says all, costs what the page is long.
CREATE OR REPLACE FUNCTION charm_threads_v1(query jsonb) RETURNS json
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    most CONSTANT integer := query ->> 'limit';
    statuses CONSTANT text[] := CASE
        WHEN query ? 'status' THEN ARRAY[query ->> 'status'] ELSE '{idle,interrupted,failed}'
    END;
    wanted CONSTANT jsonb := coalesce(query -> 'labels', '{}');
    tags CONSTANT bytea[] := ARRAY(SELECT charm_label_v1(e.key, e.value) FROM jsonb_each(wanted) e);
    at double precision := coalesce(query #>> '{after,0}', 'infinity');
    below text := coalesce(query #>> '{after,1}', '');
    ids text[] := '{}';
    tag bytea;
    first text;
    id text;
BEGIN
    IF query ? 'thread' THEN
        ids := ARRAY(
            SELECT t.thread_id FROM charm_threads t
            WHERE t.thread_id = query ->> 'thread' AND (t.updated_at, t.thread_id) < (at, below)
            AND t.status = ANY (statuses) AND coalesce(t.labels, '{}') @> wanted
            LIMIT most
        );
    ELSIF tags = '{}' THEN
        ids := ARRAY(
            SELECT t.thread_id FROM unnest(statuses) s (status) CROSS JOIN LATERAL (
                SELECT t.updated_at, t.thread_id FROM charm_threads t
                WHERE t.status = s.status AND t.updated_at IS NOT NULL AND (t.updated_at, t.thread_id) < (at, below)
                ORDER BY t.updated_at DESC, t.thread_id DESC LIMIT most
            ) t
            ORDER BY t.updated_at DESC, t.thread_id DESC LIMIT most
        );
    ELSE
        <<threads>>
        WHILE cardinality(ids) < most LOOP
            first := NULL;
            FOREACH tag IN ARRAY tags LOOP
                SELECT l.updated_at, l.thread_id INTO at, id FROM charm_labels l
                WHERE l.label = tag AND (l.updated_at, l.thread_id) < (at, below)
                ORDER BY l.updated_at DESC, l.thread_id DESC LIMIT 1;
                EXIT threads WHEN NOT FOUND;
                first := coalesce(first, id);
                below := id || chr(1);  -- no text is between the two: the others may be at this thread, too
            END LOOP;
            IF query ? 'status' THEN
                SELECT t.updated_at, t.thread_id INTO at, id FROM charm_threads t
                WHERE t.status = statuses[1] AND t.updated_at IS NOT NULL
                AND (t.updated_at, t.thread_id) < (at, below)
                ORDER BY t.updated_at DESC, t.thread_id DESC LIMIT 1;
                EXIT threads WHEN NOT FOUND;
                below := id || chr(1);
            END IF;
            IF id = first THEN
                ids := ids || id;
                below := id;
            END IF;
        END LOOP;
    END IF;
    RETURN (
        SELECT json_agg(json_build_object(
            'thread', t.thread_id, 'created_at', t.created_at, 'updated_at', t.updated_at, 'status', t.status,
            'labels', t.labels, 'heads', (
                SELECT json_agg(json_build_array(h.checkpoint_ns, h.checkpoint_id, h.device, h.moved_at)
                    ORDER BY h.checkpoint_ns)
                FROM charm_heads h WHERE h.thread_id = e.id
            )
        ) ORDER BY e.place)
        FROM unnest(ids) WITH ORDINALITY e (id, place) CROSS JOIN LATERAL (
            SELECT * FROM charm_threads t WHERE t.thread_id = e.id LIMIT 1
        ) t
    );
END
$$;
