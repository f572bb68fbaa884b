//! The paths of routes: literal segments, `{name}` and a trailing `{*rest}`.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most bytes of a pattern.
const BYTES_MAX: usize = 1024;
/// The most segments of a pattern.
const SEGMENTS_MAX: usize = 32;
/// What a pattern looks like, but for what is percent-encoded in it and for names that stand twice.
const PATTERN: &str = r"^(/([^/{}?#\\\u0000-\u0020\u007F-\u009F]*|\{[A-Za-z_][A-Za-z0-9_]{0,63}\}))*(/([^/{}?#\\\u0000-\u0020\u007F-\u009F]*|\{\*?[A-Za-z_][A-Za-z0-9_]{0,63}\}))$";
/// What belongs to the instance itself: a route there could never be reached.
const RESERVED: [&str; 7] = [
    "api", "admin", "realtime", "healthz", "readyz", "version", "metrics",
];

/// Whether a request's path is, or is below, what belongs to the instance itself.
pub fn is_reserved(path: &str) -> bool {
    let first = path
        .strip_prefix('/')
        .and_then(|path| path.split('/').next());
    first.is_some_and(|first| RESERVED.contains(&first))
}

/// A parsed path pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = PATTERN, "maxLength" = BYTES_MAX))]
pub struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

/// A part of a pattern between slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Matches this text, percent-decoded.
    Literal(String),
    /// Matches one segment that is not empty, and names it.
    Param(String),
    /// Matches all that follows, at least one byte. Only the last segment can be one.
    Rest,
}

impl PathPattern {
    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The pattern without the names of its parameters: two patterns of one shape match the
    /// same paths.
    pub fn shape(&self) -> String {
        let mut shape = String::new();
        for segment in &self.segments {
            shape.push('/');
            match segment {
                Segment::Literal(text) => shape.push_str(text),
                Segment::Param(_) => shape.push_str("{}"),
                Segment::Rest => shape.push_str("{*}"),
            }
        }
        shape
    }
}

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('/') else {
            return Err("a path begins with `/`".into());
        };
        if text.len() > BYTES_MAX {
            return Err(format!("a path has at most {BYTES_MAX} bytes"));
        }
        let segments: Vec<Segment> = inner.split('/').map(segment).collect::<Result<_, _>>()?;
        if segments.len() > SEGMENTS_MAX {
            return Err(format!("a path has at most {SEGMENTS_MAX} segments"));
        }
        if segments
            .iter()
            .rev()
            .skip(1)
            .any(|segment| *segment == Segment::Rest)
        {
            return Err("`{*rest}` can only be the last segment".into());
        }
        let mut names = std::collections::HashSet::new();
        for segment in &segments {
            if let Segment::Param(name) = segment
                && !names.insert(name)
            {
                return Err(format!("the parameter `{{{name}}}` stands twice"));
            }
        }
        if let Some(Segment::Literal(first)) = segments.first()
            && RESERVED.contains(&first.as_str())
        {
            return Err(format!(
                "`/{first}` and all below it are the instance's own"
            ));
        }
        Ok(Self {
            text: text.into(),
            segments,
        })
    }
}

fn segment(text: &str) -> Result<Segment, String> {
    if let Some(name) = text
        .strip_prefix("{*")
        .and_then(|rest| rest.strip_suffix('}'))
    {
        parameter_name(name)?;
        return Ok(Segment::Rest);
    }
    if let Some(name) = text
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
    {
        parameter_name(name)?;
        return Ok(Segment::Param(name.into()));
    }
    if let Some(odd) = text
        .chars()
        .find(|c| "{}?#\\".contains(*c) || c.is_control() || *c == ' ')
    {
        return Err(format!(
            "`{odd}` in the segment `{text}`: a segment is a literal, `{{name}}`, or, as the last, `{{*rest}}`"
        ));
    }
    let literal = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| format!("the segment `{text}` is not UTF-8 once decoded"))?;
    if literal.contains(['/', '\0', '{', '}']) {
        return Err(format!(
            "the segment `{text}` hides a `/`, a `{{`, a `}}` or a NUL"
        ));
    }
    Ok(Segment::Literal(literal.into_owned()))
}

fn parameter_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if name.is_empty()
        || name.len() > 64
        || !plain
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(format!(
            "`{name}` is no name for a parameter: use letters, digits and `_`, not beginning with a digit"
        ));
    }
    Ok(())
}

impl TryFrom<String> for PathPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_wrong_with_a_path_is_said() {
        for (path, says) in [
            ("hello", "begins with"),
            ("/a/{*rest}/b", "only be the last"),
            ("/{a}/{a}", "stands twice"),
            ("/a{b}", "a segment is a literal"),
            ("/{1a}", "no name"),
            ("/{}", "no name"),
            ("/api/x", "the instance's own"),
            ("/metrics", "the instance's own"),
            ("/%ff", "not UTF-8"),
            ("/a%2Fb", "hides a `/`"),
            ("/a?b", "a segment is a literal"),
        ] {
            let problem = path.parse::<PathPattern>().unwrap_err();
            assert!(problem.contains(says), "{path}: {problem}");
        }
    }

    #[test]
    fn what_is_the_instances_own_is_known_by_its_first_segment() {
        for path in ["/api", "/api/", "/admin/a/b", "/healthz", "/metrics"] {
            assert!(is_reserved(path), "{path}");
        }
        for path in ["", "*", "/", "//api", "/apis", "/a/api", "/%61pi"] {
            assert!(!is_reserved(path), "{path}");
        }
    }

    #[test]
    fn names_of_parameters_do_not_make_a_shape() {
        let shape = |path: &str| path.parse::<PathPattern>().unwrap().shape();
        assert_eq!(shape("/a/{b}/{*c}"), shape("/a/{x}/{*y}"));
        assert_ne!(shape("/a/{b}"), shape("/a/b"));
        assert_eq!(shape("/caf%C3%A9"), shape("/café"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in ".{0,80}") {
            if let Ok(pattern) = text.parse::<PathPattern>() {
                prop_assert_eq!(pattern.to_string(), text);
            }
        }
    }
}
