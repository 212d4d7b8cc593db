//! A TPM 2.0 behind a device or a socket: the few commands that attestation takes.
//!
//! Source: TCG TPM 2.0 Library specification, parts 2 and 3.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::Duration;

use tpm2_protocol::basic::{TpmBuffer, TpmHandle, TpmUint16};
use tpm2_protocol::constant::TPM_MAX_COMMAND_SIZE;
use tpm2_protocol::data::{
    Tpm2bAuth, Tpm2bData, Tpm2bDigest, Tpm2bMaxNvBuffer, Tpm2bNvPublic, TpmAlgId, TpmRc, TpmRcBase, TpmSt, TpmaNv,
    TpmlDigestValues, TpmlPcrSelection, TpmsAuthCommand, TpmsNvPublic, TpmsPcrSelect, TpmsPcrSelection, TpmsSchemeHash,
    TpmtHa, TpmtPublic, TpmtSigScheme, TpmuAttest, TpmuHa, TpmuSigScheme, TpmuSignature,
};
use tpm2_protocol::frame::{
    TpmFrame, TpmHeader, TpmNvDefineSpaceCommand, TpmNvDefineSpaceResponse, TpmNvReadCommand, TpmNvReadPublicCommand,
    TpmNvReadPublicResponse, TpmNvReadResponse, TpmNvWriteCommand, TpmNvWriteResponse, TpmPcrExtendCommand,
    TpmPcrExtendResponse, TpmPcrReadCommand, TpmPcrReadResponse, TpmQuoteCommand, TpmQuoteResponse,
    TpmReadPublicCommand, TpmReadPublicResponse, TpmResponse, TpmUnmarshalBody, tpm_marshal_command,
};
use tpm2_protocol::{TpmMarshal, TpmSized, TpmWriter};
use wire::evidence::RegisterAlgorithm;

use crate::Error;
use crate::machine::{Machine, Stream};

/// A TPM, open for some commands.
pub(crate) struct TpmDevice {
    path: String,
    stream: Box<dyn Stream>,
}

impl TpmDevice {
    /// Opens the TPM that `AA_TPM_DEVICE` names (a device or a unix socket, with `device:` before it or not), or the
    /// first of the machine's.
    ///
    /// # Errors
    /// [`Error::File`] if it can't be opened. A machine without a TPM has none, unless one was named.
    pub(crate) fn open(machine: &Machine) -> Result<Option<Self>, Error> {
        let named = machine.variable(DEVICE).map(|name| name.strip_prefix("device:").unwrap_or(name));
        let Some(path) = named.or_else(|| DEVICES.iter().copied().find(|path| machine.exists(path))) else {
            return Ok(None);
        };
        let stream = machine.kernel().open(path).map_err(|e| Error::file(path, &e))?;
        Ok(Some(Self { path: path.to_owned(), stream }))
    }

    /// As [`TpmDevice::open`], where there must be one.
    pub(crate) fn required(machine: &Machine) -> Result<Self, Error> {
        Self::open(machine)?.ok_or_else(|| Error::file(DEVICES[0], &ErrorKind::NotFound.into()))
    }

    /// The public part of a persistent key, if it exists.
    pub(crate) fn public(&mut self, handle: u32) -> Result<Option<TpmtPublic>, Error> {
        let command = TpmReadPublicCommand { handles: [TpmHandle::new(handle)] };
        let found = self.find::<_, TpmReadPublicResponse>(&command)?;
        Ok(found.map(|response| response.out_public.inner))
    }

    /// A quote by `key` over `nonce` and the PCRs 0 to 23 of the SHA-256 bank, together with those PCRs.
    ///
    /// # Errors
    /// [`Error::Tpm`] for a refusal, a signature other than RSASSA with SHA-256, or PCRs that change at each of
    /// [`ATTEMPTS`] attempts.
    pub(crate) fn quote(&mut self, key: u32, nonce: &[u8]) -> Result<Quote, Error> {
        let command = TpmQuoteCommand {
            handles: [TpmHandle::new(key)],
            qualifying_data: Tpm2bData::try_from(nonce).map_err(|e| self.unfit("the quote's nonce", e))?,
            in_scheme: TpmtSigScheme {
                scheme: TpmAlgId::Rsassa,
                details: TpmuSigScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 }),
            },
            pcr_select: self.selection([0xff; 3])?,
        };
        for _ in 0..ATTEMPTS {
            let response: TpmQuoteResponse = self.call(&command, true)?;
            let TpmuAttest::Quote(quoted) = &response.quoted.inner.attested else {
                return Err(self.failed("TPM2_Quote", "it attests something else than a quote"));
            };
            let raw_signature = match &response.signature.signature {
                TpmuSignature::Rsassa(signature) if signature.hash == TpmAlgId::Sha256 => signature.sig.to_vec(),
                _ => return Err(self.failed("TPM2_Quote", "its signature is not RSASSA with SHA-256")),
            };
            let pcrs = self.pcrs()?;
            // Whoever extends a PCR between the two commands makes them disagree.
            if RegisterAlgorithm::Sha256.digest(&pcrs.concat()) == quoted.pcr_digest[..] {
                let message = self.marshalled(&response.quoted.inner)?;
                return Ok(Quote { message, signature: self.marshalled(&response.signature)?, raw_signature, pcrs });
            }
        }
        Err(self.failed("TPM2_Quote", "the PCRs changed while they were quoted"))
    }

    /// The PCRs 0 to 23 of the SHA-256 bank.
    pub(crate) fn pcrs(&mut self) -> Result<Vec<[u8; 32]>, Error> {
        let mut pcrs = [None; PCRS];
        // One answer has 8 at most.
        for _ in 0..PCRS {
            let mut wanted = [0; 3];
            for index in (0..PCRS).filter(|index| pcrs[*index].is_none()) {
                wanted[index / 8] |= 1 << (index % 8);
            }
            if wanted == [0; 3] {
                return Ok(pcrs.into_iter().flatten().collect());
            }
            let command = TpmPcrReadCommand { handles: [], pcr_selection_in: self.selection(wanted)? };
            let response: TpmPcrReadResponse = self.call(&command, false)?;
            let Some(selected) = response.pcr_selection_out.first().filter(|_| !response.pcr_values.is_empty()) else {
                break;
            };
            let is_selected =
                |index: &usize| selected.pcr_select.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0);
            for (index, value) in (0..PCRS).filter(is_selected).zip(response.pcr_values.iter()) {
                pcrs[index] = <[u8; 32]>::try_from(&value[..]).ok();
            }
        }
        Err(self.failed("TPM2_PCR_Read", "it has no SHA-256 bank of 24 PCRs"))
    }

    /// Extends a PCR of the SHA-256 bank.
    ///
    /// # Errors
    /// [`Error::Register`] if software may not extend it.
    pub(crate) fn extend(&mut self, pcr: u32, digest: [u8; 32]) -> Result<(), Error> {
        let digest = TpmBuffer::try_from(&digest[..]).map_err(|e| self.unfit("a digest", e))?;
        let mut digests = TpmlDigestValues::default();
        let value = TpmtHa { hash_alg: TpmAlgId::Sha256, digest: TpmuHa::Digest(digest) };
        digests.try_push(value).map_err(|e| self.unfit("a digest", e))?;
        let command = TpmPcrExtendCommand { handles: [TpmHandle::new(pcr)], digests };
        match self.answer::<_, TpmPcrExtendResponse>(&command, true)? {
            Ok(_) => Ok(()),
            Err(code) if code.base() == TpmRcBase::Locality => Err(Error::Register {
                index: pcr,
                reason: "can't be extended by software of this locality; 16 and 23 always can, and 0 to 15".to_owned(),
            }),
            Err(code) => Err(self.failed("TPM2_PCR_Extend", code)),
        }
    }

    /// All of an NV index that the owner may read, if it is defined.
    pub(crate) fn nv_read(&mut self, index: u32) -> Result<Option<Vec<u8>>, Error> {
        let Some(public) = self.nv_public(index)? else { return Ok(None) };
        let size = public.data_size.value();
        let mut contents = Vec::with_capacity(size.into());
        for offset in (0..size).step_by(NV_PART) {
            let part = (size - offset).min(NV_PART as u16);
            let command = TpmNvReadCommand {
                handles: [OWNER, TpmHandle::new(index)],
                size: TpmUint16::new(part),
                offset: TpmUint16::new(offset),
            };
            let response: TpmNvReadResponse = self.call(&command, true)?;
            let data: &[u8] = &response.data;
            if data.len() != usize::from(part) {
                return Err(self.failed("TPM2_NV_Read", format!("{} bytes came, not {part}", data.len())));
            }
            contents.extend_from_slice(data);
        }
        Ok(Some(contents))
    }

    /// Writes an NV index that the owner may write, and defines it before if it is not.
    pub(crate) fn nv_write(&mut self, index: u32, data: &[u8]) -> Result<(), Error> {
        if self.nv_public(index)?.is_none() {
            let public = TpmsNvPublic {
                nv_index: TpmHandle::new(index),
                name_alg: TpmAlgId::Sha256,
                attributes: TpmaNv::from_bits_truncate(
                    TpmaNv::OWNERWRITE.bits() | TpmaNv::OWNERREAD.bits() | TpmaNv::PPREAD.bits(),
                ),
                auth_policy: Tpm2bDigest::default(),
                data_size: TpmUint16::try_from(data.len()).map_err(|e| self.unfit("an NV index", e))?,
            };
            let public_info = Tpm2bNvPublic { inner: public };
            let command = TpmNvDefineSpaceCommand { handles: [OWNER], auth: Tpm2bAuth::default(), public_info };
            let _: TpmNvDefineSpaceResponse = self.call(&command, true)?;
        }
        for (part, offset) in data.chunks(NV_PART).zip((0..).step_by(NV_PART)) {
            let command = TpmNvWriteCommand {
                handles: [OWNER, TpmHandle::new(index)],
                data: Tpm2bMaxNvBuffer::try_from(part).map_err(|e| self.unfit("an NV index", e))?,
                offset: TpmUint16::new(offset),
            };
            let _: TpmNvWriteResponse = self.call(&command, true)?;
        }
        Ok(())
    }

    fn nv_public(&mut self, index: u32) -> Result<Option<TpmsNvPublic>, Error> {
        let command = TpmNvReadPublicCommand { handles: [TpmHandle::new(index)] };
        Ok(self.find::<_, TpmNvReadPublicResponse>(&command)?.map(|response| response.nv_public.inner))
    }

    /// Makes a command that needs no authorization, on a handle that may not exist.
    fn find<C: TpmFrame + TpmHeader, R: TpmUnmarshalBody>(&mut self, command: &C) -> Result<Option<R>, Error> {
        match self.answer(command, false)? {
            Ok(response) => Ok(Some(response)),
            Err(code) if code.base() == TpmRcBase::Handle => Ok(None),
            Err(code) => Err(self.failed(C::CC, code)),
        }
    }

    pub(crate) fn call<C: TpmFrame + TpmHeader, R: TpmUnmarshalBody>(
        &mut self,
        command: &C,
        is_authorized: bool,
    ) -> Result<R, Error> {
        self.answer(command, is_authorized)?.map_err(|code| self.failed(C::CC, code))
    }

    /// Makes a command, with an empty password if it needs authorization. What the TPM refuses is the inner error.
    fn answer<C: TpmFrame + TpmHeader, R: TpmUnmarshalBody>(
        &mut self,
        command: &C,
        is_authorized: bool,
    ) -> Result<Result<R, TpmRc>, Error> {
        let password = [TpmsAuthCommand { session_handle: PASSWORD, ..TpmsAuthCommand::default() }];
        let (tag, sessions) =
            if is_authorized { (TpmSt::Sessions, &password[..]) } else { (TpmSt::NoSessions, &[][..]) };
        let mut buffer = [0; TPM_MAX_COMMAND_SIZE];
        let mut writer = TpmWriter::new(&mut buffer);
        tpm_marshal_command(command, tag, sessions, &mut writer).map_err(|e| self.failed(C::CC, e))?;

        let mut pause = Duration::from_millis(1);
        loop {
            let answer = self.transmit(writer.as_bytes()).map_err(|e| self.failed(C::CC, e))?;
            let response = TpmResponse::cast(&answer).map_err(|e| self.failed(C::CC, e))?;
            match response.rc().map_err(|e| self.failed(C::CC, e))? {
                TpmRc::Fmt0(TpmRcBase::Success) => {
                    return response.unmarshal().map(Ok).map_err(|e| self.failed(C::CC, e));
                }
                // The TPM is busy, and asks for the same command once more.
                TpmRc::Warn(TpmRcBase::Retry | TpmRcBase::Yielded | TpmRcBase::Testing) if pause <= LONGEST_PAUSE => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                code => return Ok(Err(code)),
            }
        }
    }

    /// Sends a command and reads the answer, which says its length itself.
    fn transmit(&mut self, command: &[u8]) -> std::io::Result<Vec<u8>> {
        self.stream.write_all(command)?;
        let (mut answer, mut length) = ([0; TPM_MAX_COMMAND_SIZE], 0);
        loop {
            // A device gives all of it at once; a socket may not.
            match self.stream.read(&mut answer[length..])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => length += read,
            }
            let size =
                answer[..length].get(2..6).map(|size| u32::from_be_bytes(std::array::from_fn(|i| size[i])) as usize);
            if size.is_some_and(|size| size <= length) {
                return Ok(answer[..length].to_vec());
            }
        }
    }

    fn selection(&self, bits: [u8; 3]) -> Result<TpmlPcrSelection, Error> {
        let unfit = |e| self.unfit("a selection of PCRs", e);
        let pcr_select = TpmsPcrSelect::try_from(&bits[..]).map_err(unfit)?;
        let mut selection = TpmlPcrSelection::default();
        selection.try_push(TpmsPcrSelection { hash: TpmAlgId::Sha256, pcr_select }).map_err(unfit)?;
        Ok(selection)
    }

    fn marshalled(&self, value: &(impl TpmMarshal + TpmSized)) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; value.len()];
        let mut writer = TpmWriter::new(&mut bytes);
        value.marshal(&mut writer).map_err(|e| self.unfit("the quote", e))?;
        Ok(bytes)
    }

    fn failed(&self, command: impl ToString, reason: impl ToString) -> Error {
        Error::Tpm { device: self.path.clone(), command: command.to_string(), reason: reason.to_string() }
    }

    fn unfit(&self, what: &str, error: impl ToString) -> Error {
        self.failed(what, error)
    }
}

/// A signed quote and what it is over.
#[derive(Debug)]
pub(crate) struct Quote {
    /// A marshalled `TPMS_ATTEST`.
    pub(crate) message: Vec<u8>,
    /// A marshalled `TPMT_SIGNATURE`.
    pub(crate) signature: Vec<u8>,
    /// The signature alone.
    pub(crate) raw_signature: Vec<u8>,
    /// PCRs 0 to 23.
    pub(crate) pcrs: Vec<[u8; 32]>,
}

/// Names the TPM.
const DEVICE: &str = "AA_TPM_DEVICE";
/// The kernel's resource manager first: others may use the TPM beside it.
const DEVICES: [&str; 4] = ["/dev/tpmrm0", "/dev/tpm0", "/dev/tpm1", "/dev/tpm2"];
/// `TPM_RH_OWNER`
const OWNER: TpmHandle = TpmHandle::new(0x4000_0001);
/// `TPM_RS_PW`
const PASSWORD: TpmHandle = TpmHandle::new(0x4000_0009);
const PCRS: usize = 24;
const ATTEMPTS: usize = 3;
/// Doubled from a millisecond on, pauses for a busy TPM add up to 4 seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Every TPM reads this much at once.
const NV_PART: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::io;

    /// A TPM that gives its answers one by one, whatever it is asked.
    struct Answers(VecDeque<Vec<u8>>);

    impl io::Read for Answers {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let answer = self.0.pop_front().unwrap_or_default();
            let length = answer.len().min(buffer.len());
            buffer[..length].copy_from_slice(&answer[..length]);
            Ok(length)
        }
    }

    impl io::Write for Answers {
        fn write(&mut self, command: &[u8]) -> io::Result<usize> {
            Ok(command.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn device(answers: &[&str]) -> TpmDevice {
        let answers = answers.iter().map(|answer| hex::decode(answer).unwrap()).collect();
        TpmDevice { path: "/dev/tpm0".to_owned(), stream: Box::new(Answers(answers)) }
    }

    const EXTENDED: &str = "80020000001300000000000000000000010000";

    #[test]
    fn an_answer_in_parts_is_one_answer() {
        let whole = EXTENDED;
        let mut device = device(&[&whole[..6], &whole[6..20], &whole[20..]]);
        device.extend(23, [1; 32]).unwrap();
    }

    #[test]
    fn a_busy_tpm_is_asked_again() {
        let whole = EXTENDED;
        device(&["80010000000a00000922", "80010000000a00000908", whole]).extend(23, [1; 32]).unwrap();
    }

    #[test]
    fn damaged_answers_are_errors_that_name_the_command() {
        for answer in [
            "",                       // hung up
            "8001",                   // cut short
            "80010000000b00000000ff", // longer than the answer has members
            "8001ffffffff00000000",   // claims more than any answer has
            "80010000000a0000ffff",   // no code of the specification
            "ffff0000000a00000000",   // no tag of it
            "800100000004",           // shorter than its head
        ] {
            let error = device(&[answer]).pcrs().unwrap_err();
            assert!(matches!(error, Error::Tpm { .. }), "{answer}: {error}");
        }
    }

    #[test]
    fn what_the_tpm_refuses_is_told_by_its_name() {
        let error = device(&["80010000000a00000101"]).pcrs().unwrap_err().to_string();
        assert!(error.contains("TPM_RC_FAILURE") && error.contains("/dev/tpm0"), "{error}");
    }

    #[test]
    fn a_handle_that_is_not_there_is_no_error() {
        let missing = "80010000000a0000018b";
        assert!(device(&[missing]).public(0x8101_0002).unwrap().is_none());
        assert!(device(&[missing]).nv_read(0x0140_0001).unwrap().is_none());
    }

    #[test]
    fn a_bank_that_is_missing_is_an_error() {
        // An answer without a selection and without values.
        let empty = "80010000001600000000000000010000000000000000";
        let error = device(&[empty]).pcrs().unwrap_err().to_string();
        assert!(error.contains("no SHA-256 bank"), "{error}");
    }
}
