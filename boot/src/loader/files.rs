//! The files beside the loader.

use alloc::string::String;
use alloc::vec::Vec;

use uefi::fs::{Error as FileError, FileSystem, IoErrorContext};
use uefi::{CStr16, Status, boot as services, cstr16};

/// Where the kernel is, for messages.
pub(super) const KERNEL: &str = r"\EFI\vmbus\kernel.elf";
const KERNEL_PATH: &CStr16 = cstr16!(r"\EFI\vmbus\kernel.elf");
const COMMAND_LINE_PATH: &CStr16 = cstr16!(r"\EFI\vmbus\cmdline.txt");

/// The contents of the files.
pub(super) struct Files {
    pub(super) kernel: Vec<u8>,
    /// Empty if there is no such file.
    pub(super) command_line: String,
}

/// Reads the files from the partition that the loader was started from.
pub(super) fn read() -> Result<Files, String> {
    let volume = services::get_image_file_system(services::image_handle()).map_err(super::firmware(
        "cannot open the partition that the loader was started from",
    ))?;
    let mut volume = FileSystem::new(volume);
    let kernel = volume.read(KERNEL_PATH).map_err(|error| {
        if is_missing(&error) {
            alloc::format!("there is no kernel: put it at {KERNEL} on the EFI system partition.")
        } else {
            alloc::format!("cannot read {KERNEL}: {error}.")
        }
    })?;
    let command_line = match volume.read(COMMAND_LINE_PATH) {
        Ok(bytes) => text(&bytes),
        Err(error) if is_missing(&error) => String::new(),
        Err(error) => return Err(alloc::format!(r"cannot read \EFI\vmbus\cmdline.txt: {error}.")),
    };
    Ok(Files { kernel, command_line })
}

fn is_missing(error: &FileError) -> bool {
    match error {
        FileError::Io(error) => {
            matches!(error.context, IoErrorContext::OpenError | IoErrorContext::Metadata)
                && error.uefi_error.status() == Status::NOT_FOUND
        }
        _ => false,
    }
}

/// Takes the text of a file that any editor may have written.
fn text(bytes: &[u8]) -> String {
    let mut line = String::new();
    boot::text::command_line(bytes, |character| line.push(character));
    line
}
