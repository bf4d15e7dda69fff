//! Server-sent events of OpenAI Chat Completions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    enforcer_fuzz::lines::check(data);
    enforcer_fuzz::answers::check(meter_proxy::usage::Shape::OpenaiChat, "text/event-stream", data);
});
