//! Leaf certificates for the meter: signed on one thread beside the core, and for metered hosts alone, so that a
//! meter that was taken over gets no certificate for any other site.
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};

use meter_proxy::protocol::{Provider, ToMeter};

use crate::ca::Ca;

/// Questions that may wait; a key takes about a millisecond.
const QUEUE: usize = 64;

struct Question {
    number: u64,
    host: String,
    answer: Sender<ToMeter>,
}

/// The signing thread; it ends when this is dropped.
pub(super) struct Signer {
    questions: SyncSender<Question>,
}

impl Signer {
    pub(super) fn start(ca: Arc<Ca>, providers: Vec<Provider>) -> io::Result<Self> {
        let (questions, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("sign".into()).spawn(move || sign(&ca, &providers, &queue))?;
        Ok(Self { questions })
    }

    /// Has a leaf for `host` signed and sent; never blocks.
    pub(super) fn ask(&self, number: u64, host: String, answer: &Sender<ToMeter>) {
        let question = Question { number, host, answer: answer.clone() };
        if self.questions.try_send(question).is_err() {
            let leaf = Err("too many certificates are being signed".into());
            tell(answer, ToMeter::Signed { question: number, leaf });
        }
    }
}

fn sign(ca: &Ca, providers: &[Provider], queue: &Receiver<Question>) {
    for Question { number, host, answer } in queue {
        let leaf = if is_metered(&host, providers) {
            ca.leaf(&host).map_err(|error| error.to_string())
        } else {
            Err(format!("{host} is not metered"))
        };
        tell(&answer, ToMeter::Signed { question: number, leaf });
    }
}

fn tell(link: &Sender<ToMeter>, message: ToMeter) {
    if link.send(message).is_err() {
        tracing::debug!("the meter that asked for a certificate is gone");
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
