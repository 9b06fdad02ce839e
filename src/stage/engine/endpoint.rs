//! A server with OpenAI's interface: its fields, and what of them comes from the environment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Map;
use url::Url;

use super::{Declared, Found, REV};
use crate::digest::Recipe;
use crate::engine::Rates;
use crate::engine::openai::{APIS, Api, MAX_TOKENS_FIELDS, OMITTABLE, OpenAi, PREFILLS};
use crate::manifest::{Diagnostic, Fields, Spanned};
use crate::record::Price;
use crate::stage::{Context, Setting, StageError, read_project_text};

/// Time to connect where the manifest is silent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most requests at once.
const IN_FLIGHT_MAX: u32 = 4096;
/// Fields of a request that forge sets itself.
const OWN_FIELDS: &[&str] = &[
    "model",
    "messages",
    "prompt",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
    "reasoning_effort",
    "tools",
    "stream",
    "stream_options",
    "n",
    // Of embeddings.
    "input",
    "encoding_format",
];

/// The settings of a server, with the names of what the environment adds.
pub(super) struct Endpoint {
    pub(super) openai: OpenAi,
    headers_env: Vec<(String, String)>,
    tokenizer: Option<Utf8PathBuf>,
    prices: Option<Utf8PathBuf>,
}

pub(super) fn read(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Box<dyn Declared>> {
    let urls = read_urls(fields);
    let endpoint = read_common(fields, setting);
    let (mut endpoint, urls) = (endpoint?, urls?);
    if endpoint.openai.provider.is_empty() {
        // Where nothing names what answers, its address does.
        let mut names: Vec<String> = urls.iter().map(ToString::to_string).collect();
        names.sort();
        endpoint.openai.provider = names.join(" ");
    }
    endpoint.openai.urls = urls;
    Some(Box::new(endpoint))
}

fn read_urls(fields: &Fields<'_>) -> Option<Vec<Url>> {
    let Some(texts) = fields.texts("base_url") else {
        if !fields.has("base_url") {
            let hint =
                "`base_url = \"http://127.0.0.1:8000/v1\"`, the part before `chat/completions`";
            fields.error(Diagnostic::at(fields.span(), "this engine needs `base_url`").hint(hint));
        }
        return None;
    };
    let mut urls = Vec::new();
    for text in &texts {
        match check_url(text) {
            Ok(url) => urls.push(url),
            Err(diagnostic) => fields.error(*diagnostic),
        }
    }
    if texts.is_empty() {
        fields.error(Diagnostic::at(fields.place("base_url"), "`base_url` names no server"));
    }
    (!texts.is_empty() && urls.len() == texts.len()).then_some(urls)
}

fn check_url(text: &Spanned<String>) -> Result<Url, Box<Diagnostic>> {
    let fail = |message: String| Box::new(Diagnostic::at(text.span, message));
    let hinted =
        |message: &str, hint: &str| Box::new(Diagnostic::at(text.span, message).hint(hint));
    let url = Url::parse(&text.value)
        .map_err(|error| fail(format!("`{}` is no URL: {error}", text.value)))?;
    if !matches!(url.scheme(), "http" | "https") {
        let message = format!("`base_url` must be http or https, not `{}`", url.scheme());
        return Err(fail(message));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let hint =
            "name the variable of the environment that has it: `api_key_env`, or `headers_env`";
        return Err(hinted("a URL in a manifest holds no secret", hint));
    }
    let secret = |name: &str| {
        ["key", "api_key", "api-key", "apikey", "token", "access_token", "sig", "code"]
            .contains(&name)
    };
    if url.query_pairs().any(|(name, _)| secret(&name.to_ascii_lowercase())) {
        let hint =
            "most providers take it in a header: `headers_env = { \"<header>\" = \"<variable>\" }`";
        return Err(hinted("a URL in a manifest holds no secret", hint));
    }
    if url.path().trim_end_matches('/').ends_with("/completions") {
        let hint = "leave out `/chat/completions`";
        return Err(hinted("`base_url` ends before the path of a request", hint));
    }
    Ok(url)
}

/// All fields that do not say where the server is.
pub(super) fn read_common(fields: &Fields<'_>, setting: &Setting<'_>) -> Option<Endpoint> {
    let model = fields.needed_text("model");
    let provider = fields.text("provider").map_or_else(String::new, |text| text.value);
    let revision = fields.text("revision").map(|text| text.value);
    let api = match fields.choice("api", APIS) {
        Some(api) if api.value == "completions" => Api::Completions,
        _ => Api::Chat,
    };
    let max_tokens_field = fields.choice("max_tokens_field", MAX_TOKENS_FIELDS);
    let send_reasoning = fields.boolean("send_reasoning").unwrap_or(false);
    if send_reasoning && api == Api::Completions {
        let message = "`send_reasoning` is for chats: completions have no tool calls";
        let hint = "leave it out, or use `api = \"chat\"`";
        fields.error(Diagnostic::at(fields.place("send_reasoning"), message).hint(hint));
    }
    let rates = Rates {
        requests: fields.count("requests_per_minute", 1..=10_000_000),
        tokens: fields.count("tokens_per_minute", 1..=u32::MAX),
    };
    let texts = |table: Option<Vec<(String, Spanned<String>)>>| -> Vec<(String, String)> {
        table.unwrap_or_default().into_iter().map(|(name, text)| (name, text.value)).collect()
    };
    let headers = fields.text_table("headers");
    check_headers(fields, headers.as_deref().unwrap_or_default());
    let tokenizer = fields.path("tokenizer").filter(|path| setting.check_exists(fields, path));
    let prices = fields.path("prices").filter(|path| setting.check_exists(fields, path));
    let price = read_price(fields);
    if price.is_some() && fields.has("prices") {
        let message = "`price` and `prices` exclude each other";
        fields.error(
            Diagnostic::at(fields.place("price"), message).also(fields.place("prices"), "set here"),
        );
    }
    let openai = OpenAi {
        urls: Vec::new(),
        provider,
        model: String::new(),
        revision,
        api,
        stream: fields.boolean("stream").unwrap_or(true),
        extra_body: read_extra_body(fields),
        omit: fields.choices("omit", OMITTABLE).unwrap_or_default(),
        prefill: fields.choice("prefill", PREFILLS).map(|prefill| prefill.value),
        send_reasoning,
        max_tokens_field: max_tokens_field
            .map_or_else(|| MAX_TOKENS_FIELDS[0].to_owned(), |field| field.value),
        headers: texts(headers),
        key_env: fields.text("api_key_env").map(|text| text.value),
        key: None,
        secret_headers: Vec::new(),
        missing_env: Vec::new(),
        connect_timeout: fields.duration("connect_timeout").unwrap_or(CONNECT_TIMEOUT),
        max_in_flight: fields.count("max_in_flight", 1..=IN_FLIGHT_MAX),
        rates,
        strict: fields.boolean("strict").unwrap_or(false),
        probe: fields.boolean("probe").unwrap_or(true),
        tokenizer: None,
        context_length: fields.count("context_length", 1..=u32::MAX).map(u64::from),
        price,
        wants_likelihoods: Arc::default(),
    };
    let headers_env = texts(fields.text_table("headers_env"));
    let openai = OpenAi { model: model?.value, ..openai };
    let (tokenizer, prices) = (tokenizer.map(|path| path.value), prices.map(|path| path.value));
    Some(Endpoint { openai, headers_env, tokenizer, prices })
}

/// Headers that are likely to hold a secret do not stand in a file that is kept in git.
fn check_headers(fields: &Fields<'_>, headers: &[(String, Spanned<String>)]) {
    for (name, text) in headers {
        let lower = name.to_ascii_lowercase();
        if ["authorization", "api-key", "x-api-key", "cookie", "proxy-authorization"]
            .contains(&lower.as_str())
        {
            let hint =
                format!("`headers_env = {{ \"{name}\" = \"<variable>\" }}`, or `api_key_env`");
            let message = format!("the header `{name}` is a secret, which no manifest holds");
            fields.error(Diagnostic::at(text.span, message).hint(hint));
        }
    }
}

fn read_extra_body(fields: &Fields<'_>) -> Map<String, serde_json::Value> {
    let Some(body) = fields.json_table("extra_body") else { return Map::new() };
    for name in OWN_FIELDS.iter().filter(|name| body.value.contains_key(**name)) {
        let message = format!("`{name}` is not for `extra_body`: forge sends it itself");
        let hint = "it is a setting of the workflow or of this engine";
        fields.error(Diagnostic::at(body.span, message).hint(hint));
    }
    body.value
}

/// Dollars for a million tokens, in the manifest.
/// Dollars for a million tokens.
const PRICES: std::ops::RangeInclusive<f64> = 0.0..=1e9;

pub(super) fn read_price(fields: &Fields<'_>) -> Option<Price> {
    let table = fields.table("price")?;
    let number = |name| table.number(name, PRICES);
    let (input, output, cached) = (number("input"), number("output"), number("cached_input"));
    for (name, value) in [("input", input), ("output", output)] {
        if value.is_none() && !table.has(name) {
            let message = format!("a price needs `{name}`: dollars for a million tokens");
            table.error(Diagnostic::at(table.span(), message));
        }
    }
    table.finish();
    Some(Price { input: input?, output: output?, cached_input: cached })
}

/// The price of a model in a file of prices: a table for each model.
fn price_in(file: &Utf8PathBuf, model: &str, context: &Context) -> Result<Price, StageError> {
    let user = |what: String| StageError::User(format!("`{file}`: {what}"));
    let text = read_project_text(&context.root, file).map_err(user)?;
    let prices: BTreeMap<String, Price> =
        toml::from_str(&text).map_err(|error| user(error.to_string().trim_end().to_owned()))?;
    let Some(price) = prices.get(model).copied() else {
        let known: Vec<_> = prices.keys().map(String::as_str).collect();
        let message = format!("it has no price of `{model}` (known: {})", known.join(", "));
        return Err(user(message));
    };
    let cached = price.cached_input.unwrap_or(0.0);
    for (name, value) in
        [("input", price.input), ("output", price.output), ("cached_input", cached)]
    {
        if !PRICES.contains(&value) {
            let most = PRICES.end();
            let message = format!(
                "the price of `{model}` has {value} as `{name}`, and goes from 0 to {most}"
            );
            return Err(user(message));
        }
    }
    Ok(price)
}

impl Endpoint {
    /// The settings with what the environment and the files of the project add.
    pub(super) fn complete(&self, context: &Context) -> Result<OpenAi, StageError> {
        let mut openai = self.openai.clone();
        openai.key = openai.key_env.as_deref().and_then(|name| (context.env)(name));
        let value =
            |(name, variable): &(String, String)| Some((name.clone(), (context.env)(variable)?));
        openai.secret_headers = self.headers_env.iter().filter_map(value).collect();
        let missing = self.headers_env.iter().map(|(_, variable)| variable);
        let missing = missing.chain(openai.key_env.as_ref());
        openai.missing_env = missing
            .filter(|name| (context.env)(name).is_none_or(|v| v.is_empty()))
            .cloned()
            .collect();
        if let Some(file) = &self.tokenizer {
            let full = context.resolve(file)?;
            let digest = context.store.digest_of_file(&full)?;
            openai.tokenizer = Some((full, digest));
        }
        if let Some(file) = &self.prices {
            openai.price = Some(price_in(file, &openai.model, context)?);
        }
        Ok(openai)
    }

    pub(super) fn files(&self) -> Vec<Utf8PathBuf> {
        self.tokenizer.iter().chain(&self.prices).cloned().collect()
    }
}

impl Declared for Endpoint {
    fn found<'a>(
        &'a self,
        _: &'a str,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Found, StageError>> {
        async move {
            let openai = self.complete(context)?;
            let recipe = openai.identify(Recipe::new("engine", REV).field("backend", "openai"));
            Ok(Found { backend: Box::new(openai), recipe })
        }
        .boxed()
    }

    fn reads(&self) -> Vec<Utf8PathBuf> {
        self.files()
    }
}
