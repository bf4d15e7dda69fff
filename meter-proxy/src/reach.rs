//! What a client's bottle may reach beside its providers, by its mode and the allow-list.
//!
//! A name is let through by its name and is what is dialled then; an address by the range it lies in. What is only
//! claimed (SNI or Host on a redirected connection) never opens the address that it was sent to. Not here: where
//! metered hosts are found (`addresses`), and private ranges (`dial`).
use crate::egress::EgressMode;
use crate::hosts::{Authority, Host};
use crate::identify::Client;
use crate::refuse::{Reason, Refused};
use crate::route::Destination;
use crate::settings::Settings;

/// Whether the client may be connected to a host that is not metered.
///
/// # Errors
/// When its bottle may not reach it; nothing was looked up then.
pub fn check(client: &Client, settings: &Settings, authority: &Authority) -> Result<(), Refused> {
    if client.egress.permits(&settings.allow, &authority.host, authority.port) {
        return Ok(());
    }
    Err(Refused::plain(Reason::Forbidden(why(client, authority))))
}

/// The words of such a refusal.
#[must_use]
pub fn why(client: &Client, authority: &Authority) -> String {
    let (name, mode) = (&client.name, client.egress.as_str());
    let only = match client.egress {
        EgressMode::Metered => "its providers alone",
        EgressMode::Open | EgressMode::Allowlist => "what the allow-list names",
    };
    format!("{authority} may not be reached: bottle {name} reaches {only} (egress {mode})")
}

/// Whom to dial for a redirected client that was going `there` and speaks of `name`; none: nobody.
#[must_use]
pub fn redirected(
    client: &Client,
    settings: &Settings,
    there: &Authority,
    name: Option<&Host>,
) -> Option<Authority> {
    let may = |authority: &Authority| check(client, settings, authority).is_ok();
    let named = || name.map(|name| Authority { host: name.clone(), port: there.port });
    if may(there) { Some(there.clone()) } else { named().filter(may) }
}

/// Judges where a request goes; what it goes to may become the name that it asks for.
///
/// # Errors
/// When the client's bottle may reach neither.
pub fn judge(client: &Client, settings: &Settings, destination: Destination) -> Result<Destination, Refused> {
    if destination.provider.is_some() {
        return Ok(destination);
    }
    let Some(named) = &destination.named else {
        return check(client, settings, &destination.authority).map(|()| destination);
    };
    let authority = redirected(client, settings, &destination.authority, Some(&named.host));
    let authority =
        authority.ok_or_else(|| Refused::plain(Reason::Forbidden(why(client, &destination.authority))))?;
    Ok(Destination { authority, ..destination })
}
