//! The seam that the checkpoint engine sees.

use std::time::{Duration, Instant};

use romulus_checkpoint::guest::{Guest, GuestError, GuestEvent};
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_checkpoint::{Extent, GuestLayout, PageIndex};
use romulus_host::tracking;
use romulus_transport::Memory;

use super::{QemuGuest, Savers};
use crate::error::QemuError;
use crate::qmp::QmpError;

impl Guest for QemuGuest {
    fn name(&self) -> &str {
        &self.name
    }

    fn layout(&self) -> &GuestLayout {
        &self.layout
    }

    fn machine(&self) -> &MachineIdentity {
        &self.machine
    }

    fn memory(&self) -> &[Memory] {
        &self.memory
    }

    fn memory_registrable(&self) -> bool {
        true
    }

    /// Also reads the ROM blocks, for which the guest is paused for some milliseconds once.
    fn start_tracking(&mut self) -> Result<(), GuestError> {
        if self.tracker.is_some() {
            return Ok(());
        }
        let outcome = self.start();
        if outcome.is_err()
            && let Err(error) = self.let_go()
        {
            tracing::warn!(%error, "taking back a failed start of tracking");
        }
        outcome.map_err(|error| self.seam_error(error, "starting dirty tracking"))
    }

    fn stop_tracking(&mut self) -> Result<(), GuestError> {
        self.let_go().map_err(|error| self.seam_error(error, "ending dirty tracking"))
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.detail.clear();
        let start = Instant::now();
        let with_save = !self.rom_is_due();
        let outcome = self.stop_vcpus(with_save);
        self.detail.note("qmp_stop", start);
        match outcome {
            Ok(()) => {
                self.paused = true;
                Ok(())
            }
            Err(error) => {
                // The stop may yet be carried out: whatever it did is undone, here or by `resume`.
                if let Err(error) = self.undo_stop() {
                    tracing::error!(%error, "after a failed pause");
                }
                Err(self.seam_error(error, "pausing the guest"))
            }
        }
    }

    fn save_state(&mut self, into: &Memory) -> Result<u64, GuestError> {
        if !self.paused {
            return Err(GuestError::Failed {
                what: "saving state".into(),
                why: "the guest is not paused".into(),
            });
        }
        let start = Instant::now();
        let with_rom = self.rom_is_due();
        let Some(savers) = &mut self.savers else {
            return Err(GuestError::Failed {
                what: "saving state".into(),
                why: "tracking is not started".into(),
            });
        };
        let outcome = savers.save(&mut self.client, into, &mut self.rom, with_rom);
        // Whatever fails from here on: the record tells of a change once.
        if let Ok(saved) = &outcome {
            self.rom_dirty_pages = self.rom_dirty_pages.max(saved.rom_pages);
        }
        // Behind the save, whose answer may be on its way already. The guest stands still.
        let marked = self.buffers.serve_mark(&mut self.client);
        self.absorb_events();
        self.detail.note("qmp_save", start);
        if let Err(error) = marked {
            return Err(self.seam_error(error, "marking the output that QEMU holds"));
        }
        let saved = outcome.map_err(|error| self.seam_error(error, "saving the state of CPU and devices"))?;
        Ok(saved.len_bytes)
    }

    fn populated(&self, pages: &mut Vec<Extent>) {
        for (range, file) in self.ranges.iter().zip(&self.ram_files) {
            file.populated(range.first, pages);
        }
        let rom_pages = self.layout.pages() - self.rom_first;
        pages.push(Extent { first: PageIndex(self.rom_first), pages: rom_pages });
    }

    fn collect(&mut self, dirty: &mut Vec<Extent>) -> Result<(), GuestError> {
        let Some(tracker) = &mut self.tracker else {
            return Err(GuestError::Failed {
                what: "collecting dirty pages".into(),
                why: "nothing is tracked".into(),
            });
        };
        let start = Instant::now();
        let outcome =
            if self.paused { tracker.collect_stopped(dirty) } else { tracker.collect_running(dirty) };
        if let Err(error) = outcome {
            let error = QemuError::failed("dirty tracking", error);
            return Err(self.seam_error(error, "collecting dirty pages"));
        }
        if self.rom_dirty_pages > 0 {
            dirty.push(Extent { first: self.first_rom_page(), pages: self.rom_dirty_pages });
            self.rom_dirty_pages = 0;
        }
        if self.paused {
            self.detail.note("scan", start);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        let start = Instant::now();
        let outcome = self.run_on();
        self.detail.note("qmp_cont", start);
        outcome.map_err(|error| self.seam_error(error, "resuming the guest"))
    }

    fn leave_paused(&mut self) {
        self.stays_paused = self.paused;
    }

    fn poll_event(&mut self) -> Option<GuestEvent> {
        match self.client.pump(Duration::ZERO) {
            Ok(_) => {}
            Err(QmpError::Closed) => self.notice_death(),
            Err(error) => tracing::warn!(%error, "reading QEMU's events"),
        }
        if !self.client.is_closed()
            && let Err(error) = self.buffers.serve(&mut self.client)
        {
            tracing::warn!(%error, "letting go of output that QEMU holds");
        }
        self.absorb_events();
        self.run.next()
    }

    fn destroy(&mut self) -> Result<(), GuestError> {
        self.tracker = None;
        self.reported_death = true;
        // Never to run here again, destroyed or not.
        self.stays_paused = true;
        self.process.kill().map_err(|error| error.guest("destroying the guest"))
    }

    fn last_pause_detail(&self) -> &[(&'static str, Duration)] {
        self.detail.steps()
    }
}

impl QemuGuest {
    fn start(&mut self) -> Result<(), QemuError> {
        let rom_bytes = self.rom.memory().len_bytes() as u64;
        self.savers = Some(Savers::new(&mut self.client, &self.options, self.saves_devices, rom_bytes)?);
        self.read_rom()?;
        let pid = u32::try_from(self.pid()).unwrap_or_default();
        let failed = |error: tracking::TrackingError| QemuError::failed("dirty tracking", error);
        let mut tracker = tracking::open(pid, &self.ranges, &self.options.tracking).map_err(failed)?;
        tracker.start().map_err(failed)?;
        self.tracker = Some(tracker);
        Ok(())
    }

    /// Pauses the guest for one whole save, for the ROM blocks in it.
    fn read_rom(&mut self) -> Result<(), QemuError> {
        let room = usize::try_from(self.options.state_max_bytes).unwrap_or(usize::MAX);
        let scratch = Memory::anonymous(room);
        if let Err(error) = self.stop_vcpus(false) {
            self.undo_stop()?;
            return Err(error);
        }
        self.paused = true;
        let saved = match &mut self.savers {
            Some(savers) => savers.save_with_rom(&mut self.client, &scratch, &mut self.rom),
            None => Err(QemuError::failed("reading firmware", "tracking is not started")),
        };
        self.absorb_events();
        self.run_on()?;
        // Whoever starts tracking sends everything; pages that are in already are sent again.
        self.rom_dirty_pages = saved?.rom_pages;
        Ok(())
    }
}
