//! Signing in to a program by a browser that hands a code over.

use std::io::Write;
use std::process::{Child, Stdio};

use picloud_tests::provider::Browser;
use picloud_tests::{Answer, Engine, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

use super::oidc::{ann, begin};

on_both_engines!(
    somebody_signs_in_on_the_command_line,
    where_no_browser_is_the_code_is_carried_over,
    why_nobody_is_signed_in_stands_in_the_terminal,
    a_code_is_good_once_for_whoever_asked_for_it,
    codes_go_to_the_browsers_own_machine_only,
);

/// The example of RFC 7636.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// `picloud login --oidc`, on a machine where what opens pages is a program of this test.
struct Login<'s> {
    server: &'s Server,
    child: Child,
}

impl<'s> Login<'s> {
    fn begin(server: &'s Server, words: &[&str]) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let bin = server.folder().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let script = "#!/bin/sh\nexport LC_ALL=C; echo \"$1\" > opening; /bin/mv opening opened\n";
        for opener in ["xdg-open", "open"].map(|name| bin.join(name)) {
            std::fs::write(&opener, script).unwrap();
            std::fs::set_permissions(&opener, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let _ = std::fs::remove_file(server.folder().join("opened"));
        let mut command = server.cli_command(&["login", "--oidc"]);
        let stderr = std::fs::File::create(server.folder().join("told")).unwrap();
        command
            .args(words)
            .env_remove("PICLOUD_TOKEN")
            .env("PATH", bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let child = command.spawn().unwrap();
        Self { server, child }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.server.folder().join(name)).unwrap_or_default()
    }

    /// The address that it opened in a browser.
    fn opened(&self) -> String {
        let address = wait_for("the browser", || {
            let address = self.read("opened");
            (!address.is_empty()).then_some(address)
        });
        assert!(self.read("told").contains(&address), "it is told, too");
        address.trim().to_owned()
    }

    /// How it ended: its exit code and all that it said.
    fn ended(self) -> (Option<i32>, String) {
        let told = self.server.folder().join("told");
        let output = self.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = std::fs::read_to_string(told).unwrap();
        (output.status.code(), format!("{said}{told}"))
    }
}

fn location(answer: &Answer) -> String {
    assert_eq!(answer.status, 303, "{}", answer.text());
    answer.headers["location"].to_str().unwrap().to_owned()
}

/// The code on the page where somebody copies it.
fn code_on(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let page = answer.text();
    let (_, code) = page.split_once("<code>pcc_").expect("a code");
    format!("pcc_{}", code.split('<').next().unwrap())
}

/// Sign in for a program that keeps [`VERIFIER`], to the end.
fn new_code(server: &Server, browser: &mut Browser, claims: &Value) -> String {
    let begin = format!(
        "{}/api/v1/auth/oidc/login?code_challenge={CHALLENGE}",
        server.url
    );
    let callback = browser.until_callback_from(&begin, claims);
    code_on(&browser.open(&callback, None))
}

fn redeem(server: &Server, code: &str, verifier: &str) -> Answer {
    let body = json!({ "code": code, "code_verifier": verifier });
    server.post("/api/v1/auth/oidc/session", &body)
}

fn somebody_signs_in_on_the_command_line(engine: Engine) {
    let (_provider, server) = begin(engine, &[]);
    let login = Login::begin(&server, &[]);
    let mut browser = Browser::default();
    let callback = browser.until_callback_from(&login.opened(), &ann(&["ops"]));
    let back = location(&browser.open(&callback, None));
    assert!(back.starts_with("http://127.0.0.1:"), "{back}");
    // What another page sends the browser to the port with changes nothing.
    let (port, state) = (
        back.split("/?").next().unwrap(),
        back.split("state=").nth(1).unwrap(),
    );
    for odd in [
        "/favicon.ico".to_owned(),
        "/?code=other&state=other".to_owned(),
        "/?error=other&error_description=other".to_owned(),
        format!("/?state={state}"),
    ] {
        let answer = Browser::default().open(&format!("{port}{odd}"), None);
        assert_eq!(answer.status, 404, "{odd}");
    }
    let page = browser.open(&back, None);
    assert!(
        page.text().contains("Go back to the terminal"),
        "{}",
        page.text()
    );
    let (code, said) = login.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("as ann."), "{said}");
    // The command line is signed in, and the browser is not.
    assert_eq!(browser.cookie(&server, "picloud"), None);
    assert_eq!(browser.cookie(&server, "picloud-oidc"), None);
    let mut apps = server.cli_command(&["apps", "create", "hers"]);
    let made = apps.env_remove("PICLOUD_TOKEN").output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let audit = server.api("GET", "/audit?limit=3", None).json();
    let items = audit["items"].as_array().unwrap().iter();
    let acts = items.map(|item| (&item["who"], &item["action"], &item["status"]));
    let ann = json!("ann");
    let expected = [
        (&ann, &json!("POST /apps"), &json!(201)),
        (&ann, &json!("POST /auth/oidc/session"), &json!(200)),
        (&ann, &json!("GET /auth/oidc/callback"), &json!(303)),
    ];
    assert_eq!(acts.collect::<Vec<_>>(), expected);
    // A code that was used is worth nothing, whoever saw it.
    let used = back.split("code=").nth(1).unwrap();
    let used = used.split('&').next().unwrap();
    assert_eq!(redeem(&server, used, VERIFIER).problem(), "dead_code");
}

fn where_no_browser_is_the_code_is_carried_over(engine: Engine) {
    let (_provider, server) = begin(engine, &[]);
    let mut login = Login::begin(&server, &["--no-browser"]);
    let page = wait_for("the address", || {
        let told = login.read("told");
        let (before, _) = told.split_once("\nThe code: ")?;
        Some(before.split_whitespace().last()?.to_owned())
    });
    let mut browser = Browser::default();
    let callback = browser.until_callback_from(&page, &ann(&[]));
    let shown = browser.open(&callback, None);
    assert!(shown.text().contains("<b>ann</b>"), "{}", shown.text());
    assert_eq!(shown.headers["cache-control"], "no-store");
    let stdin = login.child.stdin.as_mut().unwrap();
    writeln!(stdin, " {} ", code_on(&shown)).unwrap();
    let (code, said) = login.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("as ann."), "{said}");
    assert!(!server.folder().join("opened").exists());
    // A part of a code is told from a dead one.
    let mut login = Login::begin(&server, &["--no-browser"]);
    let stdin = login.child.stdin.as_mut().unwrap();
    writeln!(stdin, "pcc_123").unwrap();
    let (code, said) = login.ended();
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("copy all of it"), "{said}");
}

fn why_nobody_is_signed_in_stands_in_the_terminal(engine: Engine) {
    let (_provider, server) = begin(engine, &[("PICLOUD_OIDC_CREATE_USERS", "false")]);
    let refused = |change: fn(&str) -> String, words: &str| {
        let login = Login::begin(&server, &[]);
        let mut browser = Browser::default();
        let callback = browser.until_callback_from(&login.opened(), &ann(&[]));
        let back = location(&browser.open(&change(&callback), None));
        let page = browser.open(&back, None);
        assert!(page.text().contains("the terminal says why"));
        let (code, said) = login.ended();
        assert_eq!(code, Some(5), "{said}");
        assert!(said.contains(words), "{said}");
    };
    // Nobody of theirs is known, and the provider says no.
    refused(str::to_owned, "nobody here is known as you");
    let audit = server.api("GET", "/audit?limit=1", None).json();
    let told = (&audit["items"][0]["status"], &audit["items"][0]["who"]);
    assert_eq!(told, (&json!(403), &json!("")));
    refused(
        |callback| callback.replace("code=", "error=access_denied&cod="),
        "access_denied",
    );
    // Nobody comes.
    let (code, said) = Login::begin(&server, &["--timeout-s", "1"]).ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nobody signed in within 1 s"), "{said}");
    // There is no provider, or the words make no sense.
    let without = Server::start(engine);
    let (code, said) = Login::begin(&without, &[]).ended();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("no OpenID provider"), "{said}");
    for words in [&["--user", "ada"][..], &["--password-stdin"]] {
        assert_eq!(Login::begin(&server, words).ended().0, Some(2), "{words:?}");
    }
    let alone = server.cli(&["login", "--no-browser"]);
    assert_eq!(alone.status.code(), Some(2));
}

fn a_code_is_good_once_for_whoever_asked_for_it(engine: Engine) {
    let (_provider, server) = begin(engine, &[]);
    let mut browser = Browser::default();
    let code = new_code(&server, &mut browser, &ann(&["ops"]));
    // Good for nothing but this.
    assert_eq!(server.api_as(&code, "GET", "/auth/me", None).status, 401);
    assert_eq!(
        redeem(&server, &code[..20], VERIFIER).json()["field"],
        "code"
    );
    let session = redeem(&server, &code, VERIFIER);
    assert_eq!(session.status, 200, "{}", session.text());
    let session = session.json();
    assert_eq!(session["user"]["name"], "ann");
    let token = session["token"].as_str().unwrap();
    let me = server.api_as(token, "GET", "/auth/me", None).json();
    assert_eq!((&me["name"], &me["role"]), (&json!("ann"), &json!("admin")));
    assert_eq!(redeem(&server, &code, VERIFIER).problem(), "dead_code");
    // A wrong verifier uses it up.
    let code = new_code(&server, &mut browser, &ann(&["ops"]));
    for wrong in [CHALLENGE, VERIFIER] {
        assert_eq!(redeem(&server, &code, wrong).problem(), "dead_code");
    }
    // Who is disabled meanwhile is not let in.
    let code = new_code(&server, &mut browser, &ann(&["ops"]));
    let path = format!("/users/{}", me["id"].as_str().unwrap());
    let set = |disabled: bool| {
        let set = server.api("PATCH", &path, Some(json!({ "disabled": disabled })));
        assert_eq!(set.status, 200, "{}", set.text());
    };
    set(true);
    assert_eq!(
        redeem(&server, &code, VERIFIER).problem(),
        "oidc_not_allowed"
    );
    set(false);
    // It ends, used or not.
    let code = new_code(&server, &mut browser, &ann(&["ops"]));
    server.sql("update sign_in_codes set expires_at = created_at");
    assert_eq!(redeem(&server, &code, VERIFIER).problem(), "dead_code");
    let log = server.log();
    assert!(
        !log.contains(&code) && !log.contains(token),
        "i12: neither is logged"
    );
}

fn codes_go_to_the_browsers_own_machine_only(engine: Engine) {
    let (_provider, server) = begin(engine, &[]);
    let ours = format!("code_challenge={CHALLENGE}");
    for (query, field) in [
        (format!("{ours}&port=1@evil.test"), "port"),
        (format!("{ours}&port=80.evil.test"), "port"),
        (format!("{ours}&port=0"), "port"),
        (format!("{ours}&port=65536"), "port"),
        (
            format!("{ours}&redirect_uri=http://evil.test"),
            "redirect_uri",
        ),
        (format!("{ours}&return_to=/admin"), "return_to"),
        ("port=4711".to_owned(), "code_challenge"),
        ("code_challenge=x".to_owned(), "code_challenge"),
        (format!("{ours}A"), "code_challenge"),
    ] {
        let answer = server.get(&format!("/api/v1/auth/oidc/login?{query}"));
        let field = json!(field);
        assert_eq!(
            (answer.status, &answer.json()["field"]),
            (422, &field),
            "{query}"
        );
    }
    // Nor does a cookie that somebody made lead anywhere else.
    let mut browser = Browser::default();
    let begin = format!("{}/api/v1/auth/oidc/login?{ours}&port=4711", server.url);
    let callback = browser.until_callback_from(&begin, &ann(&[]));
    let back = location(&browser.clone().open(&callback, None));
    assert!(
        back.starts_with("http://127.0.0.1:4711/?code=pcc_"),
        "{back}"
    );
    let kept = browser.cookie(&server, "picloud-oidc").unwrap();
    let path = callback.strip_prefix(&server.url).unwrap();
    let forged = format!("picloud-oidc={}x", kept);
    let answer = server.call("GET", path, &[("cookie", forged.as_str())], None);
    assert_eq!(answer.problem(), "oidc_not_begun");
}
