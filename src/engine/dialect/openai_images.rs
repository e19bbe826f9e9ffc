//! `/v1/images/generations`: images in `data[]`, or streamed as `image_generation.completed`, usage behind the image.

use super::reading::Reading;
use super::scan::Scan;

/// One event's data.
pub fn event(name: &[u8], data: &[u8], reading: &mut Reading) -> bool {
    if data == b"[DONE]" {
        reading.ended = true;
        return true;
    }
    let mut scan = Scan::new(data);
    let mut kind = name;
    scan.object(|key, scan| match key {
        b"type" => kind = scan.string().unwrap_or(kind),
        b"usage" => reading.usage_here(scan),
        b"model" => reading.model_here(scan),
        b"error" => reading.error_here(scan),
        _ => {}
    });
    completed(kind, reading);
    scan.is_whole()
}

/// What an event of this type says by itself.
pub fn completed(kind: &[u8], reading: &mut Reading) {
    if matches!(kind, b"image_generation.completed" | b"image_edit.completed") {
        reading.images += 1;
        reading.ended = true;
    }
}

/// A whole answer.
pub fn answer(data: &[u8], reading: &mut Reading) -> bool {
    let mut scan = Scan::new(data);
    scan.object(|key, scan| match key {
        b"data" => scan.array(|scan| {
            reading.images += 1;
            scan.raw();
        }),
        b"usage" => reading.usage_here(scan),
        b"model" => reading.model_here(scan),
        b"service_tier" => reading.service_tier_here(scan),
        b"error" => reading.error_here(scan),
        _ => {}
    });
    scan.is_whole()
}
