//! Errors as numbers, for the way through shared memory. What comes back is not trusted: an unknown number decodes to `None`.

use gmem_hal::{Crash, DeviceError, FaultError, HostError, VirtAddr};

const DEVICE: [DeviceError; 9] = [
    DeviceError::NoMemory,
    DeviceError::Dead,
    DeviceError::NoAnswer,
    DeviceError::Unsupported,
    DeviceError::CopyFailed,
    DeviceError::BadRequest,
    DeviceError::TooManyFiles,
    DeviceError::AlreadyStarted,
    DeviceError::TooManyMappings,
];

const HOST: [HostError; 11] = [
    HostError::NoMemory,
    HostError::Pinned,
    HostError::AddressInUse,
    HostError::TooManyMappings,
    HostError::NotPermitted,
    HostError::Unsupported,
    HostError::Displaced,
    HostError::TooManyFiles,
    HostError::ForeignThread,
    HostError::NoSuchAddresses,
    HostError::TooManyInThread,
];

const PLAIN: [FaultError; 8] = [
    FaultError::NotMapped,
    FaultError::Protection,
    FaultError::NoDeviceMemory,
    FaultError::Fenced,
    FaultError::NotAttached,
    FaultError::TooManyHolds,
    FaultError::NotNamed,
    FaultError::PageTooLarge,
];

const KIND_PLAIN: u64 = 1;
const KIND_DEVICE: u64 = 2;
const KIND_HOST: u64 = 3;
const KIND_OS: u64 = 4;

/// Crashes without an address, by their numbers. Number zero is no crash, so that memory nobody wrote says nothing.
const CRASHES: [Crash; 6] = [Crash::NoAddress, Crash::Instruction, Crash::Arithmetic, Crash::Memory, Crash::Abort, Crash::StackOverflow];
const CRASH_ACCESS: u64 = 7;

/// A crash as a number and an address. Async-signal-safe.
pub(crate) fn encode_crash(crash: Crash) -> (u64, u64) {
    match crash {
        Crash::Access(va) => (CRASH_ACCESS, va.get()),
        other => (position(&CRASHES, other) + 1, 0),
    }
}

/// The crash that a number and an address stand for; `None` for what `encode_crash` never makes.
pub(crate) fn decode_crash(code: u64, va: u64) -> Option<Crash> {
    match code {
        CRASH_ACCESS => Some(Crash::Access(VirtAddr::new(va))),
        code => CRASHES.get(usize::try_from(code.checked_sub(1)?).ok()?).copied(),
    }
}

/// The answer to a fault: zero for `Ok`, never zero for an error.
pub(crate) fn encode(answer: Result<(), FaultError>) -> u64 {
    let (kind, index) = match answer {
        Ok(()) => return 0,
        Err(FaultError::Device(e)) => (KIND_DEVICE, position(&DEVICE, e)),
        Err(FaultError::Host(HostError::Os(errno))) => (KIND_OS, u64::from(errno as u32)),
        Err(FaultError::Host(e)) => (KIND_HOST, position(&HOST, e)),
        Err(e) => (KIND_PLAIN, position(&PLAIN, e)),
    };
    kind << 32 | index
}

/// The error an answer stands for; `None` for zero and for what `encode` never makes.
pub(crate) fn decode(code: u64) -> Option<FaultError> {
    let index = (code & 0xffff_ffff) as usize;
    match code >> 32 {
        KIND_PLAIN => PLAIN.get(index).copied(),
        KIND_DEVICE => DEVICE.get(index).copied().map(FaultError::Device),
        KIND_HOST => HOST.get(index).copied().map(FaultError::Host),
        KIND_OS => Some(FaultError::Host(HostError::Os(index as u32 as i32))),
        _ => None,
    }
}

fn position<T: PartialEq + Copy>(table: &[T], item: T) -> u64 {
    table.iter().position(|t| *t == item).expect("the tables name every variant") as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_and_garbage_does_not() {
        let all = PLAIN
            .into_iter()
            .chain(DEVICE.map(FaultError::Device))
            .chain(HOST.map(FaultError::Host))
            .chain([FaultError::Host(HostError::Os(-7)), FaultError::Host(HostError::Os(12))]);
        for error in all {
            let code = encode(Err(error));
            assert_ne!(code, 0);
            assert_eq!(decode(code), Some(error));
        }
        assert_eq!(encode(Ok(())), 0);
        assert_eq!(decode(0), None);
        assert_eq!(decode(KIND_PLAIN << 32 | PLAIN.len() as u64), None);
        assert_eq!(decode(u64::MAX), None);
    }

    #[test]
    fn every_crash_survives_and_garbage_does_not() {
        for crash in CRASHES.into_iter().chain([Crash::Access(VirtAddr::new(0)), Crash::Access(VirtAddr::new(u64::MAX))]) {
            let (code, va) = encode_crash(crash);
            assert_eq!(decode_crash(code, va), Some(crash));
        }
        assert_eq!((decode_crash(0, 1), decode_crash(8, 1), decode_crash(u64::MAX, 1)), (None, None, None));
    }
}
