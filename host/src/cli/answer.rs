//! What answered: PiCloud's API, read as what it must be, or something else, which is told as such.
//!
//! An answer is success only where its status, its content type and its shape are those of the
//! endpoint. A sign-in page of a proxy, the dashboard or another product answers 200, too.

use std::fmt;
use std::ops::Deref;

use http::{StatusCode, header};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::output::Failure;
use crate::http::API;
use crate::json;

/// The longest answer that is read at once.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How much of somebody else's title is repeated.
const TITLE_CHARS_MAX: usize = 80;

/// What the API answered: its text, as it came, and what of it a command reads.
pub(super) struct Answer<T> {
    text: Box<RawValue>,
    is: T,
}

impl<T> Answer<T> {
    /// The JSON, as it came: no number has been through anything.
    pub(super) fn text(&self) -> &str {
        self.text.get()
    }

    /// The same, to be put into other JSON.
    pub(super) fn raw(&self) -> &RawValue {
        &self.text
    }
}

impl<T> Deref for Answer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.is
    }
}

impl<T: DeserializeOwned> Answer<T> {
    fn of(text: Box<RawValue>) -> Result<Self, String> {
        match serde_json::from_str(text.get()) {
            Ok(is) => Ok(Self { text, is }),
            Err(error) => {
                // Once more, to tell the place: the wrapper costs, and most answers are right.
                let read = &mut serde_json::Deserializer::from_str(text.get());
                let placed = serde_path_to_error::deserialize::<_, T>(read).err();
                Err(placed.map_or_else(|| error.to_string(), |placed| placed.to_string()))
            }
        }
    }
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page {
    items: Vec<Box<RawValue>>,
    /// Where the next one begins.
    pub(super) next_cursor: Option<String>,
}

/// The members of a JSON object in the order in which they stand.
#[derive(Default)]
pub(super) struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    /// Those of an object; of anything else none.
    pub(super) fn of(json: &str) -> Self {
        serde_json::from_str(json).unwrap_or_default()
    }

    /// Each of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), &**value))
    }

    /// The one of this name.
    pub(super) fn get(&self, name: &str) -> Option<&RawValue> {
        let found = self.iter().find(|(one, _)| *one == name);
        found.map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(InOrder)
    }
}

/// Why the server said no (RFC 9457).
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    of: String,
    /// The status.
    pub(super) status: u16,
    title: String,
    #[serde(default)]
    detail: String,
    /// Which field is wrong.
    pub(super) field: Option<String>,
    /// The execution that failed.
    pub(super) execution_id: Option<String>,
    /// What the server's log has the cause under.
    pub(super) error_id: Option<String>,
    /// The route that is in the way.
    pub(super) conflicting_route: Option<Named>,
    /// What is wrong with a source.
    #[serde(default)]
    pub(super) diagnostics: Vec<Diagnostic>,
    /// On which host the API is, where it is not on this one.
    pub(super) admin_host: Option<String>,
    #[serde(skip)]
    text: String,
}

impl Problem {
    /// Whether the server has no such path: it is another version, or its address is wrong.
    pub(super) fn is_of_unknown_path(&self) -> bool {
        self.of.ends_with(":unknown_path")
    }
}

/// Something of which only the id is read.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    /// Its id.
    pub(super) id: String,
}

/// A mistake in a source.
#[derive(Debug, Deserialize)]
pub(super) struct Diagnostic {
    /// What is wrong.
    pub(super) message: String,
    /// The line, from 1.
    pub(super) line: Option<usize>,
    /// The column, from 1.
    pub(super) column: Option<usize>,
}

impl Problem {
    /// The JSON, as it came.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What is wrong, for people.
    pub(super) fn says(&self) -> &str {
        match self.detail.is_empty() {
            true => &self.title,
            false => &self.detail,
        }
    }

    /// The same with more to say.
    pub(super) fn adding(self, more: &str) -> Self {
        let detail = format!("{}{more}", self.says());
        self.saying(&detail)
    }

    /// The same in other words.
    pub(super) fn saying(mut self, detail: &str) -> Self {
        detail.clone_into(&mut self.detail);
        // The JSON says it, too.
        if let Ok(serde_json::Value::Object(mut members)) = serde_json::from_str(&self.text) {
            members.insert("detail".to_owned(), self.detail.as_str().into());
            self.text = serde_json::Value::Object(members).to_string();
        }
        self
    }

    /// Whether the caller is not known, for want of a sign-in that lasts.
    pub(super) fn asks_to_sign_in(&self) -> bool {
        self.of == "urn:picloud:problem:unauthorized"
    }

    #[cfg(test)]
    pub(super) fn example(status: u16) -> Self {
        let text = format!(r#"{{"type":"urn:picloud:problem:x","title":"","status":{status}}}"#);
        serde_json::from_str(&text).unwrap()
    }
}

/// An answer of whatever is at an address.
pub(super) struct Reply {
    /// The address that was asked, without a query.
    asked: String,
    response: http::Response<ureq::Body>,
}

impl Reply {
    pub(super) fn new(asked: &str, response: http::Response<ureq::Body>) -> Self {
        let asked = asked.split('?').next().unwrap_or(asked).to_owned();
        Self { asked, response }
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Its ETag.
    pub(super) fn etag(&self) -> Option<String> {
        self.header(header::ETAG).map(str::to_owned)
    }

    /// What it is, when the API answers with a body of this type. Another product's list may look like
    /// an empty one of ours.
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<Answer<T>, Failure> {
        let is_api = self.is_api();
        match self.told()? {
            told if is_api => told.read(),
            told => Err(told.foreign()),
        }
    }

    /// A page of items of this type.
    pub(super) fn read_page<T: DeserializeOwned>(
        self,
    ) -> Result<(Vec<Answer<T>>, Option<String>), Failure> {
        let asked = self.asked.clone();
        let page: Answer<Page> = self.read()?;
        let Page { items, next_cursor } = page.is;
        let items = items.into_iter().enumerate().map(|(n, item)| {
            Answer::of(item).map_err(|problem| misshapen(&asked, &format!("items[{n}].{problem}")))
        });
        Ok((items.collect::<Result<_, _>>()?, next_cursor))
    }

    /// See that it says that something was done, and nothing else.
    pub(super) fn read_nothing(self) -> Result<(), Failure> {
        let is_api = self.is_api();
        match self.told()? {
            told if is_api && told.status == StatusCode::NO_CONTENT => Ok(()),
            told => Err(told.foreign()),
        }
    }

    /// Whether the API says that it is the one that answers.
    fn is_api(&self) -> bool {
        self.header(API).is_some()
    }

    /// The body, if it is of this type, to be read piece by piece.
    pub(super) fn open(self, essence: &str) -> Result<ureq::Body, Failure> {
        let kind = self.header(header::CONTENT_TYPE).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if self.response.status().is_success() && kind.eq_ignore_ascii_case(essence) {
            return Ok(self.response.into_body());
        }
        Err(self.told()?.foreign())
    }

    /// What it tells, unless that is a problem.
    fn told(self) -> Result<Told, Failure> {
        let status = self.response.status();
        let content_type = self.header(header::CONTENT_TYPE).unwrap_or_default();
        let content_type = content_type.to_owned();
        let server = self.header(header::SERVER).map(str::to_owned);
        let bytes = self
            .response
            .into_body()
            .with_config()
            .limit(BYTES_MAX)
            .read_to_vec()
            .map_err(|error| Failure::Unreachable(format!("the answer broke off: {error}")))?;
        let body = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(problem) = problem(status, &content_type, &body) {
            return Err(Failure::Problem(Box::new(problem)));
        }
        Ok(Told {
            asked: self.asked,
            status,
            content_type,
            server,
            body,
        })
    }
}

/// The problem of ours that an answer is.
fn problem(status: StatusCode, content_type: &str, body: &str) -> Option<Problem> {
    let is_told = content_type.starts_with("application/problem+json");
    if !is_told || status.is_success() {
        return None;
    }
    let mut problem: Problem = serde_json::from_str(body).ok()?;
    let is_ours = problem.of.starts_with("urn:picloud:") && problem.status == status.as_u16();
    // What is below the API takes what we send; below the dashboard, nothing does.
    let is_ours = is_ours && status != StatusCode::METHOD_NOT_ALLOWED;
    body.clone_into(&mut problem.text);
    Some(problem).filter(|_| is_ours)
}

/// An answer that is no problem of ours.
struct Told {
    asked: String,
    status: StatusCode,
    content_type: String,
    server: Option<String>,
    body: String,
}

impl Told {
    fn read<T: DeserializeOwned>(self) -> Result<Answer<T>, Failure> {
        if !self.status.is_success() || !json::is_content_type(&self.content_type) {
            return Err(self.foreign());
        }
        let read = RawValue::from_string(self.body).map_err(|error| error.to_string());
        let read = read.and_then(Answer::of);
        read.map_err(|problem| misshapen(&self.asked, &problem))
    }

    /// That it is no answer of PiCloud's API, what it is, and what to do.
    fn foreign(&self) -> Failure {
        let what = match (self.title(), self.content_type.split(';').next()) {
            (Some(title), _) => format!("a page, “{title}”"),
            (None, Some("")) | (None, None) if self.body.is_empty() => "nothing".to_owned(),
            (None, Some("")) | (None, None) => "a text of no type".to_owned(),
            (None, Some(kind)) => kind.trim().to_owned(),
        };
        let server = self.server.as_ref();
        let server = server.map_or(String::new(), |server| format!(" by {server}"));
        Failure::Foreign(format!(
            "{} answered {} with {what}{server}: that is not PiCloud's API. {}",
            self.asked,
            self.status.as_u16(),
            hint(&self.asked)
        ))
    }

    /// The title of the page of HTML that it is.
    fn title(&self) -> Option<String> {
        let is_page =
            self.content_type.starts_with("text/html") || self.body.trim_start().starts_with("<!");
        if !is_page {
            return None;
        }
        let lower = self.body.to_ascii_lowercase();
        let title = lower.find("<title").and_then(|at| {
            let begin = at + lower.get(at..)?.find('>')? + 1;
            let end = begin + lower.get(begin..)?.find("</title")?;
            self.body.get(begin..end)
        });
        let words = title.unwrap_or("without a title").split_whitespace();
        let title = words.collect::<Vec<_>>().join(" ");
        Some(title.chars().take(TITLE_CHARS_MAX).collect())
    }
}

/// That JSON is not what the endpoint answers.
fn misshapen(asked: &str, problem: &str) -> Failure {
    Failure::Foreign(format!(
        "{asked} answered with JSON that this picloud ({}) does not understand: {problem}. It is \
         another product, or a PiCloud of another version",
        env!("CARGO_PKG_VERSION")
    ))
}

/// What to look at where something else answers.
fn hint(asked: &str) -> String {
    let base = asked.split("/api/v1").next().unwrap_or(asked);
    match base.trim_end_matches('/').strip_suffix("/admin") {
        Some(root) => format!("Leave `/admin`, the dashboard, off: {root}"),
        None => format!(
            "Is {base} the address of the server, without a path behind it, and nothing in front \
             of it that asks for a sign-in?"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, content_type: &str, body: &str) -> Told {
        Told {
            asked: "http://h/api/v1/apps".to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            content_type: content_type.to_owned(),
            server: None,
            body: body.to_owned(),
        }
    }

    #[test]
    fn only_a_problem_of_ours_is_one() {
        let ours = r#"{"type":"urn:picloud:problem:not_found","title":"Not found","status":404}"#;
        let other = r#"{"type":"about:blank","title":"Not Found","status":404}"#;
        let is_one = |status, kind: &str, body| {
            problem(StatusCode::from_u16(status).unwrap(), kind, body).is_some()
        };
        assert!(is_one(404, "application/problem+json", ours));
        assert!(!is_one(200, "application/problem+json", ours));
        assert!(!is_one(403, "application/problem+json", ours));
        assert!(!is_one(404, "application/json", ours));
        assert!(!is_one(404, "application/problem+json", other));
        assert!(!is_one(404, "text/html", "<h1>404</h1>"));
    }

    #[test]
    fn what_answered_is_said() {
        let says = |told: Told| match told.foreign() {
            Failure::Foreign(says) => says,
            other => panic!("{other:?}"),
        };
        let page = told(
            200,
            "text/html; charset=utf-8",
            "<html><TITLE a>\n Sign  in </TITLE>",
        );
        assert!(says(page).contains("answered 200 with a page, “Sign in”"));
        let page = told(502, "text/html", "<h1>Bad gateway</h1>");
        assert!(says(page).contains("answered 502 with a page, “without a title”"));
        assert!(says(told(200, "", "")).contains("answered 200 with nothing"));
        let mut other = told(404, "application/json", "{}");
        other.server = Some("nginx/1.2".to_owned());
        assert!(says(other).contains("answered 404 with application/json by nginx/1.2"));
        let mut dashboard = told(200, "text/html", "");
        dashboard.asked = "http://h/admin/api/v1/apps".to_owned();
        assert!(says(dashboard).ends_with("Leave `/admin`, the dashboard, off: http://h"));
    }

    #[test]
    fn members_stay_in_their_order_and_as_they_are() {
        let members = Members::of(r#"{"b": 1e400, "a": 10.0, "c": [9007199254740993]}"#);
        let members: Vec<_> = members
            .iter()
            .map(|(name, value)| (name, value.get()))
            .collect();
        assert_eq!(
            members,
            [("b", "1e400"), ("a", "10.0"), ("c", "[9007199254740993]")]
        );
        assert!(Members::of("[1]").iter().next().is_none());
    }
}
