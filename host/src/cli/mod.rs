//! The command line.

/// The same as the standard library's, which panics where nobody reads on: `picloud … | head`.
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!("{}\n", format_args!($($text)*))) };
}
/// The same.
macro_rules! print {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!($($text)*)) };
}

/// The same on standard error, whoever reads it.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::output::complain(format_args!("{}\n", format_args!($($text)*))) };
}
/// The same.
macro_rules! eprint {
    ($($text:tt)*) => { $crate::cli::output::complain(format_args!($($text)*)) };
}

mod access;
mod answer;
mod backup;
mod client;
mod deploy;
mod doctor;
mod input;
mod login;
mod manage;
mod operate;
mod output;
mod policies;
mod portable;
mod profile;
mod secrets;
mod serve;
mod show;
mod terminal;
mod topics;
mod triggers;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use client::Client;
use output::{Failure, Output};

/// Exit codes, as `--help` lists them.
const EXIT_CODES: &str = "\
Exit codes:
  0  it worked
  1  what ran or was checked failed, or something on this machine
  2  the command is not one, or a value in it cannot be right
  3  there is no such thing
  4  refused: invalid input, or what is there is in the way
  5  not signed in, or not allowed
  6  the server cannot be reached, failed, or is no PiCloud
141  whoever read the output closed it";

#[derive(Parser)]
#[command(
    name = "picloud",
    version = env!("CARGO_PKG_VERSION"),
    about = "Hosts small functions: a fresh sandbox for each call, in front of a durable outbox",
    after_help = EXIT_CODES,
    arg_required_else_help = true
)]
struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct Common {
    /// The server; that of the profile when left out
    #[arg(
        long,
        global = true,
        env = "PICLOUD_URL",
        value_name = "URL",
        help_heading = "Global options"
    )]
    url: Option<String>,
    /// The bearer token; that of the profile when left out
    #[arg(
        long,
        global = true,
        env = "PICLOUD_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Global options"
    )]
    token: Option<String>,
    /// The sign-in to use, by its name; the current one when left out
    #[arg(
        long,
        global = true,
        env = "PICLOUD_PROFILE",
        value_name = "NAME",
        help_heading = "Global options"
    )]
    profile: Option<String>,
    /// Whether the profile was named on the command line, and an address or a token was not.
    #[arg(skip)]
    is_profile_meant: bool,
    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::Serve),
    /// Show the configuration in force, and where each value came from
    Config(serve::Serve),
    Doctor(doctor::Doctor),
    /// Make the first owner of a server, and sign in
    Setup(login::Setup),
    /// Sign in to a server, and remember it
    Login(login::Login),
    /// End the sign-in
    Logout,
    /// Show who you are, where, and what you may
    Whoami,
    /// Choose among the sign-ins that are remembered
    #[command(subcommand)]
    Profiles(profile::Command),
    /// Upload a script and bind it to routes
    Deploy(deploy::Deploy),
    /// Run a script now and show its answer
    Invoke(show::Invoke),
    /// Show executions and their log lines
    Logs(show::Logs),
    /// Read and write the key-value store
    #[command(subcommand)]
    Kv(manage::Kv),
    /// Manage apps
    #[command(subcommand)]
    Apps(manage::Apps),
    /// Manage the hosts that an app claims
    #[command(subcommand)]
    Domains(manage::Domains),
    /// Manage scripts
    #[command(subcommand)]
    Scripts(manage::Scripts),
    /// Manage routes
    #[command(subcommand)]
    Routes(manage::Routes),
    /// Manage triggers
    #[command(subcommand)]
    Triggers(triggers::Triggers),
    /// See what failed for good, put it back or settle it
    #[command(subcommand, name = "dead-letters")]
    DeadLetters(operate::DeadLetters),
    /// Look at executions
    #[command(subcommand)]
    Executions(operate::Executions),
    /// Invite people, and decide what they may
    #[command(subcommand)]
    Users(access::Users),
    /// Decide who has which role in an app
    #[command(subcommand)]
    Members(access::Members),
    /// Make and revoke your API keys
    #[command(subcommand)]
    Keys(access::Keys),
    /// Keep the values that an app's scripts read with secrets::get
    #[command(subcommand)]
    Secrets(secrets::Secrets),
    /// Decide which topics may be subscribed to, and by whom
    #[command(subcommand)]
    Topics(topics::Topics),
    /// Publish a message
    Publish(topics::Publish),
    /// See who changed what
    Audit(access::Audit),
    /// Remove what is past its retention
    Gc(operate::Gc),
    Export(portable::Export),
    Import(portable::Import),
    Backup(backup::Backup),
    Restore(backup::Restore),
    /// Print the description of the API (OpenAPI 3.1)
    Openapi,
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Compile standard input to standard output; the server starts this for uploads
    #[command(hide = true)]
    CompileComponent {
        /// How much memory it may take
        memory_bytes: u64,
        /// How much processor time it may take
        cpu_seconds: u64,
    },
}

/// Which app a command is about.
#[derive(clap::Args)]
struct AppArg {
    /// The app, by slug or id
    #[arg(long, env = "PICLOUD_APP")]
    app: String,
}

/// Parse the command line and do what it says.
pub fn main() -> ExitCode {
    let args = args(&Args::command().get_matches());
    let out = Output {
        json: args.common.json,
    };
    let client = || Client::new(&args.common);
    let done = match args.command {
        Command::CompileComponent {
            memory_bytes,
            cpu_seconds,
        } => return crate::sandbox::compile_child_main(memory_bytes, cpu_seconds),
        Command::Serve(serve) => serve.run(),
        Command::Config(serve) => serve.show(&out),
        Command::Doctor(doctor) if doctor.is_direct() => doctor.run_direct(&out),
        Command::Doctor(_) => client().and_then(|client| doctor::run(&client, &out)),
        Command::Openapi => {
            println!("{:#}", crate::http::openapi::document());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "picloud", &mut script);
            print!("{}", String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::Setup(setup) => setup.run(&args.common, &out),
        Command::Login(login) => login.run(&args.common, &out),
        Command::Logout => client()
            .and_then(|client| client.log_out())
            .map(|()| out.say("Signed out.")),
        Command::Whoami => client().and_then(|client| login::who_am_i(&client, &out)),
        Command::Profiles(profiles) => profiles.run(&out),
        Command::Deploy(deploy) => client().and_then(|client| deploy.run(&client, &out)),
        Command::Invoke(invoke) => client().and_then(|client| invoke.run(&client, &out)),
        Command::Logs(logs) => client().and_then(|client| logs.run(&client, &out)),
        Command::Kv(kv) => client().and_then(|client| kv.run(&client, &out)),
        Command::Apps(apps) => client().and_then(|client| apps.run(&client, &out)),
        Command::Domains(domains) => client().and_then(|client| domains.run(&client, &out)),
        Command::Scripts(scripts) => client().and_then(|client| scripts.run(&client, &out)),
        Command::Routes(routes) => client().and_then(|client| routes.run(&client, &out)),
        Command::Triggers(triggers) => client().and_then(|client| triggers.run(&client, &out)),
        Command::DeadLetters(letters) => client().and_then(|client| letters.run(&client, &out)),
        Command::Executions(which) => client().and_then(|client| which.run(&client, &out)),
        Command::Users(users) => client().and_then(|client| users.run(&client, &out)),
        Command::Members(members) => client().and_then(|client| members.run(&client, &out)),
        Command::Keys(keys) => client().and_then(|client| keys.run(&client, &out)),
        Command::Secrets(secrets) => client().and_then(|client| secrets.run(&client, &out)),
        Command::Topics(topics) => client().and_then(|client| topics.run(&client, &out)),
        Command::Publish(publish) => client().and_then(|client| publish.run(&client, &out)),
        Command::Audit(audit) => client().and_then(|client| audit.run(&client, &out)),
        Command::Backup(backup) if backup.is_direct() => backup.run_direct(&out),
        Command::Backup(backup) => client().and_then(|client| backup.run(&client, &out)),
        Command::Export(export) => client().and_then(|client| export.run(&client, &out)),
        Command::Import(import) => client().and_then(|client| import.run(&client, &out)),
        Command::Restore(restore) => restore.run(&out),
        Command::Gc(gc) => client().and_then(|client| gc.run(&client, &out)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = failure.exit_code();
            out.failure(&failure);
            ExitCode::from(code)
        }
    }
}

/// What was given. Whoever names a profile means it, whatever stands in the environment.
fn args(matches: &ArgMatches) -> Args {
    let mut args = Args::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
    let is_said = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    args.common.is_profile_meant = is_said("profile") && !is_said("url") && !is_said("token");
    args
}

/// What a command answers.
type Done = Result<(), Failure>;
