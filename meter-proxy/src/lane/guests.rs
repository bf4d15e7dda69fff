//! Who is being answered: the connections of each bottle, bounded, and ended together when it is opened.
//!
//! Not here: what they are told.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::lock::lock;
use crate::protocol::{BottleRef, LaneAnswer};

/// Most connections of one bottle that are answered at a time.
const MAX_OF_ONE_BOTTLE: usize = 64;

/// The bottles that have connections now.
#[derive(Default)]
pub struct Guests(Mutex<HashMap<BottleRef, Weak<Bottle>>>);

/// One bottle, from its first connection until it is opened or has none left.
struct Bottle {
    places: Arc<Semaphore>,
    is_over: watch::Sender<bool>,
}

/// A connection's bottle, and what its client is told.
pub struct Guest {
    /// What the controller said.
    pub answer: LaneAnswer,
    bottle: Arc<Bottle>,
    _place: OwnedSemaphorePermit,
}

impl Guests {
    /// Lets one more in; none when its bottle has too many.
    pub fn enter(&self, answer: LaneAnswer) -> Option<Guest> {
        let bottle = self.bottle(answer.bottle);
        let place = Arc::clone(&bottle.places).try_acquire_owned().ok()?;
        Some(Guest { answer, bottle, _place: place })
    }

    /// Ends every connection of the bottle that is in.
    pub fn opened(&self, bottle: BottleRef) {
        let bottle = lock(&self.0).remove(&bottle);
        if let Some(bottle) = bottle.and_then(|bottle| bottle.upgrade()) {
            bottle.is_over.send_replace(true);
        }
    }

    fn bottle(&self, id: BottleRef) -> Arc<Bottle> {
        let mut bottles = lock(&self.0);
        // No more than there are connections, so looking at each is cheap.
        bottles.retain(|_, bottle| bottle.strong_count() > 0);
        if let Some(bottle) = bottles.get(&id).and_then(Weak::upgrade) {
            return bottle;
        }
        let bottle = Arc::new(Bottle {
            places: Arc::new(Semaphore::new(MAX_OF_ONE_BOTTLE)),
            is_over: watch::Sender::new(false),
        });
        bottles.insert(id, Arc::downgrade(&bottle));
        bottle
    }
}

impl Guest {
    /// Completes when the bottle is opened.
    pub async fn opened(&self) {
        if self.bottle.is_over.subscribe().wait_for(|is_over| *is_over).await.is_err() {
            // Cannot be: the sender is held by this very guest.
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::Refusal;

    fn of(slot: u32, generation: u32) -> LaneAnswer {
        let bottle = BottleRef { slot, generation };
        LaneAnswer { bottle, name: "b".into(), refusal: Refusal::Unattached, original: None }
    }

    async fn is_over(guest: &Guest) -> bool {
        tokio::time::timeout(Duration::from_millis(1), guest.opened()).await.is_ok()
    }

    #[test]
    fn a_bottle_s_guests_are_bounded_and_no_other_s() {
        let guests = Guests::default();
        let mut inside: Vec<_> = (0..MAX_OF_ONE_BOTTLE).map(|_| guests.enter(of(1, 1)).unwrap()).collect();
        assert!(guests.enter(of(1, 1)).is_none());
        assert!(guests.enter(of(1, 2)).is_some() && guests.enter(of(2, 1)).is_some());
        inside.pop();
        assert!(guests.enter(of(1, 1)).is_some());
        drop(inside);
        drop(guests.enter(of(3, 1)));
        assert_eq!(lock(&guests.0).len(), 1, "who has left is forgotten");
    }

    #[tokio::test]
    async fn an_opened_bottle_s_guests_leave_and_later_ones_stay() {
        let guests = Guests::default();
        let (first, other) = (guests.enter(of(1, 1)).unwrap(), guests.enter(of(2, 1)).unwrap());
        guests.opened(BottleRef { slot: 1, generation: 1 });
        let later = guests.enter(of(1, 1)).unwrap();
        assert!(is_over(&first).await);
        assert!(!is_over(&other).await && !is_over(&later).await);
    }
}
