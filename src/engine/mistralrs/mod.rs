//! mistral.rs in this process: settings and identity here, the engine itself in `native`.
//! Knows nothing of who asks.
//!
//! # One request at a time
//!
//! mistral.rs 0.8.1 gives wrong answers on CPU when it decodes several sequences in one step. Its kernel
//! for a single query (`flash_attn_cpu_single_q`) keeps one set of scratch buffers for the whole batch, so
//! every sequence gets the attention of the last one. Its scheduler puts sequences of equal length into
//! one step, so whether that happens depends on who else is asking; `with_max_num_seqs(1)` does not
//! prevent it, because the scheduler ignores the bound while nothing runs. It concerns every CPU precision
//! and GGUF as well as safetensors, which share the kernel; prefill is right. No setting avoids it without
//! giving up the key-value cache. Seen on the shipped model, qa_25 with cot, by `cargo bench --bench in_flight`
//! (right answers of 25, and answers a second, with 1, 2 and 8 in flight; two cores):
//!
//! | variant | 1 | 2 | 8 |
//! |---|---|---|---|
//! | safetensors f32 | 21, 21/s | 20, 13/s | 6, 13/s |
//! | safetensors f16 | 21, 15/s | 19, 9/s | 8, 7/s |
//! | safetensors f32 with prefix cache | 21, 25/s | 12, 11/s | 4, 6/s |
//! | GGUF Q8_0 in f16 | 21, 19/s | 21, 9/s | 8, 8/s |
//!
//! So an instance gets one request at a time, and further cores get further
//! instances of the model, as far as memory allows. `tests/mistralrs` proves on the shipped model that
//! answers are then byte for byte those of one request at a time. What would change our mind: a version
//! whose kernel indexes its buffers by sequence, and that test with more in flight.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{Admission, Backend, Engine, Progress};
use crate::digest::{Digest, Recipe};
use crate::store::{Store, StoreError};

#[cfg(feature = "mistralrs")]
mod embed;
#[cfg(feature = "mistralrs")]
mod gumbel;
pub mod hub;
#[cfg(feature = "mistralrs")]
mod likelihood;
#[cfg(feature = "mistralrs")]
mod load;
#[cfg(feature = "mistralrs")]
mod native;
#[cfg(feature = "mistralrs")]
mod prompt;
#[cfg(feature = "mistralrs")]
mod steps;
#[cfg(feature = "mistralrs")]
mod template;

pub mod gguf;

/// Version of this adapter: raised when the same model would answer otherwise.
const REV: u32 = 2;
/// The engine's version: part of the identity, since numerics may change with it.
const ENGINE_VERSION: &str = "0.8.1";

/// GGUF architectures that mistral.rs 0.8.1 loads; it panics on any other.
pub const GGUF_ARCHITECTURES: &[&str] =
    &["llama", "mistral3", "phi2", "phi3", "starcoder2", "qwen2", "qwen3", "qwen3moe"];

/// `architectures` of `config.json` that mistral.rs 0.8.1 loads as text models.
pub const ARCHITECTURES: &[&str] = &[
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Starcoder2ForCausalLM",
    "PhiMoEForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Qwen3ForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "Glm4MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "SmolLM3ForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "GptOssForCausalLM",
    "Qwen3NextForCausalLM",
];

/// Numeric types of weights and activations, by their names in manifests. bf16 is for accelerators: its
/// matrix product is not there on CPU.
pub const DTYPES: &[&str] = &["f32", "f16", "bf16"];

/// In-situ quantisations that have kernels of their own on CPU; the others of mistral.rs work out the whole
/// weight at every step there.
pub const ISQ: &[&str] =
    &["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2k", "q3k", "q4k", "q5k", "q6k", "q8k"];

/// Sequences in one step of an accelerator where the manifest is silent.
const SEQUENCES: u32 = 16;

/// Where the weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// A folder with `config.json`, `tokenizer.json` and safetensors.
    Folder(Utf8PathBuf),
    /// A GGUF file, with its tokenizer and chat template inside; of a model in parts the first.
    Gguf(Utf8PathBuf),
}

/// A model in this process.
#[derive(Debug, Clone)]
pub struct MistralRs {
    /// Its files.
    pub weights: Weights,
    /// As the manifest names it, for people.
    pub label: String,
    /// One of [`DTYPES`].
    pub dtype: String,
    /// `cpu`, `cuda`, `cuda:<n>` or `metal`.
    pub device: String,
    /// One of [`ISQ`], for safetensors.
    pub isq: Option<String>,
    /// A chat template that takes the place of the model's own.
    pub chat_template: Option<Utf8PathBuf>,
    /// Tokens of prompt and reply, where fewer are wanted than the model has.
    pub context_length: Option<u32>,
    /// Whether beginnings of prompts are kept. It changes some answers, so it is part of the identity.
    pub prefix_cache: bool,
    /// Sequences in one step of an accelerator.
    pub max_sequences: Option<u32>,
    /// Bytes that one of them takes, about.
    pub instance_bytes: u64,
    /// Copies of the model, each with one request at a time: an execution setting, in no key.
    pub instances: u32,
    /// Why not more of them.
    pub instances_reason: String,
}

/// Files of a folder that decide answers.
fn decides(name: &str) -> bool {
    name.ends_with(".safetensors")
        || name.ends_with(".safetensors.index.json")
        || matches!(
            name,
            "config.json"
                | "generation_config.json"
                | "tokenizer.json"
                | "tokenizer_config.json"
                | "special_tokens_map.json"
                | "chat_template.json"
                | "chat_template.jinja"
                | "params.json"
                | "tekken.json"
                | "processor_config.json"
                | "preprocessor_config.json"
                | MODULES
        )
        || is_of_module(name)
}

/// What makes a folder a model for embeddings, by the layout of sentence-transformers: it lists the modules after the
/// transformer, whose files lie in folders such as `1_Pooling`.
const MODULES: &str = "modules.json";

const MODULE_FILES: &[&str] = &["config.json", "model.safetensors"];

fn is_of_module(name: &str) -> bool {
    name.split_once('/').is_some_and(|(folder, file)| {
        folder.starts_with(|c: char| c.is_ascii_digit())
            && folder.contains('_')
            && MODULE_FILES.contains(&file)
    })
}

/// Files beside a GGUF that mistral.rs reads as well.
const GGUF_NEIGHBOURS: &[&str] =
    &["generation_config.json", "chat_template.json", "processor_config.json"];

impl Weights {
    /// Digests of all files that decide answers, by their name in the folder.
    pub fn digests(&self, store: &Store) -> Result<BTreeMap<String, Digest>, StoreError> {
        let files: Vec<(String, Utf8PathBuf)> = self.files()?;
        files.into_iter().map(|(name, path)| Ok((name, store.digest_of_file(&path)?))).collect()
    }

    /// What is wrong with a file of the hub's cache, where one is not what its name there says.
    pub fn damage(&self, store: &Store) -> Result<Option<String>, StoreError> {
        for (_, path) in self.files()? {
            let found = store.digest_of_file(&path)?.to_string();
            if let Some(words) = hub::damage(path.as_std_path(), &found) {
                return Ok(Some(words));
            }
        }
        Ok(None)
    }

    /// Bytes of all files.
    pub fn size(&self) -> Result<u64, StoreError> {
        let mut size = 0;
        for (_, path) in self.files()? {
            let meta = std::fs::metadata(&path).map_err(crate::store::at("read", &path))?;
            size += meta.len();
        }
        Ok(size)
    }

    fn files(&self) -> Result<Vec<(String, Utf8PathBuf)>, StoreError> {
        let mut files = Vec::new();
        match self {
            Weights::Gguf(path) => {
                // Its name says nothing about the answers, but for which part it is.
                let parts = gguf_files(path);
                match parts.as_slice() {
                    [whole] => files.push(("weights.gguf".to_owned(), whole.clone())),
                    parts => files.extend(parts.iter().zip(1..).map(|(part, number)| {
                        (format!("weights-{number:05}-of-{:05}.gguf", parts.len()), part.clone())
                    })),
                }
                let folder = path.parent().unwrap_or(Utf8Path::new(""));
                for name in GGUF_NEIGHBOURS {
                    let neighbour = folder.join(name);
                    if neighbour.exists() {
                        files.push(((*name).to_owned(), neighbour));
                    }
                }
            }
            Weights::Folder(folder) => {
                let fail = crate::store::at;
                for entry in folder.read_dir_utf8().map_err(fail("read", folder))? {
                    let entry = entry.map_err(fail("read", folder))?;
                    if decides(entry.file_name()) {
                        files.push((entry.file_name().to_owned(), entry.into_path()));
                    }
                }
                if self.embeds() {
                    for entry in folder.read_dir_utf8().map_err(fail("read", folder))? {
                        let entry = entry.map_err(fail("read", folder))?;
                        let of_module = MODULE_FILES.iter().map(|file| {
                            (format!("{}/{file}", entry.file_name()), entry.path().join(file))
                        });
                        let there = |(name, path): &(String, Utf8PathBuf)| {
                            is_of_module(name) && path.exists()
                        };
                        files.extend(of_module.filter(there));
                    }
                }
                files.sort();
            }
        }
        Ok(files)
    }

    /// Whether the model gives embeddings, and writes no text.
    pub fn embeds(&self) -> bool {
        matches!(self, Weights::Folder(folder) if folder.join(MODULES).exists())
    }
}

/// The files of a GGUF model, by the first.
fn gguf_files(first: &Utf8Path) -> Vec<Utf8PathBuf> {
    match gguf::parts(first.as_str()) {
        Ok(parts) => parts.into_iter().map(Utf8PathBuf::from).collect(),
        // Who names a later part has been told.
        Err(_) => vec![first.to_owned()],
    }
}

/// Features that change numerics, where this build has any.
fn kernels() -> Option<Vec<String>> {
    let all = [
        ("accelerate", cfg!(feature = "accelerate")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("flash-attn", cfg!(feature = "flash-attn")),
        ("mkl", cfg!(feature = "mkl")),
    ];
    let on: Vec<_> =
        all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect();
    (!on.is_empty()).then_some(on)
}

/// Bytes that an instance takes, about, of weights that take `size` on disk: half-precision weights double
/// when they become f32, quantised ones stay as they are; buffers and cache come on top.
pub fn instance_bytes(size: u64, is_gguf: bool, dtype: &str) -> u64 {
    let weights = if is_gguf || dtype != "f32" { size + size / 4 } else { size * 2 };
    weights + (64 << 20)
}

/// How many instances fit: at most `cores`, within `memory_limit` bytes, at least one.
pub fn fitting_instances(each: u64, cores: u32, memory_limit: u64) -> (u32, String) {
    let fit = u32::try_from(memory_limit / each).unwrap_or(u32::MAX);
    if fit == 0 {
        return (1, "one instance, which alone is above the memory limit".to_owned());
    }
    if fit < cores {
        return (fit, format!("{fit} instances fit into the memory limit"));
    }
    (cores, format!("one instance for each of {cores} cores"))
}

impl MistralRs {
    /// Requests that one instance gets at a time.
    pub fn at_once(&self) -> u32 {
        if self.device == "cpu" { 1 } else { self.max_sequences.unwrap_or(SEQUENCES) }
    }

    /// Adds all that decides answers to an engine's recipe.
    pub fn identify(&self, store: &Store, recipe: Recipe) -> Result<Recipe, StoreError> {
        let format = match self.weights {
            Weights::Folder(_) => "safetensors",
            Weights::Gguf(_) => "gguf",
        };
        let recipe = recipe
            .field("adapter_rev", REV)
            .field("engine_version", ENGINE_VERSION)
            .field("format", format)
            .field("dtype", self.dtype.as_str())
            .field("device", self.device.as_str())
            .field("isq", self.isq.as_deref())
            .field("context_length", self.context_length)
            .field("prefix_cache", self.prefix_cache)
            .field("kernels", kernels())
            // The shape of a step decides how its sums are rounded.
            .field("max_sequences", (self.device != "cpu").then(|| self.at_once()));
        let recipe = match &self.chat_template {
            Some(path) => recipe.input("chat_template", store.digest_of_file(path)?),
            None => recipe,
        };
        let digests = self.weights.digests(store)?;
        Ok(digests
            .into_iter()
            .fold(recipe, |recipe, (name, digest)| recipe.input(format!("file {name}"), digest)))
    }
}

impl Backend for MistralRs {
    fn name(&self) -> &'static str {
        "mistralrs"
    }

    fn describe(&self) -> BTreeMap<String, Value> {
        let format = match self.weights {
            Weights::Folder(_) => "safetensors",
            Weights::Gguf(_) => "GGUF",
        };
        [
            ("backend".to_owned(), Value::from("mistralrs")),
            ("engine".to_owned(), format!("mistral.rs {ENGINE_VERSION}").into()),
            ("model".to_owned(), self.label.as_str().into()),
            ("format".to_owned(), format.into()),
            ("dtype".to_owned(), self.dtype.as_str().into()),
            ("device".to_owned(), self.device.as_str().into()),
            ("isq".to_owned(), self.isq.as_deref().into()),
        ]
        .into()
    }

    fn admission(&self) -> Admission {
        if self.device != "cpu" {
            let reason = format!("{} sequences in one step of the accelerator", self.at_once());
            return Admission::fixed(Some(self.instances * self.at_once()), reason);
        }
        let reason = format!(
            "one request at a time for each instance, because mistral.rs {ENGINE_VERSION} mixes up \
             concurrent requests on CPU; {}",
            self.instances_reason
        );
        Admission::fixed(Some(self.instances), reason)
    }

    fn embeds(&self) -> bool {
        self.weights.embeds()
    }

    fn continues(&self) -> Result<(), String> {
        match self.embeds() {
            true => Err("it is a model for embeddings, which writes no text".to_owned()),
            false => Ok(()),
        }
    }

    fn likelihoods(&self) -> Result<(), String> {
        match (self.embeds(), self.prefix_cache) {
            (true, _) => Err("it is a model for embeddings, which writes no text".to_owned()),
            (_, true) => Err("with `prefix_cache = true` mistral.rs gives none for the beginnings that it has kept; \
                leave that out"
                .to_owned()),
            (false, false) => Ok(()),
        }
    }

    fn instances(&self) -> u32 {
        self.instances
    }

    fn is_local(&self) -> bool {
        true
    }

    fn memory(&self) -> u64 {
        // Metal has no memory but the machine's. How much a CUDA device has nobody knows here before it is opened, which
        // is a part of loading: engines on one are not held against each other.
        match self.device.starts_with("cuda") {
            true => 0,
            false => self.instance_bytes * u64::from(self.instances),
        }
    }

    #[cfg(feature = "mistralrs")]
    fn load(&self, _: Progress) -> BoxFuture<'_, Result<Box<dyn Engine>, String>> {
        async move {
            let pool = native::Pool::load(self).await?;
            Ok(Box::new(native::Shared(pool)) as Box<dyn Engine>)
        }
        .boxed()
    }

    #[cfg(not(feature = "mistralrs"))]
    fn load(&self, _: Progress) -> BoxFuture<'_, Result<Box<dyn Engine>, String>> {
        let message = "this forge was built without the feature `mistralrs`, so it cannot load a model; \
                       answers that are in the store are served all the same";
        async move { Err(message.to_owned()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_model_counts() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("m-00001-of-00002.gguf", "one");
        let weights = Weights::Gguf(folder.join("m-00001-of-00002.gguf"));
        let missing = weights.size().unwrap_err().to_string();
        assert!(missing.contains("m-00002-of-00002.gguf"), "{missing}");
        write("m-00002-of-00002.gguf", "second");
        assert_eq!(weights.size().unwrap(), 9);
        let names = |weights: &Weights| {
            weights.files().unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(&weights), ["weights-00001-of-00002.gguf", "weights-00002-of-00002.gguf"]);
        write("other.gguf", "one");
        assert_eq!(names(&Weights::Gguf(folder.join("other.gguf"))), ["weights.gguf"]);
    }

    #[test]
    fn what_lies_in_the_memory_of_the_machine_counts() {
        let memory = |device: &str| {
            let engine = MistralRs {
                weights: Weights::Gguf("m.gguf".into()),
                label: "m".to_owned(),
                dtype: "f16".to_owned(),
                device: device.to_owned(),
                isq: None,
                chat_template: None,
                context_length: None,
                prefix_cache: false,
                max_sequences: None,
                instance_bytes: 100,
                instances: 2,
                instances_reason: String::new(),
            };
            engine.memory()
        };
        assert_eq!(["cpu", "metal", "cuda:0"].map(memory), [200, 200, 0]);
    }

    #[test]
    fn instances_follow_cores_and_memory() {
        let fitting = |size, cores, limit| {
            fitting_instances(instance_bytes(size, false, "f32"), cores, limit).0
        };
        assert_eq!(fitting(4 << 20, 2, 8 << 30), 2);
        assert_eq!(fitting(4 << 30, 16, 20 << 30), 2);
        assert_eq!(fitting(40 << 30, 16, 20 << 30), 1);
        assert!(instance_bytes(4 << 30, true, "f32") < instance_bytes(4 << 30, false, "f32"));
    }
}
