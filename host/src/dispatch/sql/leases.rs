//! The statements that keep leases, give them back and take over those of nodes that are gone.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::TimeDelta;

use crate::dispatch::leases::Claim;
use crate::dispatch::{DeliveryId, WorkerId};
use crate::store::{Conn, Grouped, Lane, StoreError, Tx, bounded, chunks, on};

/// The first key of the advisory locks by which nodes see that others live; the second is made of
/// the worker's id.
const LOCK_CLASS: i32 = 0x7069_636c;

/// Whether a claim is held, asked at the moment of a statement.
pub type IsHeld = Arc<dyn Fn(&Claim) -> bool + Send + Sync>;

/// What is done for the leases of a worker.
pub struct Renewal {
    /// Whose they are.
    pub worker: WorkerId,
    /// How long they last from now on.
    pub lease: TimeDelta,
    /// Those that are renewed.
    pub renew: Vec<Claim>,
    /// Those that are given back: their rows are due at once.
    pub give_back: Vec<Claim>,
    /// Which of those are held once more. A claim that was not committed is let go, and the next
    /// one of the row has the same number.
    pub is_held: IsHeld,
    /// Whether it is asked what is leased to the worker.
    pub looks: bool,
    /// Whether other nodes are shown that the worker lives.
    pub beats: bool,
}

/// What came of a [`Renewal`].
pub struct Renewed {
    /// The deliveries whose leases last longer now.
    pub renewed: Vec<DeliveryId>,
    /// What is leased to the worker after it, where that is asked.
    pub leased: Option<Vec<Claim>>,
}

impl Grouped for Renewal {
    type Output = Renewed;

    fn lane(&self) -> Lane {
        Lane::Reserved
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<Self::Output>, StoreError> {
        let mut done = Vec::with_capacity(items.len());
        for item in items {
            if item.beats {
                say_alive(tx, item.worker).await?;
            }
            let renewed = renew(tx, item.worker, item.lease, &item.renew).await?;
            for claim in item.give_back.iter().filter(|claim| !(item.is_held)(claim)) {
                give_back(tx, item.worker, *claim).await?;
            }
            let leased = match item.looks {
                true => Some(leased_to(tx, item.worker).await?),
                false => None,
            };
            done.push(Renewed { renewed, leased });
        }
        Ok(done)
    }
}

/// Renew the leases of `worker` on the rows of `claims`, and answer which were. A row that is locked
/// is being settled, or claimed by somebody else: it is not waited for. On Postgres two may renew at once:
/// none makes a lease shorter than the other was told.
pub async fn renew(
    tx: &mut Tx,
    worker: WorkerId,
    lease: TimeDelta,
    claims: &[Claim],
) -> Result<Vec<DeliveryId>, StoreError> {
    const POSTGRES: &str = "
        update outbox set due_at = greatest(due_at, $3) where id = any(array(
            select id from outbox where id = any($1) and lease_owner = $2
            for update skip locked))
        returning id";
    let mut renewed = Vec::new();
    if claims.is_empty() {
        return Ok(renewed);
    }
    let until = tx.now + lease;
    match tx.conn().await? {
        Conn::Postgres(held) => {
            let ids: Vec<DeliveryId> = claims.iter().map(|(id, _)| *id).collect();
            let renewing = sqlx::query_scalar(POSTGRES)
                .bind(ids)
                .bind(worker)
                .bind(until);
            renewed = bounded!(held, |c| renewing.fetch_all(c).await)?;
        }
        Conn::Sqlite(held) => {
            for chunk in chunks(claims) {
                let mut statement = sqlx::QueryBuilder::new("update outbox set due_at = ");
                statement.push_bind(until).push(" where lease_owner = ");
                statement.push_bind(worker).push(" and id in (");
                let mut ids = statement.separated(", ");
                for (id, _) in chunk {
                    ids.push_bind(*id);
                }
                statement.push(") returning id");
                let renewing = statement.build_query_scalar::<DeliveryId>();
                renewed.extend(bounded!(held, |c| renewing.fetch_all(c).await)?);
            }
        }
    }
    Ok(renewed)
}

/// Let a row be claimed that nothing works on.
async fn give_back(tx: &mut Tx, worker: WorkerId, (id, attempt): Claim) -> Result<(), StoreError> {
    const SQL: &str = "
        update outbox set due_at = $1, lease_owner = null
        where id = $2 and attempt = $3 and lease_owner = $4";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(now)
        .bind(id)
        .bind(i64::from(attempt))
        .bind(worker)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Take out the row of a sync call that was answered, whoever has claimed it: should another node be
/// about to record it as abandoned, it is refused.
pub async fn take_out_answered(tx: &mut Tx, id: DeliveryId) -> Result<(), StoreError> {
    const SQL: &str = "delete from outbox where id = $1 and reply_to is not null";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// What is leased to `worker`. Uses the index outbox_lease.
async fn leased_to(tx: &mut Tx, worker: WorkerId) -> Result<Vec<Claim>, StoreError> {
    const SQL: &str = "select id, attempt from outbox where lease_owner = $1";
    let rows: Vec<(DeliveryId, i64)> = on!(tx.conn().await?, |c| sqlx::query_as(SQL)
        .bind(worker)
        .fetch_all(c)
        .await)?;
    let claims = rows
        .into_iter()
        .map(|(id, attempt)| (id, u32::try_from(attempt).unwrap_or(u32::MAX)));
    Ok(claims.collect())
}

/// Hold the lock by which other nodes see that this one lives, for as long as its connection does.
async fn say_alive(tx: &mut Tx, worker: WorkerId) -> Result<(), StoreError> {
    // To take it again costs nothing, and it may have gone with an earlier connection.
    const SQL: &str = "
        select pg_try_advisory_lock($1, $2) where not exists (
            select 1 from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
            and classid = $1::int8::oid and objid = ($2::int8 & 4294967295)::oid and objsubid = 2)";
    if let Conn::Postgres(held) = tx.conn().await? {
        let locking = sqlx::query(SQL).bind(LOCK_CLASS).bind(lock_key(worker));
        bounded!(held, |c| locking.execute(c).await)?;
    }
    Ok(())
}

/// The second key of the lock of a worker.
pub fn lock_key(worker: WorkerId) -> i32 {
    // The end of its id is random.
    let (_, low) = worker.uuid().as_u64_pair();
    low as u32 as i32
}

/// The keys of the workers that are seen to live.
pub async fn alive(conn: &mut Conn) -> Result<HashSet<i32>, StoreError> {
    const SQL: &str = "
        select objid::int8 from pg_locks
        where locktype = 'advisory' and classid = $1::int8::oid and objsubid = 2 and granted
          and database = (select oid from pg_database where datname = current_database())";
    let Conn::Postgres(held) = conn else {
        return Ok(HashSet::new());
    };
    let asked = sqlx::query_scalar(SQL).bind(LOCK_CLASS);
    let keys: Vec<i64> = bounded!(held, |c| asked.fetch_all(c).await)?;
    Ok(keys.into_iter().map(|key| key as u32 as i32).collect())
}

/// The workers to which rows are leased: one look into the index outbox_lease for each.
pub async fn owners(conn: &mut Conn) -> Result<Vec<WorkerId>, StoreError> {
    const SQL: &str = "
        with recursive owners (lease_owner) as (
            select (select lease_owner from outbox where lease_owner is not null
                    order by lease_owner limit 1)
            union all
            select (select o.lease_owner from outbox o
                    where o.lease_owner is not null and o.lease_owner > owners.lease_owner
                    order by o.lease_owner limit 1)
            from owners where owners.lease_owner is not null
        )
        select lease_owner from owners where lease_owner is not null";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).fetch_all(c).await)?)
}
