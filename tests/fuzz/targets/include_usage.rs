//! Usage that the meter asked for and hides again: the client sees what the provider would have sent to it.
#![no_main]
use enforcer_fuzz::{Input, memory, provider};
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use meter_proxy::fuzzing::{Hiding, ask};

/// Most that is kept of a stream, bytes: one event that is looked into, and what is made of it.
const MAX_KEPT_BYTES: usize = 16 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some(mut input) = Input::read(data) else { return };
    if input.choose([true, false]) {
        any_bytes(&input);
    } else {
        what_was_asked_for(&input);
    }
});

/// Bytes that are no chunk with usage pass as they are; any cut gives the same.
fn any_bytes(input: &Input<'_>) {
    let whole = hidden([input.bytes].into_iter());
    let (cut, kept_bytes) = memory::most_while(|| hidden(input.pieces()));
    assert!(kept_bytes < MAX_KEPT_BYTES + 4 * input.bytes.len(), "{kept_bytes} bytes");
    assert_eq!(cut, whole);
    assert!(whole.len() <= input.bytes.len());
    if !input.bytes.windows(7).any(|seven| seven == b"\"usage\"") && !input.bytes.contains(&b'\\') {
        assert_eq!(whole, input.bytes, "nothing else is taken out");
    }
}

/// A provider that answers the request as it was, and as the meter changed it.
fn what_was_asked_for(input: &Input<'_>) {
    let (request, answer) = provider::conversation(input.bytes);
    let unasked = provider::stream(&request, &answer);
    let Ok(Some(asking)) = ask(&mut HeaderMap::new(), &request.clone().into()) else {
        panic!("it asks for a stream without its usage: {:?}", String::from_utf8_lossy(&request))
    };
    let asked = provider::stream(&asking, &answer);
    assert_ne!(asked, unasked, "it tells its usage to who asks");
    let seen = hidden(asked.chunks(input.piece_bytes));
    assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(&unasked));
}

fn hidden<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut hiding = Hiding::default();
    let mut passed: Vec<u8> = pieces.flat_map(|piece| hiding.feed(piece)).collect();
    passed.extend(hiding.end());
    passed
}
