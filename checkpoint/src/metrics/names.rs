//! What is measured: each name once, with what it includes and excludes.

macro_rules! names {
    ($(#[$doc:meta])* $enum:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum $enum {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $enum {
            /// All of them, in the order declared.
            pub const ALL: [$enum; [$($name),*].len()] = [$($enum::$variant),*];

            /// The name in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $($enum::$variant => $name,)*
                }
            }
        }
    };
}

names! {
    /// A span of time on the way of an epoch. Reported in microseconds.
    ///
    /// `Stop` to `Resume` follow each other inside `Pause`; what `Pause` has beyond their sum is
    /// the driver's own work between them. A step that fails is recorded like one that succeeds.
    Phase {
        /// The guest's pause call: from asking it to stop to its word that the vCPUs stand and
        /// device I/O is drained.
        Stop = "stop",
        /// Marking the boundary in the guest's output. Not the releases.
        Gate = "gate",
        /// Saving CPU and device state, its checksum included.
        State = "state",
        /// Finding the dirty extents and protecting them again.
        Collect = "collect",
        /// Choosing frames for the pages and encoding the commit slot.
        Place = "place",
        /// Back-pressure: waiting, with the guest paused, until acks and homings have freed enough
        /// frames. Only of epochs that had to.
        Throttle = "throttle",
        /// Copying dirty pages to staging. With direct capture: posting and waiting until the
        /// pages have left guest memory.
        Copy = "copy",
        /// The guest's resume call, to its return.
        Resume = "resume",
        /// The whole pause as the guest feels it: before `Stop` to after `Resume`.
        Pause = "pause",
        /// Posting an epoch's writes, markers and Commit. Excludes the wait in the sender's queue
        /// and the time on the network.
        Post = "post",
        /// From the Commit posted to its Ack handled: the network and the backup.
        Ack = "ack",
        /// What clients wait: from the begin of the pause to the Ack handled and the output
        /// released to the gate. Includes everything above.
        CommitLatency = "commit_latency",
        /// One round of a synchronization, from its first page posted to its RoundAck.
        SyncRound = "sync_round",
        /// From losing a connection to going on over a new one, without the first epoch.
        Reconnect = "reconnect",
        /// Backup: from the last of markers and Commit in to the Ack sent; reading and checking
        /// the slot, the change of the map. Excludes homing.
        BackupCommit = "backup_commit",
        /// Backup: one homing copy, from its begin to the change of the map.
        Homing = "homing",
        /// Backup: from the last sign of life of the primary to its suspicion.
        Detection = "detection",
        /// Backup: from suspicion (or the operator's word) to the fence standing.
        Fence = "fence",
        /// Backup: from asking the arbiter to its grant.
        Grant = "grant",
        /// Backup: from the grant to the standby's word that the guest runs: homing of displaced
        /// pages and activation.
        Activate = "activate",
        /// Backup: from suspicion to the guest running: `Fence`, `Grant` and `Activate`. Excludes
        /// `Detection`.
        Takeover = "takeover",
    }
}

names! {
    /// An amount measured for each epoch.
    Quantity {
        /// Pages placed by an epoch: what was collected in its pause and what was carried over
        /// from epochs that did not commit.
        DirtyPages = "dirty_pages",
        /// Transfers (runs of pages in runs of frames) of an epoch.
        Transfers = "transfers",
        /// Bytes written one-sidedly for an epoch: pages, slot and state.
        EpochBytes = "epoch_bytes",
        /// Bytes of CPU and device state.
        StateBytes = "state_bytes",
        /// Packets that the gate held when the epoch's ack came.
        HeldPackets = "held_packets",
        /// Pages sent in one round of a synchronization.
        SyncRoundPages = "sync_round_pages",
        /// Backup: pages copied home between grant and activation.
        DisplacedPages = "displaced_pages",
    }
}

names! {
    /// How often something happened.
    Counter {
        /// Pauses made for a checkpoint.
        EpochsCaptured = "epochs_captured",
        /// Epochs acked (primary) or committed (backup).
        EpochsCommitted = "epochs_committed",
        /// Epochs that began later than the interval said, by more than a tenth of it.
        LateEpochs = "late_epochs",
        /// Epochs ended early by the dirty-page watermark or the gate's byte bound.
        EarlyEpochs = "early_epochs",
        /// Pauses that were lengthened until there was room for their epoch.
        Throttled = "throttled",
        /// Pauses whose pages found no free frames for the moment and wait for the next epoch.
        Stalls = "stalls",
        /// Epochs larger than all spares: the image was invalidated and built anew.
        Overflows = "overflows",
        /// Pauses in which a step failed; the guest went on and its pages joined the next epoch.
        CaptureFailures = "capture_failures",
        /// Connections established after the first.
        Reconnects = "reconnects",
        /// Synchronizations from nothing, the first included.
        FullSyncs = "full_syncs",
        /// Reconnects that went on from the last committed epoch without a full copy.
        DeltaSyncs = "delta_syncs",
        /// Rounds of all synchronizations.
        SyncRounds = "sync_rounds",
        /// Pages written to the backup, synchronization included.
        PagesSent = "pages_sent",
        /// Bytes written to the backup one-sidedly, synchronization included.
        BytesSent = "bytes_sent",
        /// Homings asked for (primary) or finished (backup).
        Homings = "homings",
        /// Backup: peers or requests refused.
        Refusals = "refusals",
        /// Backup: takeovers that ended with a running guest.
        Takeovers = "takeovers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_positions_match() {
        let names: Vec<_> = Phase::ALL.iter().map(|phase| phase.name()).collect();
        for (position, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, position);
            assert_eq!(names.iter().filter(|name| **name == phase.name()).count(), 1);
        }
    }
}
