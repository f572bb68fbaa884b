//! Names of users, and passwords, as they are compared (PRECIS, RFC 8265): what differs only in case,
//! in how a keyboard composes it, or in spaces, is one. Letters of different scripts that look alike
//! are not.

use std::borrow::Cow;

use precis_profiles::precis_core::profile::PrecisFastInvocation;
use precis_profiles::{OpaqueString, UsernameCaseMapped};

use crate::apps::NAME_BYTES_MAX;

/// How long a name may be as it is written: composed, and with single spaces, it is shorter.
const WRITTEN_BYTES_MAX: usize = 4 * NAME_BYTES_MAX;

const IMPOSSIBLE: &str = "it has a character that no name may have: no symbols, no invisible characters, and no mixing of directions of writing";

/// A name as it is kept: parts of the class of identifiers (letters, digits and visible ASCII),
/// in lower case and composed (NFC), with one space between each two.
///
/// # Errors
/// What is wrong with it, in words.
pub fn canonical(name: &str) -> Result<String, &'static str> {
    // Some rules look at the whole for each character.
    if name.len() > WRITTEN_BYTES_MAX {
        return Err("it is too long");
    }
    // Of the characters that cannot be seen, the profile takes joiners in some scripts.
    if look_alike(name) != name {
        return Err(IMPOSSIBLE);
    }
    let parts: Vec<_> = name
        .split_whitespace()
        .map(part)
        .collect::<Result<_, _>>()?;
    match parts.is_empty() {
        true => Err("it is empty"),
        false => Ok(parts.join(" ")),
    }
}

/// A part of a name as it is kept. The rules may have to be applied again to what they made (RFC 8264,
/// section 7), and that must be a name too: the small letters of some scripts are newer than the
/// profile's tables.
fn part(written: &str) -> Result<String, &'static str> {
    let once = UsernameCaseMapped::enforce(written).map_err(|_| IMPOSSIBLE)?;
    let twice = UsernameCaseMapped::enforce(&*once).map_err(|_| IMPOSSIBLE)?;
    match once == twice {
        true => Ok(once.into_owned()),
        false => Err(IMPOSSIBLE),
    }
}

/// A name as it is looked for: its [canonical] form with one small sigma, since capitals do not say
/// which of the two stands at the end of a word; one that cannot be a name, as it is written.
pub fn sought(name: &str) -> String {
    let canonical = canonical(name).unwrap_or_else(|_| name.to_owned());
    canonical.replace('\u{3c2}', "\u{3c3}")
}

/// A password as it is hashed: composed, and with plain spaces; none if it has characters that none
/// may have.
pub fn prepared_password(password: &str) -> Option<String> {
    if password.len() > super::password::BYTES_MAX {
        return None;
    }
    OpaqueString::enforce(password).ok().map(Cow::into_owned)
}

/// Names of which each looks like another: groups of two or more.
pub fn twins(names: impl IntoIterator<Item = String>) -> Vec<Vec<String>> {
    let mut groups = std::collections::BTreeMap::<String, Vec<String>>::new();
    for name in names {
        let seen = look_alike(&name);
        groups.entry(sought(&seen)).or_default().push(name);
    }
    let mut twins: Vec<_> = groups
        .into_values()
        .filter(|group| group.len() > 1)
        .collect();
    twins.iter_mut().for_each(|group| group.sort());
    twins
}

/// A name without what cannot be seen.
fn look_alike(name: &str) -> String {
    // Marks of direction, joiners, the soft hyphen, the byte order mark and their like.
    let is_invisible = |c: char| {
        matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    name.chars().filter(|c| !is_invisible(*c)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_looks_the_same_is_one_name() {
        for (written, name) in [
            ("Owner", "owner"),
            ("owner ", "owner"),
            (" Ada   Lovelace", "ada lovelace"),
            ("jos\u{e9}", "jos\u{e9}"),
            ("jose\u{301}", "jos\u{e9}"),
            ("JOSE\u{301}", "jos\u{e9}"),
            ("ada@example.com", "ada@example.com"),
            ("\u{ff41}da", "ada"),
            ("\u{c5}sa", "\u{e5}sa"),
            (
                "\u{39f}\u{394}\u{39f}\u{3a3}",
                "\u{3bf}\u{3b4}\u{3bf}\u{3c3}",
            ),
            (
                "\u{3bf}\u{3b4}\u{3bf}\u{3c2}",
                "\u{3bf}\u{3b4}\u{3bf}\u{3c2}",
            ),
        ] {
            assert_eq!(canonical(written).as_deref(), Ok(name), "{written:?}");
        }
        for odd in [
            "",
            "  ",
            "o\u{200b}wner",
            "\u{202e}renwo",
            "own\u{ad}er",
            "a\u{0}b",
            "\u{1f600}",
            "\u{feff}owner",
            "\u{915}\u{94d}\u{200d}\u{937}",
            "\u{644}\u{200c}\u{627}",
            "\u{13a0}",
        ] {
            assert!(canonical(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn capitals_do_not_say_which_small_sigma_it_was() {
        let written = ["\u{39f}\u{3a3}", "\u{3bf}\u{3c2}", "\u{3bf}\u{3c3}"];
        for name in written {
            assert_eq!(sought(name), "\u{3bf}\u{3c3}", "{name}");
        }
        let twins = twins(written.map(str::to_owned));
        assert_eq!(twins.len(), 1);
    }

    #[test]
    fn a_password_is_the_same_from_every_keyboard() {
        assert_eq!(
            prepared_password("jose\u{301}").as_deref(),
            Some("jos\u{e9}")
        );
        assert_eq!(prepared_password("a\u{2003}b").as_deref(), Some("a b"));
        assert_eq!(
            prepared_password("Correct Horse").as_deref(),
            Some("Correct Horse")
        );
        assert_eq!(prepared_password("a\u{7}b"), None);
    }

    #[test]
    fn what_is_long_is_refused_at_once() {
        let long = "\u{660}".repeat(1 << 19);
        let began = std::time::Instant::now();
        assert!(canonical(&long).is_err() && prepared_password(&long).is_none());
        assert!(began.elapsed().as_secs() < 5);
    }

    #[test]
    fn twins_are_told() {
        let names = [
            "Owner",
            "owner",
            "o\u{200b}wner",
            "ada",
            "jose\u{301}",
            "jos\u{e9}",
        ];
        let twins = twins(names.map(str::to_owned));
        assert_eq!(twins.len(), 2);
        assert_eq!(twins[1].len(), 3);
    }

    proptest! {
        #[test]
        fn once_is_enough(name in "\\PC{0,20}") {
            if let Ok(once) = canonical(&name) {
                prop_assert_eq!(canonical(&once), Ok(once.clone()));
            }
        }
    }
}
