"""A client of the demonstration guest that keeps one connection, and the books of what it was told.

The protocol is in guest-workload/src/server.rs. Time-outs never end the connection: TCP repeats
what a dead host did not answer. Runs in the lab's network, through `scripts/lab exec 0`:

  client.py ADDRESS PORT      prints a JSON object a line: first what it asked and heard so far,
                              then one whenever a line comes on standard input, the last at its end
"""

import json
import select
import socket
import sys
import time

CLIENT = 7
PACE_S = 0.02


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


class Books:
    def __init__(self):
        self.due = {}
        self.requests = self.answered = self.highest = self.taken_back = self.duplicates = 0
        self.heard = None
        self.longest_silence_ms = 0.0
        self.latencies_ms = []
        self.complaints = []

    def request(self, now):
        self.requests += 1
        self.due[self.requests] = now
        return f"+ {CLIENT} {self.requests}\n"

    def answer(self, line, now):
        client, number, counter = map(int, line.split())
        if self.heard is not None:
            self.longest_silence_ms = max(self.longest_silence_ms, (now - self.heard) * 1e3)
        self.heard = now
        if number <= self.answered:
            self.duplicates += 1
            return
        if client != CLIENT or number != self.answered + 1 or number > self.requests:
            self.complaints.append(f"answer '{line}' where {self.answered + 1} was next")
        self.answered = number
        # Nobody else asks: the guest counts what this client does.
        if counter <= self.highest:
            self.taken_back += self.highest - counter + 1
        elif counter != number:
            self.complaints.append(f"answer '{line}' should tell the counter {number}")
        self.highest = counter
        self.latencies_ms.append((now - self.due.pop(number)) * 1e3)

    def record(self, line):
        """What the guest says that it knows of this client."""
        _, last, counter, duplicates = map(int, line.split())
        if counter < self.highest or last < self.answered:
            self.taken_back += max(self.highest - counter, self.answered - last)
        self.duplicates += duplicates

    def said(self):
        """Everything since the last time this was asked; latencies and silences begin anew."""
        latencies, self.latencies_ms = self.latencies_ms, []
        silence = self.longest_silence_ms
        if self.due and self.heard is not None:
            silence = max(silence, (time.monotonic() - self.heard) * 1e3)
        self.longest_silence_ms = 0.0
        return {
            "requests": self.requests,
            "answered": self.answered,
            "answers_taken_back": self.taken_back,
            "duplicates": self.duplicates,
            "longest_silence_ms": round(silence, 3),
            "latency_ms": {"p50": round(percentile(latencies, 0.5), 3), "p99": round(percentile(latencies, 0.99), 3)},
            "complaints": self.complaints[:8],
        }


def lines_of(peer, rest):
    data = peer.recv(65536)
    if not data:
        raise ConnectionError("the guest ended the connection")
    *lines, rest = (rest + data).split(b"\n")
    return [line.decode() for line in lines], rest


def talk(peer, books):
    """Asks and hears until standard input ends; then until everything is answered, and once
    whether the guest knows of it."""
    rest = b""
    due = time.monotonic()
    asking, audited = True, False
    end = None
    while True:
        now = time.monotonic()
        if asking and now >= due:
            peer.sendall(books.request(now).encode())
            due = max(due + PACE_S, now - 1)
        if not asking and not books.due and not audited:
            peer.sendall(f"? {CLIENT}\n".encode())
            audited = True
        wait_s = max(0.0, due - now) if asking else 1.0
        sources = [peer, sys.stdin] if asking else [peer]
        for source in select.select(sources, [], [], wait_s)[0]:
            if source is peer:
                lines, rest = lines_of(peer, rest)
                for line in lines:
                    if len(line.split()) == 4:
                        books.record(line)
                        return
                    books.answer(line, time.monotonic())
            elif sys.stdin.readline():
                print(json.dumps(books.said()), flush=True)
            else:
                asking = False
                end = time.monotonic() + 300
        if end and time.monotonic() > end:
            raise ConnectionError(f"{len(books.due)} requests were not answered in 300 s")


def main():
    books = Books()
    survived = 1
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=300) as peer:
        peer.settimeout(None)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            talk(peer, books)
        except OSError as error:
            survived = 0
            books.complaints.append(str(error))
    print(json.dumps({**books.said(), "survived": survived}), flush=True)


if __name__ == "__main__":
    main()
