//! A UDP socket that DNS queries come to: answered one by one, at a bounded rate, each to where it came from.
//!
//! What cannot be sent at once is dropped, as is everything that is no query; the kernel lets one answer to each out.
//! Whose a query is nobody asks: only bottles that are cut and answered are sent here. Not here: the answers (`dns`).
use std::convert::Infallible;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::dns;

/// Longest query that is read, bytes: as much as resolvers let one have (DNS flag day 2020).
const MAX_QUERY_BYTES: usize = 1_232;
/// Most answers of one socket in [`PERIOD`].
const MAX_ANSWERS: u32 = 500;
const PERIOD: Duration = Duration::from_millis(500);
/// Pause after the socket reported an error, such as a port that nobody listens at any more.
const PAUSE: Duration = Duration::from_millis(5);

/// Answers queries until it is told to end.
pub async fn serve(socket: UdpSocket) -> Infallible {
    // A byte more, to tell what is longer.
    let mut buffer = [0; MAX_QUERY_BYTES + 1];
    let mut rate = Rate::default();
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "no query could be read");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if length > MAX_QUERY_BYTES || !rate.admits(Instant::now()) {
            continue;
        }
        if let Some(answer) = dns::answer(&buffer[..length])
            && let Err(error) = socket.try_send_to(&answer, from)
        {
            tracing::debug!(%error, "an answer to a query could not be sent");
        }
    }
}

/// How many answers were given in the period that runs.
#[derive(Default)]
struct Rate {
    since: Option<Instant>,
    given: u32,
}

impl Rate {
    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            *self = Self { since: Some(now), given: 0 };
        }
        self.given += 1;
        self.given <= MAX_ANSWERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_answered_so_often_and_what_comes_later_too() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let admitted = (0..10 * MAX_ANSWERS).filter(|_| rate.admits(start)).count();
        assert_eq!(admitted, 500);
        assert!(!rate.admits(start + PERIOD / 2));
        assert!(rate.admits(start + PERIOD));
    }
}
