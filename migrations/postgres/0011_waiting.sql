-- What waited in an app: a row for each minute in which anything did, for the plots of its overview.
create table waiting_samples (
    app_id        uuid not null,
    at            timestamptz not null, -- the minute
    waiting       bigint not null,      -- counted up to a bound
    oldest_due_at timestamptz not null,
    primary key (app_id, at)
);
create index waiting_samples_age on waiting_samples (at);
