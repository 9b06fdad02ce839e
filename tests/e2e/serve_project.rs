//! Manifests of the project and runs of the store, by way of `forge serve`; experiments by way of the command line.

use serde_json::{Value, json};

use crate::project::Project;
use crate::serve::{Server, cached, config, slow};

const MANIFEST: &str = "pipelines/bench.toml";
const LOCK: &str = "pipelines/bench.lock";

#[test]
fn a_manifest_is_run_as_apply_runs_it() {
    let project = Project::new();
    let server = Server::start(&project, &[]);
    let all = server.api("/manifests");
    assert_eq!(all["manifests"][0]["path"], MANIFEST, "{all}");
    let one = server.api(&format!("/manifests/{MANIFEST}"));
    assert_eq!(one["params"], json!({ "num_flows": 10 }));
    assert_eq!(one["toml"], project.read(MANIFEST));
    let job = server.post("/jobs", &json!({ "manifest": MANIFEST, "params": { "num_flows": 6 } }));
    assert_eq!(job.status, 201, "{}", job.body);
    let id = job.json()["id"].as_str().unwrap().to_owned();
    let done = server.job(&id, "completed");
    let run = done["run_id"].as_str().unwrap();
    // With other parameters it is no result to commit.
    assert!(!project.path(LOCK).exists());
    // It is no experiment.
    assert_eq!(server.api("/experiments")["total"], 0);
    assert_eq!(server.get(&format!("/api/v1/experiments/{id}")).status, 404);

    let record = server.api(&format!("/runs/{run}"));
    assert_eq!((&record["manifest"], &record["status"]), (&json!(MANIFEST), &json!("completed")));
    assert_eq!(record["about"]["params"]["num_flows"], 6);
    let samples = server.api(&format!("/runs/{run}/samples"));
    assert_eq!((&samples["total"], &samples["complete"]), (&json!(6), &json!(true)));
    // Its report was written, and the server has it: for nobody's origin.
    assert!(project.path("out/bench/report/report.html").exists());
    let report = server.get(&format!("/api/v1/runs/{run}/report"));
    assert!(report.header("content-security-policy").unwrap().starts_with("sandbox "));
    assert_eq!(report.body, project.read("out/bench/report/report.html"));

    // What the command line runs, the server shows; and what the server ran, the command line finds.
    let ran = project.ok(&["--set", "num_flows=6"]);
    assert_eq!(ran.live(), 0);
    let ran = project.ok(&[]);
    assert_eq!(ran.live(), 4);
    let list = server.api("/runs");
    assert_eq!((&list["total"], &list["runs"][0]["samples"]), (&json!(3), &json!(10)), "{list}");
    assert_eq!(list["runs"][0]["workflows"][0]["accuracy"], 0.5);
    // The report of a run of another process, made since the server has read the store.
    let theirs = server.last_run();
    assert_eq!(server.get(&format!("/api/v1/runs/{theirs}/report")).status, 200);
    assert_eq!(project.forge(&["show", run, "--json"]).code, 0);
    let events = server.listen(&format!("/runs/{run}/events"), None, usize::MAX);
    assert_eq!(events.iter().filter(|(_, name, _)| name == "sample").count(), 6);
    assert_eq!(events.last().unwrap().1, "done");
}

#[test]
fn a_manifest_that_is_run_has_its_lock_file() {
    let project = Project::new();
    let run = |server: &Server| {
        let job = server.post("/jobs", &json!({ "manifest": MANIFEST })).json();
        server.job(job["id"].as_str().unwrap(), "completed");
    };
    let server = Server::start(&project, &["--no-locks"]);
    run(&server);
    assert!(!project.path(LOCK).exists());
    drop(server);
    let server = Server::start(&project, &[]);
    run(&server);
    let locked = project.read(LOCK);
    assert!(locked.contains("samples = 10") && locked.contains("result = "), "{locked}");
    // The command has nothing to add.
    project.ok(&[]);
    assert_eq!(project.read(LOCK), locked);
    // An experiment leaves no file.
    server.complete(config(3));
    let files = std::fs::read_dir(project.path("pipelines")).unwrap().count();
    assert_eq!(files, 2);
}

#[test]
fn two_runs_are_compared_as_diff_compares_them() {
    let evil = "<script>alert(1)</script>";
    let replies = |seven: &str| {
        format!(
            "replies = [{{ when = \"What is 7 \", reply = \"{seven}\" }}, {{ when = \"What is 8 \", reply = \"8\" }}, \
             {{ reply = \"1\" }}]"
        )
    };
    let project = Project::with("", &replies("7"));
    let server = Server::start(&project, &[]);
    let job = server.post("/jobs", &json!({ "manifest": MANIFEST })).json();
    let a = server.job(job["id"].as_str().unwrap(), "completed");
    let a = a["run_id"].as_str().unwrap().to_owned();
    project.manifest("", &replies(evil));
    project.ok(&[]);
    let b = server.last_run();
    assert_ne!(a, b);

    let diff = server.api(&format!("/runs/compare?a={a}&b={b}&limit=10"));
    let said = project.forge(&["diff", &a, &b, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap(), diff);
    let cell = &diff["cells"][0];
    assert_eq!(
        (&cell["lost"]["count"], &cell["gained"]["count"]),
        (&json!(1), &json!(0)),
        "{cell}"
    );
    assert_eq!(cell["lost"]["rows"][0]["b"][0]["answer"], evil);
    assert_eq!(
        server.api(&format!("/runs/compare?a={a}&b={b}&limit=0"))["cells"][0]["lost"]["rows"],
        json!([])
    );

    let status = |query: &str| server.get(&format!("/api/v1/runs/compare?{query}")).status;
    let none = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    assert_eq!(status(&format!("a={a}&b={none}")), 404);
    // Names that `forge diff` knows beside runs are files and commits: those are no client's business.
    for name in ["last", "HEAD", "../x.lock"] {
        assert_eq!(status(&format!("a={a}&b={name}")), 404, "{name}");
    }
    for query in ["pair_by=odd", "limit=1001", "cluster=no-such-tag"] {
        assert_eq!(status(&format!("a={a}&b={b}&{query}")), 422, "{query}");
    }
    assert_eq!(status(&format!("a={a}")), 422);

    // The page says the same in words, and what a model says is text.
    let page = |query: &str| {
        let reply = server.get(&format!("/runs/compare?{query}"));
        assert_eq!(reply.status, 200, "{query}: {}", reply.body);
        reply.body
    };
    // Chosen in the list, newest first: what was there before is `a` all the same.
    let body = page(&format!("run={b}&run={a}"));
    assert!(body.contains("right in a, not in b: 1") && body.contains("What is 7 "), "{body}");
    assert!(!body.contains(evil) && body.contains("&lt;script&gt;alert"), "{body}");
    assert_eq!(body, page(&format!("a={a}&b={b}")));
    assert!(page(&format!("a={b}&b={a}")).contains("right in b, not in a: 1"));
    assert!(page(&format!("a={b}&b={b}")).contains("the same samples on both sides"));
    let three = page(&format!("run={a}&run={b}&run={b}"));
    assert!(three.contains("3 runs were chosen") && !three.contains("Stages"), "{three}");
    // To one the other of its manifest is proposed.
    let one = page(&format!("run={b}"));
    for id in [&a, &b] {
        assert!(one.contains(&format!("value=\"{id}\" selected")), "{one}");
    }
    let untagged = page(&format!("a={a}&b={b}&cluster=no-such-tag"));
    assert!(untagged.contains("role=\"alert\"") && !untagged.contains("--cluster"), "{untagged}");
    assert_eq!(server.get(&format!("/runs/compare?a={a}&b={none}")).status, 404);
    let runs = server.get("/runs").body;
    assert_eq!(runs.matches("type=\"checkbox\" name=\"run\"").count(), 2, "{runs}");
}

#[test]
fn gates_judge_what_a_server_ran() {
    let project = Project::new();
    let text = project.read(MANIFEST);
    project
        .write(MANIFEST, &format!("{text}\n[gate.good]\nsamples = \"ask\"\nmin_accuracy = 0.9\n"));
    let server = Server::start(&project, &[]);
    assert_eq!(server.api("/manifests")["manifests"][0]["gates"], 1);
    let job = server.post("/jobs", &json!({ "manifest": MANIFEST })).json();
    let done = server.job(job["id"].as_str().unwrap(), "completed");
    let run = done["run_id"].as_str().unwrap();
    assert_eq!(server.api(&format!("/runs/{run}"))["gates"][0]["passed"], false);
    let page = server.get(&format!("/runs/{run}")).body;
    assert!(page.contains("good"), "{page}");
}

#[test]
fn a_manifest_waits_its_turn_and_is_cancelled() {
    let project = slow(2000, "30ms");
    project.edit(MANIFEST, "default = 10", "default = 2000");
    project.edit(MANIFEST, "engine = \"engine\"", "engine = \"engine\"\nconcurrency = 1");
    let server = Server::start(&project, &["--at-once", "1", "--queue", "1"]);
    let start = || server.post("/jobs", &json!({ "manifest": MANIFEST }));
    let ids: Vec<String> =
        (0..2).map(|_| start().json()["id"].as_str().unwrap().to_owned()).collect();
    let full = start();
    assert!((full.status, full.header("retry-after").is_some()) == (429, true), "{}", full.body);
    assert_eq!(server.api("/jobs")["jobs"].as_array().unwrap().len(), 2);
    let some = server.listen(&format!("/jobs/{}/events", ids[0]), None, 5);
    assert!(
        some.iter().any(|(_, name, data)| name == "sample" && data["stage"] == "ask"),
        "{some:?}"
    );

    // While it is at work its samples are listed, by outcome and by name.
    let run = server.job(&ids[0], "running")["run_id"].as_str().unwrap().to_owned();
    let so_far = |query: &str| server.api(&format!("/runs/{run}/samples?{query}"));
    let all = so_far("limit=2");
    assert_eq!((&all["complete"], &all["samples"][0]["example_id"]), (&json!(false), &json!("q0")));
    assert!(all["total"].as_u64().unwrap() >= 2, "{all}");
    assert_eq!(so_far("outcome=refused")["total"], 0);
    assert_eq!(so_far("q=Q1")["samples"][0]["example_id"], "q1");
    let page = server.get(&format!("/runs/{run}"));
    assert!(page.status == 200 && page.body.contains("Samples so far"), "{}", page.body);

    for id in &ids {
        assert_eq!(server.post(&format!("/jobs/{id}/cancel"), &Value::Null).status, 200);
        server.job(id, "cancelled");
    }
    assert_eq!(server.post(&format!("/jobs/{}/cancel", ids[0]), &Value::Null).status, 400);
    assert_eq!(server.api(&format!("/runs/{run}"))["status"], "cancelled");
}

#[test]
fn a_manifest_that_cannot_be_run_here_is_refused() {
    let project = Project::new();
    project.write("secret.txt", "[stage.x]\nkey = \"hush\"\n");
    project.write("pipelines/broken.toml", "[stage.x]\nkind = \"workflw\"\n");
    let elsewhere = |text: &str| format!("{}\n[store]\n{text}\n", project.read(MANIFEST));
    project.write("pipelines/own.toml", &elsewhere("path = \"other\""));
    project.write("pipelines/same.toml", &elsewhere("path = \".forge\""));
    project.write("pipelines/shared.toml", &elsewhere("remote = \"file:///nowhere/else\""));
    let server = Server::start(&project, &[]);
    let refused = |manifest: &str, params: Value| {
        let reply = server.post("/jobs", &json!({ "manifest": manifest, "params": params }));
        assert_eq!(reply.status, 422, "{manifest}: {}", reply.body);
        reply.json()["details"][0]["issue"].as_str().unwrap().to_owned()
    };
    for path in ["secret.txt", "../x.toml", "/etc/passwd", "pipelines/none.toml", ""] {
        let said = refused(path, Value::Null);
        assert!(said.contains("no manifest") && !said.contains("hush"), "{said}");
    }
    assert!(refused("pipelines/broken.toml", Value::Null).contains("did you mean `workflow`"));
    assert!(refused(MANIFEST, json!({ "other": 1 })).contains("other"));
    let own = refused("pipelines/own.toml", Value::Null);
    assert!(own.contains("`forge serve --store other`"), "{own}");
    let shared = refused("pipelines/shared.toml", Value::Null);
    assert!(shared.contains("`forge serve --remote file:///nowhere/else`"), "{shared}");
    let same = server.post("/jobs", &json!({ "manifest": "pipelines/same.toml" }));
    assert_eq!(same.status, 201, "{}", same.body);
    server.job(same.json()["id"].as_str().unwrap(), "completed");
    // Nothing was left in the queue.
    assert_eq!(server.api("/jobs")["jobs"], json!([]));
}

#[test]
fn a_server_with_a_shared_store_shares_what_it_was_answered() {
    let project = Project::new();
    let url = format!("file://{}", project.path("shared").display());
    std::fs::create_dir(project.path("shared")).unwrap();
    let text = project.read(MANIFEST);
    project.write(MANIFEST, &format!("{text}\n[store]\nremote = \"{url}\"\n"));
    let server = Server::start(&project, &["--remote", &url]);
    let job = server.post("/jobs", &json!({ "manifest": MANIFEST })).json();
    server.job(job["id"].as_str().unwrap(), "completed");
    drop(server);
    // Somebody with another store finds it there.
    let ran = project.ok(&["--store", "elsewhere"]);
    assert_eq!(ran.live(), 0, "{}", ran.stderr);
}

#[test]
fn samples_are_found_by_outcome_verdict_and_words() {
    let replies = r#"replies = [
        { when = "What is 1 ", reply = "" }, { when = "What is 2 ", reply = "2" }, { reply = "Zürich" },
    ]"#;
    let project = Project::with("", replies);
    let server = Server::start(&project, &[]);
    let id = server.complete(config(10));
    let found = |query: &str| {
        let page = server.api(&format!("/results/{id}/runs?{query}"));
        let runs = page["runs"].as_array().unwrap();
        let names = runs.iter().map(|run| run["example_id"].as_str().unwrap().to_owned());
        (page["total"].as_u64().unwrap(), names.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(found("outcome=empty"), (1, "q1".to_owned()));
    assert_eq!(found("correct=true"), (1, "q2".to_owned()));
    assert_eq!(found("correct=none"), (1, "q1".to_owned()));
    assert_eq!(found("q=z%C3%9CRICH&limit=2&skip=3"), (8, "q5 q6".to_owned()));
    assert_eq!(found("q=what%20IS%207"), (1, "q7".to_owned()));
    assert_eq!(found("q=nothing"), (0, String::new()));
    assert_eq!(server.get(&format!("/api/v1/results/{id}/runs?outcome=odd")).status, 422);
    let page = server.get(&format!("/experiments/{id}?outcome=empty")).body;
    assert!(page.contains("1–1 of 1") && page.contains(">q1<") && !page.contains(">q2<"), "{page}");
}

#[test]
fn an_experiment_comes_to_git_by_a_command() {
    let project = Project::new();
    let none = project.forge(&["experiments"]);
    assert!(none.code == 2 && none.stderr.contains("`forge serve`"), "{}", none.stderr);
    let server = Server::start(&project, &[]);
    let id = server.complete(cached(10));
    let other = server.create(config(5));
    // While the server is at work.
    let list = project.forge(&["experiments"]);
    assert_eq!((list.code, list.stdout.lines().count()), (0, 3), "{}", list.stdout);
    assert!(list.stdout.contains(&id[..8]) && list.stdout.contains("completed"));
    let lines = project.forge(&["experiments", "--json"]);
    let first: Value = serde_json::from_str(lines.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(first["id"], json!(other));
    let shown = project.forge(&["experiments", "show", &id]);
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap()["config"]["num_samples"], 10);
    let toml = project.forge(&["experiments", "show", &id[..13], "--toml"]);
    let button = server.get(&format!("/api/v1/experiments/{id}/manifest"));
    assert_eq!(toml.stdout, button.body);
    project.write("pipelines/mine.toml", &toml.stdout);
    let ran = project.forge(&["apply", "pipelines/mine.toml", "--json"]);
    assert_eq!((ran.code, ran.live()), (0, 0), "{}", ran.stderr);
    // Both have one name.
    for name in ["one", "nothing"] {
        let wrong = project.forge(&["experiments", "show", name]);
        assert!(wrong.code == 2 && wrong.stderr.contains(&id), "{}", wrong.stderr);
    }
}
