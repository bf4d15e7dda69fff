//! `openapi.json` against the program: every route and no other, every key that a request may have and no other.
//!
//! Whether answers are as it says is found out by a whole daemon, in the workspace's end-to-end tests.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::collections::BTreeSet;

use enforcer::budget::window::Window;
use enforcer::control::api::{AddTokens, Attach, Cut, Reason, Restore, SetBudget};
use enforcer::control::table::ROUTES;
use enforcer::ledger::UsageQuery;
use serde_json::Value;

fn document() -> Value {
    serde_json::from_str(include_str!("../openapi.json")).unwrap()
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let document = document();
    let methods = ["get", "put", "post", "delete", "patch", "head", "options", "trace"];
    let described = document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let methods = methods.iter().filter(|method| item.get(method).is_some());
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    let served = ROUTES.iter().map(|route| format!("{} {}", route.method, route.path));
    let (described, served): (BTreeSet<_>, BTreeSet<_>) = (described.collect(), served.collect());
    assert_eq!(described, served);
    assert_eq!(served.len(), ROUTES.len(), "a route that stands twice is never reached");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_part_of_a_path_is_described() {
    let document = document();
    for (path, item) in document["paths"].as_object().unwrap() {
        let parts = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let wanted: Vec<_> = parts.map(|part| format!("#/components/parameters/{part}")).collect();
        let described = item["parameters"].as_array().into_iter().flatten();
        let described: Vec<_> = described.map(|parameter| parameter["$ref"].as_str().unwrap()).collect();
        assert_eq!(described, wanted, "{path}");
        for part in described {
            let parameter = document.pointer(&part[1..]).unwrap();
            assert_eq!(parameter["name"], part.rsplit('/').next().unwrap());
            assert_eq!((&parameter["in"], &parameter["required"]), (&"path".into(), &true.into()));
        }
    }
}

#[test]
fn every_reference_leads_somewhere_and_nothing_is_left_over() {
    let document = document();
    let mut referred = BTreeSet::new();
    references(&document, &mut referred);
    for reference in &referred {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
    }
    let kinds = document["components"].as_object().unwrap().iter();
    let parts = kinds.flat_map(|(kind, parts)| {
        keys(parts).into_iter().map(move |part| format!("#/components/{kind}/{part}"))
    });
    let left: BTreeSet<_> = parts.filter(|part| !referred.contains(part)).collect();
    // an event stream has no schema of its own in OpenAPI 3.1: the words of the answer name this one
    assert_eq!(left, BTreeSet::from(["#/components/schemas/Events".to_owned()]));
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get("$ref") {
                found.insert(reference.clone());
            }
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn what_is_sent_has_the_keys_that_the_program_reads() {
    let document = document();
    let same = |name: &str, sent: serde_json::Result<Value>| {
        let schema = &document["components"]["schemas"][name];
        assert_eq!(keys(&schema["properties"]), keys(&sent.unwrap()), "{name}");
        assert_eq!(schema["additionalProperties"], false, "{name}");
    };
    same("Attach", serde_json::to_value(Attach::default()));
    same("Cut", serde_json::to_value(Cut::default()));
    same("Reason", serde_json::to_value(Reason::default()));
    same("Restore", serde_json::to_value(Restore::default()));
    same("SetBudget", serde_json::to_value(SetBudget { tokens: 1, window: Some(Window::Daily) }));
    same("AddTokens", serde_json::to_value(AddTokens { tokens: 1 }));
    let asked = keys(&serde_json::to_value(UsageQuery::default()).unwrap());
    for path in ["/v1/usage", "/v1/flows"] {
        let parameters = document["paths"][path]["get"]["parameters"].as_array().unwrap().iter();
        let names = parameters.map(|parameter| {
            let parameter = document.pointer(&parameter["$ref"].as_str().unwrap()[1..]).unwrap();
            parameter["name"].as_str().unwrap().to_owned()
        });
        assert_eq!(names.collect::<BTreeSet<_>>(), asked, "{path}");
    }
}
