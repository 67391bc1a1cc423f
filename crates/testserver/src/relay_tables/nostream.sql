-- The part of nostream 3's schema that holds events, as its migrations leave it. Columns and indexes are in
-- the order in which the migrations add them; event_delegator was dropped again.
CREATE EXTENSION "uuid-ossp";
CREATE EXTENSION btree_gin;
CREATE TABLE events (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    event_id bytea NOT NULL CONSTRAINT events_event_id_unique UNIQUE,
    event_pubkey bytea NOT NULL,
    event_kind integer NOT NULL,
    event_created_at integer NOT NULL,
    event_content text NOT NULL,
    event_tags jsonb,
    event_signature bytea NOT NULL,
    first_seen timestamp DEFAULT CURRENT_TIMESTAMP,
    event_delegator bytea,
    deleted_at timestamp,
    event_deduplication jsonb,
    remote_address inet,
    expires_at integer
);
ALTER TABLE events DROP COLUMN event_delegator;
CREATE INDEX events_event_id_index ON events (event_id);
CREATE INDEX events_event_pubkey_index ON events (event_pubkey);
CREATE INDEX events_event_kind_index ON events (event_kind);
CREATE INDEX events_event_created_at_index ON events (event_created_at);
CREATE INDEX event_tags_idx ON events USING gin (event_tags);
CREATE UNIQUE INDEX replaceable_events_idx ON events (event_pubkey, event_kind, event_deduplication)
    WHERE event_kind = 0 OR event_kind = 3 OR event_kind = 41
        OR event_kind >= 10000 AND event_kind < 20000 OR event_kind >= 30000 AND event_kind < 40000;
CREATE INDEX kind_tags_created_at_idx ON events USING gin (event_kind, event_tags, event_created_at);
CREATE INDEX events_expires_at_index ON events (expires_at);
CREATE INDEX events_active_pubkey_kind_created_at_idx
    ON events (event_pubkey, event_kind, event_created_at DESC, event_id);
CREATE INDEX events_deleted_at_partial_idx ON events (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX events_content_fts_idx ON events USING gin (to_tsvector('simple', event_content));

-- Tags of one letter with a value, written by a trigger.
CREATE TABLE event_tags (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    event_id bytea NOT NULL,
    tag_name text NOT NULL,
    tag_value text NOT NULL
);
CREATE INDEX event_tags_event_id_index ON event_tags (event_id);
CREATE INDEX event_tags_tag_name_tag_value_index ON event_tags (tag_name, tag_value);
CREATE FUNCTION process_event_tags() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM event_tags WHERE event_id = OLD.event_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO event_tags (event_id, tag_name, tag_value)
            SELECT NEW.event_id, tag ->> 0, tag ->> 1 FROM jsonb_array_elements(NEW.event_tags) AS tag
            WHERE length(tag ->> 0) = 1 AND tag ->> 1 <> '';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER insert_event_tags AFTER INSERT OR UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION process_event_tags();
