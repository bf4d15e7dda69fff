//! Server-sent events of an endpoint that is not listed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    enforcer_fuzz::lines::check(data);
    enforcer_fuzz::answers::check(meter_proxy::usage::Shape::Any, "text/event-stream", data);
});
