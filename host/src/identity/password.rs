//! Passwords: which are taken, and how they are kept.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use tokio::sync::Semaphore;

use super::IdentityError;
use super::name::prepared_password;

/// The shortest password that is taken, in characters (NIST SP 800-63B asks for 8).
pub const CHARS_MIN: usize = 8;
/// The longest, in bytes: hashing a longer one would be work for an attacker to give.
pub(super) const BYTES_MAX: usize = 1024;
/// How many passwords are hashed at once. Each takes 19 MiB and a core for tens of
/// milliseconds: without a bound, a flood of logins would be a flood of memory.
const HASHING_AT_ONCE: usize = 2;

/// The passwords that are tried first, of 8 characters or more, in lower case; a list of leaked
/// passwords by their frequency.
static COMMON: &str = include_str!("common_passwords.txt");

/// Say what is wrong with a new password.
///
/// # Errors
/// [`IdentityError::WeakPassword`] with a sentence for whoever chose it.
pub fn check(password: &str, user_name: &str) -> Result<(), IdentityError> {
    let weak = |why: String| Err(IdentityError::WeakPassword(why));
    if password.chars().count() < CHARS_MIN {
        return weak(format!("a password has at least {CHARS_MIN} characters"));
    }
    if password.len() > BYTES_MAX {
        return weak(format!("a password has at most {BYTES_MAX} bytes"));
    }
    if prepared_password(password).is_none() {
        return weak("a password has no control characters".to_owned());
    }
    let lower = password.to_lowercase();
    if lower == user_name.to_lowercase() || COMMON.lines().any(|common| common == lower) {
        return weak(
            "this is one of the passwords that are tried first; choose another".to_owned(),
        );
    }
    Ok(())
}

/// Hashes passwords, a few at a time.
#[derive(Clone)]
pub struct Hasher {
    at_once: Arc<Semaphore>,
}

/// What comparing a password with a hash said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is wrong.
    Wrong,
    /// It is right.
    Right,
    /// It is right, and its hash was made with parameters of another time: this is a new one.
    Rehashed(String),
}

impl Default for Hasher {
    fn default() -> Self {
        let at_once = Arc::new(Semaphore::new(HASHING_AT_ONCE));
        Self { at_once }
    }
}

impl Hasher {
    /// The hash of a password, as a PHC string.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub async fn hash(&self, password: String) -> Result<String, IdentityError> {
        let password = prepared_password(&password).unwrap_or(password);
        self.run(move |argon2| hash(argon2, &password)).await
    }

    /// Whether a password is the one of a hash. Without a hash it takes as long, and is wrong: a
    /// user who does not exist costs as much as one who does.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub async fn verify(
        &self,
        password: String,
        known: Option<String>,
    ) -> Result<Verdict, IdentityError> {
        // None can be so long.
        if password.len() > BYTES_MAX {
            return Ok(Verdict::Wrong);
        }
        self.run(move |argon2| {
            let prepared = prepared_password(&password);
            let prepared = prepared.as_deref().unwrap_or(&password);
            // As much as a wrong password costs at one who exists.
            let wrong = || {
                hash(argon2, prepared)?;
                if prepared != password {
                    hash(argon2, &password)?;
                }
                Ok(Verdict::Wrong)
            };
            let Some(known) = known else {
                return wrong();
            };
            let Ok(parsed) = PasswordHash::new(&known) else {
                return wrong();
            };
            let is_right = |password: &str| {
                let verified = argon2.verify_password(password.as_bytes(), &parsed);
                verified.is_ok()
            };
            match is_right(prepared) {
                true if is_current(argon2, &known) => Ok(Verdict::Right),
                true => hash(argon2, prepared).map(Verdict::Rehashed),
                // Older versions hashed what was typed.
                false if prepared != password && is_right(&password) => {
                    hash(argon2, prepared).map(Verdict::Rehashed)
                }
                false => Ok(Verdict::Wrong),
            }
        })
        .await
    }

    /// Hash on a thread for blocking work. The permit moves into the work: a caller who leaves
    /// does not free it while the hashing goes on.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'_>) -> Result<T, IdentityError> + Send + 'static,
    ) -> Result<T, IdentityError> {
        let permit = self.at_once.clone().acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // The crate's defaults are OWASP's minimum: argon2id, 19 MiB, t=2, p=1.
            work(&Argon2::default())
        })
        .await
        .map_err(|error| IdentityError::Hashing(error.to_string()))?
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String, IdentityError> {
    argon2
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| IdentityError::Hashing(error.to_string()))
}

/// Whether a hash was made with today's parameters. They stand before the salt.
fn is_current(argon2: &Argon2<'_>, known: &str) -> bool {
    let params = argon2.params();
    let now = format!(
        "$argon2id$v=19$m={},t={},p={}$",
        params.m_cost(),
        params.t_cost(),
        params.p_cost()
    );
    known.starts_with(&now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_passwords_are_refused_and_the_rest_is_taken() {
        for weak in ["short", "", "password123", "PASSWORD123", "ada-lovelace"] {
            assert!(check(weak, "ada-lovelace").is_err(), "{weak}");
        }
        assert!(check(&"x".repeat(2_000), "ada").is_err());
        for good in ["correct horse battery", "pässwörter", "aaaa bbbb cccc"] {
            assert!(check(good, "ada").is_ok(), "{good}");
        }
    }

    #[tokio::test]
    async fn a_hash_of_other_parameters_is_made_anew_when_its_password_comes() {
        let hasher = Hasher::default();
        let current = hasher.hash("correct horse".into()).await.unwrap();
        let verify = |password: &str, known: &str| {
            let (password, known) = (password.to_owned(), known.to_owned());
            let hasher = hasher.clone();
            async move { hasher.verify(password, Some(known)).await.unwrap() }
        };
        assert_eq!(verify("correct horse", &current).await, Verdict::Right);
        assert_eq!(verify("wrong horse", &current).await, Verdict::Wrong);
        let params = argon2::Params::new(8_192, 1, 1, None).unwrap();
        let weaker = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let old = hash(&weaker, "correct horse").unwrap();
        let Verdict::Rehashed(new) = verify("correct horse", &old).await else {
            panic!("the old hash stays");
        };
        assert_eq!(verify("correct horse", &new).await, Verdict::Right);
        assert_eq!(verify("wrong horse", &old).await, Verdict::Wrong);
    }

    #[tokio::test]
    async fn a_hash_of_what_was_typed_is_made_anew_when_it_is_typed_again() {
        let hasher = Hasher::default();
        let verify = |password: &str, known: &str| {
            let (password, known) = (password.to_owned(), known.to_owned());
            let hasher = hasher.clone();
            async move { hasher.verify(password, Some(known)).await.unwrap() }
        };
        // Older versions neither composed what was typed nor took a no-break space for one.
        let typed = "jose\u{301}\u{a0}jose\u{301}";
        let composed = "jos\u{e9} jos\u{e9}";
        let old = hash(&Argon2::default(), typed).unwrap();
        assert_eq!(verify(composed, &old).await, Verdict::Wrong);
        let Verdict::Rehashed(new) = verify(typed, &old).await else {
            panic!("the old hash stays");
        };
        for password in [typed, composed] {
            assert_eq!(verify(password, &new).await, Verdict::Right);
        }
        assert_eq!(verify("jose jose", &new).await, Verdict::Wrong);
    }
}
