//! Which files of a data set make up a split: what its README says, else the conventions of the `datasets`
//! library (huggingface.co/docs/hub/datasets-manual-configuration and datasets-file-names-and-splits).
//! Knows nothing of hubs.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobBuilder;
use serde_json::Value;

use super::source::Format;

/// Names of splits in file names, and what the split is called.
const KEYWORDS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Files that describe data and are none.
const ABOUT: &[&str] =
    &["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"];
/// The one that is meant where an address names none.
const DEFAULT: &str = "default";

/// What is wanted of a data set.
#[derive(Default)]
pub(super) struct Wish<'a> {
    pub(super) path: Option<&'a str>,
    pub(super) config: Option<&'a str>,
    pub(super) split: Option<&'a str>,
    pub(super) format: Option<Format>,
}

/// Tells the split of a file by its path.
type Rule = dyn Fn(&str) -> Option<String>;

/// Files of one split, each once.
type Splits = BTreeMap<String, Vec<String>>;

/// A part of a data set as its README describes it.
#[derive(Debug, PartialEq)]
struct Config {
    name: String,
    is_default: bool,
    /// Folder to which patterns are relative.
    folder: String,
    /// Names of splits with their patterns; empty where the conventions tell.
    data_files: Vec<(String, Vec<String>)>,
}

/// The files that are wanted, in the order in which they are read, and their format; else what is wrong.
pub(super) fn choose(
    paths: &[&str],
    readme: Option<&str>,
    wish: &Wish<'_>,
) -> Result<(Format, Vec<String>), String> {
    let files: Vec<&str> = paths.iter().copied().filter(|path| is_data(path)).collect();
    let chosen = match wish.path {
        Some(path) => below(&files, paths, path)?,
        None => split(&files, readme, wish)?,
    };
    of_one_format(chosen, wish.format)
}

fn split(files: &[&str], readme: Option<&str>, wish: &Wish<'_>) -> Result<Vec<String>, String> {
    let configs = configs(readme.unwrap_or_default())?;
    let folder = if configs.is_empty() {
        folder_of(files, wish.config)?
    } else {
        let config = config_of(&configs, wish.config)?;
        if !config.data_files.is_empty() {
            let names: Vec<&String> = config.data_files.iter().map(|(split, _)| split).collect();
            return by_patterns(files, config, &pick(&names, wish.split)?);
        }
        config.folder.clone()
    };
    let mut splits = by_convention(files, &folder);
    if splits.is_empty() {
        return Err("there are no files of rows in it".to_owned());
    }
    let name = pick(&splits.keys().collect::<Vec<_>>(), wish.split)?;
    Ok(splits.remove(&name).unwrap_or_default())
}

/// The split that is wanted, or the only one.
fn pick(names: &[&String], wanted: Option<&str>) -> Result<String, String> {
    let known = || list(names.iter().copied());
    match (wanted, names) {
        (Some(split), _) if names.iter().any(|name| *name == split) => Ok(split.to_owned()),
        (Some(split), _) => Err(format!("there is no split `{split}` (known: {})", known())),
        (None, [one]) => Ok((*one).clone()),
        (None, _) => Err(format!("it has several splits; add `split=…` (known: {})", known())),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Whether a file can hold rows.
fn is_data(path: &str) -> bool {
    let hidden = path.split('/').any(|part| part.starts_with('.') || part.starts_with("__"));
    let name = path.rsplit('/').next().unwrap_or_default();
    !hidden && !ABOUT.contains(&name) && Format::of(path, false, None).is_some()
}

/// One file, or all below a folder.
fn below(files: &[&str], all: &[&str], path: &str) -> Result<Vec<String>, String> {
    if all.contains(&path) {
        return Ok(vec![path.to_owned()]);
    }
    let folder = format!("{path}/");
    let mut found: Vec<String> =
        files.iter().filter(|file| file.starts_with(&folder)).map(ToString::to_string).collect();
    found.sort();
    match found.is_empty() {
        true => {
            Err("there is no such file, and no folder of that name with files of rows".to_owned())
        }
        false => Ok(found),
    }
}

/// Files of the named format, else of that which most of them have.
fn of_one_format(
    chosen: Vec<String>,
    named: Option<Format>,
) -> Result<(Format, Vec<String>), String> {
    let Some(format) = named.or_else(|| {
        let mut counts: BTreeMap<Format, usize> = BTreeMap::new();
        for format in chosen.iter().filter_map(|path| Format::of(path, false, None)) {
            *counts.entry(format).or_default() += 1;
        }
        let most = counts.values().max().copied()?;
        counts.into_iter().find(|(_, count)| *count == most).map(|(format, _)| format)
    }) else {
        return Err("cannot tell the format of its files; add `format`".to_owned());
    };
    // A single file may be called whatever it likes, where the manifest says what it is.
    if chosen.len() == 1 {
        return Ok((format, chosen));
    }
    let of = |path: &String| Format::of(path, false, None) == Some(format);
    let kept: Vec<String> = chosen.into_iter().filter(of).collect();
    match kept.is_empty() {
        true => Err(format!("it has no files of the format {}", format.name())),
        false => Ok((format, kept)),
    }
}

fn config_of<'a>(configs: &'a [Config], wanted: Option<&str>) -> Result<&'a Config, String> {
    let known = || list(configs.iter().map(|config| &config.name));
    if let Some(wanted) = wanted {
        let found = configs.iter().find(|config| config.name == wanted);
        return found.ok_or_else(|| format!("there is no config `{wanted}` (known: {})", known()));
    }
    let default = configs.iter().find(|config| config.is_default || config.name == DEFAULT);
    match (default, configs) {
        (Some(config), _) | (None, [config]) => Ok(config),
        _ => Err(format!("it has several configs; add `config=…` (known: {})", known())),
    }
}

/// Where the README says nothing, a config is a folder.
fn folder_of(files: &[&str], config: Option<&str>) -> Result<String, String> {
    let Some(config) = config.filter(|config| *config != DEFAULT) else { return Ok(String::new()) };
    let folder = format!("{config}/");
    if files.iter().any(|file| file.starts_with(&folder)) {
        return Ok(folder);
    }
    let folders: BTreeSet<String> =
        files.iter().filter_map(|file| Some(file.split_once('/')?.0.to_owned())).collect();
    let known = if folders.is_empty() { "none".to_owned() } else { list(folders.iter()) };
    Err(format!(
        "there is no config `{config}`, and no folder of that name (folders with files of rows: {known})"
    ))
}

fn by_patterns(files: &[&str], config: &Config, split: &str) -> Result<Vec<String>, String> {
    let mut chosen: Vec<String> = Vec::new();
    for (_, patterns) in config.data_files.iter().filter(|(name, _)| name == split) {
        for pattern in patterns {
            let pattern = format!("{}{}", config.folder, pattern.trim_start_matches("./"));
            let glob = GlobBuilder::new(&pattern).literal_separator(true).build();
            let glob = glob.map_err(|error| format!("its README has a bad pattern: {error}"))?;
            let matcher = glob.compile_matcher();
            let mut found: Vec<&str> =
                files.iter().copied().filter(|file| matcher.is_match(file)).collect();
            found.sort_unstable();
            if found.is_empty() {
                return Err(format!(
                    "its README says that the split `{split}` is `{pattern}`, and there is no such file of rows"
                ));
            }
            for file in found {
                if !chosen.iter().any(|known| known == file) {
                    chosen.push(file.to_owned());
                }
            }
        }
    }
    Ok(chosen)
}

/// Names of shards first (`data/test-00000-of-00001.parquet`), then folders called like splits, then files
/// called like splits; where there is none of these, all files are `train`.
fn by_convention(files: &[&str], folder: &str) -> Splits {
    let mut inside: Vec<(&str, &str)> =
        files.iter().filter_map(|file| Some((*file, file.strip_prefix(folder)?))).collect();
    inside.sort_unstable();
    let rules: [&Rule; 3] = [
        &|file| shard(file),
        &|file| {
            let (folders, _) = file.rsplit_once('/')?;
            folders.split('/').find_map(|folder| keyword(folder, false))
        },
        &|file| keyword(file.rsplit('/').next()?, true),
    ];
    for rule in rules {
        let mut splits = Splits::new();
        for (whole, file) in &inside {
            if let Some(split) = rule(file) {
                splits.entry(split).or_default().push((*whole).to_owned());
            }
        }
        if !splits.is_empty() {
            return splits;
        }
    }
    let all: Vec<String> = inside.iter().map(|(whole, _)| (*whole).to_owned()).collect();
    if all.is_empty() { Splits::new() } else { [("train".to_owned(), all)].into() }
}

/// The split of `data/<split>-00000-of-00001.…`, or of the same without its folder.
fn shard(file: &str) -> Option<String> {
    let name = file.strip_prefix("data/").unwrap_or(file);
    if name.contains('/') {
        return None;
    }
    let (before, after) = name.split_once("-of-")?;
    let (split, number) = before.rsplit_once('-')?;
    let digits = |text: &str| text.len() >= 5 && text.bytes().take(5).all(|c| c.is_ascii_digit());
    (number.len() == 5 && digits(number) && digits(after) && !split.is_empty())
        .then(|| split.to_owned())
}

/// The split whose keyword is a word of the name; of a file, something comes after it.
fn keyword(name: &str, is_file: bool) -> Option<String> {
    let separates = |c: char| matches!(c, '-' | '.' | '_' | ' ') || c.is_ascii_digit();
    let mut words: Vec<&str> = name.split(separates).collect();
    if is_file {
        words.pop();
    }
    let split = KEYWORDS.iter().find(|(_, known)| known.iter().any(|word| words.contains(word)));
    split.map(|(split, _)| (*split).to_owned())
}

/// `configs` in the YAML at the head of a README.
fn configs(readme: &str) -> Result<Vec<Config>, String> {
    let Some(head) = head(readme) else { return Ok(Vec::new()) };
    let head: Value = serde_saphyr::from_str(head).map_err(|error| {
        let error = error.to_string();
        let first = error.lines().next().unwrap_or_default();
        format!(
            "cannot read the YAML at the head of its README ({first}); name its files instead: `…@<revision>/<path>`"
        )
    })?;
    let texts = |value: &Value| -> Vec<String> {
        let one = |value: &Value| value.as_str().map(str::to_owned);
        match value {
            Value::Array(items) => items.iter().filter_map(one).collect(),
            value => one(value).into_iter().collect(),
        }
    };
    let configs = head["configs"].as_array().into_iter().flatten().map(|config| {
        let mut data_files = Vec::new();
        match &config["data_files"] {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for item in items {
                    let split = item["split"].as_str().unwrap_or("train").to_owned();
                    data_files.push((split, texts(&item["path"])));
                }
            }
            Value::Object(splits) => {
                data_files.extend(splits.iter().map(|(split, path)| (split.clone(), texts(path))));
            }
            Value::Null => {}
            value => data_files.push(("train".to_owned(), texts(value))),
        }
        let folder = config["data_dir"].as_str().unwrap_or_default().trim_matches(['.', '/']);
        Config {
            name: config["config_name"].as_str().unwrap_or(DEFAULT).to_owned(),
            is_default: config["default"].as_bool().unwrap_or(false),
            folder: if folder.is_empty() { String::new() } else { format!("{folder}/") },
            data_files,
        }
    });
    Ok(configs.collect())
}

/// What stands between two lines of three dashes at the start.
fn head(readme: &str) -> Option<&str> {
    let rest = readme.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n'))?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&rest[..at]);
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(paths: &[&str], readme: &str, config: &str, split: &str, want: Result<&[&str], &str>) {
        let some = |text| Some(text).filter(|text: &&str| !text.is_empty());
        let wish = Wish { path: None, config: some(config), split: some(split), format: None };
        let got = choose(paths, Some(readme), &wish).map(|(_, files)| files);
        let want = want.map(|files| files.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(got, want.map_err(str::to_owned), "{paths:?} {config} {split}");
    }

    #[test]
    fn names_of_shards_tell_the_split() {
        let paths = [
            "README.md",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test_prefs-00000-of-00001-abc.parquet",
        ];
        let train = &paths[1..3];
        check(&paths, "", "", "train", Ok(train));
        check(&paths, "", "", "test_prefs", Ok(&paths[3..]));
        let several = "it has several splits; add `split=…` (known: test_prefs, train)";
        check(&paths, "", "", "", Err(several));
        check(&paths, "", "", "tset", Err("there is no split `tset` (known: test_prefs, train)"));
    }

    #[test]
    fn a_config_is_a_folder_where_nothing_is_said() {
        let paths = ["main/test-00000-of-00001.parquet", "socratic/test/0000.parquet", "x.jsonl"];
        check(&paths, "", "main", "test", Ok(&paths[..1]));
        check(&paths, "", "socratic", "test", Ok(&paths[1..2]));
        let unknown = "there is no config `other`, and no folder of that name (folders with files of rows: main, socratic)";
        check(&paths, "", "other", "test", Err(unknown));
    }

    #[test]
    fn names_of_folders_and_files_tell_the_split() {
        check(&["test.jsonl", "train.jsonl"], "", "", "test", Ok(&["test.jsonl"]));
        check(&["my-dev-v2.csv", "my-train.csv"], "", "", "validation", Ok(&["my-dev-v2.csv"]));
        check(&["testing/a.csv", "training/test.csv"], "", "", "train", Ok(&["training/test.csv"]));
        // "latest" is no "test".
        check(&["latest.csv"], "", "", "train", Ok(&["latest.csv"]));
        check(&["rows.json", "dataset_infos.json"], "", "", "", Ok(&["rows.json"]));
        check(&["a.txt", ".b.csv"], "", "", "", Err("there are no files of rows in it"));
    }

    const README: &str = "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  \
        - split: test\n    path:\n    - main/test-*\n    - more/**\n- config_name: socratic\n  default: true\n  data_files: s.jsonl\n\
        - config_name: by-folder\n  data_dir: folder\n---\n# Text\n---\nconfigs: no\n";

    #[test]
    fn the_readme_decides_where_it_speaks() {
        let paths = [
            "README.md",
            "folder/test.csv",
            "main/test-0.parquet",
            "main/sub/test-1.parquet",
            "more/a/b.parquet",
            "s.jsonl",
        ];
        check(&paths, README, "main", "test", Ok(&["main/test-0.parquet", "more/a/b.parquet"]));
        check(&paths, README, "", "", Ok(&["s.jsonl"]));
        check(&paths, README, "by-folder", "test", Ok(&["folder/test.csv"]));
        let missing = "its README says that the split `train` is `main/train-*`, and there is no such file of rows";
        check(&paths[..2], README, "main", "train", Err(missing));
        let unknown = "there is no config `mian` (known: main, socratic, by-folder)";
        check(&paths, README, "mian", "", Err(unknown));
        let broken = "---\na: [\n---\n";
        let error = choose(&paths, Some(broken), &Wish::default()).unwrap_err();
        assert!(error.starts_with("cannot read the YAML at the head of its README"), "{error}");
    }

    #[test]
    fn most_files_decide_the_format() {
        let paths = ["test/a.csv", "test/b.parquet", "test/c.parquet"];
        check(&paths, "", "", "", Ok(&paths[1..]));
        let wish = Wish { format: Some(Format::Csv), ..Wish::default() };
        assert_eq!(choose(&paths, None, &wish), Ok((Format::Csv, vec!["test/a.csv".to_owned()])));
    }

    #[test]
    fn a_path_is_a_file_or_a_folder() {
        let paths = ["a/x.parquet", "a/y.parquet", "b.txt"];
        let choose = |path, format| {
            choose(&paths, None, &Wish { path: Some(path), format, ..Wish::default() })
        };
        assert_eq!(choose("a", None).unwrap().1, paths[..2]);
        assert_eq!(choose("a/y.parquet", None).unwrap().1, paths[1..2]);
        assert_eq!(
            choose("b.txt", Some(Format::Csv)).unwrap(),
            (Format::Csv, vec!["b.txt".into()])
        );
        assert!(choose("b.txt", None).unwrap_err().contains("add `format`"));
        assert!(choose("c", None).unwrap_err().contains("there is no such file"));
    }
}
