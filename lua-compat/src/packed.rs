//! Results as text that Lua takes apart in one pass: a line for each field, then whatever is not text.
//!
//! The first line names the step. Fields hold no line feed: names, numbers and headers cannot, and what could is refused.

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

impl Refused {
    /// Appends the packed form.
    pub fn pack(&self, out: &mut String) {
        line(out, "refuse");
        number(out, self.status.into());
        number(out, self.headers.len() as u64);
        put_headers(&self.headers, out);
        out.push_str(&self.body);
    }
}

/// Lines that belong together: how many bytes they are, then the lines. Whoever has seen the same block before need not take it apart.
pub struct Block<'o> {
    out: &'o mut String,
    begins: usize,
}

impl<'o> Block<'o> {
    /// A block at the end of `out`.
    pub fn new(out: &'o mut String) -> Block<'o> {
        Block { begins: out.len(), out }
    }

    /// A text on a line.
    pub fn line(&mut self, text: &str) {
        line(self.out, text);
    }

    /// A number on a line.
    pub fn number(&mut self, value: u64) {
        number(self.out, value);
    }

    /// Puts the length before the lines.
    pub fn end(self) {
        let length = self.out.len() - self.begins;
        put_before(self.out, self.begins, length as u64);
    }
}

fn put_before(out: &mut String, at: usize, count: u64) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(count);
    let mut text = [b'\n'; 21];
    text[..digits.len()].copy_from_slice(digits.as_bytes());
    // What `itoa` writes is ASCII.
    out.insert_str(at, std::str::from_utf8(&text[..=digits.len()]).unwrap_or_default());
}

/// Headers as they are packed: how many there are, then name and value of each. They are written in one pass.
pub struct Headers<'o> {
    out: &'o mut String,
    begins: usize,
    entries: u64,
}

impl<'o> Headers<'o> {
    /// Headers at the end of `out`.
    pub fn new(out: &'o mut String) -> Headers<'o> {
        Headers { begins: out.len(), out, entries: 0 }
    }

    /// A header, its value in two parts.
    pub fn header(&mut self, name: &str, scheme: &str, value: &str) {
        self.entries += 1;
        line(self.out, name);
        self.out.push_str(scheme);
        line(self.out, value);
    }

    /// Puts the count before them.
    pub fn end(self) {
        put_before(self.out, self.begins, self.entries);
    }
}

/// A text on a line.
pub fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// A number on a line.
pub fn number(out: &mut String, number: u64) {
    line(out, itoa::Buffer::new().format(number));
}

/// A flag on a line.
pub fn flag(out: &mut String, is: bool) {
    line(out, if is { "true" } else { "false" });
}

/// Names and values, each on a line of its own.
pub fn put_headers(headers: &[(String, String)], out: &mut String) {
    for (name, value) in headers {
        line(out, name);
        line(out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_is_announced() {
        let mut out = String::from("before\n");
        let mut block = Block::new(&mut out);
        block.line("provider");
        block.number(80);
        block.end();
        Block::new(&mut out).end();
        let mut headers = Headers::new(&mut out);
        (0..10).for_each(|_| headers.header("n", "", "v"));
        headers.header("authorization", "Bearer ", "k");
        headers.end();
        Headers::new(&mut out).end();
        assert_eq!(out, format!("before\n12\nprovider\n80\n0\n11\n{}authorization\nBearer k\n0\n", "n\nv\n".repeat(10)));
    }
}
