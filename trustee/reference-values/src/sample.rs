//! The extractor `sample`: a JSON object from name to value, taken as it is.
//!
//! It checks no signature: its values are as good as whoever may register them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::Error;

/// The name and value pairs of a payload in standard base64.
///
/// # Errors
/// [`Error::Payload`] for anything but a JSON object with 1 to [`MAX_VALUES`] members.
pub(crate) fn extract(payload: &str) -> Result<Map<String, Value>, Error> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Error::Payload("it is larger than 1 MiB"));
    }
    let text = STANDARD.decode(payload).map_err(|_| Error::Payload("it is not standard base64"))?;
    let values: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|_| Error::Payload("it is not a JSON object of names and values"))?;
    match values.len() {
        0 => Err(Error::Payload("it holds no values")),
        1..=MAX_VALUES => Ok(values),
        _ => Err(Error::Payload("it holds more than 1000 values")),
    }
}

const MAX_PAYLOAD: usize = 1 << 20;
const MAX_VALUES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bounds_hold() {
        let many = (0..=MAX_VALUES).map(|i| (i.to_string(), Value::Null)).collect::<Map<_, _>>();
        assert!(extract(&STANDARD.encode(serde_json::to_vec(&many).unwrap())).is_err());
        assert!(extract(&"A".repeat(MAX_PAYLOAD + 4)).is_err());
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        assert!(extract(&STANDARD.encode(deep)).is_err());
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = extract(&STANDARD.encode(&payload));
            let _ = extract(&String::from_utf8_lossy(&payload));
        }
    }
}
