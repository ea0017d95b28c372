-- Beside LangGraph's tables. Ids compare as bytes here, whatever the database's own order of text is.

CREATE TABLE IF NOT EXISTS charm_migrations (
    v integer PRIMARY KEY
);

-- What LangGraph's `checkpoints` has no column for; one row for each of its rows.
CREATE TABLE IF NOT EXISTS charm_checkpoints (
    thread_id text COLLATE "C" NOT NULL,
    checkpoint_ns text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    run_id text COLLATE "C",
    root_id text COLLATE "C",
    device text NOT NULL,
    created_at double precision NOT NULL,
    -- The JSON as it was written, where JSONB would have changed it.
    body bytea,
    metadata bytea,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);
CREATE INDEX IF NOT EXISTS charm_checkpoints_by_id
    ON charm_checkpoints (checkpoint_id, thread_id, checkpoint_ns);
CREATE INDEX IF NOT EXISTS charm_checkpoints_by_run
    ON charm_checkpoints (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS charm_checkpoints_by_root
    ON charm_checkpoints (thread_id, root_id) WHERE root_id IS NOT NULL;
-- What a thread is found by while this is its head, where JSONB would have changed the metadata.
ALTER TABLE charm_checkpoints ADD COLUMN IF NOT EXISTS labels jsonb;

-- No index but the key: a head that moves then rewrites no index.
CREATE TABLE IF NOT EXISTS charm_heads (
    thread_id text COLLATE "C" NOT NULL,
    checkpoint_ns text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    device text NOT NULL,
    moved_at double precision NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns)
) WITH (fillfactor = 70);

CREATE TABLE IF NOT EXISTS charm_threads (
    thread_id text COLLATE "C" PRIMARY KEY,
    created_at double precision,
    -- When one of its heads moved last; null for a thread without heads, which is not listed.
    updated_at double precision,
    -- The tombstone: when the thread was deleted last, and the greatest checkpoint id it ever lost.
    deleted_at double precision,
    deleted_through text COLLATE "C"
) WITH (fillfactor = 70);
-- Deleted checkpoints of the root graph that had no parent. One that comes again is a late repeat, no fresh start.
ALTER TABLE charm_threads ADD COLUMN IF NOT EXISTS deleted_firsts text[];
-- Of the root graph's head: "interrupted", "failed" or "idle"; and what its metadata says, null if nothing.
ALTER TABLE charm_threads ADD COLUMN IF NOT EXISTS status text COLLATE "C" NOT NULL DEFAULT 'idle';
ALTER TABLE charm_threads ADD COLUMN IF NOT EXISTS labels jsonb;
-- One index for recency and status, since each step writes it.
DROP INDEX IF EXISTS charm_threads_by_recency;
CREATE INDEX IF NOT EXISTS charm_threads_by_status
    ON charm_threads (status, updated_at, thread_id) WHERE updated_at IS NOT NULL;

-- Threads by each of their labels.
CREATE TABLE IF NOT EXISTS charm_labels (
    label bytea NOT NULL,
    updated_at double precision NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (label, updated_at, thread_id)
);

-- Values of old checkpoints, see packing.sql. In the order of LangGraph's tables, with which rows are exchanged.
CREATE TABLE IF NOT EXISTS charm_packed (
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    channel text NOT NULL,
    version text NOT NULL,
    type text NOT NULL,
    -- Of the whole value: its bytes, and what it is known by.
    size integer NOT NULL,
    digest text NOT NULL,
    -- The version that this is ranges of, the ranges, and in `data` the bytes around them. Null: `data` is whole.
    base text,
    head integer,
    start integer,
    length integer,
    rest integer,
    data bytea NOT NULL,
    -- Where `data` is whole: how many changes stand on it, one upon the other, at most.
    height integer NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
);

-- lz4 stores a long message list about five times faster than pglz. Only a default for new values: any saver reads both.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_settings
        WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)
    ) THEN
        ALTER TABLE checkpoint_blobs ALTER COLUMN blob SET COMPRESSION lz4;
        ALTER TABLE checkpoint_writes ALTER COLUMN blob SET COMPRESSION lz4;
        ALTER TABLE charm_packed ALTER COLUMN data SET COMPRESSION lz4;
    END IF;
END
$$;
