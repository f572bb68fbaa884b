-- Until when an app is kept that nobody sees, because it is being imported or was deleted; null: it
-- is seen, and kept.
alter table apps add column remove_at timestamptz;
create index apps_leaving on apps (remove_at) where remove_at is not null;
