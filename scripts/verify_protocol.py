#!/usr/bin/env python3
"""Checks a recorded session of Romulus against docs/protocol.md.

An independent reader, written from the document alone: it shares no code with the
implementation. It replays the recording, keeps its own map of the backup's frames and reports
every byte layout, checksum, identity, sequence or placement that breaks the document's rules,
with the file offset of the record.

Exit status: 0 the recording obeys the protocol, 1 it does not, 2 it could not be read.
"""

import argparse
import json
import struct
import sys
import zlib
from dataclasses import dataclass, field

PAGE = 4096
VERSION = 1
MAX_NUMBER = (1 << 63) - 1
MAX_PAGES, MAX_FRAMES = 1 << 31, (1 << 32) - 1
MAX_HANDSHAKE, MAX_MESSAGE = 64 * 1024, 4096
MAX_PAYLOAD = 512 << 20
ROUND_MARKER = 1 << 63
KINDS = {1: "Hello", 2: "Welcome", 3: "RoundEnd", 4: "RoundAck", 5: "Commit", 6: "Ack", 7: "Home",
         8: "Invalidate", 9: "Invalidated", 10: "Heartbeat", 11: "Bye", 12: "ByeAck", 13: "Error"}
FROM_PRIMARY = {"Hello", "RoundEnd", "Commit", "Home", "Invalidate"}
FROM_BACKUP = {"Welcome", "RoundAck", "Ack", "Invalidated"}
REASONS = {1: "GuestEnded", 2: "Detached", 3: "Failover", 4: "GuestDied", 5: "BackupLeaves"}
RECORDS = {1: "Sent", 2: "Received", 3: "Slot", 4: "Marker", 5: "Connected", 6: "Disconnected",
           7: "LimitReached"}


class Broken(Exception):
    """A record that breaks a rule."""


def need(condition, text):
    if not condition:
        raise Broken(text)


class Body:
    """Reads fields from front to back."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count, what):
        need(self.at + count <= len(self.data), f"{what}: {count} bytes needed, {len(self.data) - self.at} left")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, size, what, low=0, high=None):
        value = int.from_bytes(self.take(size, what), "little")
        need(low <= value and (high is None or value <= high), f"{what} {value} is not within {low}..={high}")
        return value

    def zeros(self, count, what):
        need(not any(self.take(count, what)), f"{what}: reserved bytes are not zero")

    def text(self, what, limit, name=True):
        raw = self.take(self.number(2, f"length of {what}", 0, limit), what)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Broken(f"{what} is not UTF-8") from None
        if name:
            need(text, f"{what} is empty")
            need(not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text), f"{what} has control characters")
        return text

    def end(self):
        need(self.at == len(self.data), f"{len(self.data) - self.at} bytes too many")


@dataclass(frozen=True)
class Identity:
    session: int
    generation: int
    incarnation: int
    connection: int

    def __str__(self):
        return (f"session {self.session:032x}, generation {self.generation}, "
                f"incarnation {self.incarnation}, connection {self.connection}")


def read_identity(data):
    session = int.from_bytes(data[:16], "little")
    numbers = struct.unpack("<3Q", data[16:40])
    for name, value in zip(("generation", "incarnation", "connection"), numbers):
        need(value <= MAX_NUMBER, f"{name} {value} exceeds {MAX_NUMBER}")
    return Identity(session, *numbers)


def read_message(data):
    """Kind, identity and fields of a message."""
    need(len(data) >= 64, f"message of {len(data)} bytes is shorter than its header")
    need(data[:4] == b"RMLM", f"magic {data[:4]!r}")
    version, kind, length = struct.unpack("<HHI", data[4:12])
    body_sum, header_sum = struct.unpack("<II", data[56:64])
    need(zlib.crc32(data[:60]) == header_sum, "header checksum")
    need(kind in KINDS, f"kind {kind}")
    name = KINDS[kind]
    need(version == VERSION or name == "Error", f"version {version}")
    need(length == len(data), f"length {length}, is {len(data)}")
    limit = MAX_HANDSHAKE if name in ("Hello", "Welcome") else MAX_MESSAGE
    need(length <= limit, f"{name} of {length} bytes exceeds {limit}")
    need(data[12:16] == bytes(4), "reserved bytes of the header")
    need(zlib.crc32(data[64:]) == body_sum, "body checksum")
    body = Body(data[64:])
    fields = READERS[name](body)
    body.end()
    return name, read_identity(data[16:56]), fields


def read_hello(b):
    low = b.number(2, "lowest version", 1)
    high = b.number(2, "highest version", low)
    suspect = b.number(4, "suspicion timer")
    depth = b.number(8, "depth", 1, 255)
    pages = b.number(8, "pages", 1, MAX_PAGES)
    spares = b.number(8, "spares", 0, MAX_PAGES)
    need(pages + spares <= MAX_FRAMES, "too many frames")
    slots = b.number(8, "slots", depth + 1, 256)
    slot_bytes = b.number(8, "slot length", PAGE, 1 << 30)
    need(slot_bytes % PAGE == 0, "slot length is no multiple of a page")
    flags = b.number(4, "arena flags", 0, 1)
    regions = b.number(2, "regions", 1, 512)
    lines = b.number(2, "configuration lines", 0, 1024)
    b.take(b.number(4, "length of fabric's offer", 0, 32768), "fabric's offer")
    primary, guest = b.text("primary's name", 255), b.text("guest's name", 255)
    hypervisor = b.text("hypervisor", 255)
    layout = [(b.number(8, "region's pages", 1, MAX_PAGES), b.text("region's name", 255)) for _ in range(regions)]
    need(len({name for _, name in layout}) == regions, "a region twice")
    need(sum(count for count, _ in layout) == pages, "the regions' pages are not the arena's")
    machine = [b.text("configuration line", 1024, name=False) for _ in range(lines)]
    return dict(versions=(low, high), suspect=suspect, depth=depth, pages=pages, spares=spares, slots=slots,
                slot_bytes=slot_bytes, copy_only=bool(flags), primary=primary, guest=guest,
                hypervisor=hypervisor, layout=layout, machine=machine)


def read_welcome(b):
    version = b.number(2, "version")
    b.zeros(6, "Welcome")
    fields = dict(version=version, committed=b.number(8, "committed", 0, MAX_NUMBER),
                  homed_through=b.number(8, "homed through", 0, MAX_NUMBER))
    b.take(b.number(4, "length of fabric's answer", 0, 32768), "fabric's answer")
    fields["backup"] = b.text("backup's name", 255)
    return fields


def read_home(b):
    first = b.number(8, "homing sequence", 1, MAX_NUMBER)
    count = b.number(2, "homings", 1, 128)
    need(first + count <= MAX_NUMBER, "homing sequence leaves no room")
    b.zeros(6, "Home")
    pairs = [(b.number(8, "page", 0, MAX_PAGES - 1), b.number(8, "frame", 0, MAX_FRAMES - 1))
             for _ in range(count)]
    return dict(first=first, homings=pairs)


def read_reason(b):
    reason = REASONS[b.number(2, "reason", 1, 5)]
    b.zeros(6, "Bye")
    return dict(reason=reason)


def one(name, low=1, high=MAX_NUMBER):
    return lambda b: {name: b.number(8, name, low, high)}


READERS = {
    "Hello": read_hello, "Welcome": read_welcome, "Home": read_home, "Bye": read_reason, "ByeAck": read_reason,
    "RoundEnd": one("round"), "RoundAck": one("round"), "Commit": one("epoch"), "Invalidated": one("incarnation"),
    "Invalidate": lambda b: {},
    "Ack": lambda b: dict(committed=b.number(8, "committed", 0, MAX_NUMBER),
                          homed_through=b.number(8, "homed through", 0, MAX_NUMBER)),
    "Heartbeat": lambda b: dict(sequence=b.number(8, "sequence"), progress=b.number(8, "progress")),
    "Error": lambda b: dict(code=b.number(2, "error code", 1, 9), text=b.text("error text", 1024, name=False)),
}


def read_slot(payload):
    """Identity, epoch, transfers (page, frame, pages), state offset and length of a recorded slot."""
    need(len(payload) >= 8 + 128, f"slot record of {len(payload)} bytes is shorter than a slot's header")
    computed, reserved = struct.unpack("<II", payload[:8])
    data = payload[8:]
    need(reserved == 0, "reserved bytes of the slot record")
    need(data[:4] == b"RMLS", f"slot magic {data[:4]!r}")
    need(zlib.crc32(data[:124]) == struct.unpack("<I", data[124:128])[0], "slot header checksum")
    need(struct.unpack("<H", data[4:6])[0] == VERSION, "slot version")
    need(not any(data[6:16]) and not any(data[104:124]), "reserved bytes of the slot header")
    epoch, count, pages, state_bytes, state_offset = struct.unpack("<5Q", data[56:96])
    extents_sum, state_sum = struct.unpack("<II", data[96:104])
    need(1 <= epoch <= MAX_NUMBER, f"slot epoch {epoch}")
    need(count <= 1 << 24 and state_bytes <= 256 << 20, "slot counts exceed their limits")
    end = 128 + 24 * count
    need(state_offset == -(-end // 64) * 64, f"state at {state_offset} behind {count} extents")
    need(len(data) == state_offset, f"slot record has {len(data)} bytes of slot, not {state_offset}")
    need(zlib.crc32(data[128:]) == extents_sum, "extents checksum")
    need(not any(data[end:]), "bytes between extents and state are not zero")
    need(computed == state_sum, "state checksum")
    transfers = []
    for page, frame, number, kind, zero in struct.iter_unpack("<QQIHH", data[128:end]):
        need(kind == 1, f"extent kind {kind}")
        need(zero == 0, "reserved bytes of an extent")
        need(number > 0 and page + number <= MAX_PAGES and frame + number <= MAX_FRAMES, "extent out of range")
        transfers.append((page, frame, number))
    need(sum(number for _, _, number in transfers) == pages, "sum of the extents' pages")
    return read_identity(data[16:56]), epoch, transfers, state_offset, state_bytes


@dataclass
class Image:
    """What one incarnation of the arena holds, as far as acks tell (the document's rule 1)."""
    shape: dict
    acked: int = 0
    homed_through: int = 0
    placed: int = 0
    whole: bool = False                                # with copy-only homes: an epoch had a state
    displaced: dict = field(default_factory=dict)      # page -> spare frame, map at A with homings up to h
    in_spares: dict = field(default_factory=dict)      # its inverse
    unacked: dict = field(default_factory=dict)        # epoch -> {page: frame}
    claimed: dict = field(default_factory=dict)        # frame -> epoch, targets of unacked epochs
    homings: dict = field(default_factory=dict)        # sequence -> (page, source), after h
    round: int = 0

    def last_homing(self):
        return self.homed_through + len(self.homings)

    def live(self):
        return self.acked > 0 or bool(self.unacked)

    def why_used(self, frame):
        """Why a frame must not be written, or None."""
        pages = self.shape["pages"]
        if frame < pages and self.live() and frame not in self.displaced:
            return "the map"
        if frame in self.in_spares:
            return f"the map (page {self.in_spares[frame]})"
        if frame in self.claimed:
            return f"epoch {self.claimed[frame]}"
        for sequence, (page, source) in self.homings.items():
            if frame in (page, source):
                return f"homing {sequence}"
        return None

    def place(self, epoch, transfers):
        pages, spares = self.shape["pages"], self.shape["spares"]
        targets, page_end = [], 0
        busy = {frame for pair in self.homings.values() for frame in pair}
        for page, frame, count in transfers:
            need(page >= page_end, f"page {page} twice or out of order")
            page_end = page + count
            need(page_end <= pages and frame + count <= pages + spares, "extent leaves the arena")
            need(frame >= pages or frame == page, f"page {page} in the home of page {frame}")
            need(frame >= pages or frame + count <= pages, "extent crosses from homes to spares")
            need(frame >= pages or not self.shape["copy_only"], f"page {page} in its copy-only home")
            targets.extend(zip(range(page, page_end), range(frame, frame + count)))
        seen = set()
        live = self.live()
        for page, frame in targets:
            need(frame not in seen, f"frame {frame} twice")
            seen.add(frame)
            free = frame not in busy and frame not in self.claimed and frame not in self.in_spares
            free = free and not (live and frame < pages and frame not in self.displaced)
            need(free, f"page {page} of epoch {epoch} in frame {frame}, which {self.why_used(frame)} uses")
        self.unacked[epoch] = dict(targets)
        self.claimed.update((frame, epoch) for frame in seen)
        self.placed = epoch

    def newest(self, page, through=None):
        """The newest frame of a page among the epochs placed (up to `through`)."""
        for epoch in sorted(self.unacked, reverse=True):
            if (through is None or epoch <= through) and page in self.unacked[epoch]:
                return self.unacked[epoch][page]
        return self.displaced.get(page, page)

    def ask_homing(self, sequence, page, source):
        pages, spares = self.shape["pages"], self.shape["spares"]
        need(sequence == self.last_homing() + 1, f"homing {sequence} after {self.last_homing()}")
        need(page < pages, f"homing {sequence} of page {page}, there are {pages}")
        need(pages <= source < pages + spares, f"homing {sequence} from frame {source}, no spare")
        for other, (at, frame) in self.homings.items():
            need(page != at and source != frame, f"homing {sequence} while {other} of the same is outstanding")
        self.homings[sequence] = (page, source)

    def check_homing(self, sequence, page, source):
        newest = self.newest(page)
        need(newest == source, f"homing {sequence} of page {page} from frame {source}, it is in {newest}")
        need(page not in self.claimed, f"homing {sequence} into home {page}, target of an unacked epoch")

    def stand_at(self, committed, homed_through, last_commit):
        """What an Ack or a Welcome says."""
        need(self.acked <= committed, f"committed {committed} after {self.acked}")
        need(committed == self.acked or committed <= last_commit, f"committed {committed}, sent {last_commit}")
        need(self.homed_through <= homed_through <= self.last_homing(),
             f"homed through {homed_through}, not within {self.homed_through}..={self.last_homing()}")
        for epoch in sorted(self.unacked):
            if epoch <= committed:
                self.enter(self.unacked.pop(epoch))
        self.acked = committed
        while self.homed_through < homed_through:
            self.homed_through += 1
            page, source = self.homings.pop(self.homed_through)
            if self.displaced.get(page) == source:
                del self.displaced[page], self.in_spares[source]

    def enter(self, targets):
        for frame in targets.values():
            del self.claimed[frame]
        for page, frame in targets.items():
            old = self.displaced.pop(page, None)
            if old is not None:
                del self.in_spares[old]
            if frame >= self.shape["pages"]:
                self.displaced[page] = frame
                self.in_spares[frame] = page

    def drop_unfinished(self):
        self.unacked.clear()
        self.claimed.clear()
        self.homings.clear()
        self.placed = self.acked


class Replay:
    """Follows a recording record by record."""

    def __init__(self, primary):
        self.primary = primary          # recorded on the primary
        self.image = None
        self.identity = None            # of the connection, once welcome
        self.last_identity = None       # of the connection before
        self.connections = {}           # session -> highest connection number
        self.counts = {}
        self.sent_on_last = 0           # last Commit sent in this incarnation, on any connection
        self.new_connection()

    def new_connection(self):
        self.hello = None
        self.phase = "idle"             # idle, connected, asked, open, over
        self.last_commit = self.image.acked if self.image else 0
        self.markers = set()
        self.round_ended = self.image.round if self.image else 0
        self.heartbeats = {"primary": 0, "backup": 0}
        self.byes = {}
        self.awaiting = []              # homings to check once their commits are known (backup)
        self.invalidating = False
        self.silenced = set()
        self.foreign = False
        self.previous_identity = None   # before an Invalidated of this connection

    def record(self, kind, payload):
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind in ("Sent", "Received"):
            sender = "primary" if (kind == "Sent") == self.primary else "backup"
            self.message(sender, *read_message(payload))
        elif kind == "Slot":
            need(not self.foreign, "a slot for an image that the primary does not know")
            self.slot(*read_slot(payload))
        elif kind == "Marker":
            need(len(payload) == 8, "marker record's length")
            need(self.phase == "open", "marker without a connection")
            marker = int.from_bytes(payload, "little")
            need(marker not in self.markers, f"marker {marker:#x} twice")
            self.markers.add(marker)
        elif kind == "Connected":
            need(len(payload) == 8, "connection record's length")
            need(self.phase == "idle", "a connection begins inside another")
            self.phase = "connected"
        elif kind == "Disconnected":
            need(not payload, "disconnection record's length")
            self.new_connection()

    def message(self, sender, name, identity, fields):
        self.counts[name] = self.counts.get(name, 0) + 1
        need(name not in (FROM_PRIMARY if sender == "backup" else FROM_BACKUP), f"{name} from the {sender}")
        need(sender not in self.silenced, f"{name} from the {sender} after its Error")
        if name == "Error":
            need(self.phase in ("asked", "open"), "Error without a connection")
            self.silenced.add(sender)
            return
        if name not in ("Hello", "Welcome"):
            need(self.phase == "open", f"{name} before the handshake is done")
            if self.foreign:
                allowed = ("Heartbeat", "Invalidate", "Invalidated", "Bye", "ByeAck")
                need(name in allowed, f"{name} about an image that the primary does not know")
            # Said before the primary learned of a new incarnation.
            late = name in ("Heartbeat", "Bye") and sender == "primary" and identity == self.previous_identity
            need(late or identity == self.identity, f"{name} of {identity}; the connection is {self.identity}")
        getattr(self, "on_" + name.lower())(sender, identity, **fields)

    def on_hello(self, _sender, identity, **hello):
        need(self.phase == "connected", "Hello is not the first message of a connection")
        before = self.connections.get(identity.session, 0)
        need(identity.connection > before, f"connection {identity.connection} after {before}")
        self.connections[identity.session] = identity.connection
        need(hello["versions"][0] <= VERSION <= hello["versions"][1], "Hello does not offer its own version")
        self.hello, self.hello_identity, self.phase = hello, identity, "asked"

    def on_welcome(self, _sender, identity, version, committed, homed_through, backup):
        need(self.phase == "asked", "Welcome without a Hello")
        need(version == VERSION, f"Welcome chooses version {version}")
        asked, before = self.hello_identity, self.last_identity
        for part in ("session", "generation", "connection"):
            found, wanted = getattr(identity, part), getattr(asked, part)
            need(found == wanted, f"Welcome of {part} {found}, Hello of {wanted}")
        need(identity.incarnation >= 1, "Welcome of incarnation 0")
        shape = {key: self.hello[key] for key in ("pages", "spares", "slots", "slot_bytes", "copy_only", "depth")}
        same = (self.image is not None and before.session == identity.session
                and before.incarnation == identity.incarnation)
        self.foreign = False
        if same:
            need(committed > 0, "nothing is committed in a known incarnation")
            need(shape == self.image.shape, "the arena's shape changed within an incarnation")
            self.image.stand_at(committed, homed_through, self.sent_on_last)
            self.image.drop_unfinished()
        else:
            need(committed > 0 or homed_through == 0, "homings without a commit")
            # An image that the primary does not know can only be invalidated.
            self.foreign = committed > 0
            self.image = None if self.foreign else Image(shape)
            # A new arena, or one that may have been written: the first two numbers of the connection.
            need(self.foreign or identity.incarnation - 256 * identity.connection in (0, 1),
                 f"a fresh content of incarnation {identity.incarnation} on connection {identity.connection}")
        self.shape = shape
        self.identity, self.last_identity, self.phase = identity, identity, "open"
        self.last_commit = committed
        self.sent_on_last = committed
        self.round_ended = self.image.round if self.image else 0

    def on_roundend(self, _sender, _identity, round):
        need(not self.image.live(), "a synchronization round after the first epoch")
        need(not self.image.shape["copy_only"], "a synchronization round with copy-only homes")
        need(round == self.round_ended + 1, f"round {round} after {self.round_ended}")
        need(self.image.round == self.round_ended, f"round {round} before {self.round_ended} is acked")
        if self.primary:
            need(ROUND_MARKER | round in self.markers, f"RoundEnd {round} without its marker")
        self.round_ended = round

    def on_roundack(self, _sender, _identity, round):
        need(self.image.round < round <= self.round_ended, f"RoundAck {round}, ended {self.round_ended}")
        if not self.primary:
            need(ROUND_MARKER | round in self.markers, f"RoundAck {round} without its marker")
        self.image.round = round

    def slot(self, identity, epoch, transfers, state_offset, state_bytes):
        used = state_offset + state_bytes
        need(self.phase == "open", "slot without a connection")
        need(not self.invalidating, "slot after Invalidate")
        need(identity == self.identity, f"slot of {identity}; the connection is {self.identity}")
        image = self.image
        need(used <= image.shape["slot_bytes"], f"slot of {used} bytes in {image.shape['slot_bytes']}")
        need(epoch == image.placed + 1, f"slot of epoch {epoch} after {image.placed}")
        most = image.acked + image.shape["slots"] - 1
        need(epoch <= most, f"slot of epoch {epoch} is written, the last allowed is {most}")
        if not image.live():
            need(image.round == self.round_ended, "the first epoch before all rounds are acked")
        if not self.primary:
            need(epoch <= self.last_commit, f"slot of epoch {epoch} read before its Commit")
            need(epoch in self.markers, f"slot of epoch {epoch} read before its marker")
        if image.shape["copy_only"]:
            need(state_bytes > 0 or not image.whole, f"epoch {epoch} without a state over a whole image")
            image.whole = state_bytes > 0
        image.place(epoch, transfers)
        due = [entry for entry in self.awaiting if entry[0] <= epoch]
        self.awaiting = [entry for entry in self.awaiting if entry[0] > epoch]
        for _, sequence, page, source in due:
            image.check_homing(sequence, page, source)

    def on_commit(self, _sender, _identity, epoch):
        need(not self.invalidating, "Commit after Invalidate")
        need(epoch == self.last_commit + 1, f"Commit {epoch} after {self.last_commit}")
        need(epoch <= self.image.acked + self.image.shape["depth"],
             f"Commit {epoch} with {self.image.acked} acked and a depth of {self.image.shape['depth']}")
        if self.primary:
            need(epoch <= self.image.placed, f"Commit {epoch} before its slot")
            need(epoch in self.markers, f"Commit {epoch} before its marker")
        need(self.byes.get("primary") != "Failover", f"Commit {epoch} after Bye Failover")
        self.last_commit = self.sent_on_last = epoch

    def on_ack(self, _sender, _identity, committed, homed_through):
        if not self.primary:
            need(committed <= self.image.placed, f"Ack {committed} before its slot was read")
        self.image.stand_at(committed, homed_through, self.last_commit)

    def on_home(self, _sender, _identity, first, homings):
        need(not self.invalidating, "Home after Invalidate")
        need(self.last_commit > 0, "Home before the first Commit")
        for sequence, (page, source) in enumerate(homings, first):
            self.image.ask_homing(sequence, page, source)
            if self.primary:
                self.image.check_homing(sequence, page, source)
                sent = self.image.newest(page, self.last_commit)
                need(sent == source, f"homing {sequence} of page {page} before the Commit of its epoch")
            elif self.image.placed < self.last_commit:
                self.awaiting.append((self.last_commit, sequence, page, source))
            else:
                self.image.check_homing(sequence, page, source)

    def on_invalidate(self, _sender, _identity):
        need(not self.invalidating, "Invalidate twice")
        if self.image:
            need(self.last_commit > 0 or self.image.shape["copy_only"], "Invalidate before the first Commit")
            need(self.last_commit == self.image.placed, f"Invalidate with {self.image.placed} placed, "
                 f"{self.last_commit} sent")
            need(not (self.primary and self.image.unacked), "Invalidate with unacked epochs")
        self.invalidating = True

    def on_invalidated(self, _sender, identity, incarnation):
        need(self.invalidating, "Invalidated without Invalidate")
        need(incarnation > self.identity.incarnation, f"incarnation {incarnation} is not newer")
        need(incarnation // 256 == identity.connection,
             f"incarnation {incarnation} begun on connection {identity.connection}")
        self.previous_identity = identity
        self.identity = Identity(identity.session, identity.generation, incarnation, identity.connection)
        self.last_identity = self.identity
        self.image = Image(self.shape)
        self.invalidating = self.foreign = False
        self.last_commit = self.sent_on_last = self.round_ended = 0
        self.markers = set()
        self.awaiting = []

    def on_heartbeat(self, sender, _identity, sequence, progress):
        before = self.heartbeats[sender]
        need(sequence == before + 1, f"heartbeat {sequence} of the {sender} after {before}")
        self.heartbeats[sender] = sequence

    def on_bye(self, sender, _identity, reason):
        need((reason == "BackupLeaves") == (sender == "backup"), f"Bye {reason} from the {sender}")
        need(sender not in self.byes, f"a second Bye from the {sender}")
        self.byes[sender] = reason

    def on_byeack(self, sender, _identity, reason):
        other = "backup" if sender == "primary" else "primary"
        need(self.byes.get(other) == reason, f"ByeAck {reason} to {self.byes.get(other)}")


def read_records(data):
    """Yields (offset, kind, payload); raises Broken with an offset for what is no record."""
    at, last_time = 16, 0
    while at < len(data):
        if at + 24 > len(data):
            raise Broken(at, "the recording ends inside a record")
        kind, reserved, length, time, payload_sum, header_sum = struct.unpack("<HHIQII", data[at:at + 24])
        if zlib.crc32(data[at:at + 20]) != header_sum:
            raise Broken(at, "checksum of a record's header")
        if kind not in RECORDS or reserved or length > MAX_PAYLOAD or time < last_time:
            raise Broken(at, f"record of kind {kind}, {length} bytes, time {time} after {last_time}")
        payload = data[at + 24:at + 24 + length]
        if len(payload) != length:
            raise Broken(at, "the recording ends inside a record")
        if zlib.crc32(payload) != payload_sum:
            raise Broken(at, "checksum of a record's payload")
        yield at, RECORDS[kind], payload
        at, last_time = at + 24 + length, time


def verify(data, most_errors=20, allow_cut=False):
    """The report on a recording's bytes."""
    errors = []
    if len(data) < 16 or data[:4] != b"RMLR" or zlib.crc32(data[:12]) != struct.unpack("<I", data[12:16])[0]:
        return dict(errors=[dict(offset=0, text="no recording: file header")], role=None, records=0, counts={})
    version, role = struct.unpack("<HH", data[4:8])
    if version != 1 or role not in (1, 2) or any(data[8:12]):
        return dict(errors=[dict(offset=0, text=f"format {version}, role {role}")], role=None, records=0, counts={})
    replay, records, ended = Replay(role == 1), 0, False
    try:
        for offset, kind, payload in read_records(data):
            records += 1
            try:
                need(not ended, "a record after the recording's end")
                ended = kind == "LimitReached"
                replay.record(kind, payload)
            except Broken as broken:
                errors.append(dict(offset=offset, record=kind, text=str(broken)))
                if len(errors) >= most_errors:
                    break
    except Broken as broken:
        offset, text = broken.args
        if not (allow_cut and "ends inside" in text):
            errors.append(dict(offset=offset, text=text))
    return dict(role="primary" if role == 1 else "backup", records=records, counts=replay.counts, errors=errors)


def main():
    parser = argparse.ArgumentParser(description="Checks a recorded session against docs/protocol.md.")
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help="file written by a recorder")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each recording, one a line")
    parser.add_argument("--most-errors", type=int, default=20, metavar="N", help="stop after N errors (20)")
    parser.add_argument("--allow-cut", action="store_true",
                        help="accept a recording that ends inside a record (its host was killed)")
    options = parser.parse_args()
    return max([check(path, options) for path in options.recordings])


def check(path, options):
    """Reports on one recording; returns its exit status."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        print(f"verify_protocol: {error}", file=sys.stderr)
        return 2
    report = verify(data, options.most_errors, options.allow_cut)
    if options.json:
        print(json.dumps(dict(recording=path, **report)))
    else:
        for error in report["errors"]:
            print(f"{path}:{error['offset']}: {error.get('record', 'file')}: {error['text']}")
        counted = ", ".join(f"{count} {name}" for name, count in sorted(report["counts"].items()))
        print(f"{path}: {report['records']} records ({counted}), {len(report['errors'])} errors")
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
