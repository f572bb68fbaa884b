//! What built files are made of, so that nothing is built twice.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A hash of files and folders below `root`; one that is not there counts as such.
pub fn hash(root: &Path, parts: &[&str]) -> Result<String> {
    fn add(hash: &mut Sha256, root: &Path, path: &Path) -> Result<()> {
        if path.is_dir() {
            let mut inside: Vec<_> = fs::read_dir(path)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()?;
            inside.sort();
            return inside.iter().try_for_each(|path| add(hash, root, path));
        }
        let name = path.strip_prefix(root).unwrap_or(path);
        hash.update(name.to_string_lossy().as_bytes());
        if path.exists() {
            hash.update(fs::read(path).with_context(|| format!("{}", path.display()))?);
        }
        Ok(())
    }
    let mut hash = Sha256::new();
    for part in parts {
        add(&mut hash, root, &root.join(part))?;
    }
    Ok(hex::encode(hash.finalize()))
}
