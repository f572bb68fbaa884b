//! Runs scripts: finds their code, makes the job, and tells what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{Kind, Script, ScriptError, ScriptId, sql};
use crate::apps::App;
use crate::dead_letters::{DeadLetter, DeadLetters};
use crate::directory::{Directory, Picture};
use crate::dispatch::outbox::Outbox;
use crate::dispatch::record::never_ran;
use crate::dispatch::{Answer, Attempted, Delivery, Executor, Payload};
use crate::executions::running::Tail;
use crate::executions::sql::Ended;
use crate::executions::{Execution, ExecutionError, ExecutionId, Log, OutcomeKind};
use crate::fair_queue::Patience;
use crate::identity::capability::{self, Capability, Decision};
use crate::identity::{Caller, Via};
use crate::imports::{GuestImports, Services};
use crate::json::{self, EVENT_DEPTH_MAX, TOLD_DEPTH_MAX};
use crate::sandbox::{
    Code, Compiled, Context, Job, Limits, Outcome, Principal, Program, ProgramError, Report,
    Request, Sandbox,
};
use crate::store::{Db, StoreError, micros};
use crate::telemetry::repeated::Repeated;
use crate::telemetry::trace::{self, Span, TraceParent};
use crate::triggers::firing::{self, Origin};

/// How much code is kept ready in memory, in bytes; a component counts for more than its own,
/// because its machine code is kept too.
const CODE_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// What a loaded component counts for besides the bytes that it came from.
const COMPONENT_BYTES: usize = 2 * 1024 * 1024;
/// For how long an execution without a delivery is tried to be kept. It has its place at the gate
/// until then, so that no more wait for the database than may run.
const KEEP_WITHIN: Duration = Duration::from_secs(15);
/// How long to wait between two tries: at first, and at most.
const KEEP_AGAIN_AFTER: Duration = Duration::from_millis(50);
const KEEP_AGAIN_AFTER_MAX: Duration = Duration::from_secs(2);
static UNKEPT: Repeated = Repeated::new("executions that could not be kept");

/// What the executions of drafts have for a version; those of scripts begin at 1.
const DRAFT_VERSION: u32 = 0;
/// The least time between two trims: what is used again is loaded again.
const TRIM_EVERY: Duration = Duration::from_secs(20);

/// Runs the scripts of this instance.
pub struct Runner {
    db: Db,
    directory: Arc<Directory>,
    sandbox: Sandbox<GuestImports>,
    default_limits: Limits,
    services: Services,
    outbox: Arc<Outbox>,
    codes: moka::future::Cache<(ScriptId, u32), (Code, u32)>,
    host: Handle,
}

/// Code that may be kept. Dropped, what was compiled of it is removed again, unless it is
/// [kept](Self::keep): what is refused later leaves nothing either.
#[must_use]
pub struct CheckedCode(Option<Compiled>);

impl CheckedCode {
    /// The script is there to stay.
    pub fn keep(self) {
        if let Some(compiled) = self.0 {
            compiled.keep();
        }
    }
}

/// Why no code is kept.
enum NoCode {
    /// The version was deleted.
    Gone,
    /// It could not be compiled at this moment; its source can be run.
    NotNow(Program),
    /// It could not be loaded.
    Failed(ScriptError),
}

impl From<ScriptError> for NoCode {
    fn from(error: ScriptError) -> Self {
        Self::Failed(error)
    }
}

/// Who runs what, and why.
struct Call<'c> {
    app: &'c App,
    script: &'c Script,
    version: u32,
    execution_id: ExecutionId,
    delivery: Option<&'c Delivery>,
    invocation_type: &'c str,
    request_id: Uuid,
    who: Option<Caller>,
    request: Option<Request>,
    event: Option<String>,
    /// The source that is run instead of the script's own.
    draft: Option<Bytes>,
}

impl Runner {
    /// A runner on this database and sandbox. Must be made inside the runtime that serves.
    pub fn new(
        db: Db,
        directory: Arc<Directory>,
        sandbox: Sandbox<GuestImports>,
        default_limits: Limits,
        services: Services,
        outbox: Arc<Outbox>,
    ) -> Self {
        let codes = moka::future::Cache::builder()
            .max_capacity(CODE_CACHE_BYTES)
            .weigher(|_, (_, bytes)| *bytes)
            .build();
        let host = Handle::current();
        Self {
            db,
            directory,
            sandbox,
            default_limits,
            services,
            outbox,
            codes,
            host,
        }
    }

    /// Give memory back that idle instances keep, again and again, for ever.
    pub async fn keep_trimming(self: Arc<Self>) {
        loop {
            self.sandbox.has_too_much_unused().await;
            for (key, (code, _)) in &self.codes {
                if matches!(code, Code::Component(_)) {
                    self.codes.invalidate(&*key).await;
                }
            }
            if let Err(error) = self.sandbox.trim().await {
                tracing::warn!(%error, "idle instances' memory could not be given back");
            }
            tokio::time::sleep(TRIM_EVERY).await;
        }
    }

    /// The limits that a script gets.
    pub fn limits(&self, script: &Script) -> Limits {
        script.limits.over(self.default_limits)
    }

    /// Check code before it is kept: a source must parse, a component must compile.
    ///
    /// # Errors
    /// [`ScriptError`] says what is wrong with it.
    pub async fn check(
        &self,
        app: &App,
        kind: Kind,
        code: &Bytes,
    ) -> Result<CheckedCode, ScriptError> {
        match kind {
            Kind::Rhai => {
                let found = self.diagnose(app, &String::from_utf8_lossy(code)).await?;
                match found.is_empty() {
                    true => Ok(CheckedCode(None)),
                    false => Err(ScriptError::InvalidSource(found)),
                }
            }
            Kind::Component => {
                let compiling =
                    self.sandbox
                        .component(app.id.uuid(), code.clone(), Patience::Bounded);
                Ok(CheckedCode(Some(compiling.await?)))
            }
        }
    }

    /// What is wrong with a source; nothing if it can run.
    ///
    /// # Errors
    /// When the sandbox fails.
    pub async fn diagnose(
        &self,
        app: &App,
        source: &str,
    ) -> Result<Vec<crate::sandbox::Diagnostic>, ScriptError> {
        let imports = self.no_imports(app);
        let app = app.id.uuid();
        let compiling = self.sandbox.program_if_room(app, source.into(), imports);
        match compiling.await {
            Ok(_) => Ok(Vec::new()),
            Err(ProgramError::Invalid(found)) => Ok(found),
            Err(ProgramError::QueueFull(full)) => Err(ScriptError::QueueFull {
                full,
                retry_after_s: 1,
            }),
            Err(error) => Err(ScriptError::Sandbox(error.to_string())),
        }
    }

    async fn program(&self, app: &App, source: Arc<str>) -> Result<Program, ProgramError> {
        let imports = self.no_imports(app);
        self.sandbox.program(app.id.uuid(), source, imports).await
    }

    /// What a source reaches while it is compiled: it calls nothing.
    fn no_imports(&self, app: &App) -> GuestImports {
        self.imports(app, Uuid::nil().into(), None, Origin::act(), None)
    }

    /// What a guest reaches, working on a delivery or called directly. Where a principal acts, it is what
    /// they may. The script of a public route has no principal and decides by itself what callers may,
    /// but reaches no dead letters.
    fn imports(
        &self,
        app: &App,
        script_id: ScriptId,
        who: Option<&Caller>,
        origin: Origin,
        delivery: Option<&Delivery>,
    ) -> GuestImports {
        let picture = self.directory.picture();
        let may = |who: &Caller, capability| {
            let role = picture.role(app.id, who.user.id);
            capability::in_app(who, role, app.id, capability) == Decision::Allowed
        };
        let manager = who.filter(|who| may(who, Capability::ManageDeadLetters));
        let managed = |who: &Caller| {
            let (db, outbox) = (self.db.clone(), self.outbox.clone());
            DeadLetters::new(db, outbox, app.id, who.user.id)
        };
        let running = &self.services.running;
        let tail = |id| Tail::new(running.clone(), id);
        let kv = self.services.kv.of(app.id, origin);
        let kv = match delivery {
            Some(delivery) => kv.fenced(self.outbox.fence(delivery)),
            None => kv,
        };
        GuestImports {
            kv,
            may_read_kv: who.is_none_or(|who| may(who, Capability::ReadKv)),
            may_write_kv: who.is_none_or(|who| may(who, Capability::WriteKv)),
            dead_letters: manager.map(managed),
            secrets: self.services.secrets.clone(),
            pubsub: self.services.pubsub.clone(),
            may_publish: who.is_none_or(|who| may(who, Capability::Publish)),
            acts_for: who.map(Caller::maker),
            origin,
            app_id: app.id,
            script_id,
            tail: origin.execution_id.map(tail),
            host: self.host.clone(),
            crowd: self.sandbox.crowd(),
        }
    }

    /// The code of a version of a script; `None` when it is gone.
    async fn code(
        &self,
        app: &App,
        script: &Script,
        version: u32,
    ) -> Result<Option<Code>, ScriptError> {
        let loading = async {
            let mut conn = self.db.read().await.map_err(ScriptError::from)?;
            let bytes = sql::code(&mut conn, script.id, version).await;
            let bytes = bytes.map_err(ScriptError::from)?.ok_or(NoCode::Gone)?;
            drop(conn);
            let (code, weight) = self.load(app, script.kind, bytes).await?;
            Ok((code, u32::try_from(weight).unwrap_or(u32::MAX)))
        };
        // Those who want the same code wait for whoever is loading it.
        let loaded = self.codes.try_get_with((script.id, version), loading);
        match loaded.await {
            Ok((code, _)) => Ok(Some(code)),
            Err(no_code) => match &*no_code {
                NoCode::Gone => Ok(None),
                NoCode::NotNow(program) => Ok(Some(Code::Rhai(program.clone()))),
                NoCode::Failed(ScriptError::Store(error)) => Err(error.clone().into()),
                NoCode::Failed(error) => Err(ScriptError::Sandbox(error.to_string())),
            },
        }
    }

    /// The code of a draft, which nobody will ask for again.
    async fn draft(&self, app: &App, source: Bytes) -> Result<Code, ScriptError> {
        match self.load(app, Kind::Rhai, source).await {
            Ok((code, _)) => Ok(code),
            Err(NoCode::NotNow(program)) => Ok(Code::Rhai(program)),
            Err(NoCode::Failed(error)) => Err(error),
            Err(NoCode::Gone) => Err(ScriptError::Sandbox("a draft is never gone".to_owned())),
        }
    }

    /// Code that can run, and how many bytes of memory it takes.
    async fn load(&self, app: &App, kind: Kind, bytes: Bytes) -> Result<(Code, usize), NoCode> {
        match kind {
            Kind::Rhai => {
                let source: Arc<str> = String::from_utf8_lossy(&bytes).into();
                let program = match self.program(app, source.clone()).await {
                    Ok(program) => program,
                    Err(ProgramError::Ended(
                        Outcome::NoCapacity | Outcome::NoMemory(_) | Outcome::Platform(_),
                    )) => {
                        return Err(NoCode::NotNow(Program::Source(source)));
                    }
                    // Whoever runs it learns why.
                    Err(_) => Program::Source(source),
                };
                let size = program.size();
                Ok((Code::Rhai(program), size))
            }
            Kind::Component => {
                let size = bytes.len() + COMPONENT_BYTES;
                let compiling = self
                    .sandbox
                    .component(app.id.uuid(), bytes, Patience::Unbounded);
                let compiled = compiling.await;
                let compiled = compiled.map_err(|error| ScriptError::Sandbox(error.to_string()))?;
                Ok((Code::Component(compiled.keep()), size))
            }
        }
    }

    async fn run(&self, call: Call<'_>) -> (Ended, Answer) {
        let begun = micros(Utc::now());
        let code = match call.draft.clone() {
            Some(source) => self.draft(call.app, source).await.map(Some),
            None => self.code(call.app, call.script, call.version).await,
        };
        let code = match code {
            Ok(Some(code)) => code,
            Ok(None) => {
                let error = ExecutionError::new("this version of the script was deleted");
                let ended = call.ended_early(OutcomeKind::ScriptDeleted, error, begun);
                return (ended, Answer::ScriptDeleted);
            }
            Err(error) => {
                tracing::error!(script_id = %call.script.id, %error, "code could not be loaded");
                let answer = match error {
                    ScriptError::Store(error) if error.is_unavailable() => Answer::Unavailable,
                    _ => Answer::PlatformFault,
                };
                let error = ExecutionError::new("the platform failed");
                let ended = call.ended_early(OutcomeKind::PlatformFault, error, begun);
                return (ended, answer);
            }
        };
        let Call { app, script, .. } = call;
        let context = Context {
            app_id: app.id.uuid(),
            app_slug: app.slug.to_string(),
            script_id: script.id.uuid(),
            script_name: script.name.clone(),
            script_version: call.version,
            execution_id: call.execution_id.uuid(),
            request_id: call.request_id,
            invocation_type: call.invocation_type.to_owned(),
            principal: call.who.as_ref().map(principal),
            trigger_depth: call.trigger_depth(),
            attempt: call.attempt(),
            event: call.event.clone(),
        };
        let origin = Origin {
            request_id: call.request_id,
            execution_id: Some(call.execution_id),
            trace: trace::here(),
            trigger_depth: call.trigger_depth(),
        };
        let job = Job {
            code,
            request: call.request.clone(),
            context: Arc::new(context),
            limits: self.limits(script),
            imports: self.imports(app, script.id, call.who.as_ref(), origin, call.delivery),
        };
        let running = Span::begin("sandbox run");
        let mut report = running.around(self.sandbox.execute(job)).await;
        if let Outcome::Platform(problem) = &report.outcome {
            tracing::error!(execution_id = %call.execution_id, %problem, "an execution failed by our fault");
        }
        metrics::histogram!("picloud_execution_seconds").record(report.duration.as_secs_f64());
        let ended = call.ended(&mut report, begun);
        (ended, Answer::Outcome(report.outcome))
    }

    /// Run a script now, without the outbox, as `who`, and keep the execution. Where there is a
    /// draft its source is run in the script's place, with all that is the script's, and is not kept.
    ///
    /// # Errors
    /// [`ScriptError`] when there is no such script, or the execution could not be kept.
    pub async fn execute(
        &self,
        script_id: ScriptId,
        who: Caller,
        request: Request,
        draft: Option<Bytes>,
    ) -> Result<(Ended, Answer), ScriptError> {
        let picture = self.directory.picture();
        let script = picture.script(script_id);
        let found = script.and_then(|script| Some((script, picture.app(script.app_id)?)));
        let (script, app) = found.ok_or_else(|| ScriptError::NotFound(script_id.to_string()))?;
        let execution_id = ExecutionId::new();
        let (ended, answer) = self
            .run(Call {
                app,
                script,
                version: match draft {
                    Some(_) => DRAFT_VERSION,
                    None => script.version,
                },
                execution_id,
                delivery: None,
                invocation_type: "execute",
                request_id: execution_id.uuid(),
                who: Some(who),
                request: Some(request),
                event: None,
                draft,
            })
            .await;
        // Of an app that is gone nobody could see an execution.
        let app_id = ended.execution.app_id;
        let kept = match self.directory.picture().app(app_id) {
            Some(_) => self.keep(&ended).await,
            None => Ok(()),
        };
        kept.map_err(|problem| ScriptError::NotKept {
            execution_id,
            problem,
        })?;
        Ok((ended, answer))
    }

    /// Keep an execution that ended, again and again while the database is away for a moment.
    async fn keep(&self, ended: &Ended) -> Result<(), StoreError> {
        let gives_up_at = Instant::now() + KEEP_WITHIN;
        let mut pause = KEEP_AGAIN_AFTER;
        loop {
            match self.db.write_grouped(ended.clone()).await {
                // It was kept before; only the answer was lost.
                Ok(()) | Err(StoreError::Duplicate) => return Ok(()),
                Err(error) if error.is_unavailable() && Instant::now() < gives_up_at => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(KEEP_AGAIN_AFTER_MAX);
                }
                Err(error) => {
                    let execution_id = ended.execution.id;
                    match !error.is_unavailable() || UNKEPT.begins() {
                        true => {
                            tracing::error!(%execution_id, %error, "an execution could not be kept")
                        }
                        false => {
                            tracing::debug!(%execution_id, %error, "an execution could not be kept")
                        }
                    }
                    return Err(error);
                }
            }
        }
    }
}

impl Runner {
    /// What an attempt needs to know, as it is in memory.
    fn found<'p>(
        picture: &'p Picture,
        delivery: &Delivery,
    ) -> Result<(&'p App, &'p Script, Option<Caller>), Missing> {
        let app = picture.app(delivery.app_id).ok_or(Missing::App)?;
        // A script of another app is none, whatever a row says.
        let script = picture.script(delivery.script_id);
        let script = script
            .filter(|script| script.app_id == app.id)
            .ok_or(Missing::Script)?;
        // Whoever replays a delivery wants it to run, with or without its trigger.
        let is_first_time = delivery.dead_letter_id.is_none();
        if let Some(id) = delivery.trigger_id.filter(|_| is_first_time) {
            picture.trigger(id).ok_or(Missing::Trigger)?;
        }
        let who = delivery.principal_id.map(|id| {
            let user = picture.user(id).ok_or(Missing::Principal)?;
            let (user, via) = (user.clone(), Via::Trigger);
            Ok(Caller { user, via })
        });
        Ok((app, script, who.transpose()?))
    }
}

/// Whoever acts, as scripts see them.
fn principal(who: &Caller) -> Principal {
    Principal {
        id: who.principal_id(),
        name: who.principal_name(),
        kind: match who.via {
            Via::ApiKey(_) => "api_key",
            Via::Session(_) | Via::Trigger => "user",
        },
    }
}

/// What an attempt cannot do without.
#[derive(Debug, Clone, Copy)]
enum Missing {
    App,
    Script,
    Trigger,
    Principal,
    /// It may be there: the directory cannot be read.
    Unread,
}

impl Missing {
    fn attempted(self, delivery: &Delivery, execution_id: ExecutionId) -> Attempted {
        let (outcome, what, answer) = match self {
            Self::App => (
                OutcomeKind::AppDeleted,
                "the app was deleted",
                Answer::AppDeleted,
            ),
            Self::Script => (
                OutcomeKind::ScriptDeleted,
                "the script was deleted",
                Answer::ScriptDeleted,
            ),
            // Only deliveries of triggers miss these, and nobody waits for one.
            Self::Trigger => (
                OutcomeKind::TriggerDeleted,
                "the trigger was deleted",
                Answer::PlatformFault,
            ),
            Self::Principal => (
                OutcomeKind::PrincipalGone,
                "the user who registered the trigger was removed or disabled",
                Answer::PlatformFault,
            ),
            Self::Unread => (
                OutcomeKind::PlatformFault,
                "this node does not know of it, and the directory cannot be read",
                Answer::PlatformFault,
            ),
        };
        let (error, now) = (ExecutionError::new(what), micros(Utc::now()));
        Attempted {
            ended: never_ran(delivery, execution_id, outcome, error, now),
            answer,
        }
    }
}

impl Executor for Runner {
    fn attempt(&self, delivery: Delivery) -> BoxFuture<'_, Attempted> {
        async move {
            // The first attempt's execution has the id that the caller was told.
            let execution_id = match delivery.attempt {
                1 => delivery.id.of(),
                _ => ExecutionId::new(),
            };
            let mut picture = self.directory.picture();
            if Self::found(&picture, &delivery).is_err() {
                // Another node may have made it a moment ago. What is missing from an old picture
                // is not known to be gone: then the delivery is tried again.
                if self.directory.refresh().await.is_err() {
                    return Missing::Unread.attempted(&delivery, execution_id);
                }
                picture = self.directory.picture();
            }
            let (app, script, who) = match Self::found(&picture, &delivery) {
                Ok(found) => found,
                Err(missing) => return missing.attempted(&delivery, execution_id),
            };
            let (request, event) = match &*delivery.payload {
                Payload::Request(request) => (Some(request.clone()), None),
                // One that was written before values were checked is repaired: a guest that
                // cannot read it could never be done with it.
                Payload::Event(event) => {
                    let depth_max = match delivery.invocation_type.as_str() {
                        "dead_letter" => TOLD_DEPTH_MAX,
                        _ => EVENT_DEPTH_MAX,
                    };
                    let event = json::readable(event.get(), depth_max);
                    (None, Some(event.into_owned()))
                }
            };
            let call = Call {
                app,
                script,
                version: delivery.script_version.unwrap_or(script.version),
                execution_id,
                delivery: Some(&delivery),
                invocation_type: &delivery.invocation_type,
                request_id: delivery.request_id,
                who,
                request,
                event,
                draft: None,
            };
            let (ended, answer) = self.run(call).await;
            // What ran is let finish; that it failed may be for want of its app.
            let has_answered = ended.execution.outcome == OutcomeKind::Answered;
            if !has_answered && self.directory.picture().app(delivery.app_id).is_none() {
                return Missing::App.attempted(&delivery, execution_id);
            }
            Attempted { ended, answer }
        }
        .boxed()
    }

    fn is_held(&self, delivery: &Delivery) -> bool {
        let picture = self.directory.picture();
        let trigger = delivery.trigger_id.and_then(|id| picture.trigger(id));
        trigger.is_some_and(|trigger| trigger.paused)
    }

    fn handlers(&self, letter: &DeadLetter) -> Vec<Delivery> {
        firing::handlers_of(&self.directory.picture(), letter)
    }
}

impl Call<'_> {
    fn attempt(&self) -> u32 {
        self.delivery.map_or(1, |delivery| delivery.attempt)
    }

    fn trigger_depth(&self) -> u32 {
        self.delivery.map_or(0, |delivery| delivery.trigger_depth)
    }

    fn execution(&self, begun: DateTime<Utc>) -> Execution {
        Execution {
            id: self.execution_id,
            app_id: self.app.id,
            script_id: self.script.id,
            script_version: self.version,
            delivery_id: self.delivery.map(|delivery| delivery.id.uuid()),
            attempt: self.attempt(),
            parent_id: self
                .delivery
                .and_then(|delivery| delivery.parent_execution_id),
            trigger_id: self.delivery.and_then(|delivery| delivery.trigger_id),
            invocation_type: self.invocation_type.to_owned(),
            request_id: self.request_id,
            trace_id: trace::here().map(TraceParent::trace_id),
            outcome: OutcomeKind::PlatformFault,
            status: None,
            started_at: begun,
            duration_us: 0,
            fuel: 0,
            error: None,
        }
    }

    fn ended_early(
        &self,
        outcome: OutcomeKind,
        error: ExecutionError,
        begun: DateTime<Utc>,
    ) -> Ended {
        let execution = Execution {
            outcome,
            error: Some(error),
            ..self.execution(begun)
        };
        Ended {
            execution,
            log: Log::default(),
        }
    }

    fn ended(&self, report: &mut Report, begun: DateTime<Utc>) -> Ended {
        let (outcome, error) = OutcomeKind::of(&report.outcome);
        let status = match &report.outcome {
            Outcome::Answered(response) => Some(response.status),
            _ => None,
        };
        let execution = Execution {
            outcome,
            status,
            error,
            duration_us: u64::try_from(report.duration.as_micros()).unwrap_or(u64::MAX),
            fuel: report.fuel_used,
            ..self.execution(begun)
        };
        Ended {
            execution,
            log: Log::of(report),
        }
    }
}
