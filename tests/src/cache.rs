//! The folder of compiled code that a server of a test has.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::Server;

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/picloud-test-cache")
}

impl Server {
    /// Where compiled code is: all tests share it, because compiling the guest takes seconds, but those
    /// that look at it.
    pub fn cache_dir(&self) -> PathBuf {
        match self.options.own_cache {
            true => self.folder.path().join("cache"),
            false => shared(),
        }
    }

    /// Begin a folder of its own with what others compiled.
    pub(crate) fn fill_own_cache(&self) {
        let own = self.cache_dir();
        if !self.options.own_cache || own.exists() {
            return;
        }
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::create_dir(&own).expect("a folder");
        std::fs::set_permissions(&own, private).expect("its owner's alone");
        for entry in std::fs::read_dir(shared()).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            // Another test may be writing or removing one; then it is compiled anew.
            let name = path.file_name().expect("a name");
            if path.extension().is_none_or(|extension| extension != "new") {
                let _ = std::fs::copy(&path, own.join(name));
            }
        }
    }
}
