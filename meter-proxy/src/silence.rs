//! How long one side has said nothing, at the price of a look at the clock each time that it says something: the timer
//! is set anew only when it rings.
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A bound on silence.
pub struct Silence {
    most: Duration,
    last_heard: Instant,
    /// Made when it is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    /// Silence of at most so long, from now on.
    pub fn of_at_most(most: Duration) -> Self {
        Self { most, last_heard: Instant::now(), timer: None }
    }

    /// Something was said.
    pub fn broken(&mut self) {
        self.last_heard = Instant::now();
    }

    /// Ready when it has lasted too long.
    pub fn poll_too_long(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { most, last_heard, timer } = self;
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(*last_heard + *most)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let ends = *last_heard + *most;
            if timer.deadline() >= ends {
                return Poll::Ready(());
            }
            timer.as_mut().reset(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const MOST: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_is_measured_from_the_last_word() {
        let begun = Instant::now();
        let mut silence = Silence::of_at_most(MOST);
        for _ in 0..5 {
            let too_long = poll_fn(|cx| silence.poll_too_long(cx));
            assert!(tokio::time::timeout(MOST * 9 / 10, too_long).await.is_err());
            silence.broken();
        }
        poll_fn(|cx| silence.poll_too_long(cx)).await;
        let (lasted, exact) = (begun.elapsed(), MOST * 45 / 10 + MOST);
        assert!(lasted >= exact && lasted < exact + MOST / 10, "{lasted:?}");
    }
}
