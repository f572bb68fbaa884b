//! `dead_letters::replay`, `dead_letters::resolve` and `dead_letters::list`.

use rhai::{Array, Dynamic, ImmutableString, Map, Module};

use super::{Native, fail};
use crate::{host, json};

fn list(cursor: Option<&str>) -> Native<Map> {
    const CALL: &str = "dead_letters::list";
    let (entries, next) = match host::list_dead_letters(cursor, None) {
        Ok(page) => page,
        Err(problem) => return fail(CALL, problem),
    };
    let parse = |text: &String| json::parse_told(text).or_else(|problem| fail(CALL, problem));
    let entries: Array = entries.iter().map(parse).collect::<Native<_>>()?;
    let next = next.map_or(Dynamic::UNIT, Dynamic::from);
    Ok(Map::from([
        ("entries".into(), entries.into()),
        ("cursor".into(), next),
    ]))
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("replay", |id: ImmutableString| {
        host::replay(&id).or_else(|problem| fail("dead_letters::replay", problem))
    });
    module.set_native_fn("resolve", |id: ImmutableString, reason: ImmutableString| {
        const CALL: &str = "dead_letters::resolve";
        let handled = match reason.as_str() {
            "handled_by_script" => true,
            "ignored" => false,
            other => {
                let problem =
                    format!("the reason is `ignored` or `handled_by_script`, not `{other}`");
                return fail(CALL, problem);
            }
        };
        host::resolve(&id, handled).or_else(|problem| fail(CALL, problem))
    });
    module.set_native_fn("list", || list(None));
    module.set_native_fn("list", |cursor: ImmutableString| list(Some(&cursor)));
    module
}
