//! The statistics of this folder against SciPy and statsmodels: `tests/reference/statistics.py` wrote the cases
//! and what those say of them. Knows nothing of how either works.

use serde_json::Value;

use super::interval::{critical, t_tails};
use super::paired::{expanded_tail, mcnemar};
use super::{Pair, Row, difference, estimate, holm, wilson};

fn cases(name: &str) -> Vec<Value> {
    let all: Value =
        serde_json::from_str(include_str!("../../tests/reference/statistics.json")).unwrap();
    let cases = all[name].as_array().unwrap_or_else(|| panic!("no cases of {name}")).clone();
    assert!(cases.len() >= 12, "{name}");
    cases
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(got: f64, want: f64, tolerance: f64, case: &Value) {
    let far = (got - want).abs();
    assert!(far <= tolerance * want.abs().max(1.0), "{got}, and not {want}: {case}");
}

fn pairs(case: &Value) -> Vec<Pair> {
    let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
    a.into_iter().zip(b).enumerate().map(|(cluster, (a, b))| Pair { cluster, a, b }).collect()
}

#[test]
fn quantiles_of_t() {
    for case in cases("t_quantiles") {
        let [freedom, want] = numbers(&case)[..] else { panic!("{case}") };
        near(critical(freedom), want, 1e-9, &case);
    }
}

#[test]
fn tails_of_t() {
    for case in cases("t_tails") {
        let [t, freedom, want] = numbers(&case)[..] else { panic!("{case}") };
        near(t_tails(t, freedom), want, 1e-8, &case);
    }
}

#[test]
fn wilson_is_that_of_statsmodels() {
    for case in cases("wilson") {
        let [k, n, lower, upper] = numbers(&case)[..] else { panic!("{case}") };
        let got = wilson(k as u64, n as u64).unwrap();
        near(got.lower, lower, 1e-12, &case);
        near(got.upper, upper, 1e-12, &case);
    }
}

#[test]
fn clustered_errors_are_those_of_statsmodels() {
    for case in cases("clustered") {
        let row = |row: &Value| Row {
            cluster: row["cluster"].as_u64().unwrap() as usize,
            values: numbers(&row["values"]),
        };
        let rows: Vec<Row> = case["rows"].as_array().unwrap().iter().map(row).collect();
        let got = estimate(&rows).unwrap();
        near(got.value, case["mean"].as_f64().unwrap(), 1e-12, &case);
        near(got.standard_error.unwrap(), case["se"].as_f64().unwrap(), 1e-10, &case);
        let values = || rows.iter().flat_map(|row| &row.values);
        if values().any(|value| *value != 0.0 && *value != 1.0) {
            // Of proportions the interval is Wilson's with this error in it.
            let (ci, want) = (got.ci.unwrap(), numbers(&case["ci"]));
            near(ci.lower, want[0].max(0.0), 1e-9, &case);
            near(ci.upper, want[1].min(1.0), 1e-9, &case);
        }
    }
}

#[test]
fn mcnemar_is_that_of_statsmodels() {
    for case in cases("mcnemar") {
        let [a, b, statistic, p] = numbers(&case)[..] else { panic!("{case}") };
        let (_, got_statistic, got) = mcnemar(a as u64, b as u64);
        near(got_statistic, statistic, 1e-12, &case);
        near(got, p, 1e-10, &case);
    }
}

#[test]
fn sign_flips_are_those_of_scipy() {
    for case in cases("sign_flip") {
        let got = difference(&pairs(&case)).unwrap().p.unwrap();
        // Four standard errors of 9,999 random flips at p = 0.5; none where all are counted.
        let tolerance = if case["exact"] == true { 1e-12 } else { 0.02 };
        near(got, case["p"].as_f64().unwrap(), tolerance, &case);
    }
}

#[test]
fn a_bootstrap_is_that_of_scipy() {
    for case in cases("bootstrap") {
        let pairs = pairs(&case);
        near(expanded_tail(pairs.len()), case["tail"].as_f64().unwrap(), 1e-9, &case);
        let (ci, want) = (difference(&pairs).unwrap().ci.unwrap(), numbers(&case["ci"]));
        // An end of an interval out of 2,000 resamples is known to about a twentieth of its width.
        let tolerance = 0.06 * (want[1] - want[0]);
        near(ci.lower, want[0], tolerance, &case);
        near(ci.upper, want[1], tolerance, &case);
    }
}

#[test]
fn holm_is_that_of_statsmodels() {
    for case in cases("holm") {
        let p: Vec<_> = numbers(&case[0]).into_iter().map(Some).collect();
        for (got, want) in holm(&p).into_iter().zip(numbers(&case[1])) {
            near(got.unwrap(), want, 1e-12, &case);
        }
    }
}

#[test]
fn the_smallest_difference_is_that_of_statsmodels() {
    for case in cases("detectable") {
        let got = difference(&pairs(&case)).unwrap().detectable.unwrap();
        // The solver of statsmodels stops at about the sixth digit.
        near(got, case["detectable"].as_f64().unwrap(), 1e-5, &case);
    }
}
