//! Shows inputs of a target as what they mean, and runs the target with them: `replay TARGET FILE...`.
#![expect(clippy::panic, reason = "a tool for whoever looks for a mistake")]

fn main() {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let Some(target) = fuzz_targets::TARGETS.iter().find(|target| target.name == name) else {
        panic!("no target is called {name}");
    };
    for file in words {
        let data = std::fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        println!("{file}: {}", (target.show)(&data));
        (target.run)(&data);
    }
}
