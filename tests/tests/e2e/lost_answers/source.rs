//! The statements that write, as they stand in the source of the server: so that the list of steps
//! cannot lack one that somebody adds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use picloud_tests::normalised;

/// A statement that writes, or the part of one that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// Its file, within `host/src`.
    pub(super) file: String,
    pub(super) line: usize,
    /// As [`normalised`].
    pub(super) text: String,
    /// Whether more belongs to the statement, before it or after it.
    is_part: bool,
}

/// Statements to which no step comes, and why none has to.
struct Exempt {
    file: &'static str,
    /// How they begin; all of the file if it is empty.
    beginning: &'static str,
    why: &'static str,
}

const fn exempt(file: &'static str, beginning: &'static str, why: &'static str) -> Exempt {
    Exempt {
        file,
        beginning,
        why,
    }
}

const OF_A_REQUEST: &str = "one transaction of a request of the API: if it fails, its caller sees that, and sends it again";
const ON_SQLITE: &str = "a text for SQLite, which answers within the process";
const BY_ITSELF: &str = "done again a moment later, and nothing waits for it";

const EXEMPT: &[Exempt] = &[
    exempt("apps/sql.rs", "", OF_A_REQUEST),
    exempt("apps/sql/asked.rs", "", OF_A_REQUEST),
    exempt("identity/sql/keys.rs", "", OF_A_REQUEST),
    exempt("identity/sql/links.rs", "", OF_A_REQUEST),
    exempt("identity/sql/members.rs", "", OF_A_REQUEST),
    exempt(
        "identity/sql/sessions.rs",
        "delete from sessions where user_id = $ and id <> $",
        OF_A_REQUEST,
    ),
    exempt(
        "identity/sql/sessions.rs",
        "delete from sign_in_codes where user_id = $",
        OF_A_REQUEST,
    ),
    exempt(
        "identity/sql/sessions.rs",
        "update sessions set last_used_at",
        BY_ITSELF,
    ),
    exempt(
        "identity/sql/setup.rs",
        "",
        "before there is a first owner, who opens another link",
    ),
    exempt("identity/sql/users.rs", "", OF_A_REQUEST),
    exempt("oidc/sql.rs", "", OF_A_REQUEST),
    exempt("pubsub/sql.rs", "", OF_A_REQUEST),
    exempt(
        "routes/sql.rs",
        "delete from routes where id = $",
        OF_A_REQUEST,
    ),
    exempt(
        "quotas/sql.rs",
        "delete from",
        "what is left is removed after the next measurement, a minute later, or before the next deploy",
    ),
    exempt("secrets/sql.rs", "", OF_A_REQUEST),
    exempt("triggers/sql.rs", "", OF_A_REQUEST),
    exempt(
        "backup/sql.rs",
        "",
        "a restore fills an empty database that nobody serves, and begins anew if it fails",
    ),
    exempt(
        "overview/sql.rs",
        "",
        "a sample a minute: one that is lost is a gap in a picture",
    ),
    exempt(
        "instance/sql.rs",
        "delete from nodes where id = $",
        "the end of a node that says goodbye; others forget it without",
    ),
    exempt(
        "dispatch/sql/mod.rs",
        "update outbox set due_at = $, lease_owner = null where lease_owner is not null",
        ON_SQLITE,
    ),
    exempt(
        "dispatch/sql/mod.rs",
        "update outbox set due_at = $ where",
        ON_SQLITE,
    ),
    exempt(
        "dispatch/sql/mod.rs",
        "update outbox set created_at = $",
        ON_SQLITE,
    ),
    exempt(
        "dispatch/sql/completion.rs",
        "delete from outbox where",
        ON_SQLITE,
    ),
    exempt(
        "dispatch/sql/leases.rs",
        "update outbox set due_at =",
        ON_SQLITE,
    ),
    exempt(
        "apps/sql/leaving.rs",
        "update apps set remove_at = $ where remove_at > $",
        ON_SQLITE,
    ),
    exempt(
        "dispatch/sql/leaving.rs",
        "delete from outbox where lease_owner is null and id in ( select id from outbox where \
         app_id = $ and not held and not blocked and lease_owner is null order by due_at limit $)",
        ON_SQLITE,
    ),
    exempt("store/file.rs", "", ON_SQLITE),
    exempt(
        "store/rows.rs",
        "",
        "`insert_all!` itself: what matters is where it is called",
    ),
];

/// Statements whose table is put in where they are made: the file, what is in the source, and what
/// comes of it.
const MADE: &[(&str, &str, &[&str])] = &[(
    "retention/sql.rs",
    "delete from",
    &[
        "delete from dead_letters where id in",
        "delete from abandoned_executions where id in",
        "delete from executions where id in",
        "delete from audit where id in",
        "delete from idempotency_keys where (app_id, scope, key) in",
    ],
)];

/// What became of all statements of the source.
pub(super) struct Coverage {
    pub(super) walked: usize,
    pub(super) exempt: usize,
    /// Those that are neither.
    pub(super) missing: Vec<Written>,
}

/// Compare the source with the texts that were executed.
pub(super) fn coverage(executed: &BTreeSet<String>) -> Coverage {
    let mut coverage = Coverage {
        walked: 0,
        exempt: 0,
        missing: Vec::new(),
    };
    let was_a_part = |text: &str| executed.iter().any(|one| one.contains(text));
    for written in all() {
        let made = MADE
            .iter()
            .find(|(file, text, _)| *file == written.file && *text == written.text);
        let is_walked = match made {
            Some((_, _, texts)) => texts.iter().all(|text| was_a_part(text)),
            None if written.is_part => was_a_part(&written.text),
            None => executed.contains(&written.text),
        };
        if is_walked {
            coverage.walked += 1;
        } else if EXEMPT.iter().any(|exempt| exempt.is_about(&written)) {
            coverage.exempt += 1;
        } else {
            coverage.missing.push(written);
        }
    }
    coverage
}

/// The statements to which no step need come. Some a node executes by itself now and then.
pub(super) fn exempt_texts() -> BTreeSet<String> {
    let is_exempt = |written: &Written| EXEMPT.iter().any(|exempt| exempt.is_about(written));
    let exempt = all().into_iter().filter(is_exempt);
    exempt.map(|written| written.text).collect()
}

impl Exempt {
    fn is_about(&self, written: &Written) -> bool {
        written.file == self.file && written.text.starts_with(self.beginning)
    }
}

/// All statements of the server that write, without those of its tests.
fn all() -> Vec<Written> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/src");
    let mut folders = vec![root.clone()];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the source").flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|ext| ext == "rs") => files.push(path),
                false => {}
            }
        }
    }
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let source = std::fs::read_to_string(&path).expect("a file");
        let file = path.strip_prefix(&root).expect("a file of the source");
        let file = file.display().to_string();
        found.extend(writes_of(&source, &file));
    }
    found
}

/// What the source of a file has of statements that write.
fn writes_of(source: &str, file: &str) -> Vec<Written> {
    let tests = source.find("#[cfg(test)]\nmod tests");
    let source = &source[..tests.unwrap_or(source.len())];
    let mut found = Vec::new();
    let mut rest = Rest {
        text: source,
        line: 1,
        open: Vec::new(),
    };
    while let Some(literal) = rest.next_literal() {
        let text = normalised(&literal.text);
        if says_write(&text) {
            found.push(Written {
                file: file.to_owned(),
                line: literal.line,
                text,
                is_part: literal.is_part,
            });
        }
    }
    found
}

/// Whether a literal is of a statement that writes. `update` alone is a word of English, and of
/// `on conflict … do update set`.
fn says_write(text: &str) -> bool {
    let has = |verb: &str| {
        text.match_indices(verb)
            .any(|(at, _)| at == 0 || !text[..at].ends_with(|c: char| c.is_alphanumeric()))
    };
    let updates = text.match_indices("update ").any(|(at, verb)| {
        let mut words = text[at + verb.len()..].split(' ');
        let table = words.next().unwrap_or_default();
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        table != "set" && table.chars().all(is_name) && words.next() == Some("set")
    });
    has("insert into") || has("delete from") || updates
}

/// A literal of text. A call of `insert_all!` counts as one: as the statement that it makes on
/// Postgres, but for its values.
struct Literal {
    line: usize,
    text: String,
    is_part: bool,
}

/// What was not looked at yet.
struct Rest<'s> {
    text: &'s str,
    line: usize,
    /// For each parenthesis that is open, whether it is of `concat!`.
    open: Vec<bool>,
}

impl Rest<'_> {
    fn skip(&mut self, bytes: usize) {
        let (skipped, rest) = self.text.split_at(bytes);
        self.line += skipped.matches('\n').count();
        self.text = rest;
    }

    /// The next literal of text, or call of `insert_all!`.
    fn next_literal(&mut self) -> Option<Literal> {
        let literal = |line, text, is_part| {
            Some(Literal {
                line,
                text,
                is_part,
            })
        };
        let mut word = "";
        while let Some(first) = self.text.chars().next() {
            let (line, before) = (self.line, std::mem::take(&mut word));
            if self.text.starts_with("//") {
                self.skip(self.text.find('\n').unwrap_or(self.text.len()));
            } else if self.text.starts_with("/*") {
                let end = self.text.find("*/").map(|at| at + 2);
                self.skip(end.unwrap_or(self.text.len()));
            } else if first == '\'' {
                self.skip(quoted_char(self.text));
            } else if let Some(hashes) = raw_literal(self.text) {
                let ending = format!("\"{}", "#".repeat(hashes));
                let begin = hashes + 2;
                let end = self.text[begin..].find(&ending).map(|at| at + begin);
                let end = end.unwrap_or(self.text.len());
                let text = self.text[begin..end].to_owned();
                self.skip((end + ending.len()).min(self.text.len()));
                return literal(line, text, self.is_in_concat());
            } else if first == '"' {
                let (text, length) = quoted(self.text);
                self.skip(length);
                return literal(line, text, self.is_in_concat());
            } else if first.is_alphanumeric() || first == '_' {
                // All of it at once: the `r` at its end begins no literal.
                let ends = |c: char| !c.is_alphanumeric() && c != '_';
                let length = self.text.find(ends).unwrap_or(self.text.len());
                word = &self.text[..length];
                self.skip(length);
            } else {
                match first {
                    '(' => self.open.push(before == "concat"),
                    ')' => drop(self.open.pop()),
                    // Of a macro: its name still counts.
                    '!' => word = before,
                    _ => {}
                }
                self.skip(first.len_utf8());
                if first == '('
                    && before == "insert_all"
                    && let Some(text) = insert_of(self.text)
                {
                    return literal(line, text, true);
                }
            }
        }
        None
    }

    fn is_in_concat(&self) -> bool {
        self.open.contains(&true)
    }
}

/// How many `#` a raw literal has that begins here.
fn raw_literal(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// How long a character in quotes is; a lifetime ends with its quote.
fn quoted_char(text: &str) -> usize {
    let mut rest = text.char_indices().skip(1);
    let escaped = matches!(rest.next(), Some((_, '\\')));
    let end = match escaped {
        true => text[3..].find('\'').map(|at| at + 3),
        false => rest.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at),
    };
    end.map_or(1, |end| end + 1)
}

/// What a literal in quotes says that begins here, and how long it is.
fn quoted(source: &str) -> (String, usize) {
    let mut text = String::new();
    let mut rest = source.char_indices().skip(1).peekable();
    while let Some((at, c)) = rest.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match rest.next() {
                Some((_, '\n')) => while rest.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                Some((_, 'n' | 't')) => text.push(' '),
                Some((_, other)) => text.push(other),
                None => break,
            },
            c => text.push(c),
        }
    }
    (text, source.len())
}

/// The statement that a call of `insert_all!` makes, whose table is a literal: its columns are
/// before the colons of the innermost braces.
fn insert_of(call: &str) -> Option<String> {
    let (_, after) = call.split_once('"')?;
    let (table, after) = after.split_once('"')?;
    let (_, after) = after.split_once('{')?;
    let mut columns: Vec<String> = Vec::new();
    let without_comment = |line| str::split(line, "//").next();
    let lines: Vec<&str> = after.lines().filter_map(without_comment).collect();
    let (mut depth, mut item) = (0, String::new());
    let mut add = |item: &mut String| {
        if let Some((name, _)) = std::mem::take(item).split_once(':') {
            columns.push(name.trim().to_owned());
        }
    };
    for c in lines.join("\n").chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => {
                add(&mut item);
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        item.push(c);
    }
    add(&mut item);
    Some(format!("insert into {table} ({})", columns.join(", ")))
}

#[test]
fn statements_are_found_in_source() {
    let source = r##"
        //! `delete from comments` is none.
        const A: &str = "
            insert into a (b, c)
            values ($1, $2)"; /* "delete from b" */
        let c = '"'; let lifetime: &'static str = "read-only";
        const D: &str = concat!("with x as (", ")
            update outbox
            set d = $12");
        const E: &str = r#"delete from "e""#;
        "on conflict (a) do update set b = 1"; "cannot update this";
        insert_all!(tx.of(1), "f", &rows, |row| {
            id: row.id.map(|id| (id, 1)),
            // Not a column: but, this is.
            name: row.name,
        });
        let g = "delete \
                 from g";
        #[cfg(test)]
mod tests { const H: &str = "delete from h"; }
    "##;
    let found = writes_of(source, "");
    let found: Vec<_> = found
        .iter()
        .map(|one| (one.line, &*one.text, one.is_part))
        .collect();
    let expected = [
        (3, "insert into a (b, c) values ($)", false),
        (7, ") update outbox set d = $", true),
        (10, "delete from \"e\"", false),
        (12, "insert into f (id, name)", true),
        (17, "delete from g", false),
    ];
    assert_eq!(found, expected);
}

/// A list of exceptions that nobody needs any more would hide the next one that is needed.
#[test]
fn every_exemption_is_about_a_statement() {
    let all = all();
    assert!(all.len() > 90, "{} statements are found", all.len());
    for exempt in EXEMPT {
        let is_used = all.iter().any(|written| exempt.is_about(written));
        let (file, beginning) = (exempt.file, exempt.beginning);
        assert!(
            is_used,
            "{file}: there is no `{beginning}` ({})",
            exempt.why
        );
    }
    for (file, text, _) in MADE {
        let is_used = all
            .iter()
            .any(|written| written.file == *file && written.text == *text);
        assert!(is_used, "{file}: there is no `{text}`");
    }
}
