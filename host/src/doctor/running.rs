//! The running node: whether it knows what is so, and whether all that it does in the background is
//! done.

use std::time::Duration;

use super::Finding;
use crate::directory::AGE_MAX;

/// How old the directory may be without anything being wrong: it is looked at once a second.
const AGE_WARNING: Duration = Duration::from_secs(3);

const DIRECTORY: &str = "directory";
const TASKS: &str = "background_tasks";
const STORED: &str = "stored_data";

/// What is known of apps and users.
pub(super) fn directory(age: Duration) -> Finding {
    let found = format!(
        "what this node knows of apps and users is {:.1} s old",
        age.as_secs_f64()
    );
    if age < AGE_WARNING {
        return Finding::ok(DIRECTORY, found);
    }
    let fix = format!(
        "See that the database answers, and soon: beyond {} s this node is not ready, and refuses what takes a role.",
        AGE_MAX.as_secs()
    );
    Finding::warning(DIRECTORY, found, fix)
}

/// What failed in the background.
pub(super) fn tasks(problems: &[String]) -> Finding {
    match problems {
        [] => Finding::ok(TASKS, "all of them run"),
        problems => Finding::error(
            TASKS,
            problems.join("; "),
            "This is a mistake of ours, and the server's log has its cause: please report it. Failed tasks are restarted by themselves.",
        ),
    }
}

/// Which apps keep nearly as much as they may.
pub(super) fn stored(nearly_full: &[(String, &str, u8)]) -> Finding {
    if nearly_full.is_empty() {
        return Finding::ok(STORED, "no app keeps nearly as much as it may");
    }
    const SHOWN: usize = 5;
    let shown = nearly_full.iter().take(SHOWN);
    let shown =
        shown.map(|(slug, setting, percent)| format!("{slug} uses {percent} % of {setting}"));
    let mut found = shown.collect::<Vec<_>>().join("; ");
    if nearly_full.len() > SHOWN {
        found += &format!("; and {} more", nearly_full.len() - SHOWN);
    }
    let fix = "Raise the setting, or remove what is not needed (`picloud apps usage APP`): beyond it the oldest dead letters, executions and messages go, and of everything else what is new is refused.";
    Finding::warning(STORED, found, fix)
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_directory_that_is_not_looked_at_each_second_is_told_of() {
        let severity = |seconds| directory(Duration::from_secs(seconds)).severity;
        assert_eq!(
            [0, 1, 4].map(severity),
            [Severity::Ok, Severity::Ok, Severity::Warning]
        );
    }
}
