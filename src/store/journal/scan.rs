//! Reading a segment back: whole frames in order, whatever a crash left of them.
//!
//! A crash of the process leaves every frame whole. A power cut may leave any page unwritten, not only the last: after a
//! bad place the scan looks for the next frame that checks out and says how many bytes it had to skip.

use std::ops::Range;

/// First bytes of a segment; the digit is the format's version.
pub const SEGMENT_MAGIC: [u8; 8] = *b"WEIRJNL1";

/// Magic, epoch, shard, number.
pub const SEGMENT_HEADER_BYTES: usize = 24;

/// First bytes of a frame: where a scan may start again.
const FRAME_MAGIC: [u8; 4] = [0xF5, b'w', b'r', 0xFA];

/// Magic, payload length, checksum.
pub const FRAME_HEADER_BYTES: usize = 12;

/// A segment's header.
pub fn header(epoch: u64, shard: u32, number: u32) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
    bytes[8..16].copy_from_slice(&epoch.to_le_bytes());
    bytes[16..20].copy_from_slice(&shard.to_le_bytes());
    bytes[20..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// What every frame's checksum of this segment starts from: a frame of another segment does not check out here.
pub fn salt(header: &[u8; SEGMENT_HEADER_BYTES]) -> u32 {
    crc32fast::hash(header)
}

/// Starts a frame; the payload is appended behind it, then [`finish_frame`] is called.
pub fn start_frame(out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&FRAME_MAGIC);
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES - FRAME_MAGIC.len()]);
}

/// Fills in the length and the checksum of the frame that `out` holds.
pub fn finish_frame(out: &mut [u8], salt: u32) {
    // Payloads are bounded to kilobytes by the records' own bounds.
    let length = (out.len() - FRAME_HEADER_BYTES) as u32;
    out[4..8].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(salt, length, &out[FRAME_HEADER_BYTES..]);
    out[8..12].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(salt: u32, length: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(&length.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// What a segment holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Payloads in order.
    pub payloads: Vec<Range<usize>>,
    /// Bytes in the middle that belong to no whole frame: records are missing.
    pub skipped_bytes: u64,
    /// Bytes of an unfinished frame at the end: a write that was cut; nobody was told that it happened.
    pub torn_bytes: u64,
    /// The header is not ours or damaged; nothing was read.
    pub bad_header: bool,
}

/// Reads a whole segment.
pub fn scan(segment: &[u8]) -> Scan {
    let mut found = Scan::default();
    let Some(header) = segment.first_chunk::<SEGMENT_HEADER_BYTES>().filter(|header| header.starts_with(&SEGMENT_MAGIC)) else {
        // A segment that was made and not yet written to is empty or zero.
        found.bad_header = segment.iter().any(|byte| *byte != 0);
        return found;
    };
    let salt = salt(header);
    let end = segment.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut at = SEGMENT_HEADER_BYTES;
    // A frame's own last bytes may be zeros, hence the check against the whole segment inside `frame_at`.
    while at < end {
        if let Some(payload) = frame_at(segment, at, salt) {
            at = payload.end;
            found.payloads.push(payload);
            continue;
        }
        match next_frame(segment, at + 1, salt) {
            Some(next) => {
                found.skipped_bytes += (next - at) as u64;
                at = next;
            }
            None => {
                found.torn_bytes = (end - at) as u64;
                break;
            }
        }
    }
    found
}

fn frame_at(segment: &[u8], at: usize, salt: u32) -> Option<Range<usize>> {
    let header = segment.get(at..at + FRAME_HEADER_BYTES)?;
    if header[..4] != FRAME_MAGIC {
        return None;
    }
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let expected = u32::from_le_bytes(header[8..12].try_into().ok()?);
    let start = at + FRAME_HEADER_BYTES;
    let payload = segment.get(start..start.checked_add(length as usize)?)?;
    (checksum(salt, length, payload) == expected).then(|| start..start + payload.len())
}

fn next_frame(segment: &[u8], from: usize, salt: u32) -> Option<usize> {
    memchr::memmem::find_iter(segment.get(from..)?, &FRAME_MAGIC).map(|at| from + at).find(|at| frame_at(segment, *at, salt).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment with these payloads, followed by preallocated zeros.
    fn segment(payloads: &[&[u8]]) -> (Vec<u8>, Vec<usize>) {
        let header = header(1, 2, 3);
        let (mut bytes, mut frame, mut starts) = (header.to_vec(), Vec::new(), Vec::new());
        for payload in payloads {
            start_frame(&mut frame);
            frame.extend_from_slice(payload);
            finish_frame(&mut frame, salt(&header));
            starts.push(bytes.len());
            bytes.extend_from_slice(&frame);
        }
        starts.push(bytes.len());
        bytes.resize(bytes.len() + 100, 0);
        (bytes, starts)
    }

    fn payloads(bytes: &[u8]) -> (Vec<&[u8]>, u64, u64) {
        let found = scan(bytes);
        assert!(!found.bad_header);
        (found.payloads.into_iter().map(|range| &bytes[range]).collect(), found.skipped_bytes, found.torn_bytes)
    }

    const THREE: [&[u8]; 3] = [b"first", b"", b"third\0\0"];

    #[test]
    fn a_tail_torn_at_any_byte_loses_only_the_last_frame() {
        let (bytes, starts) = segment(&THREE);
        for cut in SEGMENT_HEADER_BYTES..=bytes.len() {
            // Either the file ends there or the rest was never written and reads as zeros.
            let mut zeroed = bytes.clone();
            zeroed[cut..].fill(0);
            for torn in [&bytes[..cut], &zeroed] {
                let (found, skipped, _) = payloads(torn);
                let whole = starts[1..].iter().filter(|end| **end <= cut).count();
                // Zeros that were cut off and read as zeros are the same bytes.
                let trailing_zeros_only = torn.len() == bytes.len() && bytes[cut.min(starts[3])..starts[3]].iter().all(|byte| *byte == 0);
                let expected = if trailing_zeros_only { 3 } else { whole };
                assert_eq!((found.as_slice(), skipped), (&THREE[..expected], 0), "cut at {cut}");
            }
        }
    }

    #[test]
    fn damage_in_the_middle_costs_the_frames_it_hits_and_is_reported() {
        let (bytes, starts) = segment(&THREE);
        for at in starts[0]..starts[1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let (found, skipped, torn) = payloads(&damaged);
            assert_eq!((found.as_slice(), skipped, torn), (&THREE[1..], (starts[1] - starts[0]) as u64, 0), "at {at}");
        }
    }

    #[test]
    fn a_page_that_was_never_written_is_a_hole() {
        let (mut bytes, starts) = segment(&THREE);
        bytes[starts[1]..starts[2]].fill(0);
        assert_eq!(payloads(&bytes), (vec![THREE[0], THREE[2]], (starts[2] - starts[1]) as u64, 0));
    }

    #[test]
    fn a_frame_of_another_segment_does_not_count() {
        let (bytes, starts) = segment(&THREE);
        let mut other = header(1, 2, 4).to_vec();
        other.extend_from_slice(&bytes[starts[0]..]);
        assert!(scan(&other).payloads.is_empty());
    }

    #[test]
    fn a_segment_without_a_header() {
        assert_eq!(scan(&[0; 500]), Scan::default());
        assert_eq!(scan(&[]), Scan::default());
        assert!(scan(b"something else entirely, and long enough").bad_header);
    }
}
