//! What the gate reads of a request's body: the facts to decide by, and of a chat whether its usage is asked for.
//!
//! As much as is needed, in bounded memory and time. Not here: what the facts are (`facts`), and the question (`gate`).
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};

use crate::arriving::Arriving;
use crate::bottles::Bottle;
use crate::facts::{Facts, MAX_READ_AT_ONCE_BYTES, MAX_REQUEST_BYTES};
use crate::forward::{BODY_TIMEOUT, Outgoing};
use crate::identify::Client;
use crate::include_usage;
use crate::refuse::Reason;
use crate::usage::{InPath, Shape};

/// Most of a request's body that is read before the question is asked, bytes.
const MAX_PREFIX_BYTES: usize = 4 * 1024 * 1024;
/// The same where a body that is not read whole is refused: as much as is decoded.
const MAX_WHOLE_BYTES: usize = MAX_REQUEST_BYTES;

const TOO_LONG: &str = "it is too long to tell whether it asks for a stream without its usage";

/// Reads as much of the body as the estimate needs, and no more.
pub(super) async fn read_facts(
    shape: Shape,
    in_path: InPath,
    client: &Client,
    request: &Parts,
    mut body: Arriving,
) -> Result<(Outgoing, Facts), Reason> {
    let text = |name| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let declared = text(CONTENT_LENGTH).parse().ok();
    let most = match shape {
        Shape::OpenaiResponses | Shape::OpenaiChat => MAX_WHOLE_BYTES,
        _ => MAX_PREFIX_BYTES,
    };
    // one that is asked to report usage leaves decoded: its length then is not known yet
    let is_coded = request.headers.contains_key(CONTENT_ENCODING);
    let leaves_decoded = shape == Shape::OpenaiChat && is_coded;
    let longest = declared.filter(|_| !leaves_decoded).unwrap_or(u64::MAX);
    let room = client.bottle.room_for(longest.min(most as u64)).await;
    let mut prefix = BytesMut::new();
    let (mut complete, mut trailers) = (body.is_end_stream(), None);
    while !complete && prefix.len() < most {
        match next_frame(&mut body).await?.map(Frame::into_data) {
            Some(Ok(piece)) => prefix.extend_from_slice(&piece),
            Some(Err(last)) => trailers = last.into_trailers().ok(),
            None => complete = true,
        }
    }
    let coding = text(CONTENT_ENCODING);
    let facts = || Facts::of_request(shape, in_path, &prefix, complete, coding, declared);
    let facts = read(&client.bottle, prefix.len(), is_coded, facts).await;
    if let Some(why) = facts.unmeterable {
        return Err(Reason::Unmeterable(why));
    }
    let rest = if complete { None } else { Some(body) };
    Ok((Outgoing::begun(prefix.freeze(), rest, room).with_trailers(trailers), facts))
}

/// The next part of a body; `None` at its end.
async fn next_frame(body: &mut Arriving) -> Result<Option<Frame<Bytes>>, Reason> {
    let frame = tokio::time::timeout(BODY_TIMEOUT, body.frame()).await.map_err(|_| Reason::Slow)?;
    match frame {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame)),
        Some(Err(_)) => Err(Reason::BrokenOff),
    }
}

/// Makes a chat request ask for its usage where it does not; whether it did.
pub(super) async fn ask_for_usage(
    client: &Client,
    request: &mut Parts,
    body: &mut Outgoing,
) -> Result<bool, Reason> {
    if body.is_end_stream() {
        return Ok(false);
    }
    let whole = body.read_whole().ok_or(Reason::Unmeterable(TOO_LONG))?;
    let is_coded = request.headers.contains_key(CONTENT_ENCODING);
    let ask = || include_usage::ask(&mut request.headers, whole);
    let asking = read(&client.bottle, whole.len(), is_coded, ask).await.map_err(Reason::Unmeterable)?;
    let is_asked = asking.is_some();
    asking.into_iter().for_each(|asking| body.replace(asking));
    Ok(is_asked)
}

/// Reads a body of this length by `work`, in its bottle's turn if that may take long.
async fn read<T>(bottle: &Bottle, bytes: usize, is_coded: bool, work: impl FnOnce() -> T) -> T {
    if is_coded || bytes > MAX_READ_AT_ONCE_BYTES { bottle.in_turn(work).await } else { work() }
}
