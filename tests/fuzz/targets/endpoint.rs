//! The table of endpoints: a path has one reading however it is encoded, and names a model that can be shown.
#![no_main]
use enforcer_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use meter_proxy::protocol::Dialect;
use meter_proxy::text::is_hostile;
use meter_proxy::usage::{Endpoint, Shape, endpoint, in_path};

const DIALECTS: [Dialect; 5] =
    [Dialect::Anthropic, Dialect::Openai, Dialect::OpenaiChat, Dialect::Gemini, Dialect::Bedrock];
const METHODS: [&str; 3] = ["POST", "GET", "DELETE"];

fuzz_target!(|data: &[u8]| {
    let Some(mut input) = Input::read(data) else { return };
    let dialect = input.choose(DIALECTS);
    let method = input.choose(METHODS);
    let Ok(path) = std::str::from_utf8(input.bytes) else { return };
    let read = endpoint(dialect, method, path);
    if !path.contains('%') {
        let encoded = encoded(path, input.piece_bytes);
        assert_eq!(endpoint(dialect, method, &encoded), read, "{path:?} as {encoded:?}");
    }
    for shape in [Shape::Gemini, Shape::Bedrock, Shape::OpenaiChat] {
        let said = in_path(shape, path);
        assert!(said.model.is_none_or(|model| !model.contains(is_hostile) && model.len() <= 512));
    }
    if let Endpoint::Refused(why) = read {
        assert!(!why.is_empty());
    }
});

/// The path with every so-and-so-many-th letter or digit encoded.
fn encoded(path: &str, every: usize) -> String {
    let mut encoded = String::new();
    for (at, c) in path.char_indices() {
        if c.is_ascii_alphanumeric() && at % every == 0 {
            encoded.push_str(&format!("%{:02x}", u32::from(c)));
        } else {
            encoded.push(c);
        }
    }
    encoded
}
