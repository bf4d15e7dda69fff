//! What the gate reads of a request, and the request for usage that is put into it: figures are bounded, nothing but the
//! usage is asked for, and once.
#![no_main]
use bytes::Bytes;
use enforcer_fuzz::Input;
use enforcer_fuzz::answers::SHAPES;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use meter_proxy::estimate::{MAX_OUTPUT_ALLOWANCE, MAX_UNREAD_INPUT};
use meter_proxy::exchange::Facts;
use meter_proxy::fuzzing::ask;
use meter_proxy::text::is_hostile;
use meter_proxy::usage::InPath;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Some(mut input) = Input::read(data) else { return };
    let shape = input.choose(SHAPES);
    let in_path = InPath {
        model: None,
        streamed: input.choose([false, true]),
        is_converse: input.choose([false, true]),
    };
    let complete = input.choose([true, true, false]);
    let facts = Facts::of_request(shape, in_path, input.bytes, complete, "", None);
    bounded(&facts, input.bytes.len() as u64);
    asking(input.bytes);
});

fn bounded(facts: &Facts, bytes: u64) {
    assert!(facts.output_allowance <= MAX_OUTPUT_ALLOWANCE);
    assert!(!facts.streamed || facts.output_allowance == 0, "a stream is counted as it flows");
    // a picture of the fewest bytes counts most for a byte
    assert!(facts.input_estimate <= bytes * 16 + 1, "{facts:?}");
    assert!(facts.charged_input() <= facts.input_estimate.max(MAX_UNREAD_INPUT));
    assert!(facts.model.as_deref().is_none_or(|model| !model.contains(is_hostile)));
}

fn asking(body: &[u8]) {
    let mut headers = HeaderMap::new();
    headers.insert("content-length", body.len().into());
    let Ok(asking) = ask(&mut headers, &body.to_vec().into()) else { return };
    // what is passed over is not read: half a surrogate pair, or a number beyond all numbers
    let read = serde_json::from_slice::<Value>(body).ok();
    match (asking, read) {
        (Some(asking), read) => rewritten(&headers, &asking, read),
        (None, Some(request)) => {
            let reports = request["stream_options"]["include_usage"] == true;
            assert!(reports || matches!(request["stream"], Value::Null | Value::Bool(false)), "{request}");
        }
        (None, None) => {}
    }
}

fn rewritten(headers: &HeaderMap, asking: &Bytes, read: Option<Value>) {
    assert_eq!(headers["content-length"], asking.len().to_string());
    assert_eq!(ask(&mut headers.clone(), asking), Ok(None), "once is enough");
    let Some(mut wanted) = read else { return };
    if !wanted["stream_options"].is_object() {
        wanted["stream_options"] = json!({});
    }
    wanted["stream_options"]["include_usage"] = Value::Bool(true);
    let sent: Value = serde_json::from_slice(asking).expect("it stays JSON");
    assert_eq!(sent, wanted, "nothing else is asked for");
}
