//! `report DIR`: what was measured, as one page that needs nothing else: tables, bars, and percentile curves.
//!
//! Every `*.jsonl` of the directory is a section: `compare.jsonl` of `compare --out DIR`, or the lines of any
//! measurement's `--json`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use plotters::prelude::*;

use crate::compare::records::Records;
use crate::outcome::{float, median, short};

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Where the `*.jsonl` are; report.html is written there
    dir: PathBuf,
}

const SIZE: (u32, u32) = (900, 420);
const FONT: &str = "sans-serif";
/// What a bar shows of a cell, first come first served.
const BARS: [(&str, &str); 8] = [
    ("requests_per_s", "requests/s"),
    ("connections_per_s", "connections/s"),
    ("messages_per_s", "messages/s"),
    ("commands_per_s", "commands/s"),
    ("mb_per_s", "MB/s"),
    ("kib_per_connection", "KiB a connection"),
    ("calls_per_request:near", "system calls a request, near"),
    ("create_per_s", "files created/s"),
];
const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}.PASS{color:#060}.FAIL{color:#b00}.UNDECIDED{color:#850}svg{max-width:100%;height:auto}";

pub(crate) fn run(args: &Report) -> Result<(), String> {
    let mut files: Vec<PathBuf> = fs::read_dir(&args.dir)
        .map_err(|e| format!("{}: {e}", args.dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(format!("{}: no *.jsonl there: `compare --out DIR` writes one", args.dir.display()));
    }
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>proxy-bench</title><style>{STYLE}</style>\n\
         <h1>proxy-bench</h1>\n"
    );
    for file in &files {
        section(&mut page, file).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    page.push_str("</html>\n");
    let out = args.dir.join("report.html");
    fs::write(&out, page).map_err(|e| format!("{}: {e}", out.display()))?;
    println!("{}", out.display());
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn section(page: &mut String, file: &Path) -> Result<(), String> {
    let found = Records::read(file)?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    push(page, format_args!("<h2>{}</h2>\n", escaped(&name)));
    let head = &found.head;
    if head.rounds > 0 {
        push(
            page,
            format_args!(
                "<p>{} rounds of {} s; {} processors, {} threads a proxy (ours: {}); Linux {}; load before: {}, after: {}.</p>\n",
                head.rounds,
                head.seconds,
                head.processors,
                head.threads,
                head.our_threads,
                escaped(&head.kernel),
                escaped(&head.load),
                escaped(&head.load_after)
            ),
        );
    }
    if !found.judged.is_empty() {
        page.push_str("<table><tr><th>target<th>bound<th>median<th>95 % interval<th>verdict\n");
        for j in &found.judged {
            let cells = [&j.what, &j.target, &j.measured, &j.interval].map(|t| format!("<td>{}", escaped(t))).concat();
            push(page, format_args!("<tr>{cells}<td class=\"{0}\">{0}\n", escaped(&j.verdict)));
        }
        page.push_str("</table>\n");
    }
    let mut cells: Vec<&str> = Vec::new();
    for record in &found.all {
        if !cells.contains(&record.cell.as_str()) {
            cells.push(&record.cell);
        }
    }
    for cell in cells {
        let title = crate::compare::title(cell).unwrap_or(cell);
        push(page, format_args!("<h3>{}</h3>\n", escaped(title)));
        let entrants = entrants(&found, cell);
        table(page, &found, cell, &entrants);
        if let Some(svg) = bars(&found, cell, &entrants)? {
            page.push_str(&svg);
        }
        if let Some(svg) = curves(&found, cell, &entrants)? {
            page.push_str(&svg);
        }
    }
    let missing = head.missing.iter().chain(found.all.iter().filter_map(|r| r.error.as_ref()));
    missing.for_each(|why| push(page, format_args!("<p>not measured: {}</p>\n", escaped(why))));
    Ok(())
}

fn push(page: &mut String, text: std::fmt::Arguments) {
    page.write_fmt(text).expect("into a String");
}

fn entrants<'a>(found: &'a Records, cell: &str) -> Vec<&'a str> {
    let mut all: Vec<&str> = Vec::new();
    for record in found.all.iter().filter(|r| r.cell == cell && r.outcome.is_some()) {
        if !all.contains(&record.entrant.as_str()) {
            all.push(&record.entrant);
        }
    }
    all
}

/// Every figure of a cell, medians.
fn table(page: &mut String, found: &Records, cell: &str, entrants: &[&str]) {
    let mut names: Vec<&String> = found
        .all
        .iter()
        .filter(|r| r.cell == cell)
        .filter_map(|r| r.outcome.as_ref())
        .flat_map(|o| o.figures.keys())
        .collect();
    names.sort();
    names.dedup();
    page.push_str("<details><summary>all figures, medians</summary><table><tr><th>");
    entrants.iter().for_each(|e| push(page, format_args!("<th>{}", escaped(e))));
    page.push('\n');
    for name in names {
        push(page, format_args!("<tr><td>{}", escaped(name)));
        for entrant in entrants {
            let values: Vec<f64> = found.values(cell, entrant, name).into_values().collect();
            let shown = if values.is_empty() { "-".into() } else { short(median(&values)) };
            push(page, format_args!("<td>{shown}"));
        }
        page.push('\n');
    }
    page.push_str("</table></details>\n");
}

/// A bar an entrant with the lowest and highest round on it.
fn bars(found: &Records, cell: &str, entrants: &[&str]) -> Result<Option<String>, String> {
    let has = |figure: &str| entrants.iter().any(|e| !found.values(cell, e, figure).is_empty());
    let Some((figure, unit)) = BARS.iter().find(|(figure, _)| has(figure)) else { return Ok(None) };
    let bars: Vec<(&str, Vec<f64>)> = entrants
        .iter()
        .map(|e| (*e, found.values(cell, e, figure).into_values().collect::<Vec<f64>>()))
        .filter(|(_, values)| !values.is_empty())
        .rev()
        .collect();
    let most = bars.iter().flat_map(|(_, v)| v).copied().fold(0.0, f64::max) * 1.05;
    let mut svg = String::new();
    let drawn = draw_bars(&mut svg, &bars, unit, if most > 0.0 { most } else { 1.0 });
    drawn.map_err(|e| format!("drawing: {e}"))?;
    Ok(Some(svg))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_bars(svg: &mut String, bars: &[(&str, Vec<f64>)], unit: &str, most: f64) -> Drawn {
    let height = 70 + 26 * u32::try_from(bars.len())?;
    let area = SVGBackend::with_string(svg, (SIZE.0, height)).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(130)
        .build_cartesian_2d(0.0..most, (0..bars.len()).into_segmented())?;
    let named = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(i) => bars.get(*i).map(|(name, _)| (*name).to_string()).unwrap_or_default(),
        _ => String::new(),
    };
    let mesh = &mut chart.configure_mesh();
    mesh.disable_y_mesh().x_desc(unit).y_labels(bars.len()).y_label_formatter(&named);
    mesh.x_label_formatter(&|x| short(*x)).label_style((FONT, 14)).draw()?;
    for (i, (name, values)) in bars.iter().enumerate() {
        let color = if name.starts_with("ours") { RGBColor(0, 110, 90) } else { RGBColor(150, 160, 175) };
        let corners = [(0.0, SegmentValue::Exact(i)), (median(values), SegmentValue::Exact(i + 1))];
        let mut bar = Rectangle::new(corners, color.filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series(std::iter::once(bar))?;
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        let middle = [(low, SegmentValue::CenterOf(i)), (high, SegmentValue::CenterOf(i))];
        chart.draw_series(std::iter::once(PathElement::new(middle, BLACK.stroke_width(1))))?;
    }
    area.present()?;
    drop(chart);
    Ok(())
}

/// How far out a percentile is: 90 at 1, 99 at 2, 99.9 at 3.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).max(1e-5).log10()
}

/// Microseconds at each percentile, the median of all rounds.
fn curves(found: &Records, cell: &str, entrants: &[&str]) -> Result<Option<String>, String> {
    let mut lines = Vec::new();
    for entrant in entrants {
        let rounds: Vec<&Vec<(f64, f64)>> = found
            .all
            .iter()
            .filter(|r| r.cell == cell && r.entrant == *entrant)
            .filter_map(|r| Some(&r.outcome.as_ref()?.curve))
            .filter(|curve| !curve.is_empty())
            .collect();
        let Some(first) = rounds.first() else { continue };
        let points = (0..first.len()).filter(|i| first[*i].0 < 99.95).map(|i| {
            let values: Vec<f64> = rounds.iter().filter_map(|c| c.get(i)).map(|p| p.1.max(0.1)).collect();
            (nines(first[i].0), median(&values))
        });
        lines.push((*entrant, points.collect::<Vec<_>>()));
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw_curves(&mut svg, &lines).map_err(|e| format!("drawing: {e}"))?;
    Ok(Some(svg))
}

fn draw_curves(svg: &mut String, lines: &[(&str, Vec<(f64, f64)>)]) -> Drawn {
    let times = || lines.iter().flat_map(|(_, points)| points).map(|p| p.1);
    let (low, high) = (times().fold(f64::MAX, f64::min) * 0.8, times().fold(0.0, f64::max) * 1.2);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..3.05, (low..high).log_scale())?;
    let percentile = |x: &f64| short(100.0 * (1.0 - 10.0_f64.powf(-x)));
    let mesh = &mut chart.configure_mesh();
    mesh.x_desc("percentile").y_desc("microseconds").x_labels(7).x_label_formatter(&percentile);
    mesh.y_label_formatter(&|y| short(*y)).label_style((FONT, 14)).draw()?;
    for (i, (name, points)) in lines.iter().enumerate() {
        let color = HSLColor(float(i as u64) / float(lines.len() as u64), 0.8, 0.4);
        let style = color.stroke_width(if name.starts_with("ours") { 3 } else { 1 });
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    let legend = &mut chart.configure_series_labels();
    legend.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8)).label_font((FONT, 13)).draw()?;
    area.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_bars_and_curves_and_asks_for_nothing() {
        let dir = std::env::temp_dir().join(format!("proxy-bench-report-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut outcome = crate::outcome::Outcome::new("latency", "<ours>");
        let mut times = crate::outcome::histogram();
        (1..=1000).for_each(|us| times.record(us * 1000).unwrap());
        outcome.set_times("", &times);
        outcome.set("requests_per_s", 12_345.0);
        fs::write(dir.join("one.jsonl"), format!("{0}\n{0}\n", outcome.json())).unwrap();
        run(&Report { dir: dir.clone() }).unwrap();
        let page = fs::read_to_string(dir.join("report.html")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(page.matches("<svg").count(), 2, "{page}");
        assert!(page.contains("&lt;ours&gt;") && !page.contains("<ours>"));
        assert!(!page.contains("src=") && !page.contains("href="), "{page}");
    }
}
