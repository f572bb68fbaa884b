-- Whether viewers of an app see neither what requests and events carried nor what scripts said of it.
alter table apps add column hide_payloads_from_viewers integer not null default 0;
