//! Evidence of AMD SEV-SNP: the attestation report and the certificates that the host keeps for it.
//!
//! Source: SEV Secure Nested Paging Firmware ABI Specification, table "ATTESTATION_REPORT Structure"; in JSON its
//! fields are numbers, and its byte strings arrays of numbers.

use serde::{Deserialize, Serialize};

use super::{ByteArray, Error};

/// A report, with certificates if the host has some.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnpEvidence {
    /// The report.
    pub attestation_report: SnpReport,
    /// The host's certificate table. A verifier trusts none of it, but finds its way to AMD's roots by it.
    pub cert_chain: Option<Vec<SnpCertificate>>,
}

/// An attestation report of version 2 to 5.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnpReport {
    /// Version of the structure.
    pub version: u32,
    /// The guest's security version number.
    pub guest_svn: u32,
    /// What the guest allows its host, as bits.
    pub policy: u64,
    /// Set at launch.
    pub family_id: ByteArray<16>,
    /// Set at launch.
    pub image_id: ByteArray<16>,
    /// Privilege level of whoever asked for the report.
    pub vmpl: u32,
    /// 1 is ECDSA P-384 with SHA-384.
    pub sig_algo: u32,
    /// The platform's firmware versions now.
    pub current_tcb: SnpTcb,
    /// The platform's features, as bits.
    pub plat_info: u64,
    /// What key signed, as bits.
    pub key_info: u32,
    /// What the guest asked to be signed.
    pub report_data: ByteArray<64>,
    /// The launch digest.
    pub measurement: ByteArray<48>,
    /// What the host set at launch: the initdata's digest.
    pub host_data: ByteArray<32>,
    /// Digest of the key that signed the launch's id block.
    pub id_key_digest: ByteArray<48>,
    /// Digest of the key that signed that key.
    pub author_key_digest: ByteArray<48>,
    /// The guest's id.
    pub report_id: ByteArray<32>,
    /// The migration agent's id.
    pub report_id_ma: ByteArray<32>,
    /// The firmware versions that the signing key stands for.
    pub reported_tcb: SnpTcb,
    /// The processor's family; from version 3 on.
    #[serde(default)]
    pub cpuid_fam_id: Option<u8>,
    /// The processor's model; from version 3 on.
    #[serde(default)]
    pub cpuid_mod_id: Option<u8>,
    /// The processor's stepping; from version 3 on.
    #[serde(default)]
    pub cpuid_step: Option<u8>,
    /// The chip's id; zeros if the host masks it.
    pub chip_id: ByteArray<64>,
    /// The oldest firmware versions that the platform can be set back to.
    pub committed_tcb: SnpTcb,
    /// The firmware's version now.
    pub current: SnpVersion,
    /// The firmware's committed version.
    pub committed: SnpVersion,
    /// The firmware versions at launch.
    pub launch_tcb: SnpTcb,
    /// Mitigations at launch, as bits; from version 5 on.
    #[serde(default)]
    pub launch_mit_vector: Option<u64>,
    /// Mitigations now, as bits; from version 5 on.
    #[serde(default)]
    pub current_mit_vector: Option<u64>,
    /// Over everything before it.
    pub signature: SnpSignature,
}

impl SnpReport {
    /// Reads a report of the firmware.
    ///
    /// # Errors
    /// [`Error`] for another length than 1184 bytes, or another version than 2 to 5.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let report: &[u8; LENGTH] =
            bytes.try_into().map_err(|_| Error::Length { what: WHAT, expected: LENGTH, actual: bytes.len() })?;
        let fields = Fields(report);
        let version = fields.u32(0);
        if !(2..=5).contains(&version) {
            return Err(Error::field(WHAT, format!("version {version}, where 2 to 5 are known")));
        }
        let [family, model, stepping] = fields.bytes::<3>(0x188).0;
        let has_cpuid = version >= 3;
        let has_fmc = has_cpuid && family >= TURIN;
        let tcb = |at| SnpTcb::parse(fields.bytes(at).0, has_fmc);
        let mitigations = |at| (version >= 5).then(|| fields.u64(at));
        Ok(Self {
            version,
            guest_svn: fields.u32(0x04),
            policy: fields.u64(0x08),
            family_id: fields.bytes(0x10),
            image_id: fields.bytes(0x20),
            vmpl: fields.u32(0x30),
            sig_algo: fields.u32(0x34),
            current_tcb: tcb(0x38),
            plat_info: fields.u64(0x40),
            key_info: fields.u32(0x48),
            report_data: fields.bytes(0x50),
            measurement: fields.bytes(0x90),
            host_data: fields.bytes(0xc0),
            id_key_digest: fields.bytes(0xe0),
            author_key_digest: fields.bytes(0x110),
            report_id: fields.bytes(0x140),
            report_id_ma: fields.bytes(0x160),
            reported_tcb: tcb(0x180),
            cpuid_fam_id: has_cpuid.then_some(family),
            cpuid_mod_id: has_cpuid.then_some(model),
            cpuid_step: has_cpuid.then_some(stepping),
            chip_id: fields.bytes(0x1a0),
            committed_tcb: tcb(0x1e0),
            current: SnpVersion::parse(fields.bytes(0x1e8).0),
            committed: SnpVersion::parse(fields.bytes(0x1ec).0),
            launch_tcb: tcb(0x1f0),
            launch_mit_vector: mitigations(0x1f8),
            current_mit_vector: mitigations(0x200),
            signature: SnpSignature { r: fields.bytes(0x2a0), s: fields.bytes(0x2e8) },
        })
    }

    /// The report as the firmware made it, of which the first 672 bytes are signed.
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let mut report = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.version.to_le_bytes());
        put(0x04, &self.guest_svn.to_le_bytes());
        put(0x08, &self.policy.to_le_bytes());
        put(0x10, &self.family_id.0);
        put(0x20, &self.image_id.0);
        put(0x30, &self.vmpl.to_le_bytes());
        put(0x34, &self.sig_algo.to_le_bytes());
        put(0x38, &self.current_tcb.to_bytes());
        put(0x40, &self.plat_info.to_le_bytes());
        put(0x48, &self.key_info.to_le_bytes());
        put(0x50, &self.report_data.0);
        put(0x90, &self.measurement.0);
        put(0xc0, &self.host_data.0);
        put(0xe0, &self.id_key_digest.0);
        put(0x110, &self.author_key_digest.0);
        put(0x140, &self.report_id.0);
        put(0x160, &self.report_id_ma.0);
        put(0x180, &self.reported_tcb.to_bytes());
        let cpuid = [self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step];
        put(0x188, &cpuid.map(Option::unwrap_or_default));
        put(0x1a0, &self.chip_id.0);
        put(0x1e0, &self.committed_tcb.to_bytes());
        put(0x1e8, &self.current.to_bytes());
        put(0x1ec, &self.committed.to_bytes());
        put(0x1f0, &self.launch_tcb.to_bytes());
        put(0x1f8, &self.launch_mit_vector.unwrap_or_default().to_le_bytes());
        put(0x200, &self.current_mit_vector.unwrap_or_default().to_le_bytes());
        put(0x2a0, &self.signature.r.0);
        put(0x2e8, &self.signature.s.0);
        report
    }
}

/// Security version numbers of a platform's firmware.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnpTcb {
    /// The module for the security processor's firmware; from Turin on.
    #[serde(default)]
    pub fmc: Option<u8>,
    /// The security processor's boot loader.
    pub bootloader: u8,
    /// The security processor's operating system.
    pub tee: u8,
    /// The SEV-SNP firmware.
    pub snp: u8,
    /// The microcode.
    pub microcode: u8,
}

impl SnpTcb {
    fn parse(bytes: [u8; 8], has_fmc: bool) -> Self {
        match (bytes, has_fmc) {
            ([fmc, bootloader, tee, snp, _, _, _, microcode], true) => {
                Self { fmc: Some(fmc), bootloader, tee, snp, microcode }
            }
            ([bootloader, tee, _, _, _, _, snp, microcode], false) => {
                Self { fmc: None, bootloader, tee, snp, microcode }
            }
        }
    }

    fn to_bytes(self) -> [u8; 8] {
        match self.fmc {
            Some(fmc) => [fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode],
            None => [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode],
        }
    }
}

/// The version of the SEV-SNP firmware.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnpVersion {
    pub major: u8,
    pub minor: u8,
    pub build: u8,
}

impl SnpVersion {
    fn parse([build, minor, major]: [u8; 3]) -> Self {
        Self { major, minor, build }
    }

    fn to_bytes(self) -> [u8; 3] {
        [self.build, self.minor, self.major]
    }
}

/// An ECDSA signature; both numbers are little endian.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnpSignature {
    pub r: ByteArray<72>,
    pub s: ByteArray<72>,
}

/// A certificate of the host's table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnpCertificate {
    /// What it certifies.
    pub cert_type: SnpCertificateType,
    /// The certificate in DER, an array of numbers in JSON.
    pub data: Vec<u8>,
}

impl SnpCertificate {
    /// Reads the certificate table that the host hands to the guest.
    ///
    /// A table is a list of entries, each with a GUID, the offset of its data in the table, and their length, both 4
    /// bytes and little endian; an entry of zeros ends it. Source: GHCB specification, "SNP Extended Guest Request".
    ///
    /// # Errors
    /// [`Error::Field`] if an entry is cut short or its data lie outside of the table, or there are more than 32.
    pub fn parse_table(table: &[u8]) -> Result<Vec<Self>, Error> {
        let mut certificates = Vec::new();
        for entry in table.chunks(ENTRY) {
            let entry: &[u8; ENTRY] =
                entry.try_into().map_err(|_| Error::field(TABLE, "its last entry is cut short"))?;
            if entry.iter().all(|byte| *byte == 0) {
                return Ok(certificates);
            }
            if certificates.len() == MAX_CERTIFICATES {
                return Err(Error::field(TABLE, format!("it has more than {MAX_CERTIFICATES} entries")));
            }
            let [offset, length] =
                [16, 20].map(|at| u32::from_le_bytes(std::array::from_fn(|i| entry[at + i])) as usize);
            let data = table.get(offset..).and_then(|rest| rest.get(..length));
            let data = data.ok_or_else(|| {
                Error::field(TABLE, format!("an entry of {length} bytes at {offset} lies outside of {}", table.len()))
            })?;
            let cert_type = SnpCertificateType::from_guid(std::array::from_fn(|i| entry[i]));
            certificates.push(Self { cert_type, data: data.to_vec() });
        }
        match table.is_empty() {
            true => Ok(certificates),
            false => Err(Error::field(TABLE, "it has no end")),
        }
    }
}

/// What a certificate of the host's table certifies.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SnpCertificateType {
    /// AMD's root key.
    Ark,
    /// AMD's SEV key.
    Ask,
    /// The chip's key.
    Vcek,
    /// The key that AMD loaned to the cloud provider.
    Vlek,
    /// A revocation list.
    Crl,
    /// Nothing.
    #[serde(rename = "Empty")]
    Empty,
    /// Something else, by its GUID.
    Other(String),
}

impl SnpCertificateType {
    /// The type by a GUID, whose first three groups are little endian.
    fn from_guid(guid: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
        let text = hex::encode([&[d, c, b, a, f, e, h, g][..], &rest].concat());
        match text.as_str() {
            "c0b406a4a803495297433fb6014cd0ae" => Self::Ark,
            "4ab7b379bbac4fe4a02f05aef327c782" => Self::Ask,
            "63da758de6644564adc5f4b93be8accd" => Self::Vcek,
            "a8074bc2a25a483eaae639c045a0b8a1" => Self::Vlek,
            "92f81bc358114d3d97ffd19f88dc67ea" => Self::Crl,
            "00000000000000000000000000000000" => Self::Empty,
            _ => {
                let groups = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
                Self::Other(groups.join("-"))
            }
        }
    }
}

/// A report whose fields are read by their offsets, all of which are constants below [`LENGTH`].
struct Fields<'a>(&'a [u8; LENGTH]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> ByteArray<N> {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[at..at + N]);
        ByteArray(field)
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at).0)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at).0)
    }
}

const WHAT: &str = "the SEV-SNP report";
const TABLE: &str = "the certificate table";
const LENGTH: usize = 1184;
const ENTRY: usize = 24;
const MAX_CERTIFICATES: usize = 32;
/// The family of processors from which on the versions start with that of the FMC.
const TURIN: u8 = 0x1a;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::vector;
    use proptest::prelude::*;
    use serde_json::Value;

    /// A report whose every byte is told apart from its neighbours, reserved ones zero.
    fn report(version: u32, family: u8) -> [u8; LENGTH] {
        let mut bytes: [u8; LENGTH] = std::array::from_fn(|i| (i % 251) as u8 + 1);
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        bytes[0x188] = family;
        for reserved in [0x4c..0x50, 0x18b..0x1a0, 0x1eb..0x1ec, 0x1ef..0x1f0, 0x208..0x2a0, 0x330..LENGTH] {
            bytes[reserved].fill(0);
        }
        if version < 5 {
            bytes[0x1f8..0x208].fill(0);
        }
        if version < 3 {
            bytes[0x188..0x18b].fill(0);
        }
        let reserved = if version >= 3 && family >= TURIN { 4..7 } else { 2..6 };
        for tcb in [0x38, 0x180, 0x1e0, 0x1f0] {
            bytes[tcb + reserved.start..tcb + reserved.end].fill(0);
        }
        bytes
    }

    #[test]
    fn every_version_survives_json_and_back() {
        for (version, family, has_fmc) in [(2, 0, false), (3, 0x19, false), (4, 0x19, false), (5, 0x1a, true)] {
            let bytes = report(version, family);

            let parsed = SnpReport::parse(&bytes).unwrap();
            let json = serde_json::to_value(parsed).unwrap();

            assert_eq!(parsed.current_tcb.fmc.is_some(), has_fmc, "version {version}");
            assert_eq!(json["cpuid_fam_id"].is_null(), version < 3);
            assert_eq!(json["launch_mit_vector"].is_null(), version < 5);
            assert_eq!(serde_json::from_value::<SnpReport>(json).unwrap().to_bytes(), bytes);
        }
    }

    #[test]
    fn other_versions_and_lengths_are_refused() {
        for version in [0, 1, 6, u32::MAX] {
            let error = SnpReport::parse(&report(version, 0)).unwrap_err().to_string();
            assert!(error.contains(&version.to_string()), "{error}");
        }
        assert!(matches!(SnpReport::parse(&[0; 1183]), Err(Error::Length { actual: 1183, .. })));
    }

    #[test]
    fn a_table_gives_certificates_by_their_kind() {
        let table = table(&[(VCEK, b"vcek"), (ASK, b"ask"), ([9; 16], b"x")]);

        let certificates = SnpCertificate::parse_table(&table).unwrap();

        assert_eq!(
            serde_json::to_value(certificates).unwrap(),
            serde_json::json!([
                { "cert_type": "VCEK", "data": [118, 99, 101, 107] },
                { "cert_type": "ASK", "data": [97, 115, 107] },
                { "cert_type": { "OTHER": "09090909-0909-0909-0909-090909090909" }, "data": [120] },
            ])
        );
    }

    #[test]
    fn a_table_that_is_damaged_is_refused() {
        let whole = table(&[(VCEK, b"vcek")]);
        let mut outside = whole.clone();
        outside[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        for damaged in [&whole[..20], &whole[..24], &outside] {
            assert!(SnpCertificate::parse_table(damaged).is_err());
        }
        assert_eq!(SnpCertificate::parse_table(&[]).unwrap(), []);
        assert!(SnpCertificate::parse_table(&table(&[(VCEK, &b""[..]); 33])).is_err());
    }

    #[test]
    fn a_real_report_survives_json_and_back() {
        let Some(bytes) = vector("snp/test-report.bin") else { return };
        let json = serde_json::to_value(SnpReport::parse(&bytes).unwrap()).unwrap();
        let again: SnpReport = serde_json::from_value(json).unwrap();
        assert_eq!(again.to_bytes()[..], bytes);
    }

    #[test]
    fn real_evidence_has_the_form() {
        let Some(bytes) = vector("snp/genoa-evidence.json") else { return };
        let evidence: Value = serde_json::from_slice(&bytes).unwrap();
        let parsed: SnpEvidence = serde_json::from_value(evidence.clone()).unwrap();

        let again = SnpReport::parse(&parsed.attestation_report.to_bytes()).unwrap();
        let mut written = serde_json::to_value(SnpEvidence { attestation_report: again, ..parsed }).unwrap();

        // It was made before these two were known.
        let report = written["attestation_report"].as_object_mut().unwrap();
        assert_eq!(report.remove("launch_mit_vector"), Some(Value::Null));
        assert_eq!(report.remove("current_mit_vector"), Some(Value::Null));
        assert_eq!(written, evidence);
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(table in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = SnpCertificate::parse_table(&table);
        }
    }

    const VCEK: [u8; 16] =
        [0x8d, 0x75, 0xda, 0x63, 0x64, 0xe6, 0x64, 0x45, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd];
    const ASK: [u8; 16] =
        [0x79, 0xb3, 0xb7, 0x4a, 0xac, 0xbb, 0xe4, 0x4f, 0xa0, 0x2f, 0x05, 0xae, 0xf3, 0x27, 0xc7, 0x82];

    fn table(certificates: &[([u8; 16], &[u8])]) -> Vec<u8> {
        let mut offset = (certificates.len() + 1) * ENTRY;
        let mut table = Vec::new();
        for (guid, data) in certificates {
            table.extend(guid);
            table.extend((offset as u32).to_le_bytes());
            table.extend((data.len() as u32).to_le_bytes());
            offset += data.len();
        }
        table.extend([0; ENTRY]);
        certificates.iter().for_each(|(_, data)| table.extend(*data));
        table
    }
}
