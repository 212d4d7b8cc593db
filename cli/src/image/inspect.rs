//! What an OCI layout holds: images, platforms, layers, who can decrypt them, and the signatures beside them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, Platform};
use serde::{Deserialize, Serialize};
use wire::layer::{AnnotationPacket, PROVIDER_ANNOTATION_PREFIX};

use super::Error;
use super::layout::{self, ENCRYPTED, Layout};
use super::sign::{Signatures, signature_of};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The images of the layout, or the one of the tag.
    pub images: Vec<ImageReport>,
}

/// An image: one manifest, or an index of several.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    /// Its tag in the layout.
    pub tag: Option<String>,
    /// The digest of the manifest or index.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its manifests, one a platform.
    pub manifests: Vec<ManifestReport>,
    /// The signatures of the image and of its manifests.
    pub signatures: Vec<SignatureReport>,
}

/// One manifest.
#[derive(Clone, Debug, Serialize)]
pub struct ManifestReport {
    /// Its digest.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// `os/architecture[/variant]`; nothing for an attestation that a builder put beside the images.
    pub platform: Option<String>,
    /// The digest of the configuration.
    pub config: String,
    /// The layers, from the bottom.
    pub layers: Vec<LayerReport>,
}

/// One layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// The blob's digest.
    pub digest: String,
    /// The blob's length.
    pub size: u64,
    /// The blob's media type.
    pub media_type: String,
    /// Whether its media type says that it is encrypted.
    pub encrypted: bool,
    /// The annotations that hold the layer's key, and for whom.
    pub recipients: Vec<Recipient>,
}

/// Who can decrypt a layer.
#[derive(Clone, Debug, Serialize)]
pub struct Recipient {
    /// `provider.NAME`, or `jwe` for the holder of a private key.
    pub scheme: String,
    /// The name of the key that the layer's key is wrapped with, where it is told.
    pub key_id: Option<String>,
}

/// A signature in the layout. It was **not verified**: that takes a key which one trusts.
#[derive(Clone, Debug, Serialize)]
pub struct SignatureReport {
    /// The tag that has it.
    pub tag: String,
    /// The digest under whose tag it lies.
    pub digest: String,
    /// The reference that it was made for.
    pub reference: Option<String>,
    /// Whether there is a signature over a payload that names this digest.
    pub fits: bool,
}

/// Reads an image's manifests, or those of all images of a layout.
///
/// # Errors
/// [`Error`] if the source is no layout, or a manifest in it is missing or damaged. Layers are not read.
pub fn inspect(source: &str) -> Result<Inspection, Error> {
    let layout = Layout::open(source)?;
    let images = layout.images();
    if images.is_empty() {
        // Says why.
        layout.image()?;
    }
    let images = images.into_iter().map(|image| ImageReport::read(&layout, image)).collect::<Result<_, _>>()?;
    Ok(Inspection { images })
}

impl ImageReport {
    fn read(layout: &Layout, image: &Descriptor) -> Result<Self, Error> {
        let mut manifests = Vec::new();
        let mut signatures = SignatureReport::of(layout, image.digest())?;
        if layout::is_index(image) {
            let index: ImageIndex = parse(layout, image)?;
            for manifest in index.manifests() {
                manifests.push(ManifestReport::read(layout, manifest)?);
                signatures.extend(SignatureReport::of(layout, manifest.digest())?);
            }
        } else {
            manifests.push(ManifestReport::read(layout, image)?);
        }
        Ok(Self {
            tag: layout::tag(image),
            digest: image.digest().to_string(),
            media_type: image.media_type().to_string(),
            manifests,
            signatures,
        })
    }
}

impl ManifestReport {
    fn read(layout: &Layout, descriptor: &Descriptor) -> Result<Self, Error> {
        let manifest: ImageManifest = parse(layout, descriptor)?;
        let platform = match (layout::is_attestation(descriptor), descriptor.platform()) {
            (true, _) => None,
            (false, Some(platform)) => Some(ConfigPlatform::from(platform).to_string()),
            (false, None) => Some(parse::<ConfigPlatform>(layout, manifest.config())?.to_string()),
        };
        Ok(Self {
            digest: descriptor.digest().to_string(),
            media_type: descriptor.media_type().to_string(),
            platform,
            config: manifest.config().digest().to_string(),
            layers: manifest.layers().iter().map(LayerReport::of).collect(),
        })
    }
}

impl LayerReport {
    fn of(layer: &Descriptor) -> Self {
        let mut recipients: Vec<_> = layer.annotations().iter().flatten().flat_map(Recipient::of).collect();
        recipients.sort_by(|one, other| (&one.scheme, &one.key_id).cmp(&(&other.scheme, &other.key_id)));
        Self {
            digest: layer.digest().to_string(),
            size: layer.size(),
            media_type: layer.media_type().to_string(),
            encrypted: layer.media_type().as_ref().ends_with(ENCRYPTED),
            recipients,
        }
    }
}

impl Recipient {
    /// The recipients of one annotation: a list with commas.
    fn of((name, value): (&String, &String)) -> Vec<Self> {
        let Some(scheme) = name.strip_prefix(KEYS) else { return Vec::new() };
        let provided = name.starts_with(PROVIDER_ANNOTATION_PREFIX);
        let key_id = |packet: &str| {
            let packet = AnnotationPacket::parse(&STANDARD.decode(packet).ok()?).ok()?;
            Some(packet.kid().chars().take(256).flat_map(char::escape_default).collect())
        };
        let recipient = |packet| Self { scheme: scheme.to_owned(), key_id: key_id(packet).filter(|_| provided) };
        value.split(',').map(recipient).collect()
    }
}

impl SignatureReport {
    fn of(layout: &Layout, digest: &Digest) -> Result<Vec<Self>, Error> {
        #[derive(Deserialize)]
        struct Payload {
            critical: Critical,
        }
        #[derive(Deserialize)]
        struct Critical {
            identity: Identity,
            image: Image,
        }
        #[derive(Deserialize)]
        struct Identity {
            #[serde(rename = "docker-reference")]
            reference: String,
        }
        #[derive(Deserialize)]
        struct Image {
            #[serde(rename = "docker-manifest-digest")]
            digest: String,
        }
        let tag = layout::signature_tag(digest);
        let Some(manifest) = layout.tagged(&tag) else { return Ok(Vec::new()) };
        let report = |layer: &Descriptor| -> Result<Self, Error> {
            let payload: Option<Payload> = serde_json::from_slice(&layout.document(layer)?).ok();
            let fits = payload.as_ref().is_some_and(|payload| payload.critical.image.digest == digest.to_string());
            Ok(Self {
                tag: tag.clone(),
                digest: digest.to_string(),
                fits: fits && signature_of(layer).is_some(),
                reference: payload.map(|payload| payload.critical.identity.reference),
            })
        };
        Signatures::read(layout, manifest)?.iter().map(report).collect()
    }
}

/// The platform in an image's configuration.
#[derive(Deserialize)]
struct ConfigPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl From<&Platform> for ConfigPlatform {
    fn from(platform: &Platform) -> Self {
        Self {
            os: platform.os().to_string(),
            architecture: platform.architecture().to_string(),
            variant: platform.variant().clone(),
        }
    }
}

impl fmt::Display for ConfigPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", or_unknown(&self.os), or_unknown(&self.architecture))?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// For people at a terminal, so whatever an image says is escaped.
impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.images {
            let tag = image.tag.as_deref().unwrap_or("without a tag").escape_debug();
            writeln!(f, "image {} {tag}", image.digest)?;
            writeln!(f, "  type {}", image.media_type.escape_debug())?;
            for signature in &image.signatures {
                let reference = signature.reference.as_deref().unwrap_or("something else");
                let state = if signature.fits { "not verified" } else { "not of this image" };
                writeln!(f, "  signature of {} for {reference:?} ({state})", signature.digest)?;
            }
            for manifest in &image.manifests {
                let platform = manifest.platform.as_deref().unwrap_or("attestation").escape_debug();
                writeln!(f, "  manifest {} {platform}", manifest.digest)?;
                for layer in &manifest.layers {
                    let media_type = layer.media_type.escape_debug();
                    writeln!(f, "    layer {} {} bytes {media_type}", layer.digest, layer.size)?;
                    for Recipient { scheme, key_id } in &layer.recipients {
                        let key_id = key_id.as_deref().unwrap_or_default();
                        writeln!(f, "      key for {} {key_id}", scheme.escape_debug())?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn parse<T: for<'de> Deserialize<'de>>(layout: &Layout, descriptor: &Descriptor) -> Result<T, Error> {
    serde_json::from_slice(&layout.document(descriptor)?).map_err(|e| Error::Source {
        path: layout.path().to_owned(),
        cause: format!("{} is not what its media type says: {e}", descriptor.digest()),
    })
}

/// What annotations with a layer's key start with.
const KEYS: &str = "org.opencontainers.image.enc.keys.";

#[cfg(test)]
mod tests {
    use super::super::lab::Lab;
    use super::super::{SignOptions, encrypt, sign};
    use super::*;
    use serde_json::json;

    fn lab() -> (Lab, String) {
        let lab = Lab::new(&[("application/vnd.oci.image.layer.v1.tar", b"layer")]);
        let source = lab.path("plain").display().to_string();
        (lab, source)
    }

    fn sign_with(lab: &Lab, source: &str, key: &str, reference: &str) -> super::super::SignReport {
        let key_file = lab.path(key);
        let generate_key = !key_file.exists();
        sign(&SignOptions { source: source.to_owned(), key_file, generate_key, reference: reference.to_owned() })
            .unwrap()
    }

    #[test]
    fn an_encrypted_layer_says_whose_key_it_takes() {
        let (lab, source) = lab();
        let plain = inspect(&source).unwrap();
        assert!(!plain.images[0].manifests[0].layers[0].encrypted);
        encrypt(lab.options()).unwrap();

        let encrypted = inspect(&lab.path("encrypted").display().to_string()).unwrap();

        let [image] = &encrypted.images[..] else { panic!("{encrypted:?}") };
        assert_eq!(image.tag.as_deref(), Some("v1"));
        let layer = &image.manifests[0].layers[0];
        assert!(layer.encrypted && layer.media_type.ends_with("tar+encrypted"));
        let shown = encrypted.to_string();
        assert!(shown.contains("key for provider.attestation-agent kbs:///default/key/app"), "{shown}");
        assert_eq!(
            json!(layer.recipients),
            json!([{ "scheme": "provider.attestation-agent", "key_id": "kbs:///default/key/app" }])
        );
    }

    #[test]
    fn an_index_has_its_platforms_and_what_describes_them() {
        let (lab, source) = lab();
        let single = Layout::open(&source).unwrap();
        let mut arm = json!(single.image().unwrap());
        arm["platform"] = json!({ "os": "linux", "architecture": "arm64", "variant": "v8" });
        let mut attestation = json!(single.image().unwrap());
        attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
        let index = json!({ "schemaVersion": 2, "manifests": [arm, attestation] }).to_string();
        lab.index(&[lab.blob("application/vnd.oci.image.index.v1+json", index.as_bytes())]);

        let report = inspect(&source).unwrap();

        let platforms: Vec<_> = report.images[0].manifests.iter().map(|it| it.platform.as_deref()).collect();
        assert_eq!(platforms, [Some("linux/arm64/v8"), None]);
        assert!(report.to_string().contains("without a tag"));
    }

    #[test]
    fn signatures_of_several_keys_lie_side_by_side_and_are_no_images() {
        let (lab, source) = lab();
        let first = sign_with(&lab, &source, "one", "registry.example/app");
        assert_eq!(sign_with(&lab, &source, "two", "registry.example/app").signatures, 2);
        assert_eq!(sign_with(&lab, &source, "one", "registry.example/app:v1").signatures, 3);
        // The same again takes the place of the old one.
        assert_eq!(sign_with(&lab, &source, "one", "registry.example/app").signatures, 3);

        let report = inspect(&source).unwrap();

        assert_eq!(report.images.len(), 1);
        let signatures = &report.images[0].signatures;
        assert!(signatures.iter().all(|it| it.fits && it.tag == first.tag && it.digest == first.digest));
        let references: Vec<_> = signatures.iter().map(|it| it.reference.as_deref().unwrap()).collect();
        assert_eq!(references, ["registry.example/app", "registry.example/app:v1", "registry.example/app"]);
        assert_eq!(report.to_string().matches("(not verified)").count(), 3);
        // The signed image is still the only one, and named by its tag alone.
        assert_eq!(encrypt(lab.options()).unwrap().source_digest, first.digest);
    }

    #[test]
    fn a_signature_of_another_image_does_not_fit() {
        let (lab, source) = lab();
        let report = sign_with(&lab, &source, "key", "registry.example/app");
        let layout = Layout::open(&source).unwrap();
        let signature = layout.tagged(&report.tag).unwrap().clone();
        let other = lab.blob("application/vnd.oci.image.manifest.v1+json", b"other");
        let tag = format!("{}.sig", other["digest"].as_str().unwrap().replace(':', "-"));
        layout.set_tag(&tag, &signature).unwrap();
        let layout = Layout::open(&source).unwrap();
        let found = SignatureReport::of(&layout, &other["digest"].as_str().unwrap().parse().unwrap()).unwrap();
        assert!(!found[0].fits);
        assert!(
            sign(&SignOptions { source, key_file: lab.path("key"), generate_key: false, reference: "app".to_owned() })
                .is_err()
        );
    }

    #[test]
    fn what_an_image_says_can_t_command_the_terminal() {
        let lab = Lab::new(&[("layer\u{1b}]0;\u{7}", b"layer")]);
        let report = inspect(&lab.path("plain").display().to_string()).unwrap();
        assert!(!report.to_string().contains(['\u{1b}', '\u{7}']) && report.to_string().contains("u{1b}"), "{report}");
    }

    #[test]
    fn what_is_no_layout_or_empty_is_said() {
        let (lab, source) = lab();
        assert!(inspect(&format!("oci:{source}:v2")).unwrap_err().to_string().contains("it has: v1"));
        lab.index(&[]);
        assert!(inspect(&source).unwrap_err().to_string().contains("0 images"));
        assert!(inspect("/nowhere").unwrap_err().to_string().contains("oci-layout"));
    }
}
