//! The maps as this controller's programs know them: what is pinned with another shape is refused.
//!
//! What is in them is `maps`' and `table`'s.
use aya::maps::{MapInfo, MapType};
use enforcer_ebpf::{
    ALLOW, ASKERS, AllowKey, AllowPorts, Asker, Bottle, Counters, EVENT_BYTES, EventState, FLOWS, Flow,
    FlowKey, NAMESPACES, Original, Place, SLOTS,
};

use super::KernelError;
use super::pins::Pins;
use super::refusal::chain;

/// A map as this controller's programs know it.
struct Shape {
    name: &'static str,
    map_type: MapType,
    key: usize,
    value: usize,
    entries: u32,
    flags: u32,
}

/// `BPF_F_MMAPABLE`.
pub(super) const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_CLONE`.
const CLONE: u32 = 1 << 9;
/// Bytes before the data of an LPM trie's key: the prefix length.
const PREFIX: usize = 4;
/// `struct bpf_cgroup_storage_key`, with its padding.
const STORAGE_KEY: usize = 16;

/// The maps whose definitions cannot say that they are pinned.
pub const ORIGINALS: &str = "ORIGINALS";
/// As above.
pub const HOMES: &str = "HOMES";

const SHAPES: [Shape; 14] = [
    shape("CG", MapType::CgroupStorage, STORAGE_KEY, size_of::<u32>(), 0, 0),
    shape("BOTTLES", MapType::Array, size_of::<u32>(), size_of::<Bottle>(), SLOTS, MMAPABLE),
    shape("COUNTERS", MapType::PerCpuArray, size_of::<u32>(), size_of::<Counters>(), SLOTS, 0),
    shape("FLOWS", MapType::Hash, size_of::<FlowKey>(), size_of::<Flow>(), FLOWS, 0),
    shape("ASKERS", MapType::LruHash, size_of::<Asker>(), size_of::<u64>(), ASKERS, 0),
    shape("FLOW_COUNTS", MapType::Array, size_of::<u32>(), size_of::<u64>(), SLOTS, MMAPABLE),
    shape("NAMESPACES", MapType::Hash, size_of::<u64>(), size_of::<Place>(), NAMESPACES, 0),
    shape("HEART", MapType::Array, size_of::<u32>(), size_of::<u64>(), 1, MMAPABLE),
    shape("LAST_LISTENER", MapType::Array, size_of::<u32>(), size_of::<u64>(), 1, MMAPABLE),
    shape(
        "ALLOW",
        MapType::LpmTrie,
        PREFIX + size_of::<AllowKey>(),
        size_of::<AllowPorts>(),
        ALLOW,
        NO_PREALLOC,
    ),
    shape("EVENTS", MapType::RingBuf, 0, 0, EVENT_BYTES, 0),
    shape("EVENT_STATES", MapType::Array, size_of::<u32>(), size_of::<EventState>(), SLOTS, 0),
    shape(ORIGINALS, MapType::SkStorage, size_of::<i32>(), size_of::<Original>(), 0, NO_PREALLOC),
    shape(HOMES, MapType::SkStorage, size_of::<i32>(), size_of::<u64>(), 0, NO_PREALLOC | CLONE),
];

const fn shape(
    name: &'static str,
    map_type: MapType,
    key: usize,
    value: usize,
    entries: u32,
    flags: u32,
) -> Shape {
    Shape { name, map_type, key, value, entries, flags }
}

/// Refuses pinned maps of another shape: aya would take them over unseen.
pub fn check_shapes(pins: &Pins) -> Result<(), KernelError> {
    for shape in &SHAPES {
        let path = pins.root().join(shape.name);
        if !path.exists() {
            continue;
        }
        let wrong = |what: String| KernelError::Pins { path: path.clone(), what };
        let info = MapInfo::from_pin(&path).map_err(|error| wrong(chain(&error)))?;
        if let Some(difference) = shape.difference(&info) {
            return Err(wrong(difference));
        }
    }
    Ok(())
}

/// Whether every map is pinned.
pub fn all_pinned(pins: &Pins) -> bool {
    SHAPES.iter().all(|shape| pins.root().join(shape.name).exists())
}

impl Shape {
    /// How a map differs from this, if it does.
    fn difference(&self, there: &MapInfo) -> Option<String> {
        let map_type = there.map_type().ok();
        let is = |found: u32, wanted: usize| usize::try_from(found).is_ok_and(|found| found == wanted);
        let same = map_type == Some(self.map_type)
            && is(there.key_size(), self.key)
            && is(there.value_size(), self.value)
            && there.max_entries() == self.entries
            && there.map_flags() == self.flags;
        (!same).then(|| {
            format!(
                "the pinned map is {map_type:?} with {} byte keys, {} byte values, {} entries, flags {:#x}; \
                 wanted {:?}, {}, {}, {}, {:#x}",
                there.key_size(),
                there.value_size(),
                there.max_entries(),
                there.map_flags(),
                self.map_type,
                self.key,
                self.value,
                self.entries,
                self.flags,
            )
        })
    }
}
