//! The engine: what the language may do, built once and kept in the snapshot.

use std::cell::RefCell;

use rhai::grain::{Compiler, Program, SharedProgram, Vm};
use rhai::module_resolvers::DummyModuleResolver;
use rhai::{AST, Dynamic, Engine, EvalAltResult, OptimizationLevel, Scope};

use crate::host::{self, Level};
use crate::outcome::{self, Diagnostic, Failure, Response};
use crate::{ctx, modules};

/// The longest source that is compiled: the time that this takes grows with its square, and is a
/// tenth of a second here.
const COMPILED_SOURCE_BYTES_MAX: usize = 64 * 1024;
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
    ENGINE.set(Some(build()));
    // Nothing of the host is there yet: only what needs none.
    let source = "let m = #{ a: [1, 2.5, \"x\"] }; m.a.len() + `${m}`.len()";
    let program = parse(source)
        .ok()
        .and_then(|tree| load(&compile(source, &tree)?));
    let _ = program.map(|program| run(&program));
}

fn with_engine<T>(work: impl FnOnce(&Engine) -> T) -> T {
    ENGINE.with_borrow_mut(|engine| work(engine.get_or_insert_with(build)))
}

fn build() -> Engine {
    let mut engine = Engine::new();
    engine
        .set_module_resolver(DummyModuleResolver::new())
        .disable_symbol("eval")
        .set_optimization_level(OptimizationLevel::None)
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

/// Parse a source.
///
/// # Errors
/// What is wrong with it.
pub fn parse(source: &str) -> Result<AST, Vec<Diagnostic>> {
    with_engine(|engine| engine.compile(source)).map_err(|error| vec![outcome::diagnostic(&error)])
}

/// Compile what was parsed, for [`run`]; none when there is no program for it, or it would take
/// too long to make one. [`walk`] runs any script, but has to parse it first.
pub fn compile(source: &str, tree: &AST) -> Option<Vec<u8>> {
    if source.len() > COMPILED_SOURCE_BYTES_MAX {
        return None;
    }
    Compiler::new().compile(tree).write().ok()
}

/// The program that [`compile`] made. It shares nothing with the engine.
pub fn load(compiled: &[u8]) -> Option<SharedProgram> {
    Some(Program::read(compiled).ok()?.into_owned().into_shared())
}

/// Run a program.
///
/// # Errors
/// [`Failure`] says why there is no response.
pub fn run(program: &SharedProgram) -> Result<Response, Failure> {
    with_engine(|engine| {
        let mut scope = Scope::new();
        let mut vm = Vm::new(engine);
        ended(if program.makes_fn_pointers() {
            vm.eval_with_callbacks(&mut scope, program)
        } else {
            vm.eval_with_scope(&mut scope, program)
        })
    })
}

/// Run what was parsed.
///
/// # Errors
/// [`Failure`] says why there is no response.
pub fn walk(tree: &AST) -> Result<Response, Failure> {
    with_engine(|engine| ended(engine.eval_ast_with_scope(&mut Scope::new(), tree)))
}

fn ended(value: Result<Dynamic, Box<EvalAltResult>>) -> Result<Response, Failure> {
    let value = value.map_err(|error| Failure::Threw(outcome::thrown(*error)))?;
    outcome::response(value)
}
