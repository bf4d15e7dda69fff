//! What the control API can be asked: every method and path, as data. `routes` answers by it and by nothing else, and
//! `openapi.json` describes it.
use http::Method;

/// One thing that can be asked.
pub struct Route {
    /// How.
    pub method: Method,
    /// Where, as OpenAPI writes it: a part in braces stands for any one.
    pub path: &'static str,
    /// What for.
    pub call: Call,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The description of this API.
    Description,
    /// The controller and every bottle.
    Status,
    /// Every bottle.
    Bottles,
    /// Attach one.
    Attach,
    /// Something of one bottle.
    Bottle(BottleCall),
    /// Cut all.
    CutAll,
    /// Every budget.
    Budgets,
    /// Something of one budget.
    Budget(BudgetCall),
    /// Sums of what was used.
    Usage,
    /// Single exchanges.
    Flows,
    /// What was done.
    Audit,
    /// What happens from now on.
    Events,
    /// Read the settings file again.
    Reload,
    /// Figures for Prometheus.
    Metrics,
}

/// What is asked of one bottle: `{name}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the verbs of the command line")]
pub enum BottleCall {
    Show,
    Detach,
    Cut,
    Restore,
    Freeze,
    Thaw,
    Kill,
    Environment,
}

/// What is asked of one budget: `{scope}`, `{provider}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the verbs of the command line")]
pub enum BudgetCall {
    Set,
    Add,
    Clear,
}

const BOTTLE: &str = "/v1/bottles/{name}";
const BUDGET: &str = "/v1/budgets/{scope}/{provider}";

/// Everything that can be asked.
pub static ROUTES: [Route; 23] = [
    get("/v1/openapi.json", Call::Description),
    get("/v1/status", Call::Status),
    get("/v1/bottles", Call::Bottles),
    post("/v1/bottles", Call::Attach),
    get(BOTTLE, Call::Bottle(BottleCall::Show)),
    delete(BOTTLE, Call::Bottle(BottleCall::Detach)),
    post("/v1/bottles/{name}/cut", Call::Bottle(BottleCall::Cut)),
    post("/v1/bottles/{name}/restore", Call::Bottle(BottleCall::Restore)),
    post("/v1/bottles/{name}/freeze", Call::Bottle(BottleCall::Freeze)),
    post("/v1/bottles/{name}/thaw", Call::Bottle(BottleCall::Thaw)),
    post("/v1/bottles/{name}/kill", Call::Bottle(BottleCall::Kill)),
    get("/v1/bottles/{name}/env", Call::Bottle(BottleCall::Environment)),
    post("/v1/cut", Call::CutAll),
    get("/v1/budgets", Call::Budgets),
    route(Method::PUT, BUDGET, Call::Budget(BudgetCall::Set)),
    post(BUDGET, Call::Budget(BudgetCall::Add)),
    delete(BUDGET, Call::Budget(BudgetCall::Clear)),
    get("/v1/usage", Call::Usage),
    get("/v1/flows", Call::Flows),
    get("/v1/audit", Call::Audit),
    get("/v1/events", Call::Events),
    post("/v1/settings/reload", Call::Reload),
    get("/metrics", Call::Metrics),
];

const fn get(path: &'static str, call: Call) -> Route {
    route(Method::GET, path, call)
}

const fn post(path: &'static str, call: Call) -> Route {
    route(Method::POST, path, call)
}

const fn delete(path: &'static str, call: Call) -> Route {
    route(Method::DELETE, path, call)
}

const fn route(method: Method, path: &'static str, call: Call) -> Route {
    Route { method, path, call }
}

/// What a route's path has in braces, as it was asked for; empty where it has fewer.
pub type Parts<'a> = [&'a str; 2];

/// What this method and path ask for.
pub fn find<'a>(method: &Method, path: &'a str) -> Option<(Call, Parts<'a>)> {
    ROUTES.iter().filter(|route| route.method == method).find_map(|route| {
        let parts = parts(route.path, path)?;
        Some((route.call, parts))
    })
}

/// What stands in the braces, if the path is of this pattern.
fn parts<'a>(pattern: &str, path: &'a str) -> Option<Parts<'a>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut parts = Parts::default();
    let mut open = parts.iter_mut();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(parts),
            (Some(wanted), Some(given)) if wanted.starts_with('{') => *open.next()? = given,
            (wanted, given) if wanted != given => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_whole_or_not_at_all() {
        let found = |method, path| find(&method, path);
        let budget = |call| Some((Call::Budget(call), ["bottle:b", "claude"]));
        assert_eq!(found(Method::PUT, "/v1/budgets/bottle:b/claude"), budget(BudgetCall::Set));
        assert_eq!(found(Method::DELETE, "/v1/budgets/bottle:b/claude"), budget(BudgetCall::Clear));
        let shown = Some((Call::Bottle(BottleCall::Show), ["cut", ""]));
        assert_eq!(found(Method::GET, "/v1/bottles/cut"), shown, "a bottle may be named like a verb");
        for path in
            ["", "/", "/v1", "/v1/status/", "//v1/status", "/v1/bottles/b/cut/x", "/v1/bottles/{name}/x"]
        {
            assert_eq!(found(Method::GET, path), None, "{path}");
        }
        assert_eq!(found(Method::HEAD, "/v1/status"), None);
    }
}
