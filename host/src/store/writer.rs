//! The group-commit writer.
//!
//! A lane is one task with one connection. It takes what waits in its queue, writes it in one
//! transaction and tells everybody who waited: while a commit is on its way to the disk, the
//! next group gathers. The batch window is zero: nobody waits for company, but those who say
//! that they do not mind ([`Lane::Patient`]).
//!
//! SQLite has one writer, so all [`Lane`]s are one there. On Postgres they are apart: many in one
//! commit beats many commits side by side, so all that is urgent shares one lane; what nobody
//! waits for, and work that wants a transaction to itself, is kept out of its way.
//!
//! A transaction runs inside the lane's task, so a caller who leaves cannot drop it half-way:
//! in sqlx 0.9.0 a future that is dropped while it begins leaves its connection inside the
//! transaction (sqlx#4393).

use std::any::{Any, TypeId};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics::Histogram;
use tokio::sync::{mpsc, oneshot};

use super::open::Connector;
use super::{Announcement, Conn, Engine, StoreError, Tx, Witness, micros, on};

/// How much may wait for a lane before callers wait to queue.
const QUEUE: usize = 4096;
/// How many jobs go into one transaction. Enough to make the commit's cost small for each;
/// few enough that the first does not wait long for the last.
const GROUP_MAX: usize = 256;
/// How often a write is tried that others are in the way of.
const TRIES: u32 = 5;
/// Lanes for [`Lane::Keyed`] on Postgres: enough to overlap the waits for the network and the
/// disk, few enough that commits stay large.
const KEYED_LANES: usize = 4;
/// After so many transactions in a row that need not wait for the disk, SQLite is told so.
const RELAX_AFTER: u32 = 4;
/// How long a patient write waits for company.
const PATIENCE: Duration = Duration::from_millis(2);
/// For how long a reading of Postgres's clock is carried on with ours. Two clocks part by less
/// than a millisecond in it, which is what a round trip takes.
const CLOCK_LASTS: Duration = Duration::from_secs(1);
/// How long one transaction may take before its connection counts as lost.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// In whose company an item is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Somebody waits for it: in the next commit, with everything else that is urgent.
    Urgent,
    /// Nobody notices when it is written a moment later: it waits for company, and others need
    /// not wait for a commit of its own.
    Patient,
    /// After every earlier item of the same number, and beside those of others. For items that
    /// cannot share their statements.
    Keyed(u64),
}

/// What a write that was acknowledged outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// A killed PiCloud. A power cut, or a crash of Postgres, may take the last such writes, but
    /// never one that came before a write that outlives it: both databases log in one order.
    Kill,
    /// A power cut: its commit waits for the disk.
    PowerCut,
}

/// A write that goes into one transaction with others of its kind.
pub trait Grouped: Send + Sync + Sized + 'static {
    /// What the writer of one item learns.
    type Output: Send + 'static;

    /// In whose company it is written.
    fn lane(&self) -> Lane {
        Lane::Urgent
    }

    /// What it outlives. One commit keeps the strongest promise that any of its items makes.
    fn durability(&self) -> Durability {
        Durability::PowerCut
    }

    /// Whether [`Self::apply`] writes `items` by a single statement, which then is a transaction by
    /// itself.
    fn is_one_statement(_engine: Engine, _items: &[Self]) -> bool {
        false
    }

    /// Whether [`Self::apply`] may send the commit with its last statement on SQLite, where nothing
    /// is written after it. It then comes after what others write in the same transaction.
    fn may_commit() -> bool {
        false
    }

    /// Write `items`, in their order, and answer one output for each. An error concerns them
    /// all: the writer then tries each alone, so that only the culprit fails.
    fn apply(
        tx: &mut Tx,
        items: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Output>, StoreError>> + Send;
}

pub(super) struct Writer {
    alone: mpsc::Sender<Job>,
    urgent: mpsc::Sender<Job>,
    patient: mpsc::Sender<Job>,
    keyed: Vec<mpsc::Sender<Job>>,
    failing: Arc<AtomicBool>,
}

enum Job {
    Grouped(Box<dyn Group>),
    Alone(Alone),
}

/// Work with a transaction to itself. It says whether to commit, and is told how that went.
type Alone =
    Box<dyn for<'t> FnOnce(Result<&'t mut Tx, StoreError>) -> BoxFuture<'t, Ending> + Send>;

/// What becomes of the transaction after [`Alone`] work, and whom to tell once it has.
struct Ending {
    commit: bool,
    tell: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

impl Writer {
    /// Lanes that tell `announced` what is to be told after a commit.
    pub(super) fn start(
        connector: Connector,
        announced: mpsc::UnboundedSender<Vec<Announcement>>,
    ) -> Self {
        let failing = Arc::new(AtomicBool::new(false));
        let start = || {
            let (jobs, queue) = mpsc::channel(QUEUE);
            let worker = LaneWorker {
                connector: connector.clone(),
                conn: None,
                hasty_in_a_row: 0,
                began: None,
                failing: failing.clone(),
                announced: announced.clone(),
                group_size: metrics::histogram!("picloud_store_group_size"),
            };
            tokio::spawn(worker.run(queue));
            jobs
        };
        let alone = start();
        let (urgent, patient, keyed) = match connector {
            Connector::Sqlite(_) => (alone.clone(), alone.clone(), vec![alone.clone()]),
            Connector::Postgres(_) => (
                start(),
                start(),
                (0..KEYED_LANES).map(|_| start()).collect(),
            ),
        };
        Self {
            alone,
            urgent,
            patient,
            keyed,
            failing,
        }
    }

    /// Whether a write failed, because the database was unavailable, and none worked since.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// A write was seen to work.
    pub(super) fn recovered(&self) {
        self.failing.store(false, Ordering::Relaxed);
    }

    pub(super) async fn grouped<G: Grouped>(
        &self,
        item: G,
        witness: Option<Arc<dyn Witness>>,
    ) -> Result<G::Output, StoreError> {
        let (reply, answer) = oneshot::channel();
        let lane = match item.lane() {
            Lane::Urgent => &self.urgent,
            Lane::Patient => &self.patient,
            Lane::Keyed(key) => {
                let place = key % self.keyed.len() as u64;
                &self.keyed[usize::try_from(place).unwrap_or(0)]
            }
        };
        let group = Members {
            items: vec![item],
            replies: vec![reply],
            witnesses: vec![witness],
            outputs: Vec::new(),
        };
        lane.send(Job::Grouped(Box::new(group)))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    pub(super) async fn alone<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Alone = Box::new(move |tx| {
            Box::pin(async move {
                let done = match tx {
                    Ok(tx) => work(tx).await,
                    Err(error) => Err(error.into()),
                };
                Ending {
                    commit: done.is_ok(),
                    tell: Box::new(move |ended| {
                        // Nobody to tell when the caller has left; the work is done all the same.
                        let _ =
                            reply.send(done.and_then(|done| ended.map(|()| done).map_err(E::from)));
                    }),
                }
            })
        });
        self.alone
            .send(Job::Alone(job))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

struct LaneWorker {
    connector: Connector,
    conn: Option<Conn>,
    /// How many transactions in a row need not wait for the disk.
    hasty_in_a_row: u32,
    /// When the last transaction began, by the database's clock and by ours.
    began: Option<(DateTime<Utc>, Instant)>,
    failing: Arc<AtomicBool>,
    announced: mpsc::UnboundedSender<Vec<Announcement>>,
    /// How many writes share a transaction. Found once: to find it takes longer than to record.
    group_size: Histogram,
}

impl LaneWorker {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => job,
                None => match queue.recv().await {
                    Some(Job::Grouped(group)) if group.is_patient() => {
                        let (groups, alone) = with_company(group, &mut queue).await;
                        next = alone;
                        self.write(async |lane| lane.together(groups).await).await;
                        continue;
                    }
                    Some(job) => job,
                    None => return,
                },
            };
            match job {
                Job::Alone(work) => self.write(async |lane| lane.alone(work).await).await,
                Job::Grouped(first) => {
                    let mut groups = vec![first];
                    next = gather_waiting(&mut groups, &mut queue);
                    self.write(async |lane| lane.together(groups).await).await;
                }
            }
        }
    }

    /// A mistake of ours in one statement must not end every later write. Whoever waited learns
    /// that nothing came of it; the connection goes with the work.
    async fn write(&mut self, work: impl AsyncFnOnce(&mut Self)) {
        if AssertUnwindSafe(work(self)).catch_unwind().await.is_err() {
            metrics::counter!("picloud_store_panics_total").increment(1);
            tracing::error!("a write panicked; this is a mistake of ours");
        }
    }

    async fn together(&mut self, mut groups: Vec<Box<dyn Group>>) {
        self.group_size.record(total(&groups) as f64);
        let promised = groups.iter().map(|group| group.durability());
        let durability = promised.max().unwrap_or(Durability::PowerCut);
        let is_one_statement = match (groups.as_slice(), &self.conn) {
            ([group], Some(conn)) => group.is_one_statement(conn.engine()),
            _ => false,
        };
        let tx = match is_one_statement {
            true => self.one_statement(durability).await,
            false => None,
        };
        groups.sort_by_key(|group| group.may_commit());
        let written = self.transaction(tx, durability, async |tx| {
            let last = groups.len() - 1;
            for (place, group) in groups.iter_mut().enumerate() {
                tx.is_last = place == last && group.may_commit();
                group.apply(tx).await?;
            }
            Ok(())
        });
        let written = written.await;
        let unavailable = written.as_ref().is_err_and(StoreError::is_unavailable);
        self.failing.store(unavailable, Ordering::Relaxed);
        match written {
            Ok(()) => groups.into_iter().for_each(Group::done),
            Err(error)
                if error.is_unavailable()
                    || (total(&groups) == 1 && !matches!(error, StoreError::Raced)) =>
            {
                groups.into_iter().for_each(|group| group.failed(&error));
            }
            // One of them is at fault: each alone, in its order.
            Err(error) => {
                tracing::debug!(%error, "a group could not be written; each of it is tried alone");
                for group in groups {
                    for mut single in group.split() {
                        let mut written = Err(StoreError::Raced);
                        for _ in 0..TRIES {
                            let durability = single.durability();
                            let work = async |tx: &mut Tx| single.apply(tx).await;
                            written = self.transaction(None, durability, work).await;
                            if !matches!(written, Err(StoreError::Raced)) {
                                break;
                            }
                        }
                        match written {
                            Ok(()) => single.done(),
                            Err(error) => single.failed(&error),
                        }
                    }
                }
            }
        }
    }

    async fn alone(&mut self, work: Alone) {
        let mut tx = match self.begin(Durability::PowerCut).await {
            Ok(tx) => tx,
            Err(error) => {
                let ending = work(Err(error)).await;
                return (ending.tell)(Ok(()));
            }
        };
        let working = tokio::time::timeout(TRANSACTION_TIMEOUT, work(Ok(&mut tx)));
        // Cut off, it drops whom to tell, who learns so; and the connection with it.
        let Ok(ending) = working.await else {
            tracing::error!(
                "a transaction took longer than {TRANSACTION_TIMEOUT:?} and was cut off"
            );
            return;
        };
        let ended = if ending.commit {
            self.commit(tx).await
        } else {
            self.roll_back(tx).await;
            Ok(())
        };
        // Its success shows nothing: it may not have written.
        if ended.as_ref().is_err_and(StoreError::is_unavailable) {
            self.failing.store(true, Ordering::Relaxed);
        }
        (ending.tell)(ended);
    }

    /// Do `work` in `begun`, or in a new transaction.
    async fn transaction(
        &mut self,
        begun: Option<Tx>,
        durability: Durability,
        work: impl AsyncFnOnce(&mut Tx) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut tx = match begun {
            Some(tx) => tx,
            None => self.begin(durability).await?,
        };
        match tokio::time::timeout(TRANSACTION_TIMEOUT, work(&mut tx)).await {
            Ok(Ok(())) => self.commit(tx).await,
            Ok(Err(error)) => {
                self.roll_back(tx).await;
                Err(error)
            }
            // The connection is in the middle of something: dropping it ends that.
            Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    async fn begin(&mut self, durability: Durability) -> Result<Tx, StoreError> {
        // A connection that was lost while nothing was written shows at the first statement:
        // nothing has happened yet, so a new one may take over.
        let mut tx = None;
        if let Some(mut conn) = self.conn.take()
            && self.set_durability(&mut conn, durability).await.is_ok()
        {
            tx = Tx::begin(conn, durability).await.ok();
        }
        let tx = match tx {
            Some(tx) => tx,
            None => {
                self.hasty_in_a_row = 0;
                Tx::begin(self.connector.connect().await?, durability).await?
            }
        };
        self.began = Some((tx.now, Instant::now()));
        Ok(tx)
    }

    /// A transaction that need not be begun, nor told to commit, on the connection that there is. On
    /// Postgres only where its clock was read a moment ago, and where the statement may wait for the
    /// disk as the server is configured.
    async fn one_statement(&mut self, durability: Durability) -> Option<Tx> {
        let now = match self.conn.as_ref()?.engine() {
            Engine::Sqlite => micros(Utc::now()),
            Engine::Postgres => {
                let (began, at) = self.began?;
                let since = at.elapsed();
                if durability != Durability::PowerCut || since > CLOCK_LASTS {
                    return None;
                }
                began + since
            }
        };
        let mut conn = self.conn.take()?;
        self.set_durability(&mut conn, durability).await.ok()?;
        Some(Tx::of_one_statement(conn, now))
    }

    /// On SQLite it is the connection's, and a statement of its own to change: back at once when
    /// it must be stronger, and weaker only where that seems to last. A new connection is at its
    /// strongest.
    async fn set_durability(
        &mut self,
        conn: &mut Conn,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let Conn::Sqlite(held) = conn else {
            return Ok(());
        };
        let was_weak = self.hasty_in_a_row >= RELAX_AFTER;
        self.hasty_in_a_row = match durability {
            Durability::Kill => self.hasty_in_a_row.saturating_add(1),
            Durability::PowerCut => 0,
        };
        let is_weak = self.hasty_in_a_row >= RELAX_AFTER;
        // Not prepared: the pragma takes effect when it is compiled.
        let change = match (was_weak, is_weak) {
            (true, false) => "pragma synchronous = full",
            (false, true) => "pragma synchronous = normal",
            _ => return Ok(()),
        };
        sqlx::raw_sql(change).execute(&mut **held).await?;
        Ok(())
    }

    async fn commit(&mut self, mut tx: Tx) -> Result<(), StoreError> {
        match tx.commit().await {
            Ok(()) => {
                self.conn = Some(tx.conn);
                if !tx.announcements.is_empty() {
                    // Without a listener nobody wants to know.
                    let _ = self.announced.send(tx.announcements);
                }
                Ok(())
            }
            Err(error) => {
                // SQLite leaves the transaction open when a commit fails, on a full disk say.
                self.roll_back(tx).await;
                Err(error)
            }
        }
    }

    /// Keep the connection only if the rollback worked.
    async fn roll_back(&mut self, mut tx: Tx) {
        if !tx.is_begun() {
            // If it is lost, beginning the next transaction shows that.
            self.began = None;
            self.conn = Some(tx.conn);
            return;
        }
        let ended = on!(&mut tx.conn, |c| sqlx::raw_sql("rollback")
            .execute(c)
            .await
            .map(|_| ()));
        self.conn = ended.is_ok().then_some(tx.conn);
    }
}

/// A patient group and what comes until it has company that is not, or has waited long enough.
async fn with_company(
    first: Box<dyn Group>,
    queue: &mut mpsc::Receiver<Job>,
) -> (Vec<Box<dyn Group>>, Option<Job>) {
    let mut groups = vec![first];
    let enough = tokio::time::sleep(PATIENCE);
    tokio::pin!(enough);
    loop {
        let job = tokio::select! {
            job = queue.recv() => job,
            () = &mut enough => return (groups, None),
        };
        match job {
            Some(Job::Grouped(group)) => {
                let hurries = !group.is_patient();
                gather(&mut groups, group);
                if hurries || total(&groups) >= GROUP_MAX {
                    let alone = gather_waiting(&mut groups, queue);
                    return (groups, alone);
                }
            }
            alone => return (groups, alone),
        }
    }
}

/// Add what waits in the queue; work that wants to be alone comes next.
fn gather_waiting(
    groups: &mut Vec<Box<dyn Group>>,
    queue: &mut mpsc::Receiver<Job>,
) -> Option<Job> {
    let mut count = total(groups);
    while count < GROUP_MAX {
        match queue.try_recv() {
            Ok(Job::Grouped(group)) => {
                count += 1;
                gather(groups, group);
            }
            Ok(alone) => return Some(alone),
            Err(_) => return None,
        }
    }
    None
}

fn total(groups: &[Box<dyn Group>]) -> usize {
    groups.iter().map(|group| group.len()).sum()
}

fn gather(groups: &mut Vec<Box<dyn Group>>, group: Box<dyn Group>) {
    match groups.iter_mut().find(|known| known.kind() == group.kind()) {
        Some(known) => known.absorb(group),
        None => groups.push(group),
    }
}

/// [`Members`] of some kind.
trait Group: Send {
    fn kind(&self) -> TypeId;
    fn len(&self) -> usize;
    fn is_patient(&self) -> bool;
    fn is_one_statement(&self, engine: Engine) -> bool;
    fn may_commit(&self) -> bool;
    fn durability(&self) -> Durability;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
    fn absorb(&mut self, other: Box<dyn Group>);
    fn apply<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, Result<(), StoreError>>;
    fn done(self: Box<Self>);
    fn failed(self: Box<Self>, error: &StoreError);
    fn split(self: Box<Self>) -> Vec<Box<dyn Group>>;
}

struct Members<G: Grouped> {
    items: Vec<G>,
    replies: Vec<oneshot::Sender<Result<G::Output, StoreError>>>,
    witnesses: Vec<Option<Arc<dyn Witness>>>,
    outputs: Vec<G::Output>,
}

impl<G: Grouped> Group for Members<G> {
    fn kind(&self) -> TypeId {
        TypeId::of::<G>()
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn is_patient(&self) -> bool {
        self.items.iter().all(|item| item.lane() == Lane::Patient)
    }

    fn is_one_statement(&self, engine: Engine) -> bool {
        G::is_one_statement(engine, &self.items) && self.witnesses.iter().all(Option::is_none)
    }

    fn may_commit(&self) -> bool {
        G::may_commit() && self.witnesses.iter().all(Option::is_none)
    }

    fn durability(&self) -> Durability {
        let promised = self.items.iter().map(Grouped::durability);
        promised.max().unwrap_or(Durability::PowerCut)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }

    fn absorb(&mut self, other: Box<dyn Group>) {
        let other = other.into_any().downcast::<Self>();
        let other = other.expect("gather compares the kinds first");
        self.items.extend(other.items);
        self.replies.extend(other.replies);
        self.witnesses.extend(other.witnesses);
    }

    fn apply<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.outputs = G::apply(tx, &self.items).await?;
            debug_assert_eq!(self.outputs.len(), self.items.len());
            for witness in self.witnesses.iter().flatten() {
                witness.write(tx).await?;
            }
            Ok(())
        })
    }

    fn done(self: Box<Self>) {
        for witness in self.witnesses.into_iter().flatten() {
            witness.committed();
        }
        for (reply, output) in self.replies.into_iter().zip(self.outputs) {
            // Whoever does not wait any more does not want to know.
            let _ = reply.send(Ok(output));
        }
    }

    fn failed(self: Box<Self>, error: &StoreError) {
        for reply in self.replies {
            let _ = reply.send(Err(error.clone()));
        }
    }

    fn split(self: Box<Self>) -> Vec<Box<dyn Group>> {
        let members = self.items.into_iter().zip(self.replies);
        members
            .zip(self.witnesses)
            .map(|((item, reply), witness)| {
                let single = Self {
                    items: vec![item],
                    replies: vec![reply],
                    witnesses: vec![witness],
                    outputs: Vec::new(),
                };
                Box::new(single) as Box<dyn Group>
            })
            .collect()
    }
}
