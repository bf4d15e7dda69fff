//! Server-sent events of Gemini.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    enforcer_fuzz::lines::check(data);
    enforcer_fuzz::answers::check(meter_proxy::usage::Shape::Gemini, "text/event-stream", data);
});
