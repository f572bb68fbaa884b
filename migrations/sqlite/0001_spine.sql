-- Who may sign in. One owner for now.
create table users (
    id            blob primary key,
    name          text not null unique,
    password_hash text not null,          -- PHC string, argon2id
    role          text not null,          -- owner
    created_at    text not null
) strict;

create table sessions (
    id         blob primary key,
    user_id    blob not null references users (id) on delete cascade,
    token_hash blob not null unique,      -- SHA-256 of the bearer token
    created_at text not null,
    expires_at text not null
) strict;

create table apps (
    id         blob primary key,
    slug       text not null unique,
    name       text not null,
    created_at text not null,
    updated_at text not null
) strict;

-- The hosts that an app claims: exact (`a.example.com`) or wildcard (`*.example.com`).
create table app_hosts (
    host   text primary key,
    app_id blob not null references apps (id) on delete cascade
) strict;
create index app_hosts_app on app_hosts (app_id);

create table scripts (
    id         blob primary key,
    app_id     blob not null references apps (id) on delete cascade,
    name       text not null,
    kind       text not null,             -- rhai | component
    version    integer not null,          -- the current one
    limits     text not null,             -- JSON; an absent member means the instance's default
    created_at text not null,
    updated_at text not null,
    unique (app_id, name)
) strict;

-- What each version runs: it never changes once written.
create table script_versions (
    script_id  blob not null references scripts (id) on delete cascade,
    version    integer not null,
    code       blob not null,             -- the source in UTF-8, or the component's bytes
    created_at text not null,
    primary key (script_id, version)
) strict, without rowid;

-- A route outlives its script: it then answers 404 until it is given another one.
create table routes (
    id            blob primary key,
    app_id        blob not null references apps (id) on delete cascade,
    script_id     blob not null,
    method        text not null,          -- ANY or a method
    host          text,                   -- null: any host of the app
    path          text not null,
    dispatch_mode text not null,          -- sync | async
    conflict_key  text not null,          -- method, host and the shape of the path: what must be unique
    created_at    text not null,
    updated_at    text not null,
    unique (app_id, conflict_key)
) strict;

create table kv (
    app_id     blob not null references apps (id) on delete cascade,
    collection text not null,
    key        text not null,
    value      text not null,             -- JSON
    updated_at text not null,
    primary key (app_id, collection, key)
) strict, without rowid;

-- One row: the version of what every node caches (apps, scripts, routes).
create table directory_version (
    id      integer primary key check (id = 1),
    version integer not null,
    beat    integer not null           -- changes when the store tries whether it can write again
) strict;
insert into directory_version (id, version, beat) values (1, 1, 0);

-- Deliveries that are not done. No foreign keys: an app or a script that goes
-- while a delivery waits gives that delivery its outcome.
create table outbox (
    id                blob primary key,   -- also the id of the first attempt's execution
    app_id            blob not null,
    script_id         blob not null,
    invocation_type   text not null,      -- http | http_async
    payload           text not null,      -- JSON: the request
    request_id        blob not null,
    principal_id      blob,
    trigger_depth     integer not null,
    reply_to          blob,               -- the worker in whose inbox a sync caller waits
    attempt           integer not null,   -- claims so far; together with lease_owner it fences
    attempts_max      integer not null,
    due_at            text not null,      -- when it may be claimed: when due, or when its lease ends
    lease_owner       blob,
    created_at        text not null
) strict;
-- The claim: `where due_at <= $1 order by due_at limit $2`.
create index outbox_due on outbox (due_at);
-- The heartbeat and the release: `where lease_owner = $1`.
create index outbox_lease on outbox (lease_owner) where lease_owner is not null;

create table executions (
    id              blob primary key,
    app_id          blob not null,
    script_id       blob not null,
    script_version  integer not null,
    delivery_id     blob,
    attempt         integer not null,
    invocation_type text not null,
    request_id      blob not null,
    outcome         text not null,
    status          integer,              -- what a sync caller was answered
    started_at      text not null,
    duration_us     integer not null,
    fuel            integer not null,
    error           text,                 -- JSON
    logs            text not null,        -- JSON array
    logs_truncated  integer not null
) strict;
create index executions_app on executions (app_id, id);
create index executions_script on executions (script_id, id);

-- Sync deliveries whose caller did not receive the outcome.
create table abandoned_executions (
    id           blob primary key,
    execution_id blob not null,
    app_id       blob not null,
    script_id    blob not null,
    reason       text not null,           -- caller_gone | timed_out | lease_expired
    created_at   text not null
) strict;
create index abandoned_executions_app on abandoned_executions (app_id, id);
