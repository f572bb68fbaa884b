-- Tokens that make the first owner; there are none once there is one.
create table setup_tokens (
    token_hash blob primary key,          -- SHA-256
    created_at text not null
) strict, without rowid;
