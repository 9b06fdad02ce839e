//! Who may ask: a token as bearer or through the login page, the session that it opens, and the checks against
//! requests that another site makes a browser send. Knows nothing of what is asked.
//!
//! The token itself is kept nowhere: what is compared is its SHA-256, in constant time. A session is a random name in
//! the memory of the server, so that sessions end with it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Uri, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// The cookie of a session.
pub const COOKIE: &str = "forge_session";
/// How long a session lasts.
pub const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Sessions at once.
const SESSIONS_MAX: usize = 1_000;

/// 256 bits that nobody can guess, as text.
pub fn secret() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Whom a request comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Caller {
    /// Anybody: no token is asked for.
    Anybody,
    /// A program with the token.
    Bearer,
    /// A browser that has logged in.
    Session(String),
}

/// What is asked of callers.
pub struct Auth {
    token: Option<[u8; 32]>,
    /// Of the forms of pages.
    seed: String,
    /// Names that this server answers to, beside addresses and `localhost`.
    hosts: Vec<String>,
    sessions: Mutex<HashMap<String, Instant>>,
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

impl Auth {
    /// With a token, or without.
    pub fn new(token: Option<&str>, hosts: Vec<String>) -> Auth {
        Auth { token: token.map(hash), seed: secret(), hosts, sessions: Mutex::default() }
    }

    /// Whether a token is asked for.
    pub fn is_asked(&self) -> bool {
        self.token.is_some()
    }

    fn is_token(&self, given: &str) -> bool {
        self.token.is_some_and(|token| token.ct_eq(&hash(given)).into())
    }

    /// Whom a request comes from; `None` of a stranger.
    pub fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        if self.token.is_none() {
            return Some(Caller::Anybody);
        }
        let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if let Some((scheme, token)) = text.and_then(|text| text.split_once(' '))
            && scheme.eq_ignore_ascii_case("bearer")
            && self.is_token(token.trim())
        {
            return Some(Caller::Bearer);
        }
        let name = cookie(headers)?;
        let mut sessions = self.sessions.lock().expect("BUG: the session lock is poisoned");
        sessions.retain(|_, since| since.elapsed() < SESSION);
        sessions.contains_key(&name).then_some(Caller::Session(name))
    }

    /// Opens a session for who has the token.
    pub fn login(&self, token: &str) -> Option<String> {
        if !self.is_token(token) {
            return None;
        }
        let name = secret();
        let mut sessions = self.sessions.lock().expect("BUG: the session lock is poisoned");
        sessions.retain(|_, since| since.elapsed() < SESSION);
        if sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = sessions.iter().min_by_key(|(_, since)| **since)
        {
            let oldest = oldest.0.clone();
            sessions.remove(&oldest);
        }
        sessions.insert(name.clone(), Instant::now());
        Some(name)
    }

    /// Ends a session.
    pub fn logout(&self, caller: &Caller) {
        if let Caller::Session(name) = caller {
            self.sessions.lock().expect("BUG: the session lock is poisoned").remove(name);
        }
    }

    /// What the forms of a caller's pages carry: another site cannot read a page, and so cannot send it.
    pub fn form_token(&self, caller: &Caller) -> String {
        let name = match caller {
            Caller::Session(name) => name.as_str(),
            Caller::Anybody | Caller::Bearer => "",
        };
        let bytes = hash(&format!("{}:{name}", self.seed));
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether a form carries it.
    pub fn is_form_token(&self, caller: &Caller, given: &str) -> bool {
        self.form_token(caller).as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// Whether the request was meant for this server. A name that somebody else's DNS leads here is not ours: with
    /// it a page of another site could read what this server says.
    pub fn is_host(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let mut all = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (all.next(), all.next()) else { return false };
        let Ok(host) = host.to_str() else { return false };
        let name = name_of(host);
        let is_ours = name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(name));
        is_ours && uri.authority().is_none_or(|authority| authority.as_str() == host)
    }
}

/// The name of a host, without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    }
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| name.trim() == COOKIE).map(|(_, value)| value.trim().to_owned())
}

/// Whether a request that changes something was made by a page of this server, or by no page at all. Browsers say
/// where a request comes from; programs do not.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return false;
    }
    match (text("origin"), text("host")) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            let rest = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
            rest.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
        }
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: axum::http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_token_a_session_or_nobody() {
        let auth = Auth::new(Some("right"), vec![]);
        let caller = |name: &str, value: &str| auth.caller(&headers(&[(name, value)]));
        assert_eq!(caller("authorization", "Bearer right"), Some(Caller::Bearer));
        assert_eq!(caller("authorization", "Bearer wrong"), None);
        assert_eq!(caller("authorization", "right"), None);
        assert_eq!(auth.login("wrong"), None);
        let session = auth.login("right").unwrap();
        let known = caller("cookie", &format!("a=b; {COOKIE}={session}")).unwrap();
        assert_eq!(known, Caller::Session(session.clone()));
        assert_eq!(caller("cookie", &format!("{COOKIE}=else")), None);
        assert!(auth.is_form_token(&known, &auth.form_token(&known)));
        assert!(!auth.is_form_token(&known, &auth.form_token(&Caller::Bearer)));
        auth.logout(&known);
        assert_eq!(caller("cookie", &format!("{COOKIE}={session}")), None);
        assert_eq!(Auth::new(None, vec![]).caller(&headers(&[])), Some(Caller::Anybody));
    }

    #[test]
    fn names_of_others_are_not_ours() {
        let auth = Auth::new(None, vec!["bench.example".to_owned()]);
        let is_ours = |host: &str| auth.is_host(&headers(&[("host", host)]), &"/".parse().unwrap());
        for host in
            ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "BENCH.example:443"]
        {
            assert!(is_ours(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "localhost:80:80x",
        ] {
            assert!(!is_ours(host), "{host}");
        }
        assert!(!auth.is_host(&headers(&[]), &"/".parse().unwrap()));
    }

    #[test]
    fn other_sites_are_told_apart() {
        let same = |pairs: &[(&str, &str)]| {
            let mut all = vec![("host", "127.0.0.1:8080")];
            all.extend(pairs);
            is_same_origin(&headers(&all))
        };
        assert!(same(&[]) && same(&[("origin", "http://127.0.0.1:8080")]));
        assert!(same(&[("sec-fetch-site", "same-origin")]));
        assert!(!same(&[("origin", "http://evil.example")]) && !same(&[("origin", "null")]));
        assert!(
            !same(&[("sec-fetch-site", "cross-site")]) && !same(&[("sec-fetch-site", "same-site")])
        );
    }
}
