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

/// A list as it is packed: how many entries there are, then each. It is written in one pass.
pub struct List<'o> {
    out: &'o mut String,
    begins: usize,
    entries: u64,
}

impl<'o> List<'o> {
    /// A list at the end of `out`.
    pub fn new(out: &'o mut String) -> List<'o> {
        List { begins: out.len(), out, entries: 0 }
    }

    /// A name.
    pub fn name(&mut self, name: &str) {
        self.entries += 1;
        line(self.out, name);
    }

    /// A header, its value in two parts.
    pub fn header(&mut self, name: &str, scheme: &str, value: &str) {
        self.name(name);
        self.out.push_str(scheme);
        line(self.out, value);
    }

    /// Puts the count before the entries.
    pub fn end(self) {
        let (mut count, at) = (itoa::Buffer::new(), self.begins);
        self.out.insert(at, '\n');
        self.out.insert_str(at, count.format(self.entries));
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
    fn a_list_says_how_long_it_is() {
        let mut out = String::from("before\n");
        let mut list = List::new(&mut out);
        (0..11).for_each(|_| list.name("n"));
        list.header("authorization", "Bearer ", "k");
        list.end();
        List::new(&mut out).end();
        assert_eq!(out, format!("before\n12\n{}authorization\nBearer k\n0\n", "n\n".repeat(11)));
    }
}
