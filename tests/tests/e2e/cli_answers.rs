//! What answers the command line, and what it takes for an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use picloud_tests::{Engine, Home, Server, err, fine, on_both_engines};

on_both_engines!(
    the_dashboards_address_is_not_the_apis,
    a_sign_in_is_not_overwritten_by_what_is_none,
    the_protocol_of_an_address_is_said,
);

/// A request that something else than PiCloud got.
#[derive(Debug, Clone)]
struct Got {
    line: String,
    head: String,
    body: String,
}

/// Something else than PiCloud, or what stands before it: a proxy with a sign-in page say.
struct Other {
    url: String,
    port: u16,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Other {
    /// Answer each request by its first line.
    fn start(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let kept = got.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else {
                    continue;
                };
                let bytes = answer(&request.line);
                kept.lock().unwrap().push(request);
                let mut stream = stream;
                let _ = stream.write_all(bytes.as_bytes());
            }
        });
        let url = format!("http://127.0.0.1:{port}");
        Self { url, port, got }
    }

    /// What is always answered so.
    fn with(status: &str, kind: &str, body: &str) -> Self {
        let bytes = response(
            status,
            &format!("content-type: {kind}\r\nserver: gate/1.0"),
            body,
        );
        Self::start(move |_| bytes.clone())
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Got> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        if field.trim().is_empty() {
            break;
        }
        let lower = field.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head.push_str(&lower);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Got {
        line: line.trim().to_owned(),
        head,
        body: String::from_utf8(body).ok()?,
    })
}

fn response(status: &str, head: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

const SIGN_IN: &str = "<!doctype html><html><head>\n<title>\n  Sign in \u{1b}[2J· Example SSO\n</title></head></html>";

/// Commands of every kind; the files that they name are there.
const COMMANDS: &[&[&str]] = &[
    &["doctor"],
    &["whoami"],
    &["logout"],
    &["deploy", "s.rhai", "--app", "a", "--route", "GET /x"],
    &["deploy", "s.rhai", "--app", "a", "--create-app"],
    &["invoke", "s", "--app", "a"],
    &["logs", "--app", "a"],
    &["kv", "get", "c", "k", "--app", "a"],
    &["kv", "set", "c", "k", "1", "--app", "a"],
    &["kv", "delete", "c", "k", "--app", "a"],
    &["kv", "list", "--app", "a"],
    &["kv", "list", "c", "--app", "a"],
    &["apps", "list"],
    &["apps", "create", "a"],
    &["apps", "show", "a"],
    &["apps", "usage", "a"],
    &["apps", "update", "a", "--name", "A"],
    &["apps", "delete", "a", "--yes"],
    &["domains", "list", "--app", "a"],
    &["domains", "add", "h.example", "--app", "a"],
    &["domains", "remove", "h.example", "--app", "a"],
    &["scripts", "list", "--app", "a"],
    &["scripts", "show", "s", "--app", "a"],
    &["scripts", "versions", "s", "--app", "a"],
    &["scripts", "delete", "s", "--app", "a", "--yes"],
    &["routes", "list", "--app", "a"],
    &["routes", "update", "r", "--no-cors"],
    &["routes", "delete", "r"],
    &["triggers", "list", "--app", "a"],
    &["triggers", "show", "t"],
    &[
        "triggers",
        "create-kv",
        "s",
        "--collection",
        "c",
        "--app",
        "a",
    ],
    &[
        "triggers",
        "create-pubsub",
        "s",
        "--topic",
        "t",
        "--app",
        "a",
    ],
    &["triggers", "create-dead-letter", "s", "--app", "a"],
    &["triggers", "pause", "t"],
    &["triggers", "resume", "t"],
    &["triggers", "enable", "t"],
    &["triggers", "disable", "t"],
    &["triggers", "delete", "t"],
    &["dead-letters", "list", "--app", "a"],
    &["dead-letters", "show", "d"],
    &["dead-letters", "replay", "d"],
    &["dead-letters", "replay", "--app", "a", "--all"],
    &["dead-letters", "resolve", "--app", "a", "--all"],
    &["executions", "list", "--app", "a"],
    &["executions", "show", "e"],
    &["executions", "tree", "e"],
    &["users", "list"],
    &["users", "invite"],
    &["users", "invitations"],
    &["users", "join", "t", "--name", "ada", "--password-stdin"],
    &["users", "revoke-invitation", "i"],
    &["users", "set-role", "ada", "admin"],
    &["users", "disable", "ada"],
    &["users", "enable", "ada"],
    &["users", "reset-link", "ada"],
    &["users", "delete", "ada", "--yes"],
    &["members", "list", "--app", "a"],
    &["members", "set", "ada", "viewer", "--app", "a"],
    &["members", "remove", "ada", "--app", "a"],
    &["keys", "list"],
    &["keys", "create", "k", "--scope", "script:read"],
    &["keys", "rotate", "k"],
    &["keys", "revoke", "k"],
    &["secrets", "list", "--app", "a"],
    &["secrets", "set", "S", "--stdin", "--app", "a"],
    &["secrets", "delete", "S", "--app", "a"],
    &["secrets", "rotate"],
    &["topics", "list", "--app", "a"],
    &["topics", "show", "t", "--app", "a"],
    &["topics", "rotate-keys", "--app", "a"],
    &["topics", "open", "t", "--auth", "public", "--app", "a"],
    &["topics", "close", "t", "--app", "a"],
    &["publish", "t", "1", "--app", "a"],
    &["audit"],
    &["gc", "--yes"],
    &["export", "a", "--output", "out.zip"],
    &["import", "in.zip"],
    &["backup", "backup.zip"],
];

/// Those that ask no server; what of `setup` and `login` is tested elsewhere.
const ASK_NOBODY: &[&str] = &[
    "serve",
    "config",
    "setup",
    "login",
    "profiles list",
    "profiles use",
    "restore",
    "openapi",
    "completions",
];

/// The commands that the help tells of, below these words.
fn told_of(home: &Home, words: &[&str]) -> Vec<String> {
    let help = fine(home.run(&[words, &["--help"]].concat()));
    let (_, commands) = help.split_once("Commands:\n").unwrap_or_default();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    // The rest of a long description stands further to the right.
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split_once("  "));
    let names = names.map(|(name, _)| name).filter(|name| {
        let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
        *name != "help" && !name.is_empty() && name.chars().all(is_name)
    });
    let below = names.flat_map(|name| {
        let words = [words, &[name]].concat();
        match told_of(home, &words) {
            none if none.is_empty() => vec![words.join(" ")],
            some => some,
        }
    });
    below.collect()
}

#[test]
fn no_command_is_left_out_here() {
    let told = told_of(&Home::default(), &[]);
    assert!(told.len() > 60, "{told:?}");
    let is_tested = |command: &str| {
        let words: Vec<&str> = command.split(' ').collect();
        COMMANDS.iter().any(|known| known.starts_with(&words)) || ASK_NOBODY.contains(&command)
    };
    let left: Vec<_> = told.iter().filter(|one| !is_tested(one)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Have `other` answer every command, and see that none takes that for an answer.
fn assert_none_succeeds(other: &Other, says: &[&str]) {
    let home = Home::default();
    std::fs::write(home.folder().join("s.rhai"), "1").unwrap();
    std::fs::write(home.folder().join("in.zip"), "").unwrap();
    for words in COMMANDS {
        let mut command = home.command(words);
        command
            .args(["--url", &other.url])
            .env("PICLOUD_TOKEN", "t");
        let output = command.output().unwrap();
        let said = err(&output);
        assert_eq!(output.status.code(), Some(6), "{words:?}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{words:?}");
        for says in says.iter().chain(&[other.url.as_str()]) {
            assert!(said.contains(says), "{words:?}: {said}");
        }
        assert!(!said.contains('\u{1b}'), "{words:?}: {said:?}");
    }
    let left: Vec<_> = std::fs::read_dir(home.folder()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_sign_in_page_is_no_answer() {
    let other = Other::with("200 OK", "text/html; charset=utf-8", SIGN_IN);
    assert_none_succeeds(
        &other,
        &[
            "200",
            "Sign in \\u{1b}[2J· Example SSO",
            "gate/1.0",
            "not PiCloud's API",
        ],
    );
}

#[test]
fn json_of_another_product_is_no_answer() {
    for body in [
        r#"{"message":"hello"}"#,
        // What looks like an empty list of ours.
        r#"{"items":[]}"#,
    ] {
        assert_none_succeeds(&Other::with("200 OK", "application/json", body), &[]);
    }
}

#[test]
fn nothing_at_all_is_no_answer() {
    for status in ["204 No Content", "200 OK"] {
        assert_none_succeeds(&Other::with(status, "text/plain", ""), &["with text/plain"]);
    }
}

#[test]
fn what_stands_before_a_server_says_nothing_about_what_is_there() {
    for (status, kind) in [
        ("404 Not Found", "text/html"),
        ("401 Unauthorized", "text/html"),
        ("403 Forbidden", "application/json"),
        ("413 Content Too Large", "text/html"),
        ("502 Bad Gateway", "text/html"),
    ] {
        let other = Other::with(status, kind, "<h1>gate</h1>");
        let home = Home::default();
        for words in [
            &["apps", "show", "a"][..],
            &["apps", "delete", "a", "--yes"],
        ] {
            let mut command = home.command(words);
            let output = command.args(["--url", &other.url, "--token", "t"]).output();
            let output = output.unwrap();
            assert_eq!(output.status.code(), Some(6), "{status}: {}", err(&output));
            assert!(err(&output).contains(&status[..3]), "{}", err(&output));
        }
    }
}

#[test]
fn a_request_is_sent_on_whole() {
    let moved = |line: &str| {
        let path = line.split(' ').nth(1).unwrap();
        match path.strip_prefix("/old") {
            Some(path) => response("301 Moved Permanently", &format!("location: {path}"), ""),
            None => response("204 No Content", "picloud-api: v1", ""),
        }
    };
    let other = Other::start(moved);
    let home = Home::default();
    let words = [
        "kv",
        "set",
        "c",
        ".",
        "{\"n\": 10.0}",
        "--app",
        "a",
        "--token",
        "t",
    ];
    let old = format!("{}/old", other.url);
    let output = home.command(&words).args(["--url", &old]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let got = other.got();
    assert_eq!(got.len(), 2);
    assert_eq!(got[1].line, "PUT /api/v1/apps/a/kv/c/%2E HTTP/1.1");
    assert_eq!(got[1].body, "{\"n\": 10.0}");
    assert!(got[1].head.contains("authorization: bearer t"), "{got:?}");

    // One that goes round ends.
    let round = Other::start(|line| {
        let path = line.split(' ').nth(1).unwrap();
        response("308 Permanent Redirect", &format!("location: {path}"), "")
    });
    let mut list = home.command(&["apps", "list", "--token", "t"]);
    let output = list.args(["--url", &round.url]).output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(err(&output).contains("never answers"), "{}", err(&output));
}

#[test]
fn a_token_goes_to_no_other_host() {
    let elsewhere = Other::with("200 OK", "application/json", r#"{"items":[]}"#);
    let home = Home::default();
    for status in [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary",
        "308 Permanent",
    ] {
        for to in [
            format!("http://localhost:{}/api/v1/apps", elsewhere.port),
            format!("http://127.0.0.1:{}/api/v1/apps", elsewhere.port),
            format!("//127.0.0.1:{}/api/v1/apps", elsewhere.port),
        ] {
            let location = format!("location: {to}");
            let bytes = response(status, &location, "");
            let other = Other::start(move |_| bytes.clone());
            for words in [&["apps", "list"][..], &["apps", "create", "a"]] {
                let mut command = home.command(words);
                let output = command.args(["--url", &other.url, "--token", "t"]).output();
                let output = output.unwrap();
                assert_eq!(output.status.code(), Some(6), "{}", err(&output));
                assert!(err(&output).contains(&to), "{}", err(&output));
                assert_eq!(String::from_utf8_lossy(&output.stdout), "");
            }
        }
    }
    assert!(elsewhere.got().is_empty(), "{:?}", elsewhere.got());
}

fn the_dashboards_address_is_not_the_apis(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    let url = format!("{}/admin", server.url);
    for words in [
        &["dead-letters", "list", "--app", "a"][..],
        &["apps", "delete", "a", "--yes"],
        &["kv", "get", "c", "k", "--app", "a"],
    ] {
        let mut command = server.cli_command(words);
        let output = command.args(["--url", &url]).output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{words:?}: {}", err(&output));
        assert!(err(&output).contains("Leave `/admin`"), "{}", err(&output));
    }
    assert_eq!(server.api("GET", "/apps/a", None).status, 200);
}

fn a_sign_in_is_not_overwritten_by_what_is_none(engine: Engine) {
    let server = Server::start(engine);
    let home = Home::default();
    let login = |url: &str| {
        let input = format!("{}\n", server.password());
        home.run_with(&["--url", url, "login", "--password-stdin"], &input)
    };
    assert!(login(&server.url).status.success());
    let file = home.credentials();
    let kept = std::fs::read_to_string(&file).unwrap();
    for (kind, body) in [
        ("text/html", SIGN_IN),
        ("application/json", "{}"),
        ("application/json", r#"{"enabled": false}"#),
    ] {
        let other = Other::with("200 OK", kind, body);
        let output = login(&other.url);
        assert_eq!(output.status.code(), Some(6), "{}", err(&output));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), kept);
        let told = other.got();
        assert!(
            body.contains("enabled") || told.iter().all(|got| got.body.is_empty()),
            "who is no PiCloud is told no password: {told:?}"
        );
        // Nor is it lost by signing out elsewhere.
        let mut out = home.command(&["logout"]);
        let out = out.args(["--url", &other.url]).output().unwrap();
        assert_eq!(out.status.code(), Some(5), "{}", err(&out));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), kept);
    }
    assert!(home.command(&["apps", "list"]).status().unwrap().success());
}

fn the_protocol_of_an_address_is_said(engine: Engine) {
    let server = Server::start(engine);
    let said = |url: &str| {
        let mut command = server.cli_command(&["apps", "list", "--url", url]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{}", err(&output));
        err(&output)
    };
    let says = said(&server.url.replace("http://", "https://"));
    assert!(says.contains(&format!("write {}", server.url)), "{says}");
    // What TLS says to whoever does not speak it: an alert.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let alert = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 64];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(&[0x15, 3, 1, 0, 2, 2, 10, b'\r', b'\n', b'\r', b'\n']);
    });
    let says = said(&url);
    assert!(
        says.contains(&url.replace("http://", "write https://")),
        "{says}"
    );
    alert.join().unwrap();
    let says = said("http://no-such-host.invalid");
    assert!(says.contains("there is no such host"), "{says}");
}
