#!/usr/bin/env python3
"""Protects the same domain with the same workload by stock `xl remus` and by Romulus, on the same
two Xen hosts (emulated, see docs/labs.md) at the same interval, and measures both alike: the
guest's own probe counts and times its suspensions, the host's card counts the bytes sent.
`xl remus` sends over TCP without holding output or disks back (-n -d: it needs kernel modules and
DRBD for these), Romulus over RDMA with the gate its options say."""

import argparse
import json
import os
import subprocess
import sys
import time

sys.dont_write_bytecode = True

from hosts import HERE, Failure, XenLab, wait_for  # noqa: E402
from protection import BACKUP, PRIMARY, Protection, figures  # noqa: E402

DOMAIN, NUMBER = "beside", 102
# A first checkpoint is a full copy; figures begin after so many.
WARM_UP = 5
# The probe must see nothing for so long before anybody protects the domain.
UNPROTECTED_S = 10


def parse():
    parser = argparse.ArgumentParser(prog="scripts/xen-beside", description=__doc__)
    parser.add_argument("--guest-mib", type=int, default=128, metavar="MIB", help="memory of the domain (128)")
    parser.add_argument("--check-mib", type=int, default=16, metavar="MIB", help="of it, what the workload fills and checks (16)")
    parser.add_argument("--interval", type=int, default=100, metavar="MS", help="length of an epoch (100)")
    parser.add_argument("--dirty-mib-per-second", type=float, default=1, metavar="MIB", help="rate of rewritten pages (1)")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="how long each is measured (30)")
    parser.add_argument("--attempts", type=int, default=5, metavar="N", help="how often to try when one crashes (5)")
    parser.add_argument("--only", choices=["xl-remus", "romulus"], help="measure only one of them")
    parser.add_argument("--suspect-ms", type=int, default=10000, metavar="MS", help="silence after which Romulus's backup acts (10000)")
    parser.add_argument("--json", type=os.path.abspath, metavar="FILE", help="write what was measured")
    parser.add_argument("--image-dir", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--romulus", required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def percentiles(values):
    values = sorted(values)
    at = lambda part: values[min(len(values) - 1, int(len(values) * part))] if values else 0  # noqa: E731
    return {"p50": at(0.5), "p99": at(0.99), "max": at(1)}


def measure(options, lab, console, alive):
    """The figures of a protection that has begun. `alive` raises when it ends."""

    def warm():
        alive()
        return len(console.pauses_us(began, time.monotonic())) >= WARM_UP

    began = time.monotonic()
    wait_for(f"{WARM_UP} suspensions of the guest", warm)
    sent, began = lab.sent_bytes(PRIMARY), time.monotonic()
    _, first = console.reports()[-1]
    while time.monotonic() < began + options.seconds:
        alive()
        time.sleep(0.2)
    sent, ended = lab.sent_bytes(PRIMARY) - sent, time.monotonic()
    _, last = console.reports()[-1]
    pauses = console.pauses_us(began, ended)
    if not pauses:
        raise Failure("the guest was not suspended once while it was measured")
    seconds = ended - began
    return {
        "seconds": round(seconds, 1),
        "checkpoints": len(pauses),
        "checkpoints_per_second": round(len(pauses) / seconds, 2),
        "guest_stopped_us": percentiles([stopped for stopped, _ in pauses]),
        "guest_away_us": percentiles([away for _, away in pauses]),
        "sent_bytes": sent,
        "sent_bytes_per_checkpoint": sent // len(pauses),
        "workload_steps_per_second": round((last["counter"] - first["counter"]) / seconds, 1),
        "corrupt_pages": last["corrupt"],
    }


def xl_remus(options, lab, console):
    receiver = lab.start(BACKUP, f"{HERE}/remus-pipe", "receive")
    wait_for("the receiver", lambda: lab.run(BACKUP, "ss", "-Hltn", "sport", "=", ":18500").strip())
    words = ["xl", "remus", "-F", "-n", "-d", "-i", options.interval, "-s", "", DOMAIN, f"{HERE}/remus-pipe"]
    process = subprocess.Popen(lab.words(PRIMARY, words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lab.children.append(process)

    def alive():
        if process.poll() is not None:
            raise Failure(f"xl remus ended with status {process.returncode}: {process.stderr.read()[-600:]}")

    try:
        return measure(options, lab, console, alive)
    finally:
        receiver.kill()  # first: it would resume its copy when the stream ends
        receiver.wait()
        process.kill()
        process.wait()


def romulus(options, lab, console):
    protection = Protection(lab, options.romulus, DOMAIN, options.interval, options.suspect_ms)
    try:
        protection.start()

        def alive():
            for process in (protection.backup, protection.protect):
                if process.poll() is not None:
                    raise Failure(f"Romulus ended with status {process.returncode}: {protection.said()}")

        measured = measure(options, lab, console, alive)
        return {**measured, "own_figures": figures(protection.protect_status() or {})}
    finally:
        for process in (protection.backup, protection.protect):
            if process:
                process.kill()
                process.wait()


def attempt(options, protect):
    """One try on hosts of its own, so that nothing of another try is left. With what it measured, or with why not."""
    with XenLab() as lab:
        settings = {"check_mib": options.check_mib, "dirty_mib_per_second": options.dirty_mib_per_second, "probe": "true"}
        lab.domain(PRIMARY, options.image_dir, DOMAIN, options.guest_mib, NUMBER, **settings)
        console = lab.console(PRIMARY, DOMAIN)
        wait_for("the probe", lambda: console.says("romulus probe"))
        began = time.monotonic()
        time.sleep(UNPROTECTED_S)
        if false := console.pauses_us(began, time.monotonic()):
            raise Failure(f"the probe sees suspensions of a guest that nobody suspends: {false}")
        return protect(options, lab, console)


def main():
    options = parse()
    settings = ("guest_mib", "check_mib", "interval", "dirty_mib_per_second", "seconds")
    result = {"settings": {name: getattr(options, name) for name in settings}}
    revision = subprocess.run(["git", "-C", HERE, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if revision.returncode == 0:
        result["revision"] = revision.stdout.strip()
    for name, protect in (("xl-remus", xl_remus), ("romulus", romulus)):
        if options.only not in (None, name):
            continue
        crashes = []
        result[name] = {"attempts": 0, "failures": crashes}
        for number in range(1, options.attempts + 1):
            result[name]["attempts"] = number
            try:
                result[name].update(attempt(options, protect))
                break
            except Failure as failure:
                crashes.append(str(failure))
                print(f"{name}: attempt {number}: {failure}", file=sys.stderr, flush=True)
        text = json.dumps(result, indent=2)
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                file.write(text + "\n")
    print(text)
    return 0 if all("checkpoints" in result[name] for name in ("xl-remus", "romulus") if name in result) else 1


if __name__ == "__main__":
    sys.exit(main())
