//! The rows that have no floor beside them, on criterion: [`Rows`].
//!
//! Criterion samples each row, tells how far the samples lie apart, and compares them with those of the run before. The least of
//! its own samples is what the plain line beneath tells: on a machine that has other work to do, that is the program's own time.
//! Rows with a floor, or with another row that they are measured against, are not on criterion: it measures one thing after the
//! other, and what the machine does meanwhile would stand in the ratio. Those alternate: the ring's rows with their floors, KMCL's
//! round trip with the ring's row, masking with not masking, storage with KMCL's round trip and with its copies.

use std::time::{Duration, Instant};

use criterion::Criterion;

/// Rows on criterion, a second for each at the most.
pub(crate) struct Rows {
    criterion: Criterion,
    table: Vec<String>,
}

impl Rows {
    pub(crate) fn new() -> Self {
        let criterion = Criterion::default()
            // It measures only if it is asked to: by arguments, which are ours, or by this.
            .profile_time(None)
            .sample_size(20)
            .nresamples(2_000)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(500));
        Self {
            criterion,
            table: Vec::new(),
        }
    }

    /// Puts a line into the table.
    pub(crate) fn say(&mut self, line: String) {
        self.table.push(line);
    }

    /// Prints the table, in one piece behind what criterion had to tell.
    pub(crate) fn print(&mut self) {
        println!();
        for line in self.table.drain(..) {
            println!("{line}");
        }
    }

    /// Measures `run`, which does `count` operations; the least time of one, in nanoseconds.
    pub(crate) fn least(&mut self, name: &str, count: usize, mut run: impl FnMut()) -> f64 {
        let count = u32::try_from(count).expect("not many");
        let mut least = Duration::MAX;
        self.criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|runs| {
                let mut sum = Duration::ZERO;
                for _ in 0..runs {
                    let start = Instant::now();
                    run();
                    let took = start.elapsed();
                    least = least.min(took);
                    sum += took;
                }
                sum / count
            });
        });
        least.as_secs_f64() * 1e9 / f64::from(count)
    }
}
