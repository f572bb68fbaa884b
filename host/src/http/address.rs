//! Where a request came from and where it went, behind proxies or not.

use std::net::IpAddr;

use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use ipnet::IpNet;

use super::endpoints::peer;

/// The address of whoever sent a request: the other end of the connection, or, where that is one
/// of our proxies, the last address in `x-forwarded-for` that is none of them.
pub fn of(parts: &Parts, proxies: &[IpNet]) -> String {
    let Some(peer) = peer(parts) else {
        return "unknown".to_owned();
    };
    let forwarded = parts.headers.get_all("x-forwarded-for");
    let forwarded = forwarded.iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).collect();
    client(peer.ip(), &hops, proxies).to_string()
}

fn client(peer: IpAddr, hops: &[&str], proxies: &[IpNet]) -> IpAddr {
    let is_ours = |address: &IpAddr| proxies.iter().any(|net| net.contains(address));
    let mut client = peer.to_canonical();
    for hop in hops.iter().rev() {
        if !is_ours(&client) {
            break;
        }
        // What no proxy of ours wrote may say anything.
        let Ok(address) = hop.trim().parse::<IpAddr>() else {
            break;
        };
        client = address.to_canonical();
    }
    client
}

/// Whether a request came over TLS: we do not speak it, so one of our proxies must say so.
pub fn is_https(parts: &Parts, proxies: &[IpNet]) -> bool {
    let peer = peer(parts).map(|peer| peer.ip().to_canonical());
    let is_ours = peer.is_some_and(|peer| proxies.iter().any(|net| net.contains(&peer)));
    // Where proxies stand in a row, the last one wrote last.
    let said = parts
        .headers
        .get_all("x-forwarded-proto")
        .iter()
        .next_back();
    let said = said.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    is_ours && said.is_some_and(|scheme| scheme.trim().eq_ignore_ascii_case("https"))
}

/// The host that a request is for: lower case, without a port.
pub fn host(headers: &HeaderMap, uri: &Uri) -> String {
    let named = host_and_port(headers, uri);
    let name = match named
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => named.split(':').next().unwrap_or_default(),
    };
    name.trim_end_matches('.').to_owned()
}

/// The host that a request is for: lower case, with the port where one is given.
pub fn host_and_port(headers: &HeaderMap, uri: &Uri) -> String {
    let named = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| uri.authority().map(|authority| authority.as_str()));
    named.unwrap_or_default().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_no_port_no_case_and_no_last_dot() {
        for (sent, name) in [
            ("Shop.Example.com:8080", "shop.example.com"),
            ("shop.example.com.", "shop.example.com"),
            ("[::1]:8080", "::1"),
            ("", ""),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, sent.parse().unwrap());
            assert_eq!(host(&headers, &Uri::from_static("/")), name);
        }
    }

    #[test]
    fn only_our_proxies_are_believed() {
        let proxies: [IpNet; 2] = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let of =
            |peer: &str, hops: &[&str]| client(peer.parse().unwrap(), hops, &proxies).to_string();
        assert_eq!(of("203.0.113.9", &["1.2.3.4"]), "203.0.113.9");
        assert_eq!(of("10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(
            of("10.0.0.1", &["6.6.6.6", " 1.2.3.4", "10.0.0.2"]),
            "1.2.3.4"
        );
        assert_eq!(of("10.0.0.1", &["6.6.6.6", "nonsense"]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("::1", &["2001:db8::7"]), "2001:db8::7");
        assert_eq!(of("::ffff:10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
    }
}
