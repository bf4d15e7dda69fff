//! Walks the events of a YAML text: refuses what settings may not hold, and notes where each key and value
//! stands. Reads no value.
use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

use super::Place;

/// Deepest nesting that is read; the schema needs four.
const MAX_DEPTH: usize = 8;

/// The place of what stands nowhere.
pub(super) const START: Place = Place { line: 1, column: 1 };

/// What is wrong, where, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) place: Place,
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(place: Place, what: impl Into<String>) -> Self {
        Self { place, what: what.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Where things stand. A path is the keys from the top; an element of a sequence is its index.
#[derive(Debug, Default)]
pub(super) struct Places {
    keys: Vec<(Vec<String>, Place)>,
    values: BTreeMap<Vec<String>, Place>,
}

impl Places {
    /// Every key of every mapping, in the file's order; the path's last element is the key.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&[String], Place)> {
        self.keys.iter().map(|(path, place)| (path.as_slice(), *place))
    }

    /// Where the value at a path stands; the file's start when there is none.
    pub(super) fn value(&self, path: &[&str]) -> Place {
        let path: Vec<String> = path.iter().map(|&step| step.to_owned()).collect();
        self.values.get(&path).copied().unwrap_or(START)
    }

    /// Where the key at a path stands; the file's start when there is none.
    pub(super) fn key(&self, path: &[&str]) -> Place {
        let found = self.keys().find(|(known, _)| *known == path);
        found.map_or(START, |(_, place)| place)
    }

    /// Whether the file holds one value at least.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Walks the whole text.
pub(super) fn places(text: &str) -> Result<Places, Fault> {
    let mut walk = Walk::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| malformed(&error))?;
        walk.event(&event, place(span.start))?;
    }
    Ok(walk.places)
}

fn malformed(error: &ScanError) -> Fault {
    Fault::new(place(*error.marker()), format!("malformed YAML: {}", error.info()))
}

fn place(marker: Marker) -> Place {
    Place { line: marker.line(), column: marker.col() + 1 }
}

/// A collection that is open.
enum Open {
    /// A mapping, its keys so far, and whether the next node is the value of the last of them.
    Mapping { seen: BTreeSet<String>, at_value: bool },
    /// A sequence and the number of its elements so far.
    Sequence { elements: usize },
}

#[derive(Default)]
struct Walk {
    places: Places,
    path: Vec<String>,
    open: Vec<Open>,
    documents: usize,
}

impl Walk {
    fn event(&mut self, event: &Event<'_>, at: Place) -> Result<(), Fault> {
        match event {
            Event::DocumentStart(_) => self.document(at),
            Event::Alias(_) => Err(Fault::new(at, "aliases (*name) are refused").hint("write the value out")),
            Event::Scalar(text, style, anchor, tag) => {
                plain(*anchor, tag.is_some(), at)?;
                self.scalar(text, *style, at)
            }
            Event::MappingStart(anchor, tag) => {
                plain(*anchor, tag.is_some(), at)?;
                self.start(Open::Mapping { seen: BTreeSet::new(), at_value: false }, at)
            }
            Event::SequenceStart(anchor, tag) => {
                plain(*anchor, tag.is_some(), at)?;
                self.start(Open::Sequence { elements: 0 }, at)
            }
            Event::MappingEnd | Event::SequenceEnd => {
                self.open.pop();
                self.value_ends();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn document(&mut self, at: Place) -> Result<(), Fault> {
        self.documents += 1;
        if self.documents > 1 {
            return Err(
                Fault::new(at, "a second document (---) is refused").hint("keep one mapping in the file")
            );
        }
        Ok(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, at: Place) -> Result<(), Fault> {
        if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
            return Err(Fault::new(at, "block scalars (| and >) are refused").hint("write it on one line"));
        }
        if matches!(self.open.last(), Some(Open::Mapping { at_value: false, .. })) {
            return self.key(text, at);
        }
        self.value_starts(at);
        self.value_ends();
        Ok(())
    }

    fn key(&mut self, text: &str, at: Place) -> Result<(), Fault> {
        if let Some(Open::Mapping { seen, at_value }) = self.open.last_mut() {
            if !seen.insert(text.to_owned()) {
                return Err(Fault::new(at, format!("{text:?} is given twice")).hint("keep one of them"));
            }
            *at_value = true;
        }
        self.path.push(text.to_owned());
        self.places.keys.push((self.path.clone(), at));
        Ok(())
    }

    fn start(&mut self, collection: Open, at: Place) -> Result<(), Fault> {
        if matches!(self.open.last(), Some(Open::Mapping { at_value: false, .. })) {
            return Err(Fault::new(at, "a key must be one word"));
        }
        if self.open.len() == MAX_DEPTH {
            return Err(Fault::new(at, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.value_starts(at);
        self.open.push(collection);
        Ok(())
    }

    /// Notes a value's place; an element of a sequence gets its index as the path's last step.
    fn value_starts(&mut self, at: Place) {
        if let Some(Open::Sequence { elements }) = self.open.last_mut() {
            self.path.push(elements.to_string());
            *elements += 1;
        }
        self.places.values.insert(self.path.clone(), at);
    }

    fn value_ends(&mut self) {
        self.path.pop();
        if let Some(Open::Mapping { at_value, .. }) = self.open.last_mut() {
            *at_value = false;
        }
    }
}

/// Refuses anchors and tags.
fn plain(anchor: usize, tagged: bool, at: Place) -> Result<(), Fault> {
    if anchor != 0 {
        return Err(
            Fault::new(at, "anchors (&name) are refused").hint("write the value out where it is needed")
        );
    }
    if tagged {
        return Err(Fault::new(at, "tags (!name) are refused").hint("write the value alone"));
    }
    Ok(())
}
