//! `picloud doctor`.

use serde_json::{Value, json};

use super::Done;
use super::client::Client;
use super::output::{Failure, Output};
use super::serve::Serve;
use crate::doctor::of_machine;

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
        show(&json!(report), out)
    }
}

/// Ask the server.
pub(super) fn run(client: &Client, out: &Output) -> Done {
    let report = client.get("/doctor").map_err(|failure| match failure {
        Failure::Unreachable(text) => Failure::Unreachable(format!(
            "{text}; on its machine, `picloud doctor --direct` does without it"
        )),
        failure => failure,
    })?;
    show(&report, out)
}

/// Show a report; it is a failure where there is an error in it.
fn show(report: &Value, out: &Output) -> Done {
    out.show(report, |report| {
        for finding in report["findings"].as_array().into_iter().flatten() {
            let text = |key: &str| finding[key].as_str();
            let said = |key: &str| text(key).unwrap_or_default();
            println!("{:8} {}: {}", said("severity"), said("name"), said("found"));
            if let Some(fix) = text("fix") {
                println!("         {fix}");
            }
            if let Some(command) = text("command") {
                println!("         $ {command}");
            }
        }
    });
    match report["severity"].as_str() {
        Some("error") => Err(Failure::Shown),
        _ => Ok(()),
    }
}
