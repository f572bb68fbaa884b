//! The imports, as the modules call them: the real ones in the sandbox, and an in-memory
//! stand-in where the unit tests run natively.

/// A key of a collection.
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value as JSON.
    pub value: String,
    /// Whether that is not as it was stored: nobody could read it.
    pub value_repaired: bool,
}

/// A page of a collection.
pub struct Page {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// What an execution knows of itself.
#[derive(Default, Clone)]
pub struct Context {
    /// See the WIT.
    pub app_id: String,
    /// See the WIT.
    pub app_slug: String,
    /// See the WIT.
    pub script_id: String,
    /// See the WIT.
    pub script_name: String,
    /// See the WIT.
    pub script_version: u32,
    /// See the WIT.
    pub execution_id: String,
    /// See the WIT.
    pub request_id: String,
    /// See the WIT.
    pub invocation_type: String,
    /// Id, name and kind.
    pub principal: Option<(String, String, String)>,
    /// See the WIT.
    pub trigger_depth: u32,
    /// See the WIT.
    pub attempt: u32,
    /// See the WIT.
    pub sdk_version: String,
    /// See the WIT.
    pub event: Option<String>,
}

/// The kinds of [`Problem`]s.
#[expect(missing_docs, reason = "their names say it")]
pub mod kind {
    pub const INVALID: &str = "invalid";
    pub const DENIED: &str = "denied";
    pub const UNAVAILABLE: &str = "unavailable";
    pub const TOO_LARGE: &str = "too_large";
    pub const NOT_FOUND: &str = "not_found";
    pub const CONFLICT: &str = "conflict";
}

/// Why the host did not do what a script asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which kind of problem, in a word that scripts compare.
    pub kind: &'static str,
    /// What is wrong, for people.
    pub text: String,
}

impl Problem {
    /// A problem of a kind.
    pub fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}

/// How much a log line matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// See the WIT.
    Trace,
    /// See the WIT.
    Debug,
    /// See the WIT.
    Info,
    /// See the WIT.
    Warn,
    /// See the WIT.
    Error,
}

#[cfg(target_arch = "wasm32")]
pub use real::*;

#[cfg(target_arch = "wasm32")]
#[expect(missing_docs, reason = "the WIT documents them, under the same names")]
mod real {
    use std::time::Duration;

    use wasip2::clocks::monotonic_clock;

    use super::{Context, Entry, Level, Page, Problem, kind};
    use crate::component::picloud::context::context;
    use crate::component::picloud::dead_letters::dead_letters;
    use crate::component::picloud::kv::kv;
    use crate::component::picloud::log::log;
    use crate::component::picloud::pubsub::pubsub;
    use crate::component::picloud::secrets::secrets;

    fn kv_problem(error: kv::Error) -> Problem {
        match error {
            kv::Error::InvalidCollection(problem) => {
                Problem::new(kind::INVALID, format!("the collection's name {problem}"))
            }
            kv::Error::InvalidKey(problem) => {
                Problem::new(kind::INVALID, format!("the key {problem}"))
            }
            kv::Error::InvalidValue(problem) => {
                Problem::new(kind::INVALID, format!("the value: {problem}"))
            }
            kv::Error::InvalidCursor => Problem::new(
                kind::INVALID,
                "the cursor was not made by a list of this collection",
            ),
            kv::Error::InvalidLimit(limit) => {
                Problem::new(kind::INVALID, format!("a limit is 1 to 1000, not {limit}"))
            }
            kv::Error::TooLarge(kv::TooLarge {
                what,
                bytes,
                bytes_max,
            }) => {
                let text = format!("the {what} has {bytes} bytes; the limit is {bytes_max}");
                Problem::new(kind::TOO_LARGE, text)
            }
            kv::Error::Denied => denied(),
            kv::Error::Unavailable => unavailable(),
        }
    }

    fn denied() -> Problem {
        Problem::new(kind::DENIED, "the principal may not do this")
    }

    fn unavailable() -> Problem {
        Problem::new(kind::UNAVAILABLE, "the store cannot be reached now")
    }

    fn dead_letter_problem(error: dead_letters::Error) -> Problem {
        match error {
            dead_letters::Error::Denied => Problem::new(
                kind::DENIED,
                "the principal may not manage dead letters, or there is none",
            ),
            dead_letters::Error::InvalidId => {
                Problem::new(kind::INVALID, "the id or the cursor is not a UUID")
            }
            dead_letters::Error::NotFound => {
                Problem::new(kind::NOT_FOUND, "the app has no dead letter of this id")
            }
            dead_letters::Error::AlreadyResolved => {
                Problem::new(kind::CONFLICT, "it was replayed or resolved before")
            }
            dead_letters::Error::Unavailable => unavailable(),
        }
    }

    pub fn secret(name: &str) -> Result<Option<String>, Problem> {
        secrets::get(name).map_err(|error| match error {
            secrets::Error::InvalidName(problem) => {
                Problem::new(kind::INVALID, format!("the name {problem}"))
            }
            secrets::Error::Denied => Problem::new(kind::DENIED, "the secret is for other scripts"),
            secrets::Error::Unavailable => {
                Problem::new(kind::UNAVAILABLE, "the secret cannot be read now")
            }
        })
    }

    fn pubsub_problem(error: pubsub::Error) -> Problem {
        match error {
            pubsub::Error::InvalidTopic(problem) | pubsub::Error::InvalidTokenRequest(problem) => {
                Problem::new(kind::INVALID, problem)
            }
            pubsub::Error::InvalidMessage(problem) => {
                Problem::new(kind::INVALID, format!("the message: {problem}"))
            }
            pubsub::Error::TooLarge(pubsub::TooLarge { bytes, bytes_max }) => {
                let text = format!("the message has {bytes} bytes; the limit is {bytes_max}");
                Problem::new(kind::TOO_LARGE, text)
            }
            pubsub::Error::Denied => denied(),
            pubsub::Error::Unavailable => unavailable(),
        }
    }

    pub fn publish(topic: &str, message: &str, is_durable: bool) -> Result<String, Problem> {
        match is_durable {
            true => pubsub::publish_durable(topic, message),
            false => pubsub::publish_ephemeral(topic, message),
        }
        .map_err(pubsub_problem)
    }

    pub fn subscriber_token(
        topics: &[String],
        subject: Option<&str>,
        ttl_seconds: Option<i64>,
    ) -> Result<String, Problem> {
        pubsub::subscriber_token(topics, subject, ttl_seconds).map_err(pubsub_problem)
    }

    pub fn kv_get(collection: &str, key: &str) -> Result<Option<String>, Problem> {
        kv::get(collection, key).map_err(kv_problem)
    }

    pub fn kv_set(collection: &str, key: &str, value: &str) -> Result<(), Problem> {
        kv::set(collection, key, value).map_err(kv_problem)
    }

    pub fn kv_delete(collection: &str, key: &str) -> Result<bool, Problem> {
        kv::delete(collection, key).map_err(kv_problem)
    }

    pub fn kv_has(collection: &str, key: &str) -> Result<bool, Problem> {
        kv::has(collection, key).map_err(kv_problem)
    }

    pub fn kv_list(
        collection: &str,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page, Problem> {
        let page = kv::list_told(collection, cursor, limit).map_err(kv_problem)?;
        let entry = |entry: kv::ToldEntry| Entry {
            key: entry.key,
            value: entry.value,
            value_repaired: entry.value_repaired,
        };
        Ok(Page {
            entries: page.entries.into_iter().map(entry).collect(),
            next: page.next,
        })
    }

    pub fn replay(id: &str) -> Result<String, Problem> {
        dead_letters::replay(id).map_err(dead_letter_problem)
    }

    pub fn resolve(id: &str, handled: bool) -> Result<(), Problem> {
        let resolution = match handled {
            true => dead_letters::Resolution::HandledByScript,
            false => dead_letters::Resolution::Ignored,
        };
        dead_letters::resolve(id, resolution).map_err(dead_letter_problem)
    }

    pub fn list_dead_letters(
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<(Vec<String>, Option<String>), Problem> {
        let page = dead_letters::list(cursor, limit).map_err(dead_letter_problem)?;
        Ok((page.entries, page.next))
    }

    pub fn write_log(level: Level, message: &str, fields: Vec<(String, String)>) {
        let level = match level {
            Level::Trace => log::Level::Trace,
            Level::Debug => log::Level::Debug,
            Level::Info => log::Level::Info,
            Level::Warn => log::Level::Warn,
            Level::Error => log::Level::Error,
        };
        let fields: Vec<log::Field> = fields
            .into_iter()
            .map(|(name, value)| log::Field { name, value })
            .collect();
        log::write(level, message, &fields);
    }

    pub fn context() -> Context {
        let known = context::get();
        Context {
            app_id: known.app.id,
            app_slug: known.app.slug,
            script_id: known.script.id,
            script_name: known.script.name,
            script_version: known.script.version,
            execution_id: known.execution_id,
            request_id: known.request_id,
            invocation_type: known.invocation_type,
            principal: known.principal.map(|who| (who.id, who.name, who.kind)),
            trigger_depth: known.trigger_depth,
            attempt: known.attempt,
            sdk_version: known.sdk_version,
            event: known.event,
        }
    }

    pub fn sleep(long: Duration) {
        let nanoseconds = u64::try_from(long.as_nanos()).unwrap_or(u64::MAX);
        monotonic_clock::subscribe_duration(nanoseconds).block();
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub use stand_in::*;

#[cfg(not(target_arch = "wasm32"))]
#[allow(
    missing_docs,
    reason = "a stand-in for the WIT, which has the documentation"
)]
mod stand_in {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{Context, Entry, Level, Page, Problem, kind};

    /// Level, message and fields.
    pub type LogLine = (Level, String, Vec<(String, String)>);

    #[derive(Default)]
    pub struct Host {
        pub kv: BTreeMap<(String, String), String>,
        /// Keys whose values are told as repaired.
        pub repaired: Vec<String>,
        pub log: Vec<LogLine>,
        pub context: Context,
        pub secrets: BTreeMap<String, String>,
        pub published: Vec<(String, String, bool)>,
    }

    thread_local! {
        pub static HOST: RefCell<Host> = RefCell::default();
    }

    fn with<T>(work: impl FnOnce(&mut Host) -> T) -> T {
        HOST.with_borrow_mut(work)
    }

    fn denied() -> Problem {
        let text = "the principal may not manage dead letters, or there is none";
        Problem::new(kind::DENIED, text)
    }

    fn at(collection: &str, key: &str) -> Result<(String, String), Problem> {
        if key.is_empty() {
            return Err(Problem::new(kind::INVALID, "the key is empty"));
        }
        Ok((collection.into(), key.into()))
    }

    pub fn kv_get(collection: &str, key: &str) -> Result<Option<String>, Problem> {
        let at = at(collection, key)?;
        Ok(with(|host| host.kv.get(&at).cloned()))
    }

    pub fn kv_set(collection: &str, key: &str, value: &str) -> Result<(), Problem> {
        let at = at(collection, key)?;
        with(|host| host.kv.insert(at, value.into()));
        Ok(())
    }

    pub fn kv_delete(collection: &str, key: &str) -> Result<bool, Problem> {
        let at = at(collection, key)?;
        Ok(with(|host| host.kv.remove(&at).is_some()))
    }

    pub fn kv_has(collection: &str, key: &str) -> Result<bool, Problem> {
        let at = at(collection, key)?;
        Ok(with(|host| host.kv.contains_key(&at)))
    }

    pub fn kv_list(
        collection: &str,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page, Problem> {
        let limit = limit.unwrap_or(100) as usize;
        with(|host| {
            let mut left = host.kv.iter().filter(|((name, key), _)| {
                name == collection && cursor.is_none_or(|c| key.as_str() > c)
            });
            let entries: Vec<_> = left
                .by_ref()
                .take(limit)
                .map(|((_, key), value)| Entry {
                    key: key.clone(),
                    value: value.clone(),
                    value_repaired: host.repaired.contains(key),
                })
                .collect();
            let next = left.next().and(entries.last());
            let next = next.map(|entry| entry.key.clone());
            Ok(Page { entries, next })
        })
    }

    pub fn publish(topic: &str, message: &str, is_durable: bool) -> Result<String, Problem> {
        with(|host| {
            host.published
                .push((topic.into(), message.into(), is_durable));
            Ok(format!("message-{}", host.published.len()))
        })
    }

    pub fn subscriber_token(
        topics: &[String],
        subject: Option<&str>,
        ttl_seconds: Option<i64>,
    ) -> Result<String, Problem> {
        Ok(format!("token {topics:?} {subject:?} {ttl_seconds:?}"))
    }

    pub fn secret(name: &str) -> Result<Option<String>, Problem> {
        Ok(with(|host| host.secrets.get(name).cloned()))
    }

    pub fn replay(_id: &str) -> Result<String, Problem> {
        Err(denied())
    }

    pub fn resolve(_id: &str, _handled: bool) -> Result<(), Problem> {
        Err(denied())
    }

    pub fn list_dead_letters(
        _cursor: Option<&str>,
        _limit: Option<u32>,
    ) -> Result<(Vec<String>, Option<String>), Problem> {
        Err(denied())
    }

    pub fn write_log(level: Level, message: &str, fields: Vec<(String, String)>) {
        with(|host| host.log.push((level, message.into(), fields)));
    }

    pub fn context() -> Context {
        with(|host| host.context.clone())
    }

    pub fn sleep(long: Duration) {
        std::thread::sleep(long);
    }
}
