//! Where a request came from, behind proxies or not.

use std::net::IpAddr;

use axum::http::request::Parts;
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

#[cfg(test)]
mod tests {
    use super::*;

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
