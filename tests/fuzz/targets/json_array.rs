//! Gemini's stream without server-sent events: a JSON array that grows.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    enforcer_fuzz::answers::check(meter_proxy::usage::Shape::Gemini, "application/json", data);
});
