//! Sign-ins that are remembered: a profile for each server, or for each name at one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Done;
use super::output::{Failure, Output, table};
use super::terminal;

/// The profile that there is where nobody named one.
const DEFAULT: &str = "default";

/// The name of a profile.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Name(String);

impl Name {
    /// The text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match (1..=64).contains(&text.len()) && text.chars().all(is_plain) {
            true => Ok(Self(text.to_owned())),
            false => Err("a profile's name is 1 to 64 letters, digits, `-`, `_` and `.`".into()),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// What is remembered of a sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SignIn {
    /// The server.
    pub(super) url: String,
    /// The token of the session.
    pub(super) token: String,
    /// Whose it is.
    pub(super) user: String,
}

/// All that is remembered: `credentials.json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Kept")]
pub(super) struct Profiles {
    /// The one that is meant where none is named.
    current: Name,
    profiles: BTreeMap<Name, SignIn>,
}

/// What the file may have in it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kept {
    Many {
        current: Name,
        profiles: BTreeMap<Name, SignIn>,
    },
    /// As it was before there were profiles.
    One(SignIn),
}

impl From<Kept> for Profiles {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Many { current, profiles } => Self { current, profiles },
            Kept::One(sign_in) => Self {
                current: Name::default(),
                profiles: BTreeMap::from([(Name::default(), sign_in)]),
            },
        }
    }
}

impl Profiles {
    /// What is remembered on this machine; nothing when there is no file.
    pub(super) fn load() -> Result<Self, Failure> {
        match path() {
            Some(path) => Self::read(&path),
            None => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            bytes => bytes.map_err(|error| about(path, "cannot be read", &error))?,
        };
        keep_private(path);
        serde_json::from_slice(&bytes).map_err(|error| {
            let what = "is damaged, so no sign-in is known; remove it, and sign in anew with \
                        `picloud login`";
            about(path, what, &error)
        })
    }

    /// The profile of this name, or the current one where none is named.
    ///
    /// # Errors
    /// When one is named that is not there.
    pub(super) fn chosen(&self, named: Option<&Name>) -> Result<Option<(&Name, &SignIn)>, Failure> {
        let name = named.unwrap_or(&self.current);
        match (self.profiles.get_key_value(name), named) {
            (None, Some(name)) => Err(self.missing(name)),
            (found, _) => Ok(found),
        }
    }

    /// The profile that a sign-in belongs to.
    pub(super) fn name_or_current(&self, named: Option<Name>) -> Name {
        named.unwrap_or_else(|| self.current.clone())
    }

    /// Some profile for this server.
    pub(super) fn at(&self, url: &str) -> Option<(&Name, &SignIn)> {
        self.profiles.iter().find(|(_, known)| known.url == url)
    }

    fn missing(&self, name: &Name) -> Failure {
        let known: Vec<&str> = self.profiles.keys().map(Name::as_str).collect();
        let known = match known.is_empty() {
            true => "there is none yet".to_owned(),
            false => format!("there are: {}", known.join(", ")),
        };
        let name = name.as_str();
        Failure::SignIn(format!(
            "there is no profile `{name}`; {known}. Make it with: picloud login --profile {name} --url URL"
        ))
    }
}

/// Let nobody else read the file, as somebody copied it or an older version made it. That this cannot
/// be done is no reason to do nothing else.
fn keep_private(path: &Path) {
    let is_open = fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o077 != 0);
    if is_open && let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o600)) {
        eprintln!(
            "warning: others may read {} ({error}); let it be yours alone: chmod 600",
            path.display()
        );
    }
}

/// Change what is remembered; others who do so wait.
fn change(change: impl FnOnce(&mut Profiles) -> Result<(), Failure>) -> Done {
    let path = path().ok_or_else(|| {
        Failure::Local("neither XDG_CONFIG_HOME nor HOME is set: nowhere to keep the token".into())
    })?;
    let failed = |error: io::Error| about(&path, "cannot be written", &error);
    if let Some(folder) = path.parent() {
        let mut make = fs::DirBuilder::new();
        make.recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
    }
    let private = || {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
    };
    // Held until the end of this function.
    let lock = private()
        .open(path.with_extension("lock"))
        .map_err(failed)?;
    lock.lock().map_err(failed)?;
    let mut profiles = Profiles::read(&path)?;
    change(&mut profiles)?;
    if profiles.profiles.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        };
    }
    // Whoever reads meanwhile, or loses the disk's last block, has the one or the other.
    let part = path.with_extension("part");
    let mut file = private().open(&part).map_err(failed)?;
    // One that was there, left by a run that was killed, may be everybody's to read.
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .map_err(failed)?;
    file.write_all(&serde_json::to_vec(&profiles).map_err(|error| failed(error.into()))?)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&part, &path))
        .map_err(failed)
}

/// Remember a sign-in.
pub(super) fn remember(name: &Name, sign_in: SignIn) -> Done {
    change(|known| {
        // The first one is the current one, whatever its name.
        if known.profiles.is_empty() {
            known.current = name.clone();
        }
        known.profiles.insert(name.clone(), sign_in);
        Ok(())
    })
}

/// Forget the sign-in of this profile that has this token.
pub(super) fn forget(name: &Name, token: &str) -> Done {
    change(|known| {
        if known
            .profiles
            .get(name)
            .is_some_and(|one| one.token == token)
        {
            known.profiles.remove(name);
        }
        Ok(())
    })
}

fn path() -> Option<PathBuf> {
    // A variable that is set to nothing is not set.
    let folder = |name| std::env::var_os(name).filter(|folder| !folder.is_empty());
    let home = || folder("HOME").map(|home| PathBuf::from(home).join(".config"));
    let folder = folder("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?;
    Some(folder.join("picloud").join("credentials.json"))
}

fn about(path: &Path, what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::Local(format!("{} {what} ({error})", path.display()))
}

/// Sign-ins that are remembered, each under the name of a profile
#[derive(Subcommand)]
pub(super) enum Command {
    /// List them
    List,
    /// Make one the current: the one that is meant without --profile
    Use {
        /// Its name
        name: Name,
    },
}

impl Command {
    pub(super) fn run(self, out: &Output) -> Done {
        match self {
            Self::List => {
                let known = Profiles::load()?;
                let is_current = |name: &Name| *name == known.current;
                let shown: Vec<_> = known
                    .profiles
                    .iter()
                    .map(|(name, one)| {
                        json!({ "name": name, "url": one.url, "user": one.user,
                                "current": is_current(name) })
                    })
                    .collect();
                out.show_own(&shown, || {
                    if known.profiles.is_empty() {
                        return println!("No profiles; make one with: picloud login --url URL");
                    }
                    let row = |(name, one): (&Name, &SignIn)| {
                        let current = if is_current(name) { "*" } else { "" };
                        let texts = [current, name.as_str(), &one.url, &one.user];
                        texts.map(|text| terminal::line(text).into_owned()).into()
                    };
                    let rows: Vec<Vec<String>> = known.profiles.iter().map(row).collect();
                    table(&["", "NAME", "URL", "USER"], &rows);
                });
                Ok(())
            }
            Self::Use { name } => change(|known| {
                known.chosen(Some(&name))?;
                known.current = name;
                Ok(())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_before_profiles_is_the_default_one() {
        let old = r#"{"url":"http://h","token":"t","user":"ada"}"#;
        let known: Profiles = serde_json::from_str(old).unwrap();
        assert_eq!(known.chosen(None).unwrap().unwrap().1.user, "ada");
        let again = serde_json::to_string(&known).unwrap();
        assert_eq!(serde_json::from_str::<Profiles>(&again).unwrap(), known);
        assert!(known.chosen(Some(&"other".parse().unwrap())).is_err());
        for damaged in ["", "{}", "[]", r#"{"url":"http://h"}"#] {
            assert!(
                serde_json::from_str::<Profiles>(damaged).is_err(),
                "{damaged}"
            );
        }
    }

    #[test]
    fn a_name_is_plain() {
        assert!("prod.eu-1".parse::<Name>().is_ok());
        for odd in ["", "a b", "a/b", "\u{1b}"] {
            assert!(odd.parse::<Name>().is_err(), "{odd:?}");
        }
    }
}
