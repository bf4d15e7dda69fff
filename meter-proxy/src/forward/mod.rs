//! Requests on their way to a provider: sent on with leave alone, and answered or settled.
//!
//! Not here: leave to forward (`gate`), and the answer's body (`tail`).
use std::error::Error;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Version};
use hyper_util::client::legacy;

use self::headers::join_cookies;
use crate::arriving::Arriving;
use crate::dial::DialError;
use crate::gate::Leave;
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::tokens::Ending;

mod body;
mod headers;
mod pool;

pub use self::body::{BODY_TIMEOUT, Outgoing};
pub use self::headers::strip_hop_by_hop;
pub use self::pool::Upstreams;

/// Longest silence of a provider, before its answer and in it: the longest that its own clients wait.
pub const MAX_SILENCE: Duration = Duration::from_secs(600);

/// Forwards a request that has leave. Returns the leave with the answer's head; its body is still to come.
///
/// # Errors
/// When the provider cannot be reached or breaks off before it answers. The leave is settled then.
pub async fn forward(
    mut leave: Leave,
    upstreams: &Upstreams,
    destination: &Destination,
    request: Parts,
    body: Outgoing,
) -> Result<(Leave, Response<Arriving>), Refused> {
    let refused = |reason| Refused { reason, dialect: destination.dialect() };
    let request = outgoing(destination, request, body)
        .map_err(|_| refused(Reason::Malformed("the request cannot be forwarded as it is")))?;
    let way_out = request.body().way_out.clone();
    if let Leave::Metered(permit) = &mut leave {
        permit.way_out = Some(way_out.clone());
        permit.sets_out();
    }
    let answer = tokio::select! {
        answer = upstreams.request(destination.chosen, request) => answer,
        () = way_out.rested(MAX_SILENCE) => {
            give_up(leave, false);
            return Err(refused(Reason::Upstream("it was silent for too long".to_owned())));
        }
    };
    match answer {
        Ok(mut answer) => {
            strip_hop_by_hop(answer.headers_mut());
            Ok((leave, answer))
        }
        Err(error) => {
            give_up(leave, is_unprocessed(&error));
            Err(refused(reason(&error)))
        }
    }
}

/// Settles what got no answer; nothing is charged for what the provider cannot have processed.
fn give_up(leave: Leave, is_unprocessed: bool) {
    if let Leave::Metered(mut permit) = leave {
        let is_unsent = is_unprocessed || !permit.may_have_left();
        crate::settle::end(&mut permit, if is_unsent { Ending::Unsent } else { Ending::UpstreamBroke });
    }
}

/// Whether the provider never saw the request, or says that it did not process it: RFC 9113, 8.7.
fn is_unprocessed(error: &legacy::Error) -> bool {
    let refuses = |error: &h2::Error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    };
    error.is_connect() || causes(error).any(|cause| cause.downcast_ref().is_some_and(refuses))
}

/// What an error comes from, outermost first.
fn causes(error: &legacy::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// Why there is no answer, from the error that says something.
fn reason(error: &legacy::Error) -> Reason {
    let dialled = causes(error).find_map(|cause| cause.downcast_ref::<DialError>());
    dialled.map_or_else(|| Reason::Upstream("the connection broke".to_owned()), Reason::from)
}

/// The request as it leaves, by either protocol: HTTP/2 has no Host header, and the one of HTTP/1.1 is made of the
/// address when the connection is known, unless it says something else.
fn outgoing(
    destination: &Destination,
    mut request: Parts,
    body: Outgoing,
) -> Result<Request<Outgoing>, http::Error> {
    request.uri = destination.uri()?;
    request.version = Version::HTTP_11;
    request.extensions = http::Extensions::new();
    let takes_trailers = request.headers.get(header::TE).is_some_and(|te| te == "trailers");
    strip_hop_by_hop(&mut request.headers);
    join_cookies(&mut request.headers);
    request.headers.remove(header::EXPECT);
    request.headers.remove(header::HOST);
    if takes_trailers {
        request.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(host) = destination.host_header() {
        request.headers.insert(header::HOST, HeaderValue::from_str(&host)?);
    }
    Ok(Request::from_parts(request, body))
}
