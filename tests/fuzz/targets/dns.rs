//! Queries that come to the refusal lane: what is answered is a query to others too, and the answer an answer.
#![no_main]
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::RData;
use libfuzzer_sys::fuzz_target;
use meter_proxy::fuzzing::{EVERYWHERE, dns_answer};

/// Most bytes by which an answer is longer than its query: one address.
const MAX_ADDED_BYTES: usize = 16;
const HEADER_BYTES: usize = 12;

fuzz_target!(|query: &[u8]| {
    let Some(answer) = dns_answer(query) else { return };
    assert!(answer.len() <= query.len() + MAX_ADDED_BYTES, "nobody is flooded by the lane");
    assert_eq!(answer[..2], query[..2], "the number is that of the query");
    let questions_bytes = answer.len().min(query.len()) - HEADER_BYTES;
    let Ok(read) = Message::from_vec(&answer) else { panic!("nobody can read {answer:?}") };
    assert_eq!(read.metadata.message_type, MessageType::Response);
    assert_eq!((read.queries.len(), read.authorities.len(), read.additionals.len()), (1, 0, 0));
    for record in &read.answers {
        assert_eq!((&record.name, record.ttl), (read.queries[0].name(), 0));
        assert!(matches!(&record.data, RData::A(address) if address.0 == EVERYWHERE), "{record:?}");
    }
    assert!(questions_bytes > 0);
});
