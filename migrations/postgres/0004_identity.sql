-- What somebody may do in an app that they do not get from their role on the instance.
create table members (
    app_id     uuid not null references apps (id) on delete cascade,
    user_id    uuid not null references users (id) on delete cascade,
    role       text not null,             -- app_admin | editor | viewer
    created_at timestamptz not null,
    primary key (app_id, user_id)
);
create index members_user on members (user_id);

alter table sessions add column last_used_at timestamptz;
alter table sessions add column address text;
alter table sessions add column user_agent text;
create index sessions_user on sessions (user_id);

-- Links that are good once: to join, or to set a new password.
create table links (
    id         uuid primary key,
    token_hash bytea not null unique,     -- SHA-256
    user_id    uuid references users (id) on delete cascade,  -- whose password; null: to join
    role       text not null,             -- of whoever joins
    apps       text not null,             -- JSON: app id to role, of whoever joins
    created_by uuid not null references users (id) on delete cascade,
    created_at timestamptz not null,
    expires_at timestamptz not null
);

create table api_keys (
    id           uuid primary key,
    user_id      uuid not null references users (id) on delete cascade,
    name         text not null,
    token_hash   bytea not null unique,    -- SHA-256
    token_start  text not null,           -- the first characters, to tell keys apart
    scopes       text not null,           -- JSON
    apps         text,                    -- JSON: ids; null: whatever its user may reach
    created_at   timestamptz not null,
    expires_at   timestamptz,
    last_used_at timestamptz,
    unique (user_id, name)
);

-- Who did what. Rows are added and, past retention, removed; never changed. No foreign keys: it
-- tells of what is gone, too.
create table audit (
    id         uuid primary key,
    at         timestamptz not null,
    user_id    uuid,
    api_key_id uuid,
    who        text not null,             -- the name at that time
    action     text not null,
    app_id     uuid,
    target     text not null,             -- the path
    status     bigint  not null,          -- what was answered
    address    text not null
);
create index audit_app on audit (app_id, id);
create index audit_user on audit (user_id, id);
