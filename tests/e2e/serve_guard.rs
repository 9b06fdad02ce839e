//! Who is refused by `forge serve`, and how.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::project::Project;
use crate::serve::{Reply, Server, config};

const TOKEN: &str = "a-token-of-this-test";

#[test]
fn strangers_and_other_sites_are_refused() {
    let project = Project::new();
    let server = Server::with_token(&project, &[], Some(TOKEN));
    let id = server.create(config(1));
    let path = format!("/api/v1/experiments/{id}");
    let status = |method: &str, path: &str, headers: &[(&str, &str)]| {
        server.ask(method, path, headers, "").status
    };

    assert_eq!(status("GET", &path, &[]), 200);
    for header in
        [("authorization", "Bearer wrong"), ("authorization", TOKEN), ("cookie", "forge_session=x")]
    {
        let reply = server.ask("GET", &path, &[header], "");
        assert_eq!(
            (reply.status, reply.header("www-authenticate").is_some()),
            (401, true),
            "{header:?}"
        );
        assert!(!reply.body.contains(TOKEN));
    }
    let page = server.ask("GET", "/experiments", &[("cookie", "a=b")], "");
    assert_eq!((page.status, page.header("location")), (303, Some("/login")));
    // What balancers ask needs no token.
    assert_eq!(status("GET", "/health", &[("cookie", "a=b")]), 200);

    let form = [("content-type", "application/x-www-form-urlencoded"), ("cookie", "a=b")];
    let wrong = server.ask("POST", "/login", &form, "token=no");
    assert!(wrong.status == 401 && wrong.body.contains("not the token"), "{}", wrong.body);
    let right = server.ask("POST", "/login", &form, &format!("token={TOKEN}"));
    let cookie = right.header("set-cookie").unwrap().to_owned();
    assert!(
        cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Strict")
            && !cookie.contains(TOKEN)
    );
    let session = cookie.split(';').next().unwrap();
    assert_eq!(status("GET", "/experiments", &[("cookie", session)]), 200);

    // A page of another site makes the browser ask, cookie and all.
    let run = format!("{path}/run");
    let evil = [("cookie", session), ("origin", "http://evil.example")];
    assert_eq!(status("POST", &run, &evil), 403);
    assert_eq!(
        status("DELETE", &path, &[("cookie", session), ("sec-fetch-site", "cross-site")]),
        403
    );
    let post = [("cookie", session), ("content-type", "application/x-www-form-urlencoded")];
    let forged = server.ask("POST", &format!("/experiments/{id}/run"), &post, "form=guess");
    assert_eq!(forged.status, 403, "{}", forged.body);

    // A name of somebody else that leads here.
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example"] {
        assert_eq!(status("GET", &path, &[("host", host)]), 421, "{host}");
    }
    for path in [
        "/static/../../Cargo.toml",
        "/static/%2e%2e%2fmod.rs",
        "/static/..%5cmod.rs",
        "/../etc/passwd",
    ] {
        assert_eq!(status("GET", path, &[]), 404, "{path}");
    }
    // A line break in what a client sends comes back in no header.
    let split = server.ask(
        "GET",
        "/experiments?name=%0d%0aSet-Cookie:%20a=b",
        &[("x-request-id", "a b\tc")],
        "",
    );
    assert!(split.status == 200 && split.header("set-cookie").is_none());
    assert_ne!(split.header("x-request-id"), Some("a b\tc"));
    let two = server.raw(
        "GET / HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    );
    assert_eq!(two.status, 421);
    for name in
        ["content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy"]
    {
        assert!(split.header(name).is_some(), "{name}");
    }
    assert!(!split.header("content-security-policy").unwrap().contains("unsafe"));

    // A client that never ends its request holds nobody up.
    let mut idle = TcpStream::connect(&server.address).unwrap();
    idle.write_all(b"GET / HT").unwrap();
    assert_eq!(status("GET", "/health", &[]), 200);
}

#[test]
fn what_is_too_large_is_refused_in_our_own_words() {
    let project = Project::new();
    let mut command = project.command(&["serve", "--listen", "127.0.0.1:0", "--json"]);
    command.env_remove("FORGE_TOKEN").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().to_owned();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut logged = || -> Value { serde_json::from_str(&log.next().unwrap().unwrap()).unwrap() };
    let server = Server { child, address, token: None };
    let long = "x".repeat(9000);
    let many: Vec<(String, String)> =
        (0..300).map(|i| (format!("x-{i}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let large = [("x-a", long.as_str()); 4];
    for (path, headers, status) in [
        (format!("/api/v1/experiments?name={long}"), &[][..], 414),
        (format!("/api/v1/{}", "x".repeat(60_000)), &[][..], 414),
        ("/api/v1/experiments".to_owned(), &large[..], 431),
        ("/api/v1/experiments".to_owned(), &many[..], 431),
    ] {
        let reply = server.ask("GET", &path, headers, "");
        let body = reply.json();
        assert_eq!(
            (reply.status, &body["status_code"]),
            (status, &json!(status)),
            "{}",
            reply.head
        );
        assert_eq!(body["request_id"].as_str(), reply.header("x-request-id"));
        assert!(reply.header("content-security-policy").is_some(), "{}", reply.head);
        let line = logged();
        assert_eq!((&line["status"], &line["request_id"]), (&json!(status), &body["request_id"]));
        assert!(line["path"].as_str().unwrap().len() <= 256, "{line}");
    }
    // People get a page.
    let page = server.get(&format!("/experiments?name={long}"));
    assert!(page.status == 414 && page.body.contains("<h1"), "{}", page.body);
    logged();
    // What is no HTTP has no request that could have an id; that somebody tried is in the log.
    assert_eq!(server.raw("nonsense\r\n\r\n").status, 400);
    assert_eq!(logged()["status"], 400);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn who_asks_too_often_waits() {
    let project = Project::new();
    // On a busy machine a request may take as long as the next one has to wait: then many of them are sent, together.
    let server = Server::start(&project, &["--rate", "1"]);
    let ask = || server.get("/api/v1/experiments");
    let together = || -> Vec<Reply> {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    let start = Instant::now();
    let late = loop {
        if let Some(late) = together().into_iter().find(|reply| reply.status == 429) {
            break late;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "nobody was refused");
    };
    let seconds: u64 = late.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&seconds) && late.json()["error"] == true);
}

#[test]
fn a_default_engine_that_is_none_is_refused_at_the_start() {
    let project = Project::new();
    let ran = project.forge(&["serve", "--listen", "127.0.0.1:0", "--engine", "gpt"]);
    assert!(ran.code == 2 && ran.stderr.contains("known: engine"), "{}", ran.stderr);
}

#[test]
fn elsewhere_a_token_is_asked_for() {
    let project = Project::new();
    let mut command = project.command(&["serve", "--listen", "0.0.0.0:0"]);
    command.env_remove("FORGE_TOKEN").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let token = said.by_ref().nth(1).unwrap().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim().rsplit(':').next().unwrap().to_owned();
    let server = Server { child, address: format!("127.0.0.1:{port}"), token: None };
    assert_eq!(server.get("/api/v1/experiments").status, 401);
    let bearer = format!("Bearer {token}");
    assert_eq!(
        server.ask("GET", "/api/v1/experiments", &[("authorization", &bearer)], "").status,
        200
    );
}
