#!/usr/bin/env python3
"""Judges the JSON files that romulus-perf wrote on the hosts of a lab.

    verdict.py FOLDER killed NAME             one backup whose primary's host was killed
    verdict.py FOLDER zombie NAME OUTCOME     a primary that was stopped and woke as a zombie
    verdict.py FOLDER affinity                pinned threads, by the kernel's word
    verdict.py FOLDER table NAME...           a line of figures for each protected run
"""

import json
import os
import sys


def result(folder, name):
    with open(os.path.join(folder, name + ".json")) as file:
        return json.load(file)["runs"][0]["result"]


def demand(holds, text, about):
    if not holds:
        sys.exit(f"error: {text}: {json.dumps(about)}")


def exact(backup):
    verified = backup["verified"]
    demand(backup["outcome"] == "taken_over", "no takeover", backup["why"])
    demand(verified and verified["exact"], "the image is not the guest at the committed pause", verified)
    ahead = [backup["last_output_pause"], verified["pause"]]
    demand(backup["output_right"] and ahead[0] <= ahead[1], "output ran ahead of the commit", ahead)
    demand(backup["outputs"] > 0, "no output of the guest was heard", backup["outputs"])


def killed(folder, name):
    backup = result(folder, name)
    exact(backup)
    takeover = backup["takeover"]
    print(
        f"epoch {backup['epoch']} exact, last output of pause {backup['last_output_pause']} of "
        f"{backup['verified']['pause']}; detected after {takeover['detection_ms']:.0f} ms, fence "
        f"{takeover['fence_ms']:.1f} ms, {takeover['displaced_pages']} pages home in {takeover['copy_ms']:.0f} ms"
    )


def zombie(folder, name, outcome):
    backup = result(folder, f"zombie-{name}-backup")
    primary = result(folder, f"zombie-{name}-primary")
    exact(backup)
    held, met = backup["held"], primary["zombie"]
    demand(held["unchanged"] and held["verified_again"]["exact"], "the image changed", held)
    demand(backup["epoch"] < 20, "the half-sent epoch was committed", backup["epoch"])
    demand(met and met["bytes_before"] > 0 and met["bytes_after"] > 0, "the epoch was not cut in half", met)
    named = [error for error in met["errors"] if "connection ended" in error]
    demand(named, "the zombie's writes did not fail by name", met)
    demand(primary["outcome"] == outcome, f"the zombie ended otherwise than {outcome}", primary["why"])
    demand(primary["guest_destroyed"] == (outcome == "taken_over"), "the zombie's guest", primary["guest_destroyed"])
    demand(not primary["ran_alone"], "the zombie let its output go", primary["released_pause"])
    released = [primary["released_pause"], backup["verified"]["pause"]]
    demand(released[0] <= released[1], "the zombie released output that was not committed", released)
    guest = "destroyed" if primary["guest_destroyed"] else "left, its output held"
    print(f"zombie ({name}): image unchanged, sha256 {held['hash_after'][:16]}...; guest {guest}; {named[0]}")


def affinity(folder):
    for role, wanted in [("primary", ["capture", "sender"]), ("backup", ["committer", "homing-0"])]:
        threads = {thread["name"]: thread for thread in result(folder, f"affinity-{role}")["threads"]}
        for name in wanted:
            demand(name in threads, f"no thread {name}", sorted(threads))
            demand(threads[name]["planned"] == 0 and threads[name]["cores"] == "0", "not pinned", threads[name])
        print(f"{role}: {', '.join(wanted)} pinned to core 0, read back from /proc/self/task")
    print("(with the one CPU of a lab's host the option and its report are what this checks; perf's own tests pin apart)")


def table(folder, *names):
    columns = ["run", "rate/s", "late", "pause p50", "p99", "commit p50", "p99 ms", "MB/s"]
    print("{:<16}{:>8}{:>6}{:>11}{:>9}{:>12}{:>9}{:>8}".format(*columns))
    for name in names:
        primary, backup = result(folder, name + "-primary"), result(folder, name + "-backup")
        exact(backup)
        measured, status = primary["measured"], primary["status"]
        undisturbed = [status["connections"], status["overflows"]]
        demand(undisturbed == [1, 0], "not one connection without overflows", undisturbed)
        ms = [status[kind][share] / 1e3 for kind in ("pause_us", "ack_us") for share in ("p50", "p99")]
        rate = measured["bytes_written"] / measured["seconds"] / 1e6
        print(
            f"{name:<16}{measured['checkpoints_per_second']:>8.1f}{measured['late_epochs']:>6}"
            f"{ms[0]:>11.2f}{ms[1]:>9.2f}{ms[2]:>12.2f}{ms[3]:>9.2f}{rate:>8.1f}"
        )
    print("(the image of each is exact)")


def main():
    if len(sys.argv) < 3 or sys.argv[2] not in ("killed", "zombie", "affinity", "table"):
        sys.exit(__doc__)
    globals()[sys.argv[2]](sys.argv[1], *sys.argv[3:])


main()
