//! A real browser without a window: Chromium by way of chromedriver (Debian: `chromium`, `chromium-driver`; `.ci/run`
//! installs them). Speaks WebDriver, which is JSON over HTTP; reqwest is there already, and a client crate would bring
//! sixteen others. Without the driver a test says so and passes on a machine that is no CI.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// Keys without a character, as WebDriver names them.
pub const ENTER: &str = "\u{e007}";
pub const ESCAPE: &str = "\u{e00c}";
pub const END: &str = "\u{e010}";
pub const HOME: &str = "\u{e011}";
pub const LEFT: &str = "\u{e012}";
pub const UP: &str = "\u{e013}";
pub const RIGHT: &str = "\u{e014}";
pub const DOWN: &str = "\u{e015}";
pub const PAGE_DOWN: &str = "\u{e00f}";
pub const TAB: &str = "\u{e004}";

/// How long anything may take to be seen in a page.
const PATIENCE: Duration = Duration::from_secs(60);
/// No network beyond the page, no first-run dialogues, no sandbox (containers forbid it), no small /dev/shm.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars=false",
];

/// A browser with one page; dropped, it ends with all its processes.
pub struct Browser {
    driver: Child,
    /// Address of the session.
    session: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    profile: tempfile::TempDir,
    /// Open as long as the driver may write to it.
    _said: BufReader<ChildStdout>,
}

impl Browser {
    /// `None` where there is no chromedriver.
    pub fn start() -> Option<Browser> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut driver) = command.process_group(0).spawn() else {
            assert!(std::env::var_os("CI").is_none(), "chromedriver is not installed: see .ci/run");
            tell!("chromedriver is not installed (Debian: chromium-driver): nothing tested");
            return None;
        };
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let port = said.by_ref().lines().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let port = port.expect("chromedriver ended before it said its port");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let profile = tempfile::tempdir().unwrap();
        let session = format!("http://127.0.0.1:{port}/session");
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(330))
            .build()
            .unwrap();
        let mut browser = Browser { driver, session, client, runtime, profile, _said: said };
        let user_data = format!("--user-data-dir={}", browser.profile.path().display());
        let flags: Vec<&str> = FLAGS.iter().copied().chain([user_data.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": flags },
        } } });
        let made = (0..3).find_map(|_| browser.try_post("", &wanted).ok()).expect("no session");
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        browser.view(1280, 800, false);
        Some(browser)
    }

    /// One command of WebDriver: the `value` of its answer.
    fn post(&self, path: &str, body: &Value) -> Value {
        self.try_post(path, body).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn try_post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request = self.client.post(format!("{}{path}", self.session));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = self.runtime.block_on(async { request.send().await?.bytes().await });
        let answer = answer.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        let value = answer["value"].clone();
        match value["error"].is_null() {
            true => Ok(value),
            false => Err(format!("{}: {}", value["error"], value["message"])),
        }
    }

    /// Opens an address and waits until the page is loaded.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Opens a file.
    pub fn open_file(&self, path: &Path) {
        self.open(url::Url::from_file_path(path).unwrap().as_str());
    }

    /// What the body of a function gives, run in the page.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The value of an expression.
    pub fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}"))
    }

    /// The value of an expression as text.
    pub fn text(&self, expression: &str) -> String {
        let value = self.value(expression);
        value.as_str().unwrap_or_else(|| panic!("`{expression}` is {value}")).to_owned()
    }

    /// Waits until an expression is true.
    pub fn wait_until(&self, expression: &str) {
        self.wait(expression, PATIENCE);
    }

    /// The same of what takes longer than a page: a run of an experiment.
    pub fn wait_long(&self, expression: &str) {
        self.wait(expression, PATIENCE * 3);
    }

    fn wait(&self, expression: &str, patience: Duration) {
        let start = Instant::now();
        // While one page makes way for another, an expression may throw and a command may be refused: not yet.
        let script = format!("try {{ return Boolean({expression}) }} catch {{ return false }}");
        let body = json!({ "script": script, "args": [] });
        while self.try_post("/execute/sync", &body) != Ok(Value::Bool(true)) {
            if start.elapsed() > patience {
                let shown = self.value("document.body.innerText.slice(0, 2000)");
                panic!("never true: {expression}\non {}: {shown}", self.value("location.href"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses keys, one after another, wherever the focus is.
    pub fn keys(&self, keys: &[&str]) {
        let press = |key: &&str| {
            let one = |kind: &str| json!({ "type": kind, "value": key });
            [one("keyDown"), one("keyUp")]
        };
        let actions: Vec<Value> = keys.iter().flat_map(press).collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.post("/actions", &json!({ "actions": [keyboard] }));
    }

    /// Types into whatever has the focus.
    pub fn typed(&self, text: &str) {
        let keys: Vec<String> = text.chars().map(String::from).collect();
        self.keys(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// A command of the DevTools protocol, for what WebDriver lacks.
    pub fn devtools(&self, command: &str, params: Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": params }))
    }

    /// Sets the size of the page in CSS pixels, and which colours it should prefer.
    pub fn view(&self, width: u32, height: u32, dark: bool) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size);
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// The page as a PNG: what is in view, or all of it.
    pub fn screenshot(&self, whole: bool) -> Vec<u8> {
        let wanted = json!({ "format": "png", "captureBeyondViewport": whole });
        let shot = self.devtools("Page.captureScreenshot", wanted);
        BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the session ends the browser; a driver killed before leaves it alone.
        let _ = self.runtime.block_on(async {
            self.client.delete(&self.session).timeout(Duration::from_secs(10)).send().await
        });
        let group = format!("-{}", self.driver.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.driver.wait();
    }
}
