//! A sign-in that goes on: bound to the browser that began it.
//!
//! The browser keeps a secret in a cookie that no page can read. All that the provider is given
//! and gives back is derived from it: `state`, the nonce of the ID token and the verifier of PKCE.
//! So any node can end what another began, nothing is kept that a flood could fill, and what was
//! begun in one browser is worth nothing in another.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::OidcError;
use super::handover::Program;
use crate::identity::IdentityError;

/// For how long a browser keeps it.
pub const LASTS: chrono::TimeDelta = chrono::TimeDelta::minutes(10);
/// Where people come to who wanted nothing else.
const HOME: &str = "/admin";
/// The longest address to come back to.
const RETURN_TO_BYTES_MAX: usize = 1_024;

/// Who a sign-in is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The browser, which comes to this page of the dashboard, as [`local`] checked it.
    Page(String),
    /// A program that the browser hands a code over to.
    Program(Program),
}

/// What a sign-in is bound to.
#[derive(Debug)]
pub struct Attempt {
    secret: String,
    goal: Goal,
}

impl Attempt {
    /// Begin one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn begin(goal: Goal) -> Result<Self, OidcError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| IdentityError::Hashing(error.to_string()))?;
        let secret = BASE64_URL_SAFE_NO_PAD.encode(secret);
        Ok(Self { secret, goal })
    }

    /// The one that a cookie keeps, if `state` is what came of it.
    ///
    /// # Errors
    /// [`OidcError::NotBegun`].
    pub fn resume(cookie: Option<&str>, state: &str) -> Result<Self, OidcError> {
        let (secret, goal) = cookie
            .and_then(|cookie| cookie.split_once('.'))
            .ok_or(OidcError::NotBegun)?;
        let goal = BASE64_URL_SAFE_NO_PAD.decode(goal).ok();
        let goal: Option<Goal> = goal.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let goal = goal.filter(|goal| match goal {
            Goal::Page(page) => local(Some(page.clone())).is_ok(),
            Goal::Program(_) => true,
        });
        let attempt = Self {
            secret: secret.to_owned(),
            goal: goal.ok_or(OidcError::NotBegun)?,
        };
        let is_its = attempt.state().as_bytes().ct_eq(state.as_bytes());
        match bool::from(is_its) && !secret.is_empty() {
            true => Ok(attempt),
            false => Err(OidcError::NotBegun),
        }
    }

    /// What the browser keeps.
    pub fn cookie(&self) -> String {
        let goal = serde_json::to_vec(&self.goal).expect("two texts and a number are JSON");
        format!("{}.{}", self.secret, BASE64_URL_SAFE_NO_PAD.encode(goal))
    }

    /// What the provider sends back with the browser.
    pub fn state(&self) -> String {
        self.derived("state")
    }

    /// What the ID token must name.
    pub fn nonce(&self) -> String {
        self.derived("nonce")
    }

    /// What shows that who redeems the code is who asked for it.
    pub fn verifier(&self) -> String {
        self.derived("verifier")
    }

    /// Who it is for.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }

    /// The program that it is for, if it is for one.
    pub fn program(&self) -> Option<&Program> {
        match &self.goal {
            Goal::Page(_) => None,
            Goal::Program(program) => Some(program),
        }
    }

    fn derived(&self, what: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes())
            .expect("a key of any length will do");
        mac.update(what.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    }
}

/// Where a browser may be sent in the end: to a page of the dashboard, and nowhere else. An app's
/// page on this host could send it on to anywhere.
///
/// # Errors
/// What such an address is like.
pub fn local(return_to: Option<String>) -> Result<String, &'static str> {
    let path = return_to.unwrap_or_else(|| HOME.to_owned());
    let is_below = path
        .strip_prefix(HOME)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
    let is_plain = path
        .bytes()
        .all(|b| b.is_ascii_graphic() && b != b'\\' && b != b'"');
    // A browser goes up at `..` in whatever way it is written.
    let goes_up = path.contains("..") || path.to_ascii_lowercase().contains("%2e");
    match is_below && is_plain && !goes_up && path.len() <= RETURN_TO_BYTES_MAX {
        true => Ok(path),
        false => Err("is a path of the dashboard, like `/admin/apps`"),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::oidc::handover::Challenge;

    #[test]
    fn an_attempt_is_resumed_where_it_was_begun_and_nowhere_else() {
        let page = |path: &str| Goal::Page(path.to_owned());
        let begun = Attempt::begin(page("/admin/apps?x=1")).unwrap();
        let other = Attempt::begin(page("/admin")).unwrap();
        let resumed = Attempt::resume(Some(&begun.cookie()), &begun.state()).unwrap();
        assert_eq!(resumed.goal(), &page("/admin/apps?x=1"));
        assert_eq!(resumed.verifier(), begun.verifier());
        assert_ne!(begun.nonce(), begun.state());
        for (cookie, state) in [
            (None, begun.state()),
            (Some(other.cookie()), begun.state()),
            (Some(begun.cookie()), other.state()),
            (Some(begun.cookie()), String::new()),
            (Some(begun.cookie()), begun.nonce()),
            (Some(begun.cookie().replace('.', "")), begun.state()),
        ] {
            let resumed = Attempt::resume(cookie.as_deref(), &state);
            assert!(matches!(resumed, Err(OidcError::NotBegun)));
        }
        // A cookie that somebody made leads nowhere else, either.
        let forged = Attempt {
            secret: begun.secret.clone(),
            goal: page("https://evil.test"),
        };
        assert!(Attempt::resume(Some(&forged.cookie()), &begun.state()).is_err());
        let empty = Attempt {
            secret: String::new(),
            goal: page("/admin"),
        };
        assert!(Attempt::resume(Some(&empty.cookie()), &empty.state()).is_err());
        let program = Goal::Program(Program {
            code_challenge: Challenge::of("x"),
            port: NonZeroU16::new(4711),
        });
        let begun = Attempt::begin(program.clone()).unwrap();
        let resumed = Attempt::resume(Some(&begun.cookie()), &begun.state()).unwrap();
        assert_eq!(resumed.goal(), &program);
        for (from, to) in [("4711", "0"), ("4711", "70000"), ("4711", "\"a.test\"")] {
            let (secret, goal) = (&begun.secret, serde_json::to_string(&program).unwrap());
            let goal = BASE64_URL_SAFE_NO_PAD.encode(goal.replace(from, to));
            let forged = format!("{secret}.{goal}");
            assert!(
                Attempt::resume(Some(&forged), &begun.state()).is_err(),
                "{to}"
            );
        }
    }

    #[test]
    fn a_verifier_is_as_long_as_pkce_wants() {
        let attempt = Attempt::begin(Goal::Page("/admin".into())).unwrap();
        let length = attempt.verifier().len();
        assert!((43..=128).contains(&length), "{length}");
    }

    #[test]
    fn only_the_dashboard_is_come_back_to() {
        assert_eq!(local(None).unwrap(), "/admin");
        for good in [
            "/admin",
            "/admin/",
            "/admin/apps/shop?tab=kv#x",
            "/admin#/x",
        ] {
            assert_eq!(local(Some(good.into())).unwrap(), good);
        }
        for bad in [
            "",
            "/",
            "//evil.test",
            "https://evil.test/admin",
            "/administrator",
            "/admin/../shop",
            "/admin/%2E%2e/shop",
            "/admin\\..\\shop",
            "/admin/\r\nSet-Cookie: a=b",
            "/admin/ü",
            "admin",
            &format!("/admin/{}", "x".repeat(1_100)),
        ] {
            assert!(local(Some(bad.into())).is_err(), "{bad}");
        }
    }
}
