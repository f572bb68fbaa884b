-- Somebody who is disabled neither signs in nor has their triggers run.
alter table users add column disabled_at timestamptz;

-- The part that every kind of trigger has.
create table triggers (
    id            uuid primary key,
    app_id        uuid not null references apps (id) on delete cascade,
    script_id     uuid not null,          -- a trigger outlives its script, as a route does
    kind          text not null,          -- kv | dead_letter
    name          text not null,
    enabled       boolean not null,       -- whether events make deliveries
    paused        boolean not null,       -- whether its deliveries are kept for later
    dispatch_mode text not null,          -- async
    attempts_max  bigint not null,
    backoff       text not null,          -- exponential | linear | constant
    base_ms       bigint not null,
    jitter_pct    bigint not null,
    ordered_by    text,                   -- key: one after another for each key
    idempotency   text,                   -- JSON: where in the event the key is, and for how long it holds
    registered_by_principal uuid not null,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    unique (app_id, name)
);

create table kv_triggers (
    trigger_id uuid primary key references triggers (id) on delete cascade,
    collection text not null,             -- *, exact or prefix:*
    ops        text not null,             -- JSON array of insert, update, delete
    key        text                       -- a glob as well; null: every key
);

-- Which dead letters; null: all.
create table dead_letter_triggers (
    trigger_id     uuid primary key references triggers (id) on delete cascade,
    source         text,
    of_trigger_id  uuid,
    of_script_id   uuid
);

alter table routes add column idempotency text;    -- JSON: for how long a key holds, whether answers are kept

alter table outbox add column trigger_id uuid;
alter table outbox add column script_version bigint;           -- null: the current one
alter table outbox add column parent_execution_id uuid;        -- what caused it, if an execution did
alter table outbox add column dead_letter_id uuid;             -- the dead letter that it repeats, or tells of
alter table outbox add column backoff text not null default 'exponential';
alter table outbox add column base_ms bigint not null default 1000;
alter table outbox add column jitter_pct bigint not null default 20;
alter table outbox add column history text not null default '[]';  -- JSON: the attempts so far
alter table outbox add column order_key text;                  -- deliveries of one key run one after another
alter table outbox add column order_seq bigint;
alter table outbox add column held boolean not null default false;    -- its trigger is paused
alter table outbox add column blocked boolean not null default false; -- one of its key comes before it
drop index outbox_due;
-- The claim goes app by app: `where app_id = $1 and due_at <= $2 order by due_at limit $3`.
create index outbox_due on outbox (app_id, due_at) where not held and not blocked;
create index outbox_order on outbox (order_key, order_seq) where order_key is not null;
create index outbox_trigger on outbox (trigger_id) where trigger_id is not null;
create index outbox_held on outbox (trigger_id) where held;
create index outbox_blocked on outbox (order_key) where blocked;

alter table executions add column parent_id uuid;
alter table executions add column trigger_id uuid;
create index executions_request on executions (request_id);
create index executions_delivery on executions (delivery_id) where delivery_id is not null;

-- Deliveries that used up their attempts, whole: each can be put back as it was. No foreign
-- keys: an attempt may end after its app has gone.
create table dead_letters (
    id                  uuid primary key,
    app_id              uuid not null,
    script_id           uuid not null,
    script_version      bigint not null,  -- that the last attempt ran; 0 when none could
    trigger_id          uuid,
    source              text not null,    -- http | kv
    payload             text not null,    -- JSON, verbatim
    request_id          uuid not null,
    parent_execution_id uuid,
    principal_id        uuid,
    trigger_depth       bigint not null,
    attempts_max        bigint not null,
    backoff             text not null,
    base_ms             bigint not null,
    jitter_pct          bigint not null,
    order_key           text,
    delivery_id         uuid not null,
    replay_of           uuid,             -- the dead letter that its delivery was a replay of
    history             text not null,    -- JSON: every attempt
    attempts            bigint not null,
    last_error          text not null,
    first_attempt_at    timestamptz not null,
    last_attempt_at     timestamptz not null,
    state               text not null,    -- unresolved | replayed | resolved
    handler_failed      boolean not null,
    reason              text,             -- ignored | handled_by_script, when resolved
    replayed_as         uuid,             -- the delivery that repeats it
    settled_by          uuid,             -- the principal who replayed or resolved it
    settled_at          timestamptz,
    created_at          timestamptz not null
);
create index dead_letters_app on dead_letters (app_id, id);
create index dead_letters_unresolved on dead_letters (app_id, id) where state = 'unresolved';

-- What makes two calls with one key one execution.
create table idempotency_keys (
    app_id       uuid not null,
    scope        uuid not null,           -- the route or the trigger
    key          text not null,
    request_hash bytea not null,
    execution_id uuid not null,           -- that of the first call; its delivery's id too
    answer       text,                    -- JSON: the first answer, if it is kept
    expires_at   timestamptz not null,
    primary key (app_id, scope, key)
);
create index idempotency_keys_expiry on idempotency_keys (expires_at);
