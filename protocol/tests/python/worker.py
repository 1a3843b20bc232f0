#!/usr/bin/env python3
"""A worker written from docs/wire-protocol.md alone, with nothing but the standard library.

It answers each connection with its facts and message, as HTTP, and each JSON message with an echo;
into every plain descriptor that comes with a message it writes the message. It is the proof that the
document suffices, and a test plays the router (protocol/tests/python_worker.rs). One thread, one
`selectors` loop; a connection is read only after it was acknowledged.
"""

import errno
import fcntl
import json
import os
import selectors
import socket
import struct
import sys
import time

HEADER = struct.Struct("<2sBBBBHQ")
FIELD = struct.Struct("<HH")
MAGIC, VERSION, LARGE = b"vb", 1, 0x80
MAX_PACKET, MAX_DESCRIPTORS, MAX_MESSAGE, MAX_TRANSFER_LIST = 32768, 64, 1 << 24, 1 << 20

ATTACH, OFFER, MESSAGE, REFUSED, DRAIN, CLOSE = range(0x01, 0x07)
HELLO, ACKNOWLEDGE, REFUSE, WORKER_MESSAGE, ERROR, DRAINING, CLOSING = range(0x41, 0x48)
NONE, JSON = 0, 1
DRAINING_REASON, CLOSING_REASON, MISSING, BEHIND, UNDECODABLE, FORMAT = range(1, 7)

ENTRY, ENTRY_MESSAGE, MESSAGE_FOLLOWS = 0x0001, 0x0002, 0x0003
CONNECTION, PORT, LISTENER, DESCRIPTOR = range(0x0004, 0x0008)
UP_TO, OPEN, REFUSAL, TIMEOUT = 0x0010, 0x0012, 0x0013, 0x0014
VERSIONS, DRAIN_TIMEOUT, PACKET_SIZE, BATCH, ACKS, READY = range(0x0030, 0x0036)
HELLO_OPEN, RECEIVED = 0x0036, 0x0037
ID, PEER, LISTENER_NAME, ROUTE = range(0x0101, 0x0105)

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class ProtocolError(Exception):
    """The router sent what the document does not have: the port is closed."""


class Unusable(Exception):
    """This message cannot be taken; its argument is the reason's number."""


def fields(body):
    """Yields (tag, value, offset of what follows)."""
    at = 0
    while at < len(body):
        if len(body) - at < FIELD.size:
            raise ProtocolError("field head is cut off")
        tag, length = FIELD.unpack_from(body, at)
        at += FIELD.size
        if len(body) - at < length:
            raise ProtocolError("field is cut off")
        at += length
        yield tag, body[at - length:at], at


def field(tag, value=b""):
    return FIELD.pack(tag, len(value)) + value


def number(value, size):
    if len(value) != size:
        raise ProtocolError(f"a number of {len(value)} bytes, not {size}")
    return int.from_bytes(value, "little")


def address(value):
    if len(value) == 6:
        return f"{socket.inet_ntop(socket.AF_INET, value[:4])}:{number(value[4:], 2)}"
    if len(value) != 22:
        raise ProtocolError("half an address")
    return f"[{socket.inet_ntop(socket.AF_INET6, value[:16])}]:{number(value[16:18], 2)}"


def read_facts(body):
    """Facts of a connection, and the message among them."""
    facts, message = {"peer": "none", "listener": "", "route": ""}, b""
    for tag, value, _ in fields(body):
        if tag == ID:
            facts["id"] = number(value, 8)
        elif tag == PEER:
            facts["peer"] = address(value)
        elif tag == LISTENER_NAME:
            facts["listener"] = value.decode()
        elif tag == ROUTE:
            facts["route"] = value.decode()
        elif tag == ENTRY_MESSAGE:
            message = value
    if "id" not in facts:
        raise ProtocolError("a connection without its number")
    return facts, message


def read_large(descriptor):
    """The content of a sealed memfd."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    size = os.fstat(descriptor).st_size
    if seals & SEALS != SEALS or size > MAX_MESSAGE + MAX_TRANSFER_LIST:
        raise Unusable(UNDECODABLE)
    content = bytearray()
    while len(content) < size:
        part = os.pread(descriptor, size - len(content), len(content))
        if not part:
            raise Unusable(UNDECODABLE)
        content += part
    return bytes(content)


class Connection:
    """One client: read to the end of the request's head, answered, shut down, closed."""

    def __init__(self, descriptor, facts, message):
        self.socket = socket.socket(fileno=descriptor)
        self.socket.setblocking(False)
        self.facts, self.message, self.head = facts, message, b""

    def read(self):
        """True once it is answered or gone."""
        try:
            part = self.socket.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            part = b""
        self.head += part
        if part and b"\r\n\r\n" not in self.head:
            return False
        if part:
            words = (f"{name}={value}" for name, value in sorted(self.facts.items()))
            text = f"{'; '.join(words)}; message={self.message.decode()}\n".encode()
            start = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n"
            self.socket.setblocking(True)
            self.socket.sendall(f"{start}content-length: {len(text)}\r\n\r\n".encode() + text)
        return True

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


class Worker:
    """The worker's side of one port."""

    def __init__(self, descriptor):
        self.port = socket.socket(fileno=descriptor)
        self.port.set_inheritable(False)
        self.port.setblocking(True)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.port, selectors.EVENT_READ)
        self.open = set()
        self.epoch = None
        self.received = self.posted = 0
        self.drain_timeout = 0
        self.deadline = None
        self.refusal = None
        self.reset_seen = False
        self.port_open = True

    def run(self):
        while self.port_open or self.open:
            if self.deadline is not None and (not self.open or time.monotonic() > self.deadline):
                break
            wait = None if self.deadline is None else max(0, self.deadline - time.monotonic())
            reported = len(self.open)
            for key, _ in self.selector.select(wait):
                if key.fileobj is self.port:
                    self.receive()
                elif key.data.read():
                    self.end(key.data)
            if len(self.open) < reported and self.epoch is not None:
                self.say(ACKNOWLEDGE, field(OPEN, len(self.open).to_bytes(4, "little")))

    # --- out

    def say(self, kind, body=b"", codec=NONE, sequence=0, epoch=None):
        if not self.port_open:
            return
        epoch = self.epoch if epoch is None else epoch
        head = HEADER.pack(MAGIC, VERSION, codec, kind, 0, epoch, sequence)
        try:
            self.port.send(head + body, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            self.over()

    def settle(self, epoch, last, refusals):
        """Refusals first, then everything up to the last number."""
        self.received = last
        if refusals:
            refused = (field(REFUSAL, struct.pack("<QH", *refusal)) for refusal in refusals)
            self.say(REFUSE, b"".join(refused), epoch=epoch)
        load = field(OPEN, len(self.open).to_bytes(4, "little"))
        self.say(ACKNOWLEDGE, field(UP_TO, last.to_bytes(8, "little")) + load, epoch=epoch)

    # --- in

    def receive(self):
        try:
            packet, descriptors, flags, _ = socket.recv_fds(
                self.port, MAX_PACKET, MAX_DESCRIPTORS + 1, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            if self.reset_seen:
                return self.over()
            self.reset_seen = True
            return None
        if not packet:
            for descriptor in descriptors:
                os.close(descriptor)
            return self.over()
        try:
            self.packet(packet, descriptors, flags)
        except (ProtocolError, UnicodeDecodeError) as error:
            print(f"protocol error: {error}", file=sys.stderr)
            self.over()
        finally:
            # What nobody took.
            for descriptor in descriptors:
                os.close(descriptor)
        return None

    def packet(self, packet, descriptors, flags):
        if flags & socket.MSG_TRUNC or len(packet) < HEADER.size:
            raise ProtocolError("a packet too long or too short")
        magic, version, codec, kind, announced, epoch, sequence = HEADER.unpack_from(packet)
        if magic != MAGIC or version != VERSION or announced > MAX_DESCRIPTORS:
            raise ProtocolError("no header")
        arrived = len(descriptors)
        if arrived > announced or (arrived == announced and flags & socket.MSG_CTRUNC):
            raise ProtocolError("descriptors that were not announced")
        large, kind, body = bool(kind & LARGE), kind & ~LARGE, packet[HEADER.size:]
        if kind not in (OFFER, MESSAGE) and announced or large and kind != MESSAGE:
            raise ProtocolError("descriptors that this kind does not carry")
        if kind == ATTACH:
            self.attach(epoch, body)
        elif self.epoch is None:
            raise ProtocolError("something before ATTACH")
        elif kind == OFFER:
            self.offer(codec, announced, epoch, sequence, body, descriptors)
        elif kind == MESSAGE:
            self.message(codec, large, announced, epoch, sequence, body, descriptors)
        elif kind == REFUSED:
            print("a message came back", file=sys.stderr)
        elif kind == DRAIN:
            timeout = [number(value, 4) for tag, value, _ in fields(body) if tag == TIMEOUT]
            if not timeout:
                raise ProtocolError("DRAIN without its time")
            self.finish(DRAINING_REASON, timeout[-1] / 1000)
        elif kind == CLOSE:
            self.finish(CLOSING_REASON, 0)
        else:
            raise ProtocolError(f"kind {kind:#04x}")

    def attach(self, epoch, body):
        versions, self.drain_timeout = None, 60.0
        for tag, value, _ in fields(body):
            if tag == VERSIONS:
                versions = struct.unpack("<BB", value)
            elif tag == DRAIN_TIMEOUT:
                self.drain_timeout = number(value, 4) / 1000
        if versions is None:
            raise ProtocolError("ATTACH without versions")
        if not versions[0] <= VERSION <= versions[1]:
            sys.exit("no common version")
        self.epoch = epoch
        self.say(HELLO, b"".join((
            field(VERSIONS, struct.pack("<B", VERSION)),
            field(PACKET_SIZE, struct.pack("<I", MAX_PACKET)),
            field(BATCH, struct.pack("<H", MAX_DESCRIPTORS)),
            field(ACKS, b"\0"),
            field(READY, b"\0" if self.refusal else b"\1"),
            field(HELLO_OPEN, struct.pack("<I", len(self.open))),
            field(RECEIVED, struct.pack("<Q", self.received)),
        )))

    def numbered(self, sequence):
        if sequence != self.received + 1:
            raise ProtocolError(f"sequence {sequence} after {self.received}")

    def offer(self, codec, announced, epoch, sequence, body, descriptors):
        self.numbered(sequence)
        entries = [read_facts(value) for tag, value, _ in fields(body) if tag == ENTRY]
        if len(entries) != announced:
            raise ProtocolError("another number of entries than descriptors")
        arrived, taken, refusals = len(descriptors), [], []
        for place, (facts, message) in enumerate(entries):
            if self.refusal:
                refusals.append((sequence + place, self.refusal))
            elif codec not in (NONE, JSON):
                refusals.append((sequence + place, FORMAT))
            elif place >= arrived:
                reason = MISSING if place == arrived else BEHIND
                refusals.append((sequence + place, reason))
            else:
                taken.append(Connection(descriptors[place], facts, message))
        # From here on the connections own their descriptors; refused ones are closed by the caller.
        del descriptors[:len(taken)]
        self.open.update(taken)
        self.settle(epoch, sequence + announced - 1, refusals)
        for connection in taken:
            self.selector.register(connection.socket, selectors.EVENT_READ, connection)

    def message(self, codec, large, announced, epoch, sequence, body, descriptors):
        self.numbered(sequence)
        refusals = []
        try:
            if len(descriptors) < announced:
                raise Unusable(MISSING)
            if self.refusal == CLOSING_REASON:
                raise Unusable(self.refusal)
            if codec != JSON:
                raise Unusable(FORMAT)
            if large:
                if not descriptors:
                    raise Unusable(MISSING)
                body = read_large(descriptors[0])
            text = self.transferred(body, descriptors[large:])
            self.posted += 1
            echo = json.dumps({"echo": len(text)}).encode()
            self.say(WORKER_MESSAGE, echo, codec=JSON, sequence=self.posted)
        except Unusable as unusable:
            refusals.append((sequence, unusable.args[0]))
        self.settle(epoch, sequence, refusals)

    def transferred(self, body, descriptors):
        """Checks the transfer list, reads the message, and writes it into plain descriptors."""
        items, message = [], None
        for tag, value, end in fields(body):
            if tag in (CONNECTION, PORT, LISTENER, DESCRIPTOR):
                items.append(tag)
            elif tag == MESSAGE_FOLLOWS:
                if value:
                    raise ProtocolError("MESSAGE_FOLLOWS is not empty")
                message = body[end:]
                break
        if message is None or len(items) != len(descriptors):
            raise ProtocolError("the transfer list is wrong")
        try:
            text = json.loads(message)
        except ValueError:
            raise Unusable(UNDECODABLE) from None
        for tag, descriptor in zip(items, descriptors):
            if tag == DESCRIPTOR:
                os.write(descriptor, str(text).encode())
        return text

    # --- the end

    def end(self, connection):
        self.selector.unregister(connection.socket)
        connection.close()
        self.open.discard(connection)

    def finish(self, reason, seconds):
        """Nothing new; what is open has this long."""
        self.refusal = max(self.refusal or 0, reason)
        deadline = time.monotonic() + seconds
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def over(self):
        """The port is closed, by the router or because it broke the protocol."""
        if not self.port_open:
            return
        self.port_open = False
        self.selector.unregister(self.port)
        try:
            self.port.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        self.port.close()
        self.finish(DRAINING_REASON, self.drain_timeout)


if __name__ == "__main__":
    number_of_port = int(os.environ.pop("VESTIBULE_FD"))
    Worker(number_of_port).run()
