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
//!
//! A commit whose answer is lost has happened, or it has not. The lane finds out before it says
//! anything: it ends the lost session and asks the server what became of its transaction.

mod backlog;
mod doubt;

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics::Histogram;
use tokio::sync::{mpsc, oneshot};

pub(super) use backlog::Backlog;
use doubt::{DOUBT_MAX, DOUBT_PAUSE};

use super::at_work::AtWork;
use super::group::{
    Durability, Group, Grouped, Lane, Members, gather_waiting, total, with_company,
};
use super::open::Connector;
use super::session::{self, Session};
use super::{Announcement, Conn, Engine, StoreError, Tx, Witness, bounded, micros, on};

/// How much may wait for a lane before callers wait to queue.
const QUEUE: usize = 4096;
/// How often a write is tried that others are in the way of.
const TRIES: u32 = 5;
/// Lanes for [`Lane::Keyed`] on Postgres: enough to overlap the waits for the network and the
/// disk, few enough that commits stay large.
pub(super) const KEYED_LANES: usize = 4;
/// After so many transactions in a row that need not wait for the disk, SQLite is told so.
const RELAX_AFTER: u32 = 4;
/// For how long a reading of Postgres's clock is carried on with ours. Two clocks part by less
/// than a millisecond in it, which is what a round trip takes.
const CLOCK_LASTS: Duration = Duration::from_secs(1);
/// How long one transaction may take before it is cut off, and its connection with it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Writer {
    alone: mpsc::Sender<Job>,
    urgent: mpsc::Sender<Job>,
    patient: mpsc::Sender<Job>,
    reserved: mpsc::Sender<Job>,
    keyed: Vec<mpsc::Sender<Job>>,
    failing: Arc<Failing>,
    at_work: LanesAtWork,
}

/// Since when lanes are at their transactions, but for that of work that may be long.
#[derive(Default)]
struct LanesAtWork {
    /// That of what is urgent.
    urgent: AtWork,
    /// Those of which there is one of a kind, this one among them.
    single: Vec<AtWork>,
    /// Those of [`Lane::Keyed`].
    keyed: Vec<AtWork>,
}

/// Which lanes failed at their last write, because the database was unavailable: a bit for each.
type Failing = AtomicU32;

pub(super) enum Job {
    Grouped(Box<dyn Group>),
    Alone(Alone),
}

/// Work with a transaction to itself. It says whether to commit, and is told how that went.
pub(super) struct Alone {
    work: AloneWork,
    /// Why it was cut off. It is dropped then, and tells nobody anything any more.
    cut_off: oneshot::Sender<StoreError>,
}

type AloneWork =
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
        keyed_lanes: usize,
        announced: mpsc::UnboundedSender<Vec<Announcement>>,
    ) -> Self {
        let failing = Arc::new(Failing::default());
        let lanes = Cell::new(0);
        let at_work = RefCell::<LanesAtWork>::default();
        let start = |name| {
            let mine = AtWork::default();
            match name {
                // It is cut off by itself.
                "alone" => {}
                "keyed" => at_work.borrow_mut().keyed.push(mine.clone()),
                _ => at_work.borrow_mut().single.push(mine.clone()),
            }
            if name == "urgent" {
                at_work.borrow_mut().urgent = mine.clone();
            }
            lanes.set(lanes.get() + 1);
            let (jobs, queue) = mpsc::channel(QUEUE);
            let worker = LaneWorker {
                name,
                connector: connector.clone(),
                conn: None,
                bit: 1 << lanes.get(),
                is_failing: false,
                hasty_in_a_row: 0,
                began: None,
                failing: failing.clone(),
                at_work: mine,
                announced: announced.clone(),
                group_size: metrics::histogram!("picloud_store_group_size"),
            };
            tokio::spawn(worker.run(Backlog::new(queue, QUEUE)));
            jobs
        };
        let alone = start("alone");
        let another = |name| match connector {
            Connector::Sqlite(_) => alone.clone(),
            Connector::Postgres(_) => start(name),
        };
        let (urgent, patient, reserved) =
            (another("urgent"), another("patient"), another("reserved"));
        let keyed = (0..keyed_lanes).map(|_| another("keyed")).collect();
        Self {
            alone,
            urgent,
            patient,
            reserved,
            keyed,
            failing,
            at_work: at_work.into_inner(),
        }
    }

    /// For how long a kind of writes has not been answered: of those for keys all, since one may
    /// wait for a lock on its row only. On SQLite a transaction waits for nothing but another process,
    /// which a sign of life shows.
    pub(super) fn stalled(&self) -> Duration {
        let single = self.at_work.single.iter().map(AtWork::lasts).max();
        let keyed = self.at_work.keyed.iter().map(AtWork::lasts).min();
        single.max(keyed).unwrap_or_default()
    }

    /// For how long what is urgent has not been answered. On SQLite nothing tells.
    pub(super) fn urgent_stalled(&self) -> Duration {
        self.at_work.urgent.lasts()
    }

    /// Whether a write failed, because the database was unavailable, and none of its lane worked
    /// since: another lane may write to tables that still can be written.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed) != 0
    }

    /// Every table was seen to be writable.
    pub(super) fn recovered(&self) {
        self.failing.store(0, Ordering::Relaxed);
    }

    pub(super) async fn grouped<G: Grouped>(
        &self,
        item: G,
        witness: Option<Arc<dyn Witness>>,
    ) -> Result<G::Output, StoreError> {
        let lane = match item.lane() {
            Lane::Urgent => &self.urgent,
            Lane::Patient => &self.patient,
            Lane::Reserved => &self.reserved,
            Lane::Keyed(key) => {
                let place = key % self.keyed.len() as u64;
                &self.keyed[usize::try_from(place).unwrap_or(0)]
            }
        };
        let (group, answer) = Members::single(item, witness);
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
        let work: AloneWork = Box::new(move |tx| {
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
        let (cut_off, why) = oneshot::channel();
        let job = Alone { work, cut_off };
        self.alone
            .send(Job::Alone(job))
            .await
            .map_err(|_| StoreError::Closed)?;
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(why.await.unwrap_or(StoreError::Closed).into()),
        }
    }
}

struct LaneWorker {
    name: &'static str,
    connector: Connector,
    conn: Option<Conn>,
    /// Its bit of [`Failing`].
    bit: u32,
    /// Whether its last write failed because the database was unavailable.
    is_failing: bool,
    /// How many transactions in a row need not wait for the disk.
    hasty_in_a_row: u32,
    /// When the last transaction began, by the database's clock and by ours.
    began: Option<(DateTime<Utc>, Instant)>,
    failing: Arc<Failing>,
    at_work: AtWork,
    announced: mpsc::UnboundedSender<Vec<Announcement>>,
    /// How many writes share a transaction. Found once: to find it takes longer than to record.
    group_size: Histogram,
}

impl LaneWorker {
    async fn run(mut self, mut queue: Backlog) {
        let mut next = None;
        loop {
            // The lane outlives a mistake of ours in its own code. Whoever waited learns that it was cut
            // off.
            let turn = AssertUnwindSafe(self.turn(&mut next, &mut queue)).catch_unwind();
            match turn.await {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    panicked();
                }
            }
        }
    }

    /// Do the next job, with what goes together with it. Says whether there was one: there is none
    /// once the store is closed.
    async fn turn(&mut self, next: &mut Option<Job>, queue: &mut Backlog) -> bool {
        let job = match next.take() {
            Some(job) => job,
            None => match self.next_job(queue).await {
                Some(job) => job,
                None => return false,
            },
        };
        let at_work = self.at_work.clone();
        match job {
            Job::Alone(work) => {
                let _working = at_work.begin();
                self.alone(work).await;
            }
            Job::Grouped(group) => {
                let groups = match group.is_patient() {
                    true => {
                        let (groups, alone) = with_company(group, queue).await;
                        *next = alone;
                        groups
                    }
                    false => {
                        let mut groups = vec![group];
                        *next = gather_waiting(&mut groups, queue);
                        groups
                    }
                };
                let _working = at_work.begin();
                self.together(groups).await;
            }
        }
        true
    }

    /// The next job; meanwhile the connection is closed if others have no room for theirs.
    async fn next_job(&mut self, queue: &mut Backlog) -> Option<Job> {
        loop {
            let Connector::Postgres(connector) = &self.connector else {
                return queue.recv().await;
            };
            tokio::select! {
                biased;
                job = queue.recv() => return job,
                () = connector.is_crowded() => self.conn = None,
            }
        }
    }

    async fn together(&mut self, mut groups: Vec<Box<dyn Group>>) {
        self.group_size.record(total(&groups) as f64);
        let mut written = self.written_together(&mut groups).await;
        if let (Err(StoreError::Unavailable(_)), Connector::Postgres(_)) =
            (&written, &self.connector)
        {
            // The connection went, and nothing was written: where there is another, nobody needs to
            // know. Where there is none, that shows at once.
            written = self.written_together(&mut groups).await;
        }
        self.note(&written);
        match written {
            Ok(()) => groups.into_iter().for_each(Group::done),
            Err(error)
                if error.is_unavailable()
                    || (total(&groups) == 1 && !matches!(error, StoreError::Raced)) =>
            {
                groups.into_iter().for_each(|group| group.failed(&error));
            }
            // One of them is at fault.
            Err(error) => {
                tracing::debug!(%error, "a group could not be written; each of it is tried alone");
                self.one_by_one(groups).await;
            }
        }
    }

    async fn written_together(&mut self, groups: &mut [Box<dyn Group>]) -> Result<(), StoreError> {
        let promised = groups.iter().map(|group| group.durability());
        let durability = promised.max().unwrap_or(Durability::PowerCut);
        let is_one_statement = match (&*groups, &self.conn) {
            ([group], Some(conn)) => group.is_one_statement(conn.engine()),
            _ => false,
        };
        let tx = match is_one_statement {
            true => self.one_statement(durability).await,
            false => None,
        };
        let single = tx.as_ref().map(|tx| tx.conn.session().cloned());
        groups.sort_by_key(|group| group.may_commit());
        let written = self.transaction(tx, durability, async |tx| {
            let last = groups.len() - 1;
            for (place, group) in groups.iter_mut().enumerate() {
                tx.is_last = place == last && group.may_commit();
                group.apply(tx).await?;
            }
            Ok(())
        });
        match (written.await, single, groups) {
            (Err(error), Some(session), [group]) if error.is_unavailable() => {
                self.find_statement(error, session, group).await
            }
            (written, ..) => written,
        }
    }

    /// Write each alone, in its order, until the database is unavailable: then the rest fails, too.
    async fn one_by_one(&mut self, groups: Vec<Box<dyn Group>>) {
        let mut unavailable = None;
        for mut single in groups.into_iter().flat_map(Group::split) {
            if let Some(error) = &unavailable {
                single.failed(error);
                continue;
            }
            let mut written = Err(StoreError::Raced);
            for _ in 0..TRIES {
                let durability = single.durability();
                let work = async |tx: &mut Tx| single.apply(tx).await;
                written = self.transaction(None, durability, work).await;
                if !matches!(written, Err(StoreError::Raced)) {
                    break;
                }
            }
            self.note(&written);
            match written {
                Ok(()) => single.done(),
                Err(error) => {
                    unavailable = error.is_unavailable().then(|| match error.clone() {
                        // Of this one it is not known; the others were not tried.
                        StoreError::InDoubt(why) => StoreError::Unavailable(why),
                        error => error,
                    });
                    single.failed(&error);
                }
            }
        }
    }

    async fn alone(&mut self, Alone { work, cut_off }: Alone) {
        let mut tx = match self.begin(Durability::PowerCut).await {
            Ok(tx) => tx,
            Err(error) => {
                self.note(&Err(error.clone()));
                let ending = work(Err(error)).await;
                return (ending.tell)(Ok(()));
            }
        };
        let working = AssertUnwindSafe(work(Ok(&mut tx))).catch_unwind();
        let ending = match tokio::time::timeout(TRANSACTION_TIMEOUT, working).await {
            Ok(Ok(ending)) => ending,
            cut => {
                let error = match cut {
                    Ok(_) => panicked(),
                    Err(_) => took_too_long(),
                };
                // Whoever waits asks for it: the work, and with it whom to tell, is dropped.
                let _ = cut_off.send(error);
                return self.lose(tx);
            }
        };
        let ended = if ending.commit {
            self.commit(tx).await
        } else {
            self.roll_back(tx).await;
            Ok(())
        };
        // Its success shows nothing: it may not have written.
        if ended.is_err() {
            self.note(&ended);
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
        // A mistake of ours in one item must not end the writing of others.
        let working = AssertUnwindSafe(work(&mut tx)).catch_unwind();
        match tokio::time::timeout(TRANSACTION_TIMEOUT, working).await {
            Ok(Ok(Ok(()))) => self.commit(tx).await,
            Ok(Ok(Err(error))) => {
                self.roll_back(tx).await;
                Err(error)
            }
            Ok(Err(_)) => {
                self.lose(tx);
                Err(panicked())
            }
            Err(_) => {
                self.lose(tx);
                Err(took_too_long())
            }
        }
    }

    /// Tell when writing begins to fail, and when it works again: once each.
    fn note(&mut self, written: &Result<(), StoreError>) {
        let unavailable = written
            .as_ref()
            .err()
            .filter(|error| error.is_unavailable());
        if unavailable.is_some() {
            self.failing.fetch_or(self.bit, Ordering::Relaxed);
        }
        match (self.is_failing, unavailable) {
            (false, Some(error)) => {
                tracing::warn!(lane = self.name, %error, "the database cannot be written");
            }
            (true, None) => {
                self.failing.fetch_and(!self.bit, Ordering::Relaxed);
                tracing::info!(lane = self.name, "the database can be written again");
            }
            _ => {}
        }
        self.is_failing = unavailable.is_some();
    }

    async fn begin(&mut self, durability: Durability) -> Result<Tx, StoreError> {
        // A connection that was lost while nothing was written shows at the first statement:
        // nothing has happened yet, so a new one may take over.
        let mut tx = None;
        if let Some(mut conn) = self.conn.take()
            && self.set_durability(&mut conn, durability).await.is_ok()
        {
            let session = conn.session().cloned();
            tx = Tx::begin(conn, durability).await.ok();
            if tx.is_none() {
                self.end_session(session);
            }
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
        bounded!(held, |c| sqlx::raw_sql(change).execute(c).await)?;
        Ok(())
    }

    async fn commit(&mut self, mut tx: Tx) -> Result<(), StoreError> {
        match tx.commit().await {
            Ok(()) => {
                self.conn = Some(tx.conn).filter(|conn| !conn.is_lost());
                self.announce(tx.announcements);
                Ok(())
            }
            Err(error) if error.is_unavailable() && tx.xid.is_some() => {
                self.find_commit(tx, error).await
            }
            Err(error) => {
                // SQLite leaves the transaction open when a commit fails, on a full disk say.
                self.roll_back(tx).await;
                Err(error)
            }
        }
    }

    fn announce(&self, announcements: Vec<Announcement>) {
        if !announcements.is_empty() {
            // Without a listener nobody wants to know.
            let _ = self.announced.send(announcements);
        }
    }

    /// Keep the connection only if the rollback worked.
    async fn roll_back(&mut self, mut tx: Tx) {
        if tx.conn.is_lost() {
            return self.lose(tx);
        }
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
        match ended {
            Ok(()) => self.conn = Some(tx.conn),
            Err(_) => self.lose(tx),
        }
    }

    /// Give a connection up, with what it has begun.
    fn lose(&mut self, tx: Tx) {
        self.began = None;
        self.end_session(tx.conn.session().cloned());
    }

    /// Have a session ended that may hold locks, and whose connection is lost.
    fn end_session(&self, session: Option<Session>) {
        let (Some(session), Connector::Postgres(connector)) = (session, &self.connector) else {
            return;
        };
        let connector = connector.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            while began.elapsed() < DOUBT_MAX {
                if let Ok((mut conn, _)) = connector.connect().await
                    && matches!(session::end(&mut conn, &session.id).await, Ok(true))
                {
                    return;
                }
                tokio::time::sleep(DOUBT_PAUSE).await;
            }
            // The server ends it by itself: see the settings of a session.
        });
    }
}

fn panicked() -> StoreError {
    metrics::counter!("picloud_store_panics_total").increment(1);
    tracing::error!("a write panicked; this is a mistake of ours");
    StoreError::Panicked
}

fn took_too_long() -> StoreError {
    tracing::error!("a transaction took longer than {TRANSACTION_TIMEOUT:?} and was cut off");
    StoreError::CutOff(TRANSACTION_TIMEOUT)
}
