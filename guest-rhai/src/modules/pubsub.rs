//! `pubsub::publish_durable`, `pubsub::publish_ephemeral` and `pubsub::subscriber_token`.

use rhai::{Dynamic, ImmutableString, Module};

use super::{Context, Native, fail, refused};
use crate::{host, json};

fn publish(
    context: &Context<'_>,
    call: &'static str,
    topic: &str,
    message: &Dynamic,
    is_durable: bool,
) -> Native<String> {
    let message = match json::stringify(message, false) {
        Ok(message) => message,
        Err(problem) => return fail(context, call, format!("the message: {problem}")),
    };
    host::publish(topic, &message, is_durable).or_else(|problem| refused(context, call, problem))
}

fn token(
    context: &Context<'_>,
    topics: Dynamic,
    ttl_seconds: Option<i64>,
    subject: Option<&str>,
) -> Native<String> {
    const CALL: &str = "pubsub::subscriber_token";
    let topics = match topics.into_array() {
        Ok(topics) => topics,
        Err(kind) => {
            return fail(
                context,
                CALL,
                format!("the topics are an array of strings, not {kind}"),
            );
        }
    };
    let mut names = Vec::with_capacity(topics.len());
    for topic in topics {
        match topic.into_string() {
            Ok(name) => names.push(name),
            Err(kind) => return fail(context, CALL, format!("a topic is a string, not {kind}")),
        }
    }
    host::subscriber_token(&names, subject, ttl_seconds)
        .or_else(|problem| refused(context, CALL, problem))
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn(
        "publish_durable",
        |context: Context<'_>, topic: ImmutableString, message: Dynamic| {
            publish(&context, "pubsub::publish_durable", &topic, &message, true)
        },
    );
    module.set_native_fn(
        "publish_ephemeral",
        |context: Context<'_>, topic: ImmutableString, message: Dynamic| {
            publish(
                &context,
                "pubsub::publish_ephemeral",
                &topic,
                &message,
                false,
            )
        },
    );
    module.set_native_fn(
        "subscriber_token",
        |context: Context<'_>, topics: Dynamic| token(&context, topics, None, None),
    );
    module.set_native_fn(
        "subscriber_token",
        |context: Context<'_>, topics: Dynamic, ttl_seconds: i64| {
            token(&context, topics, Some(ttl_seconds), None)
        },
    );
    module.set_native_fn(
        "subscriber_token",
        |context: Context<'_>, topics: Dynamic, ttl_seconds: i64, subject: ImmutableString| {
            token(&context, topics, Some(ttl_seconds), Some(&subject))
        },
    );
    module
}
