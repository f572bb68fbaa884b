-- Topics that somebody opened to subscribers.
create table topics (
    app_id             uuid not null references apps (id) on delete cascade,
    name               text collate "C" not null,   -- a topic, or the beginning of many and `*`
    auth_mode          text not null,               -- public | token | session
    retention_s        bigint not null,
    retention_messages bigint not null,             -- of each topic
    cors_origins       text not null,               -- JSON array
    created_at         timestamptz not null,
    updated_at         timestamptz not null,
    primary key (app_id, name)
);

-- What is told to streams: one channel for each open topic that something was published to, and one
-- for the events of the instance. No foreign keys: the sweep removes what belongs to nothing any more.
create table channels (
    app_id    uuid not null,              -- nil: the instance
    topic     text collate "C" not null,  -- empty: its events
    begin_seq bigint not null,            -- the number before the first
    swept_seq bigint not null,            -- the last number that the sweep removed
    last_seq  bigint not null,            -- the last number given out: the row is the lock that keeps them in order
    primary key (app_id, topic)
);

-- The entries of the channels. Each number is there, from swept_seq + 1 to last_seq.
create table journal (
    app_id     uuid not null,
    topic      text collate "C" not null,
    seq        bigint not null,
    id         uuid not null,
    kind       text not null,             -- message, or what happened
    about      uuid,                      -- the app that an event of the instance is about
    body       text not null,             -- JSON
    written_at timestamptz not null,
    primary key (app_id, topic, seq)
);

-- Which topics fire a trigger.
create table pubsub_triggers (
    trigger_id uuid primary key references triggers (id) on delete cascade,
    topic      text not null              -- a glob
);

-- What signs subscriber tokens. One that is not the newest is good for a while.
create table subscriber_keys (
    app_id     uuid not null references apps (id) on delete cascade,
    number     bigint not null,
    key_id     bytea not null,         -- which master key it is encrypted under
    sealed     bytea not null,
    created_at timestamptz not null,
    good_until timestamptz,                       -- null: it is the newest
    primary key (app_id, number)
);
