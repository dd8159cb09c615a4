"""Labs that run on this machine: a folder each, which is held by a lock as long as its lab lives."""

import fcntl
import os
import shutil
import socket

RUN = "/run/romulus-lab"


class LabError(Exception):
    """Says what is wrong and how to mend it."""


def _lock(folder):
    """The folder's lock as a descriptor, or None while its lab lives."""
    descriptor = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class _Registry:
    """Makes changes of the list of labs one at a time."""

    def __enter__(self):
        os.makedirs(RUN, mode=0o700, exist_ok=True)
        self.descriptor = os.open(os.path.join(RUN, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_):
        os.close(self.descriptor)


def living():
    """The names of labs that live, in order; removes what dead ones left."""
    names = []
    with _Registry():
        for name in sorted(os.listdir(RUN)):
            folder = os.path.join(RUN, name)
            if name.startswith("."):
                continue
            descriptor = _lock(folder)
            if descriptor is None:
                names.append(name)
            else:
                shutil.rmtree(folder)
                os.close(descriptor)
    return names


def enter(name):
    """Takes a name; the folder it stands for lives until `leave` or the end of this process."""
    if not name or name.startswith(".") or "/" in name or len(name) > 40:
        raise LabError(f"'{name}' is no name for a lab: at most 40 characters, no '/', no '.' in front")
    if name in living():
        raise LabError(f"a lab '{name}' runs already; choose another --name, or see scripts/lab list")
    folder = os.path.join(RUN, name)
    with _Registry():
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = _lock(folder)
    if descriptor is None:
        raise LabError(f"a lab '{name}' runs already; choose another --name, or see scripts/lab list")
    return folder, descriptor


def leave(folder, descriptor):
    """Gives the name back."""
    with _Registry():
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def ask(name, words):
    """Sends a request to a living lab (the only one, if `name` is None) and returns its answer."""
    names = living()
    if name is None:
        if len(names) != 1:
            raise LabError(f"{len(names)} labs run ({', '.join(names) or 'none'}); say which by --lab NAME")
        name = names[0]
    elif name not in names:
        raise LabError(f"no lab '{name}' runs; living: {', '.join(names) or 'none'}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(10)
        try:
            peer.connect(os.path.join(RUN, name, "control"))
            peer.send(words.encode())
            answer = peer.recv(4096).decode()
        except OSError as error:
            raise LabError(f"lab '{name}' does not answer ({error}); it is starting or ending") from error
    verdict, _, text = answer.partition(" ")
    if verdict != "ok":
        raise LabError(f"lab '{name}': {text or 'ended without an answer'}")
    return text
