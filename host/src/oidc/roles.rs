//! From somebody's groups at the provider to their roles here.

use std::str::FromStr;

use crate::identity::capability::{AppRole, Role};

/// What groups give: `admins=owner, staff=member, shop-team=shop:editor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    given: Vec<(String, Given)>,
    /// What those get on the instance whose groups give nothing there; none: they may not sign in.
    otherwise: Option<Role>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    Instance(Role),
    App(String, AppRole),
}

/// What somebody's groups give them.
#[derive(Debug, PartialEq, Eq)]
pub struct Granted {
    /// On the instance; none: they may not sign in.
    pub role: Option<Role>,
    /// In apps, each by its slug.
    pub apps: Vec<(String, AppRole)>,
}

impl Mapping {
    /// The mapping that `text` writes, with `otherwise` for everybody else.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn parse(text: &str, otherwise: Option<Role>) -> Result<Self, String> {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        let given = entries.map(|entry| {
            let rule = || {
                format!(
                    "must be like `admins=owner, staff=member, shop-team=shop:editor`; `{entry}` \
                     is not: a role is owner, admin or member, or an app's slug with app_admin, \
                     editor or viewer"
                )
            };
            let (group, role) = entry.rsplit_once('=').ok_or_else(rule)?;
            let (group, role) = (group.trim(), role.trim());
            if group.is_empty() {
                return Err(rule());
            }
            let role: Given = role.parse().map_err(|()| rule())?;
            Ok((group.to_owned(), role))
        });
        let given = given.collect::<Result<_, String>>()?;
        Ok(Self { given, otherwise })
    }

    /// What somebody in these groups gets: of each kind the most.
    pub fn of(&self, groups: &[String]) -> Granted {
        let theirs = self
            .given
            .iter()
            .filter(|(group, _)| groups.contains(group));
        let mut granted = Granted {
            role: None,
            apps: Vec::new(),
        };
        for (_, given) in theirs {
            match given {
                Given::Instance(role) => granted.role = most(Role::ALL, granted.role, *role),
                Given::App(slug, role) => {
                    match granted.apps.iter_mut().find(|(app, _)| app == slug) {
                        Some((_, known)) => {
                            *known = most(AppRole::ALL, Some(*known), *role).unwrap_or(*known);
                        }
                        None => granted.apps.push((slug.clone(), *role)),
                    }
                }
            }
        }
        granted.role = granted.role.or(self.otherwise);
        granted
    }

    /// Whether it says anything of roles on the instance. If not, owners give them here.
    pub fn gives_roles(&self) -> bool {
        self.given
            .iter()
            .any(|(_, given)| matches!(given, Given::Instance(_)))
    }

    /// The apps that it speaks of.
    pub fn apps(&self) -> impl Iterator<Item = &str> {
        self.given.iter().filter_map(|(_, given)| match given {
            Given::App(slug, _) => Some(slug.as_str()),
            Given::Instance(_) => None,
        })
    }
}

impl FromStr for Given {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some((slug, role)) if !slug.is_empty() => {
                let role = AppRole::parse(role).ok_or(())?;
                Ok(Self::App(slug.to_owned(), role))
            }
            Some(_) => Err(()),
            None => Role::parse(text).map(Self::Instance).ok_or(()),
        }
    }
}

/// The one of two that stands first in `order`, which lists those who may most first.
fn most<T: PartialEq + Copy>(order: &[T], known: Option<T>, other: T) -> Option<T> {
    let of_both = |role: &&T| **role == other || known == Some(**role);
    order.iter().find(of_both).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn groups_give_the_most_of_what_they_give() {
        let text =
            "staff=member, boss=owner,ops = admin, a=b=shop:viewer, c=shop:editor, c=blog:viewer";
        let mapping = Mapping::parse(text, None).unwrap();
        let role = |names: &[&str]| mapping.of(&groups(names)).role;
        assert_eq!(role(&["staff", "boss", "ops"]), Some(Role::Owner));
        assert_eq!(role(&["staff", "ops"]), Some(Role::Admin));
        assert_eq!(role(&["Staff", "other", ""]), None);
        let apps = mapping.of(&groups(&["c", "a=b"])).apps;
        let expected = [
            ("shop".to_owned(), AppRole::Editor),
            ("blog".to_owned(), AppRole::Viewer),
        ];
        assert_eq!(apps, expected);
        assert!(mapping.gives_roles());
    }

    #[test]
    fn whose_groups_give_nothing_gets_what_is_left() {
        let mapping = Mapping::parse("c=shop:editor", Some(Role::Member)).unwrap();
        assert_eq!(mapping.of(&[]).role, Some(Role::Member));
        assert!(!mapping.gives_roles());
        assert_eq!(mapping.apps().collect::<Vec<_>>(), ["shop"]);
    }

    #[test]
    fn what_is_no_mapping_is_named() {
        for text in [
            "admins",
            "=owner",
            "a=root",
            "a=shop:owner",
            "a=:viewer",
            "a=member, b=",
        ] {
            assert!(
                Mapping::parse(text, None).unwrap_err().contains('`'),
                "{text}"
            );
        }
    }
}
