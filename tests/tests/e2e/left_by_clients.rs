//! What goes on when the client that asked for it has left.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use picloud_tests::{App, Engine, Options, Proxy, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    an_execution_whose_client_leaves_is_seen_through_and_kept,
    an_execution_whose_client_left_has_the_grace_time_of_a_stop,
);

/// Room for one execution.
fn narrow() -> Options {
    Options {
        environment: vec![("PICLOUD_EXECUTIONS_MAX", "1".to_owned())],
        ..Options::default()
    }
}

/// Have a script run, and leave once it does: when it has written `begun`.
fn run_and_leave(app: &App<'_>, script: &str) {
    let server = app.server;
    let before = server.metric("picloud_connections");
    let address = server.url.trim_start_matches("http://");
    let mut client = TcpStream::connect(address).unwrap();
    let request = format!(
        "POST /api/v1/scripts/{script}/execute HTTP/1.1\r\nhost: {address}\r\n\
         authorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}",
        server.token
    );
    client.write_all(request.as_bytes()).unwrap();
    wait_for("the script to run", || {
        (app.kv("state", "begun") == true).then_some(())
    });
    drop(client);
    wait_for("the server to notice", || {
        (server.metric("picloud_connections") <= before).then_some(())
    });
}

fn executed(app: &App<'_>) -> Vec<Value> {
    let all = app.executions("limit=50").into_iter();
    all.filter(|one| one["invocation_type"] == "execute")
        .collect()
}

fn an_execution_whose_client_leaves_is_seen_through_and_kept(engine: Engine) {
    let server = Server::start_with(engine, narrow());
    let app = server.app("shop");
    let waits = app.script(
        "waits",
        r#"let state = kv::collection("state"); log::info("it runs"); state.set("begun", true);
           while state.get("open") == () { sleep(0.02) } log::info("it ends"); 7"#,
    );
    app.serve("quick", "1");
    run_and_leave(&app, &waits);
    // Its guest goes on, and so its place at the gate is taken.
    for _ in 0..20 {
        let answer = server.get("/quick");
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    assert_eq!(executed(&app), [] as [Value; 0]);
    app.set("state", "open", json!(true));
    let kept = wait_for("the execution", || executed(&app).pop());
    assert_eq!(kept["outcome"], "answered", "{kept}");
    let id = kept["id"].as_str().unwrap();
    let whole = server.api("GET", &format!("/executions/{id}"), None).json();
    let said = whole["logs"].as_array().into_iter().flatten();
    let said: Vec<&Value> = said.map(|line| &line["message"]).collect();
    assert_eq!(said, ["it runs", "it ends"], "{whole}");
    assert_eq!(executed(&app).len(), 1);
    wait_for("the place at the gate", || {
        (server.get("/quick").status == 200).then_some(())
    });
    let acts = server
        .api("GET", "/audit?action=POST%20/scripts/{id}/execute", None)
        .json();
    assert_eq!(acts["items"].as_array().map(Vec::len), Some(1), "{acts}");
}

fn an_execution_whose_client_left_has_the_grace_time_of_a_stop(engine: Engine) {
    let mut server = Server::start_with(engine, narrow());
    let app = server.app("shop");
    let source = r#"kv::collection("state").set("begun", true); sleep(1.2); 7"#;
    let slow = app.script("slow", source);
    run_and_leave(&app, &slow);
    server.stop();
    server.launch();
    let kept = executed(&server.known_app("shop"));
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["outcome"], "answered", "{kept:?}");
}

#[test]
fn an_execution_is_kept_when_the_database_is_away_for_a_moment() {
    let proxy = Proxy::start();
    let options = Options {
        postgres_through: Some(proxy.port),
        ..Options::default()
    };
    let server = Server::start_with(Engine::Postgres, options);
    let app = server.app("shop");
    let source = r#"kv::collection("state").set("begun", true); sleep(0.5); 7"#;
    let script = app.script("slow", source);
    let path = format!("/scripts/{script}/execute");
    let answer = std::thread::scope(|scope| {
        let call = scope.spawn(|| server.api("POST", &path, Some(json!({}))));
        wait_for("the script to run", || {
            (app.kv("state", "begun") == true).then_some(())
        });
        proxy.cut();
        let cut_at = Instant::now();
        wait_for("it to be away when the script ends", || {
            let is_known = server.get("/readyz").status == 503;
            (is_known && cut_at.elapsed() > Duration::from_secs(1)).then_some(())
        });
        proxy.mend();
        call.join().unwrap()
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let kept = executed(&app);
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["id"], answer.json()["execution_id"]);
}
