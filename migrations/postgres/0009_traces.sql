-- Where work is in a trace (W3C Trace Context); null where nobody traces it.
alter table outbox add column traceparent text;
alter table dead_letters add column traceparent text;
alter table executions add column trace_id text;
create index executions_trace on executions (trace_id) where trace_id is not null;
