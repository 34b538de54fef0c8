//! The storage driver over the controller in this kernel: any sequence of requests on several disks, many of them in flight,
//! answered in any order and with faults, leaves what plain bytes would hold; and after a power cut, what was flushed is there.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

#[path = "storage/model.rs"]
mod model;
#[path = "storage/plan.rs"]
mod plan;
#[path = "storage/run.rs"]
mod run;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_requests_under_any_fault_leaves_what_plain_bytes_would_hold(plan in plan::plans()) {
        run::run(&plan);
    }
}
