//! `secrets::get(name)`.

use rhai::{Dynamic, ImmutableString, Module};

use super::{Context, refused};
use crate::host;

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn(
        "get",
        |context: Context<'_>, name: ImmutableString| match host::secret(&name) {
            Ok(value) => Ok(value.map_or(Dynamic::UNIT, Dynamic::from)),
            Err(problem) => refused(&context, "secrets::get", problem),
        },
    );
    module
}
