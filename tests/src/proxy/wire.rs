//! As much of Postgres' protocol (version 3) as it takes to know which statements a connection
//! executes, and when the answer to them is complete.

use std::collections::{HashMap, VecDeque};

/// What a client may begin with: the number after the length of its first message.
const PROTOCOL_3: u32 = 196_608;
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS_ENCRYPTION: u32 = 80_877_104;

/// How many texts of statements a connection keeps, to tell what it is used for.
const RECENT_MAX: usize = 64;

/// A statement that a client has executed, or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The number of its connection, in the order in which they were made.
    pub connection: usize,
    /// Its text in one line, without the numbers of its parameters: see [`normalised`].
    pub text: String,
    /// Whether it is within a transaction that was begun before, or begins or ends one.
    pub in_transaction: bool,
    /// The statements that wrote in the same transaction before it.
    pub before: Vec<String>,
    /// The code (SQLSTATE) with which the server refused it, or another of the same round trip.
    pub error: Option<String>,
}

impl Statement {
    /// Whether it changes rows.
    pub fn writes(&self) -> bool {
        writes(&self.text)
    }

    /// Whether it ends a transaction that has written.
    pub fn commits_writes(&self) -> bool {
        matches!(&*self.text, "commit" | "end") && !self.before.is_empty()
    }

    /// Whether it is the point at which something becomes durable, or something on the way there.
    pub fn is_part_of_a_write(&self) -> bool {
        self.writes() || self.commits_writes()
    }

    /// What the same statement has in common from one run to the next: its text, or, of a commit,
    /// the distinct statements that wrote in its transaction, in their order.
    pub fn shape(&self) -> String {
        if self.commits_writes() {
            let mut distinct: Vec<&str> = Vec::new();
            for text in &self.before {
                if !distinct.contains(&&**text) {
                    distinct.push(text);
                }
            }
            return format!("commit: {}", distinct.join(" ; "));
        }
        match self.in_transaction {
            true => self.text.clone(),
            false => format!("autocommitted: {}", self.text),
        }
    }
}

/// Whether a statement of this text changes rows.
pub fn writes(text: &str) -> bool {
    const VERBS: [&str; 4] = ["insert into ", "update ", "delete from ", "truncate "];
    let text = text.to_ascii_lowercase();
    if VERBS.iter().any(|verb| text.starts_with(verb)) {
        return true;
    }
    let is_update =
        |at: usize| !text[..at].ends_with("for ") && !text[..at].ends_with("for no key ");
    text.starts_with("with ")
        && (VERBS
            .iter()
            .any(|verb| *verb != "update " && text.contains(verb))
            || text
                .match_indices(" update ")
                .any(|(at, _)| is_update(at + 1)))
}

/// A text in which only what makes it another statement is left: one line, parameters without
/// their numbers, lists of parameters whatever their length, and many rows as one.
pub fn normalised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c.is_whitespace() {
            if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
        } else if c == '$' && rest.peek().is_some_and(char::is_ascii_digit) {
            while rest.next_if(char::is_ascii_digit).is_some() {}
            out.push('$');
        } else {
            out.push(c);
        }
    }
    for (many, one) in [("$, $", "$"), ("$,$", "$"), ("($), ($)", "($)")] {
        while out.contains(many) {
            out = out.replace(many, one);
        }
    }
    let out = out.replace("select * from unnest($)", "values ($)");
    out.trim().trim_end_matches(';').trim_end().to_owned()
}

/// One round trip: what a client sends before it waits for the server to be ready again.
#[derive(Debug, Default)]
pub(super) struct Cycle {
    pub(super) statements: Vec<Statement>,
    error: Option<String>,
}

/// What a piece of what the client sent is.
pub(super) enum FromClient {
    /// Nothing that is to be looked at: pass it on.
    Plain(Vec<u8>),
    /// It asks for encryption, which nobody here could read: say no.
    AsksForEncryption,
    /// All that the client says before it waits: the number of the round trip on its connection,
    /// and the statements that this executes.
    Cycle(Vec<u8>, u64, Vec<Statement>),
}

/// What a piece of what the server sent is, with the number of the round trip that it answers.
pub(super) enum FromServer {
    /// Somewhere within an answer.
    Part(Vec<u8>, u64),
    /// The end of the answer to these.
    Ready(Vec<u8>, u64, Vec<Statement>),
}

/// How far a connection's conversation is known.
enum Stage {
    /// Nothing was said.
    New,
    /// It is not Postgres', or cannot be read.
    Opaque,
    /// Messages have a type.
    Typed,
}

/// One connection's conversation.
pub(super) struct Wire {
    connection: usize,
    stage: Stage,
    client: Vec<u8>,
    server: Vec<u8>,
    /// What was read of the client's round trip that is not complete.
    said: Vec<u8>,
    executed: Vec<Statement>,
    prepared: HashMap<Vec<u8>, String>,
    portals: HashMap<Vec<u8>, String>,
    waiting: VecDeque<Cycle>,
    /// How many round trips were answered.
    answered: u64,
    in_transaction: bool,
    /// What wrote in the transaction that is open.
    written: Vec<String>,
    pub(super) recent: VecDeque<String>,
}

/// A string that ends with a zero, and what follows.
fn text(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    let four: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    Some(u32::from_be_bytes(four))
}

/// The code in what a server says of an error: fields, each a letter and a text.
fn code(mut fields: &[u8]) -> String {
    while let [kind, rest @ ..] = fields {
        let (value, after) = text(rest);
        if *kind == b'C' {
            return String::from_utf8_lossy(value).into_owned();
        }
        fields = after;
    }
    String::new()
}

/// Take a message with a type off the front of `buffer`, if it is whole.
fn take_message(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::try_from(number(buffer.get(1..)?)?).ok()? + 1;
    if buffer.len() < length {
        return None;
    }
    let rest = buffer.split_off(length);
    Some(std::mem::replace(buffer, rest))
}

impl Wire {
    pub(super) fn new(connection: usize) -> Self {
        Self {
            connection,
            stage: Stage::New,
            client: Vec::new(),
            server: Vec::new(),
            said: Vec::new(),
            executed: Vec::new(),
            prepared: HashMap::new(),
            portals: HashMap::new(),
            waiting: VecDeque::new(),
            answered: 0,
            in_transaction: false,
            written: Vec::new(),
            recent: VecDeque::new(),
        }
    }

    /// Read on in what the client sends.
    pub(super) fn client_sent(&mut self, piece: &[u8]) -> Vec<FromClient> {
        self.client.extend_from_slice(piece);
        let mut read = Vec::new();
        loop {
            match self.stage {
                Stage::Opaque => {
                    if !self.client.is_empty() {
                        read.push(FromClient::Plain(std::mem::take(&mut self.client)));
                    }
                    return read;
                }
                Stage::New => match self.first_message() {
                    Some(first) => read.push(first),
                    None if matches!(self.stage, Stage::New) => return read,
                    None => {}
                },
                Stage::Typed => match take_message(&mut self.client) {
                    Some(message) => read.extend(self.message(&message)),
                    None => return read,
                },
            }
        }
    }

    /// The message without a type with which a client begins.
    fn first_message(&mut self) -> Option<FromClient> {
        match self.client.first() {
            None => return None,
            // As the first byte of a length that would be 16 MiB.
            Some(1..) => {
                self.stage = Stage::Opaque;
                return None;
            }
            Some(0) => {}
        }
        let (length, code) = (number(&self.client)?, number(self.client.get(4..)?)?);
        let length = usize::try_from(length).ok()?;
        if self.client.len() < length {
            return None;
        }
        let rest = self.client.split_off(length);
        let message = std::mem::replace(&mut self.client, rest);
        match code {
            SSL | GSS_ENCRYPTION => return Some(FromClient::AsksForEncryption),
            PROTOCOL_3 => {
                self.stage = Stage::Typed;
                // Signing in is answered as a round trip is.
                self.waiting.push_back(Cycle::default());
            }
            CANCEL => self.stage = Stage::Opaque,
            _ => self.stage = Stage::Opaque,
        }
        Some(FromClient::Plain(message))
    }

    fn message(&mut self, message: &[u8]) -> Option<FromClient> {
        let body = &message[5..];
        self.said.extend_from_slice(message);
        match message[0] {
            b'P' => {
                let (name, rest) = text(body);
                let sql = String::from_utf8_lossy(text(rest).0).into_owned();
                self.prepared.insert(name.to_vec(), sql);
            }
            b'B' => {
                let (portal, rest) = text(body);
                let sql = self.prepared.get(text(rest).0).cloned();
                self.portals
                    .insert(portal.to_vec(), sql.unwrap_or_default());
            }
            b'C' => {
                let (name, _) = text(&body[1..]);
                match body[0] {
                    b'S' => self.prepared.remove(name),
                    _ => self.portals.remove(name),
                };
            }
            b'E' => {
                let sql = self.portals.get(text(body).0).cloned();
                self.executes(&sql.unwrap_or_default());
            }
            b'Q' => {
                let sql = String::from_utf8_lossy(text(body).0).into_owned();
                // None of ours has a semicolon in a string.
                sql.split(';').for_each(|one| self.executes(one));
                return Some(self.end_of_cycle());
            }
            b'S' => return Some(self.end_of_cycle()),
            // The end, a password, a copy, a flush: no round trip ends with it, and nobody may
            // wait for one.
            b'X' | b'p' | b'd' | b'c' | b'f' | b'H' => {
                return Some(FromClient::Plain(std::mem::take(&mut self.said)));
            }
            _ => {}
        }
        None
    }

    fn executes(&mut self, sql: &str) {
        let text = normalised(sql);
        if text.is_empty() {
            return;
        }
        let begun = self.executed.iter().any(|one| is_begin(&one.text));
        let earlier = self.executed.iter().filter(|one| one.writes());
        let before = self.written.iter().cloned();
        let before = before.chain(earlier.map(|one| one.text.clone())).collect();
        self.executed.push(Statement {
            connection: self.connection,
            in_transaction: self.in_transaction || begun || is_begin(&text),
            before,
            text,
            error: None,
        });
    }

    fn end_of_cycle(&mut self) -> FromClient {
        let statements = std::mem::take(&mut self.executed);
        for statement in &statements {
            if self.recent.len() == RECENT_MAX {
                self.recent.pop_front();
            }
            self.recent.push_back(statement.text.clone());
        }
        let number = self.answered + self.waiting.len() as u64;
        self.waiting.push_back(Cycle {
            statements: statements.clone(),
            error: None,
        });
        FromClient::Cycle(std::mem::take(&mut self.said), number, statements)
    }

    /// Read on in what the server sends.
    pub(super) fn server_sent(&mut self, piece: &[u8]) -> Vec<FromServer> {
        if !matches!(self.stage, Stage::Typed) {
            return vec![FromServer::Part(piece.to_vec(), 0)];
        }
        self.server.extend_from_slice(piece);
        let mut read = Vec::new();
        let mut part = Vec::new();
        while let Some(message) = take_message(&mut self.server) {
            match message[0] {
                b'E' => {
                    if let Some(cycle) = self.waiting.front_mut() {
                        cycle.error = Some(code(&message[5..]));
                    }
                    part.extend(message);
                }
                b'Z' => {
                    let state = message.get(5).copied().unwrap_or(b'I');
                    part.extend(message);
                    let (all, number) = (std::mem::take(&mut part), self.answered);
                    let statements = self.ready(state);
                    read.push(FromServer::Ready(all, number, statements));
                }
                _ => part.extend(message),
            }
        }
        if !part.is_empty() {
            read.push(FromServer::Part(part, self.answered));
        }
        read
    }

    fn ready(&mut self, state: u8) -> Vec<Statement> {
        let cycle = self.waiting.pop_front().unwrap_or_default();
        self.answered += 1;
        self.in_transaction = state != b'I';
        if self.in_transaction {
            let wrote = cycle.statements.iter().filter(|one| one.writes());
            self.written.extend(wrote.map(|one| one.text.clone()));
        } else {
            self.written.clear();
        }
        let mut statements = cycle.statements;
        for statement in &mut statements {
            statement.error.clone_from(&cycle.error);
        }
        statements
    }
}

fn is_begin(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text == "begin" || text.starts_with("begin ") || text.starts_with("start transaction")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    fn startup() -> Vec<u8> {
        let body = b"user\0postgres\0\0";
        let length = u32::try_from(body.len() + 8).unwrap();
        [&length.to_be_bytes()[..], &PROTOCOL_3.to_be_bytes(), body].concat()
    }

    fn started() -> Wire {
        let mut wire = Wire::new(7);
        let first = wire.client_sent(&startup());
        assert!(matches!(&first[..], [FromClient::Plain(bytes)] if *bytes == startup()));
        wire.server_sent(&message(b'R', &[0, 0, 0, 0]));
        let ready = wire.server_sent(&message(b'Z', b"I"));
        assert!(matches!(&ready[..], [FromServer::Ready(_, 0, none)] if none.is_empty()));
        wire
    }

    /// What a round trip executes, which is answered with this state.
    fn round_trip(wire: &mut Wire, messages: &[Vec<u8>], state: &[u8]) -> Vec<Statement> {
        let mut asked = Vec::new();
        // As it may come: piece by piece.
        for byte in messages.concat() {
            for read in wire.client_sent(&[byte]) {
                match read {
                    FromClient::Cycle(bytes, _, statements) => {
                        assert_eq!(bytes, messages.concat());
                        asked.extend(statements);
                    }
                    FromClient::Plain(_) | FromClient::AsksForEncryption => panic!("no cycle"),
                }
            }
        }
        assert_eq!(wire.waiting.len(), 1);
        let mut answered = None;
        let answer = [message(b'C', b"DONE\0"), message(b'Z', state)].concat();
        for byte in &answer {
            for read in wire.server_sent(std::slice::from_ref(byte)) {
                if let FromServer::Ready(_, _, statements) = read {
                    answered = Some(statements);
                }
            }
        }
        assert_eq!(answered.as_ref(), Some(&asked));
        asked
    }

    fn query(sql: &str) -> Vec<u8> {
        message(b'Q', &[sql.as_bytes(), b"\0"].concat())
    }

    #[test]
    fn a_prepared_statement_is_known_whenever_it_is_executed() {
        let mut wire = started();
        let parse = message(b'P', b"s1\0insert into t\n  (a, b) values ($1, $2)\0\0\0");
        let prepare = [parse, message(b'D', b"Ss1\0"), message(b'S', b"")];
        assert!(round_trip(&mut wire, &prepare, b"I").is_empty());
        for _ in 0..2 {
            let execute = [
                message(b'B', b"\0s1\0\0\0\0\0\0\0"),
                message(b'E', b"\0\0\0\0\0"),
                message(b'S', b""),
            ];
            let executed = round_trip(&mut wire, &execute, b"I");
            assert_eq!(executed.len(), 1);
            assert_eq!(executed[0].text, "insert into t (a, b) values ($)");
            assert_eq!(executed[0].connection, 7);
            assert!(executed[0].writes() && !executed[0].in_transaction);
            assert!(executed[0].shape().starts_with("autocommitted: insert"));
        }
    }

    #[test]
    fn a_commit_is_known_by_what_was_written_before_it() {
        let mut wire = started();
        let begun = round_trip(&mut wire, &[query("begin; select now()")], b"T");
        let texts: Vec<&str> = begun.iter().map(|one| &*one.text).collect();
        assert_eq!(texts, ["begin", "select now()"]);
        assert!(begun.iter().all(|one| one.in_transaction));
        for _ in 0..2 {
            round_trip(&mut wire, &[query("update a set b = 1")], b"T");
        }
        round_trip(&mut wire, &[query("select 1")], b"T");
        let wrote = round_trip(&mut wire, &[query("delete from c where d = 1;")], b"T");
        assert_eq!(wrote[0].shape(), "delete from c where d = 1");
        let commit = round_trip(&mut wire, &[query("commit")], b"I");
        assert!(commit[0].commits_writes());
        let shape = "commit: update a set b = 1 ; delete from c where d = 1";
        assert_eq!(commit[0].shape(), shape);
        // It is over: the next one begins with nothing.
        round_trip(&mut wire, &[query("begin")], b"T");
        let commit = round_trip(&mut wire, &[query("commit")], b"I");
        assert!(!commit[0].commits_writes());
        let at_once = [query("begin; insert into a values (1); commit")];
        let at_once = round_trip(&mut wire, &at_once, b"I");
        assert_eq!(at_once[2].shape(), "commit: insert into a values (1)");
    }

    #[test]
    fn a_refused_statement_is_known_as_such() {
        let mut wire = started();
        wire.client_sent(&query("insert into t values (1)"));
        let refused = message(b'E', b"SERROR\0C57014\0Mcancelled\0\0");
        let answer = [refused, message(b'Z', b"I")].concat();
        let read = wire.server_sent(&answer);
        let [FromServer::Ready(_, 1, one)] = &read[..] else {
            panic!("no answer");
        };
        assert_eq!(one[0].error.as_deref(), Some("57014"));
    }

    #[test]
    fn what_is_not_postgres_passes_as_it_is() {
        let mut wire = Wire::new(0);
        let request = b"GET / HTTP/1.1\r\n\r\n";
        let read = wire.client_sent(request);
        assert!(matches!(&read[..], [FromClient::Plain(bytes)] if bytes == request));
        let read = wire.server_sent(b"HTTP/1.1 200 OK\r\n\r\n");
        assert!(matches!(&read[..], [FromServer::Part(bytes, _)] if bytes.starts_with(b"HTTP")));
    }

    #[test]
    fn encryption_is_declined_and_the_client_begins_again() {
        let mut wire = Wire::new(0);
        let asks = [8_u32.to_be_bytes(), SSL.to_be_bytes()].concat();
        let read = wire.client_sent(&asks);
        assert!(matches!(&read[..], [FromClient::AsksForEncryption]));
        let read = wire.client_sent(&startup());
        assert!(matches!(&read[..], [FromClient::Plain(_)]));
    }

    #[test]
    fn texts_are_the_same_however_many_rows_and_parameters_they_have() {
        let one = "insert into t (a, b) values ($1, $2)";
        let two = "insert into t (a, b)  values ($1, $2), ($3, $4)";
        let many = "insert into t (a, b) select * from unnest($1, $2)";
        assert_eq!(normalised(one), "insert into t (a, b) values ($)");
        assert_eq!(normalised(two), normalised(one));
        assert_eq!(normalised(many), normalised(one));
        assert_eq!(normalised("select 1\n from t;\n"), "select 1 from t");
    }

    #[test]
    fn what_writes_is_told_from_what_reads() {
        for text in [
            "insert into t values ($)",
            "UPDATE t set a = 1",
            "delete from t",
            "with due as (select 1 for update skip locked) update t set a = 1",
            "with gone as (delete from t returning a) select a from gone",
        ] {
            assert!(writes(text), "{text}");
        }
        for text in [
            "select 1 from t for update",
            "with a as (select 1 from t for update) select 2",
            "begin",
            "listen \"x\"",
        ] {
            assert!(!writes(text), "{text}");
        }
    }
}
