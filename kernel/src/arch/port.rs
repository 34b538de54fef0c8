//! Port I/O that is not the serial port's.
#![expect(unsafe_code, reason = "port I/O")]

use x86_64::instructions::port::Port;

/// Writes to QEMU's `isa-debug-exit`, which ends QEMU with status `value << 1 | 1`. Without the device nothing happens.
///
/// Only to be called where the command line says `exit=qemu`: a guest cannot detect the device.
pub fn qemu_debug_exit(value: u32) {
    // SAFETY: The command line says that the device is at this port.
    unsafe { Port::<u32>::new(0xf4).write(value) };
}
