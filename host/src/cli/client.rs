//! Talking to a server.

use std::cell::RefCell;
use std::io::Write;
use std::time::Duration;

use http::{StatusCode, Uri, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::answer::{Answer, Reply};
use super::output::Failure;
use super::profile::{self, Name, Profiles, SignIn};
use super::{Common, Done};
use crate::json::Json;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Longer than any script may run by default.
const TIMEOUT: Duration = Duration::from_secs(330);
/// How often one request is sent on.
const REDIRECTS_MAX: usize = 5;

/// A server and who talks to it.
pub(super) struct Client {
    agent: ureq::Agent,
    /// The address, without a slash at its end; another one once the server sends us on.
    url: RefCell<String>,
    token: Option<String>,
    /// The profile that the token, or a new one, is kept in.
    profile: Name,
    /// Whether the token is from there.
    is_remembered: bool,
}

/// A request.
struct Asked<'a> {
    method: &'static str,
    path: &'a str,
    body: Option<(&'static str, Vec<u8>)>,
    if_match: Option<&'a str>,
    timeout: Option<Duration>,
}

impl<'a> Asked<'a> {
    fn new(method: &'static str, path: &'a str) -> Self {
        Self {
            method,
            path,
            body: None,
            if_match: None,
            timeout: Some(TIMEOUT),
        }
    }

    fn with(self, body: &(impl Serialize + ?Sized)) -> Self {
        let json = String::from(Json::written(body));
        Self {
            body: Some(("application/json", json.into_bytes())),
            ..self
        }
    }

    fn however_long_it_takes(self) -> Self {
        let timeout = None;
        Self { timeout, ..self }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        // We follow by ourselves: with the method, the body and the token, and not to other hosts.
        .max_redirects(0)
        .build()
        .into()
}

/// A variable that is set to nothing is not set.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

/// The address of a server as somebody writes it.
fn base(text: &str) -> Result<String, Failure> {
    let usage = || {
        let detail = "is not the URL of a server; write it like https://picloud.example.com";
        Failure::Usage(format!("`{text}` {detail}"))
    };
    let uri: Uri = text.parse().map_err(|_| usage())?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_user = uri
        .authority()
        .is_none_or(|host| host.as_str().contains('@'));
    if !is_http || has_user || text.contains(['?', '#']) {
        return Err(usage());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The profile that is named.
fn named(common: &Common) -> Result<Option<Name>, Failure> {
    let name = given(common.profile.as_ref()).map(str::parse).transpose();
    name.map_err(|error| Failure::Usage(format!("--profile: {error}")))
}

/// A token as somebody gives it: what a file has at its end is no part of it.
fn whole(text: &str) -> Result<String, Failure> {
    match text.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err(Failure::Usage(
            "the token (--token, PICLOUD_TOKEN) has blanks, line breaks or other characters \
             in it that no token has"
                .into(),
        )),
    }
}

impl Client {
    /// The server that is named, or the one of a profile.
    pub(super) fn new(common: &Common) -> Result<Self, Failure> {
        let meant = |text: Option<&String>| match common.is_profile_meant {
            true => None,
            false => given(text).map(str::to_owned),
        };
        let url = meant(common.url.as_ref())
            .map(|url| base(&url))
            .transpose()?;
        let token = meant(common.token.as_ref())
            .map(|text| whole(&text))
            .transpose()?;
        let named = named(common)?;
        if let (Some(url), Some(token)) = (&url, &token) {
            // Nothing that is remembered is needed.
            return Ok(Self::at(
                url.clone(),
                Some(token.clone()),
                named.unwrap_or_default(),
            ));
        }
        let known = Profiles::load()?;
        let chosen = known.chosen(named.as_ref())?;
        // A remembered token goes to the server that gave it, and to no other.
        let remembered = match &url {
            None => chosen,
            Some(url) => chosen
                .filter(|(_, one)| one.url == *url)
                .or_else(|| known.at(url).filter(|_| named.is_none())),
        };
        let url = url.or_else(|| chosen.map(|(_, one)| one.url.clone()));
        let url = url.unwrap_or_else(|| DEFAULT_URL.to_owned());
        Ok(match (token, remembered) {
            (None, Some((name, one))) => Self {
                is_remembered: true,
                ..Self::at(url, Some(one.token.clone()), name.clone())
            },
            (token, _) => Self::at(url, token, known.name_or_current(named)),
        })
    }

    /// Nobody yet, at the server that is named, or at that of the profile to sign in to anew.
    pub(super) fn nobody(common: &Common) -> Result<Self, Failure> {
        let known = Profiles::load()?;
        let profile = known.name_or_current(named(common)?);
        let chosen = known.chosen(Some(&profile)).ok().flatten();
        let chosen = chosen.map(|(_, one)| one.url.clone());
        let url = given(common.url.as_ref()).map(base).transpose()?;
        let url = match common.is_profile_meant {
            true => chosen.or(url),
            false => url.or(chosen),
        };
        let url = url.unwrap_or_else(|| DEFAULT_URL.to_owned());
        Ok(Self::at(url, None, profile))
    }

    fn at(url: String, token: Option<String>, profile: Name) -> Self {
        Self {
            agent: agent(),
            url: RefCell::new(url),
            token,
            profile,
            is_remembered: false,
        }
    }

    /// Where it is.
    pub(super) fn url(&self) -> String {
        self.url.borrow().clone()
    }

    /// Whether there is a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The profile whose token it is, if that was remembered.
    pub(super) fn profile(&self) -> Option<&Name> {
        Some(&self.profile).filter(|_| self.is_remembered)
    }

    /// Keep a session that began. Answers the profile.
    pub(super) fn remember(&self, token: &str, user: &str) -> Result<&Name, Failure> {
        let sign_in = SignIn {
            url: self.url(),
            token: token.to_owned(),
            user: user.to_owned(),
        };
        profile::remember(&self.profile, sign_in)?;
        Ok(&self.profile)
    }

    /// End the session, and forget it if it was remembered.
    pub(super) fn log_out(&self) -> Done {
        let Some(token) = &self.token else {
            let detail = format!("nobody is signed in to {}", self.url());
            return Err(Failure::SignIn(detail));
        };
        let ended = self.send(Asked::new("POST", "/auth/logout"));
        let ended = ended.and_then(Reply::read_nothing);
        if self.is_remembered {
            profile::forget(&self.profile, token)?;
        }
        match ended {
            // The token is dead already.
            Err(Failure::Problem(problem)) if problem.status == 401 => Ok(()),
            ended => ended,
        }
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, Failure> {
        self.send(Asked::new("GET", path))?.read()
    }

    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<Answer<T>, Failure> {
        self.send(Asked::new("POST", path).with(body))?.read()
    }

    pub(super) fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<Answer<T>, Failure> {
        self.send(Asked::new("PATCH", path).with(body))?.read()
    }

    pub(super) fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<Answer<T>, Failure> {
        self.send(Asked::new("PUT", path).with(body))?.read()
    }

    /// Put what the server says no more of than that it is there.
    pub(super) fn place(&self, path: &str, body: &(impl Serialize + ?Sized)) -> Done {
        self.send(Asked::new("PUT", path).with(body))?
            .read_nothing()
    }

    /// Do what the server says no more of than that it is done.
    pub(super) fn act(&self, path: &str, body: &(impl Serialize + ?Sized)) -> Done {
        self.send(Asked::new("POST", path).with(body))?
            .read_nothing()
    }

    pub(super) fn delete(&self, path: &str) -> Done {
        self.send(Asked::new("DELETE", path))?.read_nothing()
    }

    /// Every item of a list, page after page.
    pub(super) fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<Answer<T>>, Failure> {
        self.first(path, usize::MAX)
    }

    /// The first `most` items of a list.
    pub(super) fn first<T: DeserializeOwned>(
        &self,
        path: &str,
        most: usize,
    ) -> Result<Vec<Answer<T>>, Failure> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let limit = most.saturating_sub(items.len()).clamp(1, 200);
            let mut page = format!("{path}{joint}limit={limit}");
            if let Some(cursor) = &cursor {
                page.push_str(&format!("&cursor={}", encoded(cursor)));
            }
            let (more, next) = self.send(Asked::new("GET", &page))?.read_page()?;
            items.extend(more);
            if next.is_none() || items.len() >= most {
                items.truncate(most);
                return Ok(items);
            }
            if next == cursor {
                let detail = format!("{page} names itself as the page that follows");
                return Err(Failure::Foreign(detail));
            }
            cursor = next;
        }
    }

    /// Write the zip file that is answered to `to`, however long that takes.
    pub(super) fn download(&self, path: &str, to: &mut dyn Write) -> Done {
        let reply = self.send(Asked::new("GET", path).however_long_it_takes())?;
        let mut body = reply.open("application/zip")?;
        let copied = std::io::copy(&mut body.as_reader(), to);
        copied
            .map(|_| ())
            .map_err(|error| Failure::Unreachable(format!("the answer broke off: {error}")))
    }

    /// Send a file, however long that takes.
    pub(super) fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        file: Vec<u8>,
    ) -> Result<Answer<T>, Failure> {
        let asked = Asked {
            body: Some(("application/zip", file)),
            ..Asked::new("POST", path).however_long_it_takes()
        };
        self.send(asked)?.read()
    }

    /// What is there, with its ETag: for [`Self::patch_if`].
    pub(super) fn get_tagged<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(Answer<T>, String), Failure> {
        let reply = self.send(Asked::new("GET", path))?;
        let tag = reply.etag().unwrap_or_else(|| "*".to_owned());
        Ok((reply.read()?, tag))
    }

    /// Change what was read with this ETag, unless somebody else was faster.
    pub(super) fn patch_if<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        tag: &str,
    ) -> Result<Answer<T>, Failure> {
        let asked = Asked {
            if_match: Some(tag),
            ..Asked::new("PATCH", path).with(body)
        };
        self.send(asked)?.read()
    }

    /// Send a request, to where the server sends it on if need be; answers as soon as the head of
    /// the answer is there.
    fn send(&self, asked: Asked<'_>) -> Result<Reply, Failure> {
        let mut at = format!("{}/api/v1{}", self.url(), asked.path);
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send_to(&at, &asked)?;
            let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(to) = response.headers().get(header::LOCATION).filter(|_| moved) else {
                self.note_base(&at, asked.path);
                return Ok(Reply::new(&at, response));
            };
            let to = to.to_str().unwrap_or_default();
            at = sent_on(&at, to, response.status()).map_err(|why| {
                Failure::Foreign(format!(
                    "{} answered {}, go to {to}: {why}",
                    at.split('?').next().unwrap_or(&at),
                    response.status().as_u16()
                ))
            })?;
        }
        Err(Failure::Foreign(format!(
            "{} sends every request on, and in the end to {at}: it never answers",
            self.url()
        )))
    }

    fn send_to(&self, at: &str, asked: &Asked<'_>) -> Result<http::Response<ureq::Body>, Failure> {
        let mut request = http::Request::builder()
            .method(asked.method)
            .uri(at)
            .header(
                header::ACCEPT,
                "application/json, application/problem+json, */*;q=0.1",
            );
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(tag) = asked.if_match {
            request = request.header(header::IF_MATCH, tag);
        }
        if let Some((kind, _)) = &asked.body {
            request = request.header(header::CONTENT_TYPE, *kind);
        }
        let bytes = asked.body.as_ref().map(|(_, bytes)| bytes.clone());
        let request = request
            .body(bytes.unwrap_or_default())
            .map_err(|error| Failure::Usage(format!("{at} is no URL: {error}")))?;
        let request = self.agent.configure_request(request);
        let request = request.timeout_global(asked.timeout).build();
        self.agent
            .run(request)
            .map_err(|error| unreachable(at, &self.url(), &error))
    }

    /// Where the server sent us on, and the rest of the path is the same, it is elsewhere than we
    /// thought: what comes goes there at once, and a sign-in remembers that.
    fn note_base(&self, at: &str, path: &str) {
        let base = at
            .strip_suffix(path)
            .and_then(|at| at.strip_suffix("/api/v1"));
        if let Some(base) = base
            && base != *self.url.borrow()
        {
            self.url.replace(base.to_owned());
        }
    }
}

/// Where a request goes that is sent on from `at`: with its method, its body and its token, so only
/// to the same server, or to TLS on the same host.
fn sent_on(at: &str, to: &str, status: StatusCode) -> Result<String, String> {
    if status == StatusCode::SEE_OTHER {
        return Err("what is there is no answer of PiCloud's API, but a page to look at".into());
    }
    let from: Uri = at.parse().map_err(|_| "it is no URL".to_owned())?;
    let absolute = match (
        to.starts_with('/') && !to.starts_with("//"),
        from.authority(),
    ) {
        (true, Some(host)) => {
            let scheme = from.scheme_str().unwrap_or("http");
            format!("{scheme}://{host}{to}")
        }
        _ => to.to_owned(),
    };
    let next: Uri = absolute.parse().map_err(|_| "it is no URL".to_owned())?;
    let is_same = next.scheme() == from.scheme() && next.authority() == from.authority();
    let is_tls = from.scheme_str() == Some("http") && next.scheme_str() == Some("https");
    let is_safer = is_tls && next.host() == from.host();
    if is_same || is_safer {
        return Ok(absolute);
    }
    Err(match next.host() {
        None => "that is no whole address".to_owned(),
        host if host == from.host() => {
            "that is another port, or without TLS, where your token does not go".to_owned()
        }
        Some(host) => format!(
            "that is another host, where your token does not go. If {host} is the server, \
             name it with --url; if it is a sign-in page, ask whoever runs it for a way past it"
        ),
    })
}

/// Why nobody answers, and what to do.
fn unreachable(at: &str, base: &str, error: &ureq::Error) -> Failure {
    let says = error.to_string();
    let is_https = at.starts_with("https://");
    let other = |scheme: &str| match base.split_once("://") {
        Some((_, rest)) => format!("{scheme}://{rest}"),
        None => base.to_owned(),
    };
    // What TLS says where something else than TLS answers (RFC 8446, 5.1).
    let is_no_tls = [
        "InvalidContentType",
        "corrupt message",
        "wrong version number",
    ];
    Failure::Unreachable(match error {
        _ if is_https && is_no_tls.iter().any(|words| says.contains(words)) => format!(
            "{base} does not speak TLS there ({says}); for plain HTTP, write {}",
            other("http")
        ),
        _ if is_https && says.contains("certificate") => {
            format!("{base} has a certificate that is not trusted ({says})")
        }
        ureq::Error::Protocol(_) if !is_https => format!(
            "{base} does not speak HTTP there ({says}); if it speaks TLS, write {}",
            other("https")
        ),
        // The system's resolver says so in its own words.
        _ if matches!(error, ureq::Error::HostNotFound) || says.contains("lookup address") => {
            format!("{base} cannot be reached: there is no such host ({says})")
        }
        _ => format!(
            "{base} cannot be reached ({says}); is the server running? `picloud serve` starts one"
        ),
    })
}

/// A part of a path or a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_sent_on_to_the_same_server_only() {
        let found = StatusCode::PERMANENT_REDIRECT;
        let to = |at: &str, to: &str| sent_on(at, to, found).ok();
        let at = "http://h/api/v1/apps?limit=1";
        let tls = "https://h/api/v1/apps?limit=1";
        assert_eq!(to(at, tls).as_deref(), Some(tls));
        assert_eq!(
            to(at, "https://h:8443/x").as_deref(),
            Some("https://h:8443/x")
        );
        assert_eq!(
            to(at, "/p/api/v1/apps").as_deref(),
            Some("http://h/p/api/v1/apps")
        );
        for other in [
            "http://h:81/x",
            "https://sso.example/login",
            "//sso.example/login",
            "https://h@sso.example/",
            "login",
            "",
        ] {
            assert_eq!(to(at, other), None, "{other}");
        }
        assert_eq!(to(tls, at), None, "without TLS");
        assert!(sent_on(at, tls, StatusCode::SEE_OTHER).is_err());
    }

    #[test]
    fn an_address_is_one_of_a_server() {
        assert_eq!(base("https://h:1/p/").unwrap(), "https://h:1/p");
        for odd in [
            "h",
            "ftp://h",
            "http://",
            "https://u:p@h",
            "http://h/?a",
            "http://h#b",
        ] {
            assert!(matches!(base(odd), Err(Failure::Usage(_))), "{odd}");
        }
    }

    #[test]
    fn a_token_has_no_blanks() {
        let common = "pic_abc\n".to_owned();
        assert_eq!(given(Some(&common)), Some("pic_abc"));
        assert!(whole("pic_abc").is_ok());
        for odd in ["a b", "a\nb", "ä", "a\u{1b}"] {
            assert!(whole(odd).is_err(), "{odd:?}");
        }
    }
}
