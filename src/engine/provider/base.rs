//! Base URLs: scheme, host, port and path, and nothing else. What else a URL can carry (a user, a query, a fragment) would
//! put a secret in a file or be lost on the way, so it is refused.

use crate::engine::catalog::BaseUrl;
use std::fmt;

/// Longer than any address somebody means; the path is copied into every request.
const MAX_BYTES: usize = 512;

impl BaseUrl {
    /// A URL of its parts: a host without brackets, a path without a trailing slash.
    pub fn new(tls: bool, host: &str, port: u16, path: &str) -> BaseUrl {
        let mut authority = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        if port != if tls { 443 } else { 80 } {
            authority.push(':');
            authority.push_str(itoa::Buffer::new().format(port));
        }
        BaseUrl { tls, host: host.into(), port, path: path.into(), authority: authority.into() }
    }

    /// Reads `http://host[:port][/path]` or `https://…`. Trailing slashes are taken off. The error says what to do.
    pub fn parse(text: &str) -> Result<BaseUrl, &'static str> {
        if text.len() > MAX_BYTES {
            return Err("is longer than 512 bytes");
        }
        if let Some(odd) = text.bytes().find(|byte| !byte.is_ascii_graphic() || matches!(byte, b'\\' | b'"' | b'<' | b'>' | b'{' | b'}')) {
            return Err(if odd == b'{' || odd == b'}' {
                "holds a placeholder that is not filled in"
            } else {
                "holds a character a URL cannot hold"
            });
        }
        let (tls, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err("must begin with https:// or http://");
        };
        if rest.contains(['?', '#']) {
            return Err("must end before the query: no '?' or '#'");
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') {
            return Err("must not hold a user or password: name the secret with `key`");
        }
        let (host, port) = split_port(authority)?;
        let port = match port {
            None if tls => 443,
            None => 80,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or("has a port that is not between 1 and 65535")?,
        };
        let path = path.trim_end_matches('/');
        if path.split('/').any(|segment| segment == "." || segment == "..") {
            return Err("must not hold '.' or '..' as a path segment");
        }
        Ok(BaseUrl::new(tls, host, port, path))
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// Whether the host is this machine's own by its name or address alone.
    pub fn is_loopback(&self) -> bool {
        &*self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority, self.path)
    }
}

/// Host without brackets, and the port's digits.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), &'static str> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("has an address without its ']'")?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| "has no IPv6 address between '[' and ']'")?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err("has something behind the address that is no port"),
        };
    }
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    if host.is_empty() {
        return Err("has no host");
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
        return Err("has a host with a character a host name cannot hold");
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_urls_are_read_and_printed() {
        for (text, tls, host, port, path, printed) in [
            ("https://api.openai.com/v1", true, "api.openai.com", 443, "/v1", "https://api.openai.com/v1"),
            ("http://127.0.0.1:11434/v1/", false, "127.0.0.1", 11434, "/v1", "http://127.0.0.1:11434/v1"),
            ("http://host", false, "host", 80, "", "http://host"),
            ("https://[::1]:8443/", true, "::1", 8443, "", "https://[::1]:8443"),
            ("https://x:443/a//", true, "x", 443, "/a", "https://x/a"),
        ] {
            let url = BaseUrl::parse(text).unwrap();
            assert_eq!((url.tls, &*url.host, url.port, &*url.path), (tls, host, port, path), "{text}");
            assert_eq!(printed, format!("{}://{}{path}", url.scheme(), url.authority));
            assert_eq!(url.to_string(), printed);
        }
    }

    #[test]
    fn bad_urls_say_why() {
        for (text, why) in [
            ("api.openai.com/v1", "must begin with"),
            ("ftp://x", "must begin with"),
            ("https://", "no host"),
            ("https:///v1", "no host"),
            ("https://x:0", "port"),
            ("https://x:99999", "port"),
            ("https://user:pw@x", "user or password"),
            ("https://x/v1?key=1", "query"),
            ("https://x/v1#a", "query"),
            ("https://x/a b", "character"),
            ("https://x/{account}", "placeholder"),
            ("https://x/../y", "segment"),
            ("https://[::1", "without its"),
            ("https://[zz]", "IPv6"),
            ("https://a,b", "host name"),
        ] {
            assert!(BaseUrl::parse(text).unwrap_err().contains(why), "{text}: {:?}", BaseUrl::parse(text));
        }
        assert!(BaseUrl::parse(&format!("https://{}", "a".repeat(600))).is_err());
    }
}
