-- Whole threads. Each function locks what it changes.

CREATE OR REPLACE FUNCTION charm_delete_v1(thread text, at double precision) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    through text;
    firsts text[];
BEGIN
    PERFORM charm_lock_v1(thread);
    IF NOT EXISTS (SELECT FROM charm_checkpoints c WHERE c.thread_id = thread)
        AND NOT EXISTS (SELECT FROM checkpoint_writes w WHERE w.thread_id = thread)
    THEN
        RETURN false;
    END IF;
    SELECT coalesce(max(c.checkpoint_id), '') INTO through FROM charm_checkpoints c WHERE c.thread_id = thread;
    SELECT array_agg(k.checkpoint_id) INTO firsts FROM checkpoints k
    WHERE k.thread_id = thread AND k.checkpoint_ns = '' AND k.parent_checkpoint_id IS NULL;
    INSERT INTO charm_threads AS t (thread_id, deleted_at, deleted_through, deleted_firsts)
    VALUES (thread, at, through, firsts)
    ON CONFLICT (thread_id) DO UPDATE
        SET created_at = NULL, updated_at = NULL, status = 'idle', labels = NULL, deleted_at = excluded.deleted_at,
            deleted_through = greatest(t.deleted_through, excluded.deleted_through),
            deleted_firsts = t.deleted_firsts || excluded.deleted_firsts;
    DELETE FROM charm_heads h WHERE h.thread_id = thread;
    DELETE FROM charm_checkpoints c WHERE c.thread_id = thread;
    DELETE FROM checkpoints k WHERE k.thread_id = thread;
    DELETE FROM checkpoint_blobs b WHERE b.thread_id = thread;
    DELETE FROM charm_packed p WHERE p.thread_id = thread;
    DELETE FROM checkpoint_writes w WHERE w.thread_id = thread;
    RETURN true;
END
$$;

-- Like `charm_delete_v1`, but of a thread only that is as it was `seen`: {heads: by namespace, checkpoints: how many}.
CREATE OR REPLACE FUNCTION charm_delete_if_v1(thread text, seen jsonb, at double precision) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_lock_v1(thread);
    IF seen -> 'heads' <> (
        SELECT coalesce(jsonb_object_agg(h.checkpoint_ns, h.checkpoint_id), '{}')
        FROM charm_heads h WHERE h.thread_id = thread
    ) OR (seen ->> 'checkpoints')::bigint <> (SELECT count(*) FROM charm_checkpoints c WHERE c.thread_id = thread) THEN
        RETURN false;
    END IF;
    RETURN charm_delete_v1(thread, at);
END
$$;

-- Answers "copied", "missing" (the source has no checkpoints) or "exists" (the target has some).
CREATE OR REPLACE FUNCTION charm_copy_v1(source text, target text, at double precision) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_lock_v1(thread) FROM (SELECT unnest(ARRAY[source, target]) COLLATE "C" AS thread ORDER BY 1) both_;
    IF NOT EXISTS (SELECT FROM charm_checkpoints c WHERE c.thread_id = source) THEN
        RETURN 'missing';
    END IF;
    IF EXISTS (SELECT FROM charm_checkpoints c WHERE c.thread_id = target) THEN
        RETURN 'exists';
    END IF;
    -- Writes that came for checkpoints never stored are of no use beside the copied ones.
    DELETE FROM checkpoint_writes w WHERE w.thread_id = target;
    DELETE FROM checkpoint_blobs b WHERE b.thread_id = target;
    DELETE FROM charm_packed p WHERE p.thread_id = target;
    INSERT INTO charm_threads AS t (thread_id, created_at, updated_at, status, labels)
    SELECT target, at, s.updated_at, s.status, s.labels FROM charm_threads s WHERE s.thread_id = source
    ON CONFLICT (thread_id) DO UPDATE
        SET created_at = excluded.created_at, updated_at = excluded.updated_at, status = excluded.status,
            labels = excluded.labels;
    INSERT INTO charm_heads
    SELECT target, checkpoint_ns, checkpoint_id, device, moved_at FROM charm_heads WHERE thread_id = source;
    INSERT INTO charm_checkpoints (
        thread_id, checkpoint_ns, checkpoint_id, run_id, root_id, device, created_at, body, metadata, labels
    )
    SELECT target, checkpoint_ns, checkpoint_id, run_id, root_id, device, created_at, body, metadata, labels
    FROM charm_checkpoints WHERE thread_id = source;
    INSERT INTO checkpoints
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT target, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints WHERE thread_id = source;
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT target, checkpoint_ns, channel, version, type, blob FROM checkpoint_blobs WHERE thread_id = source;
    INSERT INTO charm_packed (
        thread_id, checkpoint_ns, channel, version, type, size, digest, base, head, start, length, rest, data, height
    )
    SELECT target, checkpoint_ns, channel, version, type, size, digest, base, head, start, length, rest, data, height
    FROM charm_packed WHERE thread_id = source;
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, task_path, type, blob)
    SELECT target, checkpoint_ns, checkpoint_id, task_id, idx, channel, task_path, type, blob
    FROM checkpoint_writes WHERE thread_id = source;
    RETURN 'copied';
END
$$;

-- `doomed` maps namespaces to checkpoint ids. Answers how many checkpoints went.
CREATE OR REPLACE FUNCTION charm_prune_v1(thread text, doomed jsonb) RETURNS integer
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    ns text;
    named jsonb;
    ids text[];
    gone jsonb;
    went integer := 0;
BEGIN
    PERFORM charm_lock_v1(thread);
    FOR ns, named IN SELECT key, value FROM jsonb_each(doomed) LOOP
        ids := ARRAY(SELECT jsonb_array_elements_text(named));
        SELECT jsonb_object_agg(k.checkpoint_id, k.parent_checkpoint_id) INTO gone FROM checkpoints k
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = ANY (ids);
        CONTINUE WHEN gone IS NULL;
        went := went + (SELECT count(*) FROM jsonb_object_keys(gone));
        DELETE FROM charm_checkpoints c
        WHERE c.thread_id = thread AND c.checkpoint_ns = ns AND c.checkpoint_id = ANY (ids);
        DELETE FROM checkpoints k
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = ANY (ids);
        DELETE FROM checkpoint_writes w
        WHERE w.thread_id = thread AND w.checkpoint_ns = ns AND w.checkpoint_id = ANY (ids) AND gone ? w.checkpoint_id;
        -- Hashed, not joined: estimates are worst for the long threads that are worth pruning.
        DELETE FROM checkpoint_blobs b
        WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND (b.channel, b.version) NOT IN (
            SELECT v.key, v.value FROM checkpoints k, jsonb_each_text(k.checkpoint -> 'channel_versions') v
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND v.value IS NOT NULL
        );
        PERFORM charm_prune_packed_v1(thread, ns);
        PERFORM charm_move_head_off_v1(thread, ns, gone);
    END LOOP;
    RETURN went;
END
$$;
