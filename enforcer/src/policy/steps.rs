//! One order for a bottle's processes, done by the kernel's files. Blocks, within the bounds of `bottle::processes`.
use super::{Act, Order};
use crate::bottle::cgroup::{Cgroup, CgroupError};
use crate::bottle::processes::ProcessesError;

/// Does it; what there is to say of it, or why it was not done.
pub(super) fn done(order: &Order) -> Result<String, String> {
    let cgroup = match open(order) {
        Ok(Some(cgroup)) => cgroup,
        // nobody is left to be held, and nobody to be let go
        Ok(None) => return gone(order),
        Err(error) => return Err(error.to_string()),
    };
    let done = match &order.act {
        Act::Freeze { .. } => freeze(&cgroup),
        Act::End => kill(&cgroup).map(|ended| format!("{ended} after the snapshot")),
        Act::Thaw => thaw(&cgroup),
        Act::Kill => kill(&cgroup).map(|ended| format!("{ended}{}", removed(order, cgroup))),
    };
    done.map_err(|error| error.to_string())
}

/// The bottle's cgroup; `None` when it is gone, also when another one stands in its place.
fn open(order: &Order) -> Result<Option<Cgroup>, CgroupError> {
    match Cgroup::open(&order.cgroup) {
        Ok(cgroup) if cgroup.id() == order.cgroup_id => Ok(Some(cgroup)),
        Ok(_) | Err(CgroupError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn gone(order: &Order) -> Result<String, String> {
    match order.act {
        Act::Kill | Act::End => Ok("0 survivors: its cgroup is gone".into()),
        Act::Freeze { .. } | Act::Thaw => Err("its cgroup is gone".into()),
    }
}

fn freeze(cgroup: &Cgroup) -> Result<String, ProcessesError> {
    cgroup.freeze()?;
    Ok(format!("{} stand still", processes(cgroup.pids()?.len())))
}

fn thaw(cgroup: &Cgroup) -> Result<String, ProcessesError> {
    let was_frozen = cgroup.is_frozen()?;
    cgroup.thaw()?;
    let go_on = format!("{} go on", processes(cgroup.pids()?.len()));
    Ok(if was_frozen { go_on } else { format!("{go_on}; they were not frozen") })
}

fn kill(cgroup: &Cgroup) -> Result<String, ProcessesError> {
    let before = cgroup.pids()?.len();
    cgroup.kill()?;
    Ok(format!("{} ended, 0 survivors", processes(before)))
}

/// Takes a cgroup away that was made for the bottle; what became of that.
fn removed(order: &Order, cgroup: Cgroup) -> String {
    if !order.owns_cgroup {
        return String::new();
    }
    match cgroup.remove() {
        Ok(()) => "; its cgroup is removed".into(),
        Err(error) => format!("; its cgroup stays: {error}"),
    }
}

fn processes(count: usize) -> String {
    if count == 1 { "1 process".into() } else { format!("{count} processes") }
}
