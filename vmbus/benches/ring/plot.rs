//! The picture of `BENCHMARKS.md`: time per packet against size, both axes in powers.

use std::fmt::Write as _;

/// What the peers take on the same rows, in times the floor: measured once, beside the same floor, on another machine.
const OPENVMM: [f64; 7] = [7.0, 3.6, 4.2, 2.0, 1.35, 1.13, 1.04];
const FREEBSD: [f64; 7] = [10.5, 5.2, 9.3, 3.8, 1.95, 1.31, 1.06];

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 370.0;

/// A row: payload, packets per commit, our time and the floor in nanoseconds.
pub(crate) type Row = (usize, usize, f64, f64);

fn y(nanoseconds: f64) -> f64 {
    // Three decades, from 1 ns on.
    BOTTOM - nanoseconds.max(1.0).log10() / 3.0 * (BOTTOM - 30.0)
}

fn x(index: usize) -> f64 {
    LEFT + 40.0 + index as f64 * 80.0
}

/// Draws the rows.
pub(crate) fn svg(rows: &[Row]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\">nanoseconds per packet sent and received, against payload x packets per commit</text>\n"
    );
    for decade in [1.0, 10.0, 100.0, 1000.0] {
        let at = y(decade);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{decade}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (index, (payload, batch, ..)) in rows.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{payload}x{batch}</text>",
            x(index),
            BOTTOM + 20.0
        );
    }
    let floor = |ratios: &[f64; 7]| rows.iter().zip(*ratios).map(|(row, ratio)| row.3 * ratio).collect();
    let lines: [(&str, &str, Vec<f64>); 4] = [
        ("floor (memcpy in and out)", "#888", floor(&[1.0; 7])),
        ("vmbus", "#0a58ca", rows.iter().map(|row| row.2).collect()),
        ("OpenVMM vmbus_ring (its ratio)", "#c2570c", floor(&OPENVMM)),
        ("FreeBSD/Nanos vmbus_br (its ratio)", "#7a3e9d", floor(&FREEBSD)),
    ];
    for (number, (name, colour, times)) in lines.iter().enumerate() {
        let points: Vec<String> = times
            .iter()
            .enumerate()
            .map(|(index, time)| format!("{:.1},{:.1}", x(index), y(*time)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            points.join(" "),
            LEFT + 20.0,
            50 + 18 * number
        );
    }
    svg + "</svg>\n"
}
