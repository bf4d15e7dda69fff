//! A disk that is kept busy: threads that write and wait for it, until they are dropped.
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// As many as a group of databases would be.
const WRITERS: usize = 4;
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks of a file before it is begun anew: the disk fills no further.
const BLOCKS: u32 = 64;

/// Writers to one directory.
pub struct BusyDisk {
    stop: Arc<AtomicBool>,
    /// Blocks that are on the disk.
    written: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl BusyDisk {
    /// Starts them.
    pub fn start(dir: &Path) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |number: usize| {
            let (stop, written) = (stop.clone(), written.clone());
            let file = dir.join(format!("busy-{number}"));
            std::thread::spawn(move || write(&file, &stop, &written))
        };
        let writers = (0..WRITERS).map(writer).collect();
        Self { stop, written, writers }
    }

    /// Mebibytes that were written and waited for so far.
    pub fn written_mib(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Drop for BusyDisk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            if writer.join().is_err() {
                eprintln!("a writer of the busy disk failed: it was not as busy as it should be");
            }
        }
    }
}

fn write(path: &Path, stop: &AtomicBool, written: &AtomicU64) {
    let block = vec![0x5a; BLOCK_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let mut file = File::create(path).unwrap();
        for _ in 0..BLOCKS {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            file.write_all(&block).unwrap();
            file.sync_data().unwrap();
            written.fetch_add(1, Ordering::Relaxed);
        }
    }
}
