//! What the lane's code does not have: anything that dials, or looks a name up, however far one follows its imports.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Rooms of the meter that connect to somebody, or ask for somebody's address.
const DIALLERS: [&str; 5] = ["dial", "addresses", "forward", "tunnel", "redirected"];

/// How that is done.
const DIALLING: [&str; 6] =
    ["connect(", "lookup_host", "to_socket_addrs", "ToSocketAddrs", "::bind(", "socket::"];

/// The source of a room without its tests; of `lane` all files.
fn source(room: &str) -> String {
    let rooms = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![rooms.join(format!("{room}.rs"))];
    if let Ok(inside) = std::fs::read_dir(rooms.join(room)) {
        files.extend(inside.map(|file| file.unwrap().path()));
    }
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    texts.map(|text| text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned()).collect()
}

/// The rooms that a source names.
fn imports(source: &str) -> BTreeSet<String> {
    let named = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
    };
    let mut rooms = BTreeSet::new();
    for after in source.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => rooms.extend(list.split('}').next().unwrap().split(',').map(named)),
            None => {
                rooms.insert(named(after));
            }
        }
    }
    rooms.remove("");
    rooms
}

/// Every room that is reached from this one, with its source.
fn reached_from(room: &str) -> BTreeMap<String, String> {
    let (mut reached, mut to_read) = (BTreeMap::new(), vec![room.to_owned()]);
    while let Some(room) = to_read.pop() {
        let source = source(&room);
        if source.is_empty() {
            // A function of the meter's own life: what it reaches is all there is.
            reached.insert("lib".to_owned(), self::source("lib"));
            continue;
        }
        to_read.extend(imports(&source).into_iter().filter(|room| !reached.contains_key(room)));
        reached.insert(room, source);
    }
    reached
}

#[test]
fn nothing_that_the_lane_is_made_of_dials() {
    let reached = reached_from("lane");
    for room in ["hello", "handshake", "refuse", "link", "extensions"] {
        assert!(reached.contains_key(room), "{room} is a part of it: {:?}", reached.keys());
    }
    for room in DIALLERS.iter().chain(&["lib"]) {
        assert!(!reached.contains_key(*room), "{room}");
    }
    for (room, source) in &reached {
        for way in DIALLING {
            assert!(!source.contains(way), "{room}: {way}");
        }
    }
}

#[test]
fn the_meter_which_dials_is_told_apart() {
    let reached = reached_from("accept");
    assert!(DIALLERS.iter().all(|room| reached.contains_key(*room)), "{:?}", reached.keys());
    assert!(DIALLING.iter().any(|way| reached["dial"].contains(way)));
}
