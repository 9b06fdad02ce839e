//! Rows from everywhere: formats, compressions, addresses, data sets of a hub; what is made of them, and what
//! happens to bad ones.

use std::io::Write;
use std::process::Command;

use serde_json::{Value, json};

use super::hub::{Answer, Hub, sha256};
use super::project::{Project, Ran};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";
/// A rule for every question of these tests.
const ECHO: &str = "replies = [{ when = \"Paris\", reply = \"Paris\" }, { reply = \"other\" }]";
const ROWS: &str = "{\"id\": \"a\", \"question\": \"Is it Paris?\", \"answer\": \"Paris\"}\n\
    {\"id\": \"b\", \"question\": \"Else?\", \"answer\": \"other\"}\n";

/// The usual pipeline, with these fields of its expansion.
pub fn with_rows(fields: &str) -> Project {
    let project = Project::with("", ECHO);
    project.edit(
        "pipelines/bench.toml",
        "fixture = \"fixtures/rows.jsonl\"\n",
        &format!("{fields}\n"),
    );
    project.edit("pipelines/bench.toml", "count = \"{{ params.num_flows }}\"", "");
    project
}

pub fn write_bytes(project: &Project, name: &str, bytes: &[u8]) {
    project.write(name, "");
    std::fs::write(project.path(name), bytes).unwrap();
}

/// The names of all flows, in order.
fn flows(ran: &Ran) -> Vec<String> {
    let finished = ran.events().into_iter().filter(|event| event["event"] == "sample_finished");
    let mut flows: Vec<_> = finished
        .map(|event| (event["index"].as_u64(), event["flow"].as_str().unwrap().to_owned()))
        .collect();
    flows.sort();
    flows.into_iter().map(|(_, flow)| flow).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Parquet file of `id question answer` and a list, in groups of two rows.
fn parquet_of(rows: &[(&str, &str, &str)]) -> Vec<u8> {
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message rows { required binary id (UTF8); required binary question (UTF8); \
        required binary answer (UTF8); optional group more (LIST) { repeated group list { \
        required binary element (UTF8); } } required float weight; }";
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let level = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(level).build();
    let mut writer =
        SerializedFileWriter::new(Vec::new(), schema.into(), properties.into()).unwrap();
    for group in rows.chunks(2) {
        let mut out = writer.next_row_group().unwrap();
        let texts: [Vec<ByteArray>; 3] = [
            group.iter().map(|row| row.0.into()).collect(),
            group.iter().map(|row| row.1.into()).collect(),
            group.iter().map(|row| row.2.into()).collect(),
        ];
        for column in texts {
            let mut out = out.next_column().unwrap().unwrap();
            out.typed::<ByteArrayType>().write_batch(&column, None, None).unwrap();
            out.close().unwrap();
        }
        // Each row has the list of its answer and `x`.
        let list: Vec<ByteArray> =
            group.iter().flat_map(|row| [ByteArray::from(row.2), "x".into()]).collect();
        let (levels, again): (Vec<i16>, Vec<i16>) =
            (vec![2; list.len()], [0, 1].repeat(group.len()));
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&list, Some(&levels), Some(&again)).unwrap();
        column.close().unwrap();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<FloatType>().write_batch(&vec![0.1; group.len()], None, None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn every_format_gives_the_same_flows() {
    let project = with_rows("fixture = \"fixtures/x.jsonl\"");
    project.write("fixtures/x.jsonl", ROWS);
    assert_eq!(project.ok(&[]).live(), 2);
    let table = |mark: &str| {
        format!(
            "id{mark}question{mark}answer\na{mark}Is it Paris?{mark}Paris\nb{mark}Else?{mark}other\n"
        )
    };
    let list = ROWS.trim().replace("}\n", "},\n");
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("x.jsonl.gz", gzip(ROWS.as_bytes())),
        // One file may be several, one after another.
        (
            "y.jsonl.gz",
            ROWS.lines().flat_map(|line| gzip(format!("{line}\n").as_bytes())).collect(),
        ),
        ("x.ndjson.zst", zstd::encode_all(ROWS.as_bytes(), 1).unwrap()),
        ("x.json", format!("[{list}]").into()),
        ("y.json", ROWS.into()),
        ("x.json.gz", gzip(format!("[{list}]").as_bytes())),
        ("x.csv", table(",").into()),
        ("x.csv.zst", zstd::encode_all(table(",").as_bytes(), 1).unwrap()),
        ("bom.csv", format!("\u{feff}{}", table(",")).into()),
        ("x.tsv", table("\t").into()),
        ("x.tsv.gz", gzip(table("\t").as_bytes())),
        ("x.parquet", parquet_of(&[("a", "Is it Paris?", "Paris"), ("b", "Else?", "other")])),
    ];
    let mut before = "x.jsonl".to_owned();
    for (name, bytes) in files {
        write_bytes(&project, &format!("fixtures/{name}"), &bytes);
        project.edit("pipelines/bench.toml", &format!("/{before}\""), &format!("/{name}\""));
        let ran = project.ok(&[]);
        assert_eq!((ran.live(), ran.metric("ask", "accuracy")), (0, 1.0), "{name}");
        // Not only no request: the table of flows is the same, byte by byte.
        assert_eq!(ran.states()["ask"], "fresh", "{name}");
        before = name.to_owned();
    }
}

#[test]
fn files_and_folders_are_read_in_order() {
    let project =
        with_rows("fixture = [\"fixtures/parts\", \"fixtures/one.jsonl\"]\nformat = \"jsonl\"");
    let row =
        |id: &str| format!("{{\"id\": \"{id}\", \"question\": \"q\", \"answer\": \"other\"}}\n");
    project.write("fixtures/parts/b/0.jsonl", &row("third"));
    write_bytes(
        &project,
        "fixtures/parts/a.jsonl.gz",
        &gzip((row("first") + &row("second")).as_bytes()),
    );
    project.write("fixtures/parts/notes.txt", "no rows");
    project.write("fixtures/one.jsonl", &row("fourth"));
    assert_eq!(flows(&project.ok(&[])), ["first", "second", "third", "fourth"]);
    // Every file of a folder is a row.
    project.edit(
        "pipelines/bench.toml",
        "[\"fixtures/parts\", \"fixtures/one.jsonl\"]",
        "\"fixtures/texts\"",
    );
    project.edit("pipelines/bench.toml", "\"jsonl\"", "\"files\"");
    project.write("fixtures/texts/b.md", "Where is Paris?");
    project.write("fixtures/texts/a/c.md", "Where?");
    let template = "id = \"row.path\"\n[[step]]\nid = \"x\"\nuser = \"{{ row.content }}\"\n";
    project.write("templates/qa.toml", template);
    assert_eq!(flows(&project.ok(&[])), ["a/c.md", "b.md"]);
}

#[test]
fn parquet_keeps_lists_and_short_numbers() {
    let project = with_rows("fixture = \"fixtures/x.parquet\"");
    let rows = [("a", "q1", "1"), ("b", "q2", "2"), ("c", "q3", "3")];
    write_bytes(&project, "fixtures/x.parquet", &parquet_of(&rows));
    let template =
        "id = \"row.id\"\ntargets = \"row.more\"\n[[step]]\nid = \"x\"\nuser = \"{{ row }}\"\n";
    project.write("templates/qa.toml", template);
    assert_eq!(flows(&project.ok(&[])), ["a", "b", "c"]);
    let rows = project.report_rows();
    assert_eq!(rows[1]["sample"]["targets"], json!(["2", "x"]));
    let asked = rows[2]["sample"]["steps"][0]["transcript"].to_string();
    assert!(asked.contains("0.1") && !asked.contains("0.10"), "{asked}");
    // Half a file is named, and is no crash.
    let whole = std::fs::read(project.path("fixtures/x.parquet")).unwrap();
    write_bytes(&project, "fixtures/x.parquet", &whole[..whole.len() / 2]);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot read `fixtures/x.parquet` as Parquet"), "{}", ran.stderr);
}

#[test]
fn a_file_that_is_compressed_otherwise_is_named() {
    let project = with_rows("fixture = \"fixtures/x.jsonl\"");
    write_bytes(&project, "fixtures/x.jsonl", b"BZh91AY&SY");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("`fixtures/x.jsonl` is compressed with bzip2"), "{}", ran.stderr);
    let mut cut = gzip(ROWS.repeat(500).as_bytes());
    cut.truncate(cut.len() / 2);
    write_bytes(&project, "fixtures/x.jsonl", &cut);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("cannot read on from here"), "{}", ran.stderr);
}

#[test]
fn columns_fields_and_ids_are_the_manifests() {
    let fields = "fixture = \"fixtures/x.csv\"\ncolumns = { question = \"The Question\" }\n\
        fields = { answer = \"row.working.split('#### ')[1].replace(',', '')\" }\n\
        filter = \"row.answer | int > 2\"\nsample_id = \"Nr\"";
    let project = with_rows(fields);
    project.write(
        "fixtures/x.csv",
        "Nr,The Question,working\n7,How much is it?,\"a #### 1,234\"\n8,And this?,b #### 3\n9,No?,c #### 1\n",
    );
    let replies = "replies = [{ when = \"How much\", reply = \"$1,234.00\" }, { reply = \"4\" }]";
    project.edit("pipelines/bench.toml", ECHO, replies);
    project.edit(
        "pipelines/bench.toml",
        "engine = \"engine\"",
        "engine = \"engine\"\nscorers = [\"numeric\"]",
    );
    let ran = project.ok(&[]);
    assert_eq!(flows(&ran), ["7", "8"]);
    assert_eq!(ran.metric("ask", "numeric"), 0.5);
    assert_eq!(project.report_rows()[0]["sample"]["targets"], json!(["1234"]));
    // A name is a label: under another one nothing is asked again.
    project.edit("pipelines/bench.toml", "\"Nr\"", "\"'n' ~ row.Nr\"");
    let ran = project.ok(&[]);
    assert_eq!((flows(&ran), ran.live()), (vec!["n7".to_owned(), "n8".to_owned()], 0));
    project.edit("pipelines/bench.toml", "\"The Question\"", "\"Question\"");
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains(
            "fixtures/x.csv:2: there is no column `Question` (columns of the row: `Nr`, `The Question`, `working`)\n  | {\"Nr\":\"7\""
        ),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_bad_row_fails_or_is_left_out_and_counted() {
    let rows = "{\"id\": \"a\", \"question\": \"q1\", \"answer\": \"other\"}\n{oops}\n[1]\n\
        {\"id\": \"b\", \"question\": \"q2\"}\n{\"id\": \"c\", \"question\": \"q3\", \"answer\": \"other\"}\n";
    for seed in ["", "\nshuffle_seed = 3"] {
        let project = with_rows(&format!("fixture = \"fixtures/x.jsonl\"{seed}"));
        project.write("fixtures/x.jsonl", rows);
        let ran = project.apply(&[]);
        assert_eq!(ran.code, 2);
        let shown =
            "fixtures/x.jsonl:2:2: this line is not JSON: key must be a string\n  | {oops}\n  |  ^";
        assert!(ran.stderr.contains(shown), "{}", ran.stderr);
        project.edit(
            "pipelines/bench.toml",
            "template = \"question\"",
            "template = \"question\"\non_bad_row = \"skip\"",
        );
        let ran = project.ok(&[]);
        let mut kept = flows(&ran);
        kept.sort();
        assert_eq!(kept, ["a", "c"]);
        assert!(ran.stderr.contains("warning: flows: 3 bad rows left out:\n"), "{}", ran.stderr);
        assert!(ran.stderr.contains("\nflows: 3 bad rows left out\n"), "{}", ran.stderr);
        assert!(ran.stderr.contains("x.jsonl:4: `targets` of the flow template"), "{}", ran.stderr);
        let skipped = |ran: &Ran| {
            let done = ran.done();
            let stages = done["stages"].as_array().unwrap();
            stages.iter().find(|stage| stage["name"] == "flows").unwrap()["rows_skipped"].clone()
        };
        assert_eq!(skipped(&ran), 3);
        let report: Value =
            serde_json::from_str(&project.read("out/bench/report/report.json")).unwrap();
        assert_eq!(report["cells"][0]["config"]["rows_skipped"], 3);
        assert!(project.read("out/bench/report/report.md").contains("3 bad rows were left out"));
        assert!(project.read("out/bench/report/report.html").contains("3 bad rows were left out"));
        assert!(project.read("pipelines/bench.lock").contains("rows_skipped = 3\n"));
        // It is told as well when nothing runs; and one bad row more changes the report, and asks nothing.
        let ran = project.ok(&[]);
        assert_eq!((skipped(&ran), ran.states()["flows"].as_str()), (json!(3), "fresh"));
        assert!(ran.stderr.contains("flows: 3 bad rows left out"), "{}", ran.stderr);
        project.write("fixtures/x.jsonl", &format!("{rows}nonsense\n"));
        let ran = project.ok(&[]);
        assert_eq!((skipped(&ran), ran.live()), (json!(4), 0));
        assert!(project.read("out/bench/report/report.md").contains("4 bad rows were left out"));
    }
}

#[test]
fn a_limited_sample_is_part_of_every_larger_one() {
    let project = with_rows("fixture = \"fixtures/rows.jsonl\"\nshuffle_seed = 11");
    project.rows(300);
    project.edit("pipelines/bench.toml", ECHO, "replies = [{ reply = \"0\" }]");
    let hundred = project.ok(&["--limit", "10"]);
    assert_eq!(hundred.live(), 10);
    let ten = flows(&hundred);
    // Only what is new is asked: a limited run is a start, and not a run of its own.
    let more = project.ok(&["--limit", "100"]);
    assert_eq!((more.live(), more.disk()), (90, 10));
    let hundred = flows(&more);
    let all = project.ok(&[]);
    assert_eq!((all.live(), all.disk()), (200, 100));
    let all = flows(&all);
    assert_eq!(ten, hundred[..10]);
    assert_eq!(hundred, all[..100]);
    assert_ne!(all, (0..300).map(|n| format!("q{n}")).collect::<Vec<_>>());
    // Rows of another file beside them do not change who comes before whom.
    project
        .write("fixtures/more.jsonl", "{\"id\": \"new\", \"question\": \"new?\", \"answer\": 1}\n");
    project.edit(
        "pipelines/bench.toml",
        "\"fixtures/rows.jsonl\"",
        "[\"fixtures/more.jsonl\", \"fixtures/rows.jsonl\"]",
    );
    let with_more = project.ok(&[]);
    assert_eq!(with_more.live(), 1);
    let names: Vec<_> = flows(&with_more).into_iter().filter(|name| name != "new").collect();
    assert_eq!(names, all);
}

#[test]
fn a_limited_run_in_the_order_of_the_file_is_a_start_too() {
    let project = with_rows("fixture = \"fixtures/rows.jsonl\"\nlimit = 4");
    project.rows(10);
    assert_eq!(project.ok(&[]).live(), 4);
    project.edit("pipelines/bench.toml", "limit = 4", "");
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.disk()), (6, 4));
}

#[test]
fn equal_rows_stay_distinct() {
    for seed in ["", "\nshuffle_seed = 3"] {
        let project = with_rows(&format!("fixture = \"fixtures/x.jsonl\"{seed}"));
        let row = "{\"id\": \"a\", \"question\": \"Which?\", \"answer\": \"other\"}\n";
        project.write("fixtures/x.jsonl", &row.repeat(3));
        let ran = project.ok(&[]);
        assert_eq!(flows(&ran), ["a", "a#2", "a#3"]);
        // Three draws, and not one answer three times.
        assert_eq!(ran.live(), 3);
        project.write("fixtures/x.jsonl", &row.repeat(4));
        let ran = project.ok(&[]);
        assert_eq!((ran.live(), ran.disk()), (1, 3));
    }
}

#[test]
fn an_address_is_fetched_once_and_must_be_what_is_pinned() {
    let hub = Hub::start();
    let body = gzip(ROWS.as_bytes());
    hub.put(
        "/rows.jsonl.gz?sig=secret",
        vec![Answer::status(503, "busy"), Answer::ok(body.clone())],
    );
    let url = hub.url("/rows.jsonl.gz?sig=secret");
    let project =
        with_rows(&format!("fixture = {{ url = \"{url}\", sha256 = \"{}\" }}", sha256(&body)));
    let offline = project.forge(&["plan", "pipelines/bench.toml"]);
    assert_eq!(offline.code, 1);
    assert!(
        offline.stderr.contains("is not in the store; `forge apply` fetches it"),
        "{}",
        offline.stderr
    );
    assert!(!offline.stderr.contains("sig=secret"), "{}", offline.stderr);
    let ran = project.ok(&[]);
    assert_eq!((ran.live(), ran.metric("ask", "accuracy"), hub.count()), (2, 1.0, 2));
    assert!(ran.stderr.contains("the server says 503 (busy); trying again"), "{}", ran.stderr);
    drop(hub);
    let again = project.ok(&[]);
    assert_eq!((again.live(), again.states()["flows"].as_str()), (0, "fresh"));
    // The bytes are in the store, whatever happens to what was made of them.
    assert_eq!(project.ok(&["--no-cache"]).live(), 2);
    assert_eq!(project.forge(&["plan", "pipelines/bench.toml"]).code, 0);
}

#[test]
fn a_wrong_digest_names_both_and_keeps_nothing() {
    let hub = Hub::start();
    hub.put("/rows.jsonl", vec![Answer::ok(ROWS)]);
    let (found, pinned) = (sha256(ROWS.as_bytes()), sha256(b"other"));
    let fixture =
        format!("fixture = {{ url = \"{}\", sha256 = \"{pinned}\" }}", hub.url("/rows.jsonl"));
    let project = with_rows(&fixture);
    let ran = project.apply(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let words = format!("its SHA-256 is {found}, and {pinned} is pinned");
    assert!(ran.stderr.contains(&words), "{}", ran.stderr);
    assert!(!project.path(&format!(".forge/cas/{}/{}", &found[..2], &found[2..])).exists());
    // What is not there is the user's business too, and is not asked for five times.
    project.edit("pipelines/bench.toml", "/rows.jsonl", "/gone.jsonl");
    let before = hub.count();
    let ran = project.apply(&[]);
    assert_eq!((ran.code, hub.count() - before), (2, 1), "{}", ran.stderr);
    assert!(ran.stderr.contains("the server says 404"), "{}", ran.stderr);
}

/// A project that reads a data set of this hub.
fn on_hub(hub: &Hub, address: &str) -> (Project, Vec<(&'static str, String)>) {
    let project = with_rows(&format!("fixture = \"{address}\""));
    let env = vec![("HF_ENDPOINT", hub.url("")), ("HF_TOKEN", "hf_verysecret".to_owned())];
    (project, env)
}

fn apply(project: &Project, env: &[(&'static str, String)], args: &[&str]) -> Ran {
    let mut command = project.command(&["apply", "pipelines/bench.toml", "--json"]);
    command.args(args).envs(env.iter().map(|(name, value)| (name, value)));
    Ran::of(command.output().unwrap())
}

#[test]
fn a_data_set_is_pinned_cached_and_then_offline() {
    let hub = Hub::start();
    let readme = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n# Set\n";
    let shards =
        [parquet_of(&[("a", "Is it Paris?", "Paris")]), parquet_of(&[("b", "Else?", "other")])];
    let files: Vec<(&str, &[u8])> = vec![
        ("README.md", readme.as_bytes()),
        ("main/test-00000-of-00002.parquet", &shards[0]),
        ("main/test-00001-of-00002.parquet", &shards[1]),
        ("main/train-00000-of-00001.parquet", b"never asked for"),
    ];
    hub.data_set("org/set", COMMIT, &files);
    let (project, env) = on_hub(&hub, "hf://datasets/org/set?config=main&split=test");
    let ran = apply(&project, &env, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!((flows(&ran), ran.live()), (vec!["a".to_owned(), "b".to_owned()], 2));
    let lock = project.read("pipelines/bench.lock");
    assert!(
        lock.contains(&format!("pins.\"hf://datasets/org/set@main\" = \"{COMMIT}\"\n")),
        "{lock}"
    );
    // Revision, list, README, and two shards with their redirections.
    assert_eq!(hub.count(), 7);
    assert!(hub.asked_for("train").is_empty());
    assert!(
        hub.asked_for("/api/")
            .iter()
            .all(|(_, token)| token.as_deref() == Some("Bearer hf_verysecret"))
    );
    // The token is nowhere: not in what was said, not in any file of the project.
    assert!(!ran.stderr.contains("verysecret") && !ran.stdout.contains("verysecret"));
    let found = Command::new("grep")
        .args(["-rl", "verysecret", "."])
        .current_dir(project.root())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");

    // The branch moves on; the lock does not, and no server is asked.
    let other = parquet_of(&[("c", "Is it Paris?", "Paris")]);
    hub.data_set(
        "org/set",
        LATER,
        &[("README.md", readme.as_bytes()), ("main/test-0.parquet", &other)],
    );
    let ran = apply(&project, &env, &["--no-cache"]);
    assert_eq!((ran.code, flows(&ran).len(), hub.count()), (0, 2, 7), "{}", ran.stderr);
    assert_eq!(project.forge(&["verify", "pipelines/bench.toml"]).code, 0);
    // Elsewhere, with the lock file and an empty store, it is the same commit again.
    std::fs::remove_dir_all(project.path(".forge")).unwrap();
    let ran = apply(&project, &env, &[]);
    assert_eq!((ran.code, flows(&ran).len()), (0, 2), "{}", ran.stderr);
    assert!(hub.asked_for("/revision/").len() == 1);
    // Unless that is what is wanted.
    let ran = apply(&project, &env, &["--update-data"]);
    assert_eq!((ran.code, flows(&ran)), (0, vec!["c".to_owned()]), "{}", ran.stderr);
    assert!(project.read("pipelines/bench.lock").contains(LATER));
}

#[test]
fn small_files_of_a_hub_are_checked_and_found_by_convention() {
    let hub = Hub::start();
    hub.data_set("org/set", COMMIT, &[("test.jsonl", ROWS.as_bytes()), ("train.jsonl", b"{}")]);
    let (project, env) = on_hub(&hub, "hf://datasets/org/set@main?split=test");
    let ran = apply(&project, &env, &[]);
    assert_eq!((ran.code, ran.live()), (0, 2), "{}", ran.stderr);
    // A commit needs no look-up, and the same content is no other key.
    project.edit("pipelines/bench.toml", "@main", &format!("@{COMMIT}"));
    let ran = apply(&project, &env, &[]);
    assert_eq!((ran.code, ran.states()["flows"].as_str()), (0, "fresh"), "{}", ran.stderr);
    assert!(!project.read("pipelines/bench.lock").contains("pins"));
    project.edit("pipelines/bench.toml", "split=test", "split=tset");
    let ran = apply(&project, &env, &[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("there is no split `tset` (known: test, train)"), "{}", ran.stderr);
    // What comes is not what the list says.
    let address = format!("/datasets/org/set/resolve/{COMMIT}/train.jsonl");
    hub.put(&address, vec![Answer::ok("{]")]);
    project.edit("pipelines/bench.toml", "split=tset", "split=train");
    let ran = apply(&project, &env, &[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("is not what it should be: its git hash is"), "{}", ran.stderr);
}

#[test]
fn a_hub_that_refuses_is_told_as_it_is() {
    let hub = Hub::start();
    let said = Answer::status(401, "{\"error\": \"Access to dataset org/set is restricted\"}");
    hub.put("/api/datasets/org/set/revision/main", vec![said]);
    let (project, env) = on_hub(&hub, "hf://datasets/org/set");
    let ran = apply(&project, &env[..1], &[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("(Access to dataset org/set is restricted)"), "{}", ran.stderr);
    assert!(ran.stderr.contains("set HF_TOKEN to a token that may read it"), "{}", ran.stderr);
    let ran = apply(&project, &env, &[]);
    assert!(ran.stderr.contains("the token in HF_TOKEN may not read it"), "{}", ran.stderr);
    let frozen = apply(&project, &env, &["--frozen"]);
    assert_eq!(frozen.code, 1);
    assert!(frozen.stderr.contains("not in the store, and the run is frozen"), "{}", frozen.stderr);
}

#[test]
fn a_long_list_of_files_comes_in_pages() {
    let hub = Hub::start();
    hub.data_set("org/set", COMMIT, &[("test.jsonl", ROWS.as_bytes())]);
    let list = format!("/api/datasets/org/set/tree/{COMMIT}?recursive=true");
    let next = format!("{list}&cursor=x");
    let first = json!([{ "type": "file", "oid": "0", "size": 1, "path": "a.txt" }]).to_string();
    let link = format!("Link: <{}>; rel=\"next\"", hub.url(&next));
    let mut git = sha1::Sha1::default();
    sha1::Digest::update(&mut git, format!("blob {}\0{ROWS}", ROWS.len()));
    let oid: String = sha1::Digest::finalize(git).iter().map(|b| format!("{b:02x}")).collect();
    let second = json!([{ "type": "file", "oid": oid, "size": ROWS.len(), "path": "test.jsonl" }]);
    hub.put(&list, vec![Answer::ok(first).with_head(&link)]);
    hub.put(&next, vec![Answer::ok(second.to_string())]);
    let (project, env) = on_hub(&hub, "hf://datasets/org/set@main/test.jsonl");
    assert_eq!(apply(&project, &env, &[]).live(), 2);
}
