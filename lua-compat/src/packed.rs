//! Steps as C has them: numbers in a struct, texts behind one another in a buffer.

/// Texts of a step at most.
pub const TEXTS_MAX: usize = 6;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask the node: the body of `POST /plugin/v1/admit`.
    Admit(String),
    /// Send the request where the request's attempt says.
    Try,
    /// Answer with this.
    Refuse(Refused),
    /// Pass the upstream's answer on as it came.
    Pass,
}

/// A refusal as the client gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// The body, in the dialect of the path.
    pub body: String,
}

/// The answer is passed on as it comes.
pub const PASS: u32 = 0;
/// The node is to be asked. The text: the body for POST /plugin/v1/admit.
pub const ADMIT: u32 = 1;
/// An attempt is to be sent. The texts: the request's id, which is to be set as x-request-id; path and query; headers to remove; other
/// headers to set; the name and the value of the header that carries the key (empty: there is none).
pub const TRY: u32 = 2;
/// The request is to be answered so. The texts: headers; the body.
pub const REFUSE: u32 = 3;
/// An answer's head. The texts: headers to remove; headers to set.
pub const HEAD: u32 = 4;

/// Of an attempt: the caller's own key pays.
pub const OWN_KEY: u32 = 1;
/// Of an attempt: it is not the first choice.
pub const FALLBACK: u32 = 2;
/// Of an attempt: its body is not the one that came, or of another attempt: see weir_request_body.
pub const EDITED: u32 = 4;
/// Of an answer's head: bytes may be taken out, so that its length is unknown.
pub const STRIPS: u32 = 8;

/// What to do. Texts are UTF-8 and stand behind one another in the buffer. Headers to remove are lines, headers to set are two lines each.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// WEIR_PASS, WEIR_ADMIT, WEIR_TRY, WEIR_REFUSE or WEIR_HEAD, which say what the texts are.
    pub kind: u32,
    /// WEIR_OWN_KEY, WEIR_FALLBACK, WEIR_EDITED and WEIR_STRIPS, added.
    pub flags: u32,
    /// Of a refusal.
    pub status: u32,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Bytes of the body of an attempt.
    pub body_length: usize,
    /// Where to send an attempt: see weir_request_target. What it says of a number, it always says, but for 0: that is a target made for
    /// one request, of which nothing is to be kept.
    pub target: u64,
    /// Bytes of each text.
    pub lengths: [u32; TEXTS_MAX],
}

/// Texts of a target.
pub const TARGET_TEXTS: usize = 5;

/// Where an attempt goes. The texts: provider, model, scheme, authority, host.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// The port.
    pub port: u32,
    /// Milliseconds to connect.
    pub connect_ms: u32,
    /// Milliseconds to the first event.
    pub first_event_ms: u32,
    /// Milliseconds between events.
    pub between_events_ms: u32,
    /// Bytes of each text.
    pub lengths: [u32; TARGET_TEXTS],
}

/// Puts a step together.
pub struct Packer<'o> {
    /// The numbers.
    pub step: Packed,
    texts: usize,
    out: &'o mut String,
}

impl<'o> Packer<'o> {
    /// A step of a kind, its texts at the end of `out`.
    pub fn new(kind: u32, out: &'o mut String) -> Packer<'o> {
        Packer { step: Packed { kind, ..Packed::default() }, texts: 0, out }
    }

    /// The next text, written by `write`. At most [`TEXTS_MAX`].
    pub fn text(&mut self, write: impl FnOnce(&mut String)) {
        let from = self.out.len();
        write(self.out);
        self.step.lengths[self.texts] = u32::try_from(self.out.len() - from).unwrap_or(u32::MAX);
        self.texts += 1;
    }
}

impl Refused {
    /// Appends the texts.
    pub fn pack(&self, out: &mut String) -> Packed {
        let mut packer = Packer::new(REFUSE, out);
        packer.step.status = self.status.into();
        packer.text(|out| self.headers.iter().for_each(|(name, value)| header(out, name, value)));
        packer.text(|out| out.push_str(&self.body));
        packer.step
    }
}

/// A text on a line. A line feed in it, which nothing that comes here has, becomes a space: it must not begin another.
pub fn line(out: &mut String, text: &str) {
    match memchr::memchr(b'\n', text.as_bytes()) {
        None => out.push_str(text),
        Some(_) => out.extend(text.chars().map(|char| if char == '\n' { ' ' } else { char })),
    }
    out.push('\n');
}

/// A header on two lines.
pub fn header(out: &mut String, name: &str, value: &str) {
    line(out, name);
    line(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_behind_one_another() {
        let headers = vec![("a".into(), "1\n2".into()), ("b".into(), String::new())];
        let refused = Refused { status: 402, headers, body: "no\n".into() };
        let mut out = String::from("before");
        let packed = refused.pack(&mut out);
        assert_eq!((packed.kind, packed.status, packed.lengths), (REFUSE, 402, [9, 3, 0, 0, 0, 0]));
        assert_eq!(out, "beforea\n1 2\nb\n\nno\n");
    }
}
