-- Which pages of other origins may call a route.
alter table routes add column cors text; -- JSON
