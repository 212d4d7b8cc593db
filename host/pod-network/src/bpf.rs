//! A program of the kernel's that gives a namespace's connections to 127.0.0.1 to one socket, whatever their port.
//!
//! It looks on when the kernel searches for who listens (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9), so that it needs neither
//! rules of a firewall nor connection tracking. It is 23 instructions and is handed to the kernel as they stand here.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

/// Steers connections to 127.0.0.1 to a listening socket while it lives; with its last descriptor nothing of it is left.
#[derive(Debug)]
pub(crate) struct Steering {
    _link: OwnedFd,
}

impl Steering {
    /// Begins in the network namespace that is open in `namespace`, where `listener` is too.
    ///
    /// # Errors
    /// What the kernel says, and of which of the four steps.
    pub(crate) fn begin(namespace: impl AsFd, listener: &TcpListener) -> Result<Self, (&'static str, io::Error)> {
        let at = |step| move |error| (step, error);
        let map = MapCreate { kind: MAP_OF_SOCKETS, key_size: 4, value_size: 4, max_entries: 1, flags: 0 };
        let map = descriptor(MAP_CREATE, &map).map_err(at("map of sockets"))?;
        let (key, value) = (0_u32, listener.as_raw_fd() as u32);
        let element = MapUpdate { map: raw(&map), key: address(&key), value: address(&value), flags: 0 };
        bpf(MAP_UPDATE, &element).map_err(at("socket in its map"))?;

        let instructions = program(map.as_raw_fd());
        let program = ProgramLoad {
            kind: SOCKET_LOOKUP,
            count: instructions.len() as u32,
            instructions: address(&instructions),
            license: LICENSE.as_ptr() as u64,
            attach_type: AT_SOCKET_LOOKUP,
            ..ProgramLoad::default()
        };
        let program = descriptor(PROGRAM_LOAD, &program).map_err(at("program"))?;
        let target = namespace.as_fd().as_raw_fd() as u32;
        let link = LinkCreate { program: raw(&program), target, attach_type: AT_SOCKET_LOOKUP, flags: 0 };
        // The link holds the program, and the program its map.
        descriptor(LINK_CREATE, &link).map(|link| Self { _link: link }).map_err(at("program in the namespace"))
    }
}

/// If the connection is TCP to 127.0.0.1, assigns it to the socket in the map. Says "go on" in any case: whatever failed,
/// the kernel then searches as it would without the program.
fn program(map: i32) -> [Instruction; 23] {
    let localhost = i32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    let op = |code, to: u8, from: u8, offset, value| Instruction { code, registers: from << 4 | to, offset, value };
    // Jumps count from the next instruction, and all lead to the last but one.
    [
        op(MOVE, 6, 1, 0, 0),
        op(LOAD, 2, 6, PROTOCOL, 0),
        op(JUMP_UNLESS_EQUAL, 2, 0, 18, libc::IPPROTO_TCP),
        op(LOAD, 2, 6, FAMILY, 0),
        op(JUMP_UNLESS_EQUAL, 2, 0, 16, libc::AF_INET),
        op(LOAD, 2, 6, LOCAL_IP4, 0),
        op(JUMP_UNLESS_EQUAL, 2, 0, 14, localhost),
        // The map's element 0.
        op(STORE_VALUE, 10, 0, -4, 0),
        op(MOVE, 2, 10, 0, 0),
        op(ADD_VALUE, 2, 0, 0, -4),
        op(LOAD_MAP, 1, 1, 0, map),
        op(0, 0, 0, 0, 0),
        op(CALL, 0, 0, 0, MAP_LOOKUP),
        op(JUMP_IF_EQUAL, 0, 0, 7, 0),
        // Assigned to the connection, and its reference given back.
        op(MOVE, 7, 0, 0, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE, 2, 7, 0, 0),
        op(MOVE_VALUE, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, ASSIGN),
        op(MOVE, 1, 7, 0, 0),
        op(CALL, 0, 0, 0, RELEASE),
        op(MOVE_VALUE, 0, 0, 0, GO_ON),
        op(EXIT, 0, 0, 0, 0),
    ]
}

fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the commands this is called for return a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `attributes` to its size, and what its addresses lead to, all of which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, address(attributes), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn raw(descriptor: &OwnedFd) -> u32 {
    descriptor.as_raw_fd() as u32
}

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// `union bpf_attr` of each command, up to the last member that is used: the kernel takes the rest for zero.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C, align(8))]
struct MapUpdate {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Default)]
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROGRAM_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_MAP_TYPE_SOCKMAP`.
const MAP_OF_SOCKETS: u32 = 15;
/// `BPF_PROG_TYPE_SK_LOOKUP`.
const SOCKET_LOOKUP: u32 = 30;
/// `BPF_SK_LOOKUP`.
const AT_SOCKET_LOOKUP: u32 = 36;
/// No function that it calls demands another.
const LICENSE: &CStr = c"Apache-2.0";

/// `BPF_LDX | BPF_MEM | BPF_W`.
const LOAD: u8 = 0x61;
/// `BPF_ST | BPF_MEM | BPF_W`.
const STORE_VALUE: u8 = 0x62;
/// `BPF_LD | BPF_IMM | BPF_DW`, two instructions long; the register that it comes from says that the value is a map.
const LOAD_MAP: u8 = 0x18;
/// `BPF_ALU64 | BPF_MOV | BPF_X`.
const MOVE: u8 = 0xbf;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE_VALUE: u8 = 0xb7;
/// `BPF_ALU64 | BPF_ADD | BPF_K`.
const ADD_VALUE: u8 = 0x07;
/// `BPF_JMP32 | BPF_JNE | BPF_K`.
const JUMP_UNLESS_EQUAL: u8 = 0x56;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_IF_EQUAL: u8 = 0x15;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_JMP | BPF_EXIT`.
const EXIT: u8 = 0x95;

/// `bpf_map_lookup_elem`.
const MAP_LOOKUP: i32 = 1;
/// `bpf_sk_release`.
const RELEASE: i32 = 86;
/// `bpf_sk_assign`.
const ASSIGN: i32 = 124;
/// `SK_PASS`.
const GO_ON: i32 = 1;

/// Members of `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
