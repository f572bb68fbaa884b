-- Topics that somebody opened to subscribers.
create table topics (
    app_id             blob not null references apps (id) on delete cascade,
    name               text not null,               -- a topic, or the beginning of many and `*`
    auth_mode          text not null,               -- public | token | session
    retention_s        integer not null,
    retention_messages integer not null,            -- of each topic
    cors_origins       text not null,               -- JSON array
    created_at         text not null,
    updated_at         text not null,
    primary key (app_id, name)
) strict, without rowid;

-- What is told to streams: one channel for each open topic that something was published to, and one
-- for the events of the instance. No foreign keys: the sweep removes what belongs to nothing any more.
create table channels (
    app_id    blob not null,              -- nil: the instance
    topic     text not null,              -- empty: its events
    begin_seq integer not null,           -- the number before the first
    swept_seq integer not null,           -- the last number that the sweep removed
    last_seq  integer not null,           -- the last number given out: the row is the lock that keeps them in order
    primary key (app_id, topic)
) strict, without rowid;

-- The entries of the channels. Each number is there, from swept_seq + 1 to last_seq.
create table journal (
    app_id     blob not null,
    topic      text not null,
    seq        integer not null,
    id         blob not null,
    kind       text not null,             -- message, or what happened
    about      blob,                      -- the app that an event of the instance is about
    body       text not null,             -- JSON
    written_at text not null,
    primary key (app_id, topic, seq)
) strict;

-- Which topics fire a trigger.
create table pubsub_triggers (
    trigger_id blob primary key references triggers (id) on delete cascade,
    topic      text not null              -- a glob
) strict;

-- What signs subscriber tokens. One that is not the newest is good for a while.
create table subscriber_keys (
    app_id     blob not null references apps (id) on delete cascade,
    number     integer not null,
    key_id     blob not null,         -- which master key it is encrypted under
    sealed     blob not null,
    created_at text not null,
    good_until text,                       -- null: it is the newest
    primary key (app_id, number)
) strict, without rowid;
