-- Old values in less room. `charm_pack_v1` moves the values that only old checkpoints have from `checkpoint_blobs` to
-- `charm_packed`, where a version is ranges of a newer one and the bytes that it has of its own. Mostly that is a few
-- bytes: what was said before is all in what is said now. And what goes first is the old, which nothing stands on.
--
-- A head is whole in `checkpoint_blobs`, always: whatever makes an old checkpoint a head, or grows one from it, puts its
-- values there again. So nothing that reads or writes a head has to look here.

-- What a version is put together from.
CREATE OR REPLACE FUNCTION charm_joined_v1(base bytea, own bytea, head integer, start integer, length integer, rest integer)
RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
    SELECT substring(own FOR head) || (substring(base FROM start + 1 FOR length) || (
        substring(own FROM head + 1) || substring(base FROM octet_length(base) - rest + 1)
    ))
$$;

-- Like `charm_checkpoint.delta`: [head, start, length, rest] of a value as ranges of another, null if that would save less
-- than half. Both have to be in memory, since parts of them are compared again and again.
CREATE OR REPLACE FUNCTION charm_ranges_v1(base bytea, value bytea) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    size CONSTANT integer := octet_length(value);
    -- How many bytes msgpack's array headers take.
    head CONSTANT integer := CASE
        WHEN size = 0 THEN 0 WHEN get_byte(value, 0) / 16 = 9 THEN 1
        WHEN get_byte(value, 0) = 220 THEN 3 WHEN get_byte(value, 0) = 221 THEN 5 ELSE 0
    END;
    start CONSTANT integer := CASE
        WHEN octet_length(base) = 0 THEN 0 WHEN get_byte(base, 0) / 16 = 9 THEN 1
        WHEN get_byte(base, 0) = 220 THEN 3 WHEN get_byte(base, 0) = 221 THEN 5 ELSE 0
    END;
    length integer := 0;
    rest integer := 0;
    most integer := greatest(least(octet_length(base) - start, size - head), 0);
    middle integer;
BEGIN
    WHILE length < most LOOP
        middle := (length + most + 1) / 2;
        IF substring(base FROM start + length + 1 FOR middle - length)
            = substring(value FROM head + length + 1 FOR middle - length)
        THEN
            length := middle;
        ELSE
            most := middle - 1;
        END IF;
    END LOOP;
    most := greatest(least(octet_length(base) - start, size - head) - length, 0);
    WHILE rest < most LOOP
        middle := (rest + most + 1) / 2;
        IF substring(base FROM octet_length(base) - middle + 1 FOR middle - rest)
            = substring(value FROM size - middle + 1 FOR middle - rest)
        THEN
            rest := middle;
        ELSE
            most := middle - 1;
        END IF;
    END LOOP;
    -- A row has about so many bytes beside its value's.
    RETURN CASE WHEN size - length - rest + 200 <= size / 2 THEN ARRAY[head, start, length, rest] END;
END
$$;

-- The bytes of its own that a value has beside its ranges; looks whether it can be put together from these.
CREATE OR REPLACE FUNCTION charm_own_v1(base bytea, value bytea, ranges integer[]) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    own CONSTANT bytea := substring(value FOR ranges[1])
        || substring(value FROM ranges[1] + ranges[3] + 1 FOR octet_length(value) - ranges[1] - ranges[3] - ranges[4]);
BEGIN
    IF charm_joined_v1(base, own, ranges[1], ranges[2], ranges[3], ranges[4]) IS DISTINCT FROM value THEN
        RAISE EXCEPTION 'a value would not be what it is';
    END IF;
    RETURN own;
END
$$;

-- A packed value as it was.
CREATE OR REPLACE FUNCTION charm_unpacked_v1(thread text, ns text, named text, wanted text) RETURNS bytea
LANGUAGE plpgsql STABLE AS $$
DECLARE
    chain text[] := ARRAY[wanted];
    packed charm_packed;
    value bytea;
BEGIN
    LOOP
        SELECT * INTO packed FROM charm_packed p
        WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.version = chain[1];
        EXIT WHEN packed.base IS NULL OR cardinality(chain) > 1000;  -- a forged cycle ends
        chain := packed.base || chain;
    END LOOP;
    value := packed.data || ''::bytea;  -- in memory; what is read from a table is decompressed for each use
    BEGIN
        FOR n IN 2 .. cardinality(chain) LOOP
            SELECT * INTO packed FROM charm_packed p
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.version = chain[n];
            value := charm_joined_v1(value, packed.data, packed.head, packed.start, packed.length, packed.rest);
        END LOOP;
    EXCEPTION WHEN data_exception THEN  -- no such ranges can be
        value := NULL;
    END;
    IF (charm_digest_v1(value) = packed.digest) IS NOT TRUE THEN
        RAISE EXCEPTION 'thread %: version % of channel % cannot be rebuilt from what is packed of it', thread, wanted, named
            USING ERRCODE = 'CH003';
    END IF;
    RETURN value;
END
$$;

-- Puts values of checkpoints into LangGraph's table again, for whoever reads there. They stay here, too. A value that came
-- under the same version since then makes room: the first stays.
CREATE OR REPLACE FUNCTION charm_make_whole_v1(thread text, ns text, ids text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM charm_packed p WHERE p.thread_id = thread AND p.checkpoint_ns = ns) THEN
        RETURN;
    END IF;
    INSERT INTO checkpoint_blobs AS b (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT thread, ns, w.channel, w.version, w.type, charm_unpacked_v1(thread, ns, w.channel, w.version)
    FROM (
        SELECT DISTINCT p.channel, p.version, p.type
        FROM unnest(ids) i (id) CROSS JOIN LATERAL (
            SELECT k.checkpoint FROM checkpoints k
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = i.id LIMIT 1
        ) k
        CROSS JOIN jsonb_each_text(k.checkpoint -> 'channel_versions') v CROSS JOIN LATERAL (
            SELECT * FROM charm_packed p
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = v.key AND p.version = v.value LIMIT 1
        ) p
        WHERE NOT EXISTS (
            SELECT FROM checkpoint_blobs b
            WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = p.channel AND b.version = p.version
            AND b.type = p.type AND octet_length(b.blob) = p.size
            -- What was whole before is this value; what came with the step may be another. To look takes longer than the step.
            AND (b.xmin <> pg_current_xact_id()::xid OR charm_digest_v1(b.blob) = p.digest)
        )
    ) w
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO UPDATE SET type = excluded.type, blob = excluded.blob
    WHERE (b.type, b.blob) IS DISTINCT FROM (excluded.type, excluded.blob);
END
$$;

-- Removes packed values that no checkpoint has any more, and puts on others what stood on them.
CREATE OR REPLACE FUNCTION charm_prune_packed_v1(thread text, ns text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    doomed jsonb;
    packed charm_packed;
    under charm_packed;
    value bytea;
    under_value bytea;
    ranges integer[];
BEGIN
    IF NOT EXISTS (SELECT FROM charm_packed p WHERE p.thread_id = thread AND p.checkpoint_ns = ns) THEN
        RETURN;
    END IF;
    SELECT jsonb_object_agg(json_build_array(p.channel, p.version)::text, true) INTO doomed FROM charm_packed p
    WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND (p.channel, p.version) NOT IN (
        SELECT v.key, v.value FROM checkpoints k, jsonb_each_text(k.checkpoint -> 'channel_versions') v
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND v.value IS NOT NULL
    );
    IF doomed IS NULL THEN
        RETURN;
    END IF;
    FOR packed IN
        SELECT * FROM charm_packed p
        WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND doomed ? json_build_array(p.channel, p.base)::text
        AND NOT doomed ? json_build_array(p.channel, p.version)::text
        ORDER BY p.channel, p.version DESC
    LOOP
        value := charm_unpacked_v1(thread, ns, packed.channel, packed.version);
        ranges := CASE WHEN packed.channel = under.channel THEN charm_ranges_v1(under_value, value) END;
        IF ranges IS NULL THEN
            under := packed;
            under_value := value;
        END IF;
        UPDATE charm_packed p
        SET base = CASE WHEN ranges IS NOT NULL THEN under.version END,
            head = ranges[1], start = ranges[2], length = ranges[3], rest = ranges[4],
            -- How many stand on it is not known.
            height = CASE WHEN ranges IS NULL THEN 64 ELSE 0 END,
            data = CASE WHEN ranges IS NULL THEN value ELSE charm_own_v1(under_value, value, ranges) END
        WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = packed.channel AND p.version = packed.version;
    END LOOP;
    DELETE FROM charm_packed p
    WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND doomed ? json_build_array(p.channel, p.version)::text;
END
$$;

-- Of the next `most` threads by their ids: how many bytes their values take, and where there may be some to pack, as
-- [thread, namespace, channel].
CREATE OR REPLACE FUNCTION charm_packable_v1(after text, most integer) RETURNS json
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH page AS (
        SELECT t.thread_id COLLATE "default" AS thread FROM charm_threads t
        WHERE t.thread_id > after ORDER BY t.thread_id LIMIT most
    ), found AS (
        SELECT page.thread, b.* FROM page CROSS JOIN LATERAL (
            SELECT b.checkpoint_ns AS ns, b.channel, sum(pg_column_size(b.blob)) AS room,
                count(*) FILTER (WHERE octet_length(b.blob) >= 1024 AND b.type NOT LIKE '%+aesgcm') AS large
            FROM checkpoint_blobs b WHERE b.thread_id = page.thread GROUP BY b.checkpoint_ns, b.channel
        ) b
    )
    SELECT json_build_object(
        'last', (SELECT max(page.thread COLLATE "C") FROM page),
        'threads', (SELECT count(*) FROM page),
        'room', coalesce((SELECT sum(f.room) FROM found f), 0) + coalesce((
            SELECT sum(p.room) FROM page CROSS JOIN LATERAL (
                SELECT sum(pg_column_size(p.data)) AS room FROM charm_packed p WHERE p.thread_id = page.thread
            ) p
        ), 0),
        'places', (SELECT json_agg(json_build_array(f.thread, f.ns, f.channel)) FROM found f WHERE f.large > 1)
    )
$$;

-- What `charm_pack_v1` leaves as it is of a channel: the versions of the newest `keep` checkpoints, by their ids and by
-- what the head grew from, and of those that wait for an answer and were not gone on from. Null without checkpoints.
CREATE OR REPLACE FUNCTION charm_kept_v1(thread text, ns text, named text, keep integer) RETURNS text[]
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE line (id, n) AS (
        SELECT h.checkpoint_id COLLATE "default", 1 FROM charm_heads h
        WHERE h.thread_id = thread AND h.checkpoint_ns = ns
        UNION ALL
        SELECT k.parent_checkpoint_id, l.n + 1 FROM line l CROSS JOIN LATERAL (
            SELECT * FROM checkpoints k
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = l.id LIMIT 1
        ) k
        WHERE l.n < keep
    ), kept (id) AS (
        SELECT l.id FROM line l
        UNION
        (
            SELECT c.checkpoint_id COLLATE "default" FROM charm_checkpoints c
            WHERE c.thread_id = thread AND c.checkpoint_ns = ns
            ORDER BY c.checkpoint_id DESC LIMIT keep
        )
        UNION
        SELECT w.checkpoint_id FROM checkpoint_writes w
        WHERE w.thread_id = thread AND w.checkpoint_ns = ns AND w.channel = '__interrupt__'
        AND w.checkpoint_id NOT IN (
            SELECT k.parent_checkpoint_id FROM checkpoints k
            WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.parent_checkpoint_id IS NOT NULL
        )
    )
    SELECT CASE
        WHEN count(*) > 0 THEN coalesce(array_agg(DISTINCT k.version) FILTER (WHERE k.version IS NOT NULL), '{}')
    END
    FROM kept CROSS JOIN LATERAL (
        SELECT k.checkpoint -> 'channel_versions' ->> named AS version FROM checkpoints k
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.checkpoint_id = kept.id LIMIT 1
    ) k
$$;

-- Packs a channel's values from version `below` on down (null: from the newest on), as many as others can wait for.
-- Answers how many bytes less they take, and if it is not done, the `below` to go on with.
CREATE OR REPLACE FUNCTION charm_pack_v1(thread text, ns text, named text, keep integer, below text) RETURNS json
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    -- Changes that stand one upon the other.
    most CONSTANT integer := 64;
    budget integer := 8388608;
    kept text[];
    whole charm_packed;  -- what others are put on; in the table if `height` is not null
    whole_value bytea;
    last text;  -- what was put on it last, and how far away from it that is
    last_value bytea;
    depth integer;
    found record;
    value bytea;
    ranges integer[];
    nearer integer[];
    under text;  -- what it is put on
    under_value bytea;
    own bytea;
    freed bigint := 0;
    reached text;
    more boolean := false;
BEGIN
    PERFORM charm_lock_v1(thread);
    kept := charm_kept_v1(thread, ns, named, keep);
    -- A DeltaChannel's snapshots are few, and later checkpoints are read from them. Not each checkpoint tells which they are.
    IF kept IS NULL OR below IS NULL AND EXISTS (
        SELECT FROM checkpoints k
        WHERE k.thread_id = thread AND k.checkpoint_ns = ns AND k.metadata -> 'counters_since_delta_snapshot' ? named
    ) THEN
        RETURN json_build_object('freed', 0, 'below', NULL);
    END IF;
    SELECT * INTO whole FROM charm_packed p
    WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.base IS NULL AND p.version >= below
    ORDER BY p.version LIMIT 1;
    whole_value := whole.data || ''::bytea;
    depth := 0;
    FOR found IN
        -- Two ordered walks along the tables' keys.
        (
            SELECT b.version, b.type, b.blob AS data, NULL::integer AS height, pg_column_size(b.blob) AS room
            FROM checkpoint_blobs b
            WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = named
            AND (below IS NULL OR b.version < below) AND octet_length(b.blob) >= 1024
            AND b.type NOT LIKE '%+aesgcm' AND b.version <> ALL (kept)
        ) UNION ALL (
            SELECT p.version, p.type, p.data, p.height, pg_column_size(p.data)
            FROM charm_packed p
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.base IS NULL
            AND (below IS NULL OR p.version < below)
        )
        ORDER BY version DESC
    LOOP
        IF budget < 0 THEN
            more := true;
            EXIT;
        END IF;
        reached := found.version;
        value := found.data || ''::bytea;
        budget := budget - octet_length(value) - 1024;
        IF found.height IS NULL AND EXISTS (
            SELECT FROM charm_packed p
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.version = found.version
        ) THEN
            -- Packed once, and made whole for somebody.
            BEGIN
                IF value = charm_unpacked_v1(thread, ns, named, found.version) THEN
                    DELETE FROM checkpoint_blobs b
                    WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = named AND b.version = found.version;
                    freed := freed + found.room;
                END IF;
            EXCEPTION WHEN SQLSTATE 'CH003' THEN
                NULL;  -- what is packed is damaged, and this is the only one that is not
            END;
            CONTINUE;
        END IF;

        under := NULL;
        IF whole_value IS NOT NULL AND coalesce(found.height, 0) < most THEN
            ranges := charm_ranges_v1(whole_value, value);
            IF ranges IS NOT NULL THEN
                under := whole.version;
                under_value := whole_value;
            END IF;
            -- What lies between two versions is least where they are nearest.
            IF (ranges IS NULL OR octet_length(value) - ranges[3] - ranges[4] > 256)
                AND depth + coalesce(found.height, 0) < most AND last_value IS NOT NULL
            THEN
                nearer := charm_ranges_v1(last_value, value);
                IF nearer IS NOT NULL AND (ranges IS NULL OR nearer[3] + nearer[4] > ranges[3] + ranges[4]) THEN
                    under := last;
                    under_value := last_value;
                    ranges := nearer;
                END IF;
            END IF;
        END IF;
        IF under IS NULL THEN
            UPDATE charm_packed p SET height = whole.height
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.version = whole.version
            AND p.height < whole.height;
            whole.version := found.version;
            whole.type := found.type;
            whole.height := found.height;
            whole_value := value;
            last_value := NULL;
            depth := 0;
            CONTINUE;
        END IF;

        IF whole.height IS NULL THEN
            INSERT INTO charm_packed (thread_id, checkpoint_ns, channel, version, type, digest, size, height, data)
            VALUES (
                thread, ns, named, whole.version, whole.type, charm_digest_v1(whole_value), octet_length(whole_value), 0,
                whole_value
            );
            DELETE FROM checkpoint_blobs b
            WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = named AND b.version = whole.version;
            whole.height := 0;
        END IF;
        own := charm_own_v1(under_value, value, ranges);
        IF found.height IS NULL THEN
            INSERT INTO charm_packed (
                thread_id, checkpoint_ns, channel, version, type, digest, size, base, head, start, length, rest, height, data
            ) VALUES (
                thread, ns, named, found.version, found.type, charm_digest_v1(value), octet_length(value), under,
                ranges[1], ranges[2], ranges[3], ranges[4], 0, own
            );
            DELETE FROM checkpoint_blobs b
            WHERE b.thread_id = thread AND b.checkpoint_ns = ns AND b.channel = named AND b.version = found.version;
        ELSE
            UPDATE charm_packed p
            SET base = under, head = ranges[1], start = ranges[2], length = ranges[3], rest = ranges[4],
                height = 0, data = own
            WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.version = found.version;
        END IF;
        freed := freed + found.room - octet_length(own);
        depth := CASE WHEN under = last THEN depth + 1 ELSE 1 END;
        whole.height := greatest(whole.height, depth + coalesce(found.height, 0));
        last := found.version;
        last_value := value;
    END LOOP;
    UPDATE charm_packed p SET height = whole.height
    WHERE p.thread_id = thread AND p.checkpoint_ns = ns AND p.channel = named AND p.version = whole.version
    AND p.height < whole.height;
    RETURN json_build_object('freed', freed, 'below', CASE WHEN more THEN reached END);
END
$$;
