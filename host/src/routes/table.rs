//! Matching a request against the routes of an app.
//!
//! The most specific route wins: exact host, then the longest wildcard, then any; then, segment
//! by segment from the left, literal before `{name}` before `{*rest}`; then the exact method
//! before `ANY`. The cost of a match depends on the segments of the path and on how many
//! patterns overlap there, not on how many routes there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::pattern::Segment;
use super::{MethodPattern, Route};
use crate::apps::HostPattern;

/// The routes of one app, ready to be matched.
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: HashMap<String, Node>,
    /// The longest first.
    below: Vec<(HostPattern, Node)>,
    any: Node,
}

/// What a path is at one place of the trie.
#[derive(Debug, Default)]
struct Node {
    literals: HashMap<String, Node>,
    param: Option<Box<Node>>,
    /// Routes whose pattern ends here.
    here: Vec<Arc<Route>>,
    /// Routes whose `{*rest}` begins here.
    rest: Vec<Arc<Route>>,
}

/// A route that matches, and what its pattern named.
#[derive(Debug)]
pub struct Match {
    /// The route.
    pub route: Arc<Route>,
    /// The values of its parameters.
    pub params: Vec<(String, String)>,
    /// What its `{*rest}` matched.
    pub rest: Option<String>,
}

/// Why no route matches.
#[derive(Debug, PartialEq, Eq)]
pub enum NoMatch {
    /// No route has this path.
    Path,
    /// Routes have this path, for these methods.
    Method(BTreeSet<String>),
    /// The path is not UTF-8 once decoded.
    Undecodable,
}

impl RouteTable {
    /// Build the table.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut table = Self::default();
        for route in routes {
            let route = Arc::new(route);
            table
                .root(route.host.as_ref())
                .insert(route.path.segments(), &route);
        }
        table
            .below
            .sort_by_key(|(host, _)| std::cmp::Reverse(host.to_string().len()));
        table
    }

    fn root(&mut self, host: Option<&HostPattern>) -> &mut Node {
        match host {
            None => &mut self.any,
            Some(HostPattern::Exact(name)) => self.exact.entry(name.clone()).or_default(),
            Some(pattern) => {
                let known = self.below.iter().position(|(other, _)| other == pattern);
                let at = known.unwrap_or_else(|| {
                    self.below.push((pattern.clone(), Node::default()));
                    self.below.len() - 1
                });
                &mut self.below[at].1
            }
        }
    }

    /// Find the route for a request. `host` is in lower case and has no port; `path` is as it was
    /// sent, without the query.
    ///
    /// # Errors
    /// [`NoMatch`] says what to answer instead.
    pub fn find(&self, method: &str, host: &str, path: &str) -> Result<Match, NoMatch> {
        let segments: Vec<String> = path
            .strip_prefix('/')
            .unwrap_or(path)
            .split('/')
            .map(|raw| {
                percent_decode_str(raw)
                    .decode_utf8()
                    .map(|text| text.into_owned())
            })
            .collect::<Result<_, _>>()
            .map_err(|_| NoMatch::Undecodable)?;
        let below = self
            .below
            .iter()
            .filter(|(pattern, _)| pattern.matches(host))
            .map(|(_, node)| node);
        let roots: Vec<&Node> = self
            .exact
            .get(host)
            .into_iter()
            .chain(below)
            .chain([&self.any])
            .collect();
        let mut allowed = BTreeSet::new();
        let mut found = None;
        for root in &roots {
            found = found.or_else(|| root.find(&segments, &segments, method, &mut allowed));
        }
        match found {
            Some(found) => Ok(found),
            None if allowed.is_empty() => Err(NoMatch::Path),
            None => Err(NoMatch::Method(allowed)),
        }
    }
}

impl Node {
    fn insert(&mut self, segments: &[Segment], route: &Arc<Route>) {
        match segments.split_first() {
            None => self.here.push(route.clone()),
            Some((Segment::Rest, _)) => self.rest.push(route.clone()),
            Some((Segment::Param(_), others)) => {
                self.param.get_or_insert_default().insert(others, route);
            }
            Some((Segment::Literal(text), others)) => {
                self.literals
                    .entry(text.clone())
                    .or_default()
                    .insert(others, route);
            }
        }
    }

    /// Each node is visited at most once: the trie is a tree and its depth is the path's. So a
    /// match is bounded by the size of the trie, however patterns overlap.
    fn find(
        &self,
        left: &[String],
        all: &[String],
        method: &str,
        allowed: &mut BTreeSet<String>,
    ) -> Option<Match> {
        let Some((first, others)) = left.split_first() else {
            return choose(&self.here, method, allowed).map(|route| named(route, all, None));
        };
        if let Some(node) = self.literals.get(first)
            && let Some(found) = node.find(others, all, method, allowed)
        {
            return Some(found);
        }
        if !first.is_empty()
            && let Some(node) = &self.param
            && let Some(found) = node.find(others, all, method, allowed)
        {
            return Some(found);
        }
        if left.len() == 1 && first.is_empty() {
            return None;
        }
        choose(&self.rest, method, allowed).map(|route| named(route, all, Some(left.join("/"))))
    }
}

/// The route of the exact method, for HEAD else that of GET, whose body the server leaves out by
/// itself (RFC 9110, 9.3.2), else the one of any; the methods go to `allowed` if there is none.
fn choose<'r>(
    routes: &'r [Arc<Route>],
    method: &str,
    allowed: &mut BTreeSet<String>,
) -> Option<&'r Arc<Route>> {
    let of = |method: &str| {
        let mut routes = routes.iter();
        routes.find(|route| matches!(&route.method, MethodPattern::Exact(m) if m == method))
    };
    let any = |route: &&Arc<Route>| route.method == MethodPattern::Any;
    let found = of(method)
        .or_else(|| of("GET").filter(|_| method == "HEAD"))
        .or_else(|| routes.iter().find(any));
    if found.is_none() {
        allowed.extend(routes.iter().map(|route| route.method.to_string()));
    }
    found
}

fn named(route: &Arc<Route>, path: &[String], rest: Option<String>) -> Match {
    let params =
        route
            .path
            .segments()
            .iter()
            .zip(path)
            .filter_map(|(segment, value)| match segment {
                Segment::Param(name) => Some((name.clone(), value.clone())),
                _ => None,
            });
    Match {
        params: params.collect(),
        rest,
        route: route.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::DispatchMode;
    use chrono::Utc;
    use proptest::prelude::*;

    fn route(method: &str, host: Option<&str>, path: &str) -> Route {
        Route {
            idempotency: None,
            cors: None,
            id: Default::default(),
            app_id: Default::default(),
            script_id: Default::default(),
            method: method.parse().unwrap(),
            host: host.map(|host| host.parse().unwrap()),
            path: path.parse().unwrap(),
            dispatch_mode: DispatchMode::Sync,
            trailing_slash: Default::default(),
            created_at: Utc::now(),
            updated_at: Utc::now(),
        }
    }

    fn table(routes: &[(&str, Option<&str>, &str)]) -> RouteTable {
        RouteTable::new(
            routes
                .iter()
                .map(|(method, host, path)| route(method, *host, path)),
        )
    }

    #[track_caller]
    fn check(table: &RouteTable, request: &str, wins: &str) {
        let mut parts = request.split(' ');
        let (method, host, path) = (
            parts.next().unwrap(),
            parts.next().unwrap(),
            parts.next().unwrap(),
        );
        let found = match table.find(method, host, path) {
            Ok(found) => format!("{} {}", found.route.method, found.route.path),
            Err(no) => format!("{no:?}"),
        };
        assert_eq!(found, wins, "{request}");
    }

    #[test]
    fn the_most_specific_path_wins() {
        let table = table(&[
            ("GET", None, "/a/{x}"),
            ("GET", None, "/a/b"),
            ("GET", None, "/a/{*rest}"),
            ("GET", None, "/{x}/c/d"),
            ("ANY", None, "/a/b"),
            ("GET", None, "/"),
        ]);
        check(&table, "GET h /a/b", "GET /a/b");
        check(&table, "POST h /a/b", "ANY /a/b");
        check(&table, "GET h /a/z", "GET /a/{x}");
        check(&table, "GET h /a/c/d", "GET /a/{*rest}");
        check(&table, "GET h /z/c/d", "GET /{x}/c/d");
        check(&table, "GET h /", "GET /");
        check(&table, "HEAD h /a/z", "GET /a/{x}");
        check(&table, "HEAD h /a/b", "GET /a/b");
        check(&table, "GET h /a", "Path");
        check(&table, "GET h /a/", "Path");
        check(&table, "POST h /a/z", r#"Method({"GET"})"#);
    }

    #[test]
    fn a_less_specific_route_of_the_method_serves_before_405() {
        let table = table(&[("POST", None, "/a/b"), ("GET", None, "/a/{x}")]);
        check(&table, "GET h /a/b", "GET /a/{x}");
    }

    #[test]
    fn the_most_specific_host_wins() {
        let table = table(&[
            ("GET", None, "/x"),
            ("GET", Some("*.x.org"), "/{p}"),
            ("GET", Some("*.a.x.org"), "/{*rest}"),
            ("GET", Some("b.a.x.org"), "/{only}"),
        ]);
        check(&table, "GET other /x", "GET /x");
        check(&table, "GET q.x.org /x", "GET /{p}");
        check(&table, "GET c.a.x.org /x", "GET /{*rest}");
        check(&table, "GET b.a.x.org /x", "GET /{only}");
    }

    #[test]
    fn parameters_are_decoded_and_an_encoded_slash_stays_in_its_segment() {
        let table = table(&[("GET", None, "/f/{a}/{*rest}")]);
        let found = table.find("GET", "h", "/f/x%2Fy/caf%C3%A9/..//z").unwrap();
        assert_eq!(found.params, [("a".to_owned(), "x/y".to_owned())]);
        assert_eq!(found.rest.as_deref(), Some("café/..//z"));
        assert_eq!(
            table.find("GET", "h", "/f/%ff/x").unwrap_err(),
            NoMatch::Undecodable
        );
    }

    prop_compose! {
        fn pattern()(segments in prop::collection::vec(prop::sample::select(vec!["a", "b", "{p}"]), 1..4),
                     rest in any::<bool>()) -> String {
            let mut path = String::new();
            for (at, segment) in segments.iter().enumerate() {
                path.push('/');
                path.push_str(&segment.replace('p', &format!("p{at}")));
            }
            if rest { path.push_str("/{*rest}"); }
            path
        }
    }

    /// The rule as the documentation states it, segment by segment.
    fn rank(path: &str) -> Vec<u8> {
        path.parse::<crate::routes::PathPattern>()
            .unwrap()
            .segments()
            .iter()
            .map(|segment| match segment {
                Segment::Literal(_) => 0,
                Segment::Param(_) => 1,
                Segment::Rest => 2,
            })
            .collect()
    }

    fn matches(pattern: &str, path: &[&str]) -> bool {
        let pattern: crate::routes::PathPattern = pattern.parse().unwrap();
        let segments = pattern.segments();
        let mut at = 0;
        for segment in segments {
            match segment {
                Segment::Rest => return at < path.len(),
                Segment::Param(_) if at < path.len() => at += 1,
                Segment::Literal(text) if path.get(at) == Some(&text.as_str()) => at += 1,
                _ => return false,
            }
        }
        at == path.len()
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_trying_every_route(
            patterns in prop::collection::vec(pattern(), 1..12),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..5),
        ) {
            let routes: Vec<_> = patterns.iter().map(|p| ("GET", None, p.as_str())).collect();
            let found = table(&routes).find("GET", "h", &format!("/{}", path.join("/"))).ok();
            let best = patterns.iter().filter(|p| matches(p, &path)).map(|p| rank(p)).min();
            prop_assert_eq!(found.map(|m| rank(&m.route.path.to_string())), best);
        }
    }
}
