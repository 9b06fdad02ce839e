//! `forge bisect`.

use clap::Args;

use super::diff::{Place, fetch};
use super::elsewhere::{Elsewhere, Found, Wanted};
use super::project::usage;
use super::{Failure, USER, print, say};
use crate::compare::bisect::{Search, Verdict};
use crate::compare::{Named, Side, Sides, compare, keys, measures};
use crate::record::StageRun;
use crate::record::scores::{Comparison, Measure};
use crate::report::diff::{
    self as report, BISECT_VERSION, Bisection, Commit, FirstBad, State, Step,
};
use crate::store::Store;

/// Before anything is run, so many revisions without results are looked at for one that has them.
const LOOKS_MAX: usize = 16;

#[derive(Args)]
pub(super) struct Bisect {
    /// A commit where the metric is as it should be
    good: String,
    /// A later commit where it is not
    bad: String,
    /// What is measured: `accuracy`, or a scorer
    #[arg(long, value_name = "NAME", default_value = "accuracy")]
    metric: String,
    /// The workflow, where there are several: its name with its matrix values
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Run revisions whose results are not in the store; without it they are skipped
    #[arg(long)]
    run: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// What a bisection works with.
struct Work<'a> {
    args: &'a Bisect,
    sides: Sides<'a>,
    store: &'a Store,
    elsewhere: Elsewhere<'a>,
    commits: Vec<Commit>,
    /// The workflow, once it is known.
    cell: String,
}

/// A revision with results, or why it has none.
type Looked = Result<Found, String>;

impl Bisect {
    pub(super) fn run(self) -> Result<(), Failure> {
        let settings = self.place.project()?;
        let store = self.place.open(&settings, self.run)?;
        let sides = self.place.sides(&settings, &store);
        let (good, bad) = (commit(&sides, &self.good)?, commit(&sides, &self.bad)?);
        let commits = sides.between(&good, &bad)?;
        if commits.len() < 2 {
            return Err(usage(format!("`{}` and `{}` are the same commit", self.good, self.bad)));
        }
        let elsewhere = Elsewhere::new(&settings.root, store.clone(), self.json);
        let cell = String::new();
        let mut work = Work { args: &self, sides, store: &store, elsewhere, commits, cell };
        let of = work.bisect()?;
        if self.json {
            print(&serde_json::to_string_pretty(&of).expect("BUG: a bisection is plain data"));
        } else {
            print(&format!("\n{}", report::summary(&of)));
        }
        if of.found.is_some() { Ok(()) } else { Err(Failure::Said(USER)) }
    }
}

impl Work<'_> {
    fn bisect(&mut self) -> Result<Bisection, Failure> {
        let last = self.commits.len() - 1;
        let (good, bad) = self.ends(last)?;
        let good_step = self.good(&good)?;
        self.tell(&good_step);
        let mut of = Bisection {
            version: BISECT_VERSION,
            metric: self.args.metric.clone(),
            workflow: self.cell.clone(),
            commits: self.commits.len() as u64,
            bad: self.step(last, &good, &bad)?,
            good: good_step,
            steps: Vec::new(),
            found: None,
        };
        of.bad.verdict = "bad";
        self.tell(&of.bad);
        if !of.ends_differ() {
            return Ok(of);
        }
        let mut search = Search::new(self.commits.len());
        let mut sides: Vec<Option<Side>> = self.commits.iter().map(|_| None).collect();
        // What the store knows first: it costs nothing, and leaves less to run.
        let mut misses = 0;
        for runs in [false, true] {
            if runs {
                if !self.args.run {
                    break;
                }
                search.forget_skipped();
            }
            while let Some(i) = search.next() {
                if !runs && self.args.run && misses >= LOOKS_MAX {
                    break;
                }
                let looked = self.look(i, runs)?;
                let mut step = match &looked {
                    Ok(found) => self.step(i, &good, &found.side)?,
                    Err(why) => Step { why: Some(why.clone()), ..self.skipped(i) },
                };
                let verdict = match &looked {
                    Err(_) => Verdict::Skipped,
                    Ok(_) if step.comparison.is_none() && step.why.is_some() => Verdict::Skipped,
                    Ok(_) if of.is_bad(&step) => Verdict::Bad,
                    Ok(_) => Verdict::Good,
                };
                search.tell(i, verdict);
                step.verdict = match verdict {
                    Verdict::Good => "good",
                    Verdict::Bad => "bad",
                    Verdict::Skipped => "skipped",
                };
                if let Ok(found) = looked {
                    step.from = Some(if found.ran { "run" } else { "store" });
                    sides[i] = Some(found.side);
                }
                if verdict == Verdict::Skipped && !runs && self.args.run {
                    // It has its turn below.
                    misses += 1;
                    continue;
                }
                self.tell(&step);
                of.steps.push(step);
            }
        }
        (sides[0], sides[last]) = (Some(good), Some(bad));
        of.found = Some(self.found(search.ends(), &sides)?);
        Ok(of)
    }

    /// Both ends, which have to have results, and with them the workflow that is meant.
    fn ends(&mut self, last: usize) -> Result<(Side, Side), Failure> {
        let (names, only) = ([&self.args.good, &self.args.bad], self.args.stage.as_deref());
        let mut cells: Option<Vec<String>> = None;
        for (i, name) in [0, last].into_iter().zip(names) {
            let found = self.evaluate(i, only, false)?;
            let found =
                found.map_err(|why| usage(format!("`{name}` cannot be measured: {why}")))?;
            let here = workflows(&found.side).map(|stage| stage.name.clone());
            cells = Some(match cells {
                None => here.collect(),
                Some(before) => here.filter(|name| before.contains(name)).collect(),
            });
        }
        let cells = cells.unwrap_or_default();
        let list = || cells.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        self.cell = match cells.as_slice() {
            [one] => one.clone(),
            [] => return Err(usage("the two ends have no workflow in common".to_owned())),
            _ => {
                return Err(usage(format!(
                    "there are several workflows; `--stage` names one ({})",
                    list()
                )));
            }
        };
        let mut sides = Vec::new();
        for (i, name) in [0, last].into_iter().zip(names) {
            let found = self.look(i, self.args.run)?;
            sides.push(
                found.map_err(|why| usage(format!("`{name}` cannot be measured: {why}")))?.side,
            );
        }
        let bad = sides.pop().expect("BUG: there are two ends");
        Ok((sides.pop().expect("BUG: there are two ends"), bad))
    }

    fn evaluate(&self, i: usize, only: Option<&str>, run: bool) -> Result<Looked, Failure> {
        let commit = &self.commits[i];
        let manifest = match self.sides.manifest(Some(&commit.id)) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Err(error.to_string())),
        };
        if run {
            say(&format!("looking at {}  {}", commit.short(), commit.subject));
        }
        let wanted = Wanted { manifest: &manifest, only, run };
        let found = self.elsewhere.revision(&commit.short(), &commit.id, &wanted)?;
        Ok(found.map(|mut found| {
            // What else the pipeline has is not compared.
            found.side.stages.retain(|stage| match only {
                Some(only) if stage.kind == "workflow" => {
                    stage.name == only || stage.name.starts_with(&format!("{only}["))
                }
                _ => true,
            });
            found
        }))
    }

    /// A revision whose workflow has a result.
    fn look(&self, i: usize, run: bool) -> Result<Looked, Failure> {
        let found = match self.evaluate(i, Some(&self.cell), run)? {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        if found.missing.is_empty() {
            return Ok(Ok(found));
        }
        let hint = if self.args.run { "" } else { "; `--run` runs it" };
        Ok(Err(format!("the store has no results of it{hint}")))
    }

    fn skipped(&self, i: usize) -> Step {
        Step {
            commit: self.commits[i].clone(),
            verdict: "skipped",
            from: None,
            measure: None,
            comparison: None,
            why: None,
        }
    }

    /// The good end, which is compared with nothing.
    fn good(&self, side: &Side) -> Result<Step, Failure> {
        let all = self.measures(side)?;
        let known: Vec<_> = all.iter().map(|measure| format!("`{}`", measure.metric)).collect();
        let measure = all.into_iter().find(|measure| measure.metric == self.args.metric);
        let measure = measure.ok_or_else(|| {
            let (metric, cell) = (&self.args.metric, &self.cell);
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            usage(format!("`{cell}` has no metric `{metric}` (known: {known})"))
        })?;
        Ok(Step { verdict: "good", measure: Some(measure), ..self.skipped(0) })
    }

    fn measures(&self, side: &Side) -> Result<Vec<Measure>, Failure> {
        let stage = workflows(side).find(|stage| stage.name == self.cell);
        let stage = stage.expect("BUG: a revision without the workflow was taken");
        Ok(measures(self.store, stage, self.args.place.cluster.as_deref())?)
    }

    /// A revision compared with the good end.
    fn step(&self, i: usize, good: &Side, side: &Side) -> Result<Step, Failure> {
        let mut step = self.skipped(i);
        let all = self.measures(side)?;
        step.measure = all.into_iter().find(|measure| measure.metric == self.args.metric);
        (step.comparison, step.why) = self.compared(good, side)?;
        Ok(step)
    }

    /// Two revisions by the metric, and what has to be known of that.
    fn compared(
        &self,
        a: &Side,
        b: &Side,
    ) -> Result<(Option<Comparison>, Option<String>), Failure> {
        fetch(self.store, &keys(a, b))?;
        let diff = compare(self.store, a, b, &self.args.place.how(0))?;
        let Some(cell) = diff.cells.into_iter().find(|cell| cell.name == self.cell) else {
            return Ok((None, Some(format!("it has no workflow `{}`", self.cell))));
        };
        if cell.state == State::Same {
            return Ok((None, None));
        }
        let why = (!cell.notes.is_empty()).then(|| cell.notes.join("; "));
        let found = cell.comparisons.into_iter().find(|c| c.metric == self.args.metric);
        let found = found.filter(|comparison| comparison.result.is_some());
        let none = || Some(format!("no rows in common have `{}`", self.args.metric));
        Ok(match found {
            Some(comparison) => (Some(comparison), why),
            None => (None, why.or_else(none)),
        })
    }

    fn found(
        &self,
        (good, bad): (usize, usize),
        sides: &[Option<Side>],
    ) -> Result<FirstBad, Failure> {
        let (mut change, mut stages) = (None, Vec::new());
        if let (Some(a), Some(b)) = (&sides[good], &sides[bad]) {
            change = self.compared(a, b)?.0;
            stages = compare(self.store, a, b, &self.args.place.how(0))?.stages;
            stages.retain(|stage| stage.change != report::Change::Same);
        }
        Ok(FirstBad {
            first_bad: self.commits[bad].clone(),
            last_good: self.commits[good].clone(),
            skipped: self.commits[good + 1..bad].to_vec(),
            change,
            stages,
        })
    }

    fn tell(&self, step: &Step) {
        if !self.args.json {
            print(&report::step(step, &self.args.metric));
        }
    }
}

fn workflows(side: &Side) -> impl Iterator<Item = &StageRun> {
    side.stages.iter().filter(|stage| stage.kind == "workflow")
}

fn commit(sides: &Sides<'_>, name: &str) -> Result<String, Failure> {
    // A run or a lock file has no place in a history.
    let plain = name.strip_prefix("rev:").unwrap_or(name);
    match sides.named(&format!("rev:{plain}"))? {
        Named::Revision(commit) => Ok(commit),
        Named::Run | Named::Lock(_) => Err(usage(format!("`{name}` is no git revision"))),
    }
}
