//! Rows of the outbox that nobody will ever move, looked for in the database itself.

use std::time::{Duration, Instant};

use crate::Server;
use crate::database::Row;

/// What may be wrong with a row. `LEASED` says when a lease is odd, `AGO` stands for a second ago.
const STUCK: &str = "
    select problem, id, app_id, invocation_type, attempt, due_at, lease_owner, reply_to, order_key,
           order_seq
    from (
        select o.*, case
            when lease_owner is not null and LEASED then 'leased, and nobody works on it'
            when blocked and not exists (
                select 1 from outbox earlier
                where earlier.order_key = o.order_key and earlier.order_seq < o.order_seq)
                then 'blocked, and none of its key comes before it'
            when held and not exists (
                select 1 from triggers t where t.id = o.trigger_id and t.paused)
                then 'held, and its trigger is not paused'
            when not held and not blocked and AGO then 'due, and nobody claims it'
        end as problem
        from outbox o
    ) looked_at
    where problem is not null
    order by id limit 20";

/// A row's `due_at` is earlier than a second ago.
const POSTGRES_AGO: &str = "due_at < now() - interval '1 second'";
const SQLITE_AGO: &str = "julianday(due_at) < julianday('now') - 1.0 / 86400";

/// For how long a lease may outlive what was accepted under it, beyond its own time.
const GRACE: Duration = Duration::from_secs(5);

impl Server {
    /// Rows of the outbox that are leased, blocked or held for no reason, or due and not claimed.
    /// While something runs, some are always leased.
    pub fn stuck(&self) -> Vec<Row> {
        self.stuck_where("1 = 1")
    }

    /// The same while things run: a lease is odd only once it has ended.
    fn stuck_while_running(&self) -> Vec<Row> {
        self.stuck_where("AGO")
    }

    fn stuck_where(&self, leased: &str) -> Vec<Row> {
        let ago = match self.is_on_postgres() {
            true => POSTGRES_AGO,
            false => SQLITE_AGO,
        };
        let query = STUCK.replace("LEASED", leased);
        self.query(&query.replace("AGO", ago))
    }

    /// What every test ends with whose server still runs: each row of the outbox is moved on by
    /// somebody, or soon is.
    pub(crate) fn until_all_moves(&self) -> Result<Duration, String> {
        self.until_none(Self::stuck_while_running)
    }

    /// Wait until every row of the outbox is where somebody will move it on: nothing is leased, as
    /// nothing runs any more; nothing blocked behind what is gone, held for a trigger that is not
    /// paused, or due for more than a second. It takes one lease and five seconds at most. Answers
    /// how long it took.
    ///
    /// # Errors
    /// With the rows that do not move.
    pub fn until_nothing_is_stuck(&self) -> Result<Duration, String> {
        self.until_none(Self::stuck)
    }

    fn until_none(&self, look: fn(&Self) -> Vec<Row>) -> Result<Duration, String> {
        let started = Instant::now();
        loop {
            let stuck = look(self);
            if stuck.is_empty() {
                return Ok(started.elapsed());
            }
            if started.elapsed() > self.lease() + GRACE {
                let rows = stuck.iter().map(|row| {
                    let columns = row.iter();
                    let columns = columns.map(|column| column.as_deref().unwrap_or("-"));
                    columns.collect::<Vec<_>>().join(" | ")
                });
                let rows: Vec<_> = rows.collect();
                return Err(format!(
                    "{} rows of the outbox are stuck:\n{}",
                    rows.len(),
                    rows.join("\n")
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The same, for the end of a test.
    ///
    /// # Panics
    /// With the rows that do not move.
    #[track_caller]
    pub fn assert_nothing_stuck(&self) {
        if let Err(stuck) = self.until_nothing_is_stuck() {
            panic!("{stuck}");
        }
    }

    /// How long a lease lasts.
    fn lease(&self) -> Duration {
        const DEFAULT_MS: u64 = 15_000;
        let set = self.variable("PICLOUD_LEASE_MS");
        let ms = set.map_or(DEFAULT_MS, |text| text.parse().expect("a number"));
        Duration::from_millis(ms)
    }

    /// How much memory the process has, in KiB.
    ///
    /// # Panics
    /// When it does not run.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a process");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.expect("VmRSS").parse().expect("a number")
    }
}
