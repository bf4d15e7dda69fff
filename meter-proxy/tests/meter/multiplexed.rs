//! Many requests on one connection of HTTP/2: each is an exchange of its own, however it ends.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use meter_proxy::protocol::{ToController, ToMeter, Upstream as Towards};
use meter_proxy::tokens::{Ending, Provenance};
use tokio::sync::{Semaphore, watch};

use crate::rig::http2::{Asked, Client, Provider, next, read, soon, together};
use crate::rig::{BOTTLE, Rig, SOON};
use crate::words::{DELTA, JSON, START, STOP, WORDS, is_settle};

const EACH: usize = 12;
const EVENTS: [&str; 4] = [START, WORDS, DELTA, STOP];

/// A request for a stream that this model answers.
fn ask(model: &str) -> String {
    format!(
        r#"{{"model":"{model}","max_tokens":100,"stream":true,"messages":[{{"role":"user","content":"hi"}}]}}"#
    )
}

/// The model that is asked.
async fn model(asked: &mut Asked) -> Result<String, h2::Error> {
    let (body, _) = asked.read().await?;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    Ok(body["model"].as_str().unwrap().to_owned())
}

/// Answers in the way that the model is named after.
async fn end_by_name(mut asked: Asked) -> Result<(), h2::Error> {
    let model = model(&mut asked).await?;
    if model == "refuses" {
        asked.respond.send_reset(Reason::REFUSED_STREAM);
        return Ok(());
    }
    let mut answer =
        asked.answer(if model == "breaks a document" { "application/json" } else { "text/event-stream" });
    let mut say = |words: &'static str| answer.send_data(Bytes::from_static(words.as_bytes()), false);
    match model.as_str() {
        "breaks a document" => say(&JSON[..40])?,
        "completes" => EVENTS.into_iter().try_for_each(&mut say)?,
        _ => [START, WORDS].into_iter().try_for_each(&mut say)?,
    }
    match model.as_str() {
        "completes" => answer.send_data(Bytes::new(), true),
        "ends early" => answer.send_data(Bytes::new(), true),
        "is left" => Err(soon(std::future::poll_fn(|cx| answer.poll_reset(cx))).await?.into()),
        // What was said before is on its way by then.
        _ => {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let quietly = model == "closes quietly";
            answer.send_reset(if quietly { Reason::NO_ERROR } else { Reason::CANCEL });
            Ok(())
        }
    }
}

/// What a client gets: the words, or why there are no more.
async fn outcome(client: Client, model: &'static str) -> (u16, Vec<u8>, Result<(), Option<Reason>>) {
    let answer = soon(client.ask(&ask(model)).await).await.unwrap();
    let (status, mut body, mut got) = (answer.status().as_u16(), answer.into_body(), Vec::new());
    loop {
        match next(&mut body).await {
            Ok(Some(_)) if model == "is left" => return (status, got, Ok(())),
            Ok(Some(piece)) => got.extend(piece),
            Ok(None) => return (status, got, Ok(())),
            Err(error) => return (status, got, Err(error.reason())),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_streams_of_one_connection_end_and_are_settled_each_in_its_own_way() {
    let provider = Provider::start(end_by_name);
    let rig = Rig::start(provider.config());
    let client = sharing(&rig).await;
    let broken = Err(Some(Reason::INTERNAL_ERROR));
    let said = [START, WORDS].concat();
    let all = EVENTS.concat();
    let expected = [
        ("completes", 200, all.as_str(), Ok(()), Ending::Completed, Provenance::Reported),
        ("ends early", 200, &said, Ok(()), Ending::UpstreamBroke, Provenance::Partial),
        ("is left", 200, "", Ok(()), Ending::ClientGone, Provenance::Partial),
        ("resets", 200, &said, broken, Ending::UpstreamBroke, Provenance::Partial),
        ("closes quietly", 200, &said, broken, Ending::UpstreamBroke, Provenance::Partial),
        ("breaks a document", 200, &JSON[..40], broken, Ending::UpstreamBroke, Provenance::Estimated),
        ("refuses", 502, "", Ok(()), Ending::Unsent, Provenance::Reported),
    ];
    let asked: Vec<&'static str> = (0..EACH).flat_map(|_| expected.iter().map(|row| row.0)).collect();
    let outcomes = together(asked.iter().map(|model| outcome(client.clone(), model))).await;

    let mut settled: HashMap<String, Vec<_>> = HashMap::new();
    for (reserve, settle) in rig.exchanges(asked.len() + 1) {
        settled.entry(reserve.model.clone().unwrap()).or_default().push((reserve, settle));
    }
    for (model, status, words, end, ending, provenance) in expected {
        for (_, (got_status, got, got_end)) in
            asked.iter().zip(&outcomes).filter(|(asked, _)| **asked == model)
        {
            assert_eq!((*got_status, *got_end), (status, end), "{model}");
            if status == 200 {
                assert_eq!(String::from_utf8_lossy(got), words, "{model}");
            }
        }
        let first = usize::from(model == "completes");
        assert_eq!(settled[model].len(), EACH + first, "{model}");
        for (reserve, settle) in &settled[model] {
            assert_eq!((settle.ending, settle.provenance), (ending, provenance), "{model}");
            match provenance {
                _ if ending == Ending::Unsent => assert_eq!(settle.tokens.total(), 0),
                Provenance::Reported => assert_eq!((settle.tokens.input, settle.tokens.output), (10, 25)),
                Provenance::Partial => {
                    assert!(settle.tokens.input == 10 && settle.tokens.output > 1, "{settle:?}")
                }
                Provenance::Estimated => assert!(settle.tokens.total() >= reserve.tokens, "{settle:?}"),
            }
        }
    }
    assert_eq!(provider.connections(), 1);
    assert_eq!(provider.failed_by(Reason::CANCEL), EACH, "who is left hears of it");
}

/// A provider that tells each stream as far as the test lets all of them.
fn stepped() -> (Provider, watch::Sender<usize>) {
    let (step, steps) = watch::channel(0);
    let provider = Provider::start(move |mut asked: Asked| {
        let mut steps = steps.clone();
        async move {
            asked.read().await?;
            let mut answer = asked.answer("text/event-stream");
            for (told, words) in EVENTS.into_iter().enumerate() {
                tokio::select! {
                    may = steps.wait_for(|steps| *steps > told) => drop(may.expect("the test holds it")),
                    reset = std::future::poll_fn(|cx| answer.poll_reset(cx)) => return Err(reset?.into()),
                }
                answer.send_data(Bytes::from_static(words.as_bytes()), false)?;
            }
            answer.send_data(Bytes::new(), true)
        }
    });
    (provider, step)
}

/// So many streams whose first words are read.
async fn begun(client: &Client, many: usize) -> Vec<RecvStream> {
    let begin = |client: Client| async move {
        let mut body = soon(client.ask(&ask("m")).await).await.unwrap().into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), START);
        body
    };
    together(std::iter::repeat_n(client.clone(), many).map(begin)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_cut_closes_every_stream_at_once() {
    let (provider, step) = stepped();
    let rig = Rig::start(provider.config());
    let client = Client::through_tunnel(&rig).await;
    step.send_replace(1);
    let bodies = begun(&client, EACH).await;
    let since = Instant::now();
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    while provider.failed_by(Reason::CANCEL) < EACH {
        assert!(since.elapsed() < SOON, "{} are closed", provider.failed_by(Reason::CANCEL));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
    for mut body in bodies {
        assert!(read(&mut body).await.is_err(), "no clean end");
    }
    for (_, settle) in rig.exchanges(EACH) {
        assert_eq!((settle.ending, settle.provenance), (Ending::Cut, Provenance::Partial));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_hold_pauses_every_stream_and_a_restore_lets_them_go_on() {
    let (provider, step) = stepped();
    let rig = Rig::start(provider.config());
    let client = Client::through_tunnel(&rig).await;
    step.send_replace(1);
    let mut bodies = begun(&client, EACH).await;
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Hold });
    rig.taken_in();
    step.send_replace(EVENTS.len());
    let early = |body: &mut RecvStream| {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        body.poll_data(&mut cx).is_ready()
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!bodies.iter_mut().any(early), "nothing passes while the bottle is held");
    assert_eq!(rig.count(is_settle), 0);
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    for body in &mut bodies {
        assert_eq!(read(body).await.unwrap().0, EVENTS[1..].concat().into_bytes());
    }
    for (_, settle) in rig.exchanges(EACH) {
        assert_eq!((settle.ending, settle.provenance), (Ending::Completed, Provenance::Reported));
    }
}

/// A client whose requests share a connection: who asks first dials, and it is not known before what will be agreed on.
async fn sharing(rig: &Rig) -> Client {
    let client = Client::through_tunnel(rig).await;
    assert_eq!(outcome(client.clone(), "completes").await.0, 200);
    client
}

/// A provider that closes its first connection at the fourth request on it, in order or at once, as it is asked to;
/// the second and third are told on for as long as the connection lives.
fn leaving(how: Option<Reason>) -> Provider {
    let asked_so_far = Arc::new(AtomicUsize::new(0));
    let left = Arc::new(Semaphore::new(0));
    Provider::start(move |mut asked: Asked| {
        let number = asked_so_far.fetch_add(1, Ordering::SeqCst);
        let left = Arc::clone(&left);
        async move {
            asked.read().await?;
            let mut answer = asked.answer("text/event-stream");
            answer.send_data(Bytes::from_static(START.as_bytes()), false)?;
            match number {
                1 | 2 => drop(soon(left.acquire()).await),
                3 => {
                    asked.end.send(how).unwrap();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    left.add_permits(2);
                }
                _ => {}
            }
            for words in &EVENTS[1..] {
                answer.send_data(Bytes::from_static(words.as_bytes()), false)?;
            }
            answer.send_data(Bytes::new(), true)
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_connection_that_ends_in_order_lets_its_streams_end_and_is_replaced() {
    let provider = leaving(None);
    let rig = Rig::start(provider.config());
    let client = sharing(&rig).await;
    let bodies = begun(&client, 3).await;
    for mut body in bodies {
        assert_eq!(read(&mut body).await.unwrap().0, EVENTS[1..].concat().into_bytes());
    }
    let after = outcome(client.clone(), "m").await;
    assert_eq!((after.0, after.2), (200, Ok(())));
    for (_, settle) in rig.exchanges(5) {
        assert_eq!((settle.ending, settle.tokens.output), (Ending::Completed, 25));
    }
    assert_eq!(provider.connections(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_connection_that_breaks_breaks_its_streams_and_is_replaced() {
    let provider = leaving(Some(Reason::ENHANCE_YOUR_CALM));
    let rig = Rig::start(provider.config());
    let client = sharing(&rig).await;
    let outcomes = together((0..3).map(|_| outcome(client.clone(), "m"))).await;
    for (status, _, end) in outcomes {
        assert!(status == 502 || end == Err(Some(Reason::INTERNAL_ERROR)), "{status} {end:?}");
    }
    let after = outcome(client.clone(), "m").await;
    assert_eq!((after.0, after.2), (200, Ok(())));
    let (whole, broken): (Vec<_>, Vec<_>) =
        rig.exchanges(5).into_iter().partition(|(_, settle)| settle.ending == Ending::Completed);
    assert_eq!((whole.len(), broken.len()), (2, 3));
    for (_, settle) in broken {
        assert_eq!(settle.ending, Ending::UpstreamBroke);
        assert_ne!(settle.tokens.total(), 0, "it may have been processed");
    }
    assert_eq!(provider.connections(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_more_requests_than_share_a_connection_get_another() {
    let (provider, step) = stepped();
    let rig = Rig::start(provider.config());
    step.send_replace(1);
    let clients = [Client::through_tunnel(&rig).await, Client::through_tunnel(&rig).await];
    let mut bodies = begun(&clients[0], 1).await;
    bodies.extend(begun(&clients[0], 99).await);
    assert_eq!(provider.connections(), 1);
    bodies.extend(begun(&clients[1], 1).await);
    bodies.extend(begun(&clients[1], 19).await);
    assert_eq!(provider.connections(), 2);
    step.send_replace(EVENTS.len());
    for mut body in bodies {
        read(&mut body).await.unwrap();
    }
    assert!(rig.exchanges(120).iter().all(|(_, settle)| settle.ending == Ending::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_client_that_leaves_before_the_answer_is_heard_by_the_provider() {
    let provider = Provider::start(|mut asked: Asked| async move {
        asked.read().await?;
        Err(soon(std::future::poll_fn(|cx| asked.respond.poll_reset(cx))).await?.into())
    });
    let rig = Rig::start(provider.config());
    let client = Client::through_tunnel(&rig).await;
    let answer = client.ask(&ask("m")).await;
    while provider.heads().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(answer);
    rig.heard(
        |message| matches!(message, ToController::Settle(settle) if settle.ending == Ending::ClientGone),
    );
    while provider.failed_by(Reason::CANCEL) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
