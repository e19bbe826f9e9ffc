//! Processor time and memory of a process and all its descendants, from /proc.

use std::collections::HashMap;
use std::fs;

/// The kernel's page, on every machine this runs on.
const PAGE_KB: u64 = 4;

/// The fields of `/proc/PID/stat` behind the command's name: 1 is the parent, 21 the resident pages.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// The process and its descendants.
pub fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u64, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1).copied()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        let more = children.remove(&u64::from(*pid)).unwrap_or_default();
        all.extend(more);
        at += 1;
    }
    all
}

/// Nanoseconds on a processor of every live thread of the processes: exact, where `stat` counts in ticks of 10 ms.
pub fn cpu_ns(pids: &[u32]) -> u64 {
    let threads = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = |text: String| text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
    pids.iter().flat_map(threads).filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok()).filter_map(spent).sum()
}

/// Resident memory of the processes together, KB. Shared pages count for each.
pub fn rss_kb(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| stat(*pid)).filter_map(|fields| fields.get(21).map(|pages| pages * PAGE_KB)).sum()
}
