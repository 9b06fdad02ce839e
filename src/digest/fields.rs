//! The settings of a recipe, shared by all that were copied from it. Knows nothing of keys.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Settings by name. Copies share them, and the JSON that they are written as.
#[derive(Debug, Clone, Default)]
pub struct Fields(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    by_name: BTreeMap<String, Value>,
    json: OnceLock<Vec<u8>>,
}

impl Clone for Shared {
    /// Copied to be changed.
    fn clone(&self) -> Self {
        Shared { by_name: self.by_name.clone(), json: OnceLock::new() }
    }
}

impl Fields {
    /// Adds a setting; gives back one of the same name that was there.
    pub fn insert(&mut self, name: &str, value: Value) -> Option<Value> {
        let shared = Arc::make_mut(&mut self.0);
        shared.json = OnceLock::new();
        shared.by_name.insert(name.to_owned(), value)
    }

    /// As JSON: a table sorted by name.
    pub(super) fn json(&self) -> &[u8] {
        let json =
            || serde_json::to_vec(&self.0.by_name).expect("BUG: settings always become JSON");
        self.0.json.get_or_init(json)
    }
}

impl Deref for Fields {
    type Target = BTreeMap<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.0.by_name
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.by_name.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let by_name = BTreeMap::deserialize(deserializer)?;
        Ok(Fields(Arc::new(Shared { by_name, json: OnceLock::new() })))
    }
}
