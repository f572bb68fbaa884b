-- The processes that serve this instance, from their start to a day after they were last heard of.
create table nodes (
    id         blob primary key,        -- as on leases; a new one at each start
    hostname   text not null,
    version    text not null,
    started_at text not null,
    seen_at    text not null
) strict;
