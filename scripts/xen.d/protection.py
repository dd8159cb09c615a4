"""A domain of a Xen lab under the protection of Romulus: its start, its status, its figures."""

import os
import tempfile

from hosts import Failure, wait_for

PRIMARY, BACKUP = 1, 2
PORT = 7700
PROTECT_SOCKET, BACKUP_SOCKET = "/run/romulus-protect.sock", "/run/romulus-backup.sock"


class Protection:
    """`romulus backup` on one host, `romulus protect` on the other, over RDMA. There is no file
    that both hosts reach, so nobody decides between them, and only one acts by itself: the backup,
    which takes over, or the primary, which goes on alone."""

    def __init__(self, lab, program, domain, interval_ms, suspect_ms, acts="backup", disks=False):
        self.lab = lab
        self.program = os.path.abspath(program)
        self.logs = {name: tempfile.TemporaryFile(mode="w+") for name in ("backup", "protect")}
        common = ["--fabric", "rdma", "--arbiter", "none"]
        takeover = ["--takeover", "automatic", "--accept-split-brain"] if acts == "backup" else ["--takeover", "manual"]
        solo = "manual" if acts == "backup" else "automatic"
        self.backup_command = [
            self.program, "backup", "--standby", "xen", "--listen", f"10.77.0.{BACKUP}:{PORT}", "--host", "backup", *common,
            "--control", BACKUP_SOCKET, *takeover, "--suspect-after-ms", str(suspect_ms),
            *(["--allow-standby-disks"] if disks else []),
        ]  # fmt: skip
        self.protect_command = [
            self.program, "protect", "--guest", f"xen:{domain}", "--backup", f"10.77.0.{BACKUP}:{PORT}", "--host", "primary", *common,
            "--control", PROTECT_SOCKET, "--solo", solo, "--interval-ms", str(interval_ms), "--suspect-after-ms", str(suspect_ms * 6 // 10),
        ]  # fmt: skip
        self.backup = self.protect = None

    def start(self):
        self.start_backup()
        self.start_protect()

    def start_backup(self):
        self.backup = self.lab.start(BACKUP, *self.backup_command, log=self.logs["backup"])
        self.expect("a listening backup", self.backup, lambda: self.backup_status())

    def start_protect(self):
        self.protect = self.lab.start(PRIMARY, *self.protect_command, log=self.logs["protect"])
        self.expect_protected()

    def expect_protected(self):
        self.expect("protection", self.protect, lambda: (self.protect_status() or {}).get("state") == "protected")

    def expect(self, what, process, look):
        def alive():
            if process.poll() is not None:
                raise Failure(f"{what}: Romulus ended with status {process.returncode}: {self.said()}")
            return look()

        try:
            return wait_for(what, alive, every_s=3)  # asking an emulated host costs it a good part of a second
        except Failure as failure:
            raise Failure(f"{failure}\n{self.said()}") from failure

    def said(self):
        texts = []
        for name, file in self.logs.items():
            file.seek(0)
            texts.append(f"romulus {name} said: {file.read()[-1500:].strip()}")
        return "\n".join(texts)

    def protect_status(self):
        return self.lab.status(PRIMARY, self.program, PROTECT_SOCKET)

    def backup_status(self):
        return self.lab.status(BACKUP, self.program, BACKUP_SOCKET)


def figures(status):
    """Of a status of `romulus protect`: what the JSON of a demonstration says of protection."""
    none = {"p50": 0, "p99": 0, "max": 0}
    return {
        "epochs_committed": status.get("epochs_committed", 0),
        "checkpoints_per_second": status.get("checkpoints_per_second", 0.0),
        "pause_us": status.get("pause_us", none),
        "ack_us": status.get("ack_us", none),
        "phases_us": {phase["phase"]: phase["us"] for phase in status.get("phases_us", [])},
        "dirty_pages_per_epoch": status.get("dirty_pages", none),
        "epochs_late": status.get("late_epochs", 0),
    }
