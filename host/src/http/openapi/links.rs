//! Links between operations: what was made can be read, changed and removed.

use serde_json::{Map, Value, json};

use super::describe::names;

/// Link what `POST` and `PUT` make to the operations on it.
pub(super) fn add(paths: &mut Map<String, Value>) {
    let items: Vec<(String, Vec<String>)> = paths
        .iter()
        .filter(|(path, _)| path.ends_with('}'))
        .map(|(path, methods)| {
            let methods = methods.as_object().into_iter().flatten();
            let ids = methods.filter_map(|(_, operation)| operation["operationId"].as_str());
            (path.clone(), ids.map(str::to_owned).collect())
        })
        .collect();
    for (path, methods) in paths.iter_mut() {
        for (method, status) in [("post", "201"), ("put", "200"), ("put", "204")] {
            let answer = methods.get_mut(method);
            let answer = answer.and_then(|operation| operation["responses"].get_mut(status));
            if let Some(answer) = answer
                && let Some((item, ids)) = made_by(path, &items)
            {
                answer["links"] = ids
                    .iter()
                    .map(|id| (id.clone(), link(path, item, id)))
                    .collect();
            }
        }
    }
}

/// The path of what is made at `path`, with the operations there: `/scripts/{id}` at
/// `/apps/{app}/scripts`, and what is put at its own path.
fn made_by<'i>(
    path: &str,
    items: &'i [(String, Vec<String>)],
) -> Option<&'i (String, Vec<String>)> {
    let parts: Vec<&str> = path.split('/').collect();
    let place = |(item, _): &&(String, Vec<String>)| {
        let (of, _) = item.rsplit_once("/{")?;
        let (within, kind) = of.rsplit_once('/')?;
        if !within.is_empty() && !path.starts_with(of) {
            return None;
        }
        parts.iter().rposition(|part| *part == kind)
    };
    let own = items.iter().find(|(item, _)| item == path);
    own.or_else(|| {
        items
            .iter()
            .filter(|item| place(item).is_some())
            .max_by_key(place)
    })
}

fn link(path: &str, item: &str, id: &str) -> Value {
    let known: Vec<&str> = names(path).collect();
    let parameter = |name: &str| {
        let source = match name {
            _ if known.contains(&name) => format!("$request.path.{name}"),
            "host" => "$response.body#/host".to_owned(),
            _ => "$response.body#/id".to_owned(),
        };
        (name.to_owned(), source.into())
    };
    let parameters: Map<String, Value> = names(item).map(parameter).collect();
    json!({ "operationId": id, "parameters": parameters })
}

#[cfg(test)]
mod tests {
    use super::super::document;

    #[test]
    fn what_is_made_leads_to_what_can_be_done_with_it() {
        let link = |path: &str, method: &str, status: &str, to: &str| {
            let answer = &document()["paths"][path][method]["responses"][status];
            answer["links"][to]["parameters"].to_string()
        };
        let made = link("/apps/{app}/scripts", "post", "201", "changeScript");
        assert_eq!(made, r#"{"id":"$response.body#/id"}"#);
        let made = link("/apps", "post", "201", "deleteApp");
        assert_eq!(made, r#"{"app":"$response.body#/id"}"#);
        let made = link("/apps/{app}/triggers/kv", "post", "201", "getTrigger");
        assert_eq!(made, r#"{"id":"$response.body#/id"}"#);
        let made = link("/apps/{app}/domains", "post", "201", "removeDomain");
        assert_eq!(
            made,
            r#"{"app":"$request.path.app","host":"$response.body#/host"}"#
        );
        let put = link("/apps/{app}/topics/{topic}", "put", "200", "closeTopic");
        assert_eq!(
            put,
            r#"{"app":"$request.path.app","topic":"$request.path.topic"}"#
        );
    }
}
