//! Signing in for a program on somebody's machine, the command line say: a browser signs them in
//! at the provider, and the program makes a session of the one-time code that comes of it.
//!
//! The program keeps a verifier and tells its hash beforehand (PKCE, RFC 7636), so the code is
//! worth nothing to whoever else sees it. It goes to a port of the browser's own machine
//! (RFC 8252) or is shown to be copied, and goes nowhere else.

use std::num::NonZeroU16;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{OidcError, sql};
use crate::identity::sql::users;
use crate::identity::{IdentityError, Sessions, User, UserId, token};

/// For how long a code is good: somebody may have to carry it to another machine.
const LASTS: TimeDelta = TimeDelta::minutes(5);

/// The program that waits for a code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What its verifier must fit.
    pub code_challenge: Challenge,
    /// Where it listens on the browser's machine; none: somebody copies the code.
    pub port: Option<NonZeroU16>,
}

impl Program {
    /// Where the browser takes a code to; none where it is shown.
    pub fn given(&self, code: &str) -> Option<String> {
        self.address(&[("code", code)])
    }

    /// Where the browser tells that there is no code, and why; none where that is shown.
    pub fn refused(&self, problem: &str, detail: &str) -> Option<String> {
        self.address(&[("error", problem), ("error_description", detail)])
    }

    /// With the challenge as `state`: only who was at the beginning can know it.
    fn address(&self, said: &[(&str, &str)]) -> Option<String> {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(said)
            .append_pair("state", &self.code_challenge.0)
            .finish();
        let port = self.port?;
        Some(format!("http://127.0.0.1:{port}/?{query}"))
    }
}

/// The hash of a verifier: SHA-256 in unpadded base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = "^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$"))]
pub struct Challenge(String);

impl Challenge {
    /// That of a verifier.
    pub fn of(verifier: &str) -> Self {
        Self(BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Challenge {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&text);
        match bytes.is_ok_and(|bytes| bytes.len() == 32) {
            true => Ok(Self(text)),
            false => Err("a challenge is the SHA-256 of the verifier in base64url, 43 characters"),
        }
    }
}

/// What a program keeps to itself until it has a code.
///
/// # Errors
/// When the system has no randomness.
pub fn new_verifier() -> Result<String, IdentityError> {
    // 43 characters, as many as PKCE wants.
    Ok(token::random_digits(43)?.into_iter().collect())
}

/// Make a code for the program that a user has signed in for.
pub(super) async fn new_code(
    sessions: &Sessions,
    user_id: UserId,
    program: &Program,
) -> Result<String, OidcError> {
    let code = token::new(token::Kind::SignInCode)?;
    let code_hash = token::hash(&code);
    let challenge = program.code_challenge.clone();
    let kept = sessions.db().write(move |tx| {
        Box::pin(async move {
            let expires_at = tx.now + LASTS;
            sql::insert_code(tx, &code_hash, user_id, challenge.as_str(), expires_at).await?;
            Ok::<_, OidcError>(())
        })
    });
    kept.await?;
    Ok(code)
}

/// Whose a code is. It is good for one try, with whatever verifier.
pub(super) async fn redeem(
    sessions: &Sessions,
    code: &str,
    verifier: &str,
) -> Result<User, OidcError> {
    // As it may be copied: with a blank or the end of a line.
    let code = code.trim();
    if token::kind(code) != Some(token::Kind::SignInCode) {
        return Err(OidcError::DamagedCode);
    }
    let code_hash = token::hash(code);
    let taken = sessions.db().write(move |tx| {
        Box::pin(async move { Ok::<_, OidcError>(sql::take_code(tx, &code_hash).await?) })
    });
    let (user_id, expected) = taken.await?.ok_or(OidcError::DeadCode)?;
    let fits = Challenge::of(verifier)
        .0
        .as_bytes()
        .ct_eq(expected.as_bytes());
    if !bool::from(fits) {
        return Err(OidcError::DeadCode);
    }
    let mut conn = sessions.db().read().await?;
    let user = users::get(&mut conn, user_id).await?;
    let user = user.ok_or(OidcError::DeadCode)?;
    match user.disabled_at {
        None => Ok(user),
        Some(_) => Err(OidcError::Disabled(user.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_that_of_its_verifier() {
        // The example of RFC 7636.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert_eq!(Challenge::of(verifier).as_str(), challenge);
        assert!(Challenge::try_from(challenge.to_owned()).is_ok());
        for bad in [
            "",
            &challenge[..42],
            &format!("{challenge}A"),
            &challenge.replace('-', "+"),
            &challenge.replace("cM", "cN"),
            &"\n".repeat(43),
        ] {
            assert!(Challenge::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        let (one, other) = (new_verifier().unwrap(), new_verifier().unwrap());
        assert_eq!(one.len(), 43);
        assert_ne!(one, other);
    }

    #[test]
    fn a_browser_goes_to_its_own_machine_and_nowhere_else() {
        let mut program = Program {
            code_challenge: Challenge::of("x"),
            port: NonZeroU16::new(4711),
        };
        let state = program.code_challenge.as_str();
        assert_eq!(
            program.refused("a", "b&c=d\r\n#é").unwrap(),
            format!(
                "http://127.0.0.1:4711/?error=a&error_description=b%26c%3Dd%0D%0A%23%C3%A9&state={state}"
            )
        );
        assert_eq!(
            program.given("pcc_1").unwrap(),
            format!("http://127.0.0.1:4711/?code=pcc_1&state={state}")
        );
        program.port = None;
        assert_eq!(program.given("pcc_1"), None);
    }
}
