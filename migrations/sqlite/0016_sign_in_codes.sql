-- What a program makes a session of, once its user has signed in at the provider in a browser.
create table sign_in_codes (
    code_hash      blob primary key,      -- SHA-256
    user_id        blob not null references users (id) on delete cascade,
    code_challenge text not null,         -- of the verifier that the program keeps
    created_at     text not null,
    expires_at     text not null
) strict, without rowid;
create index sign_in_codes_user on sign_in_codes (user_id);
