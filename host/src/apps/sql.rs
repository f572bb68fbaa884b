//! The statements of apps and their hosts.

pub mod asked;
pub mod leaving;

use chrono::{DateTime, Utc};

use super::{App, AppId, HostPattern, Slug};
use crate::store::{Conn, Readable, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct AppRow {
    id: AppId,
    slug: String,
    name: String,
    hide_payloads_from_viewers: bool,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl AppRow {
    fn with(self, mut hosts: Vec<HostPattern>) -> Result<App, StoreError> {
        hosts.sort();
        let slug: Slug = self
            .slug
            .parse()
            .map_err(|problem| StoreError::Inconsistent {
                table: "apps",
                column: "slug",
                id: self.id.to_string(),
                problem,
            })?;
        let Self {
            id,
            name,
            hide_payloads_from_viewers,
            created_at,
            updated_at,
            ..
        } = self;
        Ok(App {
            id,
            slug,
            name,
            hosts,
            hide_payloads_from_viewers,
            created_at,
            updated_at,
        })
    }
}

/// Every app with its hosts, oldest first. Without all of its hosts an app is not read at all: it
/// would serve those that nobody claims.
pub async fn all(conn: &mut Conn) -> Result<Readable<App>, StoreError> {
    const APPS: &str = "
        select id, slug, name, hide_payloads_from_viewers, created_at, updated_at
        from apps where remove_at is null order by id";
    const HOSTS: &str = "select app_id, host from app_hosts";
    let rows: Vec<AppRow> = on!(&mut *conn, |c| sqlx::query_as(APPS).fetch_all(c).await)?;
    let hosts: Vec<(AppId, String)> =
        on!(&mut *conn, |c| sqlx::query_as(HOSTS).fetch_all(c).await)?;
    let mut by_app = std::collections::HashMap::<AppId, Vec<_>>::new();
    for (app_id, host) in hosts {
        let of_app = by_app.entry(app_id).or_default();
        of_app.push(pattern(app_id, &host));
    }
    let apps = rows.into_iter().map(|row| {
        let hosts = by_app.remove(&row.id).unwrap_or_default();
        row.with(hosts.into_iter().collect::<Result<_, _>>()?)
    });
    Ok(apps.collect())
}

fn pattern(app_id: AppId, host: &str) -> Result<HostPattern, StoreError> {
    host.parse().map_err(|problem| StoreError::Inconsistent {
        table: "app_hosts",
        column: "host",
        id: app_id.to_string(),
        problem,
    })
}

/// Every host that an app was ever given. What cannot be read is none that a browser could ask for.
pub async fn given_hosts(conn: &mut Conn) -> Result<Vec<HostPattern>, StoreError> {
    const SQL: &str = "select host from given_hosts";
    let hosts: Vec<String> = on!(conn, |c| sqlx::query_scalar(SQL).fetch_all(c).await)?;
    Ok(hosts.iter().filter_map(|host| host.parse().ok()).collect())
}

/// Whether there is an app, which is not about to be removed.
pub async fn is_there(tx: &mut Tx, id: AppId) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from apps where id = $1 and remove_at is null";
    let count: i64 = on!(tx.conn().await?, |c| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_one(c)
        .await)?;
    Ok(count > 0)
}

/// One app.
pub async fn get(conn: &mut Conn, id: AppId) -> Result<Option<App>, StoreError> {
    const APP: &str = "
        select id, slug, name, hide_payloads_from_viewers, created_at, updated_at
        from apps where id = $1 and remove_at is null";
    const HOSTS: &str = "select host from app_hosts where app_id = $1";
    let row: Option<AppRow> = on!(&mut *conn, |c| sqlx::query_as(APP)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    let Some(row) = row else { return Ok(None) };
    let hosts: Vec<String> = on!(&mut *conn, |c| sqlx::query_scalar(HOSTS)
        .bind(id)
        .fetch_all(c)
        .await)?;
    let hosts = hosts
        .iter()
        .map(|host| pattern(id, host))
        .collect::<Result<_, _>>()?;
    row.with(hosts).map(Some)
}

/// Add an app, without its hosts and settings. [`StoreError::Duplicate`] when the slug is taken.
pub async fn insert(tx: &mut Tx, id: AppId, slug: &Slug, name: &str) -> Result<(), StoreError> {
    const SQL: &str =
        "insert into apps (id, slug, name, created_at, updated_at) values ($1, $2, $3, $4, $4)";
    let now = tx.now;
    on!(tx.conn().await?, |c| {
        let query = sqlx::query(SQL)
            .bind(id)
            .bind(slug.as_str())
            .bind(name)
            .bind(now);
        query.execute(c).await.map(|_| ())
    })?;
    Ok(())
}

/// Change an app, but not its hosts. [`StoreError::Duplicate`] when the slug is taken.
pub async fn update(tx: &mut Tx, app: &App) -> Result<(), StoreError> {
    const SQL: &str = "
        update apps set slug = $2, name = $3, hide_payloads_from_viewers = $4, updated_at = $5
        where id = $1";
    let now = tx.now;
    on!(tx.conn().await?, |c| {
        let query = sqlx::query(SQL)
            .bind(app.id)
            .bind(app.slug.as_str())
            .bind(&app.name)
            .bind(app.hide_payloads_from_viewers)
            .bind(now);
        query.execute(c).await.map(|_| ())
    })?;
    Ok(())
}

/// Replace the hosts of an app. [`StoreError::Duplicate`] when another app has one of them.
pub async fn set_hosts(tx: &mut Tx, id: AppId, hosts: &[HostPattern]) -> Result<(), StoreError> {
    const CLEAR: &str = "delete from app_hosts where app_id = $1";
    const ADD: &str = "insert into app_hosts (host, app_id) values ($1, $2)";
    const REMEMBER: &str = "insert into given_hosts (host) values ($1) on conflict do nothing";
    on!(tx.conn().await?, |c| sqlx::query(CLEAR)
        .bind(id)
        .execute(c)
        .await
        .map(|_| ()))?;
    for host in hosts {
        on!(tx.conn().await?, |c| sqlx::query(ADD)
            .bind(host.to_string())
            .bind(id)
            .execute(c)
            .await
            .map(|_| ()))?;
        on!(tx.conn().await?, |c| sqlx::query(REMEMBER)
            .bind(host.to_string())
            .execute(c)
            .await
            .map(|_| ()))?;
        asked::answer(tx, id, host).await?;
    }
    Ok(())
}
