-- The API key that an invitation was made with; null where somebody signed in made it.
alter table links add column api_key_id blob references api_keys (id) on delete cascade;
