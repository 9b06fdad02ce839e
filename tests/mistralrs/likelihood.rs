//! How likely words are after a prompt, held against what the same model says of words that it writes itself.

use serde_json::{Value, json};

use crate::{Clone, MODEL, completion, rows, small};

const TEMPLATE: &str = "templates/qa.toml";
/// The same prompt for both methods.
const SAME: &str = "instructions = \"Answer the question with only the answer, no explanation.\"";

fn asked(engine: &str, options: &str) -> Clone {
    let written = format!("{SAME}\nlogprobs = 0\nmax_tokens = 20");
    let scored = format!("{SAME}\nmethod = \"likelihood\"");
    let clone =
        small(engine, &[&written, &scored], &["What is 4 * 4?", "What is the capital of France?"]);
    clone.edit(TEMPLATE, "tags = ", &format!("options = \"{options}\"\ntags = "));
    clone
}

fn sum(completion: &Value) -> f64 {
    let tokens = completion["logprobs"].as_array().unwrap().iter();
    tokens.map(|token| token["logprob"].as_f64().unwrap()).sum()
}

/// Prompts are read at once there, and replies token by token here.
#[test]
fn likelihoods_are_those_of_words_that_the_model_writes() {
    for (engine, most) in [(MODEL, 1e-3), ("model = \"fixtures/tiny-chat-q8_0.gguf\"", 5e-2)] {
        let clone =
            asked(engine, "['16', 'Paris', '<|im_end|>', 'a longer and less likely answer']");
        let (code, done, stderr) = clone.apply_manifest("pipelines/t.toml", &[], &[]);
        assert_eq!(code, 0, "{stderr}");
        // Two replies, and four options for each of two questions.
        assert_eq!(done["requests"]["live"], 10);
        for (i, (written, scored)) in rows(&clone, 0).iter().zip(rows(&clone, 1)).enumerate() {
            let reply = written["sample"]["answer"].as_str().unwrap();
            assert_eq!(reply, ["16", "Paris"][i]);
            let own =
                completion(&clone, written["observed"]["requests"][0]["key"].as_str().unwrap());
            let options = scored["observed"]["scoring"].as_array().unwrap();
            let likely: Vec<Value> = options
                .iter()
                .map(|option| completion(&clone, option["request"]["key"].as_str().unwrap()))
                .collect();
            let tokens = |completion: &Value| {
                let all = completion["logprobs"].as_array().unwrap().iter();
                all.map(|token| token["token"].clone()).collect::<Vec<_>>()
            };
            assert_eq!(tokens(&likely[i]), tokens(&own));
            let (expected, found) = (sum(&own), sum(&likely[i]));
            assert!((expected - found).abs() < most, "{reply}: {expected} written, {found} read");
            assert!(tokens(&likely[2]).len() > 3, "a control token in an option is a word");
            assert!(tokens(&likely[3]).len() > 3 && sum(&likely[3]) < found - 5.0);
            assert_eq!(
                scored["sample"]["answer"], reply,
                "a sure model chooses what it would write"
            );
            let usage = &options[0]["request"]["usage"];
            assert_eq!(
                (&usage["output_tokens"], &usage["token_source"]),
                (&json!(0), &json!("engine"))
            );
            let read = usage["input_tokens"].as_u64().unwrap();
            let prompt =
                written["observed"]["requests"][0]["usage"]["input_tokens"].as_u64().unwrap();
            assert_eq!(read, prompt + tokens(&likely[0]).len() as u64);
        }
        let again = clone.apply_manifest("pipelines/t.toml", &[], &[]).1;
        assert!(again["timing"]["engine_init_ms"].is_null(), "the model was loaded for nothing");
    }
}

#[test]
fn what_a_prefix_cache_holds_has_no_likelihood() {
    let clone = asked(&format!("{MODEL}\nprefix_cache = true"), "['16', '17']");
    let (code, _, stderr) = clone.apply_manifest("pipelines/t.toml", &[], &[]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("prefix_cache"), "{stderr}");
}

#[test]
fn a_reply_goes_on_where_its_prefill_ends() {
    let clone = small(MODEL, &["max_tokens = 20\nlogprobs = 0"], &["What is 4 * 4?"]);
    let plain = {
        let (code, _, stderr) = clone.apply_manifest("pipelines/t.toml", &[], &[]);
        assert_eq!(code, 0, "{stderr}");
        rows(&clone, 0)[0].clone()
    };
    clone.edit(TEMPLATE, "user = ", "prefill = \"1\"\nuser = ");
    let (code, _, stderr) = clone.apply_manifest("pipelines/t.toml", &[], &[]);
    assert_eq!(code, 0, "{stderr}");
    let begun = rows(&clone, 0)[0].clone();
    assert_eq!(
        (&plain["sample"]["answer"], &begun["sample"]["answer"]),
        (&json!("16"), &json!("16"))
    );
    let tokens =
        |row: &Value, which: &str| row["observed"]["requests"][0]["usage"][which].as_u64().unwrap();
    // The turn has one token more when it is begun, and the reply one less.
    assert_eq!(tokens(&begun, "input_tokens"), tokens(&plain, "input_tokens") + 1);
    assert_eq!(tokens(&begun, "output_tokens"), tokens(&plain, "output_tokens") - 1);
    let logprobs = |row: &Value| {
        completion(&clone, row["observed"]["requests"][0]["key"].as_str().unwrap())["logprobs"]
            .clone()
    };
    let (whole, rest) = (logprobs(&plain), logprobs(&begun));
    let difference = whole[1]["logprob"].as_f64().unwrap() - rest[0]["logprob"].as_f64().unwrap();
    assert!(rest[0]["token"] == "6" && difference.abs() < 1e-3, "{whole} and {rest}");
}
