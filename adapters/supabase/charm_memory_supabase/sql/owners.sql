-- Whose a thread is, and that nobody else meets it. The tables before this are those of charm-memory-postgres; what is here
-- is for requests that come with a user's token (role `authenticated`). A service key and the database's owner see all.
--
-- Everything runs with the caller's rights, so that it is row level security which decides, not a predicate that could be
-- forgotten somewhere. What a thread is found by has the owner beside it: a page among the threads of many users costs
-- what the page is long.

-- Who asks: the token's subject, which is `auth.uid()` for Supabase's own users and any text for those of others.
CREATE OR REPLACE FUNCTION charm_user_v1() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')
$$;

-- Null: nobody's, for a thread that a server began.
ALTER TABLE charm_threads ADD COLUMN IF NOT EXISTS owner text COLLATE "C";
ALTER TABLE charm_threads ALTER COLUMN owner SET DEFAULT charm_user_v1();
ALTER TABLE charm_checkpoints ADD COLUMN IF NOT EXISTS owner text COLLATE "C";
ALTER TABLE charm_labels ADD COLUMN IF NOT EXISTS owner text COLLATE "C";
CREATE INDEX IF NOT EXISTS charm_threads_by_owner
    ON charm_threads (owner, status, updated_at, thread_id) WHERE owner IS NOT NULL AND updated_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS charm_checkpoints_by_owner
    ON charm_checkpoints (owner, checkpoint_id, thread_id, checkpoint_ns) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS charm_labels_by_owner
    ON charm_labels (owner, label, updated_at, thread_id) WHERE owner IS NOT NULL;

-- The thread is there before what it is found by, unless nobody owns it. One that a server begins is nobody's, also where
-- somebody took the id before and has no checkpoint there.
CREATE OR REPLACE FUNCTION charm_owned() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    SELECT t.owner INTO NEW.owner FROM charm_threads t WHERE t.thread_id = NEW.thread_id;
    IF TG_TABLE_NAME = 'charm_checkpoints' AND NEW.owner IS DISTINCT FROM charm_user_v1() AND NOT EXISTS (
        SELECT FROM charm_checkpoints c WHERE c.thread_id = NEW.thread_id
    ) THEN
        UPDATE charm_threads SET owner = NULL WHERE thread_id = NEW.thread_id AND owner IS NOT NULL;
        NEW.owner := NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER charm_owned BEFORE INSERT ON charm_checkpoints
    FOR EACH ROW EXECUTE FUNCTION charm_owned();
CREATE OR REPLACE TRIGGER charm_owned BEFORE INSERT ON charm_labels
    FOR EACH ROW EXECUTE FUNCTION charm_owned();

-- What is found by the owner follows it. Whoever updates has locked the thread's row before this locks the thread, the other
-- way round than whoever writes; so it fails after a moment, rather than miss what a write under way adds.
CREATE OR REPLACE FUNCTION charm_given() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT SET lock_timeout = '100ms' AS $$
BEGIN
    PERFORM charm_lock_v1(NEW.thread_id);
    UPDATE charm_checkpoints SET owner = NEW.owner WHERE thread_id = NEW.thread_id;
    UPDATE charm_labels l SET owner = NEW.owner FROM jsonb_each(NEW.labels) e
    WHERE l.label = charm_label_v1(e.key, e.value) AND l.updated_at = NEW.updated_at AND l.thread_id = NEW.thread_id;
    RETURN NULL;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'thread % is being written', NEW.thread_id
    USING ERRCODE = 'lock_not_available', HINT = 'charm_give_v1(thread, owner) waits for it.';
END
$$;

CREATE OR REPLACE TRIGGER charm_given AFTER UPDATE OF owner ON charm_threads
    FOR EACH ROW WHEN (OLD.owner IS DISTINCT FROM NEW.owner) EXECUTE FUNCTION charm_given();

-- An operator gives a thread to somebody. False if there is none.
CREATE OR REPLACE FUNCTION charm_give_v1(thread text, to_owner text) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM charm_lock_v1(thread);
    UPDATE charm_threads SET owner = to_owner WHERE thread_id = thread;
    RETURN FOUND;
END
$$;

-- Makes threads that are not there the caller's. Refuses one that is somebody else's, or nobody's.
CREATE OR REPLACE FUNCTION charm_claim_v1(threads text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    unseen CONSTANT text[] := ARRAY(
        SELECT e.id FROM unnest(threads) e (id)
        WHERE NOT EXISTS (SELECT FROM charm_threads t WHERE t.thread_id = e.id COLLATE "C")
    );
    made text[];
    foreigner text;
BEGIN
    IF unseen = '{}' THEN
        RETURN;
    END IF;
    -- Before any row of theirs, and in the order in which whoever writes does it.
    PERFORM charm_lock_v1(e.id) FROM (SELECT DISTINCT unnest(threads) COLLATE "C" AS id ORDER BY 1) e;
    WITH fresh AS (
        INSERT INTO charm_threads (thread_id) SELECT unnest(unseen) ON CONFLICT DO NOTHING RETURNING thread_id
    )
    SELECT array_agg(thread_id) INTO made FROM fresh;
    SELECT e.id INTO foreigner FROM unnest(unseen) e (id)
    WHERE NOT EXISTS (SELECT FROM charm_threads t WHERE t.thread_id = e.id COLLATE "C")
    -- What is there of a thread that was only now made can be seen now, and somebody put it there before.
    OR e.id = ANY (made) AND (
        EXISTS (SELECT FROM checkpoints k WHERE k.thread_id = e.id)
        OR EXISTS (SELECT FROM checkpoint_blobs b WHERE b.thread_id = e.id)
        OR EXISTS (SELECT FROM checkpoint_writes w WHERE w.thread_id = e.id)
        OR EXISTS (SELECT FROM charm_packed p WHERE p.thread_id = e.id)
    )
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'thread % belongs to somebody else', foreigner USING ERRCODE = 'CH002';
    END IF;
END
$$;

-- What may not be seen may not be written either. Whatever table has a `thread_id` is covered, and nothing else is reached.
DO $$
DECLARE
    name text;
    has_thread boolean;
    has_owner boolean;
    is_mine CONSTANT text := 'owner = (SELECT charm_user_v1())';
    of_mine text;
BEGIN
    FOR name, has_thread, has_owner IN
        SELECT c.relname, bool_or(a.attname = 'thread_id'), bool_or(a.attname = 'owner')
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = quote_ident(current_schema)::regnamespace AND c.relkind IN ('r', 'p')
        GROUP BY c.relname
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC, anon, authenticated, service_role', name);
        EXECUTE format('DROP POLICY IF EXISTS charm_own ON %I', name);
        CONTINUE WHEN NOT has_thread;
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO authenticated, service_role', name);
        of_mine := format(
            'EXISTS (SELECT FROM charm_threads t WHERE t.thread_id = %I.thread_id COLLATE "C")', name
        );
        EXECUTE format(
            'CREATE POLICY charm_own ON %I TO authenticated USING (%s) WITH CHECK (%s)', name,
            CASE WHEN has_owner THEN is_mine ELSE of_mine END,
            concat_ws(' AND ', CASE WHEN has_owner THEN is_mine END, CASE WHEN name <> 'charm_threads' THEN of_mine END)
        );
    END LOOP;
END
$$;
-- A thread that was deleted leaves its tombstone, and stays its owner's.
REVOKE DELETE ON charm_threads FROM authenticated, service_role;

-- Which release's these are, anybody who has signed in may know.
DROP POLICY IF EXISTS charm_read ON charm_migrations;
CREATE POLICY charm_read ON charm_migrations FOR SELECT TO authenticated USING (true);
GRANT SELECT ON charm_migrations TO authenticated, service_role;
