//! Whether KVM runs guests here, found out by running one.
//!
//! `/dev/kvm` that opens proves little: under a hypervisor without nested virtualisation it creates VMs whose guests
//! hang at the first instruction that the kernel does not emulate, and QEMU may abort on a register that the host
//! hides. So the probe runs QEMU as a VM would be run, on a ROM of a few instructions, one of which (SSE2) only
//! a processor executes.

mod known;

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::confinement::Confinement;
use crate::error::Error;
use crate::process::{Process, QEMU, Started};
use known::Known;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// The processor, through the host's kernel.
    Kvm,
    /// QEMU's translator: 4 to 10 times slower, and works everywhere.
    Tcg,
}

/// Which acceleration is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// KVM where it works.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Chooses the acceleration. Takes 0.1 s where KVM works or fails, 1 s where it hangs; nothing is left behind.
///
/// # Errors
/// [`Error::QemuMissing`] and [`Error::Start`] if QEMU can't be run at all; [`Error::KvmUnusable`] if KVM was
/// demanded and does not work.
pub async fn probe(preference: Preference) -> Result<Acceleration, Error> {
    choose(preference, None).await
}

/// The same, with what it finds kept in `file`: until the machine boots anew, or its kernel, its device or QEMU changes, the
/// next one has the answer from there. That a guest hangs is not kept, since a busy machine may look so.
///
/// # Errors
/// Those of [`probe`].
pub async fn probe_once(preference: Preference, file: &Path) -> Result<Acceleration, Error> {
    choose(preference, Known::at(file, Path::new(QEMU))).await
}

async fn choose(preference: Preference, known: Option<Known<'_>>) -> Result<Acceleration, Error> {
    if preference == Preference::Tcg {
        return Ok(Acceleration::Tcg);
    }
    match (known.as_ref().and_then(Known::acceleration), preference) {
        // Whoever demands it wants to know why not.
        (Some(Acceleration::Tcg), Preference::Kvm) | (None, _) => {}
        (Some(acceleration), _) => return Ok(acceleration),
    }
    let found = run(Acceleration::Kvm).await?;
    let acceleration = if found.is_ok() { Acceleration::Kvm } else { Acceleration::Tcg };
    if let Some(known) = known.filter(|_| !matches!(found, Err(Cause::Hang(_)))) {
        known.keep(acceleration);
    }
    match (found, preference) {
        (Ok(()), _) => {}
        (Err(cause), Preference::Kvm) => return Err(Error::KvmUnusable(cause.to_string())),
        (Err(cause), _) => tracing::info!(%cause, "KVM does not run guests here; using software emulation"),
    }
    Ok(acceleration)
}

impl Acceleration {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    pub(crate) fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host,pmu=off",
            // QEMU 7.2 corrupts the flags after cmpxchg16b: one boot of Linux 6.12 in five would panic or hang.
            Self::Tcg => "max,cx16=off",
        }
    }
}

/// Why a guest did not run.
#[derive(Debug, PartialEq)]
enum Cause {
    /// Nothing happened for this long.
    Hang(Duration),
    /// The kernel gave up, in its words.
    Kernel(String),
    /// QEMU ended otherwise than the guest would have ended it; with its last words.
    Qemu(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hang(time) => write!(f, "a guest hangs, for {time:?} so far"),
            Self::Kernel(message) => write!(f, "a guest does not run: {message}"),
            Self::Qemu(message) => write!(f, "QEMU can't use it: {message}"),
        }
    }
}

/// Runs the ROM; the outer error is about QEMU, the inner one about the acceleration.
async fn run(acceleration: Acceleration) -> Result<Result<(), Cause>, Error> {
    let mut rom = tempfile::NamedTempFile::new().map_err(Error::Start)?;
    rom.write_all(&rom_image()).map_err(Error::Start)?;

    let mut command = Command::new(QEMU);
    command.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-vga", "none", "-m", "16M"]);
    command.args(["-machine", "q35", "-accel", acceleration.name(), "-cpu", acceleration.cpu()]);
    command.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1")]);
    command.arg("-bios").arg(rom.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let Started { process, stderr, exit, .. } =
        Process::start(command, Confinement::default(), Vec::new()).map_err(Error::starting)?;
    let stderr = stderr.ok_or_else(|| Error::Start(std::io::Error::other("its output is not piped")))?;
    let stderr = pipe::Receiver::from_owned_fd(stderr.into()).map_err(Error::Start)?;

    let outcome = timeout(PROBE_TIME, async {
        let mut last = "it gave no reason".to_owned();
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // QEMU then stops the guest and stays.
            if line.contains("KVM internal error") {
                return Err(Cause::Kernel(line));
            }
            last = line;
        }
        match exit.await {
            Ok(Ok(status)) if status.code() == Some(EXIT_STATUS) => Ok(()),
            Ok(Ok(status)) => Err(Cause::Qemu(format!("{status}: {last}"))),
            Ok(Err(_)) | Err(_) => Err(Cause::Qemu(last)),
        }
    })
    .await;
    drop(process);
    Ok(outcome.unwrap_or(Err(Cause::Hang(PROBE_TIME))))
}

/// A ROM that adds 21 to itself and leaves with the sum.
fn rom_image() -> Vec<u8> {
    const HLT: u8 = 0xf4;
    let mut rom = vec![HLT; ROM_SIZE];
    rom[CODE_OFFSET..CODE_OFFSET + CODE.len()].copy_from_slice(CODE);
    // jmp from the reset vector back to the code; the distance counts from the end of the jump.
    let distance = CODE_OFFSET as i16 - (RESET_VECTOR + 3) as i16;
    rom[RESET_VECTOR] = 0xe9;
    rom[RESET_VECTOR + 1..RESET_VECTOR + 3].copy_from_slice(&distance.to_le_bytes());
    rom
}

/// 16-bit code, as the processor runs after a reset.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x0f, 0x20, 0xe0,             // mov eax, cr4
    0x0d, 0x00, 0x02,             // or ax, 0x200: OSFXSR, which SSE needs
    0x0f, 0x22, 0xe0,             // mov cr4, eax
    0x66, 0xb8, 21, 0, 0, 0,      // mov eax, 21
    0x66, 0x0f, 0x6e, 0xc0,       // movd xmm0, eax
    0x66, 0x0f, 0xfe, 0xc0,       // paddd xmm0, xmm0
    0x66, 0x0f, 0x7e, 0xc0,       // movd eax, xmm0
    0xe6, EXIT_PORT,              // out EXIT_PORT, al
    0xf4,                         // hlt
];
const EXIT_PORT: u8 = 0xf4;
/// isa-debug-exit ends QEMU with twice the value plus one.
const EXIT_STATUS: i32 = 42 * 2 + 1;
const ROM_SIZE: usize = 64 << 10;
const CODE_OFFSET: usize = 0xff00;
const RESET_VECTOR: usize = 0xfff0;
/// For QEMU to start (0.1 s on an idle host) and to run 30 bytes of code.
const PROBE_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rom_runs_wherever_qemu_does() {
        match run(Acceleration::Tcg).await {
            Err(Error::QemuMissing) => eprintln!("skipped: {QEMU} is not installed"),
            outcome => assert_eq!(outcome.unwrap(), Ok(())),
        }
    }

    #[tokio::test]
    async fn automatic_choice_always_finds_something_and_agrees_with_the_demand_for_kvm() {
        let choice = match probe(Preference::Auto).await {
            Err(Error::QemuMissing) => return eprintln!("skipped: {QEMU} is not installed"),
            choice => choice.unwrap(),
        };
        match probe(Preference::Kvm).await {
            Ok(acceleration) => assert_eq!(choice, acceleration),
            Err(Error::KvmUnusable(_)) => assert_eq!(choice, Acceleration::Tcg),
            Err(e) => panic!("{e}"),
        }
    }

    #[tokio::test]
    async fn what_is_known_is_not_tried_again_but_for_whoever_demands_more() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known");
        let Ok(found) = probe_once(Preference::Auto, &file).await else { return eprintln!("skipped: no {QEMU}") };
        let kept = || Known::at(&file, Path::new(QEMU)).unwrap();
        assert!(matches!(kept().acceleration(), None | Some(Acceleration::Kvm | Acceleration::Tcg)));

        let other = match found {
            Acceleration::Kvm => Acceleration::Tcg,
            Acceleration::Tcg => Acceleration::Kvm,
        };
        kept().keep(other);
        assert_eq!(probe_once(Preference::Auto, &file).await.unwrap(), other);
        if other == Acceleration::Tcg {
            assert_eq!(probe_once(Preference::Kvm, &file).await.unwrap(), found);
            assert_eq!(kept().acceleration(), Some(found), "what is found anew is kept");
        }
    }

    #[tokio::test]
    async fn software_emulation_needs_no_probe() {
        assert_eq!(probe(Preference::Tcg).await.unwrap(), Acceleration::Tcg);
    }

    #[test]
    fn the_reset_vector_jumps_to_the_code() {
        let rom = rom_image();
        let jump = &rom[RESET_VECTOR..RESET_VECTOR + 3];
        let distance = i16::from_le_bytes([jump[1], jump[2]]);
        assert_eq!((RESET_VECTOR as i32 + 3 + i32::from(distance)) as usize, CODE_OFFSET);
        assert_eq!(&rom[CODE_OFFSET..CODE_OFFSET + CODE.len()], CODE);
    }
}
