//! From the final reply of a sample to its scores: extractors take answers out, scorers compare them. Text
//! scorers are in `scorer`; those that act are in the files beside this one. Knows nothing of how replies come
//! to be, and asks engines through their one door.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::digest::{Digest, Key, Recipe};
use crate::engine::{Access, Client, Failure, Mode, Resource};
use crate::method::extract::{self, Extractor};
use crate::record::{ScorerRequest, Tariffs};
use crate::sample::{Completion, Flow, Message, Outcome, Reading, Request, Score, Unscored};
use crate::scorer::{Json, Pattern, Scorer, Texts, json as json_text, pattern};
use crate::stage::workflow::embedding;
use crate::stage::{Artifact, Context, Inputs, StageError};

mod code;
mod command;
mod judge;
mod likelihood;
mod read;
mod sandbox;
mod semantic;

pub(super) use read::read;

use code::Code;
use command::Command;
use judge::Judge;
use likelihood::Likelihood;
use sandbox::Sandbox;
use semantic::Semantic;

/// What a workflow does with final replies, as its manifest says.
pub struct Scoring {
    /// The first one decides `accuracy`.
    scorers: Vec<Named>,
    /// The first one's answer is the sample's; without any it is the method's.
    extractors: Vec<Extractor>,
}

/// A scorer with the name under which its values stand.
struct Named {
    name: String,
    way: Way,
}

enum Way {
    Plain(&'static Scorer),
    Pattern(Pattern),
    Json(Box<Json>),
    Judge(Judge),
    Semantic(Semantic),
    Code(Code),
    Command(Command),
    Likelihood(Likelihood),
}

impl Way {
    /// Kind, version and settings, as they stand in a recipe.
    fn describe(&self) -> (&'static str, u32, Value) {
        match self {
            Way::Plain(scorer) => (scorer.name, scorer.rev, Value::Null),
            Way::Pattern(found) => ("regex", pattern::REV, json!({ "pattern": found.text() })),
            Way::Json(json) => {
                let settings = json!({
                    "anywhere": json.anywhere, "fields": json.fields, "schema": json.schema,
                });
                ("json", json_text::REV, settings)
            }
            Way::Judge(judge) => ("judge", judge::REV, judge.describe()),
            Way::Semantic(_) => ("semantic", semantic::REV, Value::Null),
            Way::Code(code) => ("code", code::REV, code.describe()),
            Way::Command(command) => ("command", command::REV, command.describe()),
            Way::Likelihood(likelihood) => ("choice", likelihood::REV, likelihood.describe()),
        }
    }

    /// Where its definition comes from.
    fn source(&self) -> &'static str {
        match self {
            Way::Plain(scorer) => scorer.source,
            Way::Pattern(_) => pattern::SOURCE,
            Way::Json(_) => json_text::SOURCE,
            Way::Judge(_) => judge::SOURCE,
            Way::Semantic(_) => semantic::SOURCE,
            Way::Code(_) => code::SOURCE,
            Way::Command(_) => command::SOURCE,
            Way::Likelihood(_) => likelihood::SOURCE,
        }
    }

    /// Whether it says nothing without a target.
    fn needs_targets(&self) -> bool {
        match self {
            Way::Plain(_) | Way::Semantic(_) | Way::Code(_) | Way::Likelihood(_) => true,
            Way::Pattern(pattern) => pattern.has_group(),
            Way::Json(_) | Way::Judge(_) | Way::Command(_) => false,
        }
    }

    /// Whether it wants the reply as it came where no extractor is named: methods take marks off, and lines.
    fn reads_reply(&self) -> bool {
        matches!(self, Way::Json(_) | Way::Code(_))
    }

    /// The port of the engine that it asks: one of its own, or that of the workflow.
    fn asks(&self, scorer: &str) -> Option<String> {
        match self {
            Way::Judge(_) | Way::Semantic(_) => Some(port(scorer)),
            Way::Likelihood(_) => Some("engine".to_owned()),
            _ => None,
        }
    }

    fn starts_programs(&self) -> bool {
        matches!(self, Way::Code(_) | Way::Command(_))
    }
}

/// A scoring whose engines and files are known: what a key is made of.
pub struct Prepared {
    scoring: Arc<Scoring>,
    /// Identities of engines, by scorer.
    engines: BTreeMap<String, Digest>,
    /// Files of programs, by scorer and path.
    files: BTreeMap<String, BTreeMap<String, Digest>>,
}

/// The port at which the engine of a scorer comes in.
fn port(scorer: &str) -> String {
    format!("{scorer}.engine")
}

/// The engine that a scorer asks, if it asks one.
fn engine<'a>(Named { name, way }: &Named, inputs: &'a Inputs) -> Option<&'a Arc<Resource>> {
    match inputs.one(&way.asks(name)?) {
        Artifact::Engine(engine) => Some(engine),
        _ => unreachable!("BUG: the graph lets only engines in here"),
    }
}

impl Scoring {
    /// Looks up engines and reads files into the store: what is used is what the key is made of.
    pub(super) fn prepare(
        self: &Arc<Self>,
        inputs: &Inputs,
        context: &Context,
    ) -> Result<Prepared, StageError> {
        let (mut engines, mut files) = (BTreeMap::new(), BTreeMap::new());
        for named in &self.scorers {
            let Named { name, way } = named;
            match (way, engine(named, inputs)) {
                (_, None) => {}
                // It is the workflow's, which stands in every key already.
                (Way::Likelihood(_), Some(engine)) => {
                    engine.backend.likelihoods().map_err(|why| {
                        StageError::User(format!(
                            "the scorer `{name}` needs log-probabilities of prompts, and the engine `{}` gives none: \
                             {why}; with any engine, `by = \"letter\"` reads the letter that the model writes",
                            engine.stage
                        ))
                    })?;
                }
                (_, Some(engine)) => {
                    if let Way::Semantic(_) = way {
                        embedding::check(&format!("the scorer `{name}`"), engine)?;
                    }
                    engines.insert(name.clone(), engine.identity);
                }
            }
            if let Way::Command(command) = way {
                files.insert(name.clone(), command.import(context)?);
            }
        }
        Ok(Prepared { scoring: self.clone(), engines, files })
    }

    /// What tokens of scorers cost, by scorer.
    pub(super) fn tariffs(&self, inputs: &Inputs) -> Tariffs {
        let tariff = |named: &Named| Some((named.name.clone(), engine(named, inputs)?.tariff()?));
        self.scorers.iter().filter_map(tariff).collect()
    }

    /// The scorers in their order, by the names of their values.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.scorers.iter().map(|named| named.name.as_str())
    }

    /// Where the definitions of the scorers come from, by name, for reports.
    pub(super) fn sources(&self) -> BTreeMap<String, String> {
        let source = |named: &Named| (named.name.clone(), named.way.source().to_owned());
        self.scorers.iter().map(source).collect()
    }

    /// Files of the project that it reads.
    pub(super) fn reads(&self) -> Vec<camino::Utf8PathBuf> {
        let files = self.scorers.iter().filter_map(|named| match &named.way {
            Way::Command(command) => Some(command.files.clone()),
            _ => None,
        });
        files.flatten().collect()
    }

    /// Whether nothing of it needs a reply.
    pub(super) fn needs_no_reply(&self) -> bool {
        let likelihood = |named: &Named| matches!(named.way, Way::Likelihood(_));
        self.extractors.is_empty() && self.scorers.iter().all(likelihood)
    }

    /// Scorers that ask for the likelihood of each option.
    fn likelihoods(&self) -> impl Iterator<Item = &str> {
        let all = self.scorers.iter().filter(|named| matches!(named.way, Way::Likelihood(_)));
        all.map(|named| named.name.as_str())
    }

    /// Scorers that ask: the name, bytes of the prompt beyond what is judged, most tokens of the reply.
    fn judging(&self) -> impl Iterator<Item = (&str, u64, u32)> {
        self.scorers.iter().filter_map(|named| match &named.way {
            Way::Judge(judge) => Some((named.name.as_str(), judge.frame(), judge.max_tokens)),
            Way::Semantic(_) => Some((named.name.as_str(), 0, 0)),
            _ => None,
        })
    }
}

impl Prepared {
    /// Adds scorers and extractors with their versions to a recipe, in order: the first ones decide `accuracy`.
    pub fn describe(&self, recipe: Recipe) -> Recipe {
        let line = |Named { name, way }: &Named| {
            let (kind, rev, settings) = way.describe();
            match settings {
                Value::Null if kind == name => format!("{kind} {rev}"),
                settings => format!("{name}: {kind} {rev} {settings}"),
            }
        };
        let lines: Vec<String> = self.scoring.scorers.iter().map(line).collect();
        let recipe = extract::describe(&self.scoring.extractors, recipe.field("scorers", lines));
        let recipe = self.engines.iter().fold(recipe, |recipe, (name, identity)| {
            recipe.input(format!("{name} engine"), *identity)
        });
        let files = self.files.iter().flat_map(|(name, files)| {
            files.iter().map(move |(path, digest)| (format!("{name} {path}"), *digest))
        });
        files.fold(recipe, |recipe, (name, digest)| recipe.input(name, digest))
    }

    /// Scorers that ask: the name, bytes of the prompt beyond what is judged, most tokens of the reply.
    pub fn judging(&self) -> impl Iterator<Item = (&str, u64, u32)> {
        self.scoring.judging()
    }

    /// Scorers that ask for the likelihood of each option.
    pub fn likelihoods(&self) -> impl Iterator<Item = &str> {
        self.scoring.likelihoods()
    }

    /// Most answers of one reply.
    pub fn answers(&self) -> usize {
        self.scoring.extractors.len().max(1)
    }

    /// Whether the manifest names extractors, so that what a method cannot read is not the last word.
    pub fn has_extractors(&self) -> bool {
        !self.scoring.extractors.is_empty()
    }
}

/// What acting scorers act through.
pub struct Doors {
    clients: BTreeMap<String, Client>,
    tariffs: Tariffs,
    sandboxes: BTreeMap<String, Sandbox>,
    programs: Arc<tokio::sync::Semaphore>,
    env: crate::stage::Env,
    store: Arc<crate::store::Store>,
    /// Plans and explanations start nothing.
    looks_only: bool,
}

impl Doors {
    /// Opens them. What a program needs of this machine is looked for here, once.
    pub(super) fn open(
        scoring: &Scoring,
        inputs: &Inputs,
        context: &Context,
        access: &Access,
    ) -> Result<Doors, StageError> {
        let (mut clients, mut sandboxes) = (BTreeMap::new(), BTreeMap::new());
        let looks_only = context.options.offline && access.mode == Mode::Frozen;
        for named in &scoring.scorers {
            let Named { name, way } = named;
            if let Some(engine) = engine(named, inputs) {
                if let Way::Likelihood(_) = way {
                    engine.backend.expect_likelihoods();
                }
                super::check_budget(engine, context)?;
                let client = Client::new(engine.clone(), context.store.clone(), access.clone());
                clients.insert(name.clone(), client);
            }
            if let (Way::Code(code), false) = (way, looks_only) {
                sandboxes.insert(name.clone(), code.sandbox(name, context)?);
            }
        }
        Ok(Doors {
            clients,
            tariffs: scoring.tariffs(inputs),
            sandboxes,
            programs: context.programs.clone(),
            env: context.env.clone(),
            store: context.store.clone(),
            looks_only,
        })
    }

    /// What held programs back, by scorer: for the record.
    pub fn protections(&self) -> BTreeMap<String, Value> {
        let held = |(name, sandbox): (&String, &Sandbox)| {
            (format!("{name} sandbox"), sandbox.protections().into())
        };
        self.sandboxes.iter().map(held).collect()
    }

    /// What the engine of a scorer has to be asked before anything else, and which engine that is.
    pub fn proof(&self, scorer: &str) -> Option<(&str, Request)> {
        let client = self.clients.get(scorer)?;
        Some((client.name(), client.proof()?))
    }

    /// What tokens of scorers cost, by scorer.
    pub fn tariffs(&self) -> &Tariffs {
        &self.tariffs
    }
}

/// What there is to score.
pub struct Subject<'a> {
    /// The flow.
    pub flow: &'a Flow,
    /// The last question as it was asked.
    pub question: &'a str,
    /// The last prompt, before the model wrote anything: empty where no scorer looks at it.
    pub opening: &'a [Message],
    /// Whether the model was to write anything.
    pub wrote: bool,
    /// The final reply as it came.
    pub reply: &'a str,
    /// What the method read in it.
    pub by_method: Option<&'a str>,
}

/// What became of a reply.
pub struct Scored {
    /// Answered, or unparsable where the first extractor found nothing, or failed where a scorer did.
    pub outcome: Outcome,
    /// What went wrong, where it did.
    pub detail: Option<String>,
    /// The answer.
    pub answer: Option<String>,
    /// What each scorer says of it.
    pub scores: Vec<Score>,
    /// The same for each extractor.
    pub readings: Vec<Reading>,
}

/// Why a scorer gave nothing, not even that it came to no verdict. Never remembered.
enum Unable {
    /// By a request of its own.
    Asking(Failure),
    /// By itself: a program that broke.
    Broken(String),
    /// The engine says the same again: what the sample ends in.
    Ended(Outcome, String),
}

impl From<Failure> for Unable {
    fn from(failure: Failure) -> Self {
        Unable::Asking(failure)
    }
}

/// An answer as scorers see it.
struct Answer<'a> {
    subject: &'a Subject<'a>,
    text: &'a str,
    /// What of it stands behind a mark.
    marked: Option<Cow<'a, str>>,
    /// Whether an extractor took it out.
    extracted: bool,
}

/// Scores a final reply. `made` gets the requests of scorers, also where one fails.
pub async fn score(
    prepared: &Prepared,
    doors: &Doors,
    subject: &Subject<'_>,
    made: &mut Vec<ScorerRequest>,
) -> Result<Scored, Failure> {
    let extractors = &prepared.scoring.extractors;
    let mut readings: Vec<Reading> = extractors
        .iter()
        .map(|extractor| Reading {
            extractor: extractor.name.clone(),
            answer: extractor.read(subject.reply, subject.by_method),
            scores: Vec::new(),
        })
        .collect();
    let answer = match readings.first() {
        Some(first) => first.answer.clone(),
        None => subject.by_method.map(str::to_owned),
    };
    let mut scored = Scored {
        outcome: Outcome::Answered,
        detail: None,
        answer,
        scores: Vec::new(),
        readings: Vec::new(),
    };
    if scored.answer.is_none() && subject.wrote {
        scored.outcome = Outcome::Unparsable;
        let by = extractors.first().map_or("method", |extractor| &extractor.name);
        scored.detail = Some(format!("the extractor `{by}` finds no answer in the reply"));
    }
    let all = async {
        if !subject.wrote {
            let answer = Answer { subject, text: "", marked: None, extracted: false };
            scored.scores = prepared.scores(doors, &answer, made).await?;
            scored.answer = scored.scores.first().and_then(|score| score.parsed.clone());
            return Ok(());
        }
        if extractors.is_empty() {
            let Some(text) = &scored.answer else { return Ok(()) };
            let marked = extract::behind_mark(subject.reply, text);
            let answer = Answer { subject, text, marked, extracted: false };
            scored.scores = prepared.scores(doors, &answer, made).await?;
            return Ok(());
        }
        for i in 0..readings.len() {
            let Some(text) = readings[i].answer.clone() else { continue };
            // The same answer gets the same scores.
            let marked = extractors[i].marked(subject.reply, &text);
            let same = |j: &usize| {
                let earlier = readings[*j].answer.as_deref();
                earlier == Some(&text) && extractors[*j].marked(subject.reply, &text) == marked
            };
            readings[i].scores = match (0..i).find(same) {
                Some(same) => readings[same].scores.clone(),
                None => {
                    let answer = Answer { subject, text: &text, marked, extracted: true };
                    prepared.scores(doors, &answer, made).await?
                }
            };
        }
        scored.scores = readings[0].scores.clone();
        Ok(())
    };
    match all.await {
        Ok(()) => scored.readings = readings,
        Err(unable) => {
            scored.outcome = Outcome::ProviderError;
            scored.detail = Some(match unable {
                Unable::Asking(failure @ Failure::Engine(_)) => failure.to_string(),
                Unable::Asking(failure) => return Err(failure),
                Unable::Broken(detail) => detail,
                Unable::Ended(outcome, detail) => {
                    scored.outcome = outcome;
                    detail
                }
            });
            scored.answer = None;
            scored.scores.clear();
        }
    }
    Ok(scored)
}

impl Prepared {
    /// What all scorers say of an answer.
    async fn scores(
        &self,
        doors: &Doors,
        answer: &Answer<'_>,
        made: &mut Vec<ScorerRequest>,
    ) -> Result<Vec<Score>, Unable> {
        let scorers = &self.scoring.scorers;
        let targets = &answer.subject.flow.targets;
        if targets.is_empty() && scorers.iter().all(|named| named.way.needs_targets()) {
            return Ok(Vec::new());
        }
        let texts = Texts::new(answer.text, targets).with_marked(answer.marked.as_deref());
        let reply = if answer.extracted { answer.text } else { answer.subject.reply };
        let mut scores = Vec::with_capacity(scorers.len());
        for Named { name, way } in scorers {
            if targets.is_empty() && way.needs_targets() {
                scores.push(Score::none(name, Unscored::NoTarget, "the row has no target"));
                continue;
            }
            if way.starts_programs() && doors.looks_only {
                continue;
            }
            let text = if way.reads_reply() { reply } else { answer.text };
            scores.push(match way {
                Way::Plain(scorer) => scorer.compare(&texts).score(name, targets),
                Way::Pattern(pattern) => pattern.compare(text, targets).score(name, targets),
                Way::Json(json) => json.compare(text, targets).score(name, targets),
                Way::Judge(judge) => judge.score(name, doors, answer, made).await?,
                Way::Semantic(semantic) => semantic.score(name, doors, text, targets, made).await?,
                Way::Code(code) => code.score(name, doors, text, answer).await?,
                Way::Likelihood(likelihood) => {
                    likelihood.score(name, doors, answer.subject, made).await?
                }
                Way::Command(command) => {
                    let files = self.files.get(name).expect("BUG: files of a scorer were not read");
                    command.score(name, doors, files, answer).await?
                }
            });
        }
        Ok(scores)
    }
}

/// A completion, or the code and words of a refusal.
type Told = Result<Completion, (String, String)>;

impl Doors {
    /// Whether the engine of a scorer puts prompts into a chat format.
    fn formats_chat(&self, scorer: &str) -> bool {
        self.clients.get(scorer).expect("BUG: a scorer without its door").formats_chat()
    }

    /// Asks the engine of a scorer; what was observed goes to `made`.
    async fn ask(
        &self,
        scorer: &str,
        request: &Request,
        made: &mut Vec<ScorerRequest>,
    ) -> Result<(Key, Told), Unable> {
        let client = self.clients.get(scorer).expect("BUG: a scorer without its door");
        let mut note = |request: &crate::record::RequestObserved| {
            made.push(ScorerRequest { scorer: scorer.to_owned(), request: request.clone() });
        };
        match client.complete(request).await {
            Ok(answer) => {
                note(&answer.observed);
                Ok((answer.observed.key, answer.completion))
            }
            Err(Failure::Engine(mut failed)) => {
                note(&failed.observed);
                failed.detail = format!("the scorer `{scorer}`: {}", failed.detail);
                Err(Unable::Asking(Failure::Engine(failed)))
            }
            Err(failure) => Err(Unable::Asking(failure)),
        }
    }
}
