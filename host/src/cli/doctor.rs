//! `picloud doctor`.

use serde::Deserialize;

use super::answer::Answer;
use super::client::Client;
use super::output::{Failure, Output};
use super::serve::Serve;
use super::{Done, terminal};
use crate::doctor::{Severity, of_machine};

/// Check a set-up, and say how to mend what is wrong with it: that of the server where you are
/// signed in, or, with --direct or any setting, that of this machine, with the server down or not
#[derive(clap::Args)]
pub(super) struct Doctor {
    /// Look at this machine itself, not through the API; --config and every setting mean this too
    #[arg(long)]
    direct: bool,
    #[command(flatten)]
    serve: Serve,
}

impl Doctor {
    /// Whether it takes no server.
    pub(super) fn is_direct(&self) -> bool {
        self.direct || self.serve.is_given()
    }

    /// Look at this machine.
    pub(super) fn run_direct(self, out: &Output) -> Done {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let report = runtime.block_on(of_machine(self.serve.values()));
        let severity = report.severity;
        out.show_own(&report, || {
            for finding in &report.findings {
                let (fix, command) = (finding.fix.as_deref(), finding.command.as_deref());
                print(finding.severity, finding.name, &finding.found, fix, command);
            }
        });
        verdict(severity)
    }
}

/// What the server found.
#[derive(Deserialize)]
struct Report {
    severity: Severity,
    findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct Finding {
    name: String,
    severity: Severity,
    found: String,
    fix: Option<String>,
    command: Option<String>,
}

/// Ask the server.
pub(super) fn run(client: &Client, out: &Output) -> Done {
    let report: Answer<Report> = client.get("/doctor").map_err(|failure| match failure {
        Failure::Unreachable(text) => Failure::Unreachable(format!(
            "{text}; on its machine, `picloud doctor --direct` does without it"
        )),
        failure => failure,
    })?;
    out.show(&report, |report| {
        for finding in &report.findings {
            let (fix, command) = (finding.fix.as_deref(), finding.command.as_deref());
            print(
                finding.severity,
                &finding.name,
                &finding.found,
                fix,
                command,
            );
        }
    });
    verdict(report.severity)
}

fn print(severity: Severity, name: &str, found: &str, fix: Option<&str>, command: Option<&str>) {
    let [name, found] = [name, found].map(terminal::line);
    println!("{:8} {name}: {found}", severity.as_str());
    if let Some(fix) = fix {
        println!("         {}", terminal::line(fix));
    }
    if let Some(command) = command {
        println!("         $ {}", terminal::line(command));
    }
}

/// It is a failure where there is an error.
fn verdict(severity: Severity) -> Done {
    match severity {
        Severity::Error => Err(Failure::Shown),
        Severity::Ok | Severity::Warning => Ok(()),
    }
}
