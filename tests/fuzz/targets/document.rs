//! JSON answers of every shape that are not streamed.
#![no_main]
use enforcer_fuzz::answers::SHAPES;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&which, answer)) = data.split_last() else { return };
    let shape = SHAPES[usize::from(which) % SHAPES.len()];
    enforcer_fuzz::answers::check(shape, "application/json", answer);
});
