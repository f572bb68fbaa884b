-- Every host that an app was ever given: browsers may still keep something of its pages there, a
-- service worker say, so nobody signs in to the instance by a cookie on it.
create table given_hosts (
    host text primary key
);
insert into given_hosts (host) select host from app_hosts;

-- Hosts that somebody asked for who may not give them.
create table host_requests (
    app_id   uuid not null references apps (id) on delete cascade,
    host     text not null,
    asked_at timestamptz not null,
    primary key (app_id, host)
);
