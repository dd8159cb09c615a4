"""The command line of scripts/lab."""

import argparse
import os
import signal
import subprocess
import sys

import hosts
import lab
import registry
import remote
import terminal
from registry import LabError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HERE = os.path.dirname(os.path.abspath(__file__))

USAGE = """\
Starts hosts that have RDMA (the kernel's rdma_rxe, over Ethernet) on a machine whose kernel has
none, and runs a command on each of them.

  scripts/lab run -- ibv_devinfo
  scripts/lab run --kind uml --hosts 2 -- sh -c 'echo "$ROMULUS_LAB_HOST talks to $ROMULUS_LAB_PEER"'
  scripts/lab exec 1 -- xl list
  scripts/lab kill-host 1
"""

DETAILS = """\
kinds
  uml   user-mode Linux: native speed, one CPU a host, up in 2 seconds. Built once, in minutes.
  qemu  Debian's own kernel and rdma_rxe, two CPUs a host; by KVM where there is one, else emulated.
  xen   Debian's Xen, emulated; the command runs in its dom0, with rdma_rxe on the domains' bridge.
        One CPU a host: with two, starting a process takes three times as long.

hosts
  The root is this machine's, read-only. The current folder and each --share can be written to;
  /tmp, /run, /var/tmp and /dev/shm are empty memory file systems of the host. The command runs as
  root, in the current folder, with the caller's environment, nothing on standard input and no
  limit of locked memory. What it prints comes out line by line behind the host's number. When all
  commands have ended, the hosts are killed.

environment of the command
  ROMULUS_LAB             the lab's name             ROMULUS_LAB_ADDRESS    own IPv4 address
  ROMULUS_LAB_KIND        uml, qemu or xen           ROMULUS_LAB_ADDRESS6   own IPv6 address
  ROMULUS_LAB_HOST        own number: 1, 2           ROMULUS_LAB_PEER       the peer's IPv4 address
  ROMULUS_LAB_HOSTS       how many there are         ROMULUS_LAB_PEER6      the peer's IPv6 address
  ROMULUS_LAB_DEVICE      the RDMA device            ROMULUS_LAB_INTERFACE  the network interface
  A single host is its own peer.

exit status
  That of the first host whose command failed; 0 if none did. A host killed by kill-host has not
  failed, unless no other is left (137). 124: time is over. 125: a host died by itself or did not
  come up, or the lab cannot be made; the message says why. 2: wrong usage.
"""


def parse():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/lab", description=USAGE, epilog=DETAILS, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, text, kind=True):
        sub = verbs.add_parser(name, help=text, description=text + ". See also scripts/lab --help.")
        if kind:
            sub.add_argument("--kind", choices=list(hosts.KINDS), default="uml", help="of the hosts (uml)")
        return sub

    def sizes(sub, timeout_s):
        sub.add_argument("--hosts", type=int, choices=[1, 2], default=1, help="how many (1)")
        sub.add_argument("--memory", type=int, metavar="MIB", help="memory of each host (1024; xen: 2048, half of it for dom0)")
        sub.add_argument("--cpus", type=int, choices=range(1, 9), metavar="N", help="of each host (qemu: 2; xen: 1; uml has 1)")
        sub.add_argument("--mtu", type=int, default=4500, metavar="BYTES", help="of the hosts' network (4500)")
        sub.add_argument("--link", choices=["bridge", "cable"], default="bridge", help="between two hosts of kind uml: a bridge that this machine is on too, or a cable, which is faster (bridge)")
        sub.add_argument("--timeout", type=float, default=timeout_s, metavar="S", help=f"for all, booting included; 0 for none ({timeout_s})")
        sub.add_argument("--name", help="of the lab, to find it by (lab-PID)")
        sub.add_argument("--share", action="append", default=[], metavar="FOLDER", help="one more folder that hosts may write to")

    run = verb("run", "runs COMMAND on every host of a new lab")
    sizes(run, 600)
    run.add_argument("command", nargs="+", metavar="COMMAND")
    shell = verb("shell", "opens a shell on a host of a new lab; COMMAND runs on the other one")
    sizes(shell, 0)
    shell.add_argument("--host", type=int, choices=[1, 2], default=1, help="the host that has the shell (1)")
    shell.add_argument("command", nargs="*", default=["sleep", "infinity"], metavar="COMMAND")
    kill = verb("kill-host", "kills a host of a running lab, as a power failure would", kind=False)
    kill.add_argument("host", type=int, metavar="N")
    kill.add_argument("--lab", metavar="NAME", help="needed only where several labs run")
    execute = verb("exec", "runs COMMAND on a host of a running lab of kind xen; on host 0, which is this machine in the lab's network, of any kind that has one", kind=False)
    execute.add_argument("host", type=int, metavar="N")
    execute.add_argument("--lab", metavar="NAME", help="needed only where several labs run")
    execute.add_argument("command", nargs="+", metavar="COMMAND")
    verb("list", "lists the labs that run, and clears away what dead ones left", kind=False)
    verb("build", "only builds what the hosts of a kind need, and prints where it is")
    arguments = parser.parse_args()
    if arguments.verb in ("run", "shell"):
        least, default = (1024, 2048) if arguments.kind == "xen" else (128, 1024)
        if arguments.memory is None:
            arguments.memory = default
        if arguments.memory < least:
            parser.error(f"--memory {arguments.memory}: a host needs {least} MiB or more")
        if arguments.cpus is None:
            arguments.cpus = 2 if arguments.kind == "qemu" else 1
        elif arguments.kind == "uml" and arguments.cpus != 1:
            parser.error(f"--cpus {arguments.cpus}: user-mode Linux has one")
        if not 1280 <= arguments.mtu <= 9000:
            parser.error(f"--mtu {arguments.mtu}: from 1280 (IPv6 needs them) to 9000")
        if arguments.link == "cable" and (arguments.kind, arguments.hosts) != ("uml", 2):
            parser.error("--link cable: it joins two hosts of kind uml (--kind uml --hosts 2)")
        if arguments.timeout < 0:
            parser.error(f"--timeout {arguments.timeout:g}: 0 for none, or more")
    if arguments.verb == "shell" and arguments.host > arguments.hosts:
        parser.error(f"--host {arguments.host} of {arguments.hosts}: add --hosts 2")
    return arguments


def check_memory(arguments):
    """Hosts that outgrow this machine would be killed at random, or make it kill others."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        available = next(int(line.split()[1]) // 1024 for line in file if line.startswith("MemAvailable"))
    wanted = arguments.hosts * arguments.memory
    if wanted > available:
        raise LabError(f"the hosts' memory is {wanted} MiB, but only {available} MiB are available: choose a smaller --memory")


def prepare(kind):
    """Builds what the kind needs where it is not in the cache; returns its path."""
    builder = subprocess.Popen([f"{HERE}/prepare", kind], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        path = builder.communicate()[0].strip()
    except BaseException:
        os.killpg(builder.pid, signal.SIGTERM)
        builder.wait()
        raise
    if builder.returncode != 0:
        raise LabError(f"hosts of kind {kind} cannot be built, see above")
    return path


def shares(folders):
    """The folders that hosts see and may write to: the current one first; none twice."""
    result = []
    for folder in [os.getcwd(), *map(os.path.realpath, folders)]:
        if not os.path.isdir(folder):
            raise LabError(f"--share {folder}: no such folder")
        if folder == "/":
            raise LabError("hosts may write to the current folder, which is '/': go into the project's, or into an empty one")
        if folder not in result:
            result.append(folder)
    return result


def dispatch(arguments):
    if arguments.verb == "build":
        print(prepare(arguments.kind))
        return 0
    if os.getuid() != 0:
        raise LabError("labs need root: they make namespaces, taps and mounts of their own")
    if arguments.verb == "list":
        for name in registry.living():
            try:
                print(f"{name}: {registry.ask(name, 'describe')}")
            except LabError:
                print(f"{name}: starting or ending")
        return 0
    if arguments.verb == "kill-host":
        print(registry.ask(arguments.lab, f"kill {arguments.host}"))
        return 0
    if arguments.verb == "exec":
        return remote.run(arguments.lab, arguments.host, arguments.command)
    check_memory(arguments)
    arguments.share = shares(arguments.share)
    kernel = prepare(arguments.kind)
    commands = [arguments.command] * arguments.hosts
    if arguments.verb == "run":
        return lab.Lab(arguments, kernel, commands).run()
    commands[arguments.host - 1] = ["bash", "-i"]
    with terminal.Terminal(arguments.host) as shell:
        return lab.Lab(arguments, kernel, commands, shell).run()


def main():
    arguments = parse()

    def stop(number, _):
        for each in STOPPING:  # clearing away is not to be interrupted
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in STOPPING:
        signal.signal(number, stop)
    try:
        return dispatch(arguments)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return lab.LAB_FAILED
    except OSError as error:
        print(f"error: the lab failed: {error}", file=sys.stderr)
        return lab.LAB_FAILED


if __name__ == "__main__":
    sys.exit(main())
