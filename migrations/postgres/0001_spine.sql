-- Who may sign in. One owner for now.
create table users (
    id            uuid primary key,
    name          text not null unique,
    password_hash text not null,          -- PHC string, argon2id
    role          text not null,          -- owner
    created_at    timestamptz not null
);

create table sessions (
    id         uuid primary key,
    user_id    uuid not null references users (id) on delete cascade,
    token_hash bytea not null unique,      -- SHA-256 of the bearer token
    created_at timestamptz not null,
    expires_at timestamptz not null
);

create table apps (
    id         uuid primary key,
    slug       text not null unique,
    name       text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

-- The hosts that an app claims: exact (`a.example.com`) or wildcard (`*.example.com`).
create table app_hosts (
    host   text primary key,
    app_id uuid not null references apps (id) on delete cascade
);
create index app_hosts_app on app_hosts (app_id);

create table scripts (
    id         uuid primary key,
    app_id     uuid not null references apps (id) on delete cascade,
    name       text not null,
    kind       text not null,             -- rhai | component
    version    bigint not null,          -- the current one
    limits     text not null,             -- JSON; an absent member means the instance's default
    created_at timestamptz not null,
    updated_at timestamptz not null,
    unique (app_id, name)
);

-- What each version runs: it never changes once written.
create table script_versions (
    script_id  uuid not null references scripts (id) on delete cascade,
    version    bigint not null,
    code       bytea not null,             -- the source in UTF-8, or the component's bytes
    created_at timestamptz not null,
    primary key (script_id, version)
);

-- A route outlives its script: it then answers 404 until it is given another one.
create table routes (
    id            uuid primary key,
    app_id        uuid not null references apps (id) on delete cascade,
    script_id     uuid not null,
    method        text not null,          -- ANY or a method
    host          text,                   -- null: any host of the app
    path          text not null,
    dispatch_mode text not null,          -- sync | async
    conflict_key  text not null,          -- method, host and the shape of the path: what must be unique
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    unique (app_id, conflict_key)
);

create table kv (
    app_id     uuid not null references apps (id) on delete cascade,
    collection text collate "C" not null,
    key        text collate "C" not null,
    value      text not null,             -- JSON
    updated_at timestamptz not null,
    primary key (app_id, collection, key)
);

-- One row: the version of what every node caches (apps, scripts, routes).
create table directory_version (
    id      bigint primary key check (id = 1),
    version bigint not null,
    beat    bigint not null           -- changes when the store tries whether it can write again
);
insert into directory_version (id, version, beat) values (1, 1, 0);

-- Deliveries that are not done. No foreign keys: an app or a script that goes
-- while a delivery waits gives that delivery its outcome.
create table outbox (
    id                uuid primary key,   -- also the id of the first attempt's execution
    app_id            uuid not null,
    script_id         uuid not null,
    invocation_type   text not null,      -- http | http_async
    payload           text not null,      -- JSON: the request
    request_id        uuid not null,
    principal_id      uuid,
    trigger_depth     bigint not null,
    reply_to          uuid,               -- the worker in whose inbox a sync caller waits
    attempt           bigint not null,   -- claims so far; together with lease_owner it fences
    attempts_max      bigint not null,
    due_at            timestamptz not null,      -- when it may be claimed: when due, or when its lease ends
    lease_owner       uuid,
    created_at        timestamptz not null
);
-- The claim: `where due_at <= $1 order by due_at limit $2`.
create index outbox_due on outbox (due_at);
-- The heartbeat and the release: `where lease_owner = $1`.
create index outbox_lease on outbox (lease_owner) where lease_owner is not null;

create table executions (
    id              uuid primary key,
    app_id          uuid not null,
    script_id       uuid not null,
    script_version  bigint not null,
    delivery_id     uuid,
    attempt         bigint not null,
    invocation_type text not null,
    request_id      uuid not null,
    outcome         text not null,
    status          bigint,              -- what a sync caller was answered
    started_at      timestamptz not null,
    duration_us     bigint not null,
    fuel            bigint not null,
    error           text,                 -- JSON
    logs            text not null,        -- JSON array
    logs_truncated  boolean not null
);
create index executions_app on executions (app_id, id);
create index executions_script on executions (script_id, id);

-- Sync deliveries whose caller did not receive the outcome.
create table abandoned_executions (
    id           uuid primary key,
    execution_id uuid not null,
    app_id       uuid not null,
    script_id    uuid not null,
    reason       text not null,           -- caller_gone | timed_out | lease_expired
    created_at   timestamptz not null
);
create index abandoned_executions_app on abandoned_executions (app_id, id);
