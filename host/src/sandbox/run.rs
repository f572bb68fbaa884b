//! One execution: a store and an instance that live for one call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;
use wasmtime::{Store, Trap, UpdateDeadline};

use super::bindings::types;
use super::engine::Shared;
use super::imports::{HostLimitReached, Imports, Meter};
use super::limiter::{Limiter, MemoryExceeded, NoMemory};
use super::log::Log;
use super::redact::Redaction;
use super::turns::Interruption;
use super::wasi::Wasi;
use super::{
    Code, Context, Diagnostic, Job, Limits, Outcome, Program, ProgramError, Report, Request,
    Response,
};

/// How many bytes one host call may make the host copy out of a guest. A value of the largest
/// size fits, and wasmtime's default of 128 MiB times the executions at once would not.
const HOSTCALL_BYTES_MAX: usize = 40 * 1024 * 1024;
/// How many handles a guest may hold at once in wasmtime's own tables.
const COMPONENT_HANDLES_MAX: usize = 2_000;

/// What a guest's imports work on.
pub(super) struct State<I> {
    pub(super) imports: I,
    pub(super) context: Arc<Context>,
    pub(super) log: Log,
    pub(super) meter: Meter,
    pub(super) wasi: Wasi,
    /// The image of the program that the interpreter is to run.
    pub(super) image: Option<Arc<[u8]>>,
    /// The secrets that it read.
    pub(super) redaction: Redaction,
    limiter: Limiter,
    deadline: Instant,
    /// Whether its clocks are not coarsened.
    pub(super) has_precise_clocks: bool,
}

/// The guest computed past its deadline.
#[derive(Debug, thiserror::Error)]
#[error("the time limit is reached")]
struct TimedOut;

/// A store for one execution, with every limit set.
fn store<I: Imports>(
    shared: &Shared<I>,
    app: Uuid,
    is_interpreted: bool,
    context: Arc<Context>,
    limits: &Limits,
    imports: I,
    deadline: Instant,
) -> wasmtime::Result<Store<State<I>>> {
    let state = State {
        imports,
        context,
        log: Log::new(limits.log_bytes),
        meter: Meter::default(),
        wasi: Wasi::default(),
        image: None,
        redaction: Redaction::default(),
        limiter: Limiter::new(&shared.memory, app, limits.memory_bytes, is_interpreted),
        deadline,
        has_precise_clocks: shared.precise_clock_apps.contains(&app),
    };
    let mut store = Store::new(&shared.engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_fuel(limits.fuel)?;
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    store.set_max_component_handles(COMPONENT_HANDLES_MAX);
    store.set_epoch_deadline(1);
    // `epoch_deadline_async_yield_and_update` would wake the guest at once, whose turn it is not.
    store.epoch_deadline_callback(|store| {
        if Instant::now() >= store.data().deadline {
            return Err(TimedOut.into());
        }
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(Interruption::default()),
        ))
    });
    Ok(store)
}

/// Run a job from beginning to end.
pub(super) async fn run<I: Imports>(shared: Arc<Shared<I>>, job: Job<I>) -> Report {
    let started = Instant::now();
    let Job {
        code,
        request,
        context,
        limits,
        imports,
    } = job;
    let deadline = started + Duration::from_millis(limits.timeout_ms);
    let (app, is_interpreted) = (context.app_id, code.is_interpreted());
    let made = store(
        &shared,
        app,
        is_interpreted,
        context,
        &limits,
        imports,
        deadline,
    );
    let mut store = match made {
        Ok(store) => store,
        Err(error) => {
            let outcome = Outcome::Platform(format!("{error:#}"));
            let (log, log_truncated) = (Vec::new(), false);
            return Report {
                outcome,
                fuel_used: 0,
                duration: started.elapsed(),
                log,
                log_truncated,
            };
        }
    };
    let invocation = types::Invocation {
        request: request.map(wit_request),
    };
    // Computing ends by the epoch; a host call that waits, a sleep say, ends by this.
    let called = call(&shared, &mut store, &code, &invocation);
    let mut outcome = match tokio::time::timeout_at(deadline.into(), called).await {
        Ok(Ok(Ok(response))) => answered(response, limits.output_bytes),
        Ok(Ok(Err(failure))) => failed(failure, &code),
        Ok(Err(error)) => match trapped(&error) {
            Outcome::Trapped(_) if code.is_interpreted() && is_out_of_bounds(&error) => {
                Outcome::StackOverflow
            }
            outcome => outcome,
        },
        Err(_) => Outcome::TimedOut,
    };
    let fuel_used = limits.fuel.saturating_sub(store.get_fuel().unwrap_or(0));
    let mut state = store.into_data();
    let (log, log_truncated) = state.log.into_parts();
    state.redaction.outcome(&mut outcome);
    if let Outcome::Answered(response) = &mut outcome {
        let body = std::mem::take(&mut response.body);
        response.body = state.limiter.answer(body);
    }
    Report {
        outcome,
        fuel_used,
        duration: started.elapsed(),
        log,
        log_truncated,
    }
}

async fn call<I: Imports>(
    shared: &Shared<I>,
    store: &mut Store<State<I>>,
    code: &Code,
    invocation: &types::Invocation,
) -> wasmtime::Result<Result<types::Response, types::Failure>> {
    match code {
        Code::Rhai(program) => {
            let source = match program {
                Program::Image(image) => {
                    store.data_mut().image = Some(image.clone());
                    None
                }
                Program::Source(source) => Some(&**source),
            };
            let pre = shared.rhai.load_full();
            let guest = pre.instantiate_async(&mut *store).await?;
            let interpreter = guest.picloud_function_interpreter();
            interpreter.call_run(store, source, invocation).await
        }
        Code::Component(component) => {
            let pre = component
                .pre::<I>()
                .ok_or_else(|| wasmtime::Error::msg("the component is of another sandbox"))?;
            let guest = pre.instantiate_async(&mut *store).await?;
            guest
                .picloud_function_handler()
                .call_handle(store, invocation)
                .await
        }
    }
}

/// Have the interpreter compile a source.
pub(super) async fn compile<I: Imports>(
    shared: Arc<Shared<I>>,
    app: Uuid,
    source: Arc<str>,
    imports: I,
) -> Result<Program, ProgramError> {
    // The default fuel, too: a mebibyte of code takes two thirds of it, and what takes more for want of
    // an image could not run by default. Rhai compares each member of a map with all before it, and
    // each variable with all of its scope: 30,000 of them took longer than the time limit.
    let limits = Limits::DEFAULT;
    let deadline = Instant::now() + Duration::from_millis(limits.timeout_ms);
    let context = Arc::default();
    let mut store = store(&shared, app, true, context, &limits, imports, deadline)
        .map_err(|error| ProgramError::Ended(Outcome::Platform(format!("{error:#}"))))?;
    let asked = async {
        let pre = shared.rhai.load_full();
        let guest = pre.instantiate_async(&mut store).await?;
        guest
            .picloud_function_interpreter()
            .call_compile(&mut store, &source)
            .await
    };
    match tokio::time::timeout_at(deadline.into(), asked).await {
        Ok(Ok(Ok(Some(image)))) => Ok(Program::Image(image.into())),
        Ok(Ok(Ok(None))) => Ok(Program::Source(source)),
        Ok(Ok(Err(diagnostics))) => Err(ProgramError::Invalid(diagnostics)),
        Ok(Err(error)) => Err(not_compiled(trapped(&error))),
        Err(_) => Err(not_compiled(Outcome::TimedOut)),
    }
}

/// What most often takes too much work, and what to do.
const MANY_MEMBERS: &str = ": a map with thousands of members, or thousands of variables in one scope, takes work \
     with the square of their number; split it, or keep the data in the key-value store";

/// What a compilation that was ended says of the source: what it took too much of is its own doing.
fn not_compiled(ended: Outcome) -> ProgramError {
    let what = match &ended {
        Outcome::FuelUsedUp => "work",
        Outcome::TimedOut => "time",
        Outcome::MemoryExceeded => "memory",
        Outcome::StackOverflow | Outcome::Trapped(_) => "depth",
        _ => return ProgramError::Ended(ended),
    };
    let hint = match &ended {
        Outcome::FuelUsedUp => MANY_MEMBERS,
        _ => "",
    };
    ProgramError::Invalid(vec![Diagnostic {
        message: format!("the source takes more {what} to compile than there is{hint}"),
        position: None,
    }])
}

fn wit_request(request: Request) -> types::Request {
    types::Request {
        method: request.method,
        path: request.path,
        params: request.params,
        query: request.query,
        rest: request.rest,
        headers: request
            .headers
            .into_iter()
            .map(|(name, value)| types::Header { name, value })
            .collect(),
        body: request.body.map(|body| types::Body {
            content_type: body.content_type,
            bytes: body.bytes.into(),
        }),
    }
}

/// What only the host may say on the wire.
const HOST_HEADERS: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The most header fields of a response. hyper's client takes 100 over HTTP/1, and the host adds its own.
const HEADERS_MAX: usize = 64;

fn answered(response: types::Response, bytes_max: u64) -> Outcome {
    let fields = response.headers.iter();
    let head: usize = fields
        .map(|field| field.name.len() + field.value.len())
        .sum();
    let bytes = (response.body.len() + head) as u64;
    if bytes > bytes_max {
        return Outcome::OutputTooLarge { bytes, bytes_max };
    }
    let count = response.headers.len();
    if count > HEADERS_MAX {
        let problem =
            format!("the response has {count} header fields; at most {HEADERS_MAX} are taken");
        return Outcome::InvalidResponse(problem);
    }
    if !(200..=599).contains(&response.status) {
        let problem = format!("the status is {}; it must be 200 to 599", response.status);
        return Outcome::InvalidResponse(problem);
    }
    let mut headers = Vec::with_capacity(response.headers.len());
    for types::Header { name, value } in response.headers {
        let name = name.to_ascii_lowercase();
        // RFC 9110: a token, and a value of visible characters, spaces and tabs.
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Outcome::InvalidResponse(format!("`{name}` is no name for a header"));
        }
        if !value
            .bytes()
            .all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))
        {
            let problem = format!("the header `{name}` has a value that HTTP cannot carry");
            return Outcome::InvalidResponse(problem);
        }
        if !HOST_HEADERS.contains(&name.as_str()) {
            headers.push((name, value));
        }
    }
    Outcome::Answered(Response {
        status: response.status,
        headers,
        body: response.body.into(),
    })
}

fn failed(failure: types::Failure, code: &Code) -> Outcome {
    match failure {
        types::Failure::InvalidSource(diagnostics) if code.is_interpreted() => {
            Outcome::InvalidSource(diagnostics)
        }
        // Callers are told what is wrong with a source, but not what a guest says of itself.
        types::Failure::InvalidSource(diagnostics) => {
            let said = diagnostics.into_iter().map(|diagnostic| diagnostic.message);
            let said = said.collect::<Vec<_>>().join("; ");
            Outcome::InvalidResponse(format!("only the interpreter has a source: {said}"))
        }
        types::Failure::Threw(thrown) => Outcome::Threw(thrown),
        types::Failure::InvalidResponse(problem) => Outcome::InvalidResponse(problem),
    }
}

/// Whether a guest reached beyond its memory. The interpreter does so only where its stack in that
/// memory, which begins at address 0, is used up: there is no page before it.
fn is_out_of_bounds(error: &wasmtime::Error) -> bool {
    matches!(error.downcast_ref(), Some(Trap::MemoryOutOfBounds))
}

/// What an error of wasmtime means. Our own errors come through it as they are.
fn trapped(error: &wasmtime::Error) -> Outcome {
    if error.is::<TimedOut>() {
        return Outcome::TimedOut;
    }
    if error.is::<MemoryExceeded>() {
        return Outcome::MemoryExceeded;
    }
    if let Some(NoMemory(exceeded)) = error.downcast_ref() {
        return Outcome::NoMemory(*exceeded);
    }
    if let Some(HostLimitReached(limit)) = error.downcast_ref() {
        return Outcome::HostCallsExceeded(*limit);
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return Outcome::NoCapacity;
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Outcome::FuelUsedUp,
        Some(Trap::Interrupt) => Outcome::TimedOut,
        Some(Trap::StackOverflow) => Outcome::StackOverflow,
        Some(trap) => Outcome::Trapped(trap.to_string()),
        // The guest asked WASI to exit, answered something that its type does not allow, made
        // the host copy too much, …: its own doing, not ours.
        None => Outcome::Trapped(error.root_cause().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Exceeded;

    #[test]
    fn a_source_that_takes_too_much_to_compile_is_invalid_and_no_fault_of_ours() {
        for (ended, what) in [
            (Outcome::FuelUsedUp, "work"),
            (Outcome::TimedOut, "time"),
            (Outcome::MemoryExceeded, "memory"),
            (Outcome::StackOverflow, "depth"),
            (Outcome::Trapped("unreachable".into()), "depth"),
        ] {
            let told = format!("{ended:?}");
            let ProgramError::Invalid(found) = not_compiled(ended) else {
                panic!("{told} is a fault of ours");
            };
            let expected = format!("the source takes more {what} to compile than there is");
            let message = &found[0].message;
            assert!(message.starts_with(&expected), "{told}: {message}");
            let hints = message.contains("thousands of members");
            assert_eq!((found.len(), hints), (1, what == "work"), "{told}");
        }
        // What is not the source's doing is not blamed on it.
        for ended in [
            Outcome::NoCapacity,
            Outcome::NoMemory(Exceeded::ByAll),
            Outcome::Platform("x".into()),
        ] {
            let error = not_compiled(ended);
            assert!(matches!(error, ProgramError::Ended(_)), "{error:?}");
        }
    }
}
