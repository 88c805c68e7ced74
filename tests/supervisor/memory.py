#!/usr/bin/python3
"""Looks for a machine's key in the memory of processes, and says how much memory each has for itself.

    memory.py KEYFILE NAME ...     each NAME as in /proc/PID/comm

A line for each process: NAME PID PRIVATE_KIB FOUND, where FOUND lists what was found and the flags of its mapping,
"text" for the key's text in base64 and "seed" for the 32 secret bytes of its PKCS#8: "-", or "seed:lo,dd,...;text:...".
"""
import base64
import os
import re
import sys


def needles(path):
    text = re.search(r'^key = "([^"]+)"', open(path).read(), re.M).group(1)
    return {"text": text.encode(), "seed": base64.b64decode(text)[16:48]}


def mappings(pid):
    """Start, end and flags of each, proc_pid_smaps(5)."""
    at = None
    for line in open(f"/proc/{pid}/smaps"):
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
        if head:
            at = int(head[1], 16), int(head[2], 16)
        elif re.match(r"[0-9a-f]+-", line):
            at = None
        elif at and line.startswith("VmFlags:"):
            yield (*at, line.split()[1:])


def found(pid, wanted):
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for start, end, flags in mappings(pid):
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue  # [vvar], which nobody can read
            for name, needle in wanted.items():
                if needle in content:
                    yield f"{name}:{','.join(flags)}"


def private_kib(pid):
    lines = open(f"/proc/{pid}/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if re.match(r"Private_(Clean|Dirty):", line))


def main():
    wanted = needles(sys.argv[1])
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = open(f"/proc/{pid}/comm").read().strip()
            if name in sys.argv[2:]:
                print(name, pid, private_kib(pid), ";".join(found(pid, wanted)) or "-", flush=True)
        except FileNotFoundError:
            pass  # it has ended


main()
