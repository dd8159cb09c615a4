#!/usr/bin/env python3
"""Shows Romulus at work on two Xen hosts (emulated, see docs/labs.md): a domain is protected
over RDMA, the machine of its host is killed, and the domain goes on at the backup. The JSON is
that of scripts/demo without --xen."""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time

sys.dont_write_bytecode = True

from hosts import HERE, Failure, XenLab, wait_for  # noqa: E402
from protection import BACKUP, PRIMARY, Protection, figures  # noqa: E402

DOMAIN, NUMBER, SERVER_PORT = "demo", 101, 7
UNPROTECTED_S = 5
STEP_MS = 10


def parse():
    parser = argparse.ArgumentParser(prog="scripts/demo --xen", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="how often to start, protect and kill (1)")
    parser.add_argument("--domain", choices=("pvh", "hvm"), default="pvh", help="kind of domain: hvm has a device model, and boots for minutes (pvh)")
    parser.add_argument("--guest-mib", type=int, default=128, metavar="MIB", help="memory of the domain (128)")
    parser.add_argument("--check-mib", type=int, default=16, metavar="MIB", help="of it, what the workload fills and checks (16)")
    parser.add_argument("--interval", type=float, default=100, metavar="MS", help="length of an epoch (100)")
    parser.add_argument("--dirty-mib-per-second", type=float, default=1, metavar="MIB", help="rate of rewritten pages (1)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="how long it is protected before the kill (20)")
    parser.add_argument("--suspect-ms", type=int, metavar="MS", help="silence after which the backup acts; emulated hosts are slow (10000, with hvm 40000)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="memory of each host, half of it for dom0 (2048)")
    parser.add_argument("--json", type=os.path.abspath, metavar="FILE", help="write what was measured")
    parser.add_argument("--image-dir", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--romulus", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.suspect_ms is None:
        # Its standby's host starts three device models one after another.
        options.suspect_ms = 40000 if options.domain == "hvm" else 10000
    return options


class Client:
    """client.py in the lab's network."""

    def __init__(self, lab):
        words = lab.words(0, [sys.executable, f"{HERE}/client.py", f"10.77.0.{NUMBER}", SERVER_PORT])
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        lab.children.append(self.process)

    def ask(self):
        """What it asked and heard since the last time; it must go on."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and what it said last tells why
        said = self.heard()
        if "survived" in said:
            raise Failure(f"the client has ended: {said}")
        return said

    def finish(self):
        """The same once it has ended, which it is told to do."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended by itself
        said = self.heard()
        self.process.wait()
        return said

    def heard(self):
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise Failure(f"the client ended with status {self.process.wait()}, and without a word")


def run_once(options, report):
    with XenLab(memory_mib=options.memory) as lab:
        settings = {"check_mib": options.check_mib, "dirty_mib_per_second": options.dirty_mib_per_second}
        lab.domain(PRIMARY, options.image_dir, DOMAIN, options.guest_mib, NUMBER, hvm=options.domain == "hvm", **settings)
        console = lab.console(PRIMARY, DOMAIN)
        print(f"  {'an HVM' if options.domain == 'hvm' else 'a PVH'} domain of {options.guest_mib} MiB runs, checking {options.check_mib} MiB of its memory", flush=True)
        client = Client(lab)
        client.ask()
        time.sleep(UNPROTECTED_S)
        unprotected = client.ask()["latency_ms"]
        print(f"  a client keeps one connection to it; answers take {unprotected['p50']:.1f} ms, p99 {unprotected['p99']:.1f} ms", flush=True)

        protection = Protection(lab, options.romulus, DOMAIN, options.interval, options.suspect_ms, disks=options.domain == "hvm")
        began = time.monotonic()
        protection.start()
        print(f"  protected after {time.monotonic() - began:.1f} s: a full copy and a trial load", flush=True)
        protect_for_a_while(options, protection, console, client, report)
        protected = client.ask()["latency_ms"]

        killed = time.monotonic()
        lab.kill_host(PRIMARY)
        print(f"  the primary host is dead; epoch {report['failover']['killed_at_epoch']} was its last acknowledged", flush=True)
        try:
            watch_takeover(protection, killed, report)
            check_guest(options, lab, console, report)
        finally:
            said = client.finish()
            report["client"] = {
                "connections": 1,
                "survived": said["survived"],
                **{name: said[name] for name in ("requests", "answers_taken_back", "duplicates", "longest_silence_ms")},
                "added_latency_ms": {name: round(max(0.0, protected[name] - unprotected[name]), 3) for name in protected},
            }
        if said["complaints"] or not said["survived"] or said["answers_taken_back"] or said["duplicates"]:
            raise Failure(f"the client: {said}")
        print(f"  the client's connection went on: {said['requests']} requests, none taken back, {said['longest_silence_ms']:.0f} ms of silence", flush=True)


def protect_for_a_while(options, protection, console, client, report):
    client.ask()  # from here on answers count as protected
    _, first = console.reports()[-1]
    began = time.monotonic()
    time.sleep(options.seconds + random.random())
    _, last = console.reports()[-1]
    host_ms, guest_ms = round((time.monotonic() - began) * 1e3), last["clock_ms"] - first["clock_ms"]
    status = protection.protect_status() or {}
    if status.get("state") != "protected":
        raise Failure(f"the domain is not protected any more: {status.get('state')} {status.get('state_reason')}\n{protection.said()}")
    report.update(figures(status))
    report["guest_clock"] = {"host_ms": host_ms, "guest_ms": guest_ms, "rate": round(guest_ms / host_ms, 3)}
    report["failover"]["killed_at_epoch"] = status["epoch"]
    pause = report["pause_us"]
    print(f"  {report['epochs_committed']} checkpoints, {report['checkpoints_per_second']:.1f} a second; pause p50 {pause['p50']} us, p99 {pause['p99']} us", flush=True)


def watch_takeover(protection, killed, report):
    def active():
        status = protection.backup_status() or {}
        return status if status.get("state") == "active" else None

    status = protection.expect("a takeover", protection.backup, active)
    seen_ms = (time.monotonic() - killed) * 1e3
    takeover = status.get("takeover") or {}
    # Romulus's own clock knows when it acted; asking an emulated host for it takes a second.
    silence_ms, takeover_ms = takeover.get("total_ms", seen_ms), takeover.get("takeover_ms", 0.0)
    report["failover"].update(
        resumed_at_epoch=status["epoch"], detection_ms=silence_ms - takeover_ms, takeover_ms=takeover_ms, total_ms=silence_ms
    )
    print(f"  the backup resumed it {silence_ms:.0f} ms after the last sign of life, from epoch {status['epoch']} ({takeover_ms:.0f} ms of it takeover)", flush=True)


def check_guest(options, lab, console, report):
    """Lets the resumed domain check all of its pages once, and compares its counter."""
    path = wait_for("the resumed domain's console", lambda: lab.run(BACKUP, "sh", "-c", "ls -t /var/log/xen/console/guest-*.log", check=False).split())[0]
    resumed = lab.follow(BACKUP, path)
    _, before = console.reports()[-1]

    def checked():
        reports = [report for _, report in resumed.reports()]
        if not reports:
            return None
        # The pass that was under way at the takeover does not count, the next one does.
        passes = reports[-1]["passes"] - reports[0]["passes"] - 1
        return (reports[0], reports[-1], passes) if passes >= 1 or reports[-1]["corrupt"] else None

    first, last, passes = wait_for("a check of all pages after the takeover", checked)
    epoch_ms = options.interval + max(report["ack_us"]["max"], report["pause_us"]["max"]) / 1e3
    report["guest_check"] = check = {
        "counter_before": before["counter"],
        "counter_after": first["counter"],
        "gap": max(0, before["counter"] + 1 - first["counter"]),
        "gap_allowed": math.ceil(epoch_ms / STEP_MS) + 2,
        "corrupt_pages": last["corrupt"],
        "passes_after": passes,
    }
    if check["corrupt_pages"]:
        raise Failure(f"the domain found {check['corrupt_pages']} corrupt pages")
    if check["gap"] > check["gap_allowed"]:
        raise Failure(f"the domain lost {check['gap']} steps, the last uncommitted epoch can explain {check['gap_allowed']}")
    print(f"  it goes on at step {check['counter_after']} (step {check['counter_before']} was the last seen before), all its pages are intact", flush=True)


def main():
    options = parse()
    runs = []
    for number in range(1, options.runs + 1):
        print(f"Run {number} of {options.runs}", flush=True)
        report = {
            "guest": {"kind": "xen", "accelerator": "tcg", "machine": options.domain, "memory_mib": options.guest_mib},
            "fabric": "rdma",
            "interval_ms": options.interval,
            "failover": {"killed_at_epoch": 0, "resumed_at_epoch": 0, "detection_ms": 0.0, "takeover_ms": 0.0, "total_ms": 0.0},
        }
        runs.append(report)
        try:
            run_once(options, report)
        except Failure as failure:
            report["failure"] = str(failure)
            print(f"  FAILED: {failure}", flush=True)
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump({"runs": runs}, file, indent=2)
                file.write("\n")
    good = sum("failure" not in report for report in runs)
    print(f"\ndomains that went on: {good} of {len(runs)}", flush=True)
    return 0 if good == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
