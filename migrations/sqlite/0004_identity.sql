-- What somebody may do in an app that they do not get from their role on the instance.
create table members (
    app_id     blob not null references apps (id) on delete cascade,
    user_id    blob not null references users (id) on delete cascade,
    role       text not null,             -- app_admin | editor | viewer
    created_at text not null,
    primary key (app_id, user_id)
) strict, without rowid;
create index members_user on members (user_id);

alter table sessions add column last_used_at text;
alter table sessions add column address text;
alter table sessions add column user_agent text;
create index sessions_user on sessions (user_id);

-- Links that are good once: to join, or to set a new password.
create table links (
    id         blob primary key,
    token_hash blob not null unique,      -- SHA-256
    user_id    blob references users (id) on delete cascade,  -- whose password; null: to join
    role       text not null,             -- of whoever joins
    apps       text not null,             -- JSON: app id to role, of whoever joins
    created_by blob not null references users (id) on delete cascade,
    created_at text not null,
    expires_at text not null
) strict;

create table api_keys (
    id           blob primary key,
    user_id      blob not null references users (id) on delete cascade,
    name         text not null,
    token_hash   blob not null unique,    -- SHA-256
    token_start  text not null,           -- the first characters, to tell keys apart
    scopes       text not null,           -- JSON
    apps         text,                    -- JSON: ids; null: whatever its user may reach
    created_at   text not null,
    expires_at   text,
    last_used_at text,
    unique (user_id, name)
) strict;

-- Who did what. Rows are added and, past retention, removed; never changed. No foreign keys: it
-- tells of what is gone, too.
create table audit (
    id         blob primary key,
    at         text not null,
    user_id    blob,
    api_key_id blob,
    who        text not null,             -- the name at that time
    action     text not null,
    app_id     blob,
    target     text not null,             -- the path
    status     integer not null,          -- what was answered
    address    text not null
) strict;
create index audit_app on audit (app_id, id);
create index audit_user on audit (user_id, id);
