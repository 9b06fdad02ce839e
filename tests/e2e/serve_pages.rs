//! The pages of `forge serve`.

use serde_json::json;

use crate::browser::{Browser, ENTER};
use crate::project::{Project, REPLIES};
use crate::serve::{Server, config};

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

/// What a person sees, without a mouse: an experiment is made, corrected, run, watched, read, and run again.
#[test]
fn a_browser_goes_through_the_whole_story_by_keyboard() {
    let Some(browser) = Browser::start() else { return };
    let project = Project::with("", "latency = \"20ms\"\nreplies = [{ reply = \"1\" }]");
    project.rows(40);
    let server = Server::start(&project, &[]);
    let home = format!("http://{}", server.address);
    browser.open(&format!("{home}/experiments/new"));
    let focus = |id: &str| {
        browser.run(&format!("const e = document.getElementById('{id}'); e.focus(); e.select?.()"))
    };
    let fill = |id: &str, text: &str| {
        focus(id);
        browser.typed(text);
    };
    fill("name", "by keyboard");
    fill("num_samples", "900");
    focus("enable_caching");
    browser.keys(&[" "]);
    focus("num_samples");
    browser.keys(&[ENTER]);
    browser.wait_until("document.querySelector('[role=alert]')");
    // What was typed is still there, and the field in error says so.
    assert_eq!(browser.text("document.getElementById('name').value"), "by keyboard");
    assert_eq!(
        browser.text("document.getElementById('num_samples').getAttribute('aria-invalid')"),
        "true"
    );
    assert_eq!(browser.value("document.getElementById('enable_caching').checked"), true);
    fill("num_samples", "40");
    browser.run("document.querySelector('button[value=run]').focus()");
    browser.keys(&[ENTER]);
    browser.wait_until("document.querySelector('h1')?.textContent === 'by keyboard'");
    browser.wait_until("document.getElementById('bar')?.value > 0");
    browser.wait_until("document.querySelectorAll('#latest tr').length > 2");
    browser.wait_until("document.querySelector('.status').textContent === 'completed'");
    let fact = |name: &str| {
        let find = "[...document.querySelectorAll('dt')].find(e => e.textContent === ";
        browser.text(&format!("{find}'{name}').nextElementSibling.textContent"))
    };
    assert_eq!(fact("Cache Hit Rate"), "0.0 %");
    let address = browser.text("location.href");
    browser.run("document.querySelector('.actions .primary').focus()");
    browser.keys(&[ENTER]);
    let again =
        "[...document.querySelectorAll('dt')].find(e => e.textContent === 'Cache Hit Rate')";
    browser.wait_until(&format!("{again}?.nextElementSibling.textContent === '100.0 %'"));

    // On a phone nothing is wider than the page, in light and dark.
    let sample = format!("{address}/samples/0");
    for (path, dark) in [(address.as_str(), true), (sample.as_str(), false), (home.as_str(), true)]
    {
        browser.view(390, 800, dark);
        browser.open(path);
        let wide = browser.value("document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(wide <= 390, "{path} is {wide} wide");
    }
}
