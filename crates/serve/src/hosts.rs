//! Which names a server answers to. It resolves none.
//!
//! A page of `evil.example` can have that name lead to 127.0.0.1 and then asks the server as if it were its own: `Host`
//! and `Origin` agree, and the browser sees one origin (DNS rebinding). What gives it away is the name.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::header::{HOST, HeaderMap};

/// The first `Host` that is neither an address, nor `localhost`, nor in `allowed`. Who sends none is no browser.
pub(crate) fn foreign(headers: &HeaderMap, allowed: &[String]) -> Option<String> {
    let hosts = headers.get_all(HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()));
    hosts.map(|host| name(&host).to_owned()).find(|name| !is_allowed(name, allowed))
}

/// A host without its port.
fn name(host: &str) -> &str {
    let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match host.rsplit_once(':') {
        Some((name, digits)) if port(digits) && (name.ends_with(']') || !name.contains(':')) => name,
        _ => host,
    }
}

fn is_allowed(name: &str, allowed: &[String]) -> bool {
    let plain = name.strip_suffix('.').unwrap_or(name);
    // A label before it makes no difference: browsers send all of `localhost` to this machine (RFC 6761).
    let local = plain.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"));
    let listed = || allowed.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(plain));
    local || is_address(name) || listed()
}

fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn addresses_and_local_names_are_no_strangers() {
        let allowed = ["box.lan".to_owned()];
        for (host, stranger) in [
            ("127.0.0.1:8080", None),
            ("127.0.0.1", None),
            ("192.168.1.7:8080", None),
            ("[::1]:8080", None),
            ("[::1]", None),
            ("::1", None),
            ("localhost", None),
            ("LocalHost:8080", None),
            ("localhost.:8080", None),
            ("chat.localhost:8080", None),
            ("box.lan", None),
            ("BOX.lan.:80", None),
            ("evil.example", Some("evil.example")),
            ("evil.example:8080", Some("evil.example")),
            ("localhost.evil.example:8080", Some("localhost.evil.example")),
            ("notlocalhost", Some("notlocalhost")),
            ("127.0.0.1.evil.example", Some("127.0.0.1.evil.example")),
            ("127.0.0.1:evil.example", Some("127.0.0.1:evil.example")),
            ("[evil.example]:80", Some("[evil.example]")),
            ("a.box.lan", Some("a.box.lan")),
            ("", Some("")),
        ] {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            assert_eq!(foreign(&headers, &allowed).as_deref(), stranger, "{host}");
            assert_eq!(foreign(&headers, &["*".to_owned()]), None, "{host}");
        }
        assert_eq!(foreign(&HeaderMap::new(), &[]), None);
    }

    #[test]
    fn a_second_host_does_not_hide_behind_the_first() {
        let mut headers = HeaderMap::new();
        headers.append(HOST, HeaderValue::from_static("localhost"));
        headers.append(HOST, HeaderValue::from_static("evil.example"));
        assert_eq!(foreign(&headers, &[]).as_deref(), Some("evil.example"));
    }
}
