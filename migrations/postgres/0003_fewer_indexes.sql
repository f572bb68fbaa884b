-- Every call writes an execution, and each index is a page more to write for it. An execution that
-- began its request, or that is the only attempt at its delivery, is found by its own id instead
-- of by an entry in another index.
drop index executions_request;
drop index executions_delivery;
create index executions_request on executions (request_id) where request_id <> id;
create index executions_delivery on executions (delivery_id) where delivery_id <> id;
