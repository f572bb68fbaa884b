//! `dead_letters::replay`, `dead_letters::resolve` and `dead_letters::list`.

use rhai::{Array, Dynamic, ImmutableString, Map, Module};

use super::{Context, Native, fail, refused};
use crate::{host, json};

fn list(context: &Context<'_>, cursor: Option<&str>) -> Native<Map> {
    const CALL: &str = "dead_letters::list";
    let (entries, next) = match host::list_dead_letters(cursor, None) {
        Ok(page) => page,
        Err(problem) => return refused(context, CALL, problem),
    };
    let parse =
        |text: &String| json::parse_told(text).or_else(|problem| fail(context, CALL, problem));
    let entries: Array = entries.iter().map(parse).collect::<Native<_>>()?;
    let next = next.map_or(Dynamic::UNIT, Dynamic::from);
    Ok(Map::from([
        ("entries".into(), entries.into()),
        ("cursor".into(), next),
    ]))
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("replay", |context: Context<'_>, id: ImmutableString| {
        host::replay(&id).or_else(|problem| refused(&context, "dead_letters::replay", problem))
    });
    module.set_native_fn(
        "resolve",
        |context: Context<'_>, id: ImmutableString, reason: ImmutableString| {
            const CALL: &str = "dead_letters::resolve";
            let handled = match reason.as_str() {
                "handled_by_script" => true,
                "ignored" => false,
                other => {
                    let problem =
                        format!("the reason is `ignored` or `handled_by_script`, not `{other}`");
                    return fail(&context, CALL, problem);
                }
            };
            host::resolve(&id, handled).or_else(|problem| refused(&context, CALL, problem))
        },
    );
    module.set_native_fn("list", |context: Context<'_>| list(&context, None));
    module.set_native_fn("list", |context: Context<'_>, cursor: ImmutableString| {
        list(&context, Some(&cursor))
    });
    module
}
