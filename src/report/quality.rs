//! How far the numbers of a report can be read as they stand: warnings, and where extractors disagree. Knows
//! nothing of Markdown and HTML.

use super::spelling::{Table, count, percent};
use super::{Cell, Report};

/// What the page says below the table of extractors.
pub(super) const NOTE: &str = "Each extractor reads the same final replies. Accuracy is over the answers that it \
    found, \u{201c}of all replies\u{201d} counts a reply without one as wrong. \u{201c}Differs\u{201d} counts replies from which it \
    took another answer than the first extractor, and in brackets those whose verdict is another one.";

/// Warnings of all workflows, each with its workflow.
pub(super) fn warnings(report: &Report) -> Vec<String> {
    let of = |cell: &Cell| {
        let name = cell.name.clone();
        cell.warnings.clone().into_iter().map(move |warning| format!("{name}: {warning}"))
    };
    report.cells.iter().flat_map(of).collect()
}

/// What each extractor read; `None` where no workflow names any.
pub(super) fn extractors(report: &Report) -> Option<Table> {
    let head =
        ["workflow", "extractor", "replies", "read", "accuracy", "of all replies", "differs"];
    let rows: Vec<Vec<String>> = report
        .cells
        .iter()
        .flat_map(|cell| cell.summary.extractors.iter().enumerate().map(move |row| (cell, row)))
        .map(|(cell, (i, sum))| {
            let metric = |name: &str| percent(sum.metrics.get(name).copied().flatten());
            let differs = match i {
                0 => "the first".to_owned(),
                _ => format!("{} ({})", count(sum.differs), count(sum.verdict_differs)),
            };
            vec![
                cell.name.clone(),
                sum.extractor.clone(),
                count(sum.replies),
                count(sum.read),
                metric("accuracy"),
                metric("accuracy_all"),
                differs,
            ]
        })
        .collect();
    (!rows.is_empty()).then(|| Table { head: head.map(str::to_owned).to_vec(), rows })
}
