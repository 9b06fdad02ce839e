//! Two runs of the store compared, as `forge diff` does it. Knows nothing of how a difference is shown.

use tokio::task::block_in_place;

use super::Server;
use super::calls::Query;
use super::error::ApiError;
use super::experiment::Issue;
use crate::compare::{self, CompareError, Settings, Side};
use crate::record::scores::PairBy;
use crate::report::diff::Diff;

/// Flipped rows in each direction of a workflow where the client is silent, and most of them.
const FLIPS: u64 = 50;
const FLIPS_MAX: u64 = 1000;

/// How to compare: `pair_by`, `cluster` and `limit` of a query.
pub fn settings(query: &mut Query) -> Settings {
    let pair_by = query.choice("pair_by", &["content", "id"]);
    let limit = query.count("limit", 0..=FLIPS_MAX, FLIPS);
    Settings {
        pair_by: pair_by.map(|by| if by == "id" { PairBy::Id } else { PairBy::Content }),
        cluster: query.text("cluster"),
        limit: usize::try_from(limit).expect("BUG: a limit that is no small number"),
    }
}

impl Server {
    /// Compares two runs of the store by their ULIDs. Differences are b − a.
    pub async fn diff(&self, a: &str, b: &str, settings: &Settings) -> Result<Diff, ApiError> {
        let (run_a, run_b) = (self.run(a)?, self.run(b)?);
        let side = |run: &crate::history::Run| Side::of_run(run.id(), &run.record);
        let (a, b) = (side(&run_a), side(&run_b));
        // Both sides are in memory while they are compared: one comparison at a time, and the others wait.
        let _comparing = self.comparing.lock().await;
        // What a run of another process is made of.
        block_in_place(|| self.store.look_again());
        compare::fetch(&self.store, &compare::keys(&a, &b)).await;
        block_in_place(|| compare::compare(&self.store, &a, &b, settings)).map_err(|error| {
            match error {
                // Which runs there are was asked before: what is left is a tag that no row has.
                CompareError::User(issue) => {
                    let issue = issue.strip_prefix("`--cluster`: ").unwrap_or(&issue);
                    ApiError::invalid(vec![Issue::new("cluster", issue)])
                }
                CompareError::Failed(why) => {
                    ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, why)
                }
            }
        })
    }
}
