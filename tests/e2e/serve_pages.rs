//! The pages of `forge serve`.

use serde_json::json;

use crate::browser::Browser;
use crate::project::{Project, REPLIES};
use crate::serve::{Server, cached, config};
use crate::story::{Story, whole_story};

#[test]
fn pages_say_everything_as_text() {
    const EVIL: &str = "<script>alert(1)</script>";
    let project = Project::with("", &format!("replies = [{{ reply = \"{EVIL}\" }}]"));
    let server = Server::start(&project, &[]);
    let body = json!({ "name": EVIL, "description": format!("\"'>{EVIL}"), "config": config(3) });
    let reply = server.post("/experiments", &body);
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(server.run(&id).status, 200);
    server.wait(&id, "completed");
    let other = server.complete(config(3));
    for path in [
        "/".to_owned(),
        "/experiments".to_owned(),
        format!("/experiments?name={}", "%3Cscript%3E"),
        "/experiments/new".to_owned(),
        format!("/experiments/new?from={id}"),
        format!("/experiments/{id}"),
        format!("/experiments/{id}/samples/1"),
        format!("/compare?experiment_ids={id}&experiment_ids={other}"),
        "/docs".to_owned(),
        "/runs".to_owned(),
        format!("/runs/{}", server.last_run()),
        format!("/runs/{}/samples/1?stage=ask", server.last_run()),
        format!("/experiments/{id}?q=%3Cscript%3E&correct=false"),
    ] {
        let page = server.get(&path);
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        assert!(
            !page.body.contains(EVIL) && !page.body.contains("style="),
            "{path}: {}",
            page.body
        );
        assert!(page.body.contains("<main"), "{path}");
    }
    let sample = server.get(&format!("/experiments/{id}/samples/1"));
    assert!(sample.body.contains("&lt;script&gt;alert(1)&lt;"), "{}", sample.body);
    assert_eq!(server.get("/nothing").status, 404);
    assert!(server.get("/nothing").body.contains("<h1>404"));
    for file in ["style.css", "live.js"] {
        assert_eq!(server.get(&format!("/static/{file}")).status, 200);
    }
}

#[test]
fn a_form_keeps_what_was_typed_and_says_what_is_wrong() {
    let project = Project::with("", REPLIES);
    let server = Server::start(&project, &[]);
    let empty = server.get("/experiments/new").body;
    let (_, rest) = empty.split_once("name=\"form\" value=\"").unwrap();
    let form = rest.split('"').next().unwrap();
    let fields = "name=mine&model_name=engine&dataset_name=rows&reasoning_method=cot&temperature=0";
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    let wrong =
        server.ask("POST", "/experiments", &kind, &format!("form={form}&{fields}&num_samples=900"));
    assert_eq!(wrong.status, 422);
    assert!(
        wrong.body.contains("value=\"mine\"") && wrong.body.contains("value=\"900\""),
        "{}",
        wrong.body
    );
    assert!(
        wrong.body.contains("href=\"#num_samples\"")
            && wrong.body.contains("aria-invalid=\"true\"")
    );
    let right = format!(
        "form={form}&{fields}&num_samples=4&then=run&enable_profiling=true&enable_caching=true&cache_max_size=64"
    );
    let made = server.ask("POST", "/experiments", &kind, &right);
    let path = made.header("location").unwrap().to_owned();
    let id = path.rsplit('/').next().unwrap();
    let one = server.wait(id, "completed");
    assert_eq!(one["config"]["optimization"]["cache_max_size"], 64);
    let page = server.get(&path).body;
    assert!(page.contains("Optimization Profile") && page.contains("Cache Hit Rate"), "{page}");
}

#[test]
fn a_profile_says_how_fast_live_requests_were_and_that_remembered_ones_were_not() {
    let upstream = crate::server::Server::start(crate::server::right);
    let project = Project::asking("", &upstream.engine(""));
    let server = Server::start(&project, &[]);
    let id = server.complete(cached(10));
    let profile = server.api(&format!("/results/{id}/profile"));
    let (phase, speed) = (&profile["profiling_summary"]["api_call"], &profile["speed"]);
    assert_eq!((&speed["requests"], &speed["ttft"]["count"]), (&json!(10), &json!(10)), "{speed}");
    for times in [phase, &speed["ttft"], &speed["e2e"]] {
        let points = ["p50_ms", "p90_ms", "p95_ms", "p99_ms"].map(|at| times[at].as_f64().unwrap());
        assert!(points[0] > 0.0 && points.is_sorted(), "{times}");
    }
    assert!(speed["requests_per_s"].as_f64().unwrap() > 0.0, "{speed}");
    assert_eq!(speed["timeline"]["mean"].as_array().unwrap().len(), 120);

    let page = server.get(&format!("/experiments/{id}"));
    // Nothing in it needs more than this.
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("script-src 'self'; style-src 'self'")
    );
    assert!(!page.body.contains(" style=") && !page.body.contains("<script>"), "{}", page.body);
    let (_, shown) = page.body.split_once("Speed of live requests").unwrap();
    let peak = &speed["concurrency_peak"];
    for part in [
        "<dt>live requests</dt><dd>10</dd>".to_owned(),
        format!("<dt>peak</dt><dd>{peak}</dd>"),
        format!("on average, {peak} at most"),
        "<svg class=\"timeline\"".to_owned(),
        "<th scope=\"row\">time to first token</th><td>TTFT</td><td class=\"n\">10</td>".to_owned(),
        "fewer than 1,000 values".to_owned(),
    ] {
        assert!(shown.contains(&part), "no `{part}` in {shown}");
    }
    // Of ten values no 99th percentile is without its mark.
    assert!(page.body.contains(" few\">") && shown.contains(" *</td>"), "{shown}");

    assert_eq!(server.run(&id).status, 200);
    server.wait(&id, "completed");
    let speed = server.api(&format!("/results/{id}/profile"))["speed"].clone();
    assert_eq!((&speed["requests"], &speed["ttft"]), (&json!(0), &json!(null)), "{speed}");
    let page = server.get(&format!("/experiments/{id}")).body;
    assert!(page.contains("No request was answered live") && !page.contains("timeline"), "{page}");

    // Who does not stream has seen no token come.
    let project = Project::new();
    let server = Server::start(&project, &[]);
    let id = server.complete(config(5));
    let speed = server.api(&format!("/results/{id}/profile"))["speed"].clone();
    assert_eq!((&speed["e2e"]["count"], &speed["ttft"]), (&json!(5), &json!(null)), "{speed}");
    let page = server.get(&format!("/experiments/{id}")).body;
    let absent = "<td>TTFT</td><td class=\"n\">–</td><td class=\"n\">–</td>";
    assert!(page.contains(absent) && page.contains("was not measured"), "{page}");
}

#[test]
fn a_browser_goes_through_the_whole_story_by_keyboard() {
    let Some(browser) = Browser::start() else { return };
    let project = Project::with("", "latency = \"50ms\"\nreplies = [{ reply = \"1\" }]");
    project.rows(500);
    let server = Server::start(&project, &[]);
    let home = format!("http://{}", server.address);
    let story =
        Story { home: &home, model: "engine", data_set: "rows", samples: 40, long: ("rows", 500) };
    whole_story(&browser, &story);
}

/// Every page at the widths of a desktop and a phone, in light and dark: nothing is wider than the window.
#[test]
fn pages_fit_a_phone_in_the_light_and_in_the_dark() {
    let Some(browser) = Browser::start() else { return };
    let project = Project::new();
    project.write("pipelines/broken.toml", "[stage.x]\nkind = \"workflw\"\n");
    let server = Server::start(&project, &[]);
    let home = format!("http://{}", server.address);
    let (id, other) = (server.complete(cached(10)), server.complete(config(10)));
    // A warning, too.
    let short = server.complete(config(50));
    let job = server.post("/jobs", &json!({ "manifest": "pipelines/bench.toml" })).json();
    let run =
        server.job(job["id"].as_str().unwrap(), "completed")["run_id"].as_str().unwrap().to_owned();
    // That of the experiment before it.
    let first = server.api("/runs")["runs"][1]["run_id"].as_str().unwrap().to_owned();
    let pages = [
        ("dashboard", "/".to_owned()),
        ("experiments", "/experiments".to_owned()),
        ("new", "/experiments/new".to_owned()),
        ("experiment", format!("/experiments/{id}")),
        ("short", format!("/experiments/{short}")),
        ("sample", format!("/experiments/{id}/samples/3")),
        ("compare", format!("/compare?experiment_ids={id}&experiment_ids={other}")),
        ("manifests", "/manifests".to_owned()),
        ("manifest", "/manifests/pipelines/bench.toml".to_owned()),
        ("broken", "/manifests/pipelines/broken.toml".to_owned()),
        ("runs", "/runs".to_owned()),
        ("run", format!("/runs/{run}")),
        ("diff", format!("/runs/compare?a={first}&b={run}")),
        ("docs", "/docs".to_owned()),
        ("nothing", "/nothing".to_owned()),
    ];
    let shots = std::env::var_os("FORGE_SCREENSHOTS").map(std::path::PathBuf::from);
    for (width, height, dark) in
        [(1280, 800, false), (1280, 800, true), (390, 844, false), (390, 844, true)]
    {
        browser.view(width, height, dark);
        for (name, path) in &pages {
            browser.open(&format!("{home}{path}"));
            let wide = browser.value("document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(wide <= u64::from(width), "{path} is {wide} wide at {width}");
            if let Some(folder) = &shots {
                let colour = if dark { "dark" } else { "light" };
                let file = folder.join(format!("{name}-{width}-{colour}.png"));
                std::fs::write(file, browser.screenshot(true)).unwrap();
            }
        }
    }
}
