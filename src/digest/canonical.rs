//! The canonical bytes of plain data, written as the data is walked: the same as those of its JSON with tables
//! sorted by name, without that JSON in between.

use std::borrow::Cow;
use std::fmt::Display;

use serde::Serialize;
use serde::ser::{self, Impossible};
use serde_json::{Number, Value};
use smallvec::SmallVec;

use super::{encode, encode_text};

/// Entries of a table that need no memory of their own.
const FEW: usize = 12;

/// Writes the canonical bytes of a value.
pub(super) struct Canonical<'a>(pub &'a mut Vec<u8>);

/// Data that JSON cannot hold: our own mistake.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoJson(String);

impl ser::Error for NoJson {
    fn custom<T: Display>(message: T) -> Self {
        NoJson(message.to_string())
    }
}

impl Canonical<'_> {
    fn text(self, tag: &[u8], text: &str) {
        self.0.extend_from_slice(tag);
        encode_text(text, &mut |bytes| self.0.extend_from_slice(bytes));
    }

    fn float(self, number: f64) {
        let value = Number::from_f64(number).map_or(Value::Null, Value::Number);
        encode(&value, &mut |bytes| self.0.extend_from_slice(bytes));
    }
}

macro_rules! integers {
    ($($method:ident $t:ty),*) => { $(
        fn $method(self, number: $t) -> Result<(), NoJson> {
            let mut digits = itoa::Buffer::new();
            self.text(b"i", digits.format(number));
            Ok(())
        }
    )* };
}

impl<'a> ser::Serializer for Canonical<'a> {
    type Ok = ();
    type Error = NoJson;
    type SerializeSeq = List<'a>;
    type SerializeTuple = List<'a>;
    type SerializeTupleStruct = List<'a>;
    type SerializeTupleVariant = Impossible<(), NoJson>;
    type SerializeMap = Table<'a>;
    type SerializeStruct = Table<'a>;
    type SerializeStructVariant = Impossible<(), NoJson>;

    integers!(
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64
    );

    fn serialize_bool(self, flag: bool) -> Result<(), NoJson> {
        self.0.extend_from_slice(if flag { b"t" } else { b"f" });
        Ok(())
    }

    fn serialize_f32(self, number: f32) -> Result<(), NoJson> {
        self.float(f64::from(number));
        Ok(())
    }

    fn serialize_f64(self, number: f64) -> Result<(), NoJson> {
        self.float(number);
        Ok(())
    }

    fn serialize_char(self, c: char) -> Result<(), NoJson> {
        self.text(b"s", c.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn serialize_str(self, text: &str) -> Result<(), NoJson> {
        self.text(b"s", text);
        Ok(())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), NoJson> {
        bytes.serialize(self)
    }

    fn serialize_none(self) -> Result<(), NoJson> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NoJson> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), NoJson> {
        self.0.extend_from_slice(b"z");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), NoJson> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), NoJson> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), NoJson> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), NoJson> {
        let mut table = Table::new(self.0);
        table.entry(variant.to_owned(), value)?;
        table.finish();
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List<'a>, NoJson> {
        Ok(List::new(self.0))
    }

    fn serialize_tuple(self, _: usize) -> Result<List<'a>, NoJson> {
        Ok(List::new(self.0))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List<'a>, NoJson> {
        Ok(List::new(self.0))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, NoJson> {
        Err(ser::Error::custom(format!("`{name}` has variants with several values")))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Table<'a>, NoJson> {
        Ok(Table::new(self.0))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Table<'a>, NoJson> {
        Ok(Table::new(self.0))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, NoJson> {
        Err(ser::Error::custom(format!("`{name}` has variants with fields")))
    }
}

/// A list under way: its length stands before its items, and is known behind them.
pub(super) struct List<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    length: u64,
}

impl<'a> List<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'a');
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        List { out, start, length: 0 }
    }

    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NoJson> {
        self.length += 1;
        value.serialize(Canonical(self.out))
    }

    fn finish(self) {
        self.out[self.start..self.start + 8].copy_from_slice(&self.length.to_le_bytes());
    }
}

macro_rules! lists {
    ($($of:ident $method:ident),*) => { $(impl ser::$of for List<'_> {
        type Ok = ();
        type Error = NoJson;

        fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NoJson> {
            self.item(value)
        }

        fn end(self) -> Result<(), NoJson> {
            self.finish();
            Ok(())
        }
    })* };
}

lists!(
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field
);

/// A table under way: entries are written as they come, and put in order at the end.
pub(super) struct Table<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    /// The name of each entry, and where its bytes end.
    entries: SmallVec<[(Cow<'static, str>, usize); FEW]>,
}

impl<'a> Table<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'm');
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        Table { out, start, entries: SmallVec::new() }
    }

    fn entry<T: Serialize + ?Sized>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        value: &T,
    ) -> Result<(), NoJson> {
        let name = name.into();
        encode_text(&name, &mut |bytes| self.out.extend_from_slice(bytes));
        value.serialize(Canonical(self.out))?;
        self.entries.push((name, self.out.len()));
        Ok(())
    }

    fn finish(self) {
        let Table { out, start, entries } = self;
        let from = start + 8;
        out[start..from].copy_from_slice(&(entries.len() as u64).to_le_bytes());
        if entries.is_sorted_by(|(a, _), (b, _)| a <= b) {
            return;
        }
        let starts = std::iter::once(from).chain(entries.iter().map(|(_, end)| *end));
        let mut order: SmallVec<[_; FEW]> = starts.zip(&entries).collect();
        order.sort_by(|(_, (a, _)), (_, (b, _))| a.cmp(b));
        // Copied behind itself in order, and from there to its place.
        let to = out.len();
        for (start, (_, end)) in order {
            out.extend_from_within(start..*end);
        }
        out.copy_within(to.., from);
        out.truncate(to);
    }
}

impl ser::SerializeStruct for Table<'_> {
    type Ok = ();
    type Error = NoJson;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), NoJson> {
        self.entry(name, value)
    }

    fn end(self) -> Result<(), NoJson> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeMap for Table<'_> {
    type Ok = ();
    type Error = NoJson;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), NoJson> {
        unreachable!("BUG: entries are written whole")
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), NoJson> {
        unreachable!("BUG: entries are written whole")
    }

    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        name: &K,
        value: &V,
    ) -> Result<(), NoJson> {
        // Whatever JSON takes as a name: texts, variants, numbers.
        let name = match serde_json::to_value(name) {
            Ok(Value::String(name)) => name,
            Ok(other) => other.to_string(),
            Err(error) => return Err(ser::Error::custom(error)),
        };
        self.entry(name, value)
    }

    fn end(self) -> Result<(), NoJson> {
        self.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Plain,
        Wrapped(String),
    }

    #[derive(Serialize)]
    struct Mixed {
        zulu: u32,
        alpha: Vec<Kind>,
        none: Option<bool>,
        numbers: (i64, f64, f32, f64),
        nested: BTreeMap<u8, Inner>,
        unit: (),
        letter: char,
        any: Value,
    }

    #[derive(Serialize)]
    struct Inner {
        b: bool,
        a: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        absent: Option<u8>,
    }

    #[test]
    fn walking_gives_the_bytes_of_the_json() {
        let inner = |b| Inner { b, a: "ä\n", absent: None };
        let data = Mixed {
            zulu: 7,
            alpha: vec![Kind::Wrapped("x".into()), Kind::Plain],
            none: None,
            numbers: (-3, 0.1, 0.25, f64::NAN),
            nested: [(10, inner(true)), (9, inner(false))].into(),
            unit: (),
            letter: 'ß',
            any: json!({"z": 1, "y": [1.5, null, {"k": -1}], "a": "b"}),
        };
        let mut walked = Vec::new();
        data.serialize(Canonical(&mut walked)).unwrap();
        let mut expected = Vec::new();
        let json = serde_json::to_value(&data).unwrap();
        encode(&json, &mut |bytes| expected.extend_from_slice(bytes));
        assert_eq!(walked, expected);
    }
}
