//! The key under which secrets are encrypted, and those before it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use crate::apps::AppId;
use crate::config::Config;

/// The bytes of a key.
const KEY_BYTES: usize = 32;
/// The bytes of a nonce: long enough that random ones never meet.
const NONCE_BYTES: usize = 24;

/// Which key a secret is under: the first bytes of its SHA-256.
pub type KeyId = [u8; 8];

/// An encrypted value.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Under which key.
    pub key_id: Vec<u8>,
    /// The nonce, then the ciphertext.
    pub bytes: Vec<u8>,
}

struct Key {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

impl Key {
    fn new(bytes: [u8; KEY_BYTES]) -> Self {
        let mut id = KeyId::default();
        id.copy_from_slice(&Sha256::digest(bytes)[..8]);
        let cipher = XChaCha20Poly1305::new(&bytes.into());
        Self { id, cipher }
    }
}

/// The key of today, first, and those of before; none where there is none.
pub struct MasterKeys(Vec<Key>);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// It is not 32 bytes in base64.
    #[error("{0} is no key: it must be 32 bytes in base64; `openssl rand -base64 32` makes one")]
    Malformed(String),
    /// The file cannot be read or made.
    #[error("the master key in {0}: {1}")]
    File(String, std::io::Error),
}

fn parse(what: &str, text: &str) -> Result<Key, MasterKeyError> {
    let bytes = STANDARD.decode(text.trim()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| MasterKeyError::Malformed(what.to_owned()))?;
    Ok(Key::new(bytes))
}

impl MasterKeys {
    /// The keys of an instance: what is configured, or, where it is one machine, one of its own.
    /// Several nodes must be given the same.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn of(config: &Config) -> Result<Self, MasterKeyError> {
        let keys = Self::given(config)?;
        match own_file(config) {
            Some(path) => keys.with_own(&path),
            None => Ok(keys),
        }
    }

    /// The same, but where an instance has made none of its own yet, none is made.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn at_hand(config: &Config) -> Result<Self, MasterKeyError> {
        match own_file(config).is_some_and(|path| !path.exists()) {
            true => Self::given(config),
            false => Self::of(config),
        }
    }

    fn given(config: &Config) -> Result<Self, MasterKeyError> {
        Self::configured(
            config.master_key.as_deref(),
            config.master_key_file.as_deref(),
            &config.master_key_previous,
        )
    }

    /// The keys that the configuration names: `given`, or what stands in `file`, and `previous`,
    /// separated by commas.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn configured(
        given: Option<&str>,
        file: Option<&Path>,
        previous: &str,
    ) -> Result<Self, MasterKeyError> {
        let mut keys = Vec::new();
        if let Some(text) = given {
            keys.push(parse("master_key", text)?);
        } else if let Some(path) = file {
            let shown = path.display().to_string();
            let text = fs::read_to_string(path);
            let text = text.map_err(|error| MasterKeyError::File(shown.clone(), error))?;
            keys.push(parse(&shown, &text)?);
        }
        for text in previous.split(',').filter(|text| !text.trim().is_empty()) {
            keys.push(parse("a key of master_key_previous", text)?);
        }
        Ok(Self(keys))
    }

    /// Whether there is a key to encrypt with.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Put the key of `path` before these, making it if there is no such file: for an instance
    /// that is one machine.
    ///
    /// # Errors
    /// When the file cannot be made, read, or holds no key.
    pub fn with_own(mut self, path: &Path) -> Result<Self, MasterKeyError> {
        let shown = path.display().to_string();
        let file = |error| MasterKeyError::File(shown.clone(), error);
        if !path.exists() {
            let mut bytes = [0; KEY_BYTES];
            let no_randomness = |error| file(std::io::Error::other(format!("{error}")));
            getrandom::fill(&mut bytes).map_err(no_randomness)?;
            let made = fs::File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path);
            let mut made = made.map_err(file)?;
            made.write_all(format!("{}\n", STANDARD.encode(bytes)).as_bytes())
                .and_then(|()| made.sync_all())
                .map_err(file)?;
        }
        let text = fs::read_to_string(path).map_err(file)?;
        self.0.insert(0, parse(&shown, &text)?);
        Ok(self)
    }

    /// Whether this key is one of them.
    pub fn has(&self, key_id: &[u8]) -> bool {
        self.0.iter().any(|key| key.id[..] == *key_id)
    }

    /// The key that is encrypted with.
    pub fn current_id(&self) -> Option<KeyId> {
        self.0.first().map(|key| key.id)
    }

    /// Encrypt a value for one name of one app; none when there is no key.
    pub fn seal(&self, app_id: AppId, name: &str, value: &str) -> Option<Sealed> {
        let key = self.0.first()?;
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).ok()?;
        let payload = Payload {
            msg: value.as_bytes(),
            aad: &place(app_id, name),
        };
        let ciphertext = key.cipher.encrypt(&XNonce::from(nonce), payload).ok()?;
        Some(Sealed {
            key_id: key.id.to_vec(),
            bytes: [&nonce[..], &ciphertext].concat(),
        })
    }

    /// Encrypt under the current key what is under one of these; none when its key is not here.
    pub fn reseal(&self, app_id: AppId, name: &str, sealed: &Sealed) -> Option<Sealed> {
        let value = self.open(app_id, name, sealed)?;
        self.seal(app_id, name, &value)
    }

    /// Decrypt a value; none when its key is not here, or it was moved or changed.
    pub fn open(&self, app_id: AppId, name: &str, sealed: &Sealed) -> Option<String> {
        let key = self.0.iter().find(|key| key.id[..] == sealed.key_id[..])?;
        let (nonce, ciphertext) = sealed.bytes.split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload {
            msg: ciphertext,
            aad: &place(app_id, name),
        };
        let value = key.cipher.decrypt(&XNonce::from(*nonce), payload).ok()?;
        String::from_utf8(value).ok()
    }
}

/// The file of an instance's own key, where it has one.
pub fn own_file(config: &Config) -> Option<PathBuf> {
    let is_configured = config.master_key.is_some() || config.master_key_file.is_some();
    let is_one_machine = !config.database_url.starts_with("postgres");
    (is_one_machine && !is_configured).then(|| config.data_dir.join("master.key"))
}

/// Where a value belongs: one that is moved to another place does not open there.
fn place(app_id: AppId, name: &str) -> Vec<u8> {
    [app_id.uuid().as_bytes(), name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(texts: &[u8], previous: &[u8]) -> MasterKeys {
        let text = |byte: &u8| STANDARD.encode([*byte; KEY_BYTES]);
        let previous: Vec<String> = previous.iter().map(text).collect();
        let given = texts.first().map(text);
        MasterKeys::configured(given.as_deref(), None, &previous.join(",")).unwrap()
    }

    #[test]
    fn a_value_opens_only_where_it_was_put_and_unchanged() {
        let (app, other) = (AppId::new(), AppId::new());
        let keys_1 = keys(&[1], &[]);
        let sealed = keys_1.seal(app, "TOKEN", "s3cret").unwrap();
        assert_eq!(
            keys_1.open(app, "TOKEN", &sealed).as_deref(),
            Some("s3cret")
        );
        assert_ne!(keys_1.seal(app, "TOKEN", "s3cret").unwrap(), sealed);
        assert_eq!(keys_1.open(other, "TOKEN", &sealed), None);
        assert_eq!(keys_1.open(app, "OTHER", &sealed), None);
        for place in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[place] ^= 1;
            assert_eq!(keys_1.open(app, "TOKEN", &changed), None);
        }
        assert_eq!(keys(&[2], &[]).open(app, "TOKEN", &sealed), None);
        assert!(keys(&[2], &[1]).open(app, "TOKEN", &sealed).is_some());
        assert!(keys(&[], &[]).seal(app, "TOKEN", "x").is_none());
    }

    #[test]
    fn a_key_is_made_once_and_only_ours_to_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let made = keys(&[], &[]).with_own(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let again = keys(&[], &[]).with_own(&path).unwrap();
        assert_eq!(made.current_id(), again.current_id());
        fs::write(&path, "nonsense").unwrap();
        assert!(keys(&[], &[]).with_own(&path).is_err());
        for wrong in ["", "abc", &STANDARD.encode([1; 31])] {
            assert!(
                MasterKeys::configured(Some(wrong), None, "").is_err(),
                "{wrong}"
            );
        }
    }
}
