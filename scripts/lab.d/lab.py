"""A lab while it runs: starts the hosts, passes on what they say, hears requests, ends them."""

import os
import selectors
import socket
import sys
import time

import hosts
import namespace
import registry
from registry import LabError

LAB_FAILED, TIMED_OUT, KILLED = 125, 124, 137


class Stream:
    """Passes whole lines on, each behind the number of its host."""

    def __init__(self, number, file, newline=b"\n"):
        self.prefix = f"[{number}] ".encode()
        self.file = file
        self.newline = newline
        self.rest = b""

    def take(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.write(lines)

    def finish(self):
        if self.rest:
            self.write([self.rest])
            self.rest = b""

    def write(self, lines):
        try:
            self.file.buffer.write(b"".join(self.prefix + line + self.newline for line in lines))
            self.file.buffer.flush()
        except BrokenPipeError as error:
            raise LabError("nobody reads the lab's output any more") from error


class Lab:
    """`commands` has one command a host, a list of words each. `shell` is the user's terminal, if
    one of the commands is to have it."""

    def __init__(self, arguments, kernel, commands, shell=None):
        self.kind = arguments.kind
        self.kernel = kernel
        self.hosts = arguments.hosts
        self.memory_mib = arguments.memory
        self.cpus = arguments.cpus
        self.mtu = arguments.mtu
        self.timeout_s = arguments.timeout
        self.name = arguments.name or f"lab-{os.getpid()}"
        # Domains are reached over the network also where their host is the only one.
        self.networked = self.hosts > 1 or self.kind == "xen"
        self.has_cable = arguments.link == "cable"
        self.cable = ()  # its ends
        self.interface = {"uml": "vec0", "qemu": "eth0", "xen": "xenbr0"}[self.kind] if self.networked else "dummy0"
        self.instance = hosts.KINDS[self.kind]
        self.shares = arguments.share
        self.commands = commands
        self.shell = shell
        self.members = []
        self.selector = selectors.PollSelector()
        self.folder = self.work = None
        self.over = False

    def tagged_shares(self):
        """The folders that hosts may write to, each with a tag to mount it by."""
        return [(f"share{index}", folder) for index, folder in enumerate(self.shares)]

    def run(self):
        """Runs the lab to its end; returns the exit status of scripts/lab."""
        self.folder, lock = registry.enter(self.name)
        try:
            self.work = os.path.join(self.folder, "work")
            control = self.listen()
            keeper = namespace.enter()
            try:
                namespace.mount_work(self.work, self.hosts * (self.memory_mib + 64))
                if self.has_cable:
                    self.cable = namespace.build_cable()
                elif self.networked:
                    namespace.build_network(self.hosts, self.mtu, hosts.address(hosts.OUTSIDE))
                self.start()
                return self.attend()
            finally:
                for host in self.members:
                    host.kill()
                namespace.run("umount", "-l", self.work)
                keeper.kill()  # and with it every process that is left in the lab
                keeper.wait()
                control.close()
        finally:
            registry.leave(self.folder, lock)

    def listen(self):
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.bind(os.path.join(self.folder, "control"))
        control.listen()
        self.selector.register(control, selectors.EVENT_READ, lambda: self.hear(control))
        return control

    def start(self):
        for number, command in enumerate(self.commands, 1):
            size = self.shell.size() if self.shell and self.shell.number == number else None
            host = hosts.Host(self, number, command, size)
            self.members.append(host)
            channels = host.start()
            newline = b"\r\n" if self.shell else b"\n"
            for name, file in (("stdout", sys.stdout), ("stderr", sys.stderr)):
                self.watch(channels[name], Stream(number, file, newline))
            if size:
                self.shell.show(self.selector, channels["terminal"])
            self.selector.register(channels["status"], selectors.EVENT_READ, self.reporter(host, channels["status"]))

    def watch(self, descriptor, stream):
        def ready():
            data = os.read(descriptor, 65536)
            if data:
                stream.take(data)
            else:
                stream.finish()
                self.selector.unregister(descriptor)
                os.close(descriptor)

        self.selector.register(descriptor, selectors.EVENT_READ, ready)

    def reporter(self, host, descriptor):
        rest = b""

        def ready():
            nonlocal rest
            data = os.read(descriptor, 4096)
            if not data:
                self.selector.unregister(descriptor)
                os.close(descriptor)
                self.gone(host)
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                word, _, value = line.decode().strip().partition(" ")
                if word == "up":
                    host.up = True
                    if host.terminal:
                        self.shell.listen(self.selector)
                elif word == "exit":
                    host.status = int(value)

        return ready

    def gone(self, host):
        """Nobody in the host can report any more: the instance has ended, or is about to."""
        host.process.wait()
        host.ended_by_itself = not host.killed and not self.over
        host.ended = True
        if self.has_cable and not self.over:
            # What is still sent to a dead host vanishes, as it would on a bridge.
            end = host.cable_end()
            self.selector.register(end, selectors.EVENT_READ, lambda: end.recv(65536))

    def attend(self):
        """Until every command has ended, a host has died by itself, or the time is over."""
        deadline = time.monotonic() + self.timeout_s if self.timeout_s else None
        left = None
        while self.pending() and not any(host.ended_by_itself for host in self.members):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.step(left)
        self.over = True
        cut_short = self.pending()
        timed_out = left is not None and left <= 0
        for host in self.members:
            host.kill()
        if self.shell:
            self.shell.detach(self.selector)
        for host in self.members:
            if self.has_cable and host.cable_end() in self.selector.get_map():
                self.selector.unregister(host.cable_end())
        while len(self.selector.get_map()) > 1 and self.step(5):
            pass  # the rest of their output; the control socket stays
        return self.verdict(cut_short, timed_out)

    def pending(self):
        """The hosts whose commands have neither ended nor died with them."""
        return [host for host in self.members if host.status is None and not host.ended]

    def step(self, seconds):
        """Does what is to be done; false if there was nothing for so long."""
        ready = self.selector.select(seconds)
        for key, _ in ready:
            key.data()
        return bool(ready)

    def hear(self, control):
        """One request by scripts/lab: `kill N`, `state N`, `describe`, `process`."""
        peer, _ = control.accept()
        with peer:
            peer.settimeout(1)
            try:
                peer.send(self.answer(peer.recv(4096).decode().split()).encode())
            except (OSError, UnicodeDecodeError):
                pass  # whoever asked is gone

    def answer(self, words):
        if words == ["describe"]:
            states = ", ".join(f"host {host.number} {self.state(host)}" for host in self.members)
            return f"ok {self.kind}, {states}"
        if words == ["process"]:
            if self.has_cable:
                return "error its hosts are joined by a cable, which this machine is not on: run it with --link bridge"
            if not self.networked:
                return "error its host has no network: that is so for a single host of kind uml or qemu"
            return f"ok {os.getpid()}"
        if len(words) == 2 and words[0] in ("kill", "state"):
            host = next((host for host in self.members if str(host.number) == words[1]), None)
            if host is None:
                return f"error it has no host {words[1]}"
            if words[0] == "state":
                return f"ok {self.state(host)}"
            if host.ended:
                return f"error host {host.number} is {self.state(host)} already"
            host.killed = True
            host.kill()
            return f"ok host {host.number} is killed"
        return "error unknown request"

    @staticmethod
    def state(host):
        if host.killed:
            return "killed"
        if host.status is not None:
            return f"done with status {host.status}"
        if host.ended:
            return "dead"
        return "running" if host.up else "booting"

    def verdict(self, cut_short, timed_out):
        """Says how it went where that is worth a word; returns the exit status, which is that of
        the first host at fault."""
        failures = []
        for host in self.members:
            if host.killed:
                self.tell(f"host {host.number} was killed on purpose")
            if host.status is not None:
                if host.status != 0:
                    self.tell(f"the command on host {host.number} ended with status {host.status}")
                    failures.append(host.status)
            elif host.killed:
                if all(other.killed for other in self.members):
                    failures.append(KILLED)
            elif host in cut_short and timed_out:
                self.tell(f"the command on host {host.number} did not end within {self.timeout_s:g} s (--timeout)")
                failures.append(TIMED_OUT)
            elif host in cut_short:
                self.tell(f"the command on host {host.number} was cut short")
            else:
                what = "died" if host.up else "did not come up"
                self.tell(f"host {host.number} {what}; its last messages:\n{host.console()}")
                failures.append(LAB_FAILED)
        return failures[0] if failures else 0

    @staticmethod
    def tell(text):
        print(f"lab: {text}", file=sys.stderr, flush=True)
