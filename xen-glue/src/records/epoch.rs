//! The state of one epoch.

use super::{
    DEVICE_MODEL, END, HEADER_BYTES, HVM_CONTEXT, HVM_PARAMS, OPTIONAL, Reader, RecordError, X86_TSC_INFO,
    header, u32_at, u64_at,
};

/// Length of the body of `X86_TSC_INFO`.
const TSC_BYTES: usize = 24;
/// Length of one parameter in `HVM_PARAMS`.
const PARAM_BYTES: usize = 16;
/// Length of what comes before the parameters.
const PARAMS_HEADER_BYTES: usize = 8;
/// Most parameters in a state.
pub(crate) const MAX_PARAMS: usize = 256;

/// The body of `X86_TSC_INFO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tsc {
    /// How the counter is emulated.
    pub mode: u32,
    /// Its frequency.
    pub khz: u32,
    /// Guest time in nanoseconds.
    pub elapsed_ns: u64,
    /// Counts moves.
    pub incarnation: u32,
}

/// One parameter of an HVM domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvmParam {
    /// Its number.
    pub index: u64,
    /// Its value, not 0.
    pub value: u64,
}

/// What a state holds beside the context.
#[derive(Clone, Copy, Debug)]
pub struct BesideContext<'a> {
    /// Time stamp counter settings.
    pub tsc: Tsc,
    /// The parameters that are not 0.
    pub params: &'a [HvmParam],
    /// The device model's state, of a domain that has one.
    pub device_model: Option<&'a [u8]>,
}

/// The state of an epoch, read from its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochState<'a> {
    /// Time stamp counter settings.
    pub tsc: Tsc,
    /// Processors and emulated devices, for `xc_domain_hvm_setcontext`.
    pub context: &'a [u8],
    /// The parameters that are not 0.
    pub params: Vec<HvmParam>,
    /// The device model's state, of a domain that has one.
    pub device_model: Option<&'a [u8]>,
}

impl<'a> EpochState<'a> {
    /// Reads a state. Optional records of later versions are skipped.
    pub fn read(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        let (mut tsc, mut context, mut params, mut device_model) = (None, None, None, None);
        while let Some(record) = reader.next()? {
            let length =
                || RecordError::Length { kind: record.kind, at: record.at, bytes: record.body.len() as u64 };
            let doubled = match record.kind {
                X86_TSC_INFO => tsc.replace(read_tsc(record.body).ok_or_else(length)?).is_some(),
                HVM_CONTEXT => context.replace(record.body).is_some(),
                DEVICE_MODEL => device_model.replace(record.body).is_some(),
                HVM_PARAMS => params.replace(read_params(record.body).ok_or_else(length)?).is_some(),
                kind if kind & OPTIONAL != 0 => false,
                kind => return Err(RecordError::Unknown { kind, at: record.at }),
            };
            if doubled {
                return Err(RecordError::Count("of the state"));
            }
        }
        Ok(Self {
            tsc: tsc.ok_or(RecordError::Count("X86_TSC_INFO"))?,
            context: context.ok_or(RecordError::Count("HVM_CONTEXT"))?,
            params: params.ok_or(RecordError::Count("HVM_PARAMS"))?,
            device_model,
        })
    }

    /// A parameter; 0 if it is not there.
    pub fn param(&self, index: u32) -> u64 {
        self.params.iter().find(|param| param.index == u64::from(index)).map_or(0, |param| param.value)
    }
}

fn read_tsc(body: &[u8]) -> Option<Tsc> {
    if body.len() != TSC_BYTES {
        return None;
    }
    Some(Tsc {
        mode: u32_at(body, 0)?,
        khz: u32_at(body, 4)?,
        elapsed_ns: u64_at(body, 8)?,
        incarnation: u32_at(body, 16)?,
    })
}

/// Reads the body of `HVM_PARAMS`; `None` if it is none.
pub fn read_params(body: &[u8]) -> Option<Vec<HvmParam>> {
    let count = u32_at(body, 0)? as usize;
    if count > MAX_PARAMS || body.len() != PARAMS_HEADER_BYTES + count * PARAM_BYTES {
        return None;
    }
    let param = |entry: &[u8]| Some(HvmParam { index: u64_at(entry, 0)?, value: u64_at(entry, 8)? });
    body[PARAMS_HEADER_BYTES..].chunks_exact(PARAM_BYTES).map(param).collect()
}

/// The body of `HVM_PARAMS`.
pub fn params_body(params: &[HvmParam]) -> Vec<u8> {
    let mut body = vec![0; PARAMS_HEADER_BYTES];
    body[..4].copy_from_slice(&u32::try_from(params.len()).unwrap_or(u32::MAX).to_le_bytes());
    for param in params {
        body.extend_from_slice(&param.index.to_le_bytes());
        body.extend_from_slice(&param.value.to_le_bytes());
    }
    body
}

/// Writes a state into `into`: `context` is called once with room for the context and tells its length.
/// Returns the length of the whole. Allocates nothing.
pub fn write_epoch_state<E: From<RecordError>>(
    into: &mut [u8],
    rest: BesideContext<'_>,
    context: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    let room = into.len();
    let params_bytes = PARAMS_HEADER_BYTES + rest.params.len() * PARAM_BYTES;
    let model_bytes =
        rest.device_model.map_or(0, |model| HEADER_BYTES + model.len().next_multiple_of(super::ALIGN_BYTES));
    let around = 4 * HEADER_BYTES + TSC_BYTES + params_bytes + model_bytes;
    // Up to 7 bytes of padding behind the context.
    let Some(most) = room.checked_sub(around + 7) else {
        return Err(RecordError::Room { needed: around + 7, room }.into());
    };
    let mut writer = Writer { into, at: 0 };
    writer.put(&header(X86_TSC_INFO, TSC_BYTES));
    for number in [rest.tsc.mode, rest.tsc.khz] {
        writer.put(&number.to_le_bytes());
    }
    writer.put(&rest.tsc.elapsed_ns.to_le_bytes());
    writer.put(&rest.tsc.incarnation.to_le_bytes());
    writer.put(&[0; 4]);

    let start = writer.at + HEADER_BYTES;
    let length = context(&mut writer.into[start..start + most])?;
    if length > most {
        return Err(RecordError::Room { needed: around + length, room }.into());
    }
    writer.put(&header(HVM_CONTEXT, length));
    writer.at += length;
    writer.pad(length);

    writer.put(&header(HVM_PARAMS, params_bytes));
    writer.put(&u32::try_from(rest.params.len()).unwrap_or(u32::MAX).to_le_bytes());
    writer.put(&[0; 4]);
    for param in rest.params {
        writer.put(&param.index.to_le_bytes());
        writer.put(&param.value.to_le_bytes());
    }
    if let Some(model) = rest.device_model {
        writer.put(&header(DEVICE_MODEL, model.len()));
        writer.put(model);
        writer.pad(model.len());
    }
    writer.put(&header(END, 0));
    Ok(writer.at)
}

struct Writer<'a> {
    into: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.into[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Behind a body of this length.
    fn pad(&mut self, body_bytes: usize) {
        let padding = body_bytes.next_multiple_of(super::ALIGN_BYTES) - body_bytes;
        self.put(&[0; super::ALIGN_BYTES][..padding]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::append;
    use super::*;

    fn written(rest: BesideContext<'_>, context: &[u8], room: usize) -> Result<Vec<u8>, RecordError> {
        let mut bytes = vec![0xee; room];
        let length = write_epoch_state(&mut bytes, rest, |into| {
            match into.get_mut(..context.len()) {
                Some(place) => place.copy_from_slice(context),
                None => return Err(RecordError::Room { needed: context.len(), room: into.len() }),
            }
            Ok(context.len())
        })?;
        bytes.truncate(length);
        Ok(bytes)
    }

    proptest! {
        #[test]
        fn a_state_that_is_written_is_read(
            context in prop::collection::vec(any::<u8>(), 0..100),
            params in prop::collection::vec((any::<u64>(), any::<u64>()), 0..16),
            numbers in any::<(u32, u32, u64, u32)>(),
            model in prop::option::of(prop::collection::vec(any::<u8>(), 0..50)),
        ) {
            let tsc = Tsc { mode: numbers.0, khz: numbers.1, elapsed_ns: numbers.2, incarnation: numbers.3 };
            let params: Vec<_> = params.into_iter().map(|(index, value)| HvmParam { index, value }).collect();
            prop_assert_eq!(read_params(&params_body(&params)), Some(params.clone()));
            let device_model = model.as_deref();
            let rest = BesideContext { tsc, params: &params, device_model };
            let bytes = written(rest, &context, 1000).unwrap();
            let state = EpochState::read(&bytes).unwrap();
            prop_assert_eq!(&state, &EpochState { tsc, context: &context, params: params.clone(), device_model });
            // Too little room is an error, however little it is.
            for room in 0..bytes.len() {
                prop_assert!(written(rest, &context, room).is_err());
            }
        }
    }

    #[test]
    fn what_is_missing_doubled_or_unknown_is_refused() {
        let params = [HvmParam { index: 1, value: 2 }];
        let rest = BesideContext { tsc: Tsc::default(), params: &params, device_model: None };
        let good = written(rest, b"context", 500).unwrap();
        assert_eq!(EpochState::read(&good).unwrap().param(1), 2);
        assert_eq!(EpochState::read(&good).unwrap().param(7), 0);
        let records = |kinds: &[u32]| {
            let mut bytes = Vec::new();
            for kind in kinds {
                let body: &[u8] = match *kind {
                    X86_TSC_INFO => &[0; 24],
                    HVM_PARAMS => &[0; 8],
                    _ => b"x",
                };
                append(&mut bytes, *kind, body);
            }
            append(&mut bytes, END, &[]);
            bytes
        };
        let all = [X86_TSC_INFO, HVM_CONTEXT, HVM_PARAMS];
        assert!(EpochState::read(&records(&all)).is_ok());
        for left_out in all {
            let some: Vec<u32> = all.into_iter().filter(|kind| *kind != left_out).collect();
            assert!(matches!(EpochState::read(&records(&some)), Err(RecordError::Count(_))));
            let twice: Vec<u32> = all.into_iter().chain([left_out]).collect();
            assert!(matches!(EpochState::read(&records(&twice)), Err(RecordError::Count(_))));
        }
        let models: Vec<u32> = all.into_iter().chain([DEVICE_MODEL, DEVICE_MODEL]).collect();
        assert!(EpochState::read(&records(&models[..4])).unwrap().device_model.is_some());
        assert!(matches!(EpochState::read(&records(&models)), Err(RecordError::Count(_))));
        let later: Vec<u32> = all.into_iter().chain([OPTIONAL | 0x99]).collect();
        assert!(EpochState::read(&records(&later)).is_ok());
        let unknown: Vec<u32> = all.into_iter().chain([0x99]).collect();
        assert!(matches!(EpochState::read(&records(&unknown)), Err(RecordError::Unknown { kind: 0x99, .. })));
    }

    #[test]
    fn parameters_that_do_not_fill_their_record_are_refused() {
        for body in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 7], &[0; 9], &[0xff; 24]] {
            assert_eq!(read_params(body), None);
        }
    }
}
