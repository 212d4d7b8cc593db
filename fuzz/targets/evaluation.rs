//! Evidence of a guest and its devices with key and initdata: verified, appraised, made a token of.
#![no_main]

use std::sync::LazyLock;

use attestation::{Evaluation, RuntimeData};
use fuzz::Trustee;
use libfuzzer_sys::fuzz_target;
use wire::rcar::{self, Attestation, InitDataBody, Tee, TeeEvidence};

static TRUSTEE: LazyLock<Trustee> = LazyLock::new(Trustee::start);

// Evidence, key, the devices' evidence and initdata, separated by line ends.
fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let Ok(primary_evidence) = serde_json::from_slice(line()) else { return };
    let Ok(tee_pubkey) = serde_json::from_slice(line()) else { return };
    let mut text = || String::from_utf8_lossy(line()).into_owned();
    let (additional_evidence, body) = (text(), text());
    let attestation = Attestation {
        init_data: (!body.is_empty()).then(|| InitDataBody { format: "toml".to_owned(), body }),
        runtime_data: rcar::RuntimeData { nonce: "bm9uY2U=".to_owned(), tee_pubkey },
        tee_evidence: TeeEvidence { primary_evidence, additional_evidence },
    };
    for tee in [Tee::Sample, Tee::SampleDevice, Tee::Snp] {
        let Ok(bound) = Evaluation::of(tee, &attestation, "default") else { return };
        // No input has the right report data.
        let mut unbound = bound.clone();
        unbound.parts.iter_mut().for_each(|part| part.runtime_data = RuntimeData::None);
        let service = TRUSTEE.service.clone();
        TRUSTEE.run(async move {
            for evaluation in [bound, unbound] {
                let Ok(appraisal) = service.evaluate(evaluation).await else { continue };
                let claims = service.verify(&appraisal.token).expect("its own token");
                let _ = service.differences(&claims);
            }
        });
    }
});
