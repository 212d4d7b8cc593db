//! Tokens of an attestation service that is asked directly (token type `coco_as`).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evidence::Attester;
use serde_json::json;
use zeroize::Zeroizing;

use crate::error::{Error, Stage};
use crate::kbs::Kbs;
use crate::rcar;

/// Shows evidence over no report data and returns the service's answer as it came. No key is bound to such a token:
/// it tells a relying party what the guest is, and opens nothing.
pub(crate) async fn fetch(service: &Kbs, attester: &Arc<Attester>) -> Result<Zeroizing<Vec<u8>>, Error> {
    let evidence = rcar::evidence(attester, Vec::new()).await?;
    let request = json!({
        "verification_requests": [{
            "tee": attester.tee(),
            "evidence": URL_SAFE_NO_PAD.encode(evidence.to_string()),
        }],
        "policy_ids": [],
    });
    service.post_raw(Stage::AttestationService, "attestation", None, &request).await.map(|answer| answer.body)
}
