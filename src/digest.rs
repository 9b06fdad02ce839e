//! Names of things: the [`Digest`] of bytes and the [`Key`] of a recipe. Knows nothing of files or stages.
//!
//! A recipe is a table; its hash is the key and its difference from another recipe is the
//! explanation of a miss. One walk over the same table feeds both, so they cannot disagree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use canonical::Canonical;

mod canonical;
mod fields;

pub use fields::Fields;

/// Version of the canonical encoding. Raised when the same recipe would hash to other bytes.
const ENCODING_VERSION: u32 = 1;

/// SHA-256 of some content: 32 bytes, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// SHA-256 of a recipe (of inputs, where [`Digest`] is of content): 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

/// A text that is not 64 lower-case hex digits.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{0}` is not a digest (64 lower-case hex digits)")]
pub struct BadDigest(String);

/// The value of every byte as a hex digit, 255 of those that are none.
const HEX_VALUES: [u8; 256] = {
    let mut values = [255; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value as usize] as usize] = value;
        value += 1;
    }
    values
};

fn parse_hex(text: &[u8]) -> Option<[u8; 32]> {
    if text.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    let mut bad = 0;
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (HEX_VALUES[usize::from(pair[0])], HEX_VALUES[usize::from(pair[1])]);
        bad |= high | low;
        *byte = high << 4 | (low & 15);
    }
    (bad < 16).then_some(out)
}

macro_rules! hash_type {
    ($name:ident) => {
        impl $name {
            /// The 32 bytes.
            pub fn bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// From 64 lower-case hex digits.
            pub fn from_hex(digits: &[u8]) -> Option<Self> {
                parse_hex(digits).map($name)
            }

            /// From its 32 bytes.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                $name(bytes)
            }

            /// Its 64 hex digits, written into `digits`.
            pub fn write_hex<'a>(&self, digits: &'a mut [u8; 64]) -> &'a str {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
                    pair[0] = HEX[usize::from(byte >> 4)];
                    pair[1] = HEX[usize::from(byte & 15)];
                }
                std::str::from_utf8(digits).expect("BUG: hex is ASCII")
            }

            /// The first 12 hex digits: enough for people, never used to look things up.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.write_hex(&mut [0; 64]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = BadDigest;

            fn from_str(text: &str) -> Result<Self, BadDigest> {
                let bad = || BadDigest(text.chars().take(80).collect());
                Self::from_hex(text.as_bytes()).ok_or_else(bad)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut digits = [0; 64];
                serializer.serialize_str(self.write_hex(&mut digits))
            }
        }

        // A digest read from disk becomes a path, so it is checked on the way in.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // Of the text as it stands: there are several in each row of a table.
                struct Digits;
                impl serde::de::Visitor<'_> for Digits {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("64 lower-case hex digits")
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Digits)
            }
        }
    };
}

hash_type!(Digest);
hash_type!(Key);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of a value's JSON, with tables sorted by name.
    pub fn of_json(value: &impl Serialize) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        value.serialize(Canonical(&mut bytes)).expect("BUG: plain data always becomes JSON");
        Digest::of(&bytes)
    }
}

/// Hashes content that arrives in pieces.
#[derive(Clone, Default)]
pub struct DigestStream(Sha256);

impl DigestStream {
    /// Adds the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces together.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// What can stand in a recipe. `None` is absent, which is not the same as zero or empty.
pub trait Field {
    /// The value to hash and to show, or `None` where the setting is absent.
    fn into_field(self) -> Option<Value>;
}

macro_rules! plain_fields {
    ($($t:ty),*) => { $(impl Field for $t {
        fn into_field(self) -> Option<Value> { Some(Value::from(self)) }
    })* };
}

plain_fields!(bool, u32, u64, i64, usize, &str, String, Value);

impl Field for f64 {
    fn into_field(self) -> Option<Value> {
        // The manifest refuses what is not finite, so this is never a user's doing.
        let number = serde_json::Number::from_f64(self);
        Some(Value::Number(number.expect("BUG: a number that is not finite reached a key")))
    }
}

impl Field for Digest {
    fn into_field(self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl<T: Field> Field for Option<T> {
    fn into_field(self) -> Option<Value> {
        self.and_then(Field::into_field)
    }
}

impl<T: Field> Field for Vec<T> {
    fn into_field(self) -> Option<Value> {
        Some(Value::Array(self.into_iter().filter_map(Field::into_field).collect()))
    }
}

/// Which draw of an otherwise equal recipe: five draws at temperature 1 stay five draws.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Replica {
    /// The repetition, from 0.
    pub epoch: u32,
    /// How many equal rows come before this one in the fixture.
    pub occurrence: u32,
}

/// Everything a result depends on. Execution settings (concurrency, time-outs, secrets, paths) have no
/// way in: stages keep them in types that never meet a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// `request`, `sample` or the stage's kind.
    pub kind: Cow<'static, str>,
    /// Version of the kind: raised when the meaning of its fields or its code changes.
    pub rev: u32,
    /// Semantic settings by name.
    pub fields: Fields,
    /// What it reads, by port, named by content.
    pub inputs: BTreeMap<Cow<'static, str>, Digest>,
    /// Which draw this is.
    pub replica: Replica,
}

impl Recipe {
    /// An empty recipe of a kind.
    pub fn new(kind: impl Into<Cow<'static, str>>, rev: u32) -> Self {
        Recipe {
            kind: kind.into(),
            rev,
            fields: Fields::default(),
            inputs: BTreeMap::new(),
            replica: Replica::default(),
        }
    }

    /// Adds a semantic setting; an absent one leaves no trace.
    pub fn field(mut self, name: &str, value: impl Field) -> Self {
        if let Some(value) = value.into_field() {
            let before = self.fields.insert(name, value);
            assert!(before.is_none(), "BUG: field `{name}` stands twice in a recipe");
        }
        self
    }

    /// Adds an input by its content.
    pub fn input(mut self, port: impl Into<Cow<'static, str>>, digest: Digest) -> Self {
        let port = port.into();
        assert!(!self.inputs.contains_key(&port), "BUG: input `{port}` stands twice in a recipe");
        self.inputs.insert(port, digest);
        self
    }

    /// Sets the replica.
    pub fn replica(mut self, replica: Replica) -> Self {
        self.replica = replica;
        self
    }

    /// `SHA-256("forge-key" ‖ version ‖ kind ‖ canonical(recipe))`.
    pub fn key(&self) -> Key {
        let mut bytes = Vec::with_capacity(1024);
        let mut sink = |more: &[u8]| bytes.extend_from_slice(more);
        sink(b"forge-key");
        sink(&ENCODING_VERSION.to_le_bytes());
        encode_text(&self.kind, &mut sink);
        sink(&self.rev.to_le_bytes());
        sink(&(self.fields.len() as u64).to_le_bytes());
        for (name, value) in self.fields.iter() {
            encode_text(name, &mut sink);
            encode(value, &mut sink);
        }
        sink(&(self.inputs.len() as u64).to_le_bytes());
        for (port, digest) in &self.inputs {
            encode_text(port, &mut sink);
            sink(digest.bytes());
        }
        sink(&self.replica.epoch.to_le_bytes());
        sink(&self.replica.occurrence.to_le_bytes());
        Key(Sha256::digest(&bytes).into())
    }

    /// Its JSON, added to `out`: the same as its serializer gives, with fields that are written once for all who share
    /// them.
    pub fn write(&self, out: &mut Vec<u8>) {
        fn json(value: &impl Serialize, out: &mut Vec<u8>) {
            serde_json::to_writer(out, value).expect("BUG: plain data always becomes JSON");
        }
        let Recipe { kind, rev, fields, inputs, replica } = self;
        out.extend_from_slice(b"{\"kind\":");
        json(kind, out);
        out.extend_from_slice(b",\"rev\":");
        json(rev, out);
        out.extend_from_slice(b",\"fields\":");
        out.extend_from_slice(fields.json());
        out.extend_from_slice(b",\"inputs\":");
        json(inputs, out);
        out.extend_from_slice(b",\"replica\":");
        json(replica, out);
        out.push(b'}');
    }

    /// What is different from an earlier recipe, by name.
    pub fn differences_from(&self, before: &Recipe) -> Vec<Difference> {
        let mut out = Vec::new();
        let mut push = |path: &str, before: Option<String>, after: Option<String>| {
            if before != after {
                out.push(Difference { path: path.to_owned(), before, after });
            }
        };
        push("kind", Some(before.kind.to_string()), Some(self.kind.to_string()));
        push("kind version", Some(before.rev.to_string()), Some(self.rev.to_string()));
        for name in sorted_union(before.fields.keys(), self.fields.keys()) {
            compare(name, before.fields.get(name), self.fields.get(name), &mut push);
        }
        for port in sorted_union(before.inputs.keys(), self.inputs.keys()) {
            let show = |digest: Option<&Digest>| digest.map(Digest::short);
            push(port, show(before.inputs.get(port)), show(self.inputs.get(port)));
        }
        let show = |n: u32| Some(n.to_string());
        push("epoch", show(before.replica.epoch), show(self.replica.epoch));
        push("occurrence", show(before.replica.occurrence), show(self.replica.occurrence));
        out
    }
}

/// One thing that differs between two recipes. `None` means absent on that side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// Name of the field or input, nested tables joined with dots.
    pub path: String,
    /// The earlier value, as JSON or as a short digest.
    pub before: Option<String>,
    /// The present value.
    pub after: Option<String>,
}

impl Difference {
    /// As part of a sentence; of a difference without values, that there is one.
    pub fn sentence(&self) -> String {
        match (&self.before, &self.after) {
            (None, None) => format!("`{}` changed", self.path),
            (before, after) => format!("`{}` {} → {}", self.path, shown(before), shown(after)),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.path, shown(&self.before), shown(&self.after))
    }
}

fn shown(side: &Option<String>) -> String {
    match side {
        None => "(absent)".to_owned(),
        Some(text) if text.chars().count() > 60 => {
            text.chars().take(57).chain("...".chars()).collect()
        }
        Some(text) => text.clone(),
    }
}

fn sorted_union<'a>(
    a: impl Iterator<Item = &'a (impl AsRef<str> + 'a)>,
    b: impl Iterator<Item = &'a (impl AsRef<str> + 'a)>,
) -> std::collections::BTreeSet<&'a str> {
    a.map(AsRef::as_ref).chain(b.map(AsRef::as_ref)).collect()
}

fn compare(
    path: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    push: &mut impl FnMut(&str, Option<String>, Option<String>),
) {
    if let (Some(Value::Object(old)), Some(Value::Object(new))) = (before, after) {
        for name in sorted_union(old.keys(), new.keys()) {
            compare(&format!("{path}.{name}"), old.get(name), new.get(name), push);
        }
    } else {
        push(path, before.map(Value::to_string), after.map(Value::to_string));
    }
}

fn encode_text(text: &str, sink: &mut impl FnMut(&[u8])) {
    sink(&(text.len() as u64).to_le_bytes());
    sink(text.as_bytes());
}

/// Canonical bytes of a value: a tag, then lengths before bytes, tables sorted by name,
/// numbers as their shortest round-trip text.
fn encode(value: &Value, sink: &mut impl FnMut(&[u8])) {
    match value {
        Value::Null => sink(b"z"),
        Value::Bool(true) => sink(b"t"),
        Value::Bool(false) => sink(b"f"),
        Value::Number(number) => {
            let mut digits = itoa::Buffer::new();
            if let Some(number) = number.as_i64() {
                sink(b"i");
                encode_text(digits.format(number), sink);
            } else {
                sink(if number.is_f64() { b"d" } else { b"i" });
                encode_text(&number.to_string(), sink);
            }
        }
        Value::String(text) => {
            sink(b"s");
            encode_text(text, sink);
        }
        Value::Array(items) => {
            sink(b"a");
            sink(&(items.len() as u64).to_le_bytes());
            for item in items {
                encode(item, sink);
            }
        }
        Value::Object(table) => {
            sink(b"m");
            sink(&(table.len() as u64).to_le_bytes());
            // A dependency may switch serde_json to insertion order, so sort here.
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_unstable_by_key(|(name, _)| *name);
            for (name, item) in entries {
                encode_text(name, sink);
                encode(item, sink);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> Recipe {
        Recipe::new("request", 1)
            .field("temperature", 0.0)
            .field("stop", vec!["a", "b"])
            .field("limits", json!({"turns": 5}))
            .input("engine", Digest::of(b"weights"))
    }

    #[test]
    fn the_key_of_a_recipe_is_stable_across_releases() {
        // Changing this value throws away every store in the world: raise ENCODING_VERSION and say why.
        assert_eq!(
            sample().key().to_string(),
            "c94742a5019711549429e61312b3681bb2757312d55b4bd31a9a3defa9f80412"
        );
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        let shared = sample();
        for recipe in [shared.clone().replica(Replica { epoch: 2, occurrence: 1 }), shared] {
            for recipe in [recipe.clone(), recipe.clone().field("later", "\"x\"")] {
                let mut out = Vec::new();
                recipe.write(&mut out);
                assert_eq!(out, serde_json::to_vec(&recipe).unwrap());
                assert_eq!(serde_json::from_slice::<Recipe>(&out).unwrap(), recipe);
            }
        }
    }

    #[test]
    fn every_part_reaches_the_key() {
        let base = sample().key();
        let variants = [
            Recipe { kind: "sample".into(), ..sample() },
            Recipe { rev: 2, ..sample() },
            sample().field("seed", 1_u32),
            sample().input("flows", Digest::of(b"")),
            sample().replica(Replica { epoch: 1, occurrence: 0 }),
            sample().replica(Replica { epoch: 0, occurrence: 1 }),
        ];
        for variant in &variants {
            assert_ne!(variant.key(), base, "{variant:?}");
        }
    }

    #[test]
    fn absent_is_not_zero_nor_empty() {
        let with = |value: Option<u32>| Recipe::new("x", 1).field("n", value).key();
        assert_ne!(with(None), with(Some(0)));
        let list = |items: Vec<&str>| Recipe::new("x", 1).field("n", items).key();
        assert_ne!(list(vec![]), with(None));
        assert_ne!(list(vec!["ab", "c"]), list(vec!["a", "bc"]));
    }

    #[test]
    fn a_difference_names_the_field_and_both_values() {
        let mut now = sample().field("seed", 7_u32);
        now.fields.insert("limits", json!({"turns": 6}));
        let lines: Vec<_> =
            now.differences_from(&sample()).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["limits.turns: 5 -> 6", "seed: (absent) -> 7"]);
    }

    #[test]
    fn hex_is_checked_on_the_way_in() {
        assert!("abc".parse::<Digest>().is_err());
        assert!("../../../../etc/passwd".parse::<Digest>().is_err());
        assert!("A".repeat(64).parse::<Digest>().is_err());
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn order_of_insertion_never_changes_a_key() {
        let names = ["a", "b", "cc", "d", "e"];
        let recipe = |order: &[usize]| {
            order.iter().fold(Recipe::new("x", 1), |r, i| r.field(names[*i], names[*i]))
        };
        let first = recipe(&[0, 1, 2, 3, 4]).key();
        // Every rotation, forwards and backwards.
        for shift in 0..5 {
            let mut order: Vec<usize> = (0..5).map(|i| (i + shift) % 5).collect();
            assert_eq!(recipe(&order).key(), first);
            order.reverse();
            assert_eq!(recipe(&order).key(), first);
        }
        let nested = |text: &str| Digest::of_json(&serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(
            nested("{\"a\": {\"x\": 1, \"y\": 2}}"),
            nested("{\"a\": {\"y\": 2, \"x\": 1}}")
        );
    }
}
