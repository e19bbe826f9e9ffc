//! weir's own calls beside the proxied ones: key checks, JWKS. Small, few, without redirects.
//!
//! An address a user names is only followed to the public internet, and that is decided on the very address that is connected
//! to: a name that resolves to a public address when looked at and to a private one a moment later gets nowhere.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, redirect};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;
use std::time::Duration;

/// How long a side call may take in all. A provider that needs longer for a list of models is as good as down.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of an answer that are read; JWKS and model lists are far smaller, and what is beyond is not needed.
pub const ANSWER_MAX: usize = 1 << 20;

/// Which addresses a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Any: the operator named them.
    Any,
    /// Public ones only: a user named them.
    Public,
}

/// A client. `ca` is a PEM with authorities to trust beside the system's.
///
/// Errors: the PEM cannot be read, or the system's authorities cannot.
pub fn client(reach: Reach, ca: Option<&[u8]>) -> Result<Client, String> {
    // ring, as everywhere in weir; the second call of a process changes nothing, which is what its error says.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .timeout(CALL_TIMEOUT)
        // A redirect would carry the key to an address nobody looked at.
        .redirect(redirect::Policy::none())
        .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")));
    if reach == Reach::Public {
        // A proxy would connect in our place, where nothing can be checked.
        builder = builder.dns_resolver(PublicOnly).no_proxy();
    }
    if let Some(pem) = ca {
        let authorities = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| format!("ca: {error}"))?;
        builder = builder.tls_certs_merge(authorities);
    }
    builder.build().map_err(|error| format!("cannot make an HTTPS client: {error}"))
}

/// Whether an address is on the public internet: not this machine, not a private, local, shared, documentation or multicast
/// range, not an IPv6 form of one of those (IANA special-purpose registries, RFC 6890 and its updates).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = a == 0 // this network
        || a >= 240 // reserved and broadcast
        || (a == 100 && b & 0xc0 == 64) // 100.64.0.0/10, shared by carriers
        || (a == 192 && b == 0 && c == 0) // 192.0.0.0/24, protocol assignments
        || (a == 192 && b == 88 && c == 99) // 6to4 relays, withdrawn
        || (a == 198 && b & 0xfe == 18); // 198.18.0.0/15, benchmarks
    let local = address.is_private() || address.is_loopback() || address.is_link_local();
    let nobody = special || address.is_documentation() || address.is_multicast();
    !local && !nobody
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inside) = address.to_ipv4_mapped() {
        return is_public_v4(inside);
    }
    let parts = address.segments();
    // Global unicast is 2000::/3; everything else is local, multicast, translated or not given out.
    let global = parts[0] & 0xe000 == 0x2000;
    // Protocol assignments (2001::/23, Teredo among them) and documentation (2001:db8::/32).
    let special = (parts[0] == 0x2001 && (parts[1] < 0x0200 || parts[1] == 0x0db8))
        || parts[0] == 0x2002 // 6to4 carries an IPv4 address
        || (parts[0] == 0x3fff && parts[1] < 0x1000); // 3fff::/20, documentation
    global && !special
}

/// The system's resolver, public addresses only.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<_> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("the name has no public address".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Why a call has no answer; for an operator, without a key in it.
pub fn why(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "cannot connect"
    } else {
        "the connection broke"
    }
}

/// Reads an answer, up to [`ANSWER_MAX`] bytes of it. Cancel-safe: nothing is kept.
pub async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = ANSWER_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == ANSWER_MAX {
            break;
        }
    }
    Ok(body)
}

/// Shared clients for both reaches.
#[derive(Debug)]
pub struct Clients {
    any: Client,
    public: Client,
}

impl Clients {
    /// Builds both.
    pub fn new() -> Result<Clients, String> {
        Ok(Clients { any: client(Reach::Any, None)?, public: client(Reach::Public, None)? })
    }

    /// Those of the process: built once, for loading the system's authorities takes milliseconds.
    pub fn shared() -> Result<&'static Clients, &'static String> {
        static SHARED: LazyLock<Result<Clients, String>> = LazyLock::new(Clients::new);
        SHARED.as_ref()
    }

    /// The one for a reach.
    pub fn of(&self, reach: Reach) -> &Client {
        match reach {
            Reach::Any => &self.any,
            Reach::Public => &self.public,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("1.1.1.1", true),
            ("8.8.8.8", true),
            ("100.128.0.1", true),
            ("172.32.0.1", true),
            ("127.0.0.1", false),
            ("127.255.0.1", false),
            ("0.0.0.0", false),
            ("10.0.0.1", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("192.0.0.1", false),
            ("192.0.2.1", false),
            ("198.19.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700:4700::1111", true),
            ("::1", false),
            ("::", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:1.1.1.1", true),
            ("::127.0.0.1", false),
            ("fe80::1", false),
            ("fc00::1", false),
            ("fd12::1", false),
            ("ff02::1", false),
            ("64:ff9b::a00:1", false),
            ("2002:7f00:1::", false),
            ("2001:0:7f00:1::", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_public(text.parse().unwrap()), expected, "{text}");
        }
    }
}
