//! Metrics as text, in either of the two formats that Prometheus reads: its own (0.0.4) and OpenMetrics 1.0.
//!
//! Prometheus asks for OpenMetrics; `promtool check metrics` and much else understand the older one alone.

use std::fmt::Write;

/// How the text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>
    Text,
    /// <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>
    OpenMetrics,
}

impl Format {
    /// What a client that sends this `Accept` header is to get.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its samples' names end with `_total`.
    Counter,
    Gauge,
}

/// Metrics of one name.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Without `_total`. A unit, where there is one, ends it.
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Option<&'static str>,
    pub help: &'static str,
}

impl Family {
    /// The name of its samples.
    pub fn sample_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge => self.name.to_owned(),
        }
    }
}

/// A text in the making. Each family is begun once, and followed by its samples.
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    text: String,
    /// The name of the samples of the family that was begun last.
    sample: String,
}

impl Exposition {
    pub fn new(format: Format) -> Self {
        Self {
            format,
            text: String::new(),
            sample: String::new(),
        }
    }

    pub fn begin(&mut self, family: &Family) {
        self.sample = family.sample_name();
        let name = match self.format {
            Format::Text => &self.sample,
            Format::OpenMetrics => family.name,
        };
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let _ = writeln!(self.text, "# HELP {name} {}", family.help);
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
        if let (Format::OpenMetrics, Some(unit)) = (self.format, family.unit) {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(&self.sample);
        let mut before = '{';
        for (name, value) in labels {
            let _ = write!(self.text, "{before}{name}=\"");
            escape(value, &mut self.text);
            self.text.push('"');
            before = ',';
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

fn escape(value: &str, into: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            c => into.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Family = Family {
        name: "busy_seconds",
        kind: Kind::Counter,
        unit: Some("seconds"),
        help: "Time awake.",
    };

    #[test]
    fn both_formats_are_as_they_are_specified() {
        let write = |format| {
            let mut out = Exposition::new(format);
            out.begin(&BUSY);
            out.sample(&[("worker", "0"), ("odd", "a\"b\\c\nd")], 1.5);
            out.sample(&[], 7);
            out.finish()
        };
        let samples =
            "busy_seconds_total{worker=\"0\",odd=\"a\\\"b\\\\c\\nd\"} 1.5\nbusy_seconds_total 7\n";
        assert_eq!(
            write(Format::Text),
            format!(
                "# HELP busy_seconds_total Time awake.\n# TYPE busy_seconds_total counter\n{samples}"
            )
        );
        assert_eq!(
            write(Format::OpenMetrics),
            format!(
                "# HELP busy_seconds Time awake.\n# TYPE busy_seconds counter\n# UNIT busy_seconds seconds\n{samples}# EOF\n"
            )
        );
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Text);
        assert_eq!(Format::accepted(None), Format::Text);
    }
}
