//! Leaf certificates for the meter and the lane: signed on one thread beside the core, and for metered hosts alone, so
//! that a helper that was taken over gets no certificate for any other site.
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use meter_proxy::protocol::{Leaf, Provider};

use crate::ca::Ca;
use crate::settings::Live;

/// Questions that may wait; a key takes about a millisecond.
const QUEUE: usize = 64;

/// Takes the leaf, or why there is none, to who asked; `false` when that one is gone.
type Answer = Box<dyn FnOnce(Result<Leaf, String>) -> bool + Send>;

struct Question {
    host: String,
    answer: Answer,
}

/// The signing thread; it ends when the last of these is dropped.
#[derive(Clone)]
pub struct Signer {
    questions: SyncSender<Question>,
}

impl Signer {
    /// Starts the thread; it signs for the hosts of the providers that the settings have then.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(ca: Arc<Ca>, settings: Live) -> io::Result<Self> {
        let (questions, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("sign".into()).spawn(move || sign(&ca, &settings, &queue))?;
        Ok(Self { questions })
    }

    /// Has a leaf for `host` signed and given to `answer`; never blocks.
    pub fn ask(&self, host: String, answer: impl FnOnce(Result<Leaf, String>) -> bool + Send + 'static) {
        let question = Question { host, answer: Box::new(answer) };
        if let Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) =
            self.questions.try_send(question)
        {
            tell(question.answer, Err("too many certificates are being signed".into()));
        }
    }
}

fn sign(ca: &Ca, settings: &Live, queue: &Receiver<Question>) {
    for Question { host, answer } in queue {
        let leaf = if is_metered(&host, &settings.borrow().providers) {
            ca.leaf(&host).map_err(|error| error.to_string())
        } else {
            Err(format!("{host} is not metered"))
        };
        tell(answer, leaf);
    }
}

fn tell(answer: Answer, leaf: Result<Leaf, String>) {
    if !answer(leaf) {
        tracing::debug!("the helper that asked for a certificate is gone");
    }
}

/// Whether a provider owns the host, by its patterns or as its upstream.
fn is_metered(host: &str, providers: &[Provider]) -> bool {
    providers.iter().any(|provider| {
        let upstream = provider.upstream.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
        upstream.as_ref().and_then(http::Uri::host).is_some_and(|own| own.eq_ignore_ascii_case(host))
            || provider.hosts.iter().any(|pattern| matches(pattern, host))
    })
}

/// Label by label; `*` stands for exactly one.
fn matches(pattern: &str, host: &str) -> bool {
    pattern.split('.').count() == host.split('.').count()
        && pattern.split('.').zip(host.split('.')).all(|(pattern, label)| {
            !label.is_empty() && (pattern == "*" || pattern.eq_ignore_ascii_case(label))
        })
}

#[cfg(test)]
mod tests {
    use meter_proxy::protocol::Dialect;

    use super::*;

    #[test]
    fn only_the_hosts_of_providers_get_a_certificate() {
        let providers = [Provider {
            name: "p".into(),
            dialect: Dialect::Anthropic,
            hosts: vec!["api.example.com".into(), "runtime.*.example.com".into()],
            upstream: Some("https://llm.corp.example:8443/base".into()),
            include_usage: true,
        }];
        for (host, metered) in [
            ("api.example.com", true),
            ("runtime.eu.example.com", true),
            ("llm.corp.example", true),
            ("runtime.a.b.example.com", false),
            ("runtime..example.com", false),
            ("example.com", false),
            ("api.example.com.evil.test", false),
            ("bank.test", false),
        ] {
            assert_eq!(is_metered(host, &providers), metered, "{host}");
        }
    }
}
