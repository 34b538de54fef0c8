//! What we tell the user while something takes long: a line on standard error, alive on a terminal, plain otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line for people on standard error. A closed standard error is nobody's problem.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Something that takes a while. On a terminal it turns and shows the elapsed time; elsewhere its beginning and its end are lines.
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
    title: String,
    begin: Instant,
}

impl Step {
    /// Begins a step called `title`.
    #[must_use]
    pub fn start(title: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar.set_message(title.to_owned());
            bar
        });
        if bar.is_none() {
            say(title);
        }
        Self {
            bar,
            title: title.to_owned(),
            begin: Instant::now(),
        }
    }

    /// Shows what the step is at; only on a terminal.
    pub fn say(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.title));
        }
    }

    /// Ends the step with a line.
    pub fn done(mut self, text: &str) {
        self.clear();
        say(&format!("{text} ({:.1} s)", self.begin.elapsed().as_secs_f64()));
    }

    /// Ends the step with a complaint.
    pub fn failed(mut self, text: &str) {
        self.clear();
        say(text);
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}
