//! A Postgres database of a test's own, which can be made to refuse what a healthy one allows.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::{Options, Server};

/// A database of the test's own on the Postgres that all tests share; dropping it removes it.
pub(crate) struct Database {
    name: String,
    /// Where the server's superuser signs in, in another database.
    admin_url: String,
    /// Where the server's superuser signs in to this one, past any proxy.
    own_url: String,
    /// Where the server under test finds it, without a proxy.
    pub(crate) url: String,
    /// The role that it signs in as, if it is one of its own.
    role: Option<String>,
}

/// A row, as text.
pub type Row = Vec<Option<String>>;

impl Database {
    pub(crate) fn create(options: &Options) -> Self {
        let admin_url = options.postgres.clone().unwrap_or_else(|| {
            std::env::var("PICLOUD_TEST_POSTGRES_URL").expect(
                "PICLOUD_TEST_POSTGRES_URL is not set; `cargo xtask test` starts a Postgres and sets it",
            )
        });
        let name = format!("picloud_{}", uuid::Uuid::now_v7().simple());
        let mut admin = connect(&admin_url);
        let role = options.ordinary_role.then(|| format!("{name}_role"));
        if let Some(role) = &role {
            let make = format!("create role {role} login password 'secret'");
            admin.batch_execute(&make).expect("a role");
        }
        let owned = role.iter().map(|role| format!(" owner {role}"));
        let make = format!("create database {name}{}", owned.collect::<String>());
        admin.batch_execute(&make).expect("a database");
        let (front, _) = admin_url.rsplit_once('/').expect("a URL with a database");
        let own_url = format!("{front}/{name}");
        let (scheme, rest) = front.split_once("://").expect("a URL");
        let (user, host) = rest.rsplit_once('@').expect("a URL with a user");
        let user = match &role {
            Some(role) => format!("{role}:secret"),
            None => user.to_owned(),
        };
        Self {
            url: format!("{scheme}://{user}@{host}/{name}"),
            name,
            admin_url,
            own_url,
            role,
        }
    }

    /// The same database, reached through another port.
    pub(crate) fn url_through(&self, port: Option<u16>) -> String {
        let Some(port) = port else {
            return self.url.clone();
        };
        let (front, name) = self.url.rsplit_once('/').expect("a URL with a database");
        let (front, _) = front.rsplit_once(':').expect("a URL with a port");
        format!("{front}:{port}/{name}")
    }

    fn admin(&self) -> Client {
        connect(&self.admin_url)
    }

    /// A connection of the superuser to this database, past any proxy.
    pub(crate) fn client(&self) -> Client {
        connect(&self.own_url)
    }

    /// Whether a statement that begins so is running in it.
    pub(crate) fn is_running(&self, beginning: &str) -> bool {
        let sql = "select 1 from pg_stat_activity
            where datname = $1 and state <> 'idle' and query like $2 || '%'";
        let found = self.admin().query(sql, &[&self.name, &beginning]);
        !found.expect("an answer").is_empty()
    }

    /// Whether there is a row in a table, if there is such a table.
    pub(crate) fn has_rows(&self, table: &str) -> bool {
        let mut client = self.client();
        let there = client.query_one("select to_regclass($1) is not null", &[&table]);
        let any = format!("select 1 from {table} limit 1");
        there.expect("an answer").get(0) && !client.query(&any, &[]).expect("rows").is_empty()
    }

    /// End every connection to it. Says how many there were.
    pub(crate) fn end_connections(&self) -> u64 {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
        let ended = self.admin().query(sql, &[&self.name]);
        ended.expect("they end").len() as u64
    }

    /// How many connections it has.
    pub(crate) fn connections(&self) -> i64 {
        let sql = "select count(*) from pg_stat_activity where datname = $1";
        let counted = self.admin().query_one(sql, &[&self.name]);
        counted.expect("a count").get(0)
    }

    /// Set what is true of every new connection, and end those that there are.
    pub(crate) fn set(&self, setting: &str, value: &str) {
        let set = format!("alter database {} set {setting} = {value}", self.name);
        self.admin().batch_execute(&set).expect("a setting");
        self.end_connections();
    }

    /// Change the role that the server signs in as, and end its connections.
    pub(crate) fn alter_role(&self, how: &str) {
        let role = self.role.as_ref();
        let role = role.expect("`Options::ordinary_role` makes the role");
        let alter = format!("alter role {role} {how}");
        self.admin().batch_execute(&alter).expect("a role");
        self.end_connections();
    }

    /// Let it take connections, or none; those that there are end.
    pub(crate) fn allow_connections(&self, is_allowed: bool) {
        let name = &self.name;
        let set = format!("alter database {name} with allow_connections {is_allowed}");
        self.admin().batch_execute(&set).expect("a database");
        self.end_connections();
    }

    /// Take the right to write a table away from the role that the server signs in as, or give it.
    pub(crate) fn allow_writes(&self, table: &str, is_allowed: bool) {
        let role = self.role.as_ref();
        let role = role.expect("`Options::ordinary_role` makes the role");
        let (verb, word) = if is_allowed {
            ("grant", "to")
        } else {
            ("revoke", "from")
        };
        self.execute(&format!(
            "{verb} insert, update, delete on {table} {word} {role}"
        ));
    }

    /// Change it behind the server's back.
    pub(crate) fn execute(&self, statements: &str) {
        let done = self.client().batch_execute(statements);
        done.expect("statements");
    }
}

/// What a test does to the Postgres of its server.
impl Server {
    /// End every connection to the server's database, as a restart of Postgres does. Says how
    /// many there were.
    pub fn end_database_connections(&self) -> u64 {
        self.postgres().end_connections()
    }

    /// How many connections its database has, those of other nodes among them.
    pub fn database_connections(&self) -> i64 {
        self.postgres().connections()
    }

    /// Let its Postgres refuse every write, as one that a fail-over has made a standby, or take
    /// them again.
    pub fn make_database_read_only(&self, is_read_only: bool) {
        let value = if is_read_only { "on" } else { "off" };
        self.postgres().set("default_transaction_read_only", value);
    }

    /// Let its Postgres refuse to sign it in, or sign it in again. It needs
    /// [`Options::ordinary_role`].
    pub fn refuse_database_login(&self, is_refused: bool) {
        let how = if is_refused { "nologin" } else { "login" };
        self.postgres().alter_role(how);
    }

    /// Let its Postgres take connections to its database, or none.
    pub fn allow_database_connections(&self, is_allowed: bool) {
        self.postgres().allow_connections(is_allowed);
    }

    /// Take from it the right to write a table of its Postgres, or give it back. It needs
    /// [`Options::ordinary_role`].
    pub fn allow_writes_to(&self, table: &str, is_allowed: bool) {
        self.postgres().allow_writes(table, is_allowed);
    }

    /// Let its Postgres allow it only so many connections; `None` is as many as it wants. It needs
    /// [`Options::ordinary_role`].
    pub fn limit_database_connections(&self, at_most: Option<u32>) {
        let limit = at_most.map_or("-1".to_owned(), |limit| limit.to_string());
        let how = format!("connection limit {limit}");
        self.postgres().alter_role(&how);
    }
}

/// A lock on what a server reads and writes; dropping it releases it.
pub enum Lock {
    /// The session that holds it, on Postgres.
    Session(Box<Client>),
    /// The process that holds it, on SQLite.
    Process(Child),
}

impl Server {
    /// Lock a table as a migration does. On SQLite it is every table, and only for who writes.
    pub fn lock(&self, table: &str) -> Lock {
        if self.is_on_postgres() {
            let mut session = self.postgres().client();
            let lock = format!("begin; lock table {table} in access exclusive mode");
            session.batch_execute(&lock).expect("a lock");
            return Lock::Session(Box::new(session));
        }
        const LOCK: &str = "
import sqlite3, sys
sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None).execute('begin immediate')
print(flush=True)
sys.stdin.read()";
        let mut python = Command::new("python3");
        let python = python.args(["-c", LOCK]).arg(self.database_file());
        let piped = python.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = piped.spawn().expect("python3");
        let said = process.stdout.as_mut().expect("it was piped");
        said.read_exact(&mut [0]).expect("a lock");
        Lock::Process(process)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Self::Process(process) = self {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn connect(url: &str) -> Client {
    let mut config: postgres::Config = url.parse().expect("a URL");
    config.connect_timeout(Duration::from_secs(10));
    config.connect(NoTls).expect("the test Postgres")
}

/// The rows that a statement answers.
pub(crate) fn rows(client: &mut Client, sql: &str) -> Vec<Row> {
    let answered = client.simple_query(sql).expect("rows");
    let rows = answered.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns = (0..row.len()).map(|column| row.get(column).map(str::to_owned));
            Some(columns.collect())
        }
        _ => None,
    });
    rows.collect()
}

impl Drop for Database {
    fn drop(&mut self) {
        let Ok(mut admin) = Client::connect(&self.admin_url, NoTls) else {
            return;
        };
        let _ = admin.batch_execute(&format!("drop database {} with (force)", self.name));
        if let Some(role) = &self.role {
            let _ = admin.batch_execute(&format!("drop role {role}"));
        }
    }
}
