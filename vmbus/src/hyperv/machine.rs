//! The instructions that reach the hypervisor: [`Machine`], and the real one for x86-64, [`Native`].
//!
//! Everything in this crate that executes a privileged or intercepted instruction does it through this trait, so that
//! tests put a model of a host in its place.
#![expect(unsafe_code, reason = "privileged instructions")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

/// What the `CPUID` instruction returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cpuid {
    /// The register EAX.
    pub eax: u32,
    /// The register EBX.
    pub ebx: u32,
    /// The register ECX.
    pub ecx: u32,
    /// The register EDX.
    pub edx: u32,
}

/// A processor under a hypervisor, or a model of one. Each call is about the processor that it is made on.
///
/// # Implementation safety
///
/// The methods do what the instructions do, and have no other effect on the caller's memory.
pub unsafe trait Machine: Sync {
    /// Executes `CPUID`.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid;

    /// Reads the processor's time stamp counter, not before the reads of memory that precede it in the program.
    fn timestamp(&self) -> u64;

    /// Reads a model-specific register.
    ///
    /// # Safety
    ///
    /// The register exists and reading it has no effect that breaks the caller's memory safety.
    unsafe fn read_msr(&self, register: u32) -> u64;

    /// Writes a model-specific register.
    ///
    /// # Safety
    ///
    /// The register exists, and the value does not break memory safety: pages named in it belong to the caller.
    unsafe fn write_msr(&self, register: u32, value: u64);

    /// Makes a hypercall through the hypercall page at `page`: control word in RCX, `input` in RDX, `output` in R8,
    /// and returns RAX.
    ///
    /// # Safety
    ///
    /// `page` is an enabled hypercall page; `input` and `output` are, by the call's convention, values (a fast call) or
    /// guest-physical addresses of memory that belongs to the caller for the duration of the call.
    unsafe fn hypercall(&self, page: NonNull<u8>, control: u64, input: u64, output: u64) -> u64;

    /// Takes the machine's hypercall page, of which there is one, for a [`Hypervisor`](super::Hypervisor); returns false if another has it.
    ///
    /// # Implementation safety
    ///
    /// True for one caller at a time, until [`Machine::give_hypercall_page_back`]. The default, always true, is right where a call
    /// through a page that is off or elsewhere does no harm: in a model. Who passes calls on passes this on, too.
    fn take_hypercall_page(&self) -> bool {
        true
    }

    /// Gives the hypercall page back, by the one that has taken it.
    fn give_hypercall_page_back(&self) {}
}

/// The processor that this code runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

/// Whether somebody in this program has the machine's hypercall page.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

#[cfg(target_arch = "x86_64")]
// SAFETY: these are the instructions.
unsafe impl Machine for Native {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        Cpuid {
            eax: result.eax,
            ebx: result.ebx,
            ecx: result.ecx,
            edx: result.edx,
        }
    }

    fn timestamp(&self) -> u64 {
        // The processor may read its counter early, before the page whose scale it is to be used with.
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::_mm_lfence() };
        // SAFETY: every x86-64 processor has the counter.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    unsafe fn read_msr(&self, register: u32) -> u64 {
        let (high, low): (u32, u32);
        // SAFETY: the caller vouches for the register.
        unsafe {
            core::arch::asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
                options(nostack, preserves_flags));
        }
        u64::from(high) << 32 | u64::from(low)
    }

    unsafe fn write_msr(&self, register: u32, value: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "the instruction takes the halves")]
        let (high, low) = ((value >> 32) as u32, value as u32);
        // SAFETY: the caller vouches for the register and the value. Memory is clobbered: writing EOM or enabling a page
        // orders the accesses around it.
        unsafe {
            core::arch::asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high,
                options(nostack, preserves_flags));
        }
    }

    unsafe fn hypercall(&self, page: NonNull<u8>, control: u64, input: u64, output: u64) -> u64 {
        let result;
        // SAFETY: the caller vouches for the page and the arguments; the convention preserves all registers but these
        // (TLFS, "Hypercall Interface"); the vector registers are not touched by the calls that this crate makes.
        unsafe {
            core::arch::asm!("call {page}", page = in(reg) page.as_ptr(),
                inlateout("rcx") control => _, inlateout("rdx") input => _, inlateout("r8") output => _,
                lateout("rax") result, lateout("r9") _, lateout("r10") _, lateout("r11") _);
        }
        result
    }

    fn take_hypercall_page(&self) -> bool {
        !IS_TAKEN.swap(true, Ordering::Acquire)
    }

    fn give_hypercall_page_back(&self) {
        IS_TAKEN.store(false, Ordering::Release);
    }
}
