//! A queue for what only a few may do at once, fair by app: whose turn it is goes round the apps,
//! so that one app's crowd waits behind itself and not before another's single one. Compilers of
//! uploads, connections for reading, exports, and requests that take a processor for long are given out by it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// At once.
    pub places: usize,
    /// At once of one app.
    pub places_per_app: usize,
    /// Waiting.
    pub waiting: usize,
    /// Waiting of one app.
    pub waiting_per_app: usize,
}

/// Who waits however many do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A request: refused where too many wait.
    Bounded,
    /// An execution, which has a place at the gate: never refused.
    Unbounded,
}

/// Too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} wait already")]
pub struct QueueFull {
    /// How many wait, of this app or of all.
    pub waiting: usize,
}

/// A queue with a number of places.
#[derive(Clone)]
pub struct FairQueue {
    room: Room,
    // Locked for a few changes and never across an await.
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    /// How many places each app has, where it has any.
    taken: HashMap<Uuid, usize>,
    /// Who waits, app by app, in the order in which the apps came.
    waiting: Vec<(Uuid, VecDeque<Waiting>)>,
    /// When an app got a place last, by `turn`; of apps that have one, and of all while somebody waits:
    /// whoever comes again and again is no newcomer.
    served: HashMap<Uuid, u64>,
    turn: u64,
}

struct Waiting {
    patience: Patience,
    sender: oneshot::Sender<Place>,
}

/// A place; dropping it gives it to whoever is next.
pub struct Place {
    queue: FairQueue,
    app: Uuid,
}

impl FairQueue {
    /// A queue for so many.
    pub fn new(room: Room) -> Self {
        Self {
            room,
            queue: Arc::default(),
        }
    }

    /// A place for one of `app`, once it is its turn. Whoever drops the future does not wait any more.
    ///
    /// # Errors
    /// [`QueueFull`] where too many wait and `patience` is bounded.
    pub async fn place(&self, app: Uuid, patience: Patience) -> Result<Place, QueueFull> {
        if let Some(place) = self.free_place(app) {
            return Ok(place);
        }
        let waits = self.wait(app, patience)?;
        self.give();
        let place = waits.await;
        Ok(place.expect("the queue drops a sender only after it sent, or where nobody receives"))
    }

    /// A place that is free, where nobody waits for one.
    fn free_place(&self, app: Uuid) -> Option<Place> {
        let mut queue = self.lock();
        let is_free =
            queue.waiting.is_empty() && queue.taken.values().sum::<usize>() < self.room.places;
        let of_app = queue.taken.get(&app).copied().unwrap_or_default();
        (is_free && of_app < self.room.places_per_app).then(|| self.taken(&mut queue, app))
    }

    fn taken(&self, queue: &mut Queue, app: Uuid) -> Place {
        queue.turn += 1;
        queue.served.insert(app, queue.turn);
        *queue.taken.entry(app).or_default() += 1;
        let queue = self.clone();
        Place { queue, app }
    }

    fn wait(&self, app: Uuid, patience: Patience) -> Result<oneshot::Receiver<Place>, QueueFull> {
        let mut queue = self.lock();
        if patience == Patience::Bounded {
            for (_, waiting) in &mut queue.waiting {
                waiting.retain(|waiting| !waiting.sender.is_closed());
            }
            queue.waiting.retain(|(_, waiting)| !waiting.is_empty());
            // Executions are counted at the gate, and take nobody's place in this queue.
            let bounded = |waiting: &VecDeque<Waiting>| {
                let bounded = |waiting: &&Waiting| waiting.patience == Patience::Bounded;
                waiting.iter().filter(bounded).count()
            };
            let of = |waits: &&(Uuid, VecDeque<Waiting>)| waits.0 == app;
            let of_app = queue.waiting.iter().find(of);
            let of_app = of_app.map_or(0, |(_, waiting)| bounded(waiting));
            if of_app >= self.room.waiting_per_app {
                return Err(QueueFull { waiting: of_app });
            }
            let all = queue
                .waiting
                .iter()
                .map(|(_, waiting)| bounded(waiting))
                .sum();
            if all >= self.room.waiting {
                return Err(QueueFull { waiting: all });
            }
        }
        let place = queue.waiting.iter().position(|(waits, _)| *waits == app);
        let (sender, receiver) = oneshot::channel();
        let waiting = Waiting { patience, sender };
        match place {
            Some(place) => queue.waiting[place].1.push_back(waiting),
            None => queue.waiting.push((app, [waiting].into())),
        }
        Ok(receiver)
    }

    /// Give the places that are free to those whose turn it is.
    fn give(&self) {
        // Not while it is locked: a place that nobody receives any more is given back.
        while let Some((sender, place)) = self.next() {
            drop(sender.send(place));
        }
    }

    fn next(&self) -> Option<(oneshot::Sender<Place>, Place)> {
        let mut queue = self.lock();
        if queue.taken.values().sum::<usize>() >= self.room.places {
            return None;
        }
        loop {
            let of = |app: &Uuid| queue.taken.get(app).copied().unwrap_or_default();
            let may = queue.waiting.iter().enumerate();
            let may = may.filter(|(_, (app, _))| of(app) < self.room.places_per_app);
            // Who was served longest ago, or never.
            let next = may.min_by_key(|(_, (app, _))| queue.served.get(app).copied())?;
            let (position, app) = (next.0, next.1.0);
            let waiting = &mut queue.waiting[position].1;
            let next = waiting.pop_front();
            if waiting.is_empty() {
                queue.waiting.remove(position);
            }
            // Nobody else is served by giving a place to who has left, and getting it back at once.
            if let Some(Waiting { sender, .. }) = next.filter(|next| !next.sender.is_closed()) {
                return Some((sender, self.taken(&mut queue, app)));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        // A panic while it was held cannot have left a change half-done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(&self.app).finish()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.queue.lock();
        let nobody_waits = queue.waiting.is_empty();
        if let Some(taken) = queue.taken.get_mut(&self.app) {
            *taken -= 1;
            if *taken == 0 {
                queue.taken.remove(&self.app);
            }
        }
        if !nobody_waits {
            drop(queue);
            self.queue.give();
            queue = self.queue.lock();
        }
        if queue.waiting.is_empty() {
            let Queue { served, taken, .. } = &mut *queue;
            served.retain(|app, _| taken.contains_key(app));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn queue(places: usize, places_per_app: usize) -> FairQueue {
        FairQueue::new(Room {
            places,
            places_per_app,
            waiting: 12,
            waiting_per_app: 8,
        })
    }

    fn app(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[tokio::test]
    async fn another_apps_one_goes_before_the_rest_of_a_crowd() {
        let queue = queue(2, 1);
        let place = |n| Box::pin(queue.place(app(n), Patience::Bounded));
        let mut crowd: Vec<_> = (0..8).map(|_| place(1)).collect();
        let of_crowd = crowd.iter_mut().filter_map(|one| one.now_or_never());
        let first: Vec<_> = of_crowd.collect();
        assert_eq!(first.len(), 1, "an app has one place of the two");
        let second = place(2).now_or_never();
        assert!(matches!(second, Some(Ok(_))));
        // Where two apps have both, a third is the next, whoever waits longer.
        let mut third = place(3);
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(crowd[1].as_mut().now_or_never().is_none());
        let third = third.now_or_never();
        assert!(matches!(third, Some(Ok(_))));
        drop(second);
        assert!(matches!(crowd[1].as_mut().now_or_never(), Some(Ok(_))));
    }

    #[tokio::test]
    async fn turns_go_round_the_apps() {
        let queue = queue(1, 1);
        let holding = queue.place(app(9), Patience::Bounded).await;
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let waiting: Vec<_> = [1, 1, 1, 2, 2, 3]
            .into_iter()
            .map(|n| {
                let waits = queue.wait(app(n), Patience::Bounded).unwrap();
                let told = told.clone();
                tokio::spawn(async move {
                    let place = waits.await.unwrap();
                    told.send(n).unwrap();
                    drop(place);
                })
            })
            .collect();
        drop((holding, told));
        for one in waiting {
            one.await.unwrap();
        }
        let mut order = Vec::new();
        while let Some(n) = heard.recv().await {
            order.push(n);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 1]);
    }

    #[tokio::test]
    async fn an_app_that_comes_again_and_again_is_no_newcomer() {
        let queue = queue(1, 1);
        let mut held = queue.place(app(9), Patience::Bounded).await.unwrap();
        let wait = |n| (n, queue.wait(app(n), Patience::Bounded).unwrap());
        // The first has a crowd; of the others each has one, and comes again once it had its place.
        let mut waiting: Vec<_> = [1, 1, 1, 1, 2, 3].map(wait).into();
        let mut order = Vec::new();
        for _ in 0..9 {
            let last = order.last().copied();
            drop(held);
            waiting.extend(last.filter(|last| *last != 1).map(wait));
            let mut given = None;
            waiting.retain_mut(|(n, receiver)| match receiver.try_recv() {
                Ok(place) => {
                    given = Some((*n, place));
                    false
                }
                Err(_) => true,
            });
            let (n, place) = given.unwrap();
            order.push(n);
            held = place;
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    }

    #[tokio::test]
    async fn too_many_are_refused_unless_they_must_not_be() {
        let queue = queue(1, 1);
        let holding = queue.place(app(1), Patience::Bounded).await.unwrap();
        let wait = |n| queue.wait(app(n), Patience::Bounded);
        let of_one: Vec<_> = (0..8).map(|_| wait(1).unwrap()).collect();
        assert_eq!(wait(1).unwrap_err(), QueueFull { waiting: 8 });
        let of_others: Vec<_> = (2..6).map(|n| wait(n).unwrap()).collect();
        assert_eq!(wait(7).unwrap_err(), QueueFull { waiting: 12 });
        let executions: Vec<_> = (0..20)
            .map(|_| queue.wait(app(9), Patience::Unbounded).unwrap())
            .collect();
        // Whoever left does not count.
        drop((of_one, of_others));
        assert!(
            wait(1).is_ok(),
            "executions that wait take no request's room"
        );
        drop(executions);
        drop(holding);
        assert!(queue.lock().taken.is_empty() && queue.lock().served.is_empty());
    }

    #[tokio::test]
    async fn however_many_left_a_place_is_given_on() {
        let queue = queue(1, 1);
        let holding = queue.place(app(1), Patience::Bounded).await.unwrap();
        let wait = || queue.wait(app(2), Patience::Unbounded).unwrap();
        let left: Vec<_> = (0..200_000).map(|_| wait()).collect();
        let stays = queue.wait(app(3), Patience::Bounded).unwrap();
        let last = queue.wait(app(2), Patience::Unbounded).unwrap();
        drop(left);
        drop(holding);
        drop(last.await.unwrap());
        drop(stays.await.unwrap());
        assert!(queue.place(app(1), Patience::Bounded).await.is_ok());
    }

    #[tokio::test]
    async fn a_place_that_nobody_takes_is_given_on() {
        let queue = queue(1, 1);
        let holding = queue.place(app(1), Patience::Bounded).await.unwrap();
        let left = queue.wait(app(2), Patience::Bounded).unwrap();
        let stays = queue.wait(app(3), Patience::Bounded).unwrap();
        drop((left, holding));
        drop(stays.await.unwrap());
        // One that was given, and not taken before its receiver left.
        let given = queue.wait(app(4), Patience::Bounded).unwrap();
        queue.give();
        drop(given);
        assert!(queue.lock().taken.is_empty() && queue.lock().served.is_empty());
        assert!(queue.place(app(5), Patience::Bounded).await.is_ok());
    }
}
