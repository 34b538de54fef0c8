//! A console on a framebuffer: what a user of a Gen2 machine sees, and the only thing they see.
//!
//! - [`Canvas`]: where pixels go: video memory ([`VideoMemory`]), or plain memory in tests and in checks of screenshots.
//! - [`Screen`]: a [`Grid`] of text drawn on a canvas.
//!
//! Pixels are only ever written. The font is Noto Sans Mono, in grey levels.
#![expect(unsafe_code, reason = "video memory")]

use core::ptr::NonNull;

use boot::info::Framebuffer;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use volatile::VolatilePtr;
use volatile::access::WriteOnly;

use super::grid::{Cell, Grid};
use super::{Console, Style};
use crate::hyperv::{Hypervisor, NotHyperV};
use crate::memory::paging::Access;

/// Width of a cell in pixels.
pub const CELL_WIDTH: usize = get_raster_width(FontWeight::Regular, RasterHeight::Size16);
/// Height of a cell in pixels.
pub const CELL_HEIGHT: usize = RasterHeight::Size16.val();
/// Pixels left free around the text.
pub const MARGIN: usize = 8;
/// From this height on a screen shows every pixel of the font as four.
const DOUBLE_FROM_HEIGHT: usize = 1440;
/// Grey levels of the font that are told apart.
const LEVELS: usize = 32;

/// The colour behind the text: red, green, blue.
pub const BACKGROUND: [u8; 3] = [12, 16, 26];

/// Returns the colour of text in a style: red, green, blue.
#[must_use]
pub const fn colour(style: Style) -> [u8; 3] {
    match style {
        Style::Plain => [224, 226, 232],
        Style::Dim => [138, 146, 164],
        Style::Warning => [255, 200, 87],
        Style::Error => [255, 107, 107],
    }
}

const STYLES: [Style; 4] = [Style::Plain, Style::Dim, Style::Warning, Style::Error];

const fn style_index(style: Style) -> usize {
    match style {
        Style::Plain => 0,
        Style::Dim => 1,
        Style::Warning => 2,
        Style::Error => 3,
    }
}

/// Which bits of a pixel hold which colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelFormat {
    /// Bits of red.
    pub red_mask: u32,
    /// Bits of green.
    pub green_mask: u32,
    /// Bits of blue.
    pub blue_mask: u32,
}

impl PixelFormat {
    /// Returns the pixel for a colour.
    #[must_use]
    pub fn pixel(self, [red, green, blue]: [u8; 3]) -> u32 {
        let channel = |value: u8, mask: u32| {
            if mask == 0 {
                return 0;
            }
            let largest = u64::from(mask >> mask.trailing_zeros());
            let scaled = u64::from(value) * largest / 255;
            u32::try_from(scaled).unwrap_or(0) << mask.trailing_zeros() & mask
        };
        channel(red, self.red_mask) | channel(green, self.green_mask) | channel(blue, self.blue_mask)
    }
}

/// How video memory is to be mapped.
///
/// Under Hyper-V it is ordinary memory that the host looks at with its caches on: cacheable. Since 2018 Hyper-V honours the guest's
/// cache type, and what is mapped uncached is very slow there (Linux, commit 5f1251a48c17, "video: hyperv_fb: Fix
/// the cache type when mapping the VRAM"). Elsewhere it may be a device's, which does not see the caches.
#[must_use]
pub const fn access(found: &Result<Hypervisor, NotHyperV>) -> Access {
    match found {
        Ok(_) => Access::ReadWrite,
        Err(_) => Access::Device,
    }
}

/// A place for pixels.
pub trait Canvas {
    /// Returns the width in pixels.
    fn width(&self) -> usize;
    /// Returns the height in pixels.
    fn height(&self) -> usize;
    /// Writes pixels from `x` on in line `y`; what would lie outside is left out.
    fn write(&mut self, x: usize, y: usize, pixels: &[u32]);
}

/// The framebuffer, mapped.
#[derive(Debug)]
pub struct VideoMemory {
    base: NonNull<u32>,
    width: usize,
    height: usize,
    /// Pixels from one line to the next.
    stride: usize,
}

// SAFETY: it owns the memory, as its constructor's caller promised.
unsafe impl Send for VideoMemory {}

impl VideoMemory {
    /// Takes the framebuffer, mapped at `base`. `None` if its description cannot be.
    ///
    /// # Safety
    ///
    /// The visible lines of `info` are mapped for writing from `base` on for as long as the result lives, and nobody else uses them.
    #[must_use]
    pub unsafe fn new(info: &Framebuffer, base: NonNull<u32>) -> Option<Self> {
        if !info.is_usable() || !info.pitch.is_multiple_of(4) || !base.is_aligned() {
            return None;
        }
        Some(Self {
            base,
            width: usize::try_from(info.width).ok()?,
            height: usize::try_from(info.height).ok()?,
            stride: usize::try_from(info.pitch / 4).ok()?,
        })
    }
}

impl Canvas for VideoMemory {
    fn width(&self) -> usize {
        self.width
    }

    fn height(&self) -> usize {
        self.height
    }

    fn write(&mut self, x: usize, y: usize, pixels: &[u32]) {
        if y >= self.height {
            return;
        }
        for (x, pixel) in (x..self.width).zip(pixels) {
            // SAFETY: the line and the column lie inside the visible part, which `is_usable` found inside the memory.
            let place = unsafe { self.base.add(y * self.stride + x) };
            // SAFETY: valid for writes and aligned, by the promise of `new`'s caller.
            unsafe { VolatilePtr::new_restricted(WriteOnly, place) }.write(*pixel);
        }
    }
}

/// Text on a canvas.
#[derive(Debug)]
pub struct Screen<C> {
    canvas: C,
    grid: Grid,
    /// How many pixels of the canvas, in each direction, a pixel of the font takes.
    scale: usize,
    /// The pixel for each style and grey level.
    palette: [[u32; LEVELS]; STYLES.len()],
}

impl<C: Canvas> Screen<C> {
    /// Clears the canvas and makes a screen of as many cells as fit; `None` if not one does, or there is no memory.
    #[must_use]
    pub fn new(mut canvas: C, format: PixelFormat) -> Option<Self> {
        let scale = if canvas.height() >= DOUBLE_FROM_HEIGHT { 2 } else { 1 };
        let columns = canvas.width().saturating_sub(2 * MARGIN) / (CELL_WIDTH * scale);
        let rows = canvas.height().saturating_sub(2 * MARGIN) / (CELL_HEIGHT * scale);
        let grid = Grid::new(columns, rows)?;
        let palette = STYLES.map(|style| core::array::from_fn(|level| format.pixel(blend(colour(style), level))));
        let line = [format.pixel(BACKGROUND); 64];
        for y in 0..canvas.height() {
            for x in (0..canvas.width()).step_by(line.len()) {
                canvas.write(x, y, &line);
            }
        }
        Some(Self {
            canvas,
            grid,
            scale,
            palette,
        })
    }

    /// Returns the text.
    #[must_use]
    pub const fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Returns the canvas.
    #[must_use]
    pub const fn canvas(&self) -> &C {
        &self.canvas
    }

    /// Takes text and draws what changed.
    pub fn write(&mut self, text: &[u8], style: Style) {
        let Self {
            canvas,
            grid,
            scale,
            palette,
        } = self;
        grid.write(text, style);
        grid.draw(|column, row, cell| draw_cell(canvas, *scale, palette, column, row, cell));
    }
}

/// Mixes a colour with the background; level 0 is the background.
fn blend(colour: [u8; 3], level: usize) -> [u8; 3] {
    let mix = |front: u8, back: u8| {
        let (front, back) = (usize::from(front), usize::from(back));
        let mixed = (front * level + back * (LEVELS - 1 - level)) / (LEVELS - 1);
        u8::try_from(mixed).unwrap_or(u8::MAX)
    };
    let [red, green, blue] = colour;
    [
        mix(red, BACKGROUND[0]),
        mix(green, BACKGROUND[1]),
        mix(blue, BACKGROUND[2]),
    ]
}

fn draw_cell(
    canvas: &mut impl Canvas,
    scale: usize,
    palette: &[[u32; LEVELS]; STYLES.len()],
    column: usize,
    row: usize,
    cell: Cell,
) {
    let Some(raster) = get_raster(char::from(cell.glyph), FontWeight::Regular, RasterHeight::Size16) else {
        return;
    };
    let colours = &palette[style_index(cell.style)];
    let (left, top) = (MARGIN + column * CELL_WIDTH * scale, MARGIN + row * CELL_HEIGHT * scale);
    let mut line = [0; CELL_WIDTH * 2];
    for (y, levels) in raster.rows().enumerate() {
        for (x, level) in levels.iter().enumerate() {
            let pixel = colours.get(usize::from(*level) * LEVELS / 256).copied().unwrap_or(0);
            for wide in line.iter_mut().skip(x * scale).take(scale) {
                *wide = pixel;
            }
        }
        for repeat in 0..scale {
            let pixels = line.get(..CELL_WIDTH * scale).unwrap_or(&line);
            canvas.write(left, top + y * scale + repeat, pixels);
        }
    }
}

impl<C: Canvas + Send> Console for Screen<C> {
    fn write(&mut self, text: &[u8], style: Style) {
        Self::write(self, text, style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// A canvas in plain memory.
    struct Plain {
        width: usize,
        pixels: Vec<u32>,
    }

    impl Canvas for Plain {
        fn width(&self) -> usize {
            self.width
        }
        fn height(&self) -> usize {
            self.pixels.len() / self.width
        }
        fn write(&mut self, x: usize, y: usize, pixels: &[u32]) {
            for (x, pixel) in (x..self.width).zip(pixels) {
                self.pixels[y * self.width + x] = *pixel;
            }
        }
    }

    const BGR: PixelFormat = PixelFormat {
        red_mask: 0xff_0000,
        green_mask: 0xff00,
        blue_mask: 0xff,
    };

    fn screen(width: usize, height: usize) -> Screen<Plain> {
        Screen::new(
            Plain {
                width,
                pixels: vec![0xdead_beef; width * height],
            },
            BGR,
        )
        .unwrap()
    }

    #[test]
    fn colours_follow_the_masks() {
        assert_eq!(BGR.pixel([1, 2, 3]), 0x01_0203);
        let rgb = PixelFormat {
            red_mask: 0xff,
            green_mask: 0xff00,
            blue_mask: 0xff_0000,
        };
        assert_eq!(rgb.pixel([1, 2, 3]), 0x03_0201);
        let deep = PixelFormat {
            red_mask: 0x3ff0_0000,
            green_mask: 0xf_fc00,
            blue_mask: 0x3ff,
        };
        assert_eq!(deep.pixel([255, 0, 255]), 0x3ff0_03ff);
        let odd = PixelFormat {
            red_mask: 0xff00_0000,
            green_mask: 0,
            blue_mask: 0x1f,
        };
        assert_eq!(odd.pixel([255, 255, 255]), 0xff00_001f);
    }

    #[test]
    fn every_pixel_is_written_and_text_is_where_it_should_be() {
        let mut screen = screen(200, 100);
        assert!(screen.canvas.pixels.iter().all(|pixel| *pixel == BGR.pixel(BACKGROUND)));
        screen.write(b"\n #", Style::Error);
        let coloured = |pixel: &u32| *pixel != BGR.pixel(BACKGROUND);
        let touched: Vec<_> = (0..200 * 100)
            .filter(|at| coloured(&screen.canvas.pixels[*at]))
            .collect();
        assert!(touched.len() > 10);
        for at in touched {
            let (x, y) = (at % 200, at / 200);
            assert!((MARGIN + CELL_WIDTH..MARGIN + 2 * CELL_WIDTH).contains(&x), "{x}");
            assert!((MARGIN + CELL_HEIGHT..MARGIN + 2 * CELL_HEIGHT).contains(&y), "{y}");
        }
    }

    #[test]
    fn a_1024_by_768_screen_has_room_for_a_table() {
        let screen = screen(1024, 768);
        assert!(screen.grid().columns() >= 120 && screen.grid().rows() >= 46);
    }

    #[test]
    fn large_screens_get_large_text() {
        let mut large = screen(3840, 2160);
        let mut small = screen(1920, 1072);
        large.write(b"x", Style::Plain);
        small.write(b"x", Style::Plain);
        let at = |screen: &Screen<Plain>, x: usize, y: usize| screen.canvas.pixels[y * screen.canvas.width + x];
        for (x, y) in [(0, 0), (3, 9), (4, 11)] {
            let wanted = at(&small, MARGIN + x, MARGIN + y);
            for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                assert_eq!(at(&large, MARGIN + 2 * x + dx, MARGIN + 2 * y + dy), wanted);
            }
        }
    }

    #[test]
    fn tiny_screens_are_refused_and_odd_sizes_stay_inside() {
        assert!(
            Screen::new(
                Plain {
                    width: 10,
                    pixels: vec![0; 100]
                },
                BGR
            )
            .is_none()
        );
        let mut odd = screen(2 * MARGIN + 3 * CELL_WIDTH + 5, 2 * MARGIN + 2 * CELL_HEIGHT + 7);
        odd.write(b"abcdefghijkl", Style::Plain);
        assert_eq!(odd.grid().row_text(1).collect::<String>(), "jkl");
    }

    #[test]
    fn video_memory_is_cached_under_hyper_v_alone() {
        use vmbus::testing::FakePlatform;
        use vmbus::testing::model::{Config, Host, Personality};

        let host = Host::new(FakePlatform::new(), Config::new(Personality::HyperV));
        assert_eq!(access(&Hypervisor::detect_on(host)), Access::ReadWrite);
        assert_eq!(access(&Err(NotHyperV::NoHypervisor)), Access::Device);
    }

    #[test]
    fn video_memory_keeps_to_its_lines() {
        // 5 pixels visible of 8 a line, two lines.
        let mut memory = vec![7_u32; 16];
        let info = Framebuffer {
            address: 0x1000,
            length: 64,
            width: 5,
            height: 2,
            pitch: 32,
            red_mask: 0xff,
            green_mask: 0xff00,
            blue_mask: 0xff_0000,
        };
        let base = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: the vector outlives the canvas and is not used in between.
        let mut canvas = unsafe { VideoMemory::new(&info, base) }.unwrap();
        canvas.write(3, 1, &[1, 2, 3, 4]);
        canvas.write(0, 2, &[9]);
        canvas.write(9, 0, &[9]);
        assert_eq!(memory, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1, 2, 7, 7, 7]);
        let unaligned = Framebuffer { pitch: 30, ..info };
        // SAFETY: as above.
        assert!(unsafe { VideoMemory::new(&unaligned, base) }.is_none());
    }
}
