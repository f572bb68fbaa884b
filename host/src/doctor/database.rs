//! The database: whether it answers, keeps what it commits, has our schema, the right clock, and
//! secrets that can be read.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::sql::{self, Facts};
use super::{Finding, machine, shell};
use crate::audit;
use crate::backup;
use crate::config::Config;
use crate::directory;
use crate::dispatch::sql::{self as outbox, Stuck};
use crate::dispatch::upkeep::STUCK_AFTER;
use crate::identity;
use crate::secrets;
use crate::secrets::master_key::{MasterKeys, own_file};
use crate::store::{CONNECTIONS_MAX, Conn, SCHEMA_VERSION, StoreError};

/// How far the clocks of this machine and the database may be apart.
const DRIFT_WARNING: TimeDelta = TimeDelta::seconds(1);
const DRIFT_ERROR: TimeDelta = TimeDelta::seconds(5);
/// How old the last backup may be.
const BACKUP_AGE: TimeDelta = TimeDelta::days(7);
/// How many attempts at a backup are looked through for one that was allowed.
const BACKUPS_SEEN: i64 = 50;

const DATABASE: &str = "database";
const MASTER_KEY: &str = "master_key";

/// How much of a database is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// What the checks ask for.
    Asked,
    /// All of it, which takes a while.
    Whole,
}

/// Every check that needs the database.
pub(super) async fn check(
    config: &Config,
    conn: Result<Conn, StoreError>,
    depth: Depth,
) -> Vec<Finding> {
    let file = config.database_url.strip_prefix("sqlite://").map(Path::new);
    if let Some(file) = file
        && depth == Depth::Whole
        && !file.exists()
    {
        let found = format!("{} is not there yet; the first start makes it", shell(file));
        return vec![Finding::ok(DATABASE, found), key_file(config, &[])];
    }
    let asked = async {
        let mut conn = conn?;
        look(config, &mut conn, depth).await
    };
    asked.await.unwrap_or_else(|error| {
        let fix = match file {
            Some(file) => format!(
                "See that {} is there and whole, that it can be written to, and that it belongs to the user that the server runs as; restore a backup if it is damaged.",
                shell(file)
            ),
            None => "See that it runs and that database_url is right; /readyz tells when it is back.".to_owned(),
        };
        vec![Finding::error(DATABASE, format!("it cannot be used: {error}"), fix)]
    })
}

/// What is found when the checks of it do not end in time.
pub(super) fn does_not_answer(config: &Config, within: Duration) -> Finding {
    let found = format!(
        "it did not answer all questions within {} s; somebody may hold a lock on a table",
        within.as_secs()
    );
    let finding = |fix| Finding::error(DATABASE, found, fix);
    match config.database_url.starts_with("sqlite://") {
        true => finding("Look for a program that has the file open, and at how busy the disk is."),
        false => finding("Find the session that the others wait for, and end it.").with_command(
            "psql -c \"select pid, pg_blocking_pids(pid), wait_event_type, query from pg_stat_activity where state <> 'idle'\"",
        ),
    }
}

async fn look(config: &Config, conn: &mut Conn, depth: Depth) -> Result<Vec<Finding>, StoreError> {
    let before = Utc::now();
    let facts = sql::facts(conn).await?;
    let mut findings = vec![durability(&facts)];
    if let Some((connections_max, now)) = facts.server {
        findings.push(clocks(before, now, Utc::now()));
        findings.push(connections(connections_max));
    }
    if depth == Depth::Whole && facts.server.is_none() {
        findings.push(integrity(sql::damage(conn).await?));
    }
    let schema = match facts.has_schema {
        true => backup::sql::schema(conn).await?,
        false => 0,
    };
    findings.push(schema_of(schema));
    if schema != SCHEMA_VERSION {
        // What follows reads tables, which may be others.
        return Ok(findings);
    }
    if facts.server.is_none() {
        let newest = audit::sql::page(conn, &audit::Filter::default(), None, 1).await?;
        let newest = newest.first().map(|entry| entry.at);
        findings.push(clock_beside(newest, Utc::now()));
    }
    findings.push(rows(&directory::unreadable(conn).await?));
    findings.push(user_names(identity::sql::users::names(conn).await?));
    findings.push(deliveries(outbox::stuck(conn, STUCK_AFTER).await?));
    findings.push(key_file(config, &secrets::sql::by_key(conn).await?));
    let mut last = None;
    for action in backup::ACTIONS {
        let backups = audit::Filter {
            action: Some(action.to_owned()),
            ..audit::Filter::default()
        };
        let tried = audit::sql::page(conn, &backups, None, BACKUPS_SEEN).await?;
        let taken = tried.iter().find(|entry| entry.status == 200);
        last = last.max(taken.map(|entry| entry.at));
    }
    findings.push(last_backup(last, Utc::now()));
    Ok(findings)
}

/// Whether people can tell users apart by their names.
fn user_names(names: Vec<String>) -> Finding {
    const NAME: &str = "user_names";
    let twins = identity::name::twins(names);
    if twins.is_empty() {
        return Finding::ok(NAME, "no two users have names that look the same");
    }
    let groups = twins.iter().map(|group| {
        let names = group
            .iter()
            .map(|name| format!("`{}`", name.escape_debug()));
        names.collect::<Vec<_>>().join(" and ")
    });
    let found = format!(
        "names that look the same: {}",
        groups.collect::<Vec<_>>().join("; ")
    );
    let fix = "An older version took them. Find out who they are; disable the one that is not wanted, or let them join anew.";
    Finding::warning(NAME, found, fix)
}

/// Whether each delivery has somebody who moves it.
fn deliveries(stuck: Stuck) -> Finding {
    const NAME: &str = "outbox";
    let Stuck {
        expired,
        overdue,
        held,
        blocked,
    } = stuck;
    if expired + held + blocked > 0 {
        let found = format!(
            "deliveries that nobody moves: {expired} whose lease ended, {held} held for a trigger \
             that is not paused, {blocked} behind a delivery that is gone"
        );
        let fix = "A server that runs moves them within seconds: see its log for what keeps it \
                   from that, and start one where none runs.";
        return Finding::error(NAME, found, fix);
    }
    match overdue {
        0 => Finding::ok(NAME, "no delivery waits that should not"),
        _ => Finding::warning(
            NAME,
            format!("{overdue} deliveries are due and not begun"),
            "Start a server if none runs; else raise executions_max, or add a node.",
        ),
    }
}

fn durability(facts: &Facts) -> Finding {
    let is_unsafe = |(name, value): &&(&str, String)| match *name {
        "journal_mode" => value != "wal",
        _ => value == "off",
    };
    match facts.settings.iter().find(is_unsafe) {
        None => Finding::ok(DATABASE, format!("{} keeps what it commits", facts.version)),
        Some(("journal_mode", value)) => Finding::error(
            DATABASE,
            format!(
                "{} has journal_mode = {value}, so readers and the writer are in each other's way",
                facts.version
            ),
            "Put data_dir on a local disk: file systems over a network do not carry SQLite's log.",
        ),
        Some((name, value)) => Finding::error(
            DATABASE,
            format!(
                "{} has {name} = {value}: a power cut may take what was acknowledged",
                facts.version
            ),
            format!("Turn {name} on for this database."),
        )
        .with_command(format!(
            "psql -c \"alter system set {name} = on\" -c \"select pg_reload_conf()\""
        )),
    }
}

/// The database's clock was looked at between two looks at ours.
fn clocks(before: DateTime<Utc>, theirs: DateTime<Utc>, after: DateTime<Utc>) -> Finding {
    const NAME: &str = "clock";
    const FIX: &str = "Let both machines follow a time server.";
    let apart = (before - theirs).max(theirs - after).max(TimeDelta::zero());
    let found = format!(
        "this machine's clock and the database's are {} ms apart",
        apart.num_milliseconds()
    );
    let command = "timedatectl set-ntp true";
    match apart {
        apart if apart > DRIFT_ERROR => Finding::error(NAME, found, FIX).with_command(command),
        apart if apart > DRIFT_WARNING => Finding::warning(NAME, found, FIX).with_command(command),
        _ => Finding::ok(NAME, found),
    }
}

/// SQLite has no clock of its own, but it has what was written: nothing of that is of the future.
fn clock_beside(newest: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Finding {
    const NAME: &str = "clock";
    match newest.map(|newest| newest - now) {
        Some(ahead) if ahead > DRIFT_ERROR => Finding::error(
            NAME,
            format!(
                "the audit log has an entry of {} s after now: this machine's clock is or was wrong",
                ahead.num_seconds()
            ),
            "Let it follow a time server; leases, sign-ins and what is due wait for the clock.",
        )
        .with_command("timedatectl set-ntp true"),
        _ => Finding::ok(NAME, "nothing was written after now"),
    }
}

fn connections(most: i64) -> Finding {
    const NAME: &str = "database_connections";
    let found =
        format!("Postgres takes {most} connections, and each node may want {CONNECTIONS_MAX}");
    match most < CONNECTIONS_MAX.into() {
        true => Finding::warning(
            NAME,
            found,
            "Raise max_connections of Postgres, and start it again; a node does with fewer, and is slower then.",
        )
        .with_command("psql -c \"alter system set max_connections = 100\""),
        false => Finding::ok(NAME, found),
    }
}

fn integrity(damage: Option<String>) -> Finding {
    const NAME: &str = "integrity";
    match damage {
        None => Finding::ok(NAME, "the whole database was read, and its pages fit together"),
        Some(damage) => Finding::error(
            NAME,
            format!("the database is damaged: {damage}"),
            "Stop the server, keep a copy of data_dir, and restore the last good backup into a new one.",
        )
        .with_command("picloud restore BACKUP.zip --data-dir NEW"),
    }
}

fn schema_of(found: i64) -> Finding {
    const NAME: &str = "schema";
    match found {
        0 => Finding::ok(NAME, "there is none yet; the first start makes it"),
        SCHEMA_VERSION => Finding::ok(NAME, format!("it is the one of this picloud ({found})")),
        ..SCHEMA_VERSION => Finding::warning(
            NAME,
            format!("it has version {found}, and this picloud wants {SCHEMA_VERSION}: the next start changes it, and older ones cannot use it then"),
            "Take a backup before you start this picloud.",
        )
        .with_command("picloud backup before-upgrade.zip --direct"),
        _ => Finding::error(
            NAME,
            format!("it has version {found}, and this picloud knows up to {SCHEMA_VERSION}: a newer one wrote it"),
            "Start that newer picloud, or restore a backup.",
        ),
    }
}

/// Whether the key of the secrets is there, nobody else's, and the one that they are under.
fn key_file(config: &Config, by_key: &[(Vec<u8>, i64)]) -> Finding {
    let keys = match MasterKeys::at_hand(config) {
        Ok(keys) => keys,
        Err(error) => {
            let fix = "Put the key back from where you keep it.";
            return Finding::error(MASTER_KEY, error.to_string(), fix);
        }
    };
    let own = own_file(config);
    if let Some((key_id, count)) = by_key.iter().find(|(key_id, _)| !keys.has(key_id)) {
        let place = match &own {
            Some(path) => format!("Put that key into {}", shell(path)),
            None => "Set it as master_key on every node".to_owned(),
        };
        return Finding::error(
            MASTER_KEY,
            format!(
                "secrets that are encrypted under the key {}: {count}; that key is not here, and scripts cannot read them",
                hex::encode(key_id)
            ),
            format!("{place}, from where you keep it; or set it as master_key_previous and move the secrets to the new key."),
        )
        .with_command("picloud secrets rotate");
    }
    match (&config.master_key, &config.master_key_file, &own) {
        (Some(_), ..) => Finding::ok(MASTER_KEY, "it is given as a setting"),
        (None, Some(path), _) => machine::secret(MASTER_KEY, path),
        (None, None, Some(path)) => machine::private(MASTER_KEY, path, "600"),
        (None, None, None) => Finding::warning(
            MASTER_KEY,
            "there is none: apps cannot have secrets",
            "Make one, keep a copy elsewhere, and name its file in master_key_file on every node.",
        )
        .with_command("(umask 077; openssl rand -base64 32 > master.key)"),
    }
}

fn rows(unreadable: &[StoreError]) -> Finding {
    const NAME: &str = "rows";
    let Some(first) = unreadable.first() else {
        let found = "every app, script, route, trigger, open topic and user can be read";
        return Finding::ok(NAME, found);
    };
    let others = match unreadable.len() - 1 {
        0 => String::new(),
        more => format!("; and {more} more, which the server's log names"),
    };
    Finding::error(
        NAME,
        format!("what cannot be read is left out: {first}{others}"),
        "Delete it and make it anew, or correct the row in the database and start the server again.",
    )
}

fn last_backup(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Finding {
    const NAME: &str = "backup";
    let Some(at) = at else {
        return Finding::ok(NAME, "none was taken yet");
    };
    let found = format!(
        "the last one was taken at {}",
        at.format("%Y-%m-%d %H:%M UTC")
    );
    match now - at > BACKUP_AGE {
        true => Finding::warning(
            NAME,
            found,
            "Take one now, and have a timer take one each day.",
        )
        .with_command("picloud backup picloud.zip"),
        false => Finding::ok(NAME, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn a_database_that_forgets_is_an_error() {
        for (name, value, severity) in [
            ("journal_mode", "wal", Severity::Ok),
            ("journal_mode", "delete", Severity::Error),
            ("fsync", "on", Severity::Ok),
            ("fsync", "off", Severity::Error),
            ("synchronous_commit", "off", Severity::Error),
            ("synchronous_commit", "local", Severity::Ok),
            ("synchronous_commit", "remote_apply", Severity::Ok),
        ] {
            let found = durability(&Facts {
                version: "Postgres 15".into(),
                settings: vec![(name, value.to_owned())],
                server: None,
                has_schema: true,
            });
            assert_eq!(found.severity, severity, "{name} = {value}");
        }
    }

    #[test]
    fn clocks_that_are_apart_are_told() {
        let now = Utc::now();
        let later = now + TimeDelta::milliseconds(300);
        for (seconds, severity) in [
            (0, Severity::Ok),
            (-1, Severity::Ok),
            (-3, Severity::Warning),
            (3, Severity::Warning),
            (30, Severity::Error),
            (-30, Severity::Error),
        ] {
            let found = clocks(now, now + TimeDelta::seconds(seconds), later);
            assert_eq!(found.severity, severity, "{seconds}");
        }
        let future = Some(now + TimeDelta::hours(1));
        assert_eq!(clock_beside(future, now).severity, Severity::Error);
        assert_eq!(clock_beside(Some(now), now).severity, Severity::Ok);
        assert_eq!(clock_beside(None, now).severity, Severity::Ok);
    }

    #[test]
    fn an_old_backup_a_damaged_database_and_a_foreign_schema_are_told() {
        let now = Utc::now();
        let old = Some(now - BACKUP_AGE - TimeDelta::seconds(1));
        assert_eq!(last_backup(old, now).severity, Severity::Warning);
        assert_eq!(last_backup(Some(now), now).severity, Severity::Ok);
        assert_eq!(last_backup(None, now).severity, Severity::Ok);
        assert_eq!(integrity(Some("x".into())).severity, Severity::Error);
        assert_eq!(schema_of(0).severity, Severity::Ok);
        assert_eq!(schema_of(SCHEMA_VERSION).severity, Severity::Ok);
        assert_eq!(schema_of(SCHEMA_VERSION - 1).severity, Severity::Warning);
        assert_eq!(schema_of(SCHEMA_VERSION + 1).severity, Severity::Error);
        assert_eq!(connections(20).severity, Severity::Warning);
    }
}
