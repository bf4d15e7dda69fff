//! Whose connection this is: asked once for each connection, and kept with it.
//!
//! Not here: how the controller knows (from the kernel).
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::Meter;
use crate::bottles::{Bottle, Standing};
use crate::egress::EgressMode;
use crate::link::ControllerError;
use crate::protocol::Refusal;

/// A connection's client. Its place among the connections is free again when the last holder is gone.
pub struct Client {
    /// The bottle it sits in.
    pub bottle: Arc<Bottle>,
    /// Name of the bottle.
    pub name: String,
    /// Where it meant to connect, when the kernel redirected it from another place.
    pub original: Option<SocketAddr>,
    /// What it may reach besides its providers.
    pub egress: EgressMode,
    places: Places,
}

/// A place among all connections, and one among those of a bottle.
pub type Places = [OwnedSemaphorePermit; 2];

impl Client {
    /// The places of one more connection of its bottle; `None`: there are no more.
    #[must_use]
    pub fn more_places(&self) -> Option<Places> {
        let one_more = |place: &OwnedSemaphorePermit| Arc::clone(place.semaphore()).try_acquire_owned().ok();
        let [of_all, of_bottle] = &self.places;
        Some([one_more(of_all)?, one_more(of_bottle)?])
    }

    /// Why nothing passes now; `None` while the bottle is open.
    #[must_use]
    pub fn refusal_when_cut(&self) -> Option<Refusal> {
        let cut = |cause: &str| Refusal::Cut { bottle: self.name.clone(), cause: cause.to_owned() };
        match self.bottle.standing() {
            Standing::Open => None,
            Standing::Held(_) | Standing::Closed => Some(cut("the operator or its budget stopped it")),
            Standing::Detached => Some(Refusal::Unattached),
        }
    }
}

/// What became of the question.
pub enum Answer {
    /// It belongs to a bottle.
    Client(Arc<Client>),
    /// It belongs to none; its place among all connections.
    Unattached(OwnedSemaphorePermit),
    /// Its bottle has as many connections as it may, and that is audited.
    TooMany,
}

/// Asks whose connection this is. `place` is its place among all connections.
///
/// # Errors
/// When the controller is gone or silent.
pub async fn identify(
    meter: &Meter,
    peer: SocketAddr,
    local: SocketAddr,
    listener: u32,
    place: OwnedSemaphorePermit,
) -> Result<Answer, ControllerError> {
    let since = Instant::now();
    let known = meter.controller.identify(peer, local, listener).await?;
    tracing::debug!(took_us = since.elapsed().as_micros(), "a connection was identified");
    let Some(known) = known else {
        return Ok(Answer::Unattached(place));
    };
    let Ok(own_place) = Arc::clone(&known.bottle.connections).try_acquire_owned() else {
        let what = format!("{} has as many connections as it may; more are closed", known.identity.name);
        meter.controller.notice_once(&known.bottle, &what);
        return Ok(Answer::TooMany);
    };
    let settings = Arc::clone(&meter.settings.borrow());
    let meant_meter = |original: &SocketAddr| *original == local || settings.addresses.is_own(*original);
    let original = known.identity.original.filter(|original| !meant_meter(original));
    let (bottle, name, egress) = (known.bottle, known.identity.name, known.identity.egress);
    Ok(Answer::Client(Arc::new(Client { bottle, name, original, egress, places: [place, own_place] })))
}
