//! What guests may call. `context` and `log` are answered here, from the execution's own state;
//! `kv` and `dead-letters` are metered here and answered by the domains.

use std::future::Future;

use super::bindings::{context, dead_letters, kv, log, pubsub, secrets, types};
use super::run::State;
use super::{HostLimit, Level, LogLine};

/// How often an execution may call the host (log lines don't count, only their bytes: they have
/// limits of their own). A script that works through a collection a page at a time stays far below.
const CALLS_MAX: u64 = 100_000;
/// How many bytes all its calls may carry, both ways together.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How many bytes of secrets it may read: they are kept until its end, in all the forms in which they
/// are sought in what it says.
const SECRET_BYTES_MAX: u64 = 1024 * 1024;

/// The key-value store, as guests reach it.
pub trait KvImports: Send {
    /// See the WIT.
    fn get(
        &mut self,
        collection: String,
        key: String,
    ) -> impl Future<Output = Result<Option<String>, kv::Error>> + Send;

    /// See the WIT.
    fn set(
        &mut self,
        collection: String,
        key: String,
        value: String,
    ) -> impl Future<Output = Result<(), kv::Error>> + Send;

    /// See the WIT.
    fn delete(
        &mut self,
        collection: String,
        key: String,
    ) -> impl Future<Output = Result<bool, kv::Error>> + Send;

    /// See the WIT.
    fn has(
        &mut self,
        collection: String,
        key: String,
    ) -> impl Future<Output = Result<bool, kv::Error>> + Send;

    /// See the WIT.
    fn list_told(
        &mut self,
        collection: String,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> impl Future<Output = Result<kv::ToldPage, kv::Error>> + Send;
}

/// The dead letters, as guests reach them.
pub trait DeadLetterImports: Send {
    /// See the WIT.
    fn replay(
        &mut self,
        id: String,
    ) -> impl Future<Output = Result<String, dead_letters::Error>> + Send;

    /// See the WIT.
    fn resolve(
        &mut self,
        id: String,
        resolution: dead_letters::Resolution,
    ) -> impl Future<Output = Result<(), dead_letters::Error>> + Send;

    /// See the WIT.
    fn list(
        &mut self,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> impl Future<Output = Result<dead_letters::Page, dead_letters::Error>> + Send;
}

/// The secrets, as guests reach them.
pub trait SecretImports: Send {
    /// See the WIT.
    fn get(
        &mut self,
        name: String,
    ) -> impl Future<Output = Result<Option<String>, secrets::Error>> + Send;
}

/// The topics, as guests reach them.
pub trait PubSubImports: Send {
    /// See the WIT.
    fn publish_durable(
        &mut self,
        topic: String,
        message: String,
    ) -> impl Future<Output = Result<String, pubsub::Error>> + Send;

    /// See the WIT.
    fn publish_ephemeral(
        &mut self,
        topic: String,
        message: String,
    ) -> impl Future<Output = Result<String, pubsub::Error>> + Send;

    /// See the WIT.
    fn subscriber_token(
        &mut self,
        topics: Vec<String>,
        subject: Option<String>,
        ttl_seconds: Option<i64>,
    ) -> impl Future<Output = Result<String, pubsub::Error>> + Send;
}

/// Who hears of log lines while the execution runs. They are kept here, whoever hears them.
pub trait LogImports: Send {
    /// A line was kept.
    fn logged(&mut self, line: &LogLine);
}

/// Everything that the domains answer for one execution. It carries the app's id: no call of a
/// guest can name another.
pub trait Imports:
    KvImports + DeadLetterImports + SecretImports + PubSubImports + LogImports + 'static
{
}

impl<T> Imports for T where
    T: KvImports + DeadLetterImports + SecretImports + PubSubImports + LogImports + 'static
{
}

/// Imports with nothing behind them: for measuring and testing the sandbox by itself.
pub struct NoImports;

impl KvImports for NoImports {
    async fn get(&mut self, _: String, _: String) -> Result<Option<String>, kv::Error> {
        Err(kv::Error::Unavailable)
    }

    async fn set(&mut self, _: String, _: String, _: String) -> Result<(), kv::Error> {
        Err(kv::Error::Unavailable)
    }

    async fn delete(&mut self, _: String, _: String) -> Result<bool, kv::Error> {
        Err(kv::Error::Unavailable)
    }

    async fn has(&mut self, _: String, _: String) -> Result<bool, kv::Error> {
        Err(kv::Error::Unavailable)
    }

    async fn list_told(
        &mut self,
        _: String,
        _: Option<String>,
        _: Option<u32>,
    ) -> Result<kv::ToldPage, kv::Error> {
        Err(kv::Error::Unavailable)
    }
}

impl DeadLetterImports for NoImports {
    async fn replay(&mut self, _: String) -> Result<String, dead_letters::Error> {
        Err(dead_letters::Error::Denied)
    }

    async fn resolve(
        &mut self,
        _: String,
        _: dead_letters::Resolution,
    ) -> Result<(), dead_letters::Error> {
        Err(dead_letters::Error::Denied)
    }

    async fn list(
        &mut self,
        _: Option<String>,
        _: Option<u32>,
    ) -> Result<dead_letters::Page, dead_letters::Error> {
        Err(dead_letters::Error::Denied)
    }
}

impl SecretImports for NoImports {
    async fn get(&mut self, _: String) -> Result<Option<String>, secrets::Error> {
        Ok(None)
    }
}

impl LogImports for NoImports {
    fn logged(&mut self, _: &LogLine) {}
}

impl PubSubImports for NoImports {
    async fn publish_durable(&mut self, _: String, _: String) -> Result<String, pubsub::Error> {
        Err(pubsub::Error::Unavailable)
    }

    async fn publish_ephemeral(&mut self, _: String, _: String) -> Result<String, pubsub::Error> {
        Err(pubsub::Error::Unavailable)
    }

    async fn subscriber_token(
        &mut self,
        _: Vec<String>,
        _: Option<String>,
        _: Option<i64>,
    ) -> Result<String, pubsub::Error> {
        Err(pubsub::Error::Unavailable)
    }
}

/// The guest reached a limit on its host calls. No language can catch it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct HostLimitReached(pub(super) HostLimit);

/// Counts what an execution makes the host do.
#[derive(Default)]
pub(super) struct Meter {
    calls: u64,
    bytes: u64,
    secret_bytes: u64,
}

impl Meter {
    /// Count a call with arguments of `bytes`.
    fn call(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.calls += 1;
        if self.calls > CALLS_MAX {
            return Err(HostLimitReached(HostLimit::Calls(CALLS_MAX)).into());
        }
        self.carry(bytes)
    }

    /// Count `bytes` more.
    fn carry(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > BYTES_MAX {
            return Err(HostLimitReached(HostLimit::Bytes(BYTES_MAX)).into());
        }
        Ok(())
    }

    /// Count a secret of `bytes` that was read for the first time.
    fn keep_secret(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.secret_bytes = self.secret_bytes.saturating_add(bytes as u64);
        if self.secret_bytes > SECRET_BYTES_MAX {
            return Err(HostLimitReached(HostLimit::SecretBytes(SECRET_BYTES_MAX)).into());
        }
        Ok(())
    }
}

impl<I: Imports> kv::Host for State<I> {
    async fn get(
        &mut self,
        collection: String,
        key: String,
    ) -> wasmtime::Result<Result<Option<String>, kv::Error>> {
        self.meter.call(collection.len() + key.len())?;
        let got = KvImports::get(&mut self.imports, collection, key).await;
        self.meter.carry(
            got.as_ref()
                .ok()
                .and_then(Option::as_ref)
                .map_or(0, String::len),
        )?;
        Ok(got)
    }

    async fn set(
        &mut self,
        collection: String,
        key: String,
        value: String,
    ) -> wasmtime::Result<Result<(), kv::Error>> {
        self.meter
            .call(collection.len() + key.len() + value.len())?;
        Ok(self.imports.set(collection, key, value).await)
    }

    async fn delete(
        &mut self,
        collection: String,
        key: String,
    ) -> wasmtime::Result<Result<bool, kv::Error>> {
        self.meter.call(collection.len() + key.len())?;
        Ok(self.imports.delete(collection, key).await)
    }

    async fn has(
        &mut self,
        collection: String,
        key: String,
    ) -> wasmtime::Result<Result<bool, kv::Error>> {
        self.meter.call(collection.len() + key.len())?;
        Ok(self.imports.has(collection, key).await)
    }

    async fn list(
        &mut self,
        collection: String,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> wasmtime::Result<Result<kv::Page, kv::Error>> {
        let told = kv::Host::list_told(self, collection, cursor, limit).await?;
        let entry = |entry: kv::ToldEntry| kv::Entry {
            key: entry.key,
            value: entry.value,
        };
        Ok(told.map(|page| kv::Page {
            entries: page.entries.into_iter().map(entry).collect(),
            next: page.next,
        }))
    }

    async fn list_told(
        &mut self,
        collection: String,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> wasmtime::Result<Result<kv::ToldPage, kv::Error>> {
        self.meter
            .call(collection.len() + cursor.as_ref().map_or(0, String::len))?;
        let page = KvImports::list_told(&mut self.imports, collection, cursor, limit).await;
        let entries = page.as_ref().map_or(&[][..], |page| &page.entries);
        self.meter.carry(
            entries
                .iter()
                .map(|entry| entry.key.len() + entry.value.len())
                .sum(),
        )?;
        Ok(page)
    }
}

impl<I: Imports> dead_letters::Host for State<I> {
    async fn replay(
        &mut self,
        id: String,
    ) -> wasmtime::Result<Result<String, dead_letters::Error>> {
        self.meter.call(id.len())?;
        Ok(self.imports.replay(id).await)
    }

    async fn resolve(
        &mut self,
        id: String,
        resolution: dead_letters::Resolution,
    ) -> wasmtime::Result<Result<(), dead_letters::Error>> {
        self.meter.call(id.len())?;
        Ok(self.imports.resolve(id, resolution).await)
    }

    async fn list(
        &mut self,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> wasmtime::Result<Result<dead_letters::Page, dead_letters::Error>> {
        self.meter.call(cursor.as_ref().map_or(0, String::len))?;
        let page = DeadLetterImports::list(&mut self.imports, cursor, limit).await;
        let entries = page.as_ref().map_or(&[][..], |page| &page.entries);
        self.meter.carry(entries.iter().map(String::len).sum())?;
        Ok(page)
    }
}

impl<I: Imports> secrets::Host for State<I> {
    async fn get(
        &mut self,
        name: String,
    ) -> wasmtime::Result<Result<Option<String>, secrets::Error>> {
        self.meter.call(name.len())?;
        let got = SecretImports::get(&mut self.imports, name).await;
        if let Ok(Some(value)) = &got {
            self.meter.carry(value.len())?;
            if self.redaction.add(value) {
                self.meter.keep_secret(value.len())?;
            }
        }
        Ok(got)
    }
}

impl<I: Imports> pubsub::Host for State<I> {
    async fn publish_durable(
        &mut self,
        topic: String,
        message: String,
    ) -> wasmtime::Result<Result<String, pubsub::Error>> {
        self.meter.call(topic.len() + message.len())?;
        Ok(self.imports.publish_durable(topic, message).await)
    }

    async fn publish_ephemeral(
        &mut self,
        topic: String,
        message: String,
    ) -> wasmtime::Result<Result<String, pubsub::Error>> {
        self.meter.call(topic.len() + message.len())?;
        Ok(self.imports.publish_ephemeral(topic, message).await)
    }

    async fn subscriber_token(
        &mut self,
        topics: Vec<String>,
        subject: Option<String>,
        ttl_seconds: Option<i64>,
    ) -> wasmtime::Result<Result<String, pubsub::Error>> {
        let bytes: usize = topics.iter().chain(&subject).map(String::len).sum();
        self.meter.call(bytes)?;
        let made = self
            .imports
            .subscriber_token(topics, subject, ttl_seconds)
            .await;
        self.meter.carry(made.as_ref().map_or(0, String::len))?;
        Ok(made)
    }
}

impl<I: Imports> context::Host for State<I> {
    async fn get(&mut self) -> wasmtime::Result<context::Execution> {
        self.meter.call(0)?;
        let known = &self.context;
        self.meter
            .carry(known.event.as_ref().map_or(0, String::len))?;
        Ok(context::Execution {
            app: context::App {
                id: known.app_id.to_string(),
                slug: known.app_slug.clone(),
            },
            script: context::Script {
                id: known.script_id.to_string(),
                name: known.script_name.clone(),
                version: known.script_version,
            },
            execution_id: known.execution_id.to_string(),
            request_id: known.request_id.to_string(),
            invocation_type: known.invocation_type.clone(),
            principal: known
                .principal
                .as_ref()
                .map(|principal| context::Principal {
                    id: principal.id.to_string(),
                    name: principal.name.clone(),
                    kind: principal.kind.to_owned(),
                }),
            trigger_depth: known.trigger_depth,
            attempt: known.attempt,
            sdk_version: crate::sandbox::SDK_VERSION.to_owned(),
            event: known.event.clone(),
        })
    }
}

impl<I: Imports> log::Host for State<I> {
    async fn write(
        &mut self,
        level: log::Level,
        message: String,
        fields: Vec<log::Field>,
    ) -> wasmtime::Result<()> {
        let bytes = fields
            .iter()
            .map(|field| field.name.len() + field.value.len());
        self.meter.carry(message.len() + bytes.sum::<usize>())?;
        let level = match level {
            log::Level::Trace => Level::Trace,
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        };
        let fields = fields.into_iter().map(|field| (field.name, field.value));
        let fields = fields.collect();
        let written = self.log.write(level, message, fields, &mut self.redaction);
        if let Some(line) = written {
            self.imports.logged(line);
        }
        Ok(())
    }
}

impl<I: Imports> types::Host for State<I> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_say_what_a_script_may_ask_of_the_host() {
        let docs = include_str!("../../../docs/rhai-sdk.md");
        let line = docs
            .lines()
            .find(|line| line.starts_with("| calls to the host,"));
        let [calls, bytes, secrets] = [
            CALLS_MAX / 1_000,
            BYTES_MAX / 1024 / 1024,
            SECRET_BYTES_MAX / 1024 / 1024,
        ];
        let limits = format!(" | {calls},000; {bytes} MiB; {secrets} MiB |");
        assert!(line.is_some_and(|line| line.ends_with(&limits)), "{line:?}");
    }
}
