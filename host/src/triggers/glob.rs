//! The globs of triggers: `*`, an exact name, or a prefix and `*`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which names are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = PATTERN, "minLength" = 1, "maxLength" = BYTES_MAX))]
pub enum Glob {
    /// This one.
    Exact(String),
    /// Those that begin so; every name begins with nothing.
    Prefix(String),
}

/// The longest glob, in bytes: no collection and no key is longer.
const BYTES_MAX: usize = crate::kv::KEY_BYTES_MAX;

/// What a glob looks like.
const PATTERN: &str = r"^[^*\u0000-\u001F\u007F-\u009F]*\*?$";

impl Glob {
    /// Every name.
    pub fn any() -> Self {
        Self::Prefix(String::new())
    }

    /// Whether `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a glob is not empty; `*` means every name".into());
        }
        if text.len() > BYTES_MAX {
            return Err(format!("a glob has at most {BYTES_MAX} bytes"));
        }
        if text.contains(char::is_control) {
            return Err("a glob has no control characters, as no name has any".into());
        }
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err(format!(
                "`*` stands at the end of a glob, as in `orders:*`, or alone; not as in `{text}`"
            ));
        }
        let name = name.to_owned();
        Ok(if is_prefix {
            Self::Prefix(name)
        } else {
            Self::Exact(name)
        })
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl TryFrom<String> for Glob {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_form_means_what_it_says() {
        let matches = |glob: &str, name| glob.parse::<Glob>().unwrap().matches(name);
        assert!(matches("*", "anything"));
        assert!(matches("orders", "orders") && !matches("orders", "orders:eu"));
        assert!(matches("orders:*", "orders:eu") && !matches("orders:*", "orders"));
        for absurd in ["", "**", "a*b", "*a", "a\nb", &"x".repeat(2_000)] {
            assert!(absurd.parse::<Glob>().is_err(), "{absurd:?}");
        }
    }

    proptest! {
        #[test]
        fn a_glob_reads_back_and_never_panics(text in ".{0,30}", name in ".{0,30}") {
            if let Ok(glob) = text.parse::<Glob>() {
                prop_assert_eq!(glob.to_string(), text.clone());
                prop_assert_eq!(glob.matches(&name), match text.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => name == text,
                });
            }
        }
    }
}
