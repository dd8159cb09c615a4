//! A running QEMU as a guest.

mod attach;
mod options;
mod ram_file;
mod run_state;
mod savers;
mod seam;

use std::time::{Duration, Instant};

use romulus_checkpoint::guest::{GuestError, GuestEvent};
use romulus_checkpoint::pause_detail::PauseDetail;
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_checkpoint::{GuestLayout, PageIndex};
use romulus_host::tracking::{DirtyRange, DirtyTracker};
use romulus_transport::Memory;
use serde_json::json;

pub use options::{GuestOptions, SaveBy};

use crate::error::QemuError;
use crate::gates::{BufferGate, CardGate};
use crate::process::Process;
use crate::qmp::{Client, Prepared, QmpError};
use crate::stream::RomRecord;
use ram_file::RamFile;
use run_state::RunState;
use savers::Savers;

/// Longest wait for the end of a process whose monitor is closed.
const DEATH_GRACE: Duration = Duration::from_millis(200);
/// How often a refused `cont` is tried.
const RESUME_TRIES: usize = 3;

/// A guest in a QEMU process that somebody else started.
///
/// Its memory is one region for each RAM block, and last the region
/// [`ROM_REGION`](crate::stream::ROM_REGION) with the firmware, which is read once when tracking
/// starts.
pub struct QemuGuest {
    name: String,
    layout: GuestLayout,
    machine: MachineIdentity,
    memory: Vec<Memory>,
    ranges: Vec<DirtyRange>,
    ram_files: Vec<RamFile>,
    rom: RomRecord,
    /// First page of the ROM region.
    rom_first: u64,
    /// Pages of the ROM region, from its first, that nobody collected yet.
    rom_dirty_pages: u64,
    rom_refresh_until: Option<Instant>,
    saves_devices: bool,
    savers: Option<Savers>,
    tracker: Option<Box<dyn DirtyTracker>>,
    /// Between a successful pause and resume.
    paused: bool,
    /// A stop failed and may yet be carried out: only a `cont` that is answered undoes it.
    stop_in_doubt: bool,
    /// Another host may come to run it: it stays paused when this value goes.
    stays_paused: bool,
    run: RunState,
    detail: PauseDetail,
    stop: Prepared,
    cont: Prepared,
    client: Client,
    process: Process,
    reported_death: bool,
    gates: Vec<CardGate>,
    buffers: BufferGate,
    options: GuestOptions,
}

impl QemuGuest {
    /// QEMU's process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// How state is saved in the present epoch and how dirty pages are found, for reports;
    /// empty before tracking.
    pub fn methods(&self) -> (&'static str, &'static str) {
        let saver = self.savers.as_ref().map_or("", Savers::name);
        (saver, self.tracker.as_ref().map_or("", |tracker| tracker.method()))
    }

    fn first_rom_page(&self) -> PageIndex {
        PageIndex(self.rom_first)
    }

    /// Takes in what QEMU has told so far.
    fn absorb_events(&mut self) {
        while let Some(event) = self.client.next_event() {
            self.run.absorb(event);
        }
        if self.run.take_reset() {
            self.rom_refresh_until = Some(Instant::now() + self.options.rom_refresh);
        }
    }

    /// Whether ROM blocks have to be saved with the next state.
    fn rom_is_due(&mut self) -> bool {
        if self.rom_refresh_until.is_some_and(|until| Instant::now() >= until) {
            self.rom_refresh_until = None;
        }
        self.rom_refresh_until.is_some()
    }

    /// Stops the vCPUs; the save of the state may ride along.
    fn stop_vcpus(&mut self, with_save: bool) -> Result<(), QemuError> {
        self.run.expect_stop();
        let ticket = self.client.enqueue(&mut self.stop);
        let mut queued = Ok(());
        if let (true, Some(savers)) = (with_save, &mut self.savers) {
            queued = savers.enqueue(&mut self.client);
        }
        let outcome = self.client.flush().and_then(|()| self.client.wait(ticket, &self.stop));
        self.absorb_events();
        self.run.stop_answered();
        outcome.map_err(QemuError::from).and(queued)
    }

    /// Undoes a stop, whether it succeeded or is in doubt.
    fn run_on(&mut self) -> Result<(), QemuError> {
        if self.stop_in_doubt {
            self.undo_stop()?;
        } else {
            self.resume_vcpus()?;
        }
        self.paused = false;
        self.stays_paused = false;
        Ok(())
    }

    /// A stop that failed must not leave the guest stopped by a late answer: until this succeeds
    /// it is in doubt.
    fn undo_stop(&mut self) -> Result<(), QemuError> {
        self.stop_in_doubt = true;
        if self.client.is_closed() && !self.process.is_alive() {
            return Err(QemuError::Gone { pid: self.pid() });
        }
        if let Some(savers) = &mut self.savers {
            savers.cancel(&mut self.client);
        }
        // Its event may come late.
        self.run.expect_stop();
        self.run.expect_resume();
        let ticket = self.client.enqueue(&mut self.cont);
        let outcome = self.client.flush().and_then(|()| self.client.wait(ticket, &self.cont));
        self.absorb_events();
        self.run.stop_answered();
        self.run.resume_answered(outcome.is_ok());
        // A guest that has ended takes no `cont`, and needs none.
        if !self.run.has_ended() {
            outcome.map_err(|error| self.explain_failed_resume(error))?;
        }
        self.stop_in_doubt = false;
        Ok(())
    }

    /// Lets the vCPUs run again if it was us who stopped them.
    fn resume_vcpus(&mut self) -> Result<(), QemuError> {
        if let Some(savers) = &mut self.savers {
            savers.cancel(&mut self.client);
        }
        self.absorb_events();
        if !self.run.is_ours_to_resume() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for _ in 0..RESUME_TRIES {
            self.run.expect_resume();
            let ticket = self.client.enqueue(&mut self.cont);
            outcome = self.client.flush().and_then(|()| self.client.wait(ticket, &self.cont));
            self.absorb_events();
            self.run.resume_answered(outcome.is_ok());
            if !matches!(outcome, Err(QmpError::Refused { .. })) {
                break;
            }
        }
        outcome.map_err(|error| self.explain_failed_resume(error))
    }

    fn explain_failed_resume(&mut self, error: QmpError) -> QemuError {
        if self.client.is_closed() && !self.process.is_alive() {
            return QemuError::Gone { pid: self.pid() };
        }
        let status = self.client.execute("query-status", json!({}));
        let status = status.ok().and_then(|status| status["status"].as_str().map(str::to_owned));
        QemuError::failed(
            "resuming the guest",
            format!(
                "{error}; the guest is paused (status {}): mend the cause, then resume it with the QMP command cont",
                status.unwrap_or_else(|| "unknown".into())
            ),
        )
    }

    /// As the seam's error: whatever fails because QEMU is gone says so.
    fn seam_error(&self, error: QemuError, what: &str) -> GuestError {
        // A process that dies closes its monitor a moment before its end can be seen.
        let ended = self.client.is_closed() && self.process.wait_end(DEATH_GRACE);
        if !ended && self.process.is_alive() {
            error.guest(what)
        } else {
            QemuError::Gone { pid: self.pid() }.guest(what)
        }
    }

    /// Notes the end of the process once.
    fn notice_death(&mut self) {
        if !self.reported_death && !self.process.is_alive() {
            self.reported_death = true;
            if !self.run.has_ended() {
                let pid = self.pid();
                self.run.report(GuestEvent::Died(format!("QEMU's process {pid} ended")));
            }
        }
    }

    /// Puts back everything that was changed in QEMU, as far as it can be; tells what failed first.
    fn let_go(&mut self) -> Result<(), QemuError> {
        if let Some(mut savers) = self.savers.take() {
            savers.release(&mut self.client);
        }
        let opened = self.buffers.serve(&mut self.client);
        let opened =
            opened.map_err(|error| QemuError::failed("letting go of the output that QEMU holds", error));
        let stopped = match self.tracker.take() {
            Some(mut tracker) => {
                tracker.stop().map_err(|error| QemuError::failed("ending dirty tracking", error))
            }
            None => Ok(()),
        };
        self.rom_refresh_until = None;
        // Of a process that is gone there is nothing to put back.
        if self.process.is_alive() { opened.and(stopped) } else { Ok(()) }
    }
}

impl Drop for QemuGuest {
    fn drop(&mut self) {
        if self.client.is_closed() {
            return;
        }
        if (self.paused || self.stop_in_doubt)
            && !self.stays_paused
            && let Err(error) = self.run_on()
        {
            tracing::error!(%error, "guest left paused");
        }
        if let Err(error) = self.let_go() {
            tracing::warn!(%error, "detaching from the guest");
        }
    }
}
