"""One host of a lab: its settings, its process, and the channels on which it reports."""

import os
import re
import shlex
import signal
import socket
import subprocess

import namespace
from registry import LabError

HERE = os.path.dirname(os.path.abspath(__file__))
DEVICE = "rxe0"
NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
# What a caller's environment must not carry into a host.
NOT_PASSED = {"TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK"}


OUTSIDE = 254  # this machine's number in a lab's network


def address(number):
    return f"10.77.0.{number}"


def address6(number):
    return f"fd77::{number}"


def passed_environment():
    """What a host's commands get of this process's environment."""
    return {name: value for name, value in os.environ.items() if name not in NOT_PASSED and NAME.fullmatch(name)}


def cpu_mhz():
    """Of the outer machine, by its own account."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("cpu MHz")), "")


def mac(number):
    return f"02:77:00:00:00:{number:02x}"


class Host:
    """`command` is a list of words."""

    def __init__(self, lab, number, command, terminal=None):
        self.lab = lab
        self.number = number
        self.command = command
        self.terminal = terminal  # (rows, columns) of the user's, where the host has a shell
        self.folder = os.path.join(lab.work, f"host{number}")
        self.process = None
        self.up = False
        self.status = None  # of the command
        self.killed = False  # on purpose
        self.ended = self.ended_by_itself = False
        os.mkdir(self.folder)

    def variables(self):
        """What the command finds in its environment about the lab."""
        peer = self.number if self.lab.hosts == 1 else 3 - self.number
        return {
            "ROMULUS_LAB": self.lab.name,
            "ROMULUS_LAB_KIND": self.lab.kind,
            "ROMULUS_LAB_HOST": str(self.number),
            "ROMULUS_LAB_HOSTS": str(self.lab.hosts),
            "ROMULUS_LAB_ADDRESS": address(self.number),
            "ROMULUS_LAB_ADDRESS6": address6(self.number),
            "ROMULUS_LAB_PEER": address(peer),
            "ROMULUS_LAB_PEER6": address6(peer),
            "ROMULUS_LAB_DEVICE": DEVICE,
            "ROMULUS_LAB_INTERFACE": self.lab.interface,
        }

    def write_settings(self, ports):
        """The file that host-init reads, a shell script."""
        rows, columns = self.terminal or (0, 0)
        own = {
            "lab_kind": self.lab.kind,
            "lab_mtu": str(self.lab.mtu),
            "lab_folder": os.getcwd(),
            "lab_command": shlex.join(self.command),
            "lab_shares": "\n".join(f"{tag} {path}" for tag, path in self.lab.tagged_shares()),
            "lab_rows": str(rows),
            "lab_columns": str(columns),
            "lab_cpu_mhz": cpu_mhz(),
            **ports,
        }
        passed = {**passed_environment(), **self.variables()}
        with open(self.settings(), "w", encoding="utf-8", errors="surrogateescape") as file:
            for name, value in own.items():
                file.write(f"{name}={shlex.quote(value)}\n")
            for name, value in passed.items():
                file.write(f"export {name}={shlex.quote(value)}\n")

    def settings(self):
        """The file that `write_settings` makes."""
        return os.path.join(self.folder, "settings")

    def start(self):
        """Starts the instance. Returns what it reports on: a descriptor each for standard output,
        standard error, status, and one in both directions for a terminal."""
        channels = {}
        theirs = {}
        for name in ("stdout", "stderr", "status"):
            channels[name], theirs[name] = os.pipe()
        if self.terminal:
            channels["terminal"], theirs["terminal"] = (end.detach() for end in socket.socketpair())
        command = self.lab.instance(self, theirs)
        with open(os.path.join(self.folder, "console"), "wb") as console:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=[*theirs.values(), *([self.cable_end().fileno()] if self.lab.cable else [])],
                    env={"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": self.folder, "HOME": self.folder},
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(f"host {self.number} cannot be started: {error}") from error
        for descriptor in theirs.values():
            os.close(descriptor)
        return channels

    def cable_end(self):
        """What this host's network card is plugged into."""
        return self.lab.cable[self.number - 1]

    def kill(self):
        """The death of the host: kill -9 of all its processes. Nothing is flushed."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def console(self):
        """The last lines of the kernel's messages, without traces of its stack."""
        with open(os.path.join(self.folder, "console"), encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if not line.startswith(" [<") and line.strip()]
        return "".join(lines[-25:])


MAPPINGS = "/proc/sys/vm/max_map_count"
MAPPINGS_WANTED = 1 << 20


def allow_mappings():
    """Every stretch of a process's memory in user-mode Linux is a mapping of its own out here, down
    to one a page. At this machine's limit its kernel would kill the process, so the limit is raised
    where it is lower than what distributions have come to set it to."""
    with open(MAPPINGS, encoding="ascii") as file:
        if int(file.read()) >= MAPPINGS_WANTED:
            return
    try:
        with open(MAPPINGS, "w", encoding="ascii") as file:
            file.write(str(MAPPINGS_WANTED))
    except OSError as error:
        raise LabError(
            f"user-mode Linux needs vm.max_map_count of {MAPPINGS_WANTED} or more, and it cannot be set here "
            f"({error.strerror}); run: sysctl vm.max_map_count={MAPPINGS_WANTED}"
        ) from error


def uml(host, theirs):
    """The command line of a user-mode Linux instance."""
    allow_mappings()
    ports = {"lab_stdout": "/dev/ttyS1", "lab_stderr": "/dev/ttyS2", "lab_status": "/dev/ttyS3", "lab_terminal": ""}
    if host.terminal:
        ports["lab_terminal"] = "/dev/ttyS4"
    host.write_settings(ports)
    words = [
        host.lab.kernel,
        f"mem={host.lab.memory_mib}M",
        "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
        "con=null", "con0=null,fd:1", "ssl=null", "panic=-1", "quiet",
        f"ssl1=null,fd:{theirs['stdout']}",
        f"ssl2=null,fd:{theirs['stderr']}",
        f"ssl3=null,fd:{theirs['status']}",
        f"init={HERE}/host-init",
    ]
    if host.terminal:
        words.append(f"ssl4=fd:{theirs['terminal']}")
    if host.lab.networked:
        if host.lab.cable:
            link = f"transport=fd,fd={host.cable_end().fileno()}"
        else:
            link = f"transport=tap,ifname={namespace.tap(host.number)}"
        words.append(f"vec0:{link},mtu={host.lab.mtu},mac={mac(host.number)}")
    return words + ["--", host.settings()]


def has_kvm():
    """Whether a guest runs under KVM here: some machines offer /dev/kvm to a CPU that cannot."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    return ("vmx" in flags or "svm" in flags) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def linux(host):
    """What a virtual machine boots: Debian's kernel."""
    return [
        *(["-accel", "kvm", "-cpu", "host"] if has_kvm() else ["-accel", "tcg", "-cpu", "max"]),
        "-smp", str(host.lab.cpus),
        "-kernel", f"{host.lab.kernel}/vmlinuz", "-initrd", f"{host.lab.kernel}/initramfs",
        "-append", f"console=ttyS0 {start_of_init(host)}",
    ]


def hypervisor(host):
    """What a virtual machine boots: Xen, with Debian's kernel as dom0. Emulated always: guests of
    its own need the CPU's help, which the emulated CPU has. With smap, smep or pku dom0 crashes at
    boot, with rdtscp its guests do. Where Xen switches the vector registers lazily,
    programs crash at random (docs/labs.md), so they are switched eagerly. An emulated CPU speculates on nothing, and needs no mitigations."""
    dom0_mib = host.lab.memory_mib // 2
    options = f"console=com1 loglvl=warning bootscrub=0 dom0_mem={dom0_mib}M,max:{dom0_mib}M"
    return [
        "-accel", "tcg", "-cpu", "max,-pku,-smap,-smep,-rdtscp", "-smp", str(host.lab.cpus),
        "-kernel", f"{host.lab.kernel}/xen", "-append", f"{options} spec-ctrl=no,eager-fpu xpti=no",
        "-initrd", ",".join(word.replace(",", ",,") for word in (
            f"{host.lab.kernel}/vmlinuz console=hvc0 mitigations=off {start_of_init(host)}",
            f"{host.lab.kernel}/initramfs",
        )),
    ]


def start_of_init(host):
    return f"quiet panic=-1 lab_init={HERE}/host-init lab_settings={host.settings()}"


def machine(host, theirs):
    """The command line of a virtual machine."""
    ports = {f"lab_{name}": name if name in theirs else "" for name in ("stdout", "stderr", "status", "terminal")}
    ports["lab_modules"] = host.lab.kernel
    host.write_settings(ports)
    words = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35", "-m", f"{host.lab.memory_mib}M",
        *(hypervisor if host.lab.kind == "xen" else linux)(host),
        "-serial", "stdio", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
    ]
    for name, descriptor in theirs.items():
        how = f"socket,id={name},fd={descriptor}" if name == "terminal" else f"file,id={name},path=/dev/fd/{descriptor}"
        words += ["-chardev", how, "-device", f"virtserialport,chardev={name},name={name}"]
    folders = {"root": "/", **{tag: folder for tag, folder in host.lab.tagged_shares()}}
    for tag, folder in folders.items():
        path = folder.replace(",", ",,")
        access = "on" if tag == "root" else "off"
        words += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap,readonly={access}"]
    if host.lab.networked:
        words += [
            "-netdev", f"tap,id=net,ifname={namespace.tap(host.number)},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net,mac={mac(host.number)},host_mtu={host.lab.mtu}",
        ]
    return words


KINDS = {"uml": uml, "qemu": machine, "xen": machine}
