//! Changed settings by the core's messages.
use super::*;

impl Bench {
    fn reload(&self, yaml: &str) -> Result<Vec<String>, Problem> {
        self.hold(yaml, false)
    }

    fn hold(&self, yaml: &str, back: bool) -> Result<Vec<String>, Problem> {
        self.ask(|reply| {
            let (settings, changed) = (Arc::new(settings(yaml)), "something".into());
            Message::Reload(Reloading { settings, changed, back, by: "uid:7".into(), reply })
        })
    }
}

#[test]
fn a_lower_budget_cuts_at_once_and_a_higher_one_opens_nothing_by_itself() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 100);
    assert_eq!(bench.reload("budget: { claude: 100 }").unwrap(), [""; 0]);
    assert!(!bench.kernel.is_open(bottle.slot));
    let cause = bench.view("b1").cause.unwrap();
    assert_eq!((cause.limit, cause.used, cause.flow), (Some(100), Some(100), None));

    let told = bench.reload("budget: { claude: 500 }").unwrap();
    assert_eq!(told, ["b1 stays cut although its budget has room again: enforcer restore b1"]);
    assert!(!bench.kernel.is_open(bottle.slot), "a live cut is not loosened silently");
    assert_eq!(bench.view("b1").budget["claude"].limit, 500);
    bench.restore("b1", &[], false).unwrap();
    assert!(bench.kernel.is_open(bottle.slot));
    // the raised budget cuts when it is crossed in its turn
    bench.spend(2, bottle, 400);
    assert!(!bench.kernel.is_open(bottle.slot));
    let rows = bench.rows("settings");
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].by.as_str(), rows[0].detail.as_deref()), ("uid:7", Some("something")));
}

#[test]
fn what_an_operator_opened_stays_open_over_a_change_of_something_else() {
    let bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 100);
    bench.restore("b1", &[], true).unwrap();
    bench.reload("budget: { claude: 100 }\nhold: 5s").unwrap();
    assert!(bench.kernel.is_open(bottle.slot));
    // a nearer budget that is used up is another matter
    bench.reload("budget: { claude: 100 }\nbottles: { b1: { budget: { claude: 50 } } }").unwrap();
    assert!(!bench.kernel.is_open(bottle.slot));
    assert_eq!(bench.view("b1").cause.unwrap().scope.as_deref(), Some("bottle"));
}

#[test]
fn a_budget_that_is_taken_away_lets_requests_through_again() {
    let bench = Bench::new("budget: { claude: 100 }\nlease: 5s");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 150);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.reserve(2, bottle, 10);
    bench.no_order();
    bench.reload("lease: 7s").unwrap();
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 2 }, "who waits is judged again");
    assert_eq!(bench.kernel.lease(bottle.slot), Some(Duration::from_secs(7)));
    assert!(bench.view("b1").budget.is_empty());
}

#[test]
fn a_kept_cut_of_a_bottle_that_the_settings_drop_is_said_and_still_waits_for_it() {
    let bench = Bench::new("bottles: { b1: { cgroup: /sys/fs/cgroup/b1 } }");
    bench.attach("b1");
    bench.cut("b1").unwrap();
    let attachment = bench.release("b1", true, true).unwrap();
    bench.core.tell(Message::Forget { attachment: attachment.id });
    assert_eq!(bench.reload("bottles: { b1: { cgroup: /sys/fs/cgroup/b2 } }").unwrap(), [""; 0]);
    let told = bench.reload("").unwrap().join("");
    assert!(told.starts_with("b1 was cut when its cgroup went, and the settings do not attach it"), "{told}");
    let again = bench.attach("b1");
    assert!(!bench.kernel.is_open(again.slot), "a reload opens nothing");
    assert_eq!(bench.reload("hold: 5s").unwrap(), [""; 0], "it has ended in that attachment");
}

#[test]
fn settings_that_cannot_be_recorded_do_not_hold() {
    let bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 100);
    bench.refusing.store(true, Ordering::SeqCst);
    let problem = bench.reload("budget: { claude: 50 }").unwrap_err();
    assert!(problem.error.contains("disk full"), "{problem:?}");
    bench.refusing.store(false, Ordering::SeqCst);
    assert!(bench.kernel.is_open(bottle.slot));
    assert_eq!(bench.view("b1").budget["claude"].limit, 1000);
}

#[test]
fn settings_that_are_put_back_hold_at_once_and_are_recorded_later() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    bench.attach("b1");
    bench.reload("budget: { claude: 5000 }").unwrap();
    bench.refusing.store(true, Ordering::SeqCst);
    bench.hold("budget: { claude: 1000 }", true).unwrap();
    assert_eq!(bench.view("b1").budget["claude"].limit, 1000, "although the ledger refuses");
    bench.refusing.store(false, Ordering::SeqCst);
    assert_eq!(bench.awaited_rows("settings", 2).len(), 2);
}

#[test]
fn another_rule_and_other_weights_hold_for_what_was_used_before() {
    let rest = "budget: { claude: 100 }\nbottles: { own: { budget: { claude: 500 } } }";
    let bench = Bench::new(rest);
    let own = bench.attach("own");
    bench.spend(1, own, 120);
    assert!(bench.kernel.is_open(own.slot), "its own budget governs it");
    bench.reload(&format!("scope_rule: ceiling\n{rest}")).unwrap();
    assert!(!bench.kernel.is_open(own.slot));
    let cause = bench.view("own").cause.unwrap();
    assert_eq!((cause.scope.as_deref(), cause.rule.as_deref()), (Some("global"), Some("ceiling")));
    let told = bench.reload(&format!("scope_rule: ceiling\nweights: {{ output: 0.5 }}\n{rest}")).unwrap();
    assert_eq!(told, ["own stays cut although its budget has room again: enforcer restore own"]);
    assert_eq!(bench.view("own").budget["claude"].used, 60);
    bench.restore("own", &[], false).unwrap();
    assert!(bench.kernel.is_open(own.slot));
}

#[test]
fn a_budget_that_was_not_there_before_binds_who_is_attached_already() {
    let mut bench = Bench::new("warn_at: [50]");
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 60);
    bench.reload("warn_at: [50]\nwindow: daily\nbudget: { claude: 100 }").unwrap();
    let budget = &bench.view("b1").budget["claude"];
    assert_eq!((budget.used, budget.limit, budget.window.as_str()), (60, 100, "daily"));
    bench.awaited_rows("warn", 1);
    bench.spend(2, bottle, 40);
    assert!(!bench.kernel.is_open(bottle.slot));
}
