//! Bearer tokens: `<prefix>_<256 random bits><checksum>`, in base 62. The prefix tells what a
//! token is, also to scanners that look for leaked ones; the checksum catches typing errors
//! before the database is asked (as GitHub's tokens have it).

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::IdentityError;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 43 digits of base 62 hold 256 bits.
const RANDOM_DIGITS: usize = 43;
/// 6 digits of base 62 hold 32 bits.
const CHECK_DIGITS: usize = 6;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A session: `pcs_`.
    Session,
    /// An API key: `pic_`.
    ApiKey,
    /// A link: `pcl_`.
    Link,
    /// What makes the first owner: `pcu_`.
    Setup,
    /// What a program makes a session of, after a sign-in in a browser: `pcc_`.
    SignInCode,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Session,
        Self::ApiKey,
        Self::Link,
        Self::Setup,
        Self::SignInCode,
    ];

    fn prefix(self) -> &'static str {
        match self {
            Self::Session => "pcs_",
            Self::ApiKey => "pic_",
            Self::Link => "pcl_",
            Self::Setup => "pcu_",
            Self::SignInCode => "pcc_",
        }
    }
}

/// A new token.
///
/// # Errors
/// When the system has no randomness.
pub fn new(kind: Kind) -> Result<String, IdentityError> {
    let mut token = kind.prefix().to_owned();
    token.extend(random_digits(RANDOM_DIGITS)?);
    token.push_str(&checksum(&token));
    Ok(token)
}

/// Random digits of base 62.
///
/// # Errors
/// When the system has no randomness.
pub fn random_digits(count: usize) -> Result<Vec<char>, IdentityError> {
    let mut digits = Vec::with_capacity(count);
    while digits.len() < count {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes).map_err(|error| IdentityError::Hashing(error.to_string()))?;
        // 248 is the greatest multiple of 62 in a byte: above it some digits would come oftener.
        let even = bytes.iter().filter(|byte| **byte < 248);
        let wanted = count - digits.len();
        digits.extend(even.take(wanted).map(|byte| digit(u32::from(*byte))));
    }
    Ok(digits)
}

fn digit(value: u32) -> char {
    char::from(ALPHABET[value as usize % ALPHABET.len()])
}

fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [' '; CHECK_DIGITS];
    for place in digits.iter_mut().rev() {
        *place = digit(rest % 62);
        rest /= 62;
    }
    digits.iter().collect()
}

/// What a token is for; none when it is not one of ours, or is damaged.
pub fn kind(token: &str) -> Option<Kind> {
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| token.starts_with(kind.prefix()))?;
    if !token.is_ascii() || token.len() != kind.prefix().len() + RANDOM_DIGITS + CHECK_DIGITS {
        return None;
    }
    let (body, check) = token.split_at(token.len() - CHECK_DIGITS);
    (checksum(body) == check).then_some(kind)
}

/// What the database keeps of a token. It has 256 random bits, so a plain hash is enough.
pub fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// What a page must say to change something with the session of a cookie. Only whoever knows the
/// session's token can tell it, and it does not tell the token.
///
/// # Errors
/// Never in truth: every key will do for this hash.
pub fn csrf(session: &str) -> Result<String, IdentityError> {
    let mac = Hmac::<Sha256>::new_from_slice(session.as_bytes());
    let mut mac = mac.map_err(|error| IdentityError::Hashing(error.to_string()))?;
    mac.update(b"picloud csrf");
    Ok(hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_tells_its_kind() {
        for kind_of in Kind::ALL {
            let token = new(kind_of).unwrap();
            assert_eq!(kind(&token), Some(kind_of));
            assert_ne!(token, new(kind_of).unwrap());
        }
        for none in ["", "pic_", "pic", "Bearer", "pic_ÄÖÜ", "xyz_0000"] {
            assert_eq!(kind(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_noticed(place in 4..53_usize, other in 0..62_u32) {
            let token = new(Kind::ApiKey).unwrap();
            let mut damaged: Vec<char> = token.chars().collect();
            prop_assume!(damaged[place] != digit(other));
            damaged[place] = digit(other);
            prop_assert_eq!(kind(&damaged.iter().collect::<String>()), None);
            prop_assert_eq!(kind(&token[..place]), None);
        }
    }
}
