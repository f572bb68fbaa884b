-- Tokens that make the first owner; there are none once there is one.
create table setup_tokens (
    token_hash bytea primary key,         -- SHA-256
    created_at timestamptz not null
);
