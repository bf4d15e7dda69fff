//! AWS's binary event stream with Bedrock's events. Checksums keep random bytes out, so most inputs are the events
//! alone, and are framed here.
#![no_main]
use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use meter_proxy::usage::Shape;

const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&way, rest)) = data.split_last() else { return };
    let Some((events, control)) = rest.split_last_chunk::<2>() else { return };
    match way % 8 {
        0 => enforcer_fuzz::answers::check(Shape::Bedrock, CONTENT_TYPE, rest),
        1 => {
            let mut stream = framed(events);
            if let (Some(&last), false) = (events.last(), stream.is_empty()) {
                let at = usize::from(last) * 7 % stream.len();
                stream[at] ^= 1;
            }
            check(stream, *control);
        }
        _ => check(framed(events), *control),
    }
});

fn check(mut stream: Vec<u8>, control: [u8; 2]) {
    stream.extend(control);
    enforcer_fuzz::answers::check(Shape::Bedrock, CONTENT_TYPE, &stream);
}

/// Lines of `name payload` as frames; `!name payload` is an exception. A payload that begins with `$` is a chunk of
/// `invoke`: its rest goes in base64.
fn framed(lines: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let text = String::from_utf8_lossy(line);
        let (name, payload) = text.split_once(' ').unwrap_or((&text, ""));
        let (kind, name_key, name) = match name.strip_prefix('!') {
            Some(name) => ("exception", ":exception-type", name),
            None => ("event", ":event-type", name),
        };
        let payload = match payload.strip_prefix('$') {
            Some(model) => format!(r#"{{"bytes":"{}"}}"#, aws_smithy_types::base64::encode(model)),
            None => payload.to_owned(),
        };
        let header =
            |key: &'static str, text: &str| Header::new(key, HeaderValue::String(text.to_owned().into()));
        let message = Message::new(payload)
            .add_header(header(name_key, name))
            .add_header(header(":message-type", kind));
        if write_message_to(&message, &mut stream).is_err() {
            return stream;
        }
    }
    stream
}
