-- What an app's scripts may read and no API answers.
create table secrets (
    app_id     blob not null references apps (id) on delete cascade,
    name       text not null,
    scripts    text,                      -- JSON: ids of those that may read it; null: all of the app
    key_id     blob not null,             -- which master key: the first 8 bytes of its SHA-256
    sealed     blob not null,             -- nonce and ciphertext, XChaCha20-Poly1305; app and name are authenticated
    created_at text not null,
    updated_at text not null,
    primary key (app_id, name)
) strict, without rowid;
