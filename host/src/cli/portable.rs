//! `picloud export` and `picloud import`.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use super::answer::Answer;
use super::backup::{size, timed, written};
use super::client::{Client, encoded};
use super::output::Output;
use super::{Done, input, terminal};
use crate::apps::Slug;
use crate::archive::Reader;
use crate::portable;

/// Write an app to a file: scripts, routes, triggers, domains
#[derive(clap::Args)]
pub(super) struct Export {
    /// The app, by slug or id
    app: String,
    /// The .zip to write; APP.zip when left out
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// With the key-value store
    #[arg(long)]
    kv: bool,
    /// Overwrite the file if there is one
    #[arg(long)]
    force: bool,
}

/// Make an app of an exported file: all of it, or nothing
#[derive(clap::Args)]
pub(super) struct Import {
    /// The .zip to read
    file: PathBuf,
    /// The app's slug, in place of the one in the file
    #[arg(long = "as", value_name = "SLUG")]
    slug: Option<String>,
    /// Claim none of its hosts: another app may have them
    #[arg(long)]
    without_domains: bool,
}

impl Export {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let file = self
            .output
            .unwrap_or_else(|| PathBuf::from(format!("{}.zip", self.app)));
        let path = format!("/apps/{}/export?kv={}", encoded(&self.app), self.kv);
        let download = |to: &mut dyn std::io::Write| client.download(&path, to);
        let ((), bytes) = written(&file, self.force, download, |file| {
            Ok(Reader::open(file, portable::FORMAT)?.verify()?)
        })?;
        let shown = json!({ "file": file.display().to_string(), "bytes": bytes });
        out.show_own(&shown, || {
            println!(
                "{}: {}; read again, and every checksum is right.",
                file.display(),
                size(bytes)
            );
        });
        Ok(())
    }
}

/// What was made.
#[derive(Deserialize)]
struct Imported {
    app: ImportedApp,
    scripts: u64,
    routes: u64,
    triggers: u64,
    topics: u64,
    kv: u64,
    /// The secrets that the app had.
    secrets_to_set: Vec<String>,
}

/// The app that was made.
#[derive(Deserialize)]
struct ImportedApp {
    slug: Slug,
}

impl Import {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let file = input::file(&self.file)?;
        let slug = self
            .slug
            .as_deref()
            .map(|slug| format!("&slug={}", encoded(slug)));
        let path = format!(
            "/imports?domains={}{}",
            !self.without_domains,
            slug.unwrap_or_default()
        );
        let what = format!("importing {}", size(file.len() as u64));
        let made: Answer<Imported> = timed(&what, || client.upload(&path, file))?;
        out.show(&made, |made| {
            println!(
                "app `{}` made: {} scripts, {} routes, {} triggers, {} topics, {} entries of the key-value store",
                made.app.slug.as_str(),
                made.scripts,
                made.routes,
                made.triggers,
                made.topics,
                made.kv
            );
            for name in &made.secrets_to_set {
                let name = terminal::line(name);
                println!("It had a secret {name}, which no export has: picloud secrets set {name}");
            }
        });
        Ok(())
    }
}
