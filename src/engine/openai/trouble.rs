//! What the errors of a server mean: which may pass, which are final, and which say something about the request.
//! Knows nothing of replies.

use std::time::Duration;

use hyper::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use super::Ready;
use super::connection::{Answer, Broken};
use super::probe::brief;
use super::upstream::{Upstream, Visit};
use crate::engine::{EngineError, Trouble};
use crate::sample::Usage;

/// Reason of an attempt for which no connection came about.
pub const REFUSED: &str = "connect";
/// Nobody waits longer, and a clock has an end.
const WAIT_MAX: Duration = Duration::from_secs(86_400);

pub(super) fn unreachable(ready: &Ready, broken: &Broken) -> EngineError {
    let words = ready.post.words(broken);
    let reason = match broken {
        Broken::Reset(_) => return broken_off(&words),
        Broken::Connect(_) => REFUSED,
        Broken::ConnectTimeout(_) => "connect time-out",
    };
    let mut trouble = Trouble::new(reason, format!("cannot connect: {words}"));
    trouble.may_be_billed = false;
    EngineError::Passing(trouble)
}

pub(super) fn broken_off(words: &str) -> EngineError {
    EngineError::passing("reset", format!("the connection broke: {words}"))
}

/// What a failed attempt says about its server.
pub(super) fn blame(ready: &Ready, visit: Visit<'_>, error: EngineError) -> EngineError {
    let upstream = visit.upstream;
    let EngineError::Passing(mut trouble) = error else {
        match error {
            EngineError::Rejected { .. } | EngineError::Billed { .. } => visit.succeeded(),
            _ => visit.abstain(),
        }
        return error;
    };
    if trouble.retry_after.is_some() || trouble.reason == "429" {
        visit.limited(trouble.retry_after);
        // Another server may be free at once.
        trouble.retry_after = ready.upstreams.first_ready();
    } else {
        // Without a verdict it counts as failed.
        drop(visit);
    }
    if ready.upstreams.all.len() > 1 {
        trouble.detail = format!("{}: {}", upstream.label, trouble.detail);
    }
    EngineError::Passing(trouble)
}

/// An answer that is no success, sorted.
pub(super) async fn refused(
    ready: &Ready,
    upstream: &Upstream,
    mut answer: Answer<'_>,
) -> EngineError {
    let status = answer.head.status.as_u16();
    let retry_after = retry_after(&answer.head.headers);
    let renewed = renewed(&answer.head.headers);
    let mut body = Vec::new();
    let ended = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() <= 1 << 20 => body.extend_from_slice(&chunk),
            other => break matches!(other, Ok(None)),
        }
    };
    if ended {
        answer.keep_connection().await;
    }
    let text = ready.post.hide(&String::from_utf8_lossy(&body));
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    // Gemini puts its error into a list.
    let json = match json {
        Value::Array(list) => list.into_iter().next().unwrap_or_default(),
        other => other,
    };
    let said = message(&json).unwrap_or_else(|| brief(&text));
    let retry_after = retry_after.or_else(|| retry_delay(&json));
    let retry_after = match status {
        429 => retry_after.or_else(|| try_again_in(&said)).or(renewed),
        _ => retry_after,
    };
    let mut detail = format!("{status} {}", said.trim()).trim_end().to_owned();
    if status < 500 && text.contains("stream_options") {
        detail.push_str(" (`omit = [\"stream_options\"]` on the engine leaves it out)");
    }
    let code = word(&json);
    let has = |part: &str| code.contains(part) || said.to_lowercase().contains(part);
    // An empty account answers 429 as well, and waiting does not fill it.
    let no_money = code.contains("insufficient_quota") || code.contains("billing");
    match status {
        300..400 => EngineError::Broken(format!(
            "{status}: `{}` points elsewhere, and a key must not follow",
            upstream.label
        )),
        429 if no_money => EngineError::Broken(detail),
        400 | 413 | 422 if is_overflow(&code, &said) => {
            EngineError::Rejected { code: "overflow", detail }
        }
        400 | 403 | 422 | 451
            if has("content_filter") || has("content_policy") || has("moderation") =>
        {
            EngineError::Rejected { code: "refused", detail }
        }
        // Anything else is as likely a setting that this server does not take, and mending that would not
        // change the key: it must not be remembered.
        408 | 409 | 424 | 425 | 429 | 500.. => {
            // llama.cpp answers 500 where others say 400.
            if status == 500 && is_overflow(&code, &said) {
                return EngineError::Rejected { code: "overflow", detail };
            }
            let mut trouble = Trouble::new(status.to_string(), detail);
            trouble.overload = matches!(status, 408 | 429 | 503 | 504 | 529);
            trouble.retry_after = retry_after;
            // Providers bill replies, and this is none.
            trouble.may_be_billed = false;
            EngineError::Passing(trouble)
        }
        // One server of several may have another key, or not have the model.
        401 | 403 | 404 | 405 if ready.upstreams.exclude(upstream) => {
            let detail = format!("{detail}; this server gets no further request");
            let mut trouble = Trouble::new(status.to_string(), detail);
            trouble.may_be_billed = false;
            EngineError::Passing(trouble)
        }
        _ => EngineError::Broken(detail),
    }
}

/// The words of an error: OpenAI's object, FastAPI's `detail`, or a bare text.
fn message(json: &Value) -> Option<String> {
    let error = &json["error"];
    let candidates = [&error["message"], error, &json["message"], &json["detail"]];
    let text = candidates.iter().find_map(|value| value.as_str());
    let text = text.map(str::to_owned).or_else(|| match &json["detail"] {
        Value::Null => None,
        other => Some(other.to_string()),
    });
    text.map(|text| brief(&text))
}

/// The short names of an error.
fn word(json: &Value) -> String {
    let error = &json["error"];
    let words = [&error["code"], &error["type"], &json["code"], &json["type"]];
    words.iter().filter_map(|value| value.as_str()).collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Whether an error says that the prompt does not fit: each server has words of its own.
fn is_overflow(code: &str, said: &str) -> bool {
    let said = said.to_lowercase();
    // Then the prompt fits, and what was asked for beside it does not.
    let asks_too_much =
        ["max_tokens", "max_completion_tokens"].iter().any(|name| said.contains(name));
    if asks_too_much && said.contains("too large") {
        return false;
    }
    let codes = ["context_length_exceeded", "exceed_context_size", "context_window"];
    let words = [
        "context length",
        "context size",
        "context window",
        "maximum context",
        "too many tokens",
        "prompt is too long",
        "input is too long",
        "max_seq_len",
        "`inputs` tokens + `max_new_tokens`",
        "`inputs` must have less than",
    ];
    codes.iter().any(|part| code.contains(part)) || words.iter().any(|part| said.contains(part))
}

/// How long to wait, as Google's servers say it: in the details of the error (`google.rpc.RetryInfo`).
fn retry_delay(json: &Value) -> Option<Duration> {
    let details = json["error"]["details"].as_array()?;
    let delay = details.iter().find_map(|detail| detail["retryDelay"].as_str())?;
    let seconds = delay.strip_suffix('s')?.parse::<f64>().ok()?;
    Some(Duration::try_from_secs_f64(seconds).ok()?.min(WAIT_MAX))
}

/// How long to wait: seconds or a date (RFC 9110, § 10.2.3), or milliseconds in the header that OpenAI and
/// Azure send beside it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let finite = |seconds: f64| {
        let wait = Duration::try_from_secs_f64(seconds).ok()?;
        Some(wait.min(WAIT_MAX))
    };
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return finite(ms / 1000.0);
    }
    let text = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = text.parse::<f64>() {
        return finite(seconds);
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// How long to wait, as OpenAI and Groq say it in words: `Please try again in 1m2.5s.`
fn try_again_in(said: &str) -> Option<Duration> {
    let (_, rest) = said.split_once("try again in ")?;
    let text = rest.split_whitespace().next()?;
    span(text.trim_end_matches(['.', ',', ')']))
}

/// When a budget is full again of which nothing is left, as OpenAI and Groq say with each answer.
fn renewed(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: String| headers.get(name)?.to_str().ok().map(str::trim);
    let spent = ["requests", "tokens"].into_iter().filter(|what| {
        text(format!("x-ratelimit-remaining-{what}")).is_some_and(|left| left == "0")
    });
    spent.filter_map(|what| span(text(format!("x-ratelimit-reset-{what}"))?)).max()
}

/// A span as Go writes it: `6m0s`, `7.66s`, `120ms`. A bare number is of seconds.
fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    let span = Duration::try_from_secs_f64(seconds).ok().filter(|span| !span.is_zero())?;
    Some(span.min(WAIT_MAX))
}

pub(super) fn malformed(ready: &Ready, why: &str, body: &[u8]) -> EngineError {
    let shown = brief(&ready.post.hide(&String::from_utf8_lossy(&body[..body.len().min(400)])));
    let shown = if shown.is_empty() { shown } else { format!(": {shown}") };
    EngineError::passing("malformed", format!("the reply cannot be read ({why}){shown}"))
}

/// An error in the place of a reply, or in the middle of one that had `begun`. What was good enough to begin a reply
/// is not wrong for good, whatever number stands there: vLLM says 400 to whatever breaks a stream.
pub(super) fn said_error(ready: &Ready, error: Value, begun: bool) -> EngineError {
    let status = error["code"].as_u64().or(error["status"].as_u64());
    let is_final = !begun && matches!(status, Some(400..=407 | 410..=423 | 426..=428));
    let json = serde_json::json!({ "error": error });
    let text = message(&json).unwrap_or_else(|| brief(&json["error"].to_string()));
    let detail = ready.post.hide(&text);
    if is_overflow(&word(&json), &detail) {
        let error = EngineError::Rejected { code: "overflow", detail };
        // Nobody has said what the beginning costs.
        return if begun { error.billed(Usage::default()) } else { error };
    }
    if is_final {
        return EngineError::Broken(detail);
    }
    let mut trouble = Trouble::new(status.map_or("error".to_owned(), |s| s.to_string()), detail);
    trouble.overload = matches!(status, Some(429 | 503 | 529));
    EngineError::Passing(trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_as_servers_write_them() {
        let ms = |text| span(text).map(|span| span.as_millis());
        let all =
            ["6m0s", "7.66s", "120ms", "1h2m3s", "59", "0s", "", "soon", "1.2.3s", "5 s", "-1s"];
        let expected = [Some(360_000), Some(7660), Some(120), Some(3_723_000), Some(59_000)];
        assert_eq!(all.map(ms)[..5], expected);
        assert_eq!(all.map(ms)[5..], [None; 6]);
        let said = "Rate limit reached for m in organization o on tokens per min (TPM): Limit 200000, Used \
                    199036. Please try again in 5.289s. Visit https://example.org to learn more.";
        assert_eq!(try_again_in(said), Some(Duration::from_millis(5289)));
        assert_eq!(try_again_in("try again in a moment"), None);
    }

    #[test]
    fn of_several_budgets_the_empty_one_counts() {
        let headers = |requests: &str, tokens: &str| {
            let mut all = HeaderMap::new();
            all.insert("x-ratelimit-remaining-requests", requests.parse().unwrap());
            all.insert("x-ratelimit-remaining-tokens", tokens.parse().unwrap());
            all.insert("x-ratelimit-reset-requests", "8.64s".parse().unwrap());
            all.insert("x-ratelimit-reset-tokens", "1m2s".parse().unwrap());
            renewed(&all).map(|span| span.as_millis())
        };
        assert_eq!(headers("0", "1000"), Some(8640));
        assert_eq!(headers("0", "0"), Some(62_000));
        assert_eq!(headers("3", "17"), None);
    }
}
