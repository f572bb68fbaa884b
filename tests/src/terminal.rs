//! The command line, as whoever sits at a terminal uses it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::Server;
use crate::server::program;

/// What it wrote on its standard output.
pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it wrote on its standard error.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The standard output of a command that succeeds.
///
/// # Panics
/// When it failed.
#[track_caller]
pub fn fine(output: Output) -> String {
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
    out(&output)
}

/// The standard error of a command that ends with `code`.
///
/// # Panics
/// When it ended with another code.
#[track_caller]
pub fn fails(output: &Output, code: i32) -> String {
    let said = err(output);
    assert_eq!(output.status.code(), Some(code), "{}{said}", out(output));
    said
}

/// Somebody at a terminal, whose home is a folder: nothing is in their environment.
pub struct Home(tempfile::TempDir);

impl Default for Home {
    fn default() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }
}

impl Home {
    /// The folder, where commands run.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Where the sign-ins are kept.
    pub fn credentials(&self) -> PathBuf {
        self.0.path().join("config/picloud/credentials.json")
    }

    /// A command that was not started yet.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(words)
            .current_dir(self.0.path())
            .env("XDG_CONFIG_HOME", self.0.path().join("config"))
            .stdin(Stdio::null());
        command
    }

    /// What a command comes to.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the CLI starts")
    }

    /// The same with something on its standard input.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run_with(&self, words: &[&str], input: &str) -> Output {
        let mut command = self.command(words);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the CLI starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        // It may have ended without reading.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("the CLI ends")
    }

    /// Sign in as the owner of a server.
    pub fn log_in(&self, server: &Server, more: &[&str]) -> Output {
        let mut words = vec!["login", "--url", &server.url, "--password-stdin"];
        words.extend(more);
        self.run_with(&words, server.password())
    }
}
