//! `dead_letters::replay` and `dead_letters::resolve`.

use rhai::{ImmutableString, Module};

use super::fail;
use crate::host;

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
    module
}
