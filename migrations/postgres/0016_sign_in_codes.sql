-- What a program makes a session of, once its user has signed in at the provider in a browser.
create table sign_in_codes (
    code_hash      bytea primary key,     -- SHA-256
    user_id        uuid not null references users (id) on delete cascade,
    code_challenge text not null,         -- of the verifier that the program keeps
    created_at     timestamptz not null,
    expires_at     timestamptz not null
);
create index sign_in_codes_user on sign_in_codes (user_id);
