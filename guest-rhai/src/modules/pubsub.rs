//! `pubsub::publish_durable`, `pubsub::publish_ephemeral` and `pubsub::subscriber_token`.

use rhai::{Dynamic, ImmutableString, Module};

use super::{Native, fail};
use crate::{host, json};

fn publish(call: &str, topic: &str, message: &Dynamic, is_durable: bool) -> Native<String> {
    let message = match json::stringify(message, false) {
        Ok(message) => message,
        Err(problem) => return fail(call, format!("the message: {problem}")),
    };
    host::publish(topic, &message, is_durable).or_else(|problem| fail(call, problem))
}

fn token(topics: Dynamic, ttl_seconds: Option<i64>, subject: Option<&str>) -> Native<String> {
    const CALL: &str = "pubsub::subscriber_token";
    let topics = match topics.into_array() {
        Ok(topics) => topics,
        Err(kind) => {
            return fail(
                CALL,
                format!("the topics are an array of strings, not {kind}"),
            );
        }
    };
    let mut names = Vec::with_capacity(topics.len());
    for topic in topics {
        match topic.into_string() {
            Ok(name) => names.push(name),
            Err(kind) => return fail(CALL, format!("a topic is a string, not {kind}")),
        }
    }
    host::subscriber_token(&names, subject, ttl_seconds).or_else(|problem| fail(CALL, problem))
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn(
        "publish_durable",
        |topic: ImmutableString, message: Dynamic| {
            publish("pubsub::publish_durable", &topic, &message, true)
        },
    );
    module.set_native_fn(
        "publish_ephemeral",
        |topic: ImmutableString, message: Dynamic| {
            publish("pubsub::publish_ephemeral", &topic, &message, false)
        },
    );
    module.set_native_fn("subscriber_token", |topics: Dynamic| {
        token(topics, None, None)
    });
    module.set_native_fn("subscriber_token", |topics: Dynamic, ttl_seconds: i64| {
        token(topics, Some(ttl_seconds), None)
    });
    module.set_native_fn(
        "subscriber_token",
        |topics: Dynamic, ttl_seconds: i64, subject: ImmutableString| {
            token(topics, Some(ttl_seconds), Some(&subject))
        },
    );
    module
}
