"""A lab of Xen hosts, driven from this machine: domains, commands on its hosts, their ends."""

import ctypes
import json
import os
import signal
import subprocess
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.dirname(HERE)
LAB = f"{SCRIPTS}/lab"
PR_SET_PDEATHSIG = 1
# Everything in an emulated host is slow, and the machine may be busy: what takes this long has failed.
PATIENCE_S = 900


class Failure(Exception):
    """Says what went wrong in a run."""


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run(*words, patience_s=PATIENCE_S, check=True):
    """Runs a program of this machine to its end; its standard output. What fails, or takes longer, is a
    `Failure` that says so."""
    words = [str(word) for word in words]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience_s)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{' '.join(words)}: not within {patience_s} s") from error
    if check and done.returncode != 0:
        raise Failure(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def wait_for(what, look, patience_s=PATIENCE_S, every_s=0.1):
    """The first true answer of `look`."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if answer := look():
            return answer
        time.sleep(every_s)
    raise Failure(f"{what}: not within {patience_s} s")


def report_of(line):
    """What a line of the workload's console reports, as {counter, corrupt, passes, ...}, if it does."""
    words = line.split()
    if words[:1] != ["romulus"] or len(words) != 6 or not words[1].startswith("counter="):
        return None
    try:
        return {name: int(value) for name, value in (word.split("=") for word in words[1:])}
    except ValueError:
        return None  # half a line, from a host that was killed


class Follower:
    """Lines that a command on a host prints, kept with the time at which each came."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def reports(self, since=0.0):
        """The workload's reports: (when, what `report_of` makes of the line)."""
        return [(when, report) for when, line in list(self.lines) if when >= since and (report := report_of(line))]

    def pauses_us(self, since, until):
        """What the probe measured in this time: (the guest's clock stood still, its thread was away)."""
        found = []
        for when, line in list(self.lines):
            if since <= when < until and line.startswith("romulus pauses_us "):
                found += [tuple(map(int, pair.split("/"))) for pair in line.split()[2].split(",")]
        return found

    def says(self, text):
        return any(text in line for _, line in list(self.lines))


def console_of(name):
    return f"/var/log/xen/console/guest-{name}.log"


class XenLab:
    """Two hosts. Ends with this process."""

    def __init__(self, hosts=2, memory_mib=2048):
        # What hosts see and may write to is the folder that a lab is started in.
        os.chdir(os.path.dirname(SCRIPTS))
        self.name = f"xen-{os.getpid()}"
        self.hosts = hosts
        self.children = []
        self.log = tempfile.TemporaryFile(mode="w+")
        words = [LAB, "run", "--kind", "xen", "--name", self.name, "--hosts", str(hosts), "--memory", str(memory_mib)]
        words += ["--timeout", "0", "--", "sleep", "infinity"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=die_with_parent)
        try:
            wait_for("the hosts' boot", self.up)
        except BaseException:
            # Nobody has this value yet, who could end it.
            self.end()
            raise

    def up(self):
        if self.process.poll() is not None:
            self.log.seek(0)
            raise Failure(f"the lab ended: {self.log.read()}")
        listed = run(LAB, "list")
        return any(line.startswith(f"{self.name}:") and line.count("running") == self.hosts for line in listed.splitlines())

    def words(self, host, command):
        return [LAB, "exec", "--lab", self.name, str(host), "--", *map(str, command)]

    def run(self, host, *command, check=True):
        """Runs a command on a host to its end; its standard output."""
        return run(*self.words(host, command), check=check)

    def start(self, host, *command, log=None):
        """Starts a command on a host; it ends with this process. What it prints can be read from
        the result, or goes to the file `log`."""
        process = subprocess.Popen(
            self.words(host, command),
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.PIPE,
            stderr=log or subprocess.DEVNULL,
            text=True,
            preexec_fn=die_with_parent,
        )
        self.children.append(process)
        return process

    def follow(self, host, path):
        """The lines of a file on a host, from its first, as they come; the file may come later."""
        return Follower(self.start(host, "tail", "-q", "-n", "+1", "-F", path))

    def console(self, host, name):
        return self.follow(host, console_of(name))

    def counter(self, host, name):
        """The last step that a domain has reported by now: its console file knows before a `Follower` does."""
        lines = self.run(host, "tail", "-n", "100", console_of(name)).splitlines()
        return max((report["counter"] for line in lines if (report := report_of(line))), default=0)

    def domain(self, host, image, name, memory_mib, number, hvm=False, **settings):
        words = [f"{key}={value}" for key, value in settings.items()]
        if hvm:
            line = ["console=hvc0", "quiet", "panic=-1", *(f"romulus.{word}" for word in (f"address=10.77.0.{number}/24", *words))]
            disc = run(f"{SCRIPTS}/lab.d/hvm-disc", image, " ".join(line)).strip()
            self.run(host, f"{SCRIPTS}/lab.d/xen-domain", "--hvm", disc, name, memory_mib, number)
            return
        self.run(host, f"{SCRIPTS}/lab.d/xen-domain", image, name, memory_mib, number, *words)

    def domains(self, host):
        """Name and state of every domain but dom0."""
        rows = [line.split() for line in self.run(host, "xl", "list").splitlines()[2:]]
        return {row[0]: row[4] for row in rows}

    def sent_bytes(self, host):
        return int(self.run(host, "cat", "/sys/class/net/eth0/statistics/tx_bytes"))

    def status(self, host, program, control):
        """What `romulus status` says, or nothing if nobody answers."""
        text = self.run(host, program, "status", "--json", "--control", control, check=False)
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return None

    def kill_host(self, host):
        """Returns when its QEMU is dead."""
        run(LAB, "kill-host", host, "--lab", self.name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.kill()
            child.wait()
        self.end()

    def end(self):
        self.process.terminate()
        self.process.wait()
