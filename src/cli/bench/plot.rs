//! Latencies as a picture: by their share on the left, by the time of the run on the right.

use std::fmt::Write;

use super::histogram::Histogram;

/// Of one of the two fields, in units of the picture.
const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 240.0;
/// Room for numbers, left of and below a field.
const MARGIN: f64 = 60.0;
/// Shares of the left field: the steps are those of the nines.
const SHARES: [(f64, &str); 6] = [
    (0.0, "0"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
    (0.99999, "99.999 %"),
];

/// An SVG. `seconds` is how long `slots` are together.
#[must_use]
pub fn svg(title: &str, latency: &Histogram, slots: &[Histogram], seconds: f64) -> String {
    let most = latency.most().max(1);
    let least = latency.quantile(0.0).clamp(1, most);
    let scale = Scale::new(least, most);
    let full = (2.0 * (WIDTH + MARGIN) + 20.0, HEIGHT + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">{}</text>\n",
        full.0,
        full.1,
        escaped(title)
    );
    let _infallible = write!(
        svg,
        "<g transform=\"translate({MARGIN},{})\">",
        MARGIN - 10.0
    );
    axes(&mut svg, &scale);
    for (share, name) in SHARES {
        tick(&mut svg, of_share(share), name);
    }
    let steps = 200;
    let curve = (0..=steps).map(|step| {
        let x = WIDTH * f64::from(step) / f64::from(steps);
        (x, scale.y(latency.quantile(share_at(x))))
    });
    polyline(&mut svg, curve, "#06c", "commit → screen");
    caption(
        &mut svg,
        "share of the changes that were on the screen within this time",
    );
    svg.push_str("</g>\n");
    let left = 2.0 * MARGIN + WIDTH;
    let _infallible = write!(svg, "<g transform=\"translate({left},{})\">", MARGIN - 10.0);
    axes(&mut svg, &scale);
    for quarter in 0..=4_u8 {
        let share = f64::from(quarter) / 4.0;
        tick(&mut svg, WIDTH * share, &format!("{} s", seconds * share));
    }
    caption(&mut svg, "when in the run the change was committed");
    for (at, (share, colour, name)) in [
        (0.5, "#06c", "p50"),
        (0.99, "#c60", "p99"),
        (1.0, "#a00", "max"),
    ]
    .into_iter()
    .enumerate()
    {
        let filled = slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.count() > 0);
        let curve = filled.map(|(at, slot)| {
            let x = WIDTH * (real(at) + 0.5) / real(slots.len());
            (x, scale.y(slot.quantile(share)))
        });
        polyline(&mut svg, curve, colour, name);
        let _infallible = write!(
            svg,
            "<text x=\"{}\" y=\"-6\" fill=\"{colour}\" text-anchor=\"end\">{name}</text>",
            WIDTH - 40.0 * real(2 - at)
        );
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

/// A logarithmic scale of durations.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn new(least: u64, most: u64) -> Self {
        let low = log(least).floor();
        Self {
            low,
            high: log(most).ceil().max(low + 1.0),
        }
    }

    fn y(&self, microseconds: u64) -> f64 {
        let share = (log(microseconds.max(1)) - self.low) / (self.high - self.low);
        HEIGHT * (1.0 - share.clamp(0.0, 1.0))
    }
}

#[allow(clippy::cast_precision_loss, reason = "a place in a picture")]
fn log(microseconds: u64) -> f64 {
    (microseconds as f64).log10()
}

#[allow(clippy::cast_precision_loss, reason = "a place in a picture")]
fn real(number: usize) -> f64 {
    number as f64
}

/// The nines, evenly.
fn of_share(share: f64) -> f64 {
    WIDTH * -(1.0 - share).log10() / 5.0
}

fn share_at(x: f64) -> f64 {
    1.0 - 10_f64.powf(-5.0 * x / WIDTH)
}

fn axes(svg: &mut String, scale: &Scale) {
    let _infallible = write!(
        svg,
        "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#888\"/>"
    );
    let mut power = scale.low;
    while power <= scale.high {
        let y = HEIGHT * (1.0 - (power - scale.low) / (scale.high - scale.low));
        let name = if power < 6.0 {
            format!("{} ms", 10_f64.powf(power - 3.0))
        } else {
            format!("{} s", 10_f64.powf(power - 6.0))
        };
        let _infallible = write!(
            svg,
            "<line x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            y + 4.0
        );
        power += 1.0;
    }
}

fn tick(svg: &mut String, x: f64, name: &str) {
    let _infallible = write!(
        svg,
        "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y2=\"{HEIGHT}\" stroke=\"#eee\"/>\
         <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>",
        HEIGHT + 16.0
    );
}

fn caption(svg: &mut String, text: &str) {
    let _infallible = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" fill=\"#666\" text-anchor=\"middle\">{text}</text>",
        WIDTH / 2.0,
        HEIGHT + 36.0
    );
}

fn polyline(svg: &mut String, points: impl Iterator<Item = (f64, f64)>, colour: &str, name: &str) {
    let mut points: Vec<_> = points.collect();
    let mut width = 1.5;
    if let [point] = points[..] {
        // A line of one point is a dot, and only if it goes there.
        points.push(point);
        width = 4.0;
    }
    let _infallible = write!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
         stroke-linecap=\"round\" points=\""
    );
    for (x, y) in points {
        let _infallible = write!(svg, "{x:.1},{y:.1} ");
    }
    let _infallible = write!(svg, "\"><title>{name}</title></polyline>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_holds_every_point_inside_its_fields() {
        let mut latency = Histogram::default();
        for value in [90, 400, 1_000, 250_000] {
            latency.record(value);
        }
        let slots = vec![Histogram::default(), latency.clone(), Histogram::default()];
        let svg = svg("1 < 2 & 3", &latency, &slots, 3.0);
        assert!(svg.contains("1 &lt; 2 &amp; 3") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polyline").count(), 4);
        for points in svg.split("points=\"").skip(1) {
            let points = points.split('"').next().unwrap();
            assert!(points.split_whitespace().count() >= 2, "{points}");
            for point in points.split_whitespace() {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y),
                    "{point}"
                );
            }
        }
        let empty = super::svg("", &Histogram::default(), &[], 0.0);
        assert!(!empty.contains("NaN") && !empty.contains("inf"), "{empty}");
    }
}
