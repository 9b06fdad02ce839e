//! A server that does what it is told, right or wrong: each request gets a list of steps.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A text that gets no embedding: the connection is closed instead.
pub const CLOSES: &str = "<close>";

/// What is done with a connection.
#[derive(Clone)]
pub enum Step {
    Write(Vec<u8>),
    Sleep(Duration),
    /// Close without an end.
    Close,
}

/// A request as it came.
#[derive(Clone)]
pub struct Asked {
    pub headers: Vec<(String, String)>,
    pub body: Value,
    /// Requests for a completion before it, those of the probe not counted.
    pub number: usize,
    /// How many are being answered, with this one.
    pub at_once: usize,
    pub at: Instant,
}

impl Asked {
    /// The last message.
    pub fn question(&self) -> &str {
        self.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

type Behave = dyn Fn(&Asked) -> Vec<Step> + Send + Sync;

pub struct Server {
    pub port: u16,
    /// Requests for completions, in the order in which they came.
    pub asked: Arc<Mutex<Vec<Asked>>>,
    /// Most of them at once.
    pub peak: Arc<AtomicUsize>,
    /// Requests for embeddings.
    embedded: Arc<Mutex<Vec<Value>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Answers completions with `behave`, and lists one model.
    pub fn start(behave: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let models = json!({ "object": "list", "data": [{ "id": "m", "max_model_len": 1024 }] });
        Server::with_models(200, models.to_string(), behave)
    }

    /// The same, with another answer to the question for models. Those in its `unlisted` are answered by name alone.
    pub fn with_models(
        status: u16,
        models: String,
        behave: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let behave: Arc<Behave> = Arc::new(behave);
        let server = Server {
            port,
            asked: Arc::default(),
            peak: Arc::default(),
            embedded: Arc::default(),
            stop: Arc::default(),
        };
        let embedded = server.embedded.clone();
        let (asked, peak, stop) = (server.asked.clone(), server.peak.clone(), server.stop.clone());
        let now = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (asked, peak, now) = (asked.clone(), peak.clone(), now.clone());
                let (behave, models) = (behave.clone(), (status, models.clone()));
                let embedded = embedded.clone();
                std::thread::spawn(move || {
                    let _ =
                        serve(&stream.unwrap(), &asked, &peak, &now, &*behave, &models, &embedded);
                });
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// The engine of a manifest that asks this server.
    pub fn engine(&self, more: &str) -> String {
        let url = self.url();
        format!(
            "backend = \"openai\"\nbase_url = \"{url}\"\nmodel = \"m\"\nprovider = \"test\"\n{more}"
        )
    }

    /// How often it was asked for an embedding.
    pub fn embedded(&self) -> usize {
        self.embeddings().len()
    }

    /// What it was asked for embeddings.
    pub fn embeddings(&self) -> Vec<Value> {
        self.embedded.lock().unwrap().clone()
    }

    /// How often it was asked for a completion.
    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(
    stream: &TcpStream,
    asked: &Mutex<Vec<Asked>>,
    peak: &AtomicUsize,
    now: &AtomicUsize,
    behave: &Behave,
    (status, models): &(u16, String),
    embedded: &Mutex<Vec<Value>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut out = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split_whitespace().nth(1).unwrap_or("").to_owned();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
        reader.read_exact(&mut body)?;
        if path.ends_with("/models") {
            out.write_all(&whole(*status, models))?;
            continue;
        }
        if let Some((_, name)) = path.split_once("/models/") {
            let models: Value = serde_json::from_str(models).unwrap();
            let mut unlisted = models["unlisted"].as_array().into_iter().flatten();
            let model = unlisted.find(|model| model["path"] == name);
            let found = model.map(|model| whole(200, &model["answer"].to_string()));
            out.write_all(&found.unwrap_or_else(|| whole(404, "{}")))?;
            continue;
        }
        if path.ends_with("/embeddings") {
            let body: Value = serde_json::from_slice(&body).unwrap();
            embedded.lock().unwrap().push(body.clone());
            if body["input"].as_str().unwrap().contains(CLOSES) {
                return stream.shutdown(std::net::Shutdown::Both);
            }
            out.write_all(&embedding(body["input"].as_str().unwrap()))?;
            continue;
        }
        if !path.ends_with("completions") {
            out.write_all(&whole(404, "{}"))?;
            continue;
        }
        let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(at_once, Ordering::SeqCst);
        let one = {
            let mut asked = asked.lock().unwrap();
            let body = serde_json::from_slice(&body).unwrap();
            let one = Asked { headers, body, number: asked.len(), at_once, at: Instant::now() };
            asked.push(one.clone());
            one
        };
        let steps = behave(&one);
        let result = steps.into_iter().try_fold((), |(), step| match step {
            Step::Write(bytes) => out.write_all(&bytes).and_then(|()| out.flush()),
            Step::Sleep(time) => {
                std::thread::sleep(time);
                Ok(())
            }
            Step::Close => {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                Err(std::io::ErrorKind::ConnectionReset.into())
            }
        });
        now.fetch_sub(1, Ordering::SeqCst);
        result?;
    }
}

/// How often each byte stands in a text, as its embedding.
fn embedding(text: &str) -> Vec<u8> {
    let mut counts = vec![0_u32; 128];
    text.bytes().for_each(|byte| counts[usize::from(byte % 128)] += 1);
    let body = json!({
        "object": "list",
        "data": [{ "object": "embedding", "index": 0, "embedding": counts }],
        "usage": { "prompt_tokens": text.len(), "total_tokens": text.len() },
    });
    whole(200, &body.to_string())
}

/// An answer with its length.
pub fn whole(status: u16, body: &str) -> Vec<u8> {
    with_header(status, "", body.as_bytes())
}

pub fn with_header(status: u16, header: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{header}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

/// A whole completion.
pub fn reply(text: &str) -> Vec<Step> {
    let body = json!({
        "id": "x", "object": "chat.completion",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11 },
    });
    vec![Step::Write(whole(200, &body.to_string()))]
}

/// The head of a stream.
pub fn head() -> Step {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    Step::Write(head.into())
}

/// A piece of a stream.
pub fn piece(bytes: &[u8]) -> Step {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend(bytes);
    chunk.extend(b"\r\n");
    Step::Write(chunk)
}

/// The end of a stream.
pub fn end() -> Step {
    Step::Write("0\r\n\r\n".into())
}

pub fn event(data: &Value) -> Vec<u8> {
    format!("data: {data}\n\n").into_bytes()
}

/// An event with a part of a text.
pub fn part(text: &str) -> Vec<u8> {
    event(
        &json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }] }),
    )
}

/// The events after the last part: reason, usage, end.
pub fn closing() -> Vec<u8> {
    let mut bytes =
        event(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] }));
    bytes.extend(event(&json!({
        "choices": [], "usage": { "prompt_tokens": 9, "completion_tokens": 2 }
    })));
    bytes.extend(b"data: [DONE]\n\n");
    bytes
}

/// A whole stream: the role, the text in two parts, and its end.
pub fn stream(text: &str) -> Vec<Step> {
    let role = json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] });
    let half = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
    vec![
        head(),
        piece(&event(&role)),
        piece(&part(&text[..half])),
        piece(&part(&text[half..])),
        piece(&closing()),
        end(),
    ]
}

/// The right answer to a question of the test project, streamed if that was asked for.
pub fn right(asked: &Asked) -> Vec<Step> {
    let number = asked.question().split_whitespace().nth(2).unwrap_or("0");
    match asked.body["stream"] == true {
        true => stream(number),
        false => reply(number),
    }
}
