-- Version 1 of an outbox in a SQLite database.

-- Which version of all this is here.
CREATE TABLE ringfence_outbox_meta (version INTEGER NOT NULL);
INSERT INTO ringfence_outbox_meta VALUES (1);

-- What is still to be sent. What a sink has taken is deleted.
CREATE TABLE ringfence_outbox_messages (
    -- Rises with every message, in the order in which their transactions were committed: only one writes at a time.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Stays the same whenever the message is sent again.
    id TEXT NOT NULL DEFAULT (
        lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-a'
            || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))
    ),
    topic TEXT NOT NULL CHECK (
        length(CAST(topic AS BLOB)) BETWEEN 1 AND 255
        AND topic NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*'
    ),
    -- What is sent in order. A message without a key has no order.
    key TEXT CHECK (
        length(CAST(key AS BLOB)) BETWEEN 1 AND 255
        AND key NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*'
    ),
    payload BLOB NOT NULL CHECK (length(CAST(payload AS BLOB)) <= 262144),
    -- In milliseconds since the start of 1970, as all times here but `until`.
    enqueued_at INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
    -- Which relay may send it: the one that has claimed the one lane that there is.
    lane INTEGER NOT NULL DEFAULT 0 CHECK (lane = 0),
    -- How often it was given to a sink. It is counted before.
    attempts INTEGER NOT NULL DEFAULT 0,
    -- How often a sink has said no to it.
    refusals INTEGER NOT NULL DEFAULT 0,
    -- Before this its key is not tried again.
    retry_at INTEGER,
    dead_at INTEGER,
    last_error TEXT
);

CREATE INDEX ringfence_outbox_messages_due ON ringfence_outbox_messages (lane, number) WHERE dead_at IS NULL;
CREATE INDEX ringfence_outbox_messages_waiting ON ringfence_outbox_messages (key, retry_at)
    WHERE retry_at IS NOT NULL AND dead_at IS NULL;
CREATE INDEX ringfence_outbox_messages_dead ON ringfence_outbox_messages (number) WHERE dead_at IS NOT NULL;

-- Who may send: a relay claims the lane, and every claim has a higher token than the one before.
CREATE TABLE ringfence_outbox_lanes (
    lane INTEGER PRIMARY KEY,
    token INTEGER NOT NULL DEFAULT 0,
    -- By the clock of the machine since it booted, in milliseconds.
    until INTEGER NOT NULL DEFAULT 0,
    -- Since which boot: the claims of an earlier one are over.
    clock TEXT NOT NULL DEFAULT '',
    relay TEXT NOT NULL DEFAULT ''
);
INSERT INTO ringfence_outbox_lanes (lane) VALUES (0);
