//! Pages of the web that an agent may read: GET, of addresses on a list, and of nothing else. Knows nothing of
//! what stands in them.
//!
//! A model writes the address, and what it reads may tell it which. So every address, that of a redirect too, must
//! be on the list, and a name on the list must not lead to a machine of one's own network unless the manifest
//! says so. An answer is remembered with its sample; what failed for a passing reason ends the sample instead.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::LOCATION;
use url::{Host, Url};

use crate::digest::Recipe;
use crate::manifest::{Diagnostic, Fields, Spanned};
use crate::stage::StageError;
use crate::tool::{self, Answers, Observation, Tool, ToolError, limited};

/// Version of how pages are fetched and shown.
const REV: u32 = 1;
/// Time of a fetch where the manifest is silent.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Redirects that are followed.
const REDIRECTS_MAX: u32 = 5;
/// Further attempts after one that failed for a passing reason, and the pause before each.
const RETRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes that a character of an answer may take.
const BYTES_MAX: usize = 4;

/// As a manifest declares it.
pub(super) struct Declared {
    description: String,
    allow: Vec<Url>,
    private_addresses: bool,
    deterministic: bool,
    timeout: Duration,
    output_limit: u32,
}

pub(super) fn read(fields: &Fields<'_>) -> Option<Declared> {
    let description = fields.text("description").map(|text| text.value);
    if !fields.has("allow") {
        let hint =
            "`allow = [\"https://en.wikipedia.org/wiki/\"]`: what an address must begin with";
        let message = "an `http` tool needs the list of what it may read";
        fields.error(Diagnostic::at(fields.span(), message).hint(hint));
    }
    let texts = fields.texts("allow").unwrap_or_default();
    let mut allow = Vec::new();
    for text in &texts {
        match allowed(text) {
            Ok(url) => allow.push(url),
            Err(diagnostic) => fields.error(*diagnostic),
        }
    }
    if texts.is_empty() && fields.has("allow") {
        fields.error(Diagnostic::at(fields.place("allow"), "`allow` names no address"));
    }
    let declared = Declared {
        description: description.unwrap_or_else(|| "reads a web page".to_owned()),
        private_addresses: fields.boolean("private_addresses").unwrap_or(false),
        deterministic: fields.boolean("deterministic").unwrap_or(false),
        timeout: fields.duration("timeout").unwrap_or(TIMEOUT),
        output_limit: super::read_output_limit(fields),
        allow,
    };
    (!texts.is_empty() && declared.allow.len() == texts.len()).then_some(declared)
}

fn allowed(text: &Spanned<String>) -> Result<Url, Box<Diagnostic>> {
    let fail = |message: String| Box::new(Diagnostic::at(text.span, message));
    let url = Url::parse(&text.value).map_err(|error| {
        let hint = "write the beginning of an address: `https://example.org/docs/`";
        Box::new(
            Diagnostic::at(text.span, format!("`{}` is no URL: {error}", text.value)).hint(hint),
        )
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(fail(format!("an address is http or https, not `{}`", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fail("a URL in a manifest holds no secret".to_owned()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(fail(format!("`{}` is more than host and path", text.value)));
    }
    Ok(url)
}

/// Whether an address is at or below one of the list: the same scheme, host and port, and a path that goes on
/// at a `/`.
fn is_allowed(allow: &[Url], url: &Url) -> bool {
    let below = |list: &str, path: &str| match path.strip_prefix(list) {
        Some(rest) => list.ends_with('/') || rest.is_empty() || rest.starts_with('/'),
        None => false,
    };
    url.username().is_empty()
        && url.password().is_none()
        && allow.iter().any(|one| {
            (one.scheme(), one.host(), one.port_or_known_default())
                == (url.scheme(), url.host(), url.port_or_known_default())
                && below(one.path(), url.path())
        })
}

/// Whether an address is one of the machine itself or of a network of one's own.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                // Shared by the customers of a provider.
                || (a == 100 && (64..128).contains(&b))
                || a >= 240
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private(v4.into()),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
            }
        },
    }
}

/// Looks names up, and leaves out private addresses. Addresses that the list writes as numbers are not looked
/// up: they are listed knowingly, as is `localhost`.
struct Public {
    localhost: bool,
}

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        let is_listed = self.localhost && name.as_str() == "localhost";
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (private, public): (Vec<SocketAddr>, Vec<SocketAddr>) =
                found.partition(|address| is_private(address.ip()) && !is_listed);
            if public.is_empty() && !private.is_empty() {
                let words =
                    "it is an address of a private network; `private_addresses = true` allows it";
                return Err(words.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

impl Declared {
    pub(super) fn build(&self, name: &str) -> Result<Http, StageError> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(self.timeout)
            .user_agent(concat!("forge/", env!("CARGO_PKG_VERSION")));
        let is_local = |url: &Url| match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if self.allow.iter().all(is_local) {
            // A proxy is for the world outside.
            builder = builder.no_proxy();
        }
        if !self.private_addresses {
            let localhost = Some(Host::Domain("localhost"));
            let localhost = self.allow.iter().any(|url| url.host() == localhost);
            builder = builder.dns_resolver(Arc::new(Public { localhost }));
        }
        let client = builder
            .build()
            .map_err(|error| StageError::Failed(format!("cannot make an HTTP client: {error}")))?;
        Ok(Http {
            name: name.to_owned(),
            description: self.description.clone(),
            allow: self.allow.clone(),
            deterministic: self.deterministic,
            output_limit: self.output_limit as usize,
            client,
        })
    }
}

/// The tool.
pub(super) struct Http {
    name: String,
    description: String,
    allow: Vec<Url>,
    deterministic: bool,
    output_limit: usize,
    client: reqwest::Client,
}

impl Http {
    async fn fetch(&self, input: &str) -> Result<Observation, ToolError> {
        let Ok(url) = Url::parse(input.trim()) else {
            return Ok(Observation::error(format!("write an address: {}[https://…]", self.name)));
        };
        let mut tries = 0;
        loop {
            match self.follow(url.clone()).await {
                Ok(observation) => return Ok(observation),
                Err(_) if tries < RETRIES => tries += 1,
                Err(reason) => {
                    // The address is the model's, and tells what was tried.
                    return Err(ToolError(format!("cannot read {url}: {reason}")));
                }
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
    }

    /// A page, and those it points to; an error is a reason that may pass.
    async fn follow(&self, mut url: Url) -> Result<Observation, String> {
        for _ in 0..=REDIRECTS_MAX {
            if !is_allowed(&self.allow, &url) {
                let list: Vec<_> = self.allow.iter().map(Url::as_str).collect();
                return Ok(Observation::error(format!(
                    "{url} is not allowed; addresses begin with: {}",
                    list.join(", ")
                )));
            }
            let response = self.client.get(url.clone()).send().await.map_err(words)?;
            let status = response.status();
            if status.is_redirection() {
                let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                let Some(next) = to.and_then(|to| url.join(to).ok()) else {
                    return Ok(Observation::error(format!("HTTP {} without a place", status)));
                };
                url = next;
                continue;
            }
            if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
                return Err(format!("HTTP {status}"));
            }
            let text = self.text(response).await?;
            return Ok(match status.is_success() {
                true => Observation::good(limited(text.trim(), self.output_limit)),
                false => Observation::error(format!("HTTP {status}")),
            });
        }
        Ok(Observation::error(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// As much of a page as is shown.
    async fn text(&self, mut response: reqwest::Response) -> Result<String, String> {
        let most = self.output_limit.saturating_mul(BYTES_MAX);
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(words)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > most {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The last cause of an error: the first say no more than that there was a request.
fn words(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "time-out".to_owned();
    }
    let mut last: &dyn std::error::Error = &error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

impl Tool for Http {
    fn name(&self) -> &str {
        &self.name
    }

    fn usage(&self) -> String {
        format!("{}[<address>] {}", self.name, self.description)
    }

    fn answers(&self) -> Answers {
        if self.deterministic { Answers::Deterministic } else { Answers::Varying }
    }

    fn bytes_max(&self) -> u64 {
        tool::bytes_of(self.output_limit)
    }

    fn call<'a>(&'a self, input: &'a str) -> BoxFuture<'a, Result<Observation, ToolError>> {
        self.fetch(input).boxed()
    }

    fn describe(&self, recipe: Recipe) -> Recipe {
        let allow: Vec<_> = self.allow.iter().map(Url::as_str).collect();
        let settings = serde_json::json!({
            "kind": "http", "rev": REV, "description": self.description, "allow": allow,
            "output_limit": self.output_limit, "deterministic": self.deterministic,
        });
        recipe.field(&format!("tool.{}", self.name), settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_on_the_list_is_read() {
        let list = ["https://h.org/wiki/", "http://10.0.0.1:8080/api"];
        let list: Vec<_> = list.iter().map(|url| Url::parse(url).unwrap()).collect();
        let check = |url: &str, want: bool| {
            assert_eq!(is_allowed(&list, &Url::parse(url).unwrap()), want, "{url}");
        };
        check("https://h.org/wiki/Lyon?x=1", true);
        check("https://H.ORG:443/wiki/", true);
        check("http://10.0.0.1:8080/api", true);
        check("http://10.0.0.1:8080/api/a", true);
        check("http://10.0.0.1:8080/apis", false);
        check("http://h.org/wiki/Lyon", false);
        check("https://h.org/other", false);
        check("https://h.org/wiki/../other", false);
        check("https://h.org/wiki/%2e%2e/other", false);
        check("https://h.org.evil.com/wiki/", false);
        check("https://h.org@evil.com/wiki/", false);
        check("https://user@h.org/wiki/", false);
        check("https://h.org:8443/wiki/", false);
        check("file:///etc/passwd", false);
    }

    #[test]
    fn private_addresses_are_known() {
        let check = |text: &str, want: bool| {
            assert_eq!(is_private(text.parse().unwrap()), want, "{text}");
        };
        for private in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254"] {
            check(private, true);
            check(&format!("::ffff:{private}"), true);
        }
        for private in ["0.0.0.0", "100.64.0.1", "::1", "::", "fd00::1", "fe80::1", "224.0.0.1"] {
            check(private, true);
        }
        for public in ["93.184.216.34", "100.128.0.1", "172.32.0.1", "2606:2800:220:1::1"] {
            check(public, false);
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_refused() {
        let resolve = |localhost| Public { localhost }.resolve("localhost".parse().unwrap());
        let error = resolve(false).await.err().expect("it is this machine");
        assert!(error.to_string().contains("private network"), "{error}");
        assert!(resolve(true).await.is_ok());
    }
}
