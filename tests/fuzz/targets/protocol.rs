//! The messages between the controller and its children: any packet is a message or an error, in bounded memory; a
//! message is the same after another journey.
#![no_main]
use std::fmt::Debug;

use enforcer_fuzz::memory;
use libfuzzer_sys::fuzz_target;
use meter_proxy::protocol::{LaneToController, Refusal, ToController, ToLane, ToMeter};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most that a message takes for each byte of its packet: an empty string takes one byte there and 24 here, a certificate
/// or a provider of empty fields more; and room for what is reserved before it is known that it does not come: serde
/// takes a list's word for its length up to 1 MiB, and lists of lists are three deep.
const MAX_MEMORY_FOR_A_BYTE: usize = 64;
const ROOM_BYTES: usize = 4 * 1024 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some((&way, packet)) = data.split_last() else { return };
    match way % 4 {
        0 => drop(message::<ToController>(packet)),
        1 => {
            let message = message(packet);
            if let Some(ToMeter::Refused { refusal, .. } | ToMeter::Judged { refusal: Some(refusal), .. }) =
                message
            {
                said(&refusal);
            }
        }
        2 => drop(message::<LaneToController>(packet)),
        _ => {
            if let Some(ToLane::Because { answer: Some(answer), .. }) = message(packet) {
                said(&answer.refusal);
            }
        }
    }
});

fn message<M: Serialize + DeserializeOwned + PartialEq + Debug>(packet: &[u8]) -> Option<M> {
    let (message, memory_bytes) = memory::most_while(|| postcard::from_bytes::<M>(packet).ok());
    assert!(memory_bytes <= packet.len() * MAX_MEMORY_FOR_A_BYTE + ROOM_BYTES, "{memory_bytes} bytes");
    let message = message?;
    let again = postcard::to_stdvec(&message).expect("a message can be sent");
    assert_eq!(postcard::from_bytes::<M>(&again).as_ref(), Ok(&message));
    Some(message)
}

fn said(refusal: &Refusal) {
    assert!(!refusal.to_string().is_empty());
}
