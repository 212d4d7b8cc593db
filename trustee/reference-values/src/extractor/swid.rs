//! The extractor `swid`: a software identity tag in XML that is a TCG reference integrity manifest, as GPU makers
//! publish.
//!
//! A resource of the type `Measurement` gives the value `<manufacturer>.<edition>.measurement_<index>`: the list of its
//! hashes (SHA-384) that are not all zeros. The manifest's own XML signature is not read: sign the message.

use std::collections::BTreeMap;

use roxmltree::{Document, Node, ParsingOptions};
use serde_json::json;

use super::{Extract, Validity, digest_of, name_of};
use crate::Error;

/// The measurements of a manifest.
pub(super) fn extract(payload: &[u8]) -> Result<Extract, Error> {
    let text = str::from_utf8(payload).map_err(|_| Error::Payload("it is not UTF-8"))?;
    check_bounds(text)?;
    // Document type declarations, and with them entities, are refused by the parser.
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options)
        .map_err(|_| Error::Payload("it is not XML without a document type and of at most 50000 nodes"))?;

    let root = document.root_element();
    let meta = only_child(root, "Meta").ok_or(Error::Payload("it has no one element Meta"))?;
    let manufacturer = meta
        .attribute((RIM, "PlatformManufacturerStr"))
        .ok_or(Error::Payload("its Meta names no PlatformManufacturerStr"))?;
    let edition = meta.attribute("edition").ok_or(Error::Payload("its Meta names no edition"))?;

    let maker = format!("{}.{}", name_of(manufacturer)?, name_of(edition)?);

    let mut values = BTreeMap::new();
    let payload = only_child(root, "Payload").ok_or(Error::Payload("it has no one element Payload"))?;
    for resource in payload.descendants().filter(|node| node.has_tag_name((SWID, "Resource"))) {
        if resource.attribute("type") != Some("Measurement") {
            continue;
        }
        let index = resource.attribute("index").ok_or(Error::Payload("one of its measurements has no index"))?;
        let hashes = hashes_of(resource)?;
        if hashes.is_empty() {
            continue;
        }
        // Dashes would be operators in a policy.
        let name = format!("{maker}.measurement_{}", name_of(index)?).replace('-', "_");
        if values.insert(name, json!(hashes)).is_some() {
            return Err(Error::Payload("two of its measurements have the same index"));
        }
    }
    Ok(Extract { values, validity: Validity::default(), signed: None })
}

/// The attributes Hash0, Hash1, ... of a measurement. All zeros stands for no measurement.
fn hashes_of(resource: Node<'_, '_>) -> Result<Vec<String>, Error> {
    let mut hashes = Vec::new();
    for number in 0.. {
        let Some(hash) = resource.attribute((SHA384, format!("Hash{number}").as_str())) else { break };
        let hash = digest_of(hash, 48).ok_or(Error::Payload("one of its hashes is not a SHA-384 in hex"))?;
        if hash.bytes().any(|digit| digit != b'0') {
            hashes.push(hash);
        }
    }
    Ok(hashes)
}

fn only_child<'a, 'input>(parent: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    let mut children = parent.children().filter(|node| node.has_tag_name((SWID, name)));
    children.next().filter(|_| children.next().is_none())
}

/// The parser compares each attribute with those before it in its element, and copies the namespaces of a parent to a
/// child with new ones: both grow with the square of what a document may hold, so they are bounded before it starts.
fn check_bounds(text: &str) -> Result<(), Error> {
    let attributes = |element: &str| element.bytes().filter(|b| *b == b'=').count();
    if text.matches("xmlns").count() > MAX_NAMESPACES || text.split('<').any(|part| attributes(part) > MAX_ATTRIBUTES) {
        return Err(Error::Payload("it has more than 64 namespaces, or 256 attributes in one element"));
    }
    Ok(())
}

const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const RIM: &str = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/";
const SHA384: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const MAX_NODES: u32 = 50_000;
const MAX_NAMESPACES: usize = 64;
const MAX_ATTRIBUTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::extract;
    use super::*;
    use proptest::prelude::*;

    fn manifest(resources: &str) -> String {
        format!(
            r#"<?xml version="1.0"?>
            <SoftwareIdentity xmlns="{SWID}" xmlns:h="{SHA384}" name="GPU">
              <Entity name="Maker Inc." role="tagCreator"/>
              <Meta xmlns:rim="{RIM}" edition="GPU-1" rim:PlatformManufacturerStr="Maker Inc"/>
              <Payload>{resources}</Payload>
              <Signature><SignatureValue>AAAA==</SignatureValue></Signature>
            </SoftwareIdentity>"#
        )
    }

    fn measurement(index: &str, hashes: &[&str]) -> String {
        let hashes: String = hashes.iter().enumerate().map(|(i, hash)| format!(r#" h:Hash{i}="{hash}""#)).collect();
        format!(r#"<Resource type="Measurement" index="{index}" active="True"{hashes} size="48"/>"#)
    }

    #[test]
    fn measurements_become_lists_of_hashes() {
        let (zero, one, two) = ("0".repeat(96), "1a".repeat(48), "2B".repeat(48));
        let resources = [
            measurement("0", &[&zero]),
            measurement("1", &[&one]),
            measurement("2", &[&zero, &one, &two]),
            r#"<Resource type="Other" index="3"/>"#.to_owned(),
        ];
        let values = extract("swid", manifest(&resources.concat()).as_bytes()).unwrap().values;
        assert_eq!(
            json!(values),
            json!({
                "Maker_Inc.GPU_1.measurement_1": [one],
                "Maker_Inc.GPU_1.measurement_2": [one, two.to_lowercase()],
            })
        );
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_its_reason() {
        let hash = "1a".repeat(48);
        let good = manifest(&measurement("1", &[&hash]));
        let entity = good.replacen("<SoftwareIdentity", "<!DOCTYPE a [<!ENTITY e \"x\">]><SoftwareIdentity", 1);
        for (bad, reason) in [
            ("", "not XML"),
            (&entity, "document type"),
            (&good.replace("edition", "version"), "edition"),
            (&good.replace("PlatformManufacturerStr", "Other"), "PlatformManufacturerStr"),
            (&good.replace("<Payload>", "<Payload/><Payload>"), "no one element Payload"),
            (&good.replace("index", "number"), "no index"),
            (&good.replace(&hash, "1a"), "not a SHA-384"),
            (&good.replace(&hash, &"0".repeat(96)), "no values"),
            (&manifest(&measurement("1", &[&hash]).repeat(2)), "the same index"),
        ] {
            let error = extract("swid", bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn bombs_are_refused_before_they_are_parsed() {
        let attributes: String = (0..100_000).map(|i| format!(" a{i}=''")).collect();
        let namespaces =
            (0..20_000).map(|i| format!("<a xmlns:n{i}='u'>")).collect::<String>() + &"</a>".repeat(20_000);
        let deep = "<a>".repeat(100_000) + &"</a>".repeat(100_000);
        for bomb in [format!("<a{attributes}/>"), namespaces, deep] {
            assert!(matches!(extract("swid", bomb.as_bytes()), Err(Error::Payload(_))));
        }
    }

    proptest! {
        #[test]
        fn no_resource_makes_it_panic(resources in "[<>/a-z=\" &;!\\[\\]-]{0,200}", at in 0usize..400) {
            let text = manifest(&resources);
            let _ = extract("swid", text.as_bytes());
            let _ = extract("swid", &text.as_bytes()[..at.min(text.len())]);
        }
    }
}
