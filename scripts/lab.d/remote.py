"""`scripts/lab exec`: a command on a host of a lab that runs already."""

import ctypes
import json
import os
import socket
import sys
import time

import agent
import hosts
import registry
from registry import LabError

CLONE_NEWNET = 0x40000000
GONE = 125


def join_network(name):
    """Moves this process into the lab's network."""
    process = registry.ask(name, "process")
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{process}/ns/net", "rb") as network:
        if libc.setns(network.fileno(), CLONE_NEWNET) != 0:
            raise LabError(f"cannot enter the network of lab '{name}': {os.strerror(ctypes.get_errno())}")


def wait_until_up(name, number):
    while (state := registry.ask(name, f"state {number}")) == "booting":
        time.sleep(0.1)
    return state


def run(name, number, command):
    """Returns the command's exit status; for host 0, which is this machine, becomes the command."""
    names = registry.living()
    if name is None and len(names) == 1:
        name = names[0]
    if number == 0:
        join_network(name)
        os.environ.update(ROMULUS_LAB=name, ROMULUS_LAB_ADDRESS=hosts.address(hosts.OUTSIDE))
        os.execvp(command[0], command)
    if not registry.ask(name, "describe").startswith("xen"):
        raise LabError(f"exec {number}: only hosts of kind xen take commands while they run")
    state = wait_until_up(name, number)
    if state in ("dead", "killed"):
        raise LabError(f"host {number} is {state}")
    join_network(name)
    with socket.create_connection((hosts.address(number), agent.PORT), timeout=60) as peer:
        request = {"command": command, "folder": os.getcwd(), "environment": hosts.passed_environment()}
        peer.sendall(json.dumps(request).encode() + b"\n")
        peer.settimeout(1)
        return attend(name, number, peer)


def attend(name, number, peer):
    """Passes output on until the command has ended. A host that is killed closes no connection."""
    pending = b""
    while True:
        try:
            data = peer.recv(65536)
        except TimeoutError:
            if (state := registry.ask(name, f"state {number}")) in ("dead", "killed"):
                print(f"lab: host {number} is {state}", file=sys.stderr)
                return GONE
            continue
        if not data:
            raise LabError(f"host {number} hung up before the command ended")
        pending += data
        while len(pending) >= agent.HEAD.size:
            kind, length = agent.HEAD.unpack_from(pending)
            if len(pending) < agent.HEAD.size + length:
                break
            content, pending = pending[agent.HEAD.size :][:length], pending[agent.HEAD.size + length :]
            if kind == b"x":
                return int(content)
            output = sys.stdout if kind == b"o" else sys.stderr
            output.buffer.write(content)
            output.buffer.flush()
