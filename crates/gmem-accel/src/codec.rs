//! Errors as numbers, for the way through shared memory. What comes back is not trusted: an unknown number decodes to `None`.

use gmem_hal::{DeviceError, FaultError, HostError};

const DEVICE: [DeviceError; 6] = [
    DeviceError::NoMemory,
    DeviceError::Dead,
    DeviceError::NoAnswer,
    DeviceError::Unsupported,
    DeviceError::CopyFailed,
    DeviceError::BadRequest,
];

const HOST: [HostError; 6] = [
    HostError::NoMemory,
    HostError::Pinned,
    HostError::AddressInUse,
    HostError::TooManyMappings,
    HostError::NotPermitted,
    HostError::Unsupported,
];

const PLAIN: [FaultError; 6] = [
    FaultError::NotMapped,
    FaultError::Protection,
    FaultError::NoDeviceMemory,
    FaultError::Fenced,
    FaultError::NotAttached,
    FaultError::TooManyHolds,
];

const KIND_PLAIN: u64 = 1;
const KIND_DEVICE: u64 = 2;
const KIND_HOST: u64 = 3;
const KIND_OS: u64 = 4;

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
        assert_eq!(decode(KIND_PLAIN << 32 | 6), None);
        assert_eq!(decode(u64::MAX), None);
    }
}
