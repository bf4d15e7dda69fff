//! JSON answers of every shape that are not streamed.
#![no_main]
use meter_proxy::usage::Shape;

const SHAPES: [Shape; 6] = [
    Shape::AnthropicMessages,
    Shape::OpenaiChat,
    Shape::OpenaiResponses,
    Shape::Gemini,
    Shape::Bedrock,
    Shape::Any,
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&which, answer)) = data.split_last() else { return };
    let shape = SHAPES[usize::from(which) % SHAPES.len()];
    enforcer_fuzz::answers::check(shape, "application/json", answer);
});
