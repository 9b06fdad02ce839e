//! Files on disk to a model in memory: everything that could make mistral.rs panic is looked at first.
//! Knows nothing of requests.

use std::num::NonZeroUsize;
use std::sync::Arc;

use camino::Utf8Path;
use mistralrs::core::{
    AddModelConfig, EngineConfig, GGUFLoaderBuilder, GGUFSpecificConfig, Loader,
    NormalLoaderBuilder, NormalSpecificConfig,
};
use mistralrs::{
    DefaultSchedulerMethod, Device, DeviceMapSetting, IsqType, Model, ModelDType, SchedulerConfig,
    TokenSource, parse_isq_value,
};

use super::prompt::Prompts;
use super::{ARCHITECTURES, GGUF_ARCHITECTURES, MistralRs, Weights, gguf, gguf_files, template};

/// Prompts whose beginnings are kept where the prefix cache is on.
const PREFIXES: usize = 16;

/// A model that answers.
pub(super) struct Instance {
    pub(super) model: Model,
    /// Tokens in the model's context, up to which its cache grows.
    pub(super) context: usize,
    /// Tokens that the manifest allows, where that is fewer.
    pub(super) declared: Option<usize>,
    /// The pipeline, to render prompts while the engine is idle.
    pub(super) pipeline: Arc<tokio::sync::Mutex<dyn mistralrs::core::Pipeline + Send + Sync>>,
    pub(super) prompts: Prompts,
    /// Tokens that end a turn.
    pub(super) ends: Vec<u32>,
    /// The one by which grammars end a text, and how many tokens they know.
    pub(super) grammar_end: Option<(u32, usize)>,
    /// Whether it gives embeddings and writes no text.
    pub(super) embeds: bool,
    /// Held by one who must not share a step of the model with others.
    pub(super) alone: tokio::sync::RwLock<()>,
}

impl Instance {
    /// Loads on a thread of its own, so that a panic of the loader becomes an error; settings of
    /// quantisation live in the thread as well.
    pub(super) async fn load(settings: MistralRs) -> Result<Instance, String> {
        let label = settings.label.clone();
        let work = tokio::task::spawn_blocking(move || {
            let load = std::thread::Builder::new().name("load-model".to_owned()).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| error.to_string())?;
                runtime.block_on(load(&settings))
            });
            match load.map_err(|error| error.to_string())?.join() {
                Ok(loaded) => loaded,
                Err(panic) => Err(panic_text(panic.as_ref())),
            }
        });
        work.await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|error| format!("cannot load `{label}`: {error}"))
    }
}

async fn load(settings: &MistralRs) -> Result<Instance, String> {
    let device = device(&settings.device)?;
    let isq = match &settings.isq {
        None => None,
        Some(name) => Some(parse_isq_value(name, Some(&device))?),
    };
    // Kept until the model is loaded.
    let dated = template::without_today(settings)?;
    let template = match (&dated, &settings.chat_template) {
        (Some(file), _) => Some(file.path().display().to_string()),
        (None, None) => None,
        (None, Some(path)) => {
            let path = path.canonicalize_utf8().map_err(|error| format!("`{path}`: {error}"))?;
            Some(path.to_string())
        }
    };
    let loader = match &settings.weights {
        Weights::Folder(folder) if settings.weights.embeds() => super::embed::loader(folder)?,
        Weights::Folder(folder) => folder_loader(folder, template)?,
        Weights::Gguf(file) => gguf_loader(file, template)?,
    };
    let pipeline = load_with(loader.as_ref(), &dtype(&settings.dtype), &device, isq)?;
    let (prompts, ends, grammar_end) = {
        let pipeline = pipeline.lock().await;
        let template = pipeline.get_chat_template();
        if !settings.weights.embeds()
            && !template.is_some_and(|template| template.has_chat_template())
        {
            return Err(
                "it has no chat template: add `chat_template = \"<file>.jinja\"`".to_owned()
            );
        }
        let tokenizer = pipeline.tokenizer().ok_or("it has no tokenizer")?;
        let json = tokenizer.to_string(false).map_err(|error| error.to_string())?;
        let metadata = pipeline.get_metadata();
        let grammar_end = metadata
            .tok_env()
            .map(|env| (env.tok_trie().eos_token(), tokenizer.get_vocab_size(true)));
        (Prompts::new(&json)?, metadata.eos_tok.clone(), grammar_end)
    };
    let at_once = NonZeroUsize::new(settings.at_once() as usize).unwrap_or(NonZeroUsize::MIN);
    let scheduler =
        SchedulerConfig::DefaultScheduler { method: DefaultSchedulerMethod::Fixed(at_once) };
    let config = AddModelConfig::new(EngineConfig {
        no_prefix_cache: !settings.prefix_cache,
        prefix_cache_n: PREFIXES,
        throughput_logging_enabled: false,
        ..EngineConfig::default()
    });
    let model = mistralrs::model_builder_trait::build_model_from_pipeline(
        pipeline.clone(),
        scheduler,
        config,
    )
    .await;
    let own = model.max_sequence_length().map_err(|error| error.to_string())?;
    let declared = settings.context_length.map(|tokens| tokens as usize);
    let context = own.unwrap_or(usize::MAX);
    let embeds = settings.weights.embeds();
    let alone = tokio::sync::RwLock::new(());
    Ok(Instance { model, context, declared, pipeline, prompts, ends, grammar_end, embeds, alone })
}

type Pipeline = Arc<tokio::sync::Mutex<dyn mistralrs::core::Pipeline + Send + Sync>>;

fn load_with(
    loader: &dyn Loader,
    dtype: &ModelDType,
    device: &Device,
    isq: Option<IsqType>,
) -> Result<Pipeline, String> {
    let map = DeviceMapSetting::dummy();
    loader
        .load_model_from_hf(None, TokenSource::None, dtype, device, true, map, isq, None)
        .map_err(|error| format!("{error:#}"))
}

fn folder_loader(folder: &Utf8Path, template: Option<String>) -> Result<Box<dyn Loader>, String> {
    let config = folder.join("config.json");
    let text = std::fs::read_to_string(&config).map_err(|error| format!("`{config}`: {error}"))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("`{config}`: {error}"))?;
    let named: Vec<&str> =
        json["architectures"].as_array().into_iter().flatten().filter_map(|v| v.as_str()).collect();
    match named.as_slice() {
        [one] if ARCHITECTURES.contains(one) => {}
        other => {
            return Err(format!(
                "the architecture `{}` is not supported as a text model (known: {})",
                other.join(", "),
                ARCHITECTURES.join(", ")
            ));
        }
    }
    let entries = folder.read_dir_utf8().map_err(|error| format!("`{folder}`: {error}"))?;
    if !entries.flatten().any(|entry| entry.file_name().ends_with(".safetensors")) {
        return Err("it has no weights as safetensors; other formats are not read".to_owned());
    }
    if template.is_some() && folder.join("processor_config.json").exists() {
        return Err(
            "its `processor_config.json` would take the place of `chat_template`".to_owned()
        );
    }
    let builder = NormalLoaderBuilder::new(
        NormalSpecificConfig::default(),
        None,
        None,
        Some(folder.to_string()),
        false,
        template,
    );
    builder.build(None).map_err(|error| format!("{error:#}"))
}

fn gguf_loader(file: &Utf8Path, template: Option<String>) -> Result<Box<dyn Loader>, String> {
    let architecture = gguf::architecture(file).map_err(|error| error.to_string())?;
    let architecture = architecture.unwrap_or_default().to_lowercase();
    if !GGUF_ARCHITECTURES.contains(&architecture.as_str()) {
        return Err(format!(
            "the architecture `{architecture}` is not supported as GGUF (known: {}); its safetensors \
             may be",
            GGUF_ARCHITECTURES.join(", ")
        ));
    }
    let first = file.canonicalize_utf8().map_err(|error| error.to_string())?;
    let folder = first.parent().map_or_else(String::new, ToString::to_string);
    // mistral.rs joins the parts in this order. Names are those below the folder; a link may lead a part elsewhere, and
    // a path from the root stays what it is.
    let mut names = Vec::new();
    for part in gguf_files(file) {
        let path = part.canonicalize_utf8().map_err(|error| format!("`{part}`: {error}"))?;
        let name = path.file_name().filter(|_| path.parent() == first.parent());
        names.push(name.map_or_else(|| path.to_string(), ToOwned::to_owned));
    }
    let config = GGUFSpecificConfig::default();
    Ok(GGUFLoaderBuilder::new(None, None, folder, names, config, false, template).build())
}

/// `cpu`, `cuda`, `cuda:1` or `metal`. One that this build has no code for is an error, and never the CPU.
fn device(name: &str) -> Result<Device, String> {
    let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
    let number = number.parse::<usize>().map_err(|_| format!("`{name}` is no device"))?;
    let made = match kind {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Device::new_cuda(number),
        "metal" => Device::new_metal(number),
        _ => return Err(format!("`{name}` is no device (known: cpu, cuda, cuda:<n>, metal)")),
    };
    made.map_err(|error| {
        format!(
            "no device `{name}`: {} (build forge with `--features {kind}`)",
            first_line(&error.to_string())
        )
    })
}

fn dtype(name: &str) -> ModelDType {
    match name {
        "f16" => ModelDType::F16,
        "bf16" => ModelDType::BF16,
        "f32" => ModelDType::F32,
        other => panic!("BUG: dtype `{other}` passed the manifest"),
    }
}

/// An error without the backtrace that candle writes into it.
pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the engine panicked: {}", text.unwrap_or("without a word"))
}
