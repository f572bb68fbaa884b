//! Where a request came from and where it went, behind proxies or not.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use ipnet::IpNet;

use super::endpoints::peer;

/// The address of whoever sent a request: the other end of the connection, or, where that is one
/// of our proxies, the last address in `x-forwarded-for`, or in `forwarded` (RFC 7239), that is none
/// of them. A proxy writes one of the two and may pass the other on as its client wrote it: where
/// they differ, neither is believed.
pub fn of(parts: &Parts, proxies: &[IpNet]) -> String {
    let Some(peer) = peer(parts) else {
        return "unknown".to_owned();
    };
    let peer = peer.ip();
    let elements = listed(&parts.headers, FORWARDED);
    let hops: [Vec<&str>; 2] = [
        listed(&parts.headers, "x-forwarded-for").collect(),
        elements.map(|element| forwarded(element, "for")).collect(),
    ];
    let told = hops.iter().filter(|hops| !hops.is_empty());
    let mut clients = told.map(|hops| client(peer, hops, proxies));
    let client = match (clients.next(), clients.next()) {
        (Some(one), Some(other)) if one != other => peer.to_canonical(),
        (one, _) => one.unwrap_or_else(|| peer.to_canonical()),
    };
    client.to_string()
}

const FORWARDED: &str = "forwarded";

/// The elements of a list that may be in several fields.
fn listed<'h>(headers: &'h HeaderMap, name: &str) -> impl DoubleEndedIterator<Item = &'h str> {
    let values = headers.get_all(name).iter();
    // What cannot be read is a hop that nobody knows; left out, another story would be the only one.
    let values = values.map(|value| value.to_str().unwrap_or_default());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// A parameter of one element of `forwarded`; nothing where it has none. No address has a comma or a
/// semicolon in it, so what is in quotes needs no more care than its quotes.
fn forwarded<'h>(element: &'h str, parameter: &str) -> &'h str {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut named = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case(parameter));
    named
        .next()
        .map_or("", |(_, value)| value.trim().trim_matches('"'))
}

/// The address of a hop, as proxies write it: with a port or without, of IPv6 in brackets or not.
fn hop_address(hop: &str) -> Option<IpAddr> {
    if let Ok(address) = hop.parse() {
        return Some(address);
    }
    if let Some(rest) = hop.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_port = |port: &str| port.parse::<u16>().is_ok();
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address
            .parse::<Ipv6Addr>()
            .ok()
            .filter(|_| is_port)
            .map(IpAddr::V6);
    }
    hop.parse::<SocketAddr>().ok().map(|address| address.ip())
}

fn client(peer: IpAddr, hops: &[&str], proxies: &[IpNet]) -> IpAddr {
    let is_ours = |address: &IpAddr| proxies.iter().any(|net| net.contains(address));
    let mut client = peer.to_canonical();
    for hop in hops.iter().rev() {
        if !is_ours(&client) {
            break;
        }
        // What no proxy of ours wrote may say anything.
        let Some(address) = hop_address(hop) else {
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
    let said = listed(&parts.headers, "x-forwarded-proto").next_back();
    let said = said.or_else(|| {
        let element = listed(&parts.headers, FORWARDED).next_back();
        element.map(|element| forwarded(element, "proto"))
    });
    is_ours && said.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
}

/// Whether this is a host, with a port or without, as a URL has it (RFC 3986): nobody's user name, no
/// list, nothing that somebody else may read otherwise. It may be empty (RFC 9112, 3.2).
pub fn is_host_and_port(text: &[u8]) -> bool {
    let is_port = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    let (rest, is_host) = match text.strip_prefix(b"[") {
        Some(rest) => {
            let end = rest.iter().position(|byte| *byte == b']');
            let Some(end) = end else {
                return false;
            };
            let address = std::str::from_utf8(&rest[..end]);
            let is_address = address.is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
            (&rest[end + 1..], is_address)
        }
        None => {
            let end = text.iter().position(|byte| *byte == b':');
            let (name, rest) = text.split_at(end.unwrap_or(text.len()));
            let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
            (rest, name.iter().all(fits))
        }
    };
    is_host && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port))
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
            of("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2"]),
            "1.2.3.4"
        );
        assert_eq!(of("10.0.0.1", &["6.6.6.6", "nonsense"]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("::1", &["2001:db8::7"]), "2001:db8::7");
        assert_eq!(of("::ffff:10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
    }

    #[test]
    fn hops_are_read_as_proxies_write_them() {
        let proxies: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
        let of = |name: &'static str, values: &[&str]| {
            let mut request = axum::http::Request::new(());
            for value in values {
                request.headers_mut().append(name, value.parse().unwrap());
            }
            let peer: SocketAddr = "10.0.0.1:4711".parse().unwrap();
            let (mut parts, ()) = request.into_parts();
            parts.extensions.insert(axum::extract::ConnectInfo(peer));
            super::of(&parts, &proxies)
        };
        for (written, address) in [
            ("203.0.113.8:4711", "203.0.113.8"),
            ("203.0.113.8", "203.0.113.8"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:203.0.113.8", "203.0.113.8"),
            ("6.6.6.6, 203.0.113.8:1 , 10.0.0.2:99", "203.0.113.8"),
            ("unknown", "10.0.0.1"),
            ("[2001:db8::1]x", "10.0.0.1"),
            ("203.0.113.8:", "10.0.0.1"),
            ("203.0.113.8:99999", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(of("x-forwarded-for", &[written]), address, "{written}");
        }
        for (written, address) in [
            ("for=203.0.113.8", "203.0.113.8"),
            ("for=\"203.0.113.8:4711\";proto=https", "203.0.113.8"),
            (
                "proto=http; For=\"[2001:db8::1]:80\" ;by=10.0.0.1",
                "2001:db8::1",
            ),
            ("for=6.6.6.6, for=203.0.113.8, for=10.0.0.2", "203.0.113.8"),
            ("for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ] {
            assert_eq!(of("forwarded", &[written]), address, "{written}");
        }
        assert_eq!(of("x-forwarded-for", &["1.2.3.4", "5.6.7.8"]), "5.6.7.8");
    }

    #[test]
    fn two_stories_are_none() {
        let proxies: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
        for (other, forwarded, address) in [
            (&b"1.2.3.4"[..], "for=1.2.3.4", "1.2.3.4"),
            (b"1.2.3.4", "for=5.6.7.8", "10.0.0.1"),
            (b"\xff, 1.2.3.4", "for=5.6.7.8", "10.0.0.1"),
        ] {
            let request = axum::http::Request::builder()
                .header("x-forwarded-for", other)
                .header("forwarded", forwarded);
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let peer: SocketAddr = "10.0.0.1:4711".parse().unwrap();
            parts.extensions.insert(axum::extract::ConnectInfo(peer));
            assert_eq!(super::of(&parts, &proxies), address, "{forwarded}");
        }
    }
}
