//! A server of files that acts as a hub of data sets: commits, lists of files, and the files, with what can go
//! wrong on the way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An answer: status, further lines of the head, body.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Answer { status: 200, head: String::new(), body: body.into() }
    }

    pub fn status(status: u16, body: &str) -> Self {
        Answer { status, head: String::new(), body: body.into() }
    }

    pub fn with_head(mut self, line: &str) -> Self {
        self.head.push_str(&format!("{line}\r\n"));
        self
    }
}

/// A path with its query as asked for, and the token that was shown.
pub type Asked = (String, Option<String>);

pub struct Hub {
    pub port: u16,
    /// Answers by path, query included; of several the first goes once, and the last stays.
    answers: Arc<Mutex<BTreeMap<String, Vec<Answer>>>>,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl Hub {
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let hub =
            Hub { port, answers: Arc::default(), asked: Arc::default(), stop: Arc::default() };
        let (answers, asked, stop) = (hub.answers.clone(), hub.asked.clone(), hub.stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (answers, asked) = (answers.clone(), asked.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &answers, &asked));
            }
        });
        hub
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What is said to a path.
    pub fn put(&self, path: &str, answers: Vec<Answer>) {
        self.answers.lock().unwrap().insert(path.to_owned(), answers);
    }

    /// A data set: its branch `main`, its commit, and its files. Those that end in `.parquet` lie in large
    /// storage, behind a redirection.
    pub fn data_set(&self, id: &str, commit: &str, files: &[(&str, &[u8])]) {
        let info = json!({ "id": id, "sha": commit }).to_string();
        self.put(&format!("/api/datasets/{id}/revision/main"), vec![Answer::ok(info)]);
        let mut tree = vec![json!({ "type": "directory", "oid": "0", "size": 0, "path": "data" })];
        for (path, bytes) in files {
            tree.push(entry(path, bytes));
            let large = path.ends_with(".parquet");
            let address = format!("/datasets/{id}/resolve/{commit}/{path}");
            let body = Answer::ok(*bytes);
            if large {
                let stored = format!("/storage/{}", sha256(bytes));
                let to = format!("Location: {}?Signature=secret", self.url(&stored));
                self.put(&address, vec![Answer::status(302, "").with_head(&to)]);
                self.put(&format!("{stored}?Signature=secret"), vec![body]);
            } else {
                self.put(&address, vec![body]);
            }
        }
        let tree = Value::from(tree).to_string();
        let address = format!("/api/datasets/{id}/tree/{commit}?recursive=true");
        self.put(&address, vec![Answer::ok(tree)]);
    }

    /// How often it was asked.
    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub fn asked_for(&self, part: &str) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(path, _)| path.contains(part)).cloned().collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(path: &str, bytes: &[u8]) -> Value {
    let mut git = sha1::Sha1::default();
    sha1::Digest::update(&mut git, format!("blob {}\0", bytes.len()));
    sha1::Digest::update(&mut git, bytes);
    let oid: String = sha1::Digest::finalize(git).iter().map(|b| format!("{b:02x}")).collect();
    let mut entry = json!({ "type": "file", "oid": oid, "size": bytes.len(), "path": path });
    if path.ends_with(".parquet") {
        entry["lfs"] = json!({ "oid": sha256(bytes), "size": bytes.len(), "pointerSize": 130 });
    }
    entry
}

fn serve(
    stream: &TcpStream,
    answers: &Mutex<BTreeMap<String, Vec<Answer>>>,
    asked: &Mutex<Vec<Asked>>,
) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        let path = line.split_whitespace().nth(1).unwrap_or("").to_owned();
        let mut token = None;
        loop {
            line.clear();
            if reader.read_line(&mut line).is_err() || line.trim_end().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("authorization")
            {
                token = Some(value.trim().to_owned());
            }
        }
        line.clear();
        let mut all = answers.lock().unwrap();
        let answer = match all.get_mut(&path) {
            None => Answer::status(404, "{\"error\": \"Repository not found\"}"),
            Some(several) if several.len() > 1 => several.remove(0),
            Some(one) => one[0].clone(),
        };
        drop(all);
        asked.lock().unwrap().push((path, token));
        let head = format!("HTTP/1.1 {} X\r\n{}Content-Length: ", answer.status, answer.head);
        let mut bytes = format!("{head}{}\r\n\r\n", answer.body.len()).into_bytes();
        bytes.extend(&answer.body);
        if (&mut &*stream).write_all(&bytes).is_err() {
            return;
        }
    }
}
