//! The JSON inside the key provider protocol's `UnWrapKey`, which ocicrypt implementations speak.

use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::encoding;
use crate::layer::{self, AnnotationPacket};

/// Reads what an ocicrypt implementation asks: the annotation packet of one layer.
///
/// # Errors
/// [`Error::Input`] if it is not such a request, [`Error::Packet`] if its packet is malformed.
pub fn parse_unwrap(input: &[u8]) -> Result<AnnotationPacket, Error> {
    #[derive(Deserialize)]
    struct Input {
        // Both must be there, whatever is in them; only one is read.
        #[serde(rename = "keywrapparams")]
        _wrap: Value,
        keyunwrapparams: UnwrapParameters,
    }
    #[derive(Deserialize)]
    struct UnwrapParameters {
        annotation: String,
    }
    let input: Input = serde_json::from_slice(input).map_err(|_| Error::Input)?;
    let packet = encoding::standard(&input.keyunwrapparams.annotation).ok_or(Error::Input)?;
    Ok(AnnotationPacket::parse(&packet)?)
}

/// The request for the key of the layer with this packet.
///
/// # Errors
/// [`Error::Packet`] if the packet has no JSON form, which is not expected.
pub fn unwrap_input(packet: &AnnotationPacket) -> Result<Vec<u8>, Error> {
    let annotation = encoding::to_standard(&packet.to_json()?);
    let input = json!({
        "op": "keyunwrap",
        "keywrapparams": { "ec": null, "optsdata": null },
        "keyunwrapparams": { "dc": { "Parameters": {} }, "annotation": annotation },
    });
    Ok(input.to_string().into_bytes())
}

/// The answer: the layer's private options as an array of integers, the only form that every client reads.
pub fn unwrap_output(options: &[u8]) -> Zeroizing<Vec<u8>> {
    // By hand, so that no copy of the key stays behind in a JSON value; four characters a byte at the most.
    let mut output = Zeroizing::new(Vec::with_capacity(OUTPUT_HEAD.len() + 4 * options.len() + OUTPUT_TAIL.len()));
    output.extend_from_slice(OUTPUT_HEAD);
    for (index, byte) in options.iter().enumerate() {
        if index > 0 {
            output.push(b',');
        }
        for (divisor, shown_from) in [(100, 100), (10, 10), (1, 0)] {
            if *byte >= shown_from {
                output.push(b'0' + byte / divisor % 10);
            }
        }
    }
    output.extend_from_slice(OUTPUT_TAIL);
    output
}

/// Reads an answer.
///
/// # Errors
/// [`Error::Output`] for anything else.
pub fn parse_unwrap_output(output: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    #[derive(Deserialize)]
    struct Output {
        keyunwrapresults: Results,
    }
    #[derive(Deserialize)]
    struct Results {
        optsdata: Zeroizing<Vec<u8>>,
    }
    let output: Output = serde_json::from_slice(output).map_err(|_| Error::Output)?;
    Ok(output.keyunwrapresults.optsdata)
}

/// Why a message of the key provider protocol can't be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the key provider's input is not a keyunwrap request")]
    Input,
    #[error("the key provider's output is not a keyunwrap result")]
    Output,
    #[error(transparent)]
    Packet(#[from] layer::Error),
}

const OUTPUT_HEAD: &[u8] = br#"{"keyunwrapresults":{"optsdata":["#;
const OUTPUT_TAIL: &[u8] = b"]}}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::ResourceUri;
    use proptest::prelude::*;

    #[test]
    fn a_request_carries_its_packet() {
        let kid = ResourceUri::parse("kbs:///a/b/c").unwrap();
        let packet = AnnotationPacket::wrap(&[0; 32], &kid, b"{}").unwrap();
        assert_eq!(parse_unwrap(&unwrap_input(&packet).unwrap()).unwrap(), packet);
    }

    #[test]
    fn a_request_needs_both_parameter_objects() {
        assert_eq!(parse_unwrap(br#"{"keyunwrapparams":{"annotation":"e30="}}"#).unwrap_err(), Error::Input);
        let no_packet = br#"{"op":"","keywrapparams":{},"keyunwrapparams":{"annotation":"e30="}}"#;
        assert_eq!(parse_unwrap(no_packet).unwrap_err(), Error::Packet(layer::Error::Packet));
    }

    proptest! {
        #[test]
        fn any_key_survives_the_answer(key in proptest::collection::vec(any::<u8>(), 0..300)) {
            let output = unwrap_output(&key);
            prop_assert_eq!(&*parse_unwrap_output(&output).unwrap(), &key);
        }

        #[test]
        fn no_input_makes_it_panic(input in "\\PC{0,200}") {
            let _ = parse_unwrap(input.as_bytes());
            let _ = parse_unwrap_output(input.as_bytes());
        }
    }
}
