-- The processes that serve this instance, from their start to a day after they were last heard of.
create table nodes (
    id         uuid primary key,        -- as on leases; a new one at each start
    hostname   text not null,
    version    text not null,
    started_at timestamptz not null,
    seen_at    timestamptz not null
);
