//! Metrics in Prometheus' text form, under the names that Kata gave them: of a process and of a guest, made of what `/proc` says.
//!
//! Host and guest tell the same things of themselves, so both fill these types with the files that they have read. What a
//! kernel doesn't say is left out.

mod guest;
mod process;

use std::fmt::{Display, Write as _};

pub use guest::{FileSystem, GuestFiles};
pub use process::{Process, ProcessFiles};

/// What a metric's value does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A text in the making. Samples follow the family that they belong to.
#[derive(Clone, Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to memory can't fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample with these labels.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if index == 0 { '{' } else { ',' }, escaped(text));
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family of one sample, if there is a value.
    pub fn value(&mut self, name: &str, kind: Kind, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.family(name, kind, help);
            self.sample(name, &[], value);
        }
    }

    /// A family with a sample for each item, unless there is none.
    pub fn items<'a, V: Display>(&mut self, name: &str, help: &str, items: impl IntoIterator<Item = (&'a str, V)>) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_some() {
            self.family(name, Kind::Gauge, help);
        }
        for (item, value) in items {
            self.sample(name, &[("item", item)], value);
        }
    }

    /// A family of network interfaces, from the text of `/proc/net/dev`.
    pub fn interfaces(&mut self, name: &str, help: &str, text: &str) {
        // Two lines of headings.
        let mut lines = text.lines().skip(2).filter_map(|line| line.split_once(':')).peekable();
        if lines.peek().is_some() {
            self.family(name, Kind::Gauge, help);
        }
        for (interface, values) in lines {
            for (item, value) in NETWORK.iter().zip(numbers(values)) {
                self.sample(name, &[("interface", interface.trim()), ("item", item)], value);
            }
        }
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.0
    }
}

/// A label's value as the format wants it.
pub fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The numbers of a line, up to the first word that is none.
fn numbers(text: &str) -> impl Iterator<Item = u64> {
    text.split_ascii_whitespace().map_while(|word| word.parse().ok())
}

/// The columns of `/proc/net/dev`.
const NETWORK: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_their_labels_escaped() {
        let mut text = Exposition::default();
        text.value("a_total", Kind::Counter, "Of a.", Some(7));
        text.value("b", Kind::Gauge, "Of b.", None::<u64>);
        text.family("c", Kind::Gauge, "Of c.");
        text.sample("c", &[("name", "a \"b\"\\\n"), ("item", "x")], 0.5);
        assert_eq!(
            text.into_text(),
            "# HELP a_total Of a.\n# TYPE a_total counter\na_total 7\n# HELP c Of c.\n# TYPE c gauge\n\
             c{name=\"a \\\"b\\\"\\\\\\n\",item=\"x\"} 0.5\n"
        );
    }

    #[test]
    fn interfaces_have_their_columns_by_name() {
        let mut text = Exposition::default();
        let file = "Inter-|   Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n    lo: 5 5\n";
        text.interfaces("net", "Of the network.", file);
        let text = text.into_text();
        for line in [
            "net{interface=\"eth0\",item=\"recv_bytes\"} 1",
            "net{interface=\"eth0\",item=\"sent_bytes\"} 9",
            "net{interface=\"eth0\",item=\"sent_compressed\"} 16",
            "net{interface=\"lo\",item=\"recv_packets\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        assert_eq!(text.matches("# TYPE").count(), 1);
    }
}
