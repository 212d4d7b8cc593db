//! The ioctls of TEEs' devices: system calls that no safe wrapper exists for.
//!
//! Source: the kernel's `uapi/linux/tdx-guest.h`, `uapi/linux/sev-guest.h` and s390's `uapi/asm/uvdevice.h`; for CSV, DCU
//! and for extending RTMRs by ioctl, the drivers of the vendors' kernels.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use crate::machine::Call;

/// Makes the call on an open device.
pub(crate) fn perform(device: &File, call: Call<'_>) -> io::Result<()> {
    match call {
        Call::TdxReport { report_data, report } => tdx_report(device, report_data, report),
        Call::TdxExtend { register, digest } => tdx_extend(device, register, digest),
        Call::SnpReport { report_data, response, certificates } => {
            snp_report(device, report_data, response, certificates)
        }
        Call::CsvReport { page } => {
            let mut request = CsvReportRequest { page: page.as_mut_ptr() as u64, length: page.len() as i32 };
            // SAFETY: the page is as long as the request says, and outlives the call.
            unsafe { ioctl(device, READ | WRITE, b'D', 1, &mut request) }
        }
        Call::CsvRegister { command, buffer } => {
            let mut request = CsvRegisterRequest {
                buffer: buffer.as_mut_ptr() as u64,
                length: buffer.len() as u64,
                command: command as u16,
                reserved: 0,
                firmware_error: 0,
            };
            // SAFETY: the buffer is as long as the request says, and outlives the call.
            unsafe { ioctl(device, READ | WRITE, b'D', 2, &mut request) }?;
            match request.firmware_error {
                0 => Ok(()),
                code => Err(io::Error::other(format!("the firmware refused with code {code:#x}"))),
            }
        }
        Call::DcuReport { device: id, request, answer } => {
            let mut arguments = DcuReportRequest {
                device: id,
                version: 1,
                request: request.as_ptr() as u64,
                request_length: request.len() as u64,
                answer: answer.as_mut_ptr() as u64,
                answer_length: answer.len() as u64,
                firmware_error: 0,
            };
            // SAFETY: both pages are as long as the request says, and outlive the call.
            unsafe { ioctl(device, READ | WRITE, b'M', 0x17, &mut arguments) }?;
            match arguments.firmware_error {
                0 => Ok(()),
                code => Err(io::Error::other(format!("the firmware refused with code {code:#x}"))),
            }
        }
        Call::SeAttest { request, user_data, measurement, additional_data, configuration } => {
            se_attest(device, request, user_data, measurement, additional_data, configuration)
        }
    }
}

fn tdx_report(device: &File, report_data: &[u8; 64], report: &mut [u8; 1024]) -> io::Result<()> {
    let mut request = TdxReportRequest { report_data: *report_data, report: [0; 1024] };
    // SAFETY: the request is the driver's structure and has no pointers.
    unsafe { ioctl(device, READ | WRITE, b'T', 1, &mut request) }?;
    *report = request.report;
    Ok(())
}

/// Two generations of drivers encode the same call with different directions.
fn tdx_extend(device: &File, register: u8, digest: &[u8; 48]) -> io::Result<()> {
    let mut request = TdxExtendRequest { digest: *digest, register };
    // SAFETY: the request is the driver's structure and has no pointers.
    let extended = unsafe { ioctl(device, READ, b'T', 3, &mut request) };
    match extended {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            // SAFETY: as above.
            unsafe { ioctl(device, WRITE, b'T', 3, &mut request) }
        }
        outcome => outcome,
    }
}

fn snp_report(
    device: &File,
    report_data: &[u8; 64],
    response: &mut [u8; 4000],
    certificates: &mut Vec<u8>,
) -> io::Result<()> {
    certificates.clear();
    loop {
        let mut extended = SnpExtendedRequest {
            report_data: *report_data,
            vmpl: 0,
            reserved: [0; 28],
            certificates: certificates.as_mut_ptr() as u64,
            certificates_length: certificates.len() as u32,
        };
        let mut request = SnpGuestRequest {
            message_version: 1,
            request: &raw mut extended as u64,
            response: response.as_mut_ptr() as u64,
            exit_info: 0,
        };
        // SAFETY: request and response are the driver's structures, the certificates' buffer is as long as the request
        // says, and all outlive the call.
        let outcome = unsafe { ioctl(device, READ | WRITE, b'S', 2, &mut request) };
        let needed = extended.certificates_length as usize;
        match outcome {
            Err(_)
                if request.exit_info >> 32 == INVALID_LENGTH
                    && (certificates.len() + 1..=MAX_TABLE).contains(&needed) =>
            {
                certificates.resize(needed.next_multiple_of(TABLE_UNIT), 0);
            }
            Err(error) if request.exit_info != 0 => {
                return Err(io::Error::other(format!("{error} (firmware and host said {:#x})", request.exit_info)));
            }
            outcome => return outcome,
        }
    }
}

fn se_attest(
    device: &File,
    request: &[u8],
    user_data: &[u8],
    measurement: &mut [u8],
    additional_data: &mut [u8],
    configuration: &mut [u8; 16],
) -> io::Result<()> {
    let too_long = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what} is too long"));
    let mut attest = SeAttest {
        request: request.as_ptr() as u64,
        measurement: measurement.as_mut_ptr() as u64,
        additional_data: additional_data.as_mut_ptr() as u64,
        user_data: [0; 256],
        configuration: [0; 16],
        request_length: u32::try_from(request.len()).map_err(|_| too_long("the request"))?,
        measurement_length: u32::try_from(measurement.len()).map_err(|_| too_long("the measurement"))?,
        additional_data_length: u32::try_from(additional_data.len()).map_err(|_| too_long("the additional data"))?,
        user_data_length: user_data.len() as u16,
        reserved: 0,
    };
    attest.user_data.get_mut(..user_data.len()).ok_or_else(|| too_long("the user data"))?.copy_from_slice(user_data);
    let mut control = SeControl {
        flags: 0,
        code: 0,
        reason: 0,
        argument: &raw mut attest as u64,
        argument_length: size_of::<SeAttest>() as u32,
        reserved: [0; 44],
    };
    // SAFETY: all buffers are as long as the request says, and outlive the call.
    unsafe { ioctl(device, READ | WRITE, b'u', 1, &mut control) }?;
    if control.code != SE_EXECUTED {
        let SeControl { code, reason, .. } = control;
        return Err(io::Error::other(format!("the Ultravisor refused with code {code:#x}, reason {reason:#x}")));
    }
    *configuration = attest.configuration;
    Ok(())
}

/// Makes the call whose number says direction, size, driver and command.
///
/// # Safety
/// `T` must be the structure of the driver's command, and its pointers must be valid for the lengths beside them.
unsafe fn ioctl<T>(device: &File, direction: libc::Ioctl, driver: u8, command: u8, argument: &mut T) -> io::Result<()> {
    let request =
        direction | (size_of::<T>() as libc::Ioctl) << 16 | (driver as libc::Ioctl) << 8 | command as libc::Ioctl;
    // SAFETY: the caller vouches for the structure; it is borrowed for the call.
    let status = unsafe { libc::ioctl(device.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C)]
struct TdxReportRequest {
    report_data: [u8; 64],
    report: [u8; 1024],
}

#[repr(C)]
struct TdxExtendRequest {
    digest: [u8; 48],
    register: u8,
}

#[repr(C)]
struct SnpExtendedRequest {
    report_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
    certificates: u64,
    certificates_length: u32,
}

#[repr(C)]
struct SnpGuestRequest {
    message_version: u8,
    request: u64,
    response: u64,
    /// The host's code above, the firmware's below.
    exit_info: u64,
}

#[repr(C)]
struct CsvReportRequest {
    page: u64,
    length: i32,
}

#[repr(C)]
struct CsvRegisterRequest {
    buffer: u64,
    length: u64,
    command: u16,
    reserved: u16,
    firmware_error: u32,
}

#[repr(C)]
struct DcuReportRequest {
    device: u32,
    version: u32,
    request: u64,
    request_length: u64,
    answer: u64,
    answer_length: u64,
    firmware_error: u64,
}

#[repr(C)]
struct SeControl {
    flags: u32,
    code: u16,
    reason: u16,
    argument: u64,
    argument_length: u32,
    reserved: [u8; 44],
}

#[repr(C)]
struct SeAttest {
    request: u64,
    measurement: u64,
    additional_data: u64,
    user_data: [u8; 256],
    configuration: [u8; 16],
    request_length: u32,
    measurement_length: u32,
    additional_data_length: u32,
    user_data_length: u16,
    reserved: u16,
}

/// `_IOW`: the kernel reads.
const WRITE: libc::Ioctl = 1 << 30;
/// `_IOR`: the kernel writes.
const READ: libc::Ioctl = 2 << 30;
/// The certificates do not fit; the length says how many bytes they need.
const INVALID_LENGTH: u64 = 1;
/// The kernel takes whole pages.
const TABLE_UNIT: usize = 4096;
/// What the kernel takes at most.
const MAX_TABLE: usize = 4 * TABLE_UNIT;
const SE_EXECUTED: u16 = 1;

// The sizes are part of the calls' numbers.
const _: () = assert!(size_of::<TdxReportRequest>() == 1088 && size_of::<TdxExtendRequest>() == 49);
const _: () = assert!(size_of::<SnpExtendedRequest>() == 112 && size_of::<SnpGuestRequest>() == 32);
const _: () = assert!(size_of::<CsvReportRequest>() == 16 && size_of::<CsvRegisterRequest>() == 24);
const _: () = assert!(size_of::<DcuReportRequest>() == 48);
const _: () = assert!(size_of::<SeControl>() == 0x40 && size_of::<SeAttest>() == 0x138);
