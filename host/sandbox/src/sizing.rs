//! How large a pod's guest is: what its containers may use, and what the guest itself needs.
//!
//! | The pod's containers have | Processors | Memory |
//! |---|---|---|
//! | no limit at all | the default | the default |
//! | a limit on processor time | the limit and the overhead, rounded up to whole ones | the default |
//! | a limit on memory | the default | the limit and the overhead, rounded up to an even number of MiB |
//! | both | the limit and the overhead | the limit and the overhead |
//!
//! With the defaults below, a pod limited to half a processor and 512 MiB has 1 and 640 MiB; one limited to two
//! processors alone has 3 and 2048 MiB. A RuntimeClass should reserve more than the overhead: the rest is for QEMU.

/// What all containers of a pod may use together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Microseconds of processor time in each period; none or less than 1 is no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds of a period.
    pub cpu_period: Option<u64>,
    /// Bytes of memory; none or less than 1 is no limit.
    pub memory: Option<i64>,
}

/// What a guest has without limits, and what it needs beside its containers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizing {
    /// Processors without a limit.
    pub default_vcpus: f64,
    /// MiB without a limit.
    pub default_memory: u32,
    /// Processors for the guest itself.
    pub overhead_vcpus: f64,
    /// MiB for the guest itself.
    pub overhead_memory: u32,
}

/// How large a guest is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Size {
    /// Processors.
    pub vcpus: u32,
    /// MiB of memory.
    pub memory_mib: u32,
}

impl Limits {
    /// The limits that containerd's CRI plugin writes into a sandbox's annotations; `value` looks one up.
    pub fn from_annotations<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Self {
        let number = |name| value(name).and_then(|text| text.parse::<i64>().ok());
        Self {
            cpu_quota: number("io.kubernetes.cri.sandbox-cpu-quota"),
            cpu_period: number("io.kubernetes.cri.sandbox-cpu-period").and_then(|period| period.try_into().ok()),
            memory: number("io.kubernetes.cri.sandbox-memory"),
        }
    }

    /// Processors, if they are limited.
    fn vcpus(&self) -> Option<f64> {
        match (self.cpu_quota, self.cpu_period) {
            (Some(quota @ 1..), Some(period @ 1..)) => Some(quota as f64 / period as f64),
            _ => None,
        }
    }
}

impl Sizing {
    /// The guest for a pod with these limits.
    ///
    /// # Errors
    /// [`Error`] if it could not be built or could not boot.
    pub fn size(&self, limits: &Limits) -> Result<Size, Error> {
        let vcpus = limits.vcpus().map_or(self.default_vcpus, |limit| limit + self.overhead_vcpus);
        let vcpus = vcpus.max(1.0).ceil();
        let memory = match limits.memory {
            Some(bytes @ 1..) => (bytes as u64).div_ceil(MIB).saturating_add(self.overhead_memory.into()),
            _ => self.default_memory.into(),
        };
        let memory = memory.next_multiple_of(2);
        // Also what is not a number.
        if !(1.0..=f64::from(MAX_VCPUS)).contains(&vcpus) {
            return Err(Error::Vcpus(vcpus));
        }
        match u32::try_from(memory) {
            Ok(memory_mib @ MIN_MEMORY..=MAX_MEMORY) => Ok(Size { vcpus: vcpus as u32, memory_mib }),
            _ => Err(Error::Memory(memory)),
        }
    }
}

impl Default for Sizing {
    fn default() -> Self {
        Self { default_vcpus: 1.0, default_memory: 2048, overhead_vcpus: 0.4, overhead_memory: 128 }
    }
}

/// Why there is no guest of a size.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("size: a guest can't have {0} processors; next: limit the pod to at most {MAX_VCPUS}")]
    Vcpus(f64),
    #[error(
        "size: a guest can't have {0} MiB of memory; next: raise the pod's limit or the overhead to {MIN_MEMORY} MiB or more, at most {MAX_MEMORY}"
    )]
    Memory(u64),
}

const MIB: u64 = 1 << 20;
/// What QEMU's machine takes.
const MAX_VCPUS: u32 = 255;
/// Less does not boot.
const MIN_MEMORY: u32 = 96;
const MAX_MEMORY: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_overheads_make_a_size() {
        let (half, two) = ((Some(50_000), Some(100_000)), (Some(200_000), Some(100_000)));
        let none = (None, None);
        for ((cpu_quota, cpu_period), memory, vcpus, memory_mib) in [
            (none, None, 1, 2048),
            ((Some(-1), Some(100_000)), Some(0), 1, 2048),
            ((Some(100_000), None), None, 1, 2048),
            ((Some(100_000), Some(0)), None, 1, 2048),
            (half, None, 1, 2048),
            (two, None, 3, 2048),
            (none, Some(512 << 20), 1, 640),
            (none, Some((511 << 20) + 1), 1, 640),
            (none, Some(511 << 20), 1, 640),
            (half, Some(512 << 20), 1, 640),
            (two, Some(6 << 30), 3, 6272),
        ] {
            let limits = Limits { cpu_quota, cpu_period, memory };
            assert_eq!(Sizing::default().size(&limits), Ok(Size { vcpus, memory_mib }), "{limits:?}");
        }
    }

    #[test]
    fn a_size_that_nobody_can_build_is_refused() {
        let sizing = Sizing { overhead_memory: 0, ..Sizing::default() };
        let small = Limits { memory: Some(10 << 20), ..Limits::default() };
        assert_eq!(sizing.size(&small), Err(Error::Memory(10)));
        let nothing = Sizing { default_memory: 0, ..sizing };
        assert_eq!(nothing.size(&Limits::default()), Err(Error::Memory(0)));
        let huge = Limits { memory: Some(i64::MAX), ..Limits::default() };
        assert!(matches!(sizing.size(&huge), Err(Error::Memory(_))));
        let many = Limits { cpu_quota: Some(i64::MAX), cpu_period: Some(1), memory: None };
        assert!(matches!(sizing.size(&many), Err(Error::Vcpus(_))));
        // What is not a number counts as one processor, as everything below one does.
        let odd = Sizing { default_vcpus: f64::NAN, ..Sizing::default() };
        assert_eq!(odd.size(&Limits::default()).map(|size| size.vcpus), Ok(1));
    }

    #[test]
    fn limits_are_read_from_annotations() {
        let annotations = |name: &str| match name {
            "io.kubernetes.cri.sandbox-cpu-quota" => Some("150000"),
            "io.kubernetes.cri.sandbox-cpu-period" => Some("100000"),
            "io.kubernetes.cri.sandbox-memory" => Some("268435456"),
            _ => None,
        };
        let limits = Limits::from_annotations(annotations);
        assert_eq!(limits, Limits { cpu_quota: Some(150_000), cpu_period: Some(100_000), memory: Some(256 << 20) });
        assert_eq!(Limits::from_annotations(|_| Some("many")), Limits::default());
    }
}
