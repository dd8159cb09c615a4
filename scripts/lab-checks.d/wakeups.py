#!/usr/bin/env python3
"""The limit beside which epochs are late: how often this machine itself wakes a thread too late that
sleeps for an interval again and again, at real-time priority, while the lab runs. Until SIGTERM.

    wakeups.py INTERVAL_MS FILE    writes what it saw to FILE, as JSON
"""

import json
import os
import signal
import sys
import time


def stolen_s():
    """Time that the hypervisor gave to others, on all cores."""
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def main():
    interval_s = float(sys.argv[1]) / 1e3
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError as error:
        print(f"wakeups.py: no real-time priority ({error.strerror}), so it is as late as any process", file=sys.stderr)
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    wakeups = late = 0
    longest_s = 0.0
    stolen = stolen_s()
    last = time.monotonic()
    while not over:
        time.sleep(max(0.0, last + interval_s - time.monotonic()))
        now = time.monotonic()
        too_long_s = now - last - interval_s
        last = now
        wakeups += 1
        late += too_long_s > interval_s / 10  # as an epoch is late
        longest_s = max(longest_s, too_long_s)
    seen = {"wakeups": wakeups, "late": late, "longest_ms": 1e3 * longest_s, "stolen_s": stolen_s() - stolen}
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(seen, file)
    print(
        "this machine by itself, beside it: {wakeups} wake-ups, {late} late, the longest by {longest_ms:.1f} ms; "
        "{stolen_s:.1f} s taken by the hypervisor".format(**seen)
    )


main()
