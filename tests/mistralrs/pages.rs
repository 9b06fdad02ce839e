//! The pages of `forge serve` on the shipped model, as a person uses them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::Clone;
use crate::browser::Browser;
use crate::story::{Story, whole_story};

/// A server; dropped, it ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_browser_goes_through_the_whole_story_on_the_shipped_model() {
    let Some(browser) = Browser::start() else { return };
    let clone = Clone::new();
    // So that the folder is a project of its own.
    std::fs::create_dir(clone.dir.path().join(".git")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--quiet"]).current_dir(clone.dir.path());
    command.env_remove("FORGE_STORE").env_remove("FORGE_TOKEN").stdout(Stdio::piped());
    let mut server = Server(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let story = Story {
        home: line.trim(),
        model: "tiny-chat",
        data_set: "qa_25",
        samples: 12,
        long: ("facts", 200),
    };
    whole_story(&browser, &story);
}
