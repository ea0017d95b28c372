-- Savers that know only LangGraph's tables: what they write, overwrite and delete is seen here.
-- This project's functions write `charm_checkpoints` first, so that for them the triggers find nothing to do.

CREATE OR REPLACE FUNCTION charm_lock_v1(thread_id text) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended(thread_id, 1130918509))
$$;

CREATE OR REPLACE FUNCTION charm_epoch_v1(at text) RETURNS double precision
LANGUAGE plpgsql STABLE SET timezone = 'UTC' AS $$
BEGIN
    RETURN coalesce(extract(epoch FROM at::timestamptz), extract(epoch FROM now()));
EXCEPTION WHEN data_exception THEN
    RETURN extract(epoch FROM now());
END
$$;

-- The values that other savers keep in the checkpoint itself.
CREATE OR REPLACE FUNCTION charm_inline_v1(checkpoint jsonb) RETURNS TABLE (key text, value jsonb)
LANGUAGE sql IMMUTABLE AS $$
    SELECT * FROM jsonb_each(
        CASE WHEN jsonb_typeof(checkpoint -> 'channel_values') = 'object' THEN checkpoint -> 'channel_values' END
    )
$$;

-- Moves the head, which has been where it is since `was_moved_at`, to a checkpoint with these `labels`, and the thread up
-- in the listing. The thread is locked.
DROP FUNCTION IF EXISTS charm_move_head_v1(text, text, text, text, double precision, double precision);
CREATE OR REPLACE FUNCTION charm_move_head_v1(
    thread text, ns text, id text, by_device text, at double precision, was_moved_at double precision, labels jsonb
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    waits text;
    found_by jsonb;
BEGIN
    INSERT INTO charm_heads AS h VALUES (thread, ns, id, by_device, at)
    ON CONFLICT (thread_id, checkpoint_ns) DO UPDATE
        SET checkpoint_id = excluded.checkpoint_id, device = excluded.device, moved_at = excluded.moved_at;
    IF ns = '' THEN
        found_by := nullif(labels, '{}');
        waits := charm_status_v1(thread, id);  -- writes may come before their checkpoint
    END IF;
    INSERT INTO charm_threads AS t (thread_id, created_at, updated_at, status, labels)
    VALUES (thread, at, at, coalesce(waits, 'idle'), found_by)
    ON CONFLICT (thread_id) DO UPDATE
        SET created_at = coalesce(t.created_at, excluded.created_at), updated_at = CASE
            -- It was this head that moved last, and a clock went back: only now all heads have to be looked at.
            WHEN at < was_moved_at AND was_moved_at >= t.updated_at
                THEN (SELECT max(moved_at) FROM charm_heads h WHERE h.thread_id = thread)
            ELSE greatest(t.updated_at, at)
        END,
        status = CASE WHEN ns = '' THEN excluded.status ELSE t.status END,
        labels = CASE WHEN ns = '' THEN excluded.labels ELSE t.labels END;
END
$$;

-- Moves heads off checkpoints that are gone (`gone` maps their ids to their parents), and forgets what is left without
-- any. The thread is locked.
CREATE OR REPLACE FUNCTION charm_move_head_off_v1(thread text, ns text, gone jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    id text;
    steps integer := 0;
    next charm_checkpoints;
BEGIN
    SELECT checkpoint_id INTO id FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
    IF id IS NULL OR NOT gone ? id THEN
        RETURN;
    END IF;
    -- Bounded, since a forged cycle of parents has no end.
    WHILE id IS NOT NULL AND gone ? id AND steps < 1000000 LOOP
        id := gone ->> id;
        steps := steps + 1;
    END LOOP;
    SELECT * INTO next FROM charm_checkpoints c
    WHERE c.thread_id = thread AND c.checkpoint_ns = ns AND c.checkpoint_id = id;
    IF NOT FOUND THEN
        SELECT * INTO next FROM charm_checkpoints c
        WHERE c.thread_id = thread AND c.checkpoint_ns = ns ORDER BY c.checkpoint_id DESC LIMIT 1;
    END IF;
    IF FOUND THEN
        UPDATE charm_heads
        SET checkpoint_id = next.checkpoint_id, device = next.device, moved_at = next.created_at
        WHERE thread_id = thread AND checkpoint_ns = ns;
        PERFORM charm_make_whole_v1(thread, ns, ARRAY[next.checkpoint_id]);
    ELSE
        DELETE FROM charm_heads WHERE thread_id = thread AND checkpoint_ns = ns;
    END IF;
    UPDATE charm_threads t
    SET updated_at = (SELECT max(h.moved_at) FROM charm_heads h WHERE h.thread_id = thread),
        status = CASE WHEN ns = '' THEN charm_status_v1(thread, next.checkpoint_id) ELSE t.status END,
        labels = CASE WHEN ns = '' THEN nullif(charm_labels_at_v1(thread, next.checkpoint_id), '{}') ELSE t.labels END
    WHERE t.thread_id = thread;
END
$$;

CREATE OR REPLACE FUNCTION charm_checkpoint_written() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    at double precision;
    head charm_heads;
BEGIN
    IF EXISTS (
        SELECT FROM charm_checkpoints c
        WHERE c.thread_id = NEW.thread_id AND c.checkpoint_ns = NEW.checkpoint_ns
        AND c.checkpoint_id = NEW.checkpoint_id
    ) THEN
        IF TG_OP = 'UPDATE' THEN
            PERFORM charm_lock_v1(NEW.thread_id);
            UPDATE charm_checkpoints c
            SET body = NULL, metadata = NULL, labels = NULL, run_id = NEW.metadata ->> 'run_id', device = 'another saver'
            WHERE c.thread_id = NEW.thread_id AND c.checkpoint_ns = NEW.checkpoint_ns
            AND c.checkpoint_id = NEW.checkpoint_id;
            PERFORM charm_make_whole_v1(NEW.thread_id, NEW.checkpoint_ns, ARRAY[NEW.checkpoint_id]);
            IF NEW.checkpoint_ns = '' THEN
                UPDATE charm_threads t SET labels = charm_labels_of_v1(NEW.metadata)
                FROM charm_heads h
                WHERE t.thread_id = NEW.thread_id AND h.thread_id = NEW.thread_id AND h.checkpoint_ns = ''
                AND h.checkpoint_id = NEW.checkpoint_id;
            END IF;
        END IF;
        RETURN NULL;
    END IF;
    PERFORM charm_lock_v1(NEW.thread_id);
    at := charm_epoch_v1(NEW.checkpoint ->> 'ts');
    INSERT INTO charm_checkpoints VALUES (
        NEW.thread_id, NEW.checkpoint_ns, NEW.checkpoint_id, NEW.metadata ->> 'run_id',
        CASE WHEN NEW.checkpoint_ns <> '' THEN NEW.metadata -> 'parents' ->> '' END,
        'another saver', at
    ) ON CONFLICT DO NOTHING;
    PERFORM charm_make_whole_v1(
        NEW.thread_id, NEW.checkpoint_ns, ARRAY[NEW.parent_checkpoint_id, NEW.checkpoint_id]
    );
    SELECT * INTO head FROM charm_heads h
    WHERE h.thread_id = NEW.thread_id AND h.checkpoint_ns = NEW.checkpoint_ns;
    -- Rows that are loaded in any order end with the greatest id as the head.
    IF head.checkpoint_id IS NULL OR head.checkpoint_id = NEW.parent_checkpoint_id
        OR head.checkpoint_id < NEW.checkpoint_id COLLATE "C"
    THEN
        PERFORM charm_move_head_v1(
            NEW.thread_id, NEW.checkpoint_ns, NEW.checkpoint_id, 'another saver', at, head.moved_at,
            charm_labels_of_v1(NEW.metadata)
        );
    END IF;
    RETURN NULL;
END
$$;

-- A thread that another saver leaves without checkpoints was deleted: it gets a tombstone.
CREATE OR REPLACE FUNCTION charm_checkpoints_deleted() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    place record;
BEGIN
    FOR place IN
        SELECT g.thread_id, g.checkpoint_ns, max(g.checkpoint_id COLLATE "C") AS through,
            jsonb_object_agg(g.checkpoint_id, g.parent_checkpoint_id) AS gone
        FROM gone_checkpoints g JOIN charm_checkpoints c
            ON c.thread_id = g.thread_id COLLATE "C" AND c.checkpoint_ns = g.checkpoint_ns COLLATE "C"
            AND c.checkpoint_id = g.checkpoint_id COLLATE "C"
        GROUP BY g.thread_id, g.checkpoint_ns ORDER BY g.thread_id, g.checkpoint_ns
    LOOP
        PERFORM charm_lock_v1(place.thread_id);
        DELETE FROM charm_checkpoints c
        WHERE c.thread_id = place.thread_id AND c.checkpoint_ns = place.checkpoint_ns
        AND place.gone ? c.checkpoint_id;
        PERFORM charm_prune_packed_v1(place.thread_id, place.checkpoint_ns);
        PERFORM charm_move_head_off_v1(place.thread_id, place.checkpoint_ns, place.gone);
        UPDATE charm_threads t
        SET deleted_through = greatest(t.deleted_through, place.through),
            deleted_at = extract(epoch FROM now()), created_at = NULL
        WHERE t.thread_id = place.thread_id
        AND NOT EXISTS (SELECT FROM charm_checkpoints c WHERE c.thread_id = place.thread_id);
        IF place.checkpoint_ns = '' THEN
            UPDATE charm_threads t
            SET deleted_firsts = t.deleted_firsts || (
                SELECT array_agg(key) FROM jsonb_each(place.gone) WHERE value = 'null'
            )
            WHERE t.thread_id = place.thread_id;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION charm_checkpoints_truncated() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM charm_checkpoints;
    DELETE FROM charm_heads;
    DELETE FROM charm_threads;
    DELETE FROM charm_packed;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER charm_written AFTER INSERT OR UPDATE OF checkpoint, metadata ON checkpoints
    FOR EACH ROW EXECUTE FUNCTION charm_checkpoint_written();
CREATE OR REPLACE TRIGGER charm_deleted AFTER DELETE ON checkpoints
    REFERENCING OLD TABLE AS gone_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION charm_checkpoints_deleted();
CREATE OR REPLACE TRIGGER charm_truncated AFTER TRUNCATE ON checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION charm_checkpoints_truncated();

-- What was there before.
INSERT INTO charm_checkpoints
SELECT thread_id, checkpoint_ns, checkpoint_id, metadata ->> 'run_id',
    CASE WHEN checkpoint_ns <> '' THEN metadata -> 'parents' ->> '' END,
    'another saver', charm_epoch_v1(checkpoint ->> 'ts')
FROM checkpoints
ON CONFLICT DO NOTHING;
INSERT INTO charm_heads
SELECT DISTINCT ON (thread_id, checkpoint_ns)
    thread_id, checkpoint_ns, checkpoint_id, device, created_at
FROM charm_checkpoints
ORDER BY thread_id, checkpoint_ns, checkpoint_id DESC
ON CONFLICT DO NOTHING;
INSERT INTO charm_threads (thread_id, created_at, updated_at)
SELECT c.thread_id, min(c.created_at), (
    SELECT max(h.moved_at) FROM charm_heads h WHERE h.thread_id = c.thread_id
)
FROM charm_checkpoints c
GROUP BY c.thread_id
ON CONFLICT DO NOTHING;
UPDATE charm_threads t SET status = root.status, labels = root.labels
FROM (
    SELECT h.thread_id, charm_status_v1(h.thread_id, h.checkpoint_id) AS status,
        nullif(charm_labels_at_v1(h.thread_id, h.checkpoint_id), '{}') AS labels
    FROM charm_heads h WHERE h.checkpoint_ns = '' OFFSET 0
) root
WHERE t.thread_id = root.thread_id AND (t.status, t.labels) IS DISTINCT FROM (root.status, root.labels);
