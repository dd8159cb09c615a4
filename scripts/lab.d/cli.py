"""The command line of scripts/lab."""

import argparse
import os
import signal
import subprocess
import sys

import lab
import registry
import terminal
from registry import LabError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HERE = os.path.dirname(os.path.abspath(__file__))

USAGE = """\
Starts hosts that have RDMA (the kernel's rdma_rxe, over Ethernet) on a machine whose kernel has
none, and runs a command on each of them.
"""


def parse():
    parser = argparse.ArgumentParser(prog="scripts/lab", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, text, kind=True):
        sub = verbs.add_parser(name, help=text, description=text)
        if kind:
            sub.add_argument("--kind", choices=["uml", "qemu"], default="uml")
        return sub

    def sizes(sub):
        sub.add_argument("--hosts", type=int, choices=[1, 2], default=1)
        sub.add_argument("--memory", type=int, default=1024, metavar="MIB", help="memory of each host (1024)")
        sub.add_argument("--mtu", type=int, default=4500, help="of the hosts' network (4500)")
        sub.add_argument("--timeout", type=float, default=600, metavar="S", help="0 for none (600)")
        sub.add_argument("--name", help="of the lab, for kill-host (lab-PID)")
        sub.add_argument("--share", action="append", default=[], metavar="FOLDER", help="a folder that hosts may write to, beside the current one; may be repeated")

    run = verb("run", "runs COMMAND on every host of a new lab")
    sizes(run)
    run.add_argument("command", nargs="+", metavar="COMMAND")
    shell = verb("shell", "opens a shell on a host of a new lab; COMMAND runs on the other one")
    sizes(shell)
    shell.add_argument("--host", type=int, choices=[1, 2], default=1, help="the host that has the shell (1)")
    shell.add_argument("command", nargs="*", default=["sleep", "infinity"], metavar="COMMAND")
    shell.set_defaults(timeout=0)
    build = verb("build", "only builds the kind's kernel")
    kill = verb("kill-host", "kills a host of a running lab, as a power failure would", kind=False)
    kill.add_argument("host", type=int)
    kill.add_argument("--lab", metavar="NAME", help="needed only where several labs run")
    verb("list", "lists the labs that run", kind=False)
    return parser.parse_args()


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
        if folder not in result:
            result.append(folder)
    return result


def dispatch(arguments):
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
    kernel = prepare(arguments.kind)
    if arguments.verb == "build":
        print(kernel)
        return 0
    arguments.share = shares(arguments.share)
    commands = [arguments.command] * arguments.hosts
    if arguments.verb == "run":
        return lab.Lab(arguments, kernel, commands).run()
    if arguments.host > arguments.hosts:
        raise LabError(f"--host {arguments.host} of {arguments.hosts}: add --hosts 2")
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
