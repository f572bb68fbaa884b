//! Which hosts an app claims. No two apps claim hosts that overlap, and no claim goes without a
//! word while routes are bound to it.

use super::{App, AppError, AppId, HostPattern, sql};
use crate::directory;
use crate::routes::{self, Route};
use crate::store::Tx;

/// Give an app these hosts in place of those that it has.
///
/// # Errors
/// [`AppError::HostTaken`] when another app claims one that overlaps,
/// [`AppError::WouldOrphan`] when routes of the app would be on hosts that it does not claim any
/// more, unless `orphan` says that this is meant.
pub async fn claim(
    tx: &mut Tx,
    app_id: AppId,
    hosts: &[HostPattern],
    orphan: bool,
) -> Result<(), AppError> {
    // Raising the version first makes such changes wait for each other: two that claim what
    // overlaps see one another.
    directory::raise_version(tx).await?;
    let others = sql::all(tx.conn().await?).await?.or_fail()?;
    let (own, others): (Vec<App>, Vec<App>) = others.into_iter().partition(|app| app.id == app_id);
    check(hosts, &others)?;
    let before = own.into_iter().flat_map(|app| app.hosts);
    let gone: Vec<HostPattern> = before.filter(|host| !hosts.contains(host)).collect();
    if !gone.is_empty() && !orphan {
        let routes = routes::sql::with_hosts(tx.conn().await?, app_id).await?;
        let orphans = |route: &Route| {
            let host = route.host.as_ref();
            host.is_some_and(|host| !hosts.iter().any(|claim| claim.covers(host)))
        };
        let orphans: Vec<Route> = routes.into_iter().filter(orphans).collect();
        if !orphans.is_empty() {
            return Err(AppError::WouldOrphan(orphans));
        }
    }
    Ok(sql::set_hosts(tx, app_id, hosts).await?)
}

/// Refuse hosts that overlap with those of other apps.
///
/// # Errors
/// [`AppError::HostTaken`].
pub fn check(hosts: &[HostPattern], others: &[App]) -> Result<(), AppError> {
    for host in hosts {
        let claimed = others.iter().flat_map(|app| &app.hosts);
        let overlaps = |other: &&HostPattern| other.covers(host) || host.covers(other);
        if let Some(claimed) = claimed.clone().find(overlaps) {
            let (host, claimed) = (host.clone(), claimed.clone());
            return Err(AppError::HostTaken { host, claimed });
        }
    }
    Ok(())
}
