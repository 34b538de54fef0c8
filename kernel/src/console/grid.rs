//! The text of a screen: rows of cells, and which of them look different from what was drawn last.
//!
//! Scrolling moves text here and nowhere else: video memory is slow to read, and on some machines cannot be read at all. What
//! changed is found by comparing cells, and only that is drawn.

use alloc::vec::Vec;

use super::Style;

/// A character in its style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Printable ASCII.
    pub glyph: u8,
    /// How it is meant.
    pub style: Style,
}

impl Cell {
    /// An empty cell.
    pub const BLANK: Self = Self {
        glyph: b' ',
        style: Style::Plain,
    };
}

/// Columns between two tabulator stops.
const TABULATOR: usize = 8;

/// A screen full of text.
#[derive(Debug)]
pub struct Grid {
    columns: usize,
    rows: usize,
    /// What the screen should show, row by row.
    text: Vec<Cell>,
    /// What was drawn last.
    drawn: Vec<Cell>,
    /// The rows that were written to since then: the first, and one past the last.
    touched: (usize, usize),
    /// Where the next character goes. The column may be one past the last: the line is broken when another one comes.
    column: usize,
    row: usize,
    /// Bytes of a UTF-8 character that are still to come.
    continuation: u8,
}

impl Grid {
    /// Makes an empty screen, drawn empty; `None` if it would have no cell or there is no memory for it.
    #[must_use]
    pub fn new(columns: usize, rows: usize) -> Option<Self> {
        let count = columns.checked_mul(rows).filter(|count| *count > 0)?;
        let (mut text, mut drawn) = (Vec::new(), Vec::new());
        text.try_reserve_exact(count).ok()?;
        drawn.try_reserve_exact(count).ok()?;
        text.resize(count, Cell::BLANK);
        drawn.resize(count, Cell::BLANK);
        Some(Self {
            columns,
            rows,
            text,
            drawn,
            touched: (0, 0),
            column: 0,
            row: 0,
            continuation: 0,
        })
    }

    /// Returns the number of columns.
    #[must_use]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the number of rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Takes text. Bytes that are no printable ASCII show as `?`, a whole UTF-8 character as one.
    pub fn write(&mut self, text: &[u8], style: Style) {
        for &byte in text {
            if self.continuation > 0 && byte & 0xc0 == 0x80 {
                self.continuation -= 1;
                continue;
            }
            self.continuation = match byte {
                0xc0..=0xdf => 1,
                0xe0..=0xef => 2,
                0xf0..=0xf7 => 3,
                _ => 0,
            };
            match byte {
                b'\n' => self.next_line(),
                b'\r' => self.column = 0,
                b'\t' => {
                    let stop = (self.column / TABULATOR + 1) * TABULATOR;
                    while self.column < stop.min(self.columns) {
                        self.put(b' ', style);
                    }
                }
                8 => self.column = self.column.saturating_sub(1),
                b' '..=b'~' => self.put(byte, style),
                _ => self.put(b'?', style),
            }
        }
    }

    fn put(&mut self, glyph: u8, style: Style) {
        if self.column >= self.columns {
            self.next_line();
        }
        if let Some(cell) = self.text.get_mut(self.row * self.columns + self.column) {
            *cell = Cell { glyph, style };
        }
        self.touch(self.row, self.row + 1);
        self.column += 1;
    }

    fn next_line(&mut self) {
        self.column = 0;
        if self.row + 1 < self.rows {
            self.row += 1;
            return;
        }
        self.text.copy_within(self.columns.., 0);
        let last_row = self.text.len() - self.columns;
        if let Some(row) = self.text.get_mut(last_row..) {
            row.fill(Cell::BLANK);
        }
        self.touch(0, self.rows);
    }

    fn touch(&mut self, from: usize, to: usize) {
        let (first, end) = self.touched;
        self.touched = if first < end {
            (first.min(from), end.max(to))
        } else {
            (from, to)
        };
    }

    /// Calls `draw(column, row, cell)` for each cell that looks different from when it was drawn last.
    pub fn draw(&mut self, mut draw: impl FnMut(usize, usize, Cell)) {
        let (first, end) = core::mem::take(&mut self.touched);
        let cells = first * self.columns..end * self.columns;
        let (Some(text), Some(drawn)) = (self.text.get(cells.clone()), self.drawn.get_mut(cells)) else {
            return;
        };
        for (index, (cell, drawn)) in text.iter().zip(drawn).enumerate() {
            if *drawn != *cell && (drawn.glyph, cell.glyph) != (b' ', b' ') {
                draw(index % self.columns, first + index / self.columns, *cell);
            }
            *drawn = *cell;
        }
    }

    /// Returns the text of a row without the blanks at its end.
    pub fn row_text(&self, row: usize) -> impl Iterator<Item = char> + '_ {
        let start = row.saturating_mul(self.columns);
        let cells = self.text.get(start..start.saturating_add(self.columns)).unwrap_or(&[]);
        let end = cells
            .iter()
            .rposition(|cell| cell.glyph != b' ')
            .map_or(0, |last| last + 1);
        cells.iter().take(end).map(|cell| char::from(cell.glyph))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(grid: &Grid) -> Vec<String> {
        (0..grid.rows()).map(|row| grid.row_text(row).collect()).collect()
    }

    fn drawn(grid: &mut Grid) -> Vec<(usize, usize, u8)> {
        let mut cells = Vec::new();
        grid.draw(|column, row, cell| cells.push((column, row, cell.glyph)));
        cells
    }

    #[test]
    fn long_lines_break_and_full_screens_scroll() {
        let mut grid = Grid::new(4, 3).unwrap();
        grid.write(b"abcdef\ngh\ni", Style::Plain);
        assert_eq!(rows(&grid), ["ef", "gh", "i"]);
        grid.write(b"jkl", Style::Plain);
        assert_eq!(
            rows(&grid),
            ["ef", "gh", "ijkl"],
            "a full line is not broken before the next character"
        );
        grid.write(b"\n", Style::Plain);
        assert_eq!(rows(&grid), ["gh", "ijkl", ""]);
    }

    #[test]
    fn control_characters_and_other_alphabets() {
        let mut grid = Grid::new(20, 2).unwrap();
        grid.write("a\tb\rc \u{e9}\u{20ac}\u{1f600}d".as_bytes(), Style::Plain);
        assert_eq!(rows(&grid)[0], "c ???d  b");
        grid.write(b"\n\xff\x80x\x08y", Style::Plain);
        assert_eq!(rows(&grid)[1], "??y");
    }

    #[test]
    fn a_character_cut_in_two_by_the_caller_is_still_one() {
        let mut grid = Grid::new(8, 1).unwrap();
        grid.write(&[0xe2, 0x82], Style::Plain);
        grid.write(&[0xac, b'x'], Style::Plain);
        assert_eq!(rows(&grid)[0], "?x");
    }

    #[test]
    fn only_what_changed_is_drawn() {
        let mut grid = Grid::new(3, 2).unwrap();
        assert_eq!(drawn(&mut grid), [], "it was made empty");
        grid.write(b"ab\n", Style::Plain);
        assert_eq!(drawn(&mut grid), [(0, 0, b'a'), (1, 0, b'b')]);
        assert_eq!(drawn(&mut grid), []);
        grid.write(b"ax\n", Style::Plain);
        assert_eq!(
            drawn(&mut grid),
            [(1, 0, b'x')],
            "scrolled: only one cell looks different"
        );
        grid.write(b" ", Style::Error);
        assert_eq!(drawn(&mut grid), [], "a blank has no colour");
    }

    #[test]
    fn a_screen_without_cells_is_refused() {
        assert!(Grid::new(0, 5).is_none());
        assert!(Grid::new(usize::MAX, 2).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_leave_the_cursor_on_the_screen(columns in 1_usize..12, lines in 1_usize..6, text in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut grid = Grid::new(columns, lines).unwrap();
            grid.write(&text, Style::Plain);
            prop_assert!(grid.row < lines && grid.column <= columns);
            prop_assert_eq!(grid.text.len(), columns * lines);
        }
    }
}
