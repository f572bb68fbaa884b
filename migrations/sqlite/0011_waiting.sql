-- What waited in an app: a row for each minute in which anything did, for the plots of its overview.
create table waiting_samples (
    app_id        blob not null,
    at            text not null,        -- the minute
    waiting       integer not null,     -- counted up to a bound
    oldest_due_at text not null,
    primary key (app_id, at)
) strict, without rowid;
create index waiting_samples_age on waiting_samples (at);
