//! Any server with the interface of OpenAI: vLLM, SGLang, llama.cpp, Ollama, LM Studio, TGI, OpenAI itself,
//! routers. Settings and identity are here, one attempt at a request in `attempt`, its JSON in `wire`.
//! Knows nothing of who asks, and tries nothing twice: that is the client's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;
use url::Url;

use super::{Admission, Backend, Engine, EngineError, Progress, Rates, Reply};
use crate::digest::{Digest, Recipe};
use crate::record::Price;
use crate::sample::{Request, ResponseFormat};

mod attempt;
mod connection;
mod embed;
mod http;
mod likelihood;
mod probe;
mod sse;
mod trouble;
mod upstream;
mod wire;

pub use trouble::REFUSED;

use http::Post;
use probe::Facts;
use upstream::Upstreams;

/// Version of this adapter: raised when the same request would be sent, or the same reply read, otherwise.
const REV: u32 = 1;

/// Which part of the interface is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `chat/completions`: messages with roles.
    Chat,
    /// `completions`: one text, for models without a chat format.
    Completions,
}

/// By their names in manifests.
pub const APIS: &[&str] = &["chat", "completions"];

impl Api {
    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Api::Chat => "chat",
            Api::Completions => "completions",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Api::Chat => "chat/completions",
            Api::Completions => "completions",
        }
    }
}

/// How a server goes on with an assistant's turn at the end of a request, by the names in manifests: `plain` is
/// sent as it stands (llama.cpp, Anthropic), the other asks for it in words of vLLM and SGLang.
pub const PREFILLS: &[&str] = &["plain", "continue_final_message"];

/// Settings that may be left out of requests, for models and servers that refuse them.
pub const OMITTABLE: &[&str] = &["temperature", "max_tokens", "stop", STREAM_OPTIONS];

/// Asks for the counts of tokens at the end of a stream. Mistral's own server refuses it, and counts all the same.
const STREAM_OPTIONS: &str = "stream_options";

/// Most tokens of a reply, as the interface names it: the newer name is that of OpenAI's reasoning models.
pub const MAX_TOKENS_FIELDS: &[&str] = &["max_tokens", "max_completion_tokens"];

/// A server, or several of the same model.
#[derive(Clone)]
pub struct OpenAi {
    /// Where they are; the part before `chat/completions`.
    pub urls: Vec<Url>,
    /// Name of what answers, in the key: as the manifest says, else the addresses.
    pub provider: String,
    /// The model, as the server names it.
    pub model: String,
    /// What the manifest says of its version.
    pub revision: Option<String>,
    /// Which part of the interface.
    pub api: Api,
    /// Whether replies come in parts: an execution setting.
    pub stream: bool,
    /// Further fields of every request.
    pub extra_body: Map<String, Value>,
    /// Of [`OMITTABLE`], those that are not sent.
    pub omit: Vec<String>,
    /// One of [`MAX_TOKENS_FIELDS`].
    pub max_tokens_field: String,
    /// One of [`PREFILLS`], where the server goes on with such a turn at all.
    pub prefill: Option<String>,
    /// Whether what the model thought before it called tools goes back to it with their observations, as
    /// `reasoning_content`: DeepSeek refuses a request without, and most others know no such field.
    pub send_reasoning: bool,
    /// Headers as the manifest has them.
    pub headers: Vec<(String, String)>,
    /// Variable of the environment with the key, for messages.
    pub key_env: Option<String>,
    /// The key.
    pub key: Option<String>,
    /// Headers whose values come from the environment.
    pub secret_headers: Vec<(String, String)>,
    /// Variables of the environment that are needed and not set. Of no matter as long as nothing is asked.
    pub missing_env: Vec<String>,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Most requests at once.
    pub max_in_flight: Option<u32>,
    /// Bounds on the rate.
    pub rates: Rates,
    /// Whether a setting that the server ignores is an error.
    pub strict: bool,
    /// Whether to ask the server about itself first.
    pub probe: bool,
    /// Counts tokens where the server does not: a file, and what is in it.
    pub tokenizer: Option<(Utf8PathBuf, Digest)>,
    /// Tokens of prompt and reply, where the server does not say.
    pub context_length: Option<u64>,
    /// What tokens cost.
    pub price: Option<Price>,
    /// Whether somebody will ask for log-probabilities of prompts: then they are asked for before anything else.
    pub wants_likelihoods: Arc<AtomicBool>,
}

impl OpenAi {
    /// Adds all that decides answers to an engine's recipe.
    pub fn identify(&self, recipe: Recipe) -> Recipe {
        let extra = (!self.extra_body.is_empty()).then(|| Value::Object(self.extra_body.clone()));
        // How a reply travels changes no answer.
        let omit: Vec<_> =
            self.omit.iter().filter(|name| *name != STREAM_OPTIONS).cloned().collect();
        let omit = (!omit.is_empty()).then_some(omit);
        recipe
            .field("adapter_rev", REV)
            .field("provider", self.provider.as_str())
            .field("model", self.model.as_str())
            .field("revision", self.revision.as_deref())
            .field("api", self.api.name())
            .field("extra_body", extra)
            .field("omit", omit)
            .field("prefill", self.prefill.as_deref())
            .field("send_reasoning", self.send_reasoning.then_some(true))
            // These decide what is too long before a server is asked.
            .field("context_length", self.context_length)
            .field("tokenizer", self.tokenizer.as_ref().map(|(_, digest)| *digest))
    }
}

impl Backend for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn describe(&self) -> BTreeMap<String, Value> {
        let urls: Vec<_> = self.urls.iter().map(|url| url.origin().ascii_serialization()).collect();
        let mut about: BTreeMap<String, Value> = [
            ("backend".to_owned(), Value::from("openai")),
            ("provider".to_owned(), self.provider.as_str().into()),
            ("model".to_owned(), self.model.as_str().into()),
            ("api".to_owned(), self.api.name().into()),
            ("stream".to_owned(), self.stream.into()),
            ("servers".to_owned(), urls.into()),
        ]
        .into();
        if let Some(revision) = &self.revision {
            about.insert("revision".to_owned(), revision.as_str().into());
        }
        if let Some(price) = &self.price {
            let price = serde_json::to_value(price).expect("BUG: a price is plain data");
            about.insert("price".to_owned(), price);
        }
        about
    }

    fn admission(&self) -> Admission {
        let mut reason = match self.max_in_flight {
            Some(most) => format!("at most {most}, as the manifest says"),
            None => "as many as the workflow asks".to_owned(),
        };
        reason.push_str(", fewer when the server has too much");
        let rate = |rate: Option<u32>, what: &str| {
            rate.map_or_else(String::new, |rate| format!("; at most {rate} {what} a minute"))
        };
        reason.push_str(&rate(self.rates.requests, "requests"));
        reason.push_str(&rate(self.rates.tokens, "tokens"));
        Admission { width: self.max_in_flight, reason, adaptive: true, rates: self.rates }
    }

    fn price(&self) -> Option<Price> {
        self.price
    }

    fn continues(&self) -> Result<(), String> {
        match (self.api, &self.prefill) {
            (Api::Completions, _) | (Api::Chat, Some(_)) => Ok(()),
            (Api::Chat, None) => Err(format!(
                "most servers with `api = \"chat\"` begin a turn of their own; where this one does not, say how it is \
                 asked: `prefill = {}`",
                PREFILLS.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ")
            )),
        }
    }

    fn likelihoods(&self) -> Result<(), String> {
        match (self.api, self.prefill.as_deref()) {
            (Api::Completions, _) | (Api::Chat, Some("continue_final_message")) => Ok(()),
            (Api::Chat, _) => {
                Err("`api = \"chat\"` has the log-probabilities of replies alone; use \
                `api = \"completions\"`, or with vLLM `prefill = \"continue_final_message\"`"
                    .to_owned())
            }
        }
    }

    fn expect_likelihoods(&self) {
        self.wants_likelihoods.store(true, Ordering::Relaxed);
    }

    fn proof(&self) -> Option<Request> {
        let wanted = self.probe && self.wants_likelihoods.load(Ordering::Relaxed);
        wanted.then(likelihood::proof)
    }

    fn formats_chat(&self) -> bool {
        self.api == Api::Chat
    }

    fn wants_reasoning(&self) -> bool {
        self.send_reasoning
    }

    fn embeds(&self) -> bool {
        true
    }

    fn bounds_replies(&self) -> bool {
        !self.omit.iter().any(|name| name == "max_tokens")
    }

    fn is_paid(&self) -> bool {
        // A key is what one has an account with.
        let secrets = !self.secret_headers.is_empty() || !self.missing_env.is_empty();
        self.key_env.is_some() || secrets || self.price.is_some()
    }

    fn load(&self, _: Progress) -> BoxFuture<'_, Result<Box<dyn Engine>, String>> {
        async move { Ok(Box::new(Ready::new(self.clone()).await?) as Box<dyn Engine>) }.boxed()
    }
}

/// A server that has been asked about itself.
pub(super) struct Ready {
    settings: OpenAi,
    post: Post,
    upstreams: Upstreams,
    facts: Facts,
    tokenizer: Option<Tokenizer>,
    /// Kinds of what has been said already.
    said: Mutex<BTreeSet<&'static str>>,
    /// Sets of settings whose names have been compared with what the server knows.
    checked: Mutex<BTreeSet<Vec<&'static str>>>,
}

impl Ready {
    pub(super) async fn new(settings: OpenAi) -> Result<Self, String> {
        if !settings.missing_env.is_empty() {
            let names: Vec<_> =
                settings.missing_env.iter().map(|name| format!("`{name}`")).collect();
            return Err(format!(
                "{} {} not set in the environment: the key for `{}`",
                names.join(" and "),
                if names.len() == 1 { "is" } else { "are" },
                settings.provider
            ));
        }
        let tokenizer = match &settings.tokenizer {
            None => None,
            Some((path, _)) => Some(
                Tokenizer::from_file(path)
                    .map_err(|error| format!("cannot read the tokenizer `{path}`: {error}"))?,
            ),
        };
        let post = Post::new(
            settings.connect_timeout,
            settings.key.as_deref(),
            &settings.headers,
            &settings.secret_headers,
            settings.urls.iter().all(is_loopback),
        )?;
        let upstreams =
            Upstreams::new(&settings.urls, settings.api.path(), |url| post.target(url))?;
        let mut facts = Facts::default();
        if settings.probe {
            facts = probe_all(&settings, &post, &upstreams).await?;
        }
        facts.context = settings.context_length.or(facts.context);
        Ok(Ready {
            settings,
            post,
            upstreams,
            facts,
            tokenizer,
            said: Mutex::default(),
            checked: Mutex::default(),
        })
    }

    /// What the probe found that the user should know.
    pub(super) fn facts_told(&self) -> Vec<String> {
        self.facts.notices.clone()
    }

    /// Tokens of a text by the local tokenizer.
    fn count(&self, text: &str) -> Option<u64> {
        let tokens = self.tokenizer.as_ref()?.encode_fast(text, false).ok()?;
        Some(tokens.len() as u64)
    }

    /// Something to tell, the first time that there is something of its kind.
    fn once(&self, kind: &'static str, notice: String) -> Option<String> {
        let mut said = self.said.lock().expect("BUG: the notice lock is poisoned");
        said.insert(kind).then_some(notice)
    }

    /// Settings of a request that the server does not know: told once, and an error when that is wanted.
    fn check(&self, request: &Request) -> Result<Vec<String>, EngineError> {
        let Some(knows) = &self.facts.knows else { return Ok(Vec::new()) };
        let used = used(&self.settings, request);
        let mut checked = self.checked.lock().expect("BUG: the check lock is poisoned");
        if checked.contains(&used) {
            return Ok(Vec::new());
        }
        // What `/props` lists are settings of sampling, and not all that a request may hold.
        let body = (self.facts.source != "/props").then_some(&self.settings.extra_body);
        let further = body.into_iter().flat_map(|body| body.keys().map(String::as_str));
        let unknown: Vec<_> = used
            .iter()
            .copied()
            .chain(further)
            .filter(|name| !knows.contains(*name))
            .map(|name| format!("`{name}`"))
            .collect();
        if unknown.is_empty() {
            checked.insert(used);
            return Ok(Vec::new());
        }
        let server = self.facts.server.as_deref().unwrap_or("server");
        let notice = format!(
            "the {server} at `{}` does not know {} (by its {}), and ignores what it does not know",
            self.upstreams.all[0].label,
            unknown.join(", "),
            self.facts.source
        );
        if self.settings.strict {
            // Asked again it is refused again.
            return Err(EngineError::Broken(format!(
                "{notice}; remove it, or set `strict = false` on the engine"
            )));
        }
        checked.insert(used);
        Ok(vec![notice])
    }

    /// A setting that a reply shows to be ignored.
    fn ignored(&self, setting: &'static str, notice: String) -> Result<Vec<String>, EngineError> {
        if self.settings.strict {
            return Err(EngineError::Broken(format!("{notice} (`strict = true`)")));
        }
        Ok(self.once(setting, notice).into_iter().collect())
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Asks every server about itself. One that answers is enough; the others are told.
async fn probe_all(settings: &OpenAi, post: &Post, upstreams: &Upstreams) -> Result<Facts, String> {
    let asked = upstreams.all.iter().map(|upstream| probe::probe(settings, post, upstream));
    let mut found: Option<Facts> = None;
    let mut errors = Vec::new();
    for (answer, upstream) in
        futures_util::future::join_all(asked).await.into_iter().zip(&upstreams.all)
    {
        match (answer, &mut found) {
            (Ok(facts), None) => found = Some(facts),
            (Ok(facts), Some(first)) => {
                // The least of those that say it.
                first.context = first.context.into_iter().chain(facts.context).min();
                first.notices.extend(facts.notices);
            }
            (Err(unfit), _) if unfit.for_good && upstreams.exclude(upstream) => {
                errors.push(format!("{}; this server gets no request", unfit.words));
            }
            (Err(unfit), _) => {
                upstream.failed(tokio::time::Instant::now());
                errors.push(unfit.words);
            }
        }
    }
    let Some(mut facts) = found else {
        return Err(post.hide(&errors.join("; ")));
    };
    facts.notices.extend(errors);
    facts.notices = facts.notices.iter().map(|notice| post.hide(notice)).collect();
    Ok(facts)
}

/// Names of the settings that a request sends.
fn used(settings: &OpenAi, request: &Request) -> Vec<&'static str> {
    let sampling = &request.sampling;
    let sends = |name: &str| !settings.omit.iter().any(|omitted| omitted == name);
    let form = |is: fn(&ResponseFormat) -> bool| sampling.response_format.as_ref().is_some_and(is);
    let all = [
        ("temperature", sends("temperature")),
        ("max_tokens", sends("max_tokens") && settings.max_tokens_field == "max_tokens"),
        (
            "max_completion_tokens",
            sends("max_tokens") && settings.max_tokens_field == "max_completion_tokens",
        ),
        ("top_p", sampling.top_p.is_some()),
        ("top_k", sampling.top_k.is_some()),
        ("min_p", sampling.min_p.is_some()),
        ("seed", sampling.seed.is_some()),
        ("stop", !sampling.stop.is_empty() && sends("stop")),
        ("frequency_penalty", sampling.frequency_penalty.is_some()),
        ("presence_penalty", sampling.presence_penalty.is_some()),
        ("reasoning_effort", sampling.reasoning_effort.is_some()),
        ("logit_bias", !sampling.logit_bias.is_empty()),
        ("logprobs", sampling.logprobs.is_some()),
        (
            "response_format",
            form(|form| matches!(form, ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_))),
        ),
        ("regex", form(|form| matches!(form, ResponseFormat::Regex(_)))),
        ("grammar", form(|form| matches!(form, ResponseFormat::Grammar(_)))),
        ("tools", !request.tools.is_empty()),
    ];
    all.into_iter().filter(|(_, is_used)| *is_used).map(|(name, _)| name).collect()
}

impl Engine for Ready {
    fn complete<'a>(
        &'a self,
        request: &'a Request,
        first_token: Option<Duration>,
    ) -> BoxFuture<'a, Result<Reply, EngineError>> {
        match &request.sampling.response_format {
            Some(ResponseFormat::Embedding) => embed::complete(self, request).boxed(),
            Some(ResponseFormat::Likelihood(_)) => likelihood::complete(self, request).boxed(),
            _ => attempt::complete(self, request, first_token).boxed(),
        }
    }

    fn prompt_tokens(&self, request: &Request) -> u64 {
        let texts = request.messages.iter().map(|message| message.content.as_str());
        let counted: Option<u64> = texts.clone().map(|text| self.count(text)).sum();
        // A few more for each turn's frame.
        let frames = 8 * request.messages.len() as u64;
        counted.unwrap_or_else(|| texts.map(|text| text.len() as u64 / 4).sum()) + frames
    }

    fn notices(&self) -> Vec<String> {
        self.facts.notices.clone()
    }
}
