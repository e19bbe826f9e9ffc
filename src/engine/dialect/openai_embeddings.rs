//! `/v1/embeddings` and `/v1/moderations`: whole answers without generated text.

use super::reading::Reading;
use super::scan::Scan;

/// A whole answer.
pub fn answer(data: &[u8], reading: &mut Reading) -> bool {
    let mut scan = Scan::new(data);
    scan.object(|key, scan| match key {
        b"usage" => reading.usage_here(scan),
        b"model" => reading.model_here(scan),
        b"error" => reading.error_here(scan),
        _ => {}
    });
    scan.is_whole()
}
