//! Names for what goes wrong: completion statuses and asynchronous events, each with the likely
//! cause.

use super::verbs::Completion;

/// What a work request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Write = 1,
    Marker = 2,
    Message = 3,
    MarkerReceive = 4,
    MessageReceive = 5,
}

/// The identifier of a work request: what it was, of which data queue pair, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkId {
    pub work: Work,
    /// The data queue pair; 0 for messages.
    pub lane: u8,
    /// Counts requests, or names a slot: 48 bits.
    pub number: u64,
}

const NUMBER_BITS: u32 = 48;

impl WorkId {
    pub(super) fn encode(self) -> u64 {
        (self.work as u64) << 56
            | u64::from(self.lane) << NUMBER_BITS
            | (self.number & ((1 << NUMBER_BITS) - 1))
    }

    /// `None`: no identifier of this fabric.
    pub(super) fn decode(id: u64) -> Option<Self> {
        let work = match id >> 56 {
            1 => Work::Write,
            2 => Work::Marker,
            3 => Work::Message,
            4 => Work::MarkerReceive,
            5 => Work::MessageReceive,
            _ => return None,
        };
        Some(WorkId { work, lane: (id >> NUMBER_BITS) as u8, number: id & ((1 << NUMBER_BITS) - 1) })
    }
}

/// The request was only thrown away because its queue pair had failed before.
pub(super) const FLUSHED: u32 = 5;

/// Name and likely cause of a completion status.
pub(super) fn explain(status: u32) -> (&'static str, &'static str) {
    match status {
        0 => ("IBV_WC_SUCCESS", "nothing went wrong"),
        1 => ("IBV_WC_LOC_LEN_ERR", "a message was longer than the receive, or than the port allows"),
        2 => ("IBV_WC_LOC_QP_OP_ERR", "the device found the request malformed"),
        3 => ("IBV_WC_LOC_EEC_OP_ERR", "the device found the end-to-end context malformed"),
        4 => ("IBV_WC_LOC_PROT_ERR", "local memory is not, or no longer, registered for this"),
        FLUSHED => ("IBV_WC_WR_FLUSH_ERR", "the queue pair had failed or was closed before"),
        6 => ("IBV_WC_MW_BIND_ERR", "binding a memory window was refused"),
        7 => ("IBV_WC_BAD_RESP_ERR", "the peer answered with an unexpected packet"),
        8 => ("IBV_WC_LOC_ACCESS_ERR", "the peer's write was not allowed by local memory"),
        9 => ("IBV_WC_REM_INV_REQ_ERR", "the peer's device found the request invalid (length or operation)"),
        10 => (
            "IBV_WC_REM_ACCESS_ERR",
            "the peer's memory is not open to this write: wrong key, outside the arena, or deregistered",
        ),
        11 => ("IBV_WC_REM_OP_ERR", "the peer's device could not complete the operation"),
        12 => (
            "IBV_WC_RETRY_EXC_ERR",
            "the peer did not acknowledge in time: host dead, network cut, or its queue pair is gone",
        ),
        13 => ("IBV_WC_RNR_RETRY_EXC_ERR", "the peer had no receive ready: it broke the rules of credits"),
        14 => ("IBV_WC_LOC_RDD_VIOL_ERR", "the reliable datagram domains differ"),
        15 => ("IBV_WC_REM_INV_RD_REQ_ERR", "the peer found the reliable datagram request invalid"),
        16 => ("IBV_WC_REM_ABORT_ERR", "the peer aborted the operation"),
        17 => ("IBV_WC_INV_EECN_ERR", "the end-to-end context number is invalid"),
        18 => ("IBV_WC_INV_EEC_STATE_ERR", "the end-to-end context is in the wrong state"),
        19 => ("IBV_WC_FATAL_ERR", "the device failed"),
        20 => ("IBV_WC_RESP_TIMEOUT_ERR", "the peer's response came too late"),
        21 => ("IBV_WC_GENERAL_ERR", "the device failed in a way it does not name"),
        22 => ("IBV_WC_TM_ERR", "tag matching failed"),
        23 => ("IBV_WC_TM_RNDV_INCOMPLETE", "a tag-matched message is incomplete"),
        _ => ("a status unknown to this program", "see the device's documentation"),
    }
}

/// A failed completion in words.
pub(super) fn describe(completion: &Completion) -> String {
    let (name, cause) = explain(completion.status);
    let Completion { queue_pair, vendor_error, id, .. } = completion;
    let what = match WorkId::decode(*id) {
        Some(WorkId { work: Work::Write, lane, number }) => {
            format!("write {number} on data queue pair {lane}")
        }
        Some(WorkId { work: Work::Marker, lane, number }) => {
            format!("the marker in request {number} on data queue pair {lane}")
        }
        Some(WorkId { work: Work::Message, number, .. }) => format!("message {number}"),
        Some(WorkId { work: Work::MarkerReceive, lane, .. }) => {
            format!("receiving a marker on data queue pair {lane}")
        }
        Some(WorkId { work: Work::MessageReceive, .. }) => "receiving a message".into(),
        None => format!("work request {id:#x}"),
    };
    format!("{what} (number {queue_pair}) failed with {name}: {cause} (vendor code {vendor_error:#x})")
}

/// Name of an asynchronous event.
pub(super) fn event_name(kind: u32) -> &'static str {
    const NAMES: [&str; 20] = [
        "completion queue error",
        "queue pair fatal",
        "queue pair request error",
        "queue pair access error",
        "communication established",
        "send queue drained",
        "path migrated",
        "path migration failed",
        "device fatal",
        "port active",
        "port error",
        "LID change",
        "partition key change",
        "subnet manager change",
        "shared receive queue error",
        "shared receive queue limit",
        "last work request reached",
        "client reregistration",
        "GID change",
        "work queue fatal",
    ];
    NAMES.get(kind as usize).copied().unwrap_or("unknown event")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_come_back() {
        for work in [Work::Write, Work::Marker, Work::Message, Work::MarkerReceive, Work::MessageReceive] {
            let id = WorkId { work, lane: 15, number: (1 << NUMBER_BITS) - 1 };
            assert_eq!(WorkId::decode(id.encode()), Some(id));
        }
        assert_eq!(WorkId::decode(0), None);
        assert_eq!(WorkId::decode(u64::MAX), None);
    }

    #[test]
    fn every_status_of_the_library_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = (0..=23).map(|status| explain(status).0).collect();
        assert_eq!(names.len(), 24);
        assert!(names.iter().all(|name| name.starts_with("IBV_WC_")));
        assert!(!explain(24).0.starts_with("IBV_WC_"));
    }

    #[test]
    fn a_failure_names_queue_pair_request_and_cause() {
        let id = WorkId { work: Work::Write, lane: 1, number: 77 }.encode();
        let text = describe(&Completion { id, status: 10, vendor_error: 0x88, len_bytes: 0, queue_pair: 21 });
        for part in ["write 77", "data queue pair 1", "number 21", "IBV_WC_REM_ACCESS_ERR", "key", "0x88"] {
            assert!(text.contains(part), "{part:?} is missing in {text:?}");
        }
    }
}
