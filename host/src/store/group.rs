//! Writes that share a transaction: what they are to the writer, and how they are gathered.

use std::any::{Any, TypeId};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Conn, Engine, StoreError, Tx, Witness};

use super::writer::{Backlog, Job};

/// How many jobs go into one transaction. Enough to make the commit's cost small for each;
/// few enough that the first does not wait long for the last.
const GROUP_MAX: usize = 256;
/// After how many bytes no more goes into one transaction: others wait for its end.
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// How long a patient write waits for company.
const PATIENCE: Duration = Duration::from_millis(2);

/// Which commit queue an item uses.
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
    /// On a connection that nothing else uses: what must not wait for anything that takes long.
    Reserved,
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

    /// Which commit queue it uses.
    fn lane(&self) -> Lane {
        Lane::Urgent
    }

    /// The app that writes it, whose share of the lane it takes; none where the host does.
    fn app(&self) -> Option<Uuid> {
        None
    }

    /// About how many bytes it writes, where they may be many.
    fn bytes(&self) -> usize {
        0
    }

    /// Whether it is something new. While the disk has hardly any room, only what ends or removes
    /// something is written.
    fn is_new(&self) -> bool {
        false
    }

    /// Whether anything was changed, where that is not known before: only then a witness writes it
    /// down.
    fn is_change(_: &Self::Output) -> bool {
        true
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

    /// What [`Self::apply`] answers for `items`, if its [single statement](Self::is_one_statement) on
    /// Postgres was executed; none if it was not. Asked when its answer was lost and its session has
    /// ended.
    fn written(
        _conn: &mut Conn,
        _items: &[Self],
    ) -> impl Future<Output = Result<Option<Vec<Self::Output>>, StoreError>> + Send {
        async { Ok(None) }
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

/// A patient group and what comes until it has company that is not, or has waited long enough.
pub(super) async fn with_company(
    first: Box<dyn Group>,
    queue: &mut Backlog,
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
                if hurries || is_full(&groups) {
                    let alone = gather_waiting(&mut groups, queue);
                    return (groups, alone);
                }
            }
            alone => return (groups, alone),
        }
    }
}

/// Add what waits in the queue; work that wants to be alone comes next.
pub(super) fn gather_waiting(groups: &mut Vec<Box<dyn Group>>, queue: &mut Backlog) -> Option<Job> {
    while !is_full(groups) {
        match queue.try_recv() {
            Some(Job::Grouped(group)) => gather(groups, group),
            alone => return alone,
        }
    }
    None
}

fn is_full(groups: &[Box<dyn Group>]) -> bool {
    let bytes: usize = groups.iter().map(|group| group.bytes()).sum();
    total(groups) >= GROUP_MAX || bytes >= GROUP_BYTES_MAX
}

pub(super) fn total(groups: &[Box<dyn Group>]) -> usize {
    groups.iter().map(|group| group.len()).sum()
}

pub(super) fn gather(groups: &mut Vec<Box<dyn Group>>, group: Box<dyn Group>) {
    match groups.iter_mut().find(|known| known.kind() == group.kind()) {
        Some(known) => known.absorb(group),
        None => groups.push(group),
    }
}

/// [`Members`] of some kind.
pub(super) trait Group: Send {
    fn kind(&self) -> TypeId;
    /// The app of its first item.
    fn app(&self) -> Option<Uuid>;
    fn len(&self) -> usize;
    fn bytes(&self) -> usize;
    fn is_patient(&self) -> bool;
    fn is_one_statement(&self, engine: Engine) -> bool;
    fn may_commit(&self) -> bool;
    fn durability(&self) -> Durability;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
    fn absorb(&mut self, other: Box<dyn Group>);
    fn apply<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, Result<(), StoreError>>;
    fn was_written<'a>(&'a mut self, conn: &'a mut Conn)
    -> BoxFuture<'a, Result<bool, StoreError>>;
    fn done(self: Box<Self>);
    fn failed(self: Box<Self>, error: &StoreError);
    fn split(self: Box<Self>) -> Vec<Box<dyn Group>>;
}

pub(super) struct Members<G: Grouped> {
    items: Vec<G>,
    replies: Vec<oneshot::Sender<Result<G::Output, StoreError>>>,
    witnesses: Vec<Option<Arc<dyn Witness>>>,
    outputs: Vec<G::Output>,
    /// The [bytes](Grouped::bytes) of all items.
    bytes: usize,
}

/// Where the writer of an item is told what became of it.
pub(super) type Answer<G> = oneshot::Receiver<Result<<G as Grouped>::Output, StoreError>>;

impl<G: Grouped> Members<G> {
    /// One item.
    pub(super) fn single(item: G, witness: Option<Arc<dyn Witness>>) -> (Self, Answer<G>) {
        let (reply, answer) = oneshot::channel();
        (Self::of_one(item, reply, witness), answer)
    }

    fn of_one(
        item: G,
        reply: oneshot::Sender<Result<G::Output, StoreError>>,
        witness: Option<Arc<dyn Witness>>,
    ) -> Self {
        Self {
            bytes: item.bytes(),
            items: vec![item],
            replies: vec![reply],
            witnesses: vec![witness],
            outputs: Vec::new(),
        }
    }
}

impl<G: Grouped> Group for Members<G> {
    fn kind(&self) -> TypeId {
        TypeId::of::<G>()
    }

    fn app(&self) -> Option<Uuid> {
        self.items.first().and_then(Grouped::app)
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn bytes(&self) -> usize {
        self.bytes
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
        self.bytes += other.bytes;
        self.items.extend(other.items);
        self.replies.extend(other.replies);
        self.witnesses.extend(other.witnesses);
    }

    fn apply<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.outputs = G::apply(tx, &self.items).await?;
            debug_assert_eq!(self.outputs.len(), self.items.len());
            for (witness, output) in self.witnesses.iter_mut().zip(&self.outputs) {
                // It has seen nothing.
                *witness = witness.take().filter(|_| G::is_change(output));
            }
            for witness in self.witnesses.iter().flatten() {
                witness.write(tx).await?;
            }
            Ok(())
        })
    }

    fn was_written<'a>(
        &'a mut self,
        conn: &'a mut Conn,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let outputs = G::written(conn, &self.items).await?;
            let was_written = outputs.is_some();
            self.outputs = outputs.unwrap_or_default();
            Ok(was_written)
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
                Box::new(Self::of_one(item, reply, witness)) as Box<dyn Group>
            })
            .collect()
    }
}
