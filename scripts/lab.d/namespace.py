"""A lab's own namespaces. Everything that a lab makes lives in them, so that the kernel clears all
of it away when the lab's process ends, however it ends."""

import ctypes
import os
import socket
import subprocess

from registry import LabError

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
BRIDGE = "lab0"
SO_SNDBUFFORCE = 32  # socket has no name for it


def run(*words):
    """Runs a tool that must succeed."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is missing; run scripts/setup as root") from error
    if done.returncode != 0:
        raise LabError(f"'{' '.join(words)}' failed: {done.stderr.strip() or done.returncode}")


def enter():
    """Moves this process into namespaces of its own for mounts and networks, and its children into
    one for processes. Returns the keeper, the first of them: it ends when this process does, and
    the kernel then kills all others."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) != 0:
        cause = os.strerror(ctypes.get_errno())
        raise LabError(f"no namespaces of its own for the lab ({cause}); in a container, run it privileged")
    # `cat` reads a pipe whose only writer is this process: it sees the end of it, and ends.
    keeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    run("mount", "--make-rprivate", "/")
    return keeper


def mount_work(folder, memory_mib):
    """A memory file system that is seen only in the lab: the hosts' memory, settings, logs."""
    os.mkdir(folder)
    run("mount", "-t", "tmpfs", "-o", f"size={memory_mib}m,mode=700", "romulus-lab", folder)


CABLE_BYTES = 1 << 20  # on their way, in each direction


def build_cable():
    """A cable's two ends: what is sent into one is read from the other, packet by packet. A full cable
    holds the sender up and loses nothing."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, CABLE_BYTES)
    return ends


def tap(number):
    return f"tap{number}"


def build_network(hosts, mtu, own_address):
    """A tap for each host, all of them in one bridge, which has an address for commands out here."""
    run("ip", "link", "set", "lo", "up")
    if not os.path.exists("/dev/net/tun"):
        raise LabError("/dev/net/tun is missing: load the module tun, or give the container that device")
    run("ip", "link", "add", BRIDGE, "mtu", str(mtu), "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
    run("ip", "address", "add", f"{own_address}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for number in range(1, hosts + 1):
        run("ip", "tuntap", "add", tap(number), "mode", "tap")
        run("ip", "link", "set", tap(number), "mtu", str(mtu), "master", BRIDGE, "up")
