//! Reads text back from a screenshot: which character, in which style, each cell of the guest's framebuffer console shows.
//!
//! The kernel's own console draws every character once on a canvas in plain memory; a cell of the screenshot is that character whose
//! pixels it has, all of them. So a character that is drawn wrongly, at the wrong place or only in part is found, not guessed at.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kernel::console::Style;
use kernel::console::framebuffer::{BACKGROUND, CELL_HEIGHT, CELL_WIDTH, Canvas, MARGIN, PixelFormat, Screen};
use kernel::console::grid::Grid;

/// As the screenshots have it.
const FORMAT: PixelFormat = PixelFormat {
    red_mask: 0xff_0000,
    green_mask: 0xff00,
    blue_mask: 0xff,
};

const STYLES: [Style; 4] = [Style::Plain, Style::Dim, Style::Warning, Style::Error];

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    pixels: Vec<u32>,
}

impl Picture {
    /// Understands a PPM file (P6), as QEMU's `screendump` writes it.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut rest = file;
        let mut word = || {
            let start = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
            let text = rest.get(start..)?;
            let end = text.iter().position(u8::is_ascii_whitespace)?;
            rest = text.get(end + 1..)?;
            std::str::from_utf8(text.get(..end)?).ok()
        };
        ensure!(word() == Some("P6"), "no PPM file");
        let mut number = || {
            word()
                .and_then(|word| word.parse::<usize>().ok())
                .context("a damaged PPM file")
        };
        let (width, height, largest) = (number()?, number()?, number()?);
        ensure!(
            largest == 255 && rest.len() == width * height * 3,
            "a PPM file of another kind, or cut off"
        );
        let pixels = rest.as_chunks::<3>().0;
        let pixels = pixels
            .iter()
            .map(|[red, green, blue]| u32::from_be_bytes([0, *red, *green, *blue]));
        Ok(Self {
            width,
            pixels: pixels.collect(),
        })
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read or is no PPM file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
    }

    const fn height(&self) -> usize {
        self.pixels.len() / self.width
    }

    fn cell(&self, column: usize, row: usize) -> Vec<u32> {
        let (left, top) = (MARGIN + column * CELL_WIDTH, MARGIN + row * CELL_HEIGHT);
        let lines = (top..top + CELL_HEIGHT).map(|y| y * self.width + left);
        lines
            .flat_map(|start| self.pixels.get(start..start + CELL_WIDTH).unwrap_or_default())
            .copied()
            .collect()
    }
}

impl Canvas for Picture {
    fn width(&self) -> usize {
        self.width
    }

    fn height(&self) -> usize {
        Self::height(self)
    }

    fn write(&mut self, x: usize, y: usize, pixels: &[u32]) {
        for (x, pixel) in (x..self.width).zip(pixels) {
            if let Some(place) = self.pixels.get_mut(y * self.width + x) {
                *place = *pixel;
            }
        }
    }
}

/// What a screen shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Cells in a row.
    pub columns: usize,
    /// The rows from above, each without the blanks at its end.
    pub rows: Vec<String>,
    /// The style of the first character of each row that has one.
    pub styles: Vec<Option<Style>>,
}

impl Shown {
    /// Reads a screenshot.
    ///
    /// # Errors
    ///
    /// A cell shows no character of the console's, or something is drawn between the cells.
    pub fn read(picture: &Picture) -> Result<Self> {
        let empty = screen(picture.width, picture.height())?;
        let (columns, rows) = (empty.grid().columns(), empty.grid().rows());
        let outside = outside_cells(picture, columns, rows);
        let background = FORMAT.pixel(BACKGROUND);
        if let Some((x, y)) = outside
            .into_iter()
            .find(|(x, y)| picture.pixels.get(y * picture.width + x) != Some(&background))
        {
            bail!("the pixel {x}, {y} beside the text is not the background");
        }
        let alphabet = alphabet()?;
        let mut shown = Self {
            columns,
            rows: Vec::new(),
            styles: Vec::new(),
        };
        for row in 0..rows {
            let (mut text, mut first) = (String::new(), None);
            for column in 0..columns {
                let (glyph, style) = alphabet
                    .get(&picture.cell(column, row))
                    .with_context(|| format!("row {row}, column {column} shows no character; before it: {text:?}"))?;
                if *glyph != b' ' {
                    first.get_or_insert(*style);
                }
                text.push(char::from(*glyph));
            }
            shown.rows.push(text.trim_end().to_owned());
            shown.styles.push(first);
        }
        Ok(shown)
    }

    /// Compares the screen with what the console makes of `said`: all that the guest's kernel said to people.
    ///
    /// # Errors
    ///
    /// The first row that differs.
    pub fn compare(&self, said: &str) -> Result<()> {
        let mut grid = Grid::new(self.columns, self.rows.len()).context("a screen without cells")?;
        grid.write(said.as_bytes(), Style::Plain);
        for (row, shown) in self.rows.iter().enumerate() {
            let expected: String = grid.row_text(row).collect();
            ensure!(*shown == expected, "row {row} shows {shown:?}, expected {expected:?}");
        }
        Ok(())
    }
}

fn screen(width: usize, height: usize) -> Result<Screen<Picture>> {
    let pixels = vec![0; width * height];
    Screen::new(Picture { width, pixels }, FORMAT).context("the screen is too small for a character")
}

/// Every pixel that belongs to no cell.
fn outside_cells(picture: &Picture, columns: usize, rows: usize) -> Vec<(usize, usize)> {
    let (right, bottom) = (MARGIN + columns * CELL_WIDTH, MARGIN + rows * CELL_HEIGHT);
    let all = (0..picture.height()).flat_map(|y| (0..picture.width).map(move |x| (x, y)));
    all.filter(|(x, y)| !(MARGIN..right).contains(x) || !(MARGIN..bottom).contains(y))
        .collect()
}

/// The pixels of every character in every style.
fn alphabet() -> Result<HashMap<Vec<u32>, (u8, Style)>> {
    let mut alphabet = HashMap::new();
    for style in STYLES {
        for glyph in b' '..=b'~' {
            let mut screen = screen(2 * MARGIN + CELL_WIDTH, 2 * MARGIN + CELL_HEIGHT)?;
            screen.write(&[glyph], style);
            alphabet.entry(screen.canvas().cell(0, 0)).or_insert((glyph, style));
        }
    }
    Ok(alphabet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "careful\nThe quick brown fox {}~|\n  0123\n";

    fn picture() -> Picture {
        let mut screen = screen(200, 90).unwrap();
        screen.write(b"careful\n", Style::Warning);
        screen.write(SAID.strip_prefix("careful\n").unwrap().as_bytes(), Style::Plain);
        screen.canvas().clone()
    }

    fn ppm(picture: &Picture) -> Vec<u8> {
        let mut file = format!("P6\n{} {}\n255\n", picture.width, picture.height()).into_bytes();
        file.extend(
            picture
                .pixels
                .iter()
                .flat_map(|pixel| pixel.to_be_bytes()[1..].to_vec()),
        );
        file
    }

    #[test]
    fn what_was_drawn_is_read_back() {
        let picture = Picture::parse(&ppm(&picture())).unwrap();
        let shown = Shown::read(&picture).unwrap();
        assert_eq!(shown.rows[..2], ["careful", "The quick brown fox {}"]);
        assert_eq!(shown.styles[..2], [Some(Style::Warning), Some(Style::Plain)]);
        shown.compare(SAID).unwrap();
        assert!(
            shown
                .compare(&SAID.replace("fox", "fux"))
                .unwrap_err()
                .to_string()
                .contains("row 1")
        );
    }

    #[test]
    fn a_single_wrong_pixel_is_found_in_text_and_beside_it() {
        let mut in_text = picture();
        in_text.pixels[(MARGIN + 6) * 200 + MARGIN + 3] ^= 0x40;
        assert!(
            Shown::read(&in_text)
                .unwrap_err()
                .to_string()
                .contains("row 0, column 0")
        );
        let mut beside = picture();
        beside.pixels[5] ^= 1;
        assert!(Shown::read(&beside).unwrap_err().to_string().contains("pixel 5, 0"));
    }

    #[test]
    fn other_files_are_refused() {
        for file in [
            &b""[..],
            b"P6",
            b"P6\n2 2\n255\n12345678901",
            b"P5\n1 1\n255\n1",
            b"P6 a b 255 ",
        ] {
            assert!(Picture::parse(file).is_err());
        }
        assert!(Picture::parse(b"P6\n2 2\n255\n123456789012").is_ok());
    }
}
