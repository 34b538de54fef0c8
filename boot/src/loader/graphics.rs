//! The framebuffer that the firmware's graphics output draws into.
#![expect(unsafe_code, reason = "protocols of the firmware")]

use boot::info::Framebuffer;
use uefi::boot as services;
use uefi::boot::{OpenProtocolAttributes, OpenProtocolParams};
use uefi::proto::console::gop::{GraphicsOutput, PixelFormat};

/// Finds a framebuffer in the mode that the firmware has set, or says why there is none.
pub(super) fn framebuffer() -> Result<Framebuffer, &'static str> {
    let handles = services::find_handles::<GraphicsOutput>().map_err(|_| "this machine has no graphics output")?;
    let mut reason = "this machine has no graphics output";
    for handle in handles {
        let parameters = OpenProtocolParams {
            handle,
            agent: services::image_handle(),
            controller: None,
        };
        // Not exclusively: that would take the console from the firmware, and messages may still have to be shown.
        // SAFETY: the protocol is used before boot services end, and only to read the current mode.
        let output =
            unsafe { services::open_protocol::<GraphicsOutput>(parameters, OpenProtocolAttributes::GetProtocol) };
        let Ok(mut output) = output else { continue };
        match described(&mut output) {
            Ok(framebuffer) => return Ok(framebuffer),
            Err(why) => reason = why,
        }
    }
    Err(reason)
}

fn described(output: &mut GraphicsOutput) -> Result<Framebuffer, &'static str> {
    let mode = output.current_mode_info();
    let (width, height) = mode.resolution();
    let (red_mask, green_mask, blue_mask) = match mode.pixel_format() {
        PixelFormat::Rgb => (0x0000_00ff, 0x0000_ff00, 0x00ff_0000),
        PixelFormat::Bgr => (0x00ff_0000, 0x0000_ff00, 0x0000_00ff),
        PixelFormat::Bitmask => {
            let mask = mode
                .pixel_bitmask()
                .ok_or("the graphics output does not describe its pixels")?;
            (mask.red, mask.green, mask.blue)
        }
        PixelFormat::BltOnly => return Err("the graphics output has no framebuffer in memory"),
    };
    let mut memory = output.frame_buffer();
    let narrow = |value: usize| u32::try_from(value).unwrap_or(0);
    let framebuffer = Framebuffer {
        address: memory.as_mut_ptr().addr() as u64,
        length: memory.size() as u64,
        width: narrow(width),
        height: narrow(height),
        pitch: narrow(mode.stride().saturating_mul(4)),
        red_mask,
        green_mask,
        blue_mask,
    };
    if framebuffer.is_usable() {
        Ok(framebuffer)
    } else {
        Err("the graphics output describes a framebuffer that cannot be")
    }
}
