#!/usr/bin/env python3
"""Kills Romulus on the primary Xen host with SIGKILL at random moments, by turns from its start on and
from when the domain is protected, and checks each time that the domain runs on and can be protected
again; then kills the backup's host at random moments, and checks that the primary says that its
domain runs unprotected."""

import argparse
import json
import os
import random
import sys
import time

sys.dont_write_bytecode = True

from hosts import Failure, XenLab, wait_for  # noqa: E402
from protection import BACKUP, PRIMARY, Protection  # noqa: E402

DOMAIN, NUMBER = "kills", 103
# So many steps, of 10 ms each where nothing is slow, show that it runs.
STEPS = 10


def parse():
    parser = argparse.ArgumentParser(prog="scripts/xen-kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="of Romulus on the primary (30)")
    parser.add_argument("--backups", type=int, default=3, metavar="N", help="hosts of backups to kill, each in a new lab (3)")
    parser.add_argument("--interval", type=float, default=100, metavar="MS", help="length of an epoch (100)")
    parser.add_argument("--within", type=float, default=15, metavar="S", help="a kill comes this long after the start, or after protection began, at most (15)")
    parser.add_argument("--suspect-ms", type=int, default=10000, metavar="MS", help="silence after which a host acts (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (1)")
    parser.add_argument("--json", type=os.path.abspath, metavar="FILE", help="write what came of each kill")
    parser.add_argument("--image-dir", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--romulus", required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def runs_on(lab, console, patience_s=300):
    """Waits until the domain has made steps beyond those it has made by now; fails on corrupt pages."""
    began, made = time.monotonic(), lab.counter(PRIMARY, DOMAIN)

    def stepped():
        # Of lines that are still on their way none reports a step that was not made yet.
        return next((report for _, report in reversed(console.reports(began)) if report["counter"] >= made + STEPS), None)

    report = wait_for("steps of the domain after the kill", stepped, patience_s)
    if report["corrupt"]:
        raise Failure(f"the domain found {report['corrupt']} corrupt pages")


def domain(options, lab):
    lab.domain(PRIMARY, options.image_dir, DOMAIN, 128, NUMBER, check_mib=16, dirty_mib_per_second=1)
    return lab.console(PRIMARY, DOMAIN)


def noted(lab, domid):
    """Whether xenstore says that somebody has the domain."""
    return "owner" in lab.run(PRIMARY, "xenstore-ls", f"/local/domain/{domid}/romulus", check=False)


def kill_romulus(options, moments):
    """All kills in one lab, of one domain."""
    outcomes = []
    with XenLab() as lab:
        console = domain(options, lab)
        domid = lab.run(PRIMARY, "xl", "domid", DOMAIN).strip()
        for number in range(1, options.kills + 1):
            protection = Protection(lab, options.romulus, DOMAIN, options.interval, options.suspect_ms, acts="primary")
            protection.start_backup()
            # The process's own number is told by the shell that becomes it.
            words = ["sh", "-c", 'echo $$ >/run/kills.pid; exec "$@"', "sh", *protection.protect_command]
            lab.run(PRIMARY, "rm", "-f", "/run/kills.pid")
            protection.protect = lab.start(PRIMARY, *words, log=protection.logs["protect"])
            pid = wait_for("Romulus's start", lambda: lab.run(PRIMARY, "cat", "/run/kills.pid", check=False).strip(), every_s=0.2)
            if number % 2 == 0:
                protection.expect_protected()
            time.sleep(moments.uniform(0, options.within))
            state = (protection.protect_status() or {}).get("state", "starting")
            if protection.protect.poll() is not None:
                raise Failure(f"Romulus ended by itself before kill {number}: {protection.said()}")
            lab.run(PRIMARY, "kill", "-KILL", pid)
            protection.protect.wait()
            runs_on(lab, console)
            # The guard takes the note away only after the log of written pages is off, and no
            # suspension is in doubt any more.
            wait_for("the end of the guard's work", lambda: not noted(lab, domid), patience_s=300)
            protection.backup.kill()
            protection.backup.wait()
            outcomes.append({"state": state, "runs": True})
            print(f"kill {number}: it was {state}; the domain runs on", flush=True)
        protection = Protection(lab, options.romulus, DOMAIN, options.interval, options.suspect_ms, acts="primary")
        protection.start()
        print("after the last kill the domain was protected again", flush=True)
    return outcomes


def kill_backup(options, moments):
    with XenLab() as lab:
        console = domain(options, lab)
        protection = Protection(lab, options.romulus, DOMAIN, options.interval, options.suspect_ms, acts="primary")
        protection.start()
        time.sleep(moments.uniform(0, options.within))
        lab.kill_host(BACKUP)
        status = protection.expect("word that the backup is lost", protection.protect, lambda: unprotected(protection))
        runs_on(lab, console)
        print(f"a backup's host was killed: the primary says {status['state']}, the domain runs on", flush=True)
        return {"state": status["state"], "runs": True}


def unprotected(protection):
    status = protection.protect_status() or {}
    return status if status.get("state") == "solo" else None


def main():
    options = parse()
    moments = random.Random(options.seed)
    result = {"seed": options.seed, "romulus": [], "backups": []}
    try:
        result["romulus"] = kill_romulus(options, moments) if options.kills else []
        result["backups"] = [kill_backup(options, moments) for _ in range(options.backups)]
    except Failure as failure:
        result["failure"] = str(failure)
        print(f"FAILED (--seed {options.seed}): {failure}", file=sys.stderr, flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
    return 1 if "failure" in result else 0


if __name__ == "__main__":
    sys.exit(main())
