//! Which network namespaces have sockets of the meter's, for whom, and for how long: pure bookkeeping.
//!
//! Time is counted in rounds: in each, every bottle is looked at once; for one that takes several, they are one. Not
//! here: how namespaces are found and opened.
use std::collections::BTreeMap;

use crate::bottle::netns::NamespaceId;

/// Most network namespaces of one bottle, beside the host's.
pub const MAX_OF_BOTTLE: usize = 16;
/// A namespace in which a bottle has not been seen in so many rounds is not its own any more.
const MISSED_ROUNDS: u64 = 2;

/// A namespace that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Id of the sockets there.
    pub listener: u32,
    /// The namespace's cookie.
    pub cookie: u64,
    /// A thread that was met there, by its own number: it may be the only one of its process.
    pub witness: u32,
    /// The bottle whose number of namespaces it counts in.
    charged: u32,
    /// Slots of the bottles that are in it, with the round in which they were seen last.
    holders: BTreeMap<u32, u64>,
}

/// Why a namespace is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The bottle has as many as it may.
    Bottle,
    /// All bottles together have.
    All,
}

/// The namespaces that are known; see the module's head.
#[derive(Debug)]
pub struct Known {
    served: BTreeMap<NamespaceId, Served>,
    /// Namespaces that could not be served, by the slot of the bottle in them, with the round they were seen in last.
    closed: BTreeMap<(u32, NamespaceId), u64>,
    most: usize,
    round: u64,
}

impl Known {
    /// None yet; at most so many served.
    pub fn new(most: usize) -> Self {
        Self { served: BTreeMap::new(), closed: BTreeMap::new(), most, round: 0 }
    }

    /// The bottle is in this namespace. Whether it is served.
    pub fn meet(&mut self, slot: u32, id: NamespaceId) -> bool {
        let served = self.served.get_mut(&id);
        served.map(|served| served.holders.insert(slot, self.round)).is_some()
    }

    /// Whether one more namespace may be served for this bottle.
    pub fn room_for(&self, slot: u32, id: NamespaceId) -> Result<(), Full> {
        let served = self.served.values().filter(|served| served.charged == slot).count();
        let closed = self.closed.keys().filter(|(of, closed)| *of == slot && *closed != id).count();
        match () {
            () if served + closed >= MAX_OF_BOTTLE => Err(Full::Bottle),
            () if self.served.len() >= self.most => Err(Full::All),
            () => Ok(()),
        }
    }

    /// The namespace is served now, for this bottle.
    pub fn serve(&mut self, slot: u32, id: NamespaceId, listener: u32, cookie: u64, witness: u32) {
        self.closed.retain(|(_, closed), _| *closed != id);
        let holders = BTreeMap::from([(slot, self.round)]);
        self.served.insert(id, Served { listener, cookie, witness, charged: slot, holders });
    }

    /// The namespace could not be served. Whether that is news.
    pub fn close(&mut self, slot: u32, id: NamespaceId) -> bool {
        self.closed.insert((slot, id), self.round).is_none()
    }

    /// Whether a namespace with this cookie is served.
    pub fn has_cookie(&self, cookie: u64) -> bool {
        self.served.values().any(|served| served.cookie == cookie)
    }

    /// Namespaces that this bottle was in and has not been seen in this round, with their witnesses.
    pub fn missing(&self, slot: u32) -> Vec<(NamespaceId, u32)> {
        let missing = self
            .served
            .iter()
            .filter(|(_, served)| served.holders.get(&slot).is_some_and(|seen| *seen < self.round));
        missing.map(|(id, served)| (*id, served.witness)).collect()
    }

    /// What the bottle is in cannot be told now: it counts as seen wherever it was.
    pub fn keep(&mut self, slot: u32) {
        for served in self.served.values_mut() {
            served.holders.entry(slot).and_modify(|seen| *seen = self.round);
        }
    }

    /// A bottle is gone; namespaces that nobody is in any more, taken out.
    pub fn forget(&mut self, slot: u32) -> Vec<Served> {
        self.closed.retain(|(of, _), _| *of != slot);
        self.drop_holders(|holder, _| holder == slot)
    }

    /// Ends the round; namespaces in which nobody has been seen for long enough, taken out. For a bottle that was not
    /// looked at to the end time stands still: what it has not been seen in yet may be found in the rest of it.
    pub fn end_round(&mut self, is_unfinished: impl Fn(u32) -> bool) -> Vec<Served> {
        let round = self.round;
        let seen = self.served.values_mut().flat_map(|served| &mut served.holders);
        let closed = self.closed.iter_mut().map(|((slot, _), seen)| (slot, seen));
        for (_, seen) in seen.chain(closed).filter(|(slot, _)| is_unfinished(**slot)) {
            *seen += 1;
        }
        self.round += 1;
        let long_ago = move |seen: u64| round.saturating_sub(seen) >= MISSED_ROUNDS;
        self.closed.retain(|_, seen| !long_ago(*seen));
        self.drop_holders(|_, seen| long_ago(seen))
    }

    fn drop_holders(&mut self, gone: impl Fn(u32, u64) -> bool) -> Vec<Served> {
        for served in self.served.values_mut() {
            served.holders.retain(|slot, seen| !gone(*slot, *seen));
            if let Some((&first, _)) = served.holders.first_key_value()
                && !served.holders.contains_key(&served.charged)
            {
                served.charged = first;
            }
        }
        self.served.extract_if(.., |_, served| served.holders.is_empty()).map(|(_, served)| served).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> NamespaceId {
        NamespaceId::from(number)
    }

    fn listeners(gone: Vec<Served>) -> Vec<u32> {
        gone.into_iter().map(|served| served.listener).collect()
    }

    #[test]
    fn a_namespace_goes_when_nobody_was_seen_in_it_for_two_rounds() {
        let mut known = Known::new(8);
        known.serve(1, id(7), 2, 70, 100);
        assert!(known.end_round(|_| false).is_empty());
        assert!(known.end_round(|_| false).is_empty(), "one round without is not enough");
        assert!(known.meet(1, id(7)));
        assert!(known.end_round(|_| false).is_empty());
        assert!(known.end_round(|_| false).is_empty());
        assert_eq!(listeners(known.end_round(|_| false)), [2]);
        assert!(!known.meet(1, id(7)) && !known.has_cookie(70));
    }

    #[test]
    fn a_bottle_that_takes_several_rounds_loses_nothing_before_its_end() {
        let mut known = Known::new(8);
        known.serve(1, id(7), 2, 70, 100);
        known.serve(2, id(8), 3, 80, 200);
        for _ in 0..2 {
            assert!(known.end_round(|slot| slot == 1).is_empty());
        }
        assert_eq!(listeners(known.end_round(|slot| slot == 1)), [3], "the other one's time goes on");
        for _ in 0..2 {
            assert!(known.end_round(|_| false).is_empty());
        }
        assert_eq!(listeners(known.end_round(|_| false)), [2]);
    }

    #[test]
    fn a_shared_namespace_goes_with_the_last_bottle_in_it() {
        let mut known = Known::new(8);
        known.serve(1, id(7), 2, 70, 100);
        assert!(known.meet(2, id(7)));
        assert!(known.forget(1).is_empty());
        assert_eq!(listeners(known.forget(2)), [2]);
        assert!(known.forget(2).is_empty());
    }

    #[test]
    fn a_bottle_has_so_many_and_no_more_served_or_not() {
        let mut known = Known::new(MAX_OF_BOTTLE + 1);
        for number in 0..15 {
            known.serve(1, id(number), 2, number, 100);
        }
        assert!(known.close(1, id(15)) && !known.close(1, id(15)), "it is news once");
        assert_eq!(known.room_for(1, id(15)), Ok(()), "what could not be served is tried again");
        assert_eq!(known.room_for(1, id(16)), Err(Full::Bottle));
        assert_eq!(known.room_for(2, id(16)), Ok(()), "another bottle has room");
        for number in 16..18 {
            known.serve(2, id(number), 2, number, 100);
        }
        assert_eq!(known.room_for(2, id(20)), Err(Full::All));
    }

    #[test]
    fn a_namespace_counts_for_one_of_the_bottles_in_it_whoever_leaves() {
        let mut known = Known::new(64);
        for number in 0..16 {
            known.serve(1, id(number), 2, number, 100);
            known.meet(2, id(number));
        }
        assert_eq!(known.room_for(2, id(99)), Ok(()), "they count for the bottle that they were opened for");
        assert!(known.forget(1).is_empty());
        assert_eq!(known.room_for(2, id(99)), Err(Full::Bottle));
    }

    #[test]
    fn what_cannot_be_told_is_kept() {
        let mut known = Known::new(8);
        known.serve(1, id(7), 2, 70, 100);
        for _ in 0..5 {
            known.keep(1);
            assert!(known.end_round(|_| false).is_empty());
        }
        assert_eq!(known.missing(1), [(id(7), 100)]);
        known.keep(1);
        assert!(known.missing(1).is_empty());
    }
}
