//! A small tree over a YAML text that keeps every scalar as its text and every node's line.

use crate::config::problem::Problem;
use saphyr_parser::{Event, Parser, ScalarStyle};
use std::collections::HashMap;

/// A value and the line it begins at, from 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub line: usize,
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A scalar's text, and whether it was written without quotes.
    Scalar(String, bool),
    List(Vec<Node>),
    /// In the file's order; the key's line is its value's.
    Map(Vec<(String, Node)>),
}

/// Nested deeper than this is no configuration; the bound keeps recursion over the tree small.
const MAX_DEPTH: usize = 64;
/// Nodes in all, those repeated by aliases included: a few aliases of aliases would otherwise fill the memory.
const MAX_NODES: usize = 1_000_000;

/// The first document of `text`.
pub(super) fn parse(file: &str, text: &str) -> Result<Node, Problem> {
    let problem = |line: usize, what: &str| Problem { file: file.to_owned(), line, key: String::new(), what: what.to_owned() };
    let mut tree = Builder::default();
    for item in Parser::new_from_str(text) {
        let (event, span) = item.map_err(|error| problem(error.marker().line(), &format!("not YAML: {}", error.info())))?;
        let line = span.start.line();
        if tree.take(event, line).map_err(|what| problem(line, what))? {
            break;
        }
    }
    tree.root.ok_or_else(|| problem(1, "nothing in it"))
}

/// Containers that are still open, innermost last.
#[derive(Default)]
struct Builder {
    open: Vec<(usize, Node, Option<String>)>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder {
    /// `true`: the document is complete.
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<bool, &'static str> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = Value::Scalar(text.into_owned(), style == ScalarStyle::Plain);
                self.put(Node { line, value }, anchor, 1)?;
            }
            Event::SequenceStart(anchor, _) => self.begin(anchor, Node { line, value: Value::List(Vec::new()) })?,
            Event::MappingStart(anchor, _) => self.begin(anchor, Node { line, value: Value::Map(Vec::new()) })?,
            Event::SequenceEnd | Event::MappingEnd => {
                // Every end has its start: the parser sees to it.
                if let Some((anchor, node, _)) = self.open.pop() {
                    let size = if anchor == 0 { 1 } else { node.size() };
                    self.put(node, anchor, size)?;
                }
            }
            Event::Alias(anchor) => {
                let (node, size) = self.anchors.get(&anchor).cloned().ok_or("an alias without its anchor")?;
                self.put(node, 0, size)?;
            }
            Event::DocumentEnd => return Ok(true),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
        Ok(false)
    }

    fn begin(&mut self, anchor: usize, node: Node) -> Result<(), &'static str> {
        if self.open.len() >= MAX_DEPTH {
            return Err("nested too deeply");
        }
        self.open.push((anchor, node, None));
        Ok(())
    }

    fn put(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), &'static str> {
        self.nodes = self.nodes.saturating_add(size);
        if self.nodes > MAX_NODES {
            return Err("too much in it");
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some((_, Node { value: Value::List(items), .. }, _)) => items.push(node),
            Some((_, Node { value: Value::Map(entries), .. }, key)) => match (key.take(), node.value) {
                (None, Value::Scalar(text, _)) => *key = Some(text),
                (None, _) => return Err("a key that is no text"),
                // A merge key gives what the map does not say itself.
                (Some(merge), Value::Map(more)) if merge == "<<" => {
                    for (name, value) in more {
                        if !entries.iter().any(|(own, _)| *own == name) {
                            entries.push((name, value));
                        }
                    }
                }
                (Some(name), value) => {
                    entries.retain(|(own, _)| *own != name);
                    entries.push((name, Node { line: node.line, value }));
                }
            },
            Some((_, Node { value: Value::Scalar(..), .. }, _)) => {}
        }
        Ok(())
    }
}

impl Node {
    /// The entries of a map; none of anything else.
    pub fn entries(&self) -> &[(String, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; none of anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The value of a map's key, unless it is null.
    pub fn at(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, node)| node).filter(|node| !node.is_null())
    }

    /// A scalar's text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text, _) => Some(text),
            _ => None,
        }
    }

    fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(text, true) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    fn size(&self) -> usize {
        let inside: usize = match &self.value {
            Value::Scalar(..) => 0,
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.size()).sum(),
        };
        inside.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_keep_their_text_and_lines() {
        let root = parse("f", "base: &b\n  cost: 1.50e-07\n  key: 'null'\nuse:\n  <<: *b\n  key: ~\nlist: [*b, x]\n").unwrap();
        let cost = root.at("base").and_then(|base| base.at("cost")).unwrap();
        assert_eq!((cost.text(), cost.line), (Some("1.50e-07"), 2));
        assert_eq!(root.at("base").and_then(|base| base.at("key")).and_then(Node::text), Some("null"));
        assert_eq!(root.at("use").and_then(|merged| merged.at("cost")).and_then(Node::text), Some("1.50e-07"));
        assert_eq!(root.at("use").and_then(|merged| merged.at("key")), None);
        assert_eq!(root.at("list").map(|list| list.items().len()), Some(2));
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let check = |text: &str, reason: &str| {
            let problem = parse("f", text).unwrap_err();
            assert!(problem.to_string().contains(reason), "{problem}");
        };
        check("a: [1, 2\nb: 3", "not YAML");
        check("", "nothing in it");
        check(&"[".repeat(100), "nested too deeply");
        check("? [a]\n: 1\n", "a key that is no text");
        let bomb: String =
            (1..9).map(|level| format!("l{level}: &l{level} [{}]\n", vec![format!("*l{}", level - 1); 20].join(","))).collect();
        check(&format!("l0: &l0 [x]\n{bomb}"), "too much in it");
    }
}
