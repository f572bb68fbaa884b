//! The figures that the README shows as a picture.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::thousands;

const WIDTH: i32 = 840;
/// Where the bars begin, and where the longest ends.
const LEFT: i32 = 330;
const RIGHT: i32 = 760;
const LINE: i32 = 28;
const HEAD: i32 = 44;
const MARGIN: i32 = 16;

// A ground of its own, so that it can be read on a page of any colour.
const GROUND: RGBColor = RGBColor(0xff, 0xff, 0xff);
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);
const OURS: RGBColor = RGBColor(0x1d, 0x6f, 0xd1);
const THEIRS: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);

/// A name and how much it did in a second.
pub(super) struct Bar {
    name: &'static str,
    rate: f64,
}

impl Bar {
    /// One bar.
    pub(super) fn new(name: &'static str, rate: f64) -> Self {
        Self { name, rate }
    }

    fn colour(&self) -> RGBColor {
        if self.name.starts_with("PiCloud") {
            OURS
        } else {
            THEIRS
        }
    }
}

/// Draw groups of bars, each with a title and the longest first, as an SVG; a group without bars
/// is left out.
pub(super) fn draw(path: &Path, mut groups: Vec<(&str, Vec<Bar>)>) -> Result<()> {
    groups.retain(|(_, bars)| !bars.is_empty());
    for (_, bars) in &mut groups {
        bars.sort_by(|a, b| b.rate.total_cmp(&a.rate));
    }
    let lines: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let height = MARGIN + LINE * lines as i32 + (HEAD + MARGIN) * groups.len() as i32;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&GROUND)?;
    let text = |size: i32, right: bool| {
        let side = if right { HPos::Right } else { HPos::Left };
        ("sans-serif", size)
            .into_font()
            .color(&INK)
            .pos(Pos::new(side, VPos::Center))
    };
    let mut y = MARGIN;
    for (title, bars) in &groups {
        let style = text(18, false);
        area.draw(&Text::new(*title, (MARGIN, y + HEAD / 2), style))?;
        y += HEAD;
        let longest = bars.iter().map(|bar| bar.rate).fold(1.0, f64::max);
        for bar in bars {
            let middle = y + LINE / 2;
            let end = LEFT + (f64::from(RIGHT - LEFT) * bar.rate / longest) as i32;
            area.draw(&Text::new(bar.name, (LEFT - 12, middle), text(15, true)))?;
            let corners = [(LEFT, y + 4), (end.max(LEFT + 1), y + LINE - 4)];
            area.draw(&Rectangle::new(corners, bar.colour().filled()))?;
            let rate = thousands(bar.rate.round());
            area.draw(&Text::new(rate, (end + 8, middle), text(15, false)))?;
            y += LINE;
        }
        y += MARGIN;
    }
    area.present()?;
    Ok(())
}
