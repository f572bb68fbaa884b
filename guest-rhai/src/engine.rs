//! The engine: what the language may do, built once and kept in the snapshot.

use std::cell::RefCell;

use rhai::module_resolvers::DummyModuleResolver;
use rhai::{Dynamic, Engine, OptimizationLevel, Scope};

use crate::host::{self, Level};
use crate::outcome::{self, Diagnostic, Failure, Response};
use crate::{ctx, modules};

/// How deep functions may call each other. Each level takes up to 6 KiB of the two stacks.
const CALL_LEVELS_MAX: usize = 64;
/// How deep expressions may be nested, at the top and in a function.
const EXPR_DEPTH_MAX: usize = 64;
/// The longest string, in bytes.
const STRING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most items of an array, nested ones included; a blob's bytes count too.
const ARRAY_ITEMS_MAX: usize = 16 * 1024 * 1024;
/// The most members of a map, nested ones included.
const MAP_MEMBERS_MAX: usize = 10_000;
/// The most variables in scope at once.
const VARIABLES_MAX: usize = 1_000;
/// The most functions of a script.
const FUNCTIONS_MAX: usize = 1_000;

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// Build the engine, and run a script with it once, so that the snapshot has whatever is made
/// on first use.
pub fn prepare() {
    let engine = build();
    // Nothing of the host is there yet: only what needs none.
    let _ = engine.eval::<Dynamic>("let m = #{ a: [1, 2.5, \"x\"] }; m.a.len() + `${m}`.len()");
    ENGINE.set(Some(engine));
}

fn with_engine<T>(work: impl FnOnce(&Engine) -> T) -> T {
    ENGINE.with_borrow_mut(|engine| work(engine.get_or_insert_with(build)))
}

fn build() -> Engine {
    let mut engine = Engine::new();
    engine
        .set_module_resolver(DummyModuleResolver::new())
        .disable_symbol("eval")
        .set_optimization_level(OptimizationLevel::Simple)
        .set_max_call_levels(CALL_LEVELS_MAX)
        .set_max_expr_depths(EXPR_DEPTH_MAX, EXPR_DEPTH_MAX)
        .set_max_string_size(STRING_BYTES_MAX)
        .set_max_array_size(ARRAY_ITEMS_MAX)
        .set_max_map_size(MAP_MEMBERS_MAX)
        .set_max_variables(VARIABLES_MAX)
        .set_max_functions(FUNCTIONS_MAX)
        .set_max_modules(0)
        // Fuel counts operations already, and better.
        .set_max_operations(0);
    engine.on_print(|text| host::write_log(Level::Info, text, Vec::new()));
    engine.on_debug(|text, _, position| {
        let line = position
            .line()
            .map(|line| ("line".to_owned(), line.to_string()));
        host::write_log(Level::Debug, text, line.into_iter().collect());
    });
    ctx::register(&mut engine);
    modules::register(&mut engine);
    engine
}

/// Say what is wrong with a source.
pub fn validate(source: &str) -> Vec<Diagnostic> {
    with_engine(|engine| {
        engine
            .compile(source)
            .err()
            .map(|error| outcome::diagnostic(&error))
            .into_iter()
            .collect()
    })
}

/// Compile and run a source.
///
/// # Errors
/// [`Failure`] says why there is no response.
pub fn run(source: &str) -> Result<Response, Failure> {
    with_engine(|engine| {
        let ast = engine
            .compile(source)
            .map_err(|error| Failure::InvalidSource(vec![outcome::diagnostic(&error)]))?;
        let value = engine
            .eval_ast_with_scope::<Dynamic>(&mut Scope::new(), &ast)
            .map_err(|error| Failure::Threw(outcome::thrown(*error)))?;
        outcome::response(value)
    })
}
