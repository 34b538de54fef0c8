//! The hypervisor: detection and capabilities, MSRs, hypercalls, the synthetic interrupt controller, the reference
//! clock, timers and the crash report. Source: the Hypervisor Top-Level Functional Specification (TLFS).

pub mod machine;
