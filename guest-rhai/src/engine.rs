//! The engine: what the language may do, built once and kept in the snapshot.

use std::cell::{Cell, RefCell};

use rhai::grain::Vm;
use rhai::module_resolvers::DummyModuleResolver;
use rhai::{AST, Dynamic, Engine, EvalAltResult, OptimizationLevel, Scope, Token};

use crate::ctx::Ctx;
use crate::host::{self, Level};
use crate::outcome::{self, Diagnostic, Failure, Response};
use crate::script::{self, Form, Script};
use crate::{ctx, error, modules};

/// How deep functions may call each other. Each level takes up to 6 KiB of the two stacks.
pub const CALL_LEVELS_MAX: usize = 64;
/// How deep expressions may be nested, at the top and in a function.
pub const EXPR_DEPTH_MAX: usize = 64;
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
    let script = parse(source).ok();
    let script = script.and_then(|tree| script::compile(&tree)?.load());
    let _ = script.map(|script| run(&script));
}

fn with_engine<T>(work: impl FnOnce(&mut Engine) -> T) -> T {
    ENGINE.with_borrow_mut(|engine| work(engine.get_or_insert_with(build)))
}

fn build() -> Engine {
    let mut engine = Engine::new();
    // Sizes of values have no limit but the instance's memory: Rhai would count a value anew with
    // each call that touches it, so that `push` took as long as the array is.
    engine
        .set_module_resolver(DummyModuleResolver::new())
        .disable_symbol("eval")
        .set_optimization_level(OptimizationLevel::None)
        .set_max_call_levels(CALL_LEVELS_MAX)
        .set_max_expr_depths(EXPR_DEPTH_MAX, EXPR_DEPTH_MAX)
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
    free_words(&mut engine);
    ctx::register(&mut engine);
    error::register(&mut engine);
    modules::register(&mut engine);
    engine
}

/// Let words that Rhai keeps for itself be names where they can be nothing else: after a path, as
/// in `log::debug`, and after a dot, as in `error.call`.
fn free_words(engine: &mut Engine) {
    let last = Cell::new(None);
    #[expect(deprecated, reason = "Rhai says so of what is only not stable yet")]
    engine.on_parse_token(move |token, _, _| {
        let free = last.take();
        last.set(match token {
            Token::DoubleColon => Some("debug"),
            Token::Period | Token::Elvis => Some("call"),
            _ => None,
        });
        match token {
            Token::Reserved(word) if free == Some(word.as_str()) => Token::Identifier(word),
            token => token,
        }
    });
}

/// A source without the byte order mark that some editors put before it.
fn without_mark(source: &str) -> &str {
    source.strip_prefix('\u{feff}').unwrap_or(source)
}

/// Parse a source.
///
/// # Errors
/// What is wrong with it.
pub fn parse(source: &str) -> Result<AST, Vec<Diagnostic>> {
    with_engine(|engine| engine.compile(without_mark(source)))
        .map_err(|error| vec![outcome::diagnostic(&error)])
}

/// Parse a source, and share nothing of the tree with the engine: it can be put into an image.
///
/// # Errors
/// What is wrong with it.
pub fn parse_apart(source: &str) -> Result<AST, Vec<Diagnostic>> {
    let strings_max = with_engine(|engine| {
        let strings_max = engine.max_strings_interned();
        engine.set_max_strings_interned(0);
        strings_max
    });
    let parsed = parse(source);
    with_engine(|engine| {
        engine.set_max_strings_interned(strings_max);
    });
    parsed
}

/// Run a script, as far as to the value that it answers.
///
/// # Errors
/// What it threw.
pub fn evaluate(script: &Script) -> Result<Dynamic, Box<EvalAltResult>> {
    with_engine(|engine| {
        if script.captures_ctx {
            resolve_ctx(engine);
        }
        let mut scope = Scope::new();
        match &script.form {
            Form::Tree(tree) => engine.eval_ast_with_scope(&mut scope, tree),
            Form::Bytecode(program) => Vm::new(engine).eval_with_scope(&mut scope, program),
        }
    })
}

/// Have closures find `ctx`: what they capture is looked for among variables, and it is none. Each
/// use of any variable asks this, so only scripts with such a closure have it.
fn resolve_ctx(engine: &mut Engine) {
    #[expect(deprecated, reason = "Rhai says so of what is only not stable yet")]
    engine.on_var(|name, _, context| {
        let is_ctx = name == "ctx" && !context.scope().contains("ctx");
        Ok(is_ctx.then(|| Dynamic::from(Ctx)))
    });
}

/// Run a script.
///
/// # Errors
/// [`Failure`] says why there is no response.
pub fn run(script: &Script) -> Result<Response, Failure> {
    let value = evaluate(script).map_err(|error| Failure::Threw(outcome::thrown(*error)))?;
    outcome::response(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_say_how_deep_and_how_many() {
        let docs = include_str!("../../docs/rhai-sdk.md");
        let thousands = |count| format!("{},{:03}", count / 1_000, count % 1_000);
        assert_eq!(
            VARIABLES_MAX, FUNCTIONS_MAX,
            "the docs have one line for both"
        );
        for line in [
            format!("| depth of calls | {CALL_LEVELS_MAX} |"),
            format!("| depth of expressions | {EXPR_DEPTH_MAX} |"),
            format!(
                "| variables at once, functions | {} |",
                thousands(VARIABLES_MAX)
            ),
        ] {
            let is_there = docs.lines().any(|said| said == line);
            assert!(is_there, "docs/rhai-sdk.md has no line {line}");
        }
    }
}
