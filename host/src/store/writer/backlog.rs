//! The jobs that wait for a lane, fair by app: a deficit round robin over bytes.
//!
//! In the order in which they come, one app's hundred large values would go before another's small
//! one. Here the apps take turns, each for about [`QUANTUM`], so that a write waits for the transaction
//! that is under way and for few bytes of each other app, however much one of them has in the queue.
//! Work that wants a transaction to itself (changes by the API, claims) is the host's, which has one turn.
//!
//! Source: M. Shreedhar, G. Varghese, "Efficient Fair Queuing Using Deficit Round-Robin", 1996.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::Job;

/// How much an app may write at its turn, as [`cost`] counts it.
const QUANTUM: usize = 64 * 1024;
/// What a job costs besides its bytes: about as many as are written in the time that a small one takes.
const JOB_COST: usize = 4096;

/// What waits for a lane.
pub(in super::super) struct Backlog {
    queue: mpsc::Receiver<Job>,
    /// Whose jobs wait, in the order of their turns.
    apps: VecDeque<Waiting>,
    jobs: usize,
    jobs_max: usize,
}

struct Waiting {
    /// Whose they are; none where they are the host's own.
    app: Option<Uuid>,
    jobs: VecDeque<Job>,
    /// What may be taken of them before it is the next app's turn.
    credit: usize,
}

impl Backlog {
    /// Takes over what is sent to `queue`, up to `jobs_max` at once: others wait to be queued.
    pub(super) fn new(queue: mpsc::Receiver<Job>, jobs_max: usize) -> Self {
        Self {
            queue,
            apps: VecDeque::new(),
            jobs: 0,
            jobs_max,
        }
    }

    /// The next job, once there is one; none once the store is closed. A future that is dropped has
    /// taken nothing.
    pub(in super::super) async fn recv(&mut self) -> Option<Job> {
        if self.apps.is_empty() {
            let job = self.queue.recv().await?;
            if self.queue.is_empty() {
                return Some(job);
            }
            self.add(job);
        }
        self.try_recv()
    }

    /// The next job, if there is one.
    pub(in super::super) fn try_recv(&mut self) -> Option<Job> {
        while self.jobs < self.jobs_max
            && let Ok(job) = self.queue.try_recv()
        {
            self.add(job);
        }
        loop {
            let first = self.apps.front_mut()?;
            let cost = first.jobs.front().map_or(0, cost);
            if cost <= first.credit {
                first.credit -= cost;
                let job = first.jobs.pop_front();
                if first.jobs.is_empty() {
                    self.apps.pop_front();
                }
                self.jobs -= 1;
                return job;
            }
            first.credit += QUANTUM;
            self.apps.rotate_left(1);
        }
    }

    fn add(&mut self, job: Job) {
        let app = match &job {
            Job::Grouped(group) => group.app(),
            Job::Alone(_) => None,
        };
        self.jobs += 1;
        match self.apps.iter_mut().find(|waiting| waiting.app == app) {
            Some(waiting) => waiting.jobs.push_back(job),
            None => self.apps.push_back(Waiting {
                app,
                jobs: [job].into(),
                credit: QUANTUM,
            }),
        }
    }
}

fn cost(job: &Job) -> usize {
    match job {
        Job::Grouped(group) => JOB_COST + group.bytes(),
        Job::Alone(_) => QUANTUM,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::group::Members;
    use super::super::super::{Grouped, StoreError, Tx};
    use super::*;

    struct Write {
        app: u128,
        bytes: usize,
    }

    impl Grouped for Write {
        type Output = ();

        fn app(&self) -> Option<Uuid> {
            Some(Uuid::from_u128(self.app))
        }

        fn bytes(&self) -> usize {
            self.bytes
        }

        async fn apply(_: &mut Tx, items: &[Self]) -> Result<Vec<()>, StoreError> {
            Ok(vec![(); items.len()])
        }
    }

    fn write(app: u128, bytes: usize) -> Job {
        Job::Grouped(Box::new(Members::single(Write { app, bytes }, None).0))
    }

    fn app(job: &Job) -> u128 {
        match job {
            Job::Grouped(group) => group.app().map_or(0, |app| app.as_u128()),
            Job::Alone(_) => 0,
        }
    }

    fn backlog(jobs: Vec<Job>) -> (mpsc::Sender<Job>, Backlog) {
        let (sender, queue) = mpsc::channel(64);
        for job in jobs {
            assert!(sender.try_send(job).is_ok());
        }
        (sender, Backlog::new(queue, 48))
    }

    fn order(backlog: &mut Backlog) -> Vec<u128> {
        std::iter::from_fn(|| backlog.try_recv())
            .map(|job| app(&job))
            .collect()
    }

    #[test]
    fn anothers_small_write_goes_before_the_rest_of_a_crowd() {
        let large = || write(1, 1024 * 1024);
        let jobs = (0..20).map(|_| large()).chain([write(2, 10)]);
        let (_sender, mut backlog) = backlog(jobs.collect());
        assert_eq!(
            order(&mut backlog)[0],
            2,
            "not even one large one is before it"
        );
    }

    #[test]
    fn apps_take_turns_by_bytes_and_each_keeps_its_order() {
        let of = |app, bytes, many| (0..many).map(move |_| write(app, bytes));
        let jobs = of(1, 60 * 1024, 4).chain(of(2, 28 * 1024, 8));
        let (sender, mut backlog) = backlog(jobs.collect());
        assert_eq!(order(&mut backlog), [1, 2, 2, 1, 2, 2, 1, 2, 2, 1, 2, 2]);
        for bytes in 0..5 {
            assert!(sender.try_send(write(3, bytes)).is_ok());
        }
        let bytes = std::iter::from_fn(|| backlog.try_recv()).map(|job| cost(&job) - JOB_COST);
        assert_eq!(bytes.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn what_is_too_much_stays_in_the_queue_and_comes_later() {
        let jobs = (0..60).map(|_| write(1, 0)).chain([write(2, 0)]).collect();
        let (sender, mut backlog) = backlog(jobs);
        let first = backlog.recv().await.map(|job| app(&job));
        assert_eq!((first, backlog.jobs), (Some(1), 47));
        drop(sender);
        let mut rest = Vec::new();
        while let Some(job) = backlog.recv().await {
            rest.push(app(&job));
        }
        assert_eq!(rest.len(), 60);
        assert!(rest[59] == 1 && rest.contains(&2));
    }
}
