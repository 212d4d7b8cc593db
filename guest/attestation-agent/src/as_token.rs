//! Tokens of an attestation service that is asked directly (token type `coco_as`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use wire::initdata::InitData;
use zeroize::Zeroizing;

use crate::error::{Error, Stage};
use crate::kbs::Kbs;
use crate::platform::Platform;

/// Shows evidence over no report data, with the initdata if there is some, and returns the service's answer as it came.
/// No key is bound to such a token: it tells a relying party what the guest is, and opens nothing.
pub(crate) async fn fetch(
    service: &Kbs,
    platform: &Platform,
    initdata: Option<&InitData>,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let evidence = platform.evidence(Vec::new()).await?;
    let mut verification = json!({
        "tee": platform.tee(),
        "evidence": URL_SAFE_NO_PAD.encode(evidence.to_string()),
    });
    if let Some(initdata) = initdata {
        verification["init_data"] = json!({ "init_data_toml": initdata.text() });
    }
    let request = json!({ "verification_requests": [verification], "policy_ids": [] });
    service.post_raw(Stage::AttestationService, "attestation", None, &request).await.map(|answer| answer.body)
}
