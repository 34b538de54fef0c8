//! Links the kernel for direct boot, on its own target only.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        // Not to be relocated: the linker's own layout then begins at 2 MiB, and physical addresses equal virtual ones.
        println!("cargo::rustc-link-arg-bins=--no-pie");
        println!("cargo::rustc-link-arg-bins=--image-base=0x200000");
        println!("cargo::rustc-link-arg-bins=--entry=pvh_entry");
    }
}
