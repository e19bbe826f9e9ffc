use super::*;

const SMALL: Layout = Layout { segment_bytes: 3 * RECORD_BYTES_MAX, segments_max: 6, shards: 1 };

fn start(folder: &Path) -> (Journal, Vec<Orphan>) {
    Journal::start(folder, SMALL, 1000).unwrap()
}

fn records(orphans: &[Orphan]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for path in orphans.iter().flat_map(|orphan| orphan.shards.iter().flatten()) {
        let bytes = std::fs::read(path).unwrap();
        found.extend(scan::scan(&bytes).payloads.into_iter().map(|range| bytes[range].to_vec()));
    }
    found
}

fn seg_files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ext| ext == "seg")).count()
}

#[test]
fn records_come_back_in_order_across_segments() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, none) = start(folder.path());
    assert!(none.is_empty());
    // Held, so that no segment goes.
    let held: Vec<_> = (0..20u8).map(|n| journal.append(0, |out| out.extend_from_slice(&[n; 900])).unwrap()).collect();
    drop(journal);
    drop(held);
    let (_, orphans) = start(folder.path());
    assert_eq!(records(&orphans), (0..20u8).map(|n| vec![n; 900]).collect::<Vec<_>>());
}

#[test]
fn a_living_process_is_not_taken_over_and_a_dead_one_is_once() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = start(folder.path());
    let _segment = first.append(0, |out| out.push(1)).unwrap();
    let (second, orphans) = start(folder.path());
    assert!(orphans.is_empty() && second.is_shared() && first.epoch() != second.epoch());
    drop(first);
    let orphans = second.orphans().unwrap();
    assert_eq!(records(&orphans), [[1]]);
    // While it is being replayed, nobody else gets it.
    assert!(start(folder.path()).1.iter().all(|orphan| orphan.shards.is_empty()));
    for orphan in orphans {
        orphan.remove(&[]).unwrap();
    }
    for orphan in second.orphans().unwrap() {
        orphan.remove(&[]).unwrap();
    }
    assert!(!second.is_shared());
}

#[test]
fn a_segment_goes_when_nobody_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = start(folder.path());
    let mut held: Vec<_> = (0..40).map(|_| journal.append(0, |out| out.extend_from_slice(&[7; 900])).unwrap()).collect();
    let before = journal.segments();
    assert!(before >= 3);
    journal.sync().unwrap();
    journal.sweep();
    assert_eq!(journal.segments(), before);
    held.remove(0);
    journal.sweep();
    // The first segment has more records, all held.
    assert_eq!(journal.segments(), before);
    held.clear();
    journal.sweep();
    assert_eq!((journal.segments(), seg_files(folder.path())), (1, 1));
    journal.finish();
    assert_eq!((journal.segments(), seg_files(folder.path())), (0, 0));
}

#[test]
fn at_the_bound_nobody_is_admitted_and_everyone_admitted_can_close() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = start(folder.path());
    let mut admitted = Vec::new();
    let refused = loop {
        match journal.open(0, 1000, |out| out.extend_from_slice(&[1; 200])) {
            Ok(open) => admitted.push(open),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert!(admitted.len() > 10, "{}", admitted.len());
    assert_eq!(journal.append(0, |out| out.extend_from_slice(&[1; 2000])).unwrap_err().kind(), io::ErrorKind::StorageFull);
    // Closing records are as large as promised: 200 for the first one's payload, 1000 more.
    let held: Vec<_> =
        admitted.into_iter().map(|(_open, promise)| journal.close(0, promise, |out| out.extend_from_slice(&[2; 1200])).unwrap()).collect();
    assert_eq!(journal.segments(), SMALL.segments_max);
    drop(held);
    journal.sync().unwrap();
    journal.sweep();
    // Room again.
    let _open = journal.open(0, 1000, |out| out.extend_from_slice(&[1; 200])).unwrap();
}

#[test]
fn an_idle_half_used_segment_goes_too() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = start(folder.path());
    for _ in 0..7 {
        drop(journal.append(0, |out| out.extend_from_slice(&[1; 1000])).unwrap());
    }
    journal.sync().unwrap();
    journal.sweep();
    assert_eq!(journal.segments(), 1);
    journal.sweep();
    assert_eq!(journal.segments(), 0);
}

#[test]
fn rounds_answer_who_asked_before_they_began() {
    let rounds = Rounds::default();
    let first = rounds.ask();
    assert_eq!(rounds.ask(), first);
    let round = rounds.begin(Duration::ZERO).unwrap();
    assert!(round.asked);
    // Asked while it runs: that is for the next.
    let second = rounds.ask();
    assert_eq!(second, first + 1);
    round.done();
    assert_eq!(rounds.wait(first), Ok(()));
    // A failed round leaves its question open.
    rounds.begin(Duration::ZERO).unwrap().failed();
    let retry = rounds.begin(Duration::ZERO).unwrap();
    assert!(retry.asked);
    retry.done();
    assert_eq!(rounds.wait(second), Ok(()));
    rounds.stop();
    assert!(rounds.begin(Duration::ZERO).is_none());
    rounds.stopped();
    assert!(rounds.wait(99).is_err());
}
