use super::*;

const WATCH: Watch = Watch {
    endpoint: Endpoint::ChatCompletions,
    kind: Kind::OpenAi,
    family: Family { encoding: crate::engine::tokens::Encoding::O200k, per_mille: 1000 },
    strip_usage: true,
};

#[test]
fn smoke() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}],\"usage\":null}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}\n\ndata: [DONE]\n\n";
    let mut meter = StreamMeter::new(WATCH);
    let mut out = Vec::new();
    meter.feed(Bytes::from_static(stream.as_bytes()), &mut out);
    let (tally, _) = meter.finish();
    assert!(tally.reported && tally.ended);
    assert!(!out.concat().windows(6).any(|w| w == b"prompt"));
}
