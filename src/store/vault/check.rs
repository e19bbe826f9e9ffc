//! Asking a provider whether a key works: its cheapest authenticated call, once, with a verdict that tells refusals apart.

use super::Entry;
use crate::engine::catalog::{BaseUrl, Provider};
use crate::engine::provider::{Auth, Kind, Verdict, spec};
use crate::store::outbound::{Clients, Reach, body, client, is_public, why};
use crate::store::secret::Secret;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};

/// Where a key is to be checked.
#[derive(Debug, Clone)]
pub struct Place {
    /// Which API it is.
    pub kind: Kind,
    /// Where it is.
    pub base: BaseUrl,
    /// Account id (Cloudflare), resource (Azure).
    pub account: Option<String>,
    /// API version (Azure).
    pub api_version: Option<String>,
    /// PEM file with the authorities to trust.
    pub ca: Option<String>,
    /// Who named the address.
    pub reach: Reach,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the provider thinks of the key.
    pub verdict: Verdict,
    /// The status it said so with; `None`: there was no answer.
    pub status: Option<u16>,
    /// For the owner: what happened and what to do.
    pub detail: String,
}

impl Place {
    /// A configured provider, or the owner's own address with that provider's dialect.
    pub fn of(provider: &Provider, own_base: Option<&BaseUrl>) -> Place {
        Place {
            kind: provider.kind,
            base: own_base.unwrap_or(&provider.base).clone(),
            account: provider.account.as_deref().map(str::to_owned),
            api_version: provider.api_version.as_deref().map(str::to_owned),
            ca: provider.ca.as_deref().filter(|_| own_base.is_none()).map(str::to_owned),
            reach: if own_base.is_some() { Reach::Public } else { Reach::Any },
        }
    }

    /// A provider nobody configured, at its usual address; `None`: it has none without an account or a base URL.
    pub fn usual(kind: Kind, own_base: Option<&BaseUrl>) -> Option<Place> {
        let base = match own_base {
            Some(base) => base.clone(),
            None => BaseUrl::parse(&spec(kind).default_base(None)?).ok()?,
        };
        let reach = if own_base.is_some() { Reach::Public } else { Reach::Any };
        Some(Place { kind, base, account: None, api_version: None, ca: None, reach })
    }
}

/// Asks about a stored key: at the provider, or at the owner's own address when the entry has one. Cancel-safe: nothing is
/// kept. The answer holds no part of the key. `allows_host`: hosts that need not be public.
pub async fn ask(provider: &Provider, entry: &Entry, key: &Secret, allows_host: impl Fn(&str) -> bool) -> Answer {
    let own_base = match entry.base_url.as_deref().map(BaseUrl::parse).transpose() {
        Ok(own_base) => own_base,
        Err(why) => return no_answer(format!("its base_url {why}")),
    };
    let mut place = Place::of(provider, own_base.as_ref());
    if allows_host(&place.base.host) {
        place.reach = Reach::Any;
    }
    ask_at(&place, key).await
}

/// As [`ask`], at a place.
pub async fn ask_at(place: &Place, key: &Secret) -> Answer {
    match Clients::shared() {
        Ok(clients) => send(clients, place, key).await,
        Err(why) => no_answer(why.clone()),
    }
}

fn no_answer(detail: String) -> Answer {
    Answer { verdict: Verdict::Unclear, status: None, detail }
}

async fn send(clients: &Clients, place: &Place, key: &Secret) -> Answer {
    let spec = spec(place.kind);
    // An address in the URL itself is not resolved, so it is looked at here.
    if place.reach == Reach::Public && place.base.host.parse().is_ok_and(|address| !is_public(address)) {
        return no_answer(format!("{} is not a public address", place.base.host));
    }
    let check = spec.check(&place.base, place.account.as_deref(), place.api_version.as_deref());
    let origin = BaseUrl { path: "".into(), ..place.base.clone() };
    let special = match place.ca.as_deref().map(|path| authorities(path, place.reach)).transpose() {
        Ok(special) => special,
        Err(detail) => return no_answer(detail),
    };
    let mut request = special.as_ref().unwrap_or(clients.of(place.reach)).get(format!("{origin}{}", check.path));
    for (name, value) in spec.default_headers() {
        request = request.header(*name, *value);
    }
    let Some((name, value)) = auth_header(spec.auth(), key) else {
        return Answer { verdict: Verdict::Invalid, status: None, detail: "the key cannot stand in a header".into() };
    };
    let response = match request.header(name, value).send().await {
        Ok(response) => response,
        Err(error) => return no_answer(format!("{}: {}", place.base.host, why(&error))),
    };
    let status = response.status().as_u16();
    let Ok(body) = body(response).await else {
        return no_answer(format!("{}: the answer broke off", place.base.host));
    };
    let verdict = match spec.read_check(status, &body) {
        Verdict::Valid if check.answers_anyone => Verdict::Unclear,
        verdict => verdict,
    };
    Answer { verdict, status: Some(status), detail: in_words(verdict, spec.title, status) }
}

fn authorities(path: &str, reach: Reach) -> Result<reqwest::Client, String> {
    let pem = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    client(reach, Some(&pem))
}

fn auth_header(auth: Auth, key: &Secret) -> Option<(HeaderName, HeaderValue)> {
    let (name, text) = match auth {
        Auth::Bearer => (AUTHORIZATION, Secret::new(format!("Bearer {}", key.expose()))),
        Auth::Header(name) => (HeaderName::from_static(name), key.clone()),
    };
    let mut value = HeaderValue::from_str(text.expose()).ok()?;
    // Kept out of Debug output and header tables.
    value.set_sensitive(true);
    Some((name, value))
}

fn in_words(verdict: Verdict, provider: &str, status: u16) -> String {
    match verdict {
        Verdict::Valid => format!("{provider} accepts it"),
        Verdict::Invalid => format!("{provider} does not know it (status {status}): make a new one there and set it again"),
        Verdict::Expired => format!("{provider} says it has expired (status {status}): make a new one there and set it again"),
        Verdict::WrongPermissions => format!("{provider} knows it, but it may not do this (status {status}): widen its permissions there"),
        Verdict::NoCredit => format!("{provider} knows it, but its account cannot pay (status {status})"),
        Verdict::Unclear => format!("{provider}'s answer says nothing about the key (status {status}): try again later"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that answers every request with `answer` and keeps what it was sent.
    async fn server(answer: &'static str) -> (String, Arc<Mutex<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let kept = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                kept.lock().unwrap().push_str(&String::from_utf8(request).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (format!("http://{address}"), seen)
    }

    fn place(kind: Kind, base: &str, reach: Reach) -> Place {
        Place { kind, base: BaseUrl::parse(base).unwrap(), account: None, api_version: None, ca: None, reach }
    }

    async fn check(kind: Kind, answer: &'static str, expected: Verdict) -> String {
        let (base, seen) = server(answer).await;
        let clients = Clients::new().unwrap();
        let key = Secret::copied("canary-0123456789abcdef");
        let answer = send(&clients, &place(kind, &base, Reach::Any), &key).await;
        assert_eq!(answer.verdict, expected, "{answer:?}");
        assert!(!answer.detail.contains("0123456789abcdef"[..8].trim()));
        let seen = seen.lock().unwrap().clone();
        assert!(!seen.lines().next().unwrap().contains("canary"));
        seen
    }

    #[tokio::test]
    async fn verdicts_are_detail_apart() {
        let seen = check(Kind::OpenAi, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", Verdict::Valid).await;
        assert!(seen.starts_with("GET /v1/models ") && seen.contains("Bearer canary-"), "{seen}");
        let seen = check(Kind::Anthropic, "HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", Verdict::Invalid).await;
        assert!(seen.contains("x-api-key: canary-") && seen.contains("anthropic-version: "), "{seen}");
        check(Kind::OpenAi, "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n", Verdict::WrongPermissions).await;
        check(Kind::OpenAi, "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", Verdict::Unclear).await;
        let expired = "HTTP/1.1 200 OK\r\ncontent-length: 53\r\n\r\n{\"success\":true,\"result\":{\"status\":\"expired\",\"id\":1}}";
        let seen = check(Kind::Cloudflare, expired, Verdict::Expired).await;
        assert!(seen.starts_with("GET /client/v4/user/tokens/verify "), "{seen}");
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let (base, seen) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        let answer: &'static str = format!("HTTP/1.1 302 Found\r\nlocation: {base}/\r\ncontent-length: 0\r\n\r\n").leak();
        check(Kind::OpenAi, answer, Verdict::Unclear).await;
        assert!(seen.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_users_address_must_be_public() {
        let (base, seen) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        let port = base.rsplit(':').next().unwrap().to_owned();
        let clients = Clients::new().unwrap();
        for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"] {
            let place = place(Kind::OpenAi, &format!("http://{host}:{port}/v1"), Reach::Public);
            let answer = send(&clients, &place, &Secret::copied("canary-0123456789abcdef")).await;
            assert_eq!((answer.verdict, answer.status), (Verdict::Unclear, None), "{host}");
        }
        assert!(seen.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_dead_provider_says_nothing_about_a_key() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let answer = send(&Clients::new().unwrap(), &place(Kind::OpenAi, &base, Reach::Any), &Secret::copied("k")).await;
        assert_eq!(answer.verdict, Verdict::Unclear);
        assert!(answer.detail.contains("cannot connect"), "{answer:?}");
    }
}
