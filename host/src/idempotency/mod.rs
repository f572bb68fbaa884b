//! Idempotency: what makes two calls with one key one execution, and what the second is told.
//!
//! After the IETF's draft `Idempotency-Key` header field
//! (draft-ietf-httpapi-idempotency-key-header).

pub mod sql;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::executions::ExecutionId;
use crate::json;
use crate::quotas::{ROW_BYTES, Size};
use crate::sandbox::{Body, Request, Response};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// For how long a key may hold at most: 30 days.
pub const TTL_S_MAX: u64 = 30 * 86_400;
/// For how long a key holds when nothing else is said: a day.
const TTL_S: u64 = 86_400;
/// The header fields by which a script knows its caller.
const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "x-api-key"];
/// Larger answers are not kept.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Whether `text` can be a key.
pub fn is_key(text: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
}

/// What a route does with an `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RoutePolicy {
    /// For how long a key holds, in seconds.
    #[serde(default = "ttl_s")]
    #[schemars(range(min = 1, max = TTL_S_MAX))]
    pub ttl_s: u64,
    /// Whether a sync route keeps its answer, for whoever asks again.
    #[serde(default = "yes")]
    pub keep_answer: bool,
}

/// Where the events of a trigger have their key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventPolicy {
    /// A JSON pointer (RFC 6901) into the event, `/kv/value/order_id` say. An event that has
    /// nothing there, or nothing that can be a key, makes its delivery without one.
    #[schemars(extend("pattern" = "^/"))]
    pub key: String,
    /// For how long a key holds, in seconds.
    #[serde(default = "ttl_s")]
    #[schemars(range(min = 1, max = TTL_S_MAX))]
    pub ttl_s: u64,
}

fn ttl_s() -> u64 {
    TTL_S
}

fn yes() -> bool {
    true
}

impl EventPolicy {
    /// The key of an event, if it has one.
    pub fn key_of(&self, trigger_id: Uuid, event: &str) -> Option<Key> {
        let found = json::pointed_at(event, &self.key)?;
        // What is no text counts as it is written, and is none: not every reader holds all the digits
        // of a number.
        let (scope, text) = match serde_json::from_str(found).ok()? {
            Value::Null => return None,
            Value::String(text) => (trigger_id, text),
            _ => {
                let scope = scope_of(&[trigger_id.as_bytes(), b"value"]);
                (scope, found.to_owned())
            }
        };
        let text = match is_key(&text) {
            true => text,
            // None that a caller could send: it has a control character.
            false => format!("\n{}", hex::encode(hash(&[text.as_bytes()]))),
        };
        // Not the whole event is compared: its id differs each time.
        Some(Key::new(scope, text, &[], Duration::from_secs(self.ttl_s)))
    }
}

/// A key, and what was sent under it.
#[derive(Debug, Clone)]
pub struct Key {
    /// The trigger, or the route and its caller: keys of different ones have nothing to do with each
    /// other.
    pub scope: Uuid,
    /// The key.
    pub key: String,
    /// The hash of what was sent.
    pub request_hash: [u8; 32],
    /// For how long it holds.
    pub ttl: Duration,
}

impl Key {
    /// A key of `scope` for what `parts` say.
    pub fn new(scope: Uuid, key: String, parts: &[&[u8]], ttl: Duration) -> Self {
        Self {
            scope,
            key,
            request_hash: hash(parts),
            ttl,
        }
    }

    /// What it takes in the database, without an answer.
    pub fn size(&self) -> Size {
        Size::row(self.key.len() as u64 + ROW_BYTES)
    }

    /// The key of a request to a route, among those of its caller: whoever sends the same
    /// [credentials](CREDENTIALS). Two who send the same key must not get each other's answer, as
    /// the draft says in its security considerations; to tell who they are is the script's
    /// business, and the address is none of it: a client that tries again may come from another.
    /// So is the `host` where an app has hosts: there may be a tenant on each. `query` is compared as
    /// it was sent: what is no UTF-8 in it, scripts see as one and the same character.
    pub fn of_request(
        route: Uuid,
        key: String,
        request: &Request,
        (host, query): (Option<&str>, &str),
        policy: RoutePolicy,
    ) -> Self {
        let fields = |names: &'static [&str]| {
            let headers = request.headers.iter();
            headers.filter(|(name, _)| names.contains(&name.as_str()))
        };
        let mut caller: Vec<&[u8]> = vec![route.as_bytes()];
        let known_by = fields(&CREDENTIALS);
        caller.extend(known_by.flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]));
        caller.extend(host.map(str::as_bytes));
        let scope = scope_of(&caller);
        let content_type = fields(&["content-type"]).next();
        let content_type = content_type.map_or("", |(_, value)| value.as_str());
        let body = request.body.as_ref();
        let body: &[u8] = body.map_or(&[], |Body { bytes, .. }| bytes);
        let parts = [
            request.method.as_bytes(),
            request.path.as_bytes(),
            query.as_bytes(),
            content_type.as_bytes(),
            body,
        ];
        Self::new(scope, key, &parts, Duration::from_secs(policy.ttl_s))
    }
}

/// The scope of keys that `parts` have for themselves.
fn scope_of(parts: &[&[u8]]) -> Uuid {
    let hash = hash(parts);
    Uuid::from_bytes(std::array::from_fn(|place| hash[place]))
}

/// The hash of `parts`, of which none can be taken for a part of another.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What came of an earlier call with the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its execution.
    pub execution_id: ExecutionId,
    /// Whether the same was sent.
    pub same_request: bool,
    /// Whether it has ended.
    pub done: bool,
    /// Its answer, if it was kept.
    pub answer: Option<KeptAnswer>,
}

/// An answer that is kept for whoever asks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

impl KeptAnswer {
    /// Keep `response`, unless it is too large; never its cookies, which sign in whoever has them.
    pub fn of(response: &Response) -> Option<Self> {
        let is_cookie = |name: &str| name.eq_ignore_ascii_case("set-cookie");
        let headers = response.headers.iter();
        let headers = headers.filter(|(name, _)| !is_cookie(name));
        (response.body.len() <= ANSWER_BYTES_MAX).then(|| Self {
            status: response.status,
            headers: headers.cloned().collect(),
            body: Body {
                content_type: None,
                bytes: response.body.clone(),
            },
        })
    }
}

impl KeptAnswer {
    /// About how many bytes it has.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter();
        let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
        headers + self.body.bytes.len()
    }
}

impl From<KeptAnswer> for Response {
    fn from(kept: KeptAnswer) -> Self {
        Self {
            status: kept.status,
            headers: kept.headers,
            body: kept.body.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_events_key_is_where_its_policy_points() {
        let policy = |key: &str| EventPolicy {
            key: key.into(),
            ttl_s: 60,
        };
        let event = r#"{"kv": {"key": "k", "value": {"order": 7, "tags": []}}}"#;
        let key = |pointer| {
            policy(pointer)
                .key_of(Uuid::nil(), event)
                .map(|key| key.key)
        };
        assert_eq!(key("/kv/key").as_deref(), Some("k"));
        assert_eq!(key("/kv/value/order").as_deref(), Some("7"));
        assert_eq!(key("/kv/value/tags").as_deref(), Some("[]"));
        assert_eq!(key("/kv/nothing"), None);
        let long = format!(r#"{{"k":"{}","n":null}}"#, "x".repeat(300));
        let key = |pointer| policy(pointer).key_of(Uuid::nil(), &long);
        assert_eq!(key("/n").map(|key| key.key), None);
        // No caller can send such a key.
        let kept = key("/k").unwrap().key;
        assert!(kept.len() <= KEY_BYTES_MAX && !is_key(&kept), "{kept}");
    }

    #[test]
    fn numbers_and_texts_are_keys_as_they_are_written() {
        let policy = EventPolicy {
            key: "/n".into(),
            ttl_s: 60,
        };
        let key = |n: &str| {
            let event = format!("{{\"n\": {n} }}");
            let key = policy.key_of(Uuid::nil(), &event).unwrap();
            (key.scope, key.key)
        };
        let all = [
            "1",
            "\"1\"",
            "9007199254740993",
            "9007199254740992",
            "18446744073709551616",
            "18446744073709551617",
        ];
        let different: std::collections::HashSet<_> = all.iter().map(|n| key(n)).collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(key("\"a\"").1, "a");
    }

    #[test]
    fn a_kept_answer_has_no_cookies() {
        let response = Response {
            status: 200,
            headers: vec![
                ("Set-Cookie".into(), "session=1".into()),
                ("x-a".into(), "b".into()),
            ],
            body: Bytes::new(),
        };
        let kept = KeptAnswer::of(&response).unwrap();
        assert_eq!(kept.headers, [("x-a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn callers_have_keys_of_their_own() {
        let policy = RoutePolicy {
            ttl_s: 60,
            keep_answer: true,
        };
        let scope = |headers: &[(&str, &str)]| {
            let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let request = Request {
                headers: headers.iter().map(pair).collect(),
                ..Request::default()
            };
            Key::of_request(Uuid::nil(), "k".into(), &request, (None, ""), policy).scope
        };
        let bearer = |token| scope(&[("authorization", token), ("accept", "*/*")]);
        assert_eq!(scope(&[("accept", "*/*")]), scope(&[]));
        assert_eq!(bearer("a"), scope(&[("authorization", "a")]));
        assert_ne!(bearer("a"), bearer("b"));
        assert_ne!(bearer("a"), scope(&[("cookie", "a")]));
        assert_ne!(bearer("a"), scope(&[]));
    }

    #[test]
    fn a_kept_answer_reads_back() {
        let response = Response {
            status: 201,
            headers: vec![("x-a".into(), "b".into())],
            body: Bytes::from_static(b"\xff\x00"),
        };
        let kept = serde_json::to_string(&KeptAnswer::of(&response).unwrap()).unwrap();
        let kept: KeptAnswer = serde_json::from_str(&kept).unwrap();
        assert_eq!(Response::from(kept), response);
    }
}
