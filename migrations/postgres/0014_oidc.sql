-- What an OpenID provider calls a user.
create table oidc_subjects (
    issuer     text not null,
    subject    text not null,
    user_id    uuid not null references users (id) on delete cascade,
    created_at timestamptz not null,
    primary key (issuer, subject)
);
create index oidc_subjects_user on oidc_subjects (user_id);
