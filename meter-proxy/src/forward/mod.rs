//! Requests on their way to a provider: sent on with leave alone, and answered or settled.
//!
//! Not here: leave to forward (`gate`), and the answer's body (`tail`).
use std::error::Error as _;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy;

use self::headers::strip_hop_by_hop;
use crate::dial::DialError;
use crate::gate::Leave;
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::tokens::Ending;

mod body;
mod headers;
mod pool;

pub use self::body::{BODY_TIMEOUT, Outgoing};
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
) -> Result<(Leave, Response<Incoming>), Refused> {
    let refused = |reason| Refused { reason, dialect: destination.dialect() };
    let request = outgoing(destination, request, body)
        .map_err(|_| refused(Reason::Malformed("the request cannot be forwarded as it is")))?;
    let way_out = request.body().way_out.clone();
    if let Leave::Metered(permit) = &mut leave {
        permit.way_out = Some(way_out.clone());
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
            give_up(leave, error.is_connect());
            Err(refused(reason(&error)))
        }
    }
}

/// Settles what got no answer: nothing is charged when there was no connection.
fn give_up(leave: Leave, no_connection: bool) {
    if let Leave::Metered(mut permit) = leave {
        let is_unsent = no_connection || !permit.may_have_left();
        crate::settle::end(&mut permit, if is_unsent { Ending::Unsent } else { Ending::UpstreamBroke });
    }
}

/// Why there is no answer, from the innermost error that says something.
fn reason(error: &legacy::Error) -> Reason {
    let mut source = error.source();
    while let Some(inner) = source {
        match inner.downcast_ref::<DialError>() {
            Some(refused @ (DialError::Forbidden(_) | DialError::Metered { .. })) => {
                return Reason::Forbidden(refused.to_string());
            }
            Some(failed) => return Reason::Upstream(failed.to_string()),
            None => source = inner.source(),
        }
    }
    Reason::Upstream("the connection broke".to_owned())
}

/// The request as it leaves.
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
    request.headers.remove(header::EXPECT);
    request.headers.remove(header::TRAILER);
    if takes_trailers {
        request.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    request.headers.insert(header::HOST, HeaderValue::from_str(&destination.host_header())?);
    Ok(Request::from_parts(request, body))
}
