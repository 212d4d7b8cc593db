//! CRI's `PodSandboxConfig`, which says of a pod what otherwise the specification of its own container says.

use std::collections::BTreeMap;

use protobuf::CodedInputStream;
use sandbox::sizing::Limits;

/// What a pod's configuration says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PodConfig {
    /// Its name, namespace and uid, under the annotations that containers have for them.
    pub(crate) names: BTreeMap<String, String>,
    pub(crate) hostname: String,
    /// Lines of resolv.conf.
    pub(crate) resolvers: Vec<String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) limits: Limits,
}

impl PodConfig {
    /// Reads the message: metadata in field 1, hostname in 2, DNS in 4, annotations in 7, and in 8 the resources of Linux in 5. What can't be
    /// read is left out.
    pub(crate) fn parse(message: &[u8]) -> Self {
        let mut pod = Self::default();
        for field in Field::all(message) {
            match field.number {
                1 => pod.names = names(&field.bytes),
                2 => pod.hostname = field.text(),
                4 => pod.resolvers = resolvers(&field.bytes),
                7 => pod.annotations.extend([annotation(&field.bytes)]),
                8 => {
                    let resources = Field::all(&field.bytes).into_iter().filter(|it| it.number == 5);
                    pod.limits = resources.map(|it| limits(&it.bytes)).next().unwrap_or_default();
                }
                _ => {}
            }
        }
        pod
    }
}

/// A field of a message: what has a length, or a number.
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) bytes: Vec<u8>,
    value: u64,
}

impl Field {
    /// The fields of a message up to the first that can't be read.
    pub(crate) fn all(message: &[u8]) -> Vec<Self> {
        let mut input = CodedInputStream::from_bytes(message);
        let mut found = Vec::new();
        while let Ok(Some(tag)) = input.read_raw_tag_or_eof() {
            let (number, kind) = (tag >> 3, tag & 7);
            match kind {
                VARINT => match input.read_raw_varint64() {
                    Ok(value) => found.push(Self { number, bytes: Vec::new(), value }),
                    Err(_) => break,
                },
                LENGTH_DELIMITED => match input.read_bytes() {
                    Ok(bytes) => found.push(Self { number, bytes, value: 0 }),
                    Err(_) => break,
                },
                _ => break,
            }
        }
        found
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// `PodSandboxMetadata`: name, uid, namespace.
fn names(message: &[u8]) -> BTreeMap<String, String> {
    let name = |field: Field| {
        let what = ["name", "uid", "namespace"].get(field.number.checked_sub(1)? as usize)?;
        Some((format!("io.kubernetes.cri.sandbox-{what}"), field.text()))
    };
    Field::all(message).into_iter().filter_map(name).collect()
}

/// `DNSConfig`: servers, searches, options.
fn resolvers(message: &[u8]) -> Vec<String> {
    let fields = Field::all(message);
    let of = |number| fields.iter().filter(move |it| it.number == number).map(Field::text).collect::<Vec<_>>();
    let mut lines: Vec<_> = of(1).into_iter().map(|server| format!("nameserver {server}")).collect();
    for (word, values) in [("search", of(2)), ("options", of(3))] {
        if !values.is_empty() {
            lines.push(format!("{word} {}", values.join(" ")));
        }
    }
    lines
}

/// An entry of a map.
fn annotation(message: &[u8]) -> (String, String) {
    let fields = Field::all(message);
    let of = |number| fields.iter().find(|it| it.number == number).map(Field::text).unwrap_or_default();
    (of(1), of(2))
}

/// `LinuxContainerResources`: period, quota and memory in fields 1, 2 and 4.
fn limits(message: &[u8]) -> Limits {
    let fields = Field::all(message);
    let of = |number| fields.iter().find(|it| it.number == number).map(|it| it.value as i64);
    Limits { cpu_period: of(1).and_then(|period| period.try_into().ok()), cpu_quota: of(2), memory: of(4) }
}

const VARINT: u32 = 0;
const LENGTH_DELIMITED: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with a length.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    #[test]
    fn a_pod_s_configuration_gives_name_resolvers_annotations_and_limits() {
        let dns = [field(1, b"10.0.0.1"), field(2, b"a"), field(2, b"b"), field(3, b"o")].concat();
        // Period 100000, quota 50000, memory 1048576.
        let resources = b"\x08\xa0\x8d\x06\x10\xd0\x86\x03\x20\x80\x80\x40";
        let message = [
            field(1, &[field(1, b"web-0"), field(2, b"u"), field(3, b"shop")].concat()),
            field(2, b"web"),
            field(4, &dns),
            field(7, &[field(1, b"name"), field(2, b"value")].concat()),
            field(8, &[field(1, b"/cgroup"), field(5, resources)].concat()),
        ]
        .concat();

        let names = [("name", "web-0"), ("uid", "u"), ("namespace", "shop")];
        let names = names.map(|(what, text)| (format!("io.kubernetes.cri.sandbox-{what}"), text.to_owned()));
        let expected = PodConfig {
            names: names.into(),
            hostname: "web".into(),
            resolvers: ["nameserver 10.0.0.1", "search a b", "options o"].map(str::to_owned).to_vec(),
            annotations: [("name".into(), "value".into())].into(),
            limits: Limits { cpu_quota: Some(50_000), cpu_period: Some(100_000), memory: Some(1 << 20) },
        };
        assert_eq!(PodConfig::parse(&message), expected);
        assert_eq!(PodConfig::parse(b"\xff\xff"), PodConfig::default());
    }
}
