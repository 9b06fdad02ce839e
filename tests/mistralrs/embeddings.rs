//! A model for embeddings in this process.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Clone, ROOT, results};

/// The shipped weights as a model for embeddings, in the layout of sentence-transformers: the architecture has two norms
/// more, which do nothing to speak of here, and leaves out the first part of names.
fn embedding_model(folder: &Path) {
    let from = Path::new(ROOT).join("fixtures/tiny-chat");
    fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    fs::copy(from.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let write =
        |name: &str, value: &Value| fs::write(folder.join(name), value.to_string()).unwrap();
    let mut config = read(&from.join("config.json"));
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    config["model_type"] = "qwen3".into();
    config["max_window_layers"] = 4.into();
    config["use_sliding_window"] = false.into();
    write("config.json", &config);
    let path = "sentence_transformers.models";
    write(
        "modules.json",
        &json!([
            { "idx": 0, "name": "0", "path": "", "type": format!("{path}.Transformer") },
            { "idx": 1, "name": "1", "path": "1_Pooling", "type": format!("{path}.Pooling") },
            { "idx": 2, "name": "2", "path": "2_Normalize", "type": format!("{path}.Normalize") },
        ]),
    );
    let modes =
        ["cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"];
    let mut pooling = json!({
        "word_embedding_dimension": 192, "pooling_mode_mean_tokens": true, "include_prompt": true
    });
    for mode in modes {
        pooling[format!("pooling_mode_{mode}")] = false.into();
    }
    write("1_Pooling/config.json", &pooling);
    // A file of safetensors: the length of its header, the header, the numbers.
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    let mut named = serde_json::Map::new();
    for (name, tensor) in header.as_object().unwrap() {
        named.insert(name.trim_start_matches("model.").to_owned(), tensor.clone());
    }
    for layer in 0..4 {
        for norm in ["q_norm", "k_norm"] {
            let start = data.len();
            // Ones as bfloat16.
            data.extend(std::iter::repeat_n([0x80, 0x3f], 32).flatten());
            let tensor = json!({
                "dtype": "BF16", "shape": [32], "data_offsets": [start, data.len()]
            });
            named.insert(format!("layers.{layer}.self_attn.{norm}.weight"), tensor);
        }
    }
    let header = serde_json::to_vec(&named).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

#[test]
fn a_model_for_embeddings_ranks_passages_and_scores_answers() {
    let clone = Clone::new();
    embedding_model(&clone.dir.path().join("fixtures/tiny-embed"));
    let manifest = fs::read_to_string(clone.dir.path().join("pipelines/bench.toml")).unwrap();
    let engine = "\n[stage.embedder]\nkind = \"engine\"\nbackend = \"mistralrs\"\n\
        model = \"fixtures/tiny-embed\"\n";
    clone.write("pipelines/hybrid.toml", &format!("{manifest}{engine}"));
    clone.edit(
        "pipelines/hybrid.toml",
        "[stage.ask]\n",
        "[stage.ask.rag]\nretrieval_method = \"hybrid\"\nembeddings = \"embedder\"\ntop_k = 3\n\
         corpus = \"fixtures/facts_kb.jsonl\"\nid = \"value\"\ntext = \"key\"\n[stage.ask]\n\
         scorers = [\"exact_match\", { kind = \"semantic\", engine = \"embedder\" }]\n",
    );
    let (code, done, stderr) = clone.apply_manifest("pipelines/hybrid.toml", &[], &[]);
    assert_eq!(code, 0, "{stderr}");
    let report = fs::read_to_string(clone.dir.path().join("out/bench/report/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let (mut equal, mut short) = (0, 0);
    for row in report["cells"][0]["samples"].as_array().unwrap() {
        let sample = &row["sample"];
        let info = &sample["steps"][0]["retrieval_info"];
        assert_eq!(info["passages"].as_array().unwrap().len(), 3, "{info:#}");
        if sample["scores"][0]["value"] == 1.0 {
            let semantic = &sample["scores"][1];
            match semantic["value"].as_f64() {
                // Equal texts lie in one place.
                Some(value) => assert!((value - 1.0).abs() < 1e-6, "{sample:#}"),
                // This tokenizer adds no end to a text.
                None => assert!(semantic["detail"].as_str().unwrap().contains("of 1 token")),
            }
            *(if semantic["value"].is_null() { &mut short } else { &mut equal }) += 1;
        }
    }
    assert!(equal > 0 && short > 0, "{equal} equal, {short} too short");
    let (code, again, stderr) = clone.apply_manifest("pipelines/hybrid.toml", &[], &[]);
    assert_eq!((code, again["requests"]["live"].as_u64()), (0, Some(0)), "{stderr}");
    assert_eq!(results(&done), results(&again));
    // It writes no text, and pools as it can.
    clone.edit("pipelines/hybrid.toml", "engine = \"tiny-chat\"", "engine = \"embedder\"");
    let (code, _, stderr) = clone.apply_manifest("pipelines/hybrid.toml", &[], &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("it is a model for embeddings, which writes no text"), "{stderr}");
}
