-- Every call writes an execution, and each index is a page more to write for it. The table is its
-- own primary key's index, and an execution that began its request, or that is the only attempt
-- at its delivery, is found by its own id instead of by an entry in another index.
create table executions_by_id (
    id              blob primary key,
    app_id          blob not null,
    script_id       blob not null,
    script_version  integer not null,
    delivery_id     blob,                 -- its own id, if it was the first attempt
    attempt         integer not null,
    parent_id       blob,
    trigger_id      blob,
    invocation_type text not null,
    request_id      blob not null,        -- its own id, if nothing led to it
    outcome         text not null,
    status          integer,              -- what a sync caller was answered
    started_at      text not null,
    duration_us     integer not null,
    fuel            integer not null,
    error           text,                 -- JSON
    logs            text not null,        -- JSON array
    logs_truncated  integer not null
) strict, without rowid;
insert into executions_by_id
select id, app_id, script_id, script_version, delivery_id, attempt, parent_id, trigger_id, invocation_type,
       request_id, outcome, status, started_at, duration_us, fuel, error, logs, logs_truncated
from executions;
drop table executions;
alter table executions_by_id rename to executions;
create index executions_app on executions (app_id, id);
create index executions_script on executions (script_id, id);
create index executions_request on executions (request_id) where request_id <> id;
create index executions_delivery on executions (delivery_id) where delivery_id <> id;
