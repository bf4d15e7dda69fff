//! The control API does as its own description says: every request that it describes is made of a whole daemon, and what
//! comes back has every key that is described and none that is not.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use support::cgroup::TestCgroup;
use support::control::{self, Events};
use support::enforcer::Daemon;
use support::provider::Reply;
use support::sink::Sink;
use support::stage::{Bottle, Sending, Stage};

/// The description, and what of it was found to be so.
struct Described {
    document: Value,
    /// `GET /v1/status` and so on, for everything that was done once.
    done: BTreeSet<String>,
}

impl Described {
    /// As the daemon itself serves it.
    fn by(daemon: &Daemon) -> Self {
        let (status, mut document) = control::request(daemon, "GET", "/v1/openapi.json", "");
        assert_eq!(status, 200);
        close(&mut document);
        Self { document, done: BTreeSet::from(["GET /v1/openapi.json".to_owned()]) }
    }

    /// A request as it is described, and its answer, which is as it is described.
    fn ask(&mut self, daemon: &Daemon, method: &str, path: &str, body: Option<Value>) -> Value {
        let (template, operation) = self.operation(method, path);
        match (&body, operation.get("requestBody")) {
            (Some(body), Some(described)) => self.check(json_schema(described), body),
            (body, described) => {
                assert!(body.is_none() && described.is_none_or(|it| it["required"] == false))
            }
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let (status, answer) = control::request(daemon, method, path, &body);
        let described = operation["responses"].get(status.to_string());
        let described = described.unwrap_or_else(|| panic!("{method} {path}: {status} {answer:#}"));
        match described.get("content") {
            Some(_) => self.check(json_schema(described), &answer),
            None => assert!(answer.is_null(), "{method} {path}: {answer:#}"),
        }
        self.done.insert(format!("{method} {template}"));
        answer
    }

    /// A request that is refused, as refusals are described.
    fn refused(&self, daemon: &Daemon, method: &str, path: &str, body: &str) -> u16 {
        let (status, answer) = control::request(daemon, method, path, body);
        assert!(status >= 400, "{method} {path}: {answer:#}");
        self.check(json_schema(&self.document["components"]["responses"]["Problem"]), &answer);
        status
    }

    /// What is described of this request, and by which path.
    fn operation(&self, method: &str, path: &str) -> (String, Value) {
        let asked: Vec<_> = path.split('?').next().unwrap().split('/').collect();
        let is_of = |template: &str| {
            let parts: Vec<_> = template.split('/').collect();
            let same = |(part, asked): (&&str, &&str)| part.starts_with('{') || part == asked;
            parts.len() == asked.len() && parts.iter().zip(&asked).all(same)
        };
        let found = self.paths().find(|(template, _)| is_of(template));
        let (template, item) = found.unwrap_or_else(|| panic!("{path} is not described"));
        (template.clone(), item[method.to_lowercase()].clone())
    }

    fn paths(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.document["paths"].as_object().unwrap().iter()
    }

    /// Panics where the value is not as the schema says.
    fn check(&self, schema: &Value, value: &Value) {
        let mut root = schema.clone();
        root["components"] = self.document["components"].clone();
        let validator = jsonschema::draft202012::new(&root).unwrap();
        let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{schema}: {value:#}: {errors:#?}");
    }

    /// What is described and was not done.
    fn left(&self) -> Vec<String> {
        let all = self.paths().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        });
        all.filter(|request| !self.done.contains(request)).collect()
    }
}

fn json_schema(described: &Value) -> &Value {
    let schema = &described["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{described:#}");
    schema
}

/// Readers must expect other keys than those that are described; a test must not.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(close);
            if object.get("properties").is_some_and(Value::is_object) {
                object.entry("additionalProperties").or_insert(false.into());
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(close),
        _ => {}
    }
}

/// A bottle that is attached by the API itself.
fn attached(api: &mut Described, daemon: &Daemon, name: &str) -> Bottle {
    let cgroup = TestCgroup::new(name);
    let order = json!({ "name": name, "cgroup": cgroup.path(), "agent": "tester", "parent": null,
        "policy": "cutoff", "egress": "open", "hard": false });
    api.ask(daemon, "POST", "/v1/bottles", Some(order));
    Bottle { name: name.to_owned(), cgroup }
}

#[test]
fn root_every_request_is_answered_as_the_description_says() {
    let stage = Stage::new(Reply::default(), "budget: { claude: 100000 }\nmidstream: false\n");
    let daemon = &stage.daemon;
    let mut api = Described::by(daemon);
    let bottle = attached(&mut api, daemon, "described");
    spends_its_budget(&mut api, &stage, &bottle);
    shows_all(&mut api, daemon);
    does_all(&mut api, daemon);
    // a stream has no document; its events are checked one by one
    assert_eq!(api.left(), ["GET /v1/events"]);
}

/// Everything about a budget, until the bottle is cut by it: each request costs 65 tokens.
fn spends_its_budget(api: &mut Described, stage: &Stage, bottle: &Bottle) {
    let (daemon, budget) = (&stage.daemon, "/v1/budgets/bottle:described/claude");
    let [mut events, mut drops] = [(); 2].map(|()| Events::follow(daemon));
    api.ask(daemon, "PUT", budget, Some(json!({ "tokens": 10, "window": "daily" })));
    api.ask(daemon, "POST", budget, Some(json!({ "tokens": 90 })));
    assert_eq!(stage.ask(bottle, &["--stream"]).code, Some(0));
    drop(stage.ask(bottle, &["--stream"]));
    let told = |api: &Described, event: &str, value: &Value| {
        api.check(&api.document["components"]["schemas"]["Events"]["properties"][event], value);
    };
    told(api, "usage", &events.next("usage", |_| true));
    let cut = events.next("state", |bottle| bottle["state"] == "cut");
    assert_eq!(cut["cause"]["kind"], "budget", "{cut:#}");
    told(api, "state", &cut);
    told(api, "audit", &events.next("audit", |row| row["action"] == "cut"));
    // the bottle is cut: what it asks now is dropped
    let sink = Sink::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    drop(Sending::start(Some(&bottle.cgroup), "udp", sink.address(), 100).figures());
    told(api, "drop", &drops.next("drop", |_| true));
}

/// Every document that is shown, with something in it.
fn shows_all(api: &mut Described, daemon: &Daemon) {
    let lists =
        ["/v1/bottles", "/v1/budgets", "/v1/usage", "/v1/usage?by=day", "/v1/flows", "/v1/audit?limit=9"];
    for path in lists {
        let rows = api.ask(daemon, "GET", path, None);
        assert!(rows.as_array().is_some_and(|rows| !rows.is_empty()), "{path}: {rows:#}");
    }
    for path in ["/v1/status", "/metrics", "/v1/bottles/described/env"] {
        api.ask(daemon, "GET", path, None);
    }
    let bottle = api.ask(daemon, "GET", "/v1/bottles/described", None);
    for key in ["cause", "usage", "budget", "chain"] {
        assert!(bottle[key].as_object().is_some_and(|found| !found.is_empty()), "{key}: {bottle:#}");
    }
}

/// Every act, each refused once for what it was asked with.
fn does_all(api: &mut Described, daemon: &Daemon) {
    let reason = || Some(json!({ "reason": "described" }));
    for (verb, body) in [
        ("restore", Some(json!({ "add": { "claude": 1_000 }, "force": false }))),
        ("cut", Some(json!({ "reason": "described", "face": "answered", "hard": true }))),
        ("restore", None),
        ("freeze", reason()),
        ("thaw", Some(json!({}))),
        ("kill", reason()),
    ] {
        let path = format!("/v1/bottles/described/{verb}");
        assert_eq!(api.refused(daemon, "POST", &path, r#"{"not": "described"}"#), 400, "{verb}");
        api.ask(daemon, "POST", &path, body);
    }
    assert_eq!(api.refused(daemon, "DELETE", "/v1/bottles/described", ""), 403);
    assert_eq!(api.refused(daemon, "GET", "/v1/bottles/nobody", ""), 404);
    api.ask(daemon, "POST", "/v1/cut", Some(json!({})));
    api.ask(daemon, "DELETE", "/v1/bottles/described?force=true", None);
    api.ask(daemon, "DELETE", "/v1/budgets/bottle:described/claude", None);
    api.ask(daemon, "POST", "/v1/settings/reload", None);
}
