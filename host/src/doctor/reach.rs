//! How the instance is reached: over TLS or not, through which proxy, under which name.

use std::net::IpAddr;

use super::Finding;
use crate::config::Config;

const TLS: &str = "tls";
const PROXY: &str = "trusted_proxies";
const TLS_FIX: &str = "Put a proxy that speaks TLS and sends X-Forwarded-Proto in front, name it in trusted_proxies, and let `listen` be 127.0.0.1 or a private network.";

/// How the request came that asks for the checks.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The other end of the connection.
    pub peer: Option<IpAddr>,
    /// Whether a proxy that is trusted says that it came over TLS.
    pub is_https: bool,
    /// Whether somebody says that they passed it on.
    pub is_forwarded: bool,
}

/// What a request shows that came so, where so many users can sign in.
pub(super) fn of_server(config: &Config, arrival: Arrival, users: usize) -> Vec<Finding> {
    let is_ours = |peer: &IpAddr| config.trusted_proxies.iter().any(|net| net.contains(peer));
    let stranger = arrival.peer.filter(|peer| !is_ours(peer));
    let tls = if arrival.is_https {
        Finding::ok(TLS, "this request came over TLS, and cookies are Secure")
    } else if config.listen.ip().is_loopback() && !arrival.is_forwarded {
        Finding::ok(TLS, "only this machine can connect")
    } else {
        Finding::warning(
            TLS,
            "this request came without TLS, as far as can be known here: passwords and tokens can be read on the way, and cookies are not Secure",
            TLS_FIX,
        )
    };
    let proxy = match (arrival.is_forwarded, stranger) {
        (true, Some(peer)) => Finding::warning(
            PROXY,
            format!(
                "{peer} passes requests on and is not trusted: all its users share one address, and TLS is not noticed"
            ),
            "If it is your proxy, name it in trusted_proxies.",
        )
        .with_command(format!("picloud serve --trusted-proxies {peer}")),
        (true, None) => Finding::ok(PROXY, "this request came through a proxy that is trusted"),
        (false, _) => Finding::ok(PROXY, "this request came without a proxy"),
    };
    vec![tls, proxy, admin_host(config, users > 1)]
}

/// What the settings show.
pub(super) fn of_machine(config: &Config) -> Vec<Finding> {
    let is_local = config.listen.ip().is_loopback();
    let tls = match (is_local, config.trusted_proxies.is_empty()) {
        (true, true) => Finding::ok(TLS, "only this machine can connect"),
        (_, false) => Finding::ok(
            TLS,
            "the trusted proxies are to speak it; a server that is asked through them says whether they do",
        ),
        (false, true) => Finding::warning(
            TLS,
            format!(
                "{} can be reached from elsewhere, and no proxy is trusted: passwords and tokens can be read on the way, and cookies are not Secure",
                config.listen
            ),
            TLS_FIX,
        ),
    };
    vec![tls, admin_host(config, false)]
}

/// Whether the dashboard has a host of its own, which it needs where others than the owner write the
/// pages beside it, or are to open them.
fn admin_host(config: &Config, has_members: bool) -> Finding {
    const NAME: &str = "admin_host";
    let is_local = config.listen.ip().is_loopback();
    match &config.admin_host {
        Some(host) => Finding::ok(
            NAME,
            format!("the API and the dashboard are on {host} only"),
        ),
        None => {
            let shared = "the dashboard shares its host with the pages of apps, which are sandboxed for that";
            let fix = "Give the dashboard a name of its own.";
            let finding = match (has_members, is_local) {
                (false, true) => Finding::warning(NAME, shared, fix),
                (true, _) => Finding::error(
                    NAME,
                    format!("{shared}, and others than the owner may write such pages"),
                    fix,
                ),
                (false, false) => Finding::error(
                    NAME,
                    format!("{shared}, and others than this machine can open it"),
                    fix,
                ),
            };
            finding.with_command("picloud serve --admin-host admin.example.com")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Values;
    use crate::doctor::Severity;

    fn config(settings: &[(&'static str, &str)]) -> Config {
        let flags: Vec<_> = settings
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect();
        let values = Values::gather(&flags, |_| None, None).unwrap();
        values.config().unwrap()
    }

    fn severities(findings: &[Finding]) -> Vec<Severity> {
        findings.iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn a_request_shows_whether_tls_and_the_proxy_are_right() {
        use Severity::{Ok, Warning};
        let arrival = |peer: &str, is_https, is_forwarded| Arrival {
            peer: Some(peer.parse().unwrap()),
            is_https,
            is_forwarded,
        };
        let public = config(&[("listen", "0.0.0.0:80"), ("admin_host", "a.example")]);
        let local = config(&[("admin_host", "a.example")]);
        let behind = config(&[
            ("trusted_proxies", "10.0.0.0/8"),
            ("admin_host", "a.example"),
        ]);
        for (config, arrival, tls, proxy) in [
            (&public, arrival("203.0.113.9", false, false), Warning, Ok),
            (&local, arrival("127.0.0.1", false, false), Ok, Ok),
            (&local, arrival("127.0.0.1", false, true), Warning, Warning),
            (&behind, arrival("10.1.2.3", true, true), Ok, Ok),
            (&behind, arrival("10.1.2.3", false, true), Warning, Ok),
            (&behind, arrival("11.1.2.3", false, true), Warning, Warning),
        ] {
            let found = of_server(config, arrival, 2);
            assert_eq!(severities(&found), [tls, proxy, Ok], "{arrival:?}");
        }
    }

    #[test]
    fn settings_show_whether_tls_is_possible() {
        use Severity::{Error, Ok, Warning};
        for (settings, tls, admin_host) in [
            (&[][..], Ok, Warning),
            (&[("listen", "0.0.0.0:80")][..], Warning, Error),
            (
                &[("listen", "0.0.0.0:80"), ("trusted_proxies", "10.0.0.1")][..],
                Ok,
                Error,
            ),
        ] {
            let found = of_machine(&config(settings));
            assert_eq!(severities(&found), [tls, admin_host]);
        }
    }

    #[test]
    fn a_dashboard_beside_the_pages_of_others_is_an_error() {
        use Severity::{Error, Warning};
        let severity = |users| {
            let arrival = Arrival {
                peer: None,
                is_https: false,
                is_forwarded: false,
            };
            of_server(&config(&[]), arrival, users)[2].severity
        };
        assert_eq!([0, 1, 2].map(severity), [Warning, Warning, Error]);
    }
}
