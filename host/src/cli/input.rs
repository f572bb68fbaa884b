//! What commands read: files, standard input, passwords.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use super::output::Failure;

/// A file that was named.
pub(super) fn file(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| about(&path.display().to_string(), &error.to_string()))
}

/// The text of a file that was named; - is standard input.
pub(super) fn text(path: &Path) -> Result<String, Failure> {
    match path.as_os_str() == "-" {
        true => stdin(),
        false => utf8(&path.display().to_string(), file(path)?),
    }
}

/// All of standard input, as it is.
pub(super) fn stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    utf8("standard input", bytes)
}

/// The text that a file is. A byte order mark before it is no part of it.
pub(super) fn utf8(name: &str, mut bytes: Vec<u8>) -> Result<String, Failure> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        about(
            name,
            &match is_utf16 {
                true => "it is UTF-16, as its first bytes say; save it as UTF-8".to_owned(),
                false => format!("it is not UTF-8 (at byte {at})"),
            },
        )
    })
}

fn about(name: &str, what: &str) -> Failure {
    Failure::Local(format!("{name}: {what}"))
}

/// A password or another secret: from standard input, where the end of its line is no part of it,
/// or asked for on the terminal.
pub(super) fn secret(from_stdin: bool, ask: &str) -> Result<String, Failure> {
    if from_stdin {
        let mut text = stdin()?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line).len();
        text.truncate(line);
        return Ok(text);
    }
    if !io::stdin().is_terminal() {
        let detail = "no terminal to ask on; say that standard input has it (see --help)";
        return Err(Failure::Usage(detail.into()));
    }
    eprint!("{ask}");
    io::stderr().flush()?;
    Ok(rpassword::read_password()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        let read = |bytes: &[u8]| utf8("f", bytes.to_vec());
        assert_eq!(read(b"\xef\xbb\xbflet x = 1;").unwrap(), "let x = 1;");
        assert_eq!(read(b"\xef\xbb\xbf\xef\xbb\xbf").unwrap(), "\u{feff}");
        let says = |bytes: &[u8]| match read(bytes) {
            Err(Failure::Local(says)) => says,
            other => panic!("{other:?}"),
        };
        assert!(says(b"\xff\xfel\0").contains("UTF-16"));
        assert!(says(b"ab\xff").contains("at byte 2"));
    }
}
