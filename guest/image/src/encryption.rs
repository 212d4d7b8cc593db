//! The keys of encrypted layers: from annotations through the data hub to ocicrypt's options.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wire::layer::{
    AnnotationPacket, PROVIDER_ANNOTATION_PREFIX, PUBLIC_OPTIONS_ANNOTATION, PrivateOptions, PublicOptions,
};
use zeroize::Zeroizing;

use crate::error::{Failure, Stage};

/// Unwraps the keys of encrypted layers. The data hub implements it.
#[async_trait]
pub trait LayerKeys: Send + Sync {
    /// Returns the private options' JSON that `packet` wraps.
    ///
    /// # Errors
    /// [`KeyError`] with a text that may be shown to the host.
    async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError>;
}

/// Why a layer's key could not be unwrapped: the key's name, the cause and the next step.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

impl KeyError {
    /// `cause` names the key, what failed and what to do; it must hold no secret.
    pub fn new(cause: impl fmt::Display) -> Self {
        Self(cause.to_string())
    }
}

/// What a layer is decrypted and checked with.
pub(crate) struct LayerSecrets {
    pub(crate) private: PrivateOptions,
    pub(crate) public: PublicOptions,
}

/// Gets a layer's secrets: packets are tried in the order of their annotations' names, whatever their provider is
/// called, until one opens.
///
/// # Errors
/// What kept each of them from opening.
pub(crate) async fn secrets(
    keys: &dyn LayerKeys,
    annotations: Option<&HashMap<String, String>>,
) -> Result<LayerSecrets, Failure> {
    let failure = |cause: String| Failure::new(Stage::Key, cause);
    let annotations = annotations.ok_or_else(|| failure("the encrypted layer has no annotations".to_owned()))?;
    let public = annotations
        .get(PUBLIC_OPTIONS_ANNOTATION)
        .ok_or_else(|| failure(format!("the annotation {PUBLIC_OPTIONS_ANNOTATION} is missing")))?;
    let public = PublicOptions::from_annotation(public).map_err(|e| failure(e.to_string()))?;

    let mut refusals = Vec::new();
    for (name, encoded) in packets(annotations)? {
        match private_options(keys, encoded).await {
            Ok(private) => return Ok(LayerSecrets { private, public }),
            Err(PacketError::Unreadable(cause)) => {
                refusals.push(format!("{name}: {cause}; next: encrypt the image again"))
            }
            Err(PacketError::Key(e)) => refusals.push(e.to_string()),
        }
    }
    Err(Failure::advised(Stage::Key, refusals.join("; or: ")))
}

/// Why one packet did not open.
enum PacketError {
    Unreadable(String),
    Key(KeyError),
}

async fn private_options(keys: &dyn LayerKeys, encoded: &str) -> Result<PrivateOptions, PacketError> {
    let json = STANDARD.decode(encoded).map_err(|_| PacketError::Unreadable("it is not base64".to_owned()))?;
    let packet = AnnotationPacket::parse(&json).map_err(|e| PacketError::Unreadable(e.to_string()))?;
    let options = keys.unwrap(&packet).await.map_err(PacketError::Key)?;
    // A256CTR unwraps with any key, and then this is where the wrong one shows.
    PrivateOptions::parse(&options).map_err(|e| {
        PacketError::Unreadable(format!(
            "what {} wraps: {e}, or it is wrapped with another key",
            packet.kid().escape_debug()
        ))
    })
}

/// Every packet for a key provider, with its annotation's name.
fn packets(annotations: &HashMap<String, String>) -> Result<Vec<(&str, &str)>, Failure> {
    let failure = |cause: String| Failure::new(Stage::Key, cause);
    let mut values: Vec<_> =
        annotations.iter().filter(|(name, _)| name.starts_with(PROVIDER_ANNOTATION_PREFIX)).collect();
    values.sort();
    let packets: Vec<(&str, &str)> = values
        .into_iter()
        .flat_map(|(name, value)| value.split(',').map(move |encoded| (name.as_str(), encoded.trim())))
        .filter(|(_, encoded)| !encoded.is_empty())
        .collect();
    if packets.len() > MAX_PACKETS {
        return Err(failure(format!("its key is wrapped more than {MAX_PACKETS} times")));
    }
    if packets.is_empty() {
        let mut others: Vec<_> =
            annotations.keys().filter_map(|name| name.strip_prefix(KEYS_ANNOTATION_PREFIX)).collect();
        others.sort_unstable();
        return Err(failure(match others.is_empty() {
            true => format!("no annotation {PROVIDER_ANNOTATION_PREFIX}* says where the layer's key is"),
            false => format!(
                "its key is wrapped for {} alone, which takes a private key that no guest has, and not for a key provider",
                others.join(", ").escape_debug()
            ),
        }));
    }
    Ok(packets)
}

const KEYS_ANNOTATION_PREFIX: &str = "org.opencontainers.image.enc.keys.";
/// Each packet may cost a request to Trustee.
const MAX_PACKETS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use wire::layer::Encryptor;

    const KEK: [u8; 32] = [7; 32];

    struct OneKey;

    #[async_trait]
    impl LayerKeys for OneKey {
        async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
            packet.unwrap(&KEK).map_err(|e| KeyError::new(format!("{}: {e}; next: ask Trustee", packet.kid())))
        }
    }

    fn annotations(keks: &[[u8; 32]]) -> HashMap<String, String> {
        let (private, public) = Encryptor::new().unwrap().finish("sha256:00".to_owned());
        let kid = "kbs:///default/key/k1".parse().unwrap();
        let packets: Vec<_> = keks
            .iter()
            .map(|kek| AnnotationPacket::wrap(kek, &kid, &private.to_json()).unwrap().to_json().unwrap())
            .map(|json| STANDARD.encode(json))
            .collect();
        HashMap::from([
            (PUBLIC_OPTIONS_ANNOTATION.to_owned(), public.to_annotation()),
            (format!("{PROVIDER_ANNOTATION_PREFIX}anyone"), packets.join(",")),
        ])
    }

    async fn outcome(annotations: HashMap<String, String>) -> Result<String, Failure> {
        secrets(&OneKey, Some(&annotations)).await.map(|secrets| secrets.private.digest().to_owned())
    }

    #[tokio::test]
    async fn the_first_packet_that_opens_gives_the_key() {
        assert_eq!(outcome(annotations(&[[1; 32], KEK])).await.unwrap(), "sha256:00");
    }

    #[tokio::test]
    async fn a_refusal_names_the_key_and_the_cause() {
        let failure = outcome(annotations(&[[1; 32]])).await.unwrap_err();
        assert_eq!(failure.stage, Stage::Key);
        let text = failure.into_advice();
        assert!(text.starts_with("kbs:///default/key/k1: ") && text.contains("wrapped"), "{text}");
        assert_eq!((text.matches("kbs:///").count(), text.matches("next: ").count()), (1, 1), "{text}");

        let mut without = annotations(&[KEK]);
        without.retain(|name, _| name == PUBLIC_OPTIONS_ANNOTATION);
        let text = outcome(without.clone()).await.unwrap_err().into_advice();
        assert!(
            text.contains("where the layer's key is")
                && text.ends_with("; next: encrypt the image again for a key in Trustee"),
            "{text}"
        );

        let mut foreign = without.clone();
        foreign.retain(|name, _| name == PUBLIC_OPTIONS_ANNOTATION);
        foreign.insert(format!("{KEYS_ANNOTATION_PREFIX}jwe"), "e30=".to_owned());
        let text = outcome(foreign).await.unwrap_err().into_advice();
        assert!(text.contains("wrapped for jwe alone"), "{text}");

        let mut without = annotations(&[KEK]);
        without.remove(PUBLIC_OPTIONS_ANNOTATION);
        assert!(outcome(without).await.unwrap_err().cause.contains("pubopts"));
    }

    #[tokio::test]
    async fn a_packet_that_can_not_be_read_hides_no_other() {
        let mut all = annotations(&[KEK]);
        all.insert(format!("{PROVIDER_ANNOTATION_PREFIX}a-first"), "%%%,e30=".to_owned());
        assert_eq!(outcome(all.clone()).await.unwrap(), "sha256:00");

        all.insert(
            format!("{PROVIDER_ANNOTATION_PREFIX}anyone"),
            annotations(&[[1; 32]])[&format!("{PROVIDER_ANNOTATION_PREFIX}anyone")].clone(),
        );
        let text = outcome(all.clone()).await.unwrap_err().into_advice();
        assert!(text.contains("a-first: it is not base64; next: ") && text.matches("; or: ").count() == 2, "{text}");

        all.insert(format!("{PROVIDER_ANNOTATION_PREFIX}many"), "e30=,".repeat(MAX_PACKETS));
        assert!(outcome(all).await.unwrap_err().cause.contains("more than 16 times"));
    }
}
