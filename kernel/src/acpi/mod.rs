//! ACPI: the few tables that the kernel reads, by hand.
