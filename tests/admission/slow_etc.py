"""A directory whose files answer slowly: `slow_etc.py DIR SWITCH` mounts a read-only copy of DIR over DIR (FUSE).

While the file SWITCH is there, each lookup, stat and open takes as many seconds as SWITCH says, one after the other. Nothing
is cached by the kernel. Ends with its process.
"""
import ctypes
import os
import struct
import sys
import time

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, INIT, OPENDIR, READDIR, RELEASEDIR = 1, 2, 3, 14, 15, 18, 26, 27, 28, 29
BATCH_FORGET, FLUSH, INTERRUPT = 42, 25, 36
ENOENT, ENOSYS = 2, 38
libc = ctypes.CDLL(None, use_errno=True)
TOP, SWITCH = sys.argv[1], sys.argv[2]


class Node:
    def __init__(self, path, number):
        self.stat, self.number, self.names = os.lstat(path), number, {}
        self.data = open(path, "rb").read() if os.path.isfile(path) else b""


nodes = {}


def take(path):
    node = nodes[len(nodes) + 1] = Node(path, len(nodes) + 1)
    if os.path.isdir(path):
        for name in os.listdir(path):
            node.names[name.encode()] = take(os.path.join(path, name)).number
    return node


def attr(node):
    """struct fuse_attr."""
    s = node.stat
    times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
    nanos = (0, s.st_mtime_ns % 10**9, s.st_ctime_ns % 10**9)
    return struct.pack(
        "<6Q10I", node.number, len(node.data), 0, *times, *nanos, s.st_mode, 1, s.st_uid, s.st_gid, 0, 4096, 0
    )


def entries(node, offset):
    out = b""
    for at, (name, number) in enumerate(sorted(node.names.items()), 1):
        if at > offset:
            out += struct.pack("<QQII", number, at, len(name), 8) + name + b"\0" * (-len(name) % 8)
    return out


def delay():
    try:
        time.sleep(float(open(SWITCH).read() or 0))
    except (FileNotFoundError, ValueError):
        pass


def answer(opcode, node, rest):
    """An errno, or the bytes."""
    if opcode == INIT:
        return struct.pack("<IIIIHHIIHH8I", 7, 31, 4096, 0, 16, 16, 4096, 1, 0, 0, *[0] * 8)
    if opcode in (LOOKUP, GETATTR, OPEN, OPENDIR):
        delay()
    if opcode == LOOKUP:
        found = nodes.get(node.names.get(rest.rstrip(b"\0")))
        return struct.pack("<QQQQII", found.number, 0, 0, 0, 0, 0) + attr(found) if found else ENOENT
    if opcode == GETATTR:
        return struct.pack("<QII", 0, 0, 0) + attr(node)
    if opcode in (OPEN, OPENDIR):
        # FOPEN_DIRECT_IO: nothing of the file stays in the kernel.
        return struct.pack("<QII", 0, 1 if opcode == OPEN else 0, 0)
    if opcode in (READ, READDIR):
        _, offset, size = struct.unpack_from("<QQI", rest)
        return node.data[offset : offset + size] if opcode == READ else entries(node, offset)[:size]
    if opcode in (RELEASE, RELEASEDIR, FLUSH):
        return b""
    return ENOSYS


def main():
    take(TOP)
    dev = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={dev},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"slow", TOP.encode(), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    print("MOUNTED", flush=True)
    while True:
        request = os.read(dev, 1 << 20)
        _, opcode, unique, number = struct.unpack_from("<IIQQ", request)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        said = answer(opcode, nodes.get(number), request[40:])
        error, body = (-said, b"") if isinstance(said, int) else (0, said)
        os.write(dev, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


main()
