//! The interface of `forge serve` under schemathesis, which makes requests of its OpenAPI document: right ones, wrong
//! ones, and sequences of them. `tests/services/readers` fetches it; without it the test says so and passes on a machine
//! that is no CI.

use std::path::Path;
use std::process::Command;

use crate::project::Project;
use crate::serve::{Server, config};

const FUZZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/services/fuzzer");
/// Seconds that it may take.
const BUDGET: &str = "30";

#[test]
fn no_request_makes_a_server_error() {
    if !Path::new(FUZZER).join("installed").exists() {
        assert!(std::env::var_os("CI").is_none(), "no fuzzer is installed: tests/services/readers");
        tell!(
            "no fuzzer is installed (tests/services/readers): the interface is not tried with it"
        );
        return;
    }
    let project = Project::new();
    let server = Server::start(&project, &["--rate", "100000"]);
    // Something to be found: results, and one that is pending.
    server.complete(config(5));
    server.create(config(5));
    let mut command = Command::new("python3");
    command.args(["-m", "schemathesis.cli", "run"]);
    command.arg(format!("http://{}/api/v1/openapi.json", server.address));
    command.args(["--checks", "not_a_server_error", "--phases", "coverage,fuzzing,stateful"]);
    command.args(["--seed", "7", "--max-examples", "25", "--max-time", BUDGET, "--workers", "2"]);
    // A stream of events ends with its experiment, and one that nobody runs never does.
    command.args(["--exclude-path-regex", "/events$", "--request-timeout", "20"]);
    command.args(["--suppress-health-check", "all", "--no-color"]);
    let output = command.current_dir(project.root()).env("PYTHONPATH", FUZZER).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("not_a_server_error") || said.contains("passed"), "{said}");
    // It still answers.
    assert_eq!(server.get("/health").status, 200);
}
