//! `kv::collection(name)` and what can be done with it.

use rhai::{Array, Dynamic, Engine, ImmutableString, Map, Module};

use super::{Context, Native, fail, refused};
use crate::{host, json};

#[derive(Clone)]
struct Collection {
    name: ImmutableString,
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("collection", |name: ImmutableString| {
        Ok(Collection { name })
    });
    module
}

fn list(
    context: &Context<'_>,
    collection: &Collection,
    cursor: Dynamic,
    limit: Option<i64>,
) -> Native<Map> {
    const CALL: &str = "kv.list";
    let cursor = match cursor.flatten() {
        none if none.is_unit() => None,
        cursor => match cursor.into_immutable_string() {
            Ok(text) => Some(text),
            Err(kind) => {
                return fail(
                    context,
                    CALL,
                    format!("a cursor is a string or (), not {kind}"),
                );
            }
        },
    };
    let limit = match limit.map(u32::try_from).transpose() {
        Ok(limit) => limit,
        Err(_) => {
            return fail(
                context,
                CALL,
                format!("a limit is 1 to 1000, not {}", limit.unwrap_or(0)),
            );
        }
    };
    let page = match host::kv_list(&collection.name, cursor.as_deref(), limit) {
        Ok(page) => page,
        Err(problem) => return refused(context, CALL, problem),
    };
    let mut entries = Array::with_capacity(page.entries.len());
    for entry in page.entries {
        let value = parse(context, CALL, &entry.value)?;
        let mut told = Map::from([("key".into(), entry.key.into()), ("value".into(), value)]);
        // Only where it was, as in the API and in events.
        if entry.value_repaired {
            told.insert("value_repaired".into(), true.into());
        }
        entries.push(told.into());
    }
    let next = page.next.map_or(Dynamic::UNIT, Dynamic::from);
    Ok(Map::from([
        ("entries".into(), entries.into()),
        ("cursor".into(), next),
    ]))
}

fn parse(context: &Context<'_>, call: &'static str, text: &str) -> Native<Dynamic> {
    json::parse(text).or_else(|problem| fail(context, call, format!("the stored value: {problem}")))
}

pub(super) fn register_collection(engine: &mut Engine) {
    engine
        .register_type_with_name::<Collection>("Collection")
        .register_fn(
            "get",
            |context: Context<'_>, collection: &mut Collection, key: &str| match host::kv_get(
                &collection.name,
                key,
            ) {
                Ok(Some(value)) => parse(&context, "kv.get", &value),
                Ok(None) => Ok(Dynamic::UNIT),
                Err(problem) => refused(&context, "kv.get", problem),
            },
        )
        .register_fn(
            "set",
            |context: Context<'_>, collection: &mut Collection, key: &str, value: Dynamic| {
                let value = match json::stringify(&value, false) {
                    Ok(value) => value,
                    Err(problem) => {
                        return fail(&context, "kv.set", format!("the value: {problem}"));
                    }
                };
                host::kv_set(&collection.name, key, &value)
                    .or_else(|problem| refused(&context, "kv.set", problem))
            },
        )
        .register_fn(
            "has",
            |context: Context<'_>, collection: &mut Collection, key: &str| {
                host::kv_has(&collection.name, key)
                    .or_else(|problem| refused(&context, "kv.has", problem))
            },
        )
        .register_fn(
            "delete",
            |context: Context<'_>, collection: &mut Collection, key: &str| {
                host::kv_delete(&collection.name, key)
                    .or_else(|problem| refused(&context, "kv.delete", problem))
            },
        )
        .register_fn(
            "list",
            |context: Context<'_>, collection: &mut Collection| {
                list(&context, collection, Dynamic::UNIT, None)
            },
        )
        .register_fn(
            "list",
            |context: Context<'_>, collection: &mut Collection, cursor: Dynamic| {
                list(&context, collection, cursor, None)
            },
        )
        .register_fn(
            "list",
            |context: Context<'_>, collection: &mut Collection, cursor: Dynamic, limit: i64| {
                list(&context, collection, cursor, Some(limit))
            },
        )
        .register_fn("to_string", |collection: &mut Collection| {
            format!("kv::collection({:?})", collection.name.as_str())
        });
}
