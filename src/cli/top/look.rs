//! How things look: colours where they are wanted, bars and sparklines, numbers in few cells.

use std::env;

use ratatui::style::{Color, Modifier, Style};

/// What the terminal is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Unless NO_COLOR is set (no-color.org).
    pub colours: bool,
    /// Block elements, where the locale is UTF-8.
    pub blocks: bool,
}

const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const PLAIN: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];

impl Look {
    pub fn of_environment() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        // As setlocale(3) finds it.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let locale = locale.unwrap_or_default().to_lowercase();
        Self {
            colours: set("NO_COLOR").is_none(),
            blocks: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    fn colour(self, colour: Color) -> Style {
        match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    pub fn plain(self) -> Style {
        Style::new()
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn head(self) -> Style {
        Style::new().add_modifier(Modifier::UNDERLINED)
    }

    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn warn(self) -> Style {
        self.colour(Color::Yellow)
    }

    /// To be seen without colours too.
    pub fn bad(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub fn bad_if(self, bad: bool) -> Style {
        if bad { self.bad() } else { self.plain() }
    }

    pub fn state(self, word: &str) -> Style {
        match word {
            "up" => self.colour(Color::Green),
            "unresolved" => self.warn(),
            "-" | "kernel" => self.plain(),
            _ => self.bad(),
        }
    }

    /// A load from 0 to 1.
    pub fn level(self, load: f64) -> Style {
        match load {
            x if x >= 0.95 => self.bad(),
            x if x >= 0.8 => self.warn(),
            _ => self.plain(),
        }
    }

    fn steps(self) -> &'static [char; 9] {
        if self.blocks { &BLOCKS } else { &PLAIN }
    }

    /// A share from 0 to 1 as a bar of `width` cells.
    pub fn bar(self, share: f64, width: usize) -> String {
        let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
        let (on, off) = if self.blocks {
            ('█', '░')
        } else {
            ('#', '.')
        };
        let cell = |n| if n < full { on } else { off };
        (0..width).map(cell).collect()
    }

    /// The last `width` samples, the latest at the right, the highest of them full.
    pub fn sparkline(self, samples: &[u64], width: usize) -> String {
        let shown = &samples[samples.len().saturating_sub(width)..];
        let highest = shown.iter().copied().max().unwrap_or_default().max(1);
        // What is there at all is seen.
        let step = |n: u64| (n as u128 * 8).div_ceil(highest.into()) as usize;
        let cells = shown.iter().map(|n| self.steps()[step(*n)]);
        let gap = std::iter::repeat_n(' ', width - shown.len());
        gap.chain(cells).collect()
    }
}

/// Three digits and a prefix.
fn scaled(n: f64) -> String {
    let mut n = n;
    for prefix in ["", "k", "M", "G"] {
        let (limit, digits) = match prefix {
            "" => (999.5, 0),
            _ if n < 9.995 => (999.5, 2),
            _ if n < 99.95 => (999.5, 1),
            _ => (999.5, 0),
        };
        if n < limit {
            return format!("{n:.digits$}{prefix}");
        }
        n /= 1000.0;
    }
    format!("{n:.1}T")
}

/// A number of things per second: `0`, `874`, `1.23M`.
pub fn rate(n: f64) -> String {
    match n {
        // A few in a while are not none.
        n if n > 0.0 && n < 0.95 => format!("{n:.1}"),
        // The sum of no numbers is -0.
        n => scaled(n + 0.0),
    }
}

pub fn count(n: u64) -> String {
    scaled(n as f64)
}

/// Bits per second: `0b`, `1.23Gb`.
pub fn bits(n: f64) -> String {
    scaled(n) + "b"
}

/// Rounded down, so that 100 % is all.
pub fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share >= 1.0 => "100%".to_owned(),
        Some(share) => format!("{:.1}%", (share.max(0.0) * 1000.0).floor() / 10.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASCII: Look = Look {
        colours: false,
        blocks: false,
    };

    #[test]
    fn numbers_take_few_cells() {
        for (n, text) in [
            (0.0, "0"),
            (0.2, "0.2"),
            (999.0, "999"),
            (999.6, "1.00k"),
            (9_996.0, "10.0k"),
            (99_960.0, "100k"),
            (1_234_567.0, "1.23M"),
            (45.6e9, "45.6G"),
            (7.89e12, "7.9T"),
        ] {
            assert_eq!(rate(n), text, "{n}");
        }
        assert_eq!(bits(1e9), "1.00Gb");
        assert_eq!(percent(Some(0.99999)), "99.9%");
        assert_eq!(
            (percent(Some(1.0)), percent(None)),
            ("100%".into(), "-".into())
        );
    }

    #[test]
    fn sparklines_and_bars() {
        assert_eq!(ASCII.sparkline(&[0, 1, 50, 100], 6), "   .=@");
        assert_eq!(ASCII.sparkline(&[9, 9, 100, 50], 2), "@=");
        assert_eq!(ASCII.sparkline(&[], 3), "   ");
        assert_eq!(ASCII.sparkline(&[u64::MAX, 1], 2), "@.");
        assert_eq!(ASCII.bar(0.5, 4), "##..");
    }
}
