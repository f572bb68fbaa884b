-- What a route does with its path written with, or without, a slash at its end.
alter table routes add column trailing_slash text not null default 'strict';  -- strict | redirect
