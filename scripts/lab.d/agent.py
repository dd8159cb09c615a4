#!/usr/bin/env python3
"""Runs commands on a lab's host for `scripts/lab exec`, which reaches it over the lab's network.

One connection a command. The caller sends a line of JSON: the command's words, its folder and its
environment. Frames come back, each a byte of kind, four of length (big-endian) and the content:
`o` and `e` are output, `x` is the exit status and the last one. A command whose caller hangs up is
killed with all it has started, except what has left its session.

  agent.py ADDRESS
"""

import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading

PORT = 18400
HEAD = struct.Struct(">cI")


def send(peer, kind, content):
    peer.sendall(HEAD.pack(kind, len(content)) + content)


def attend(peer):
    """Runs what the caller asks for, to its end or to the caller's."""
    with peer, peer.makefile("rb") as stream:
        request = json.loads(stream.readline())
        try:
            child = subprocess.Popen(
                request["command"],
                cwd=request["folder"],
                env={**os.environ, **request["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            send(peer, b"e", f"{request['command'][0]}: {error}\n".encode())
            send(peer, b"x", b"127")
            return
        try:
            pass_on(peer, child)
            status = child.wait()
            send(peer, b"x", str(128 - status if status < 0 else status).encode())
        except OSError:  # the caller is gone
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def pass_on(peer, child):
    """Until the command and its output have ended. Whoever it leaves behind with the output open
    is not waited for."""
    ended = os.pidfd_open(child.pid)
    outputs = {child.stdout: b"o", child.stderr: b"e"}
    over = False
    with selectors.DefaultSelector() as selector:
        for source in (*outputs, ended, peer):
            selector.register(source, selectors.EVENT_READ)
        while outputs or not over:
            ready = [key.fileobj for key, _ in selector.select(0 if over else None)]
            if not ready:
                break
            for source in ready:
                if source is peer:
                    raise ConnectionResetError("the caller hung up")
                if source == ended:
                    over = True
                elif data := os.read(source.fileno(), 65536):
                    send(peer, outputs[source], data)
                    continue
                else:
                    del outputs[source]
                selector.unregister(source)
    os.close(ended)


def main():
    server = socket.create_server((sys.argv[1], PORT))
    if os.fork() != 0:
        return  # who started this knows by its end that callers can come
    os.setsid()
    while True:
        peer, _ = server.accept()
        threading.Thread(target=attend, args=(peer,), daemon=True).start()


if __name__ == "__main__":
    main()
