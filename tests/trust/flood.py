"""A flood at a door: `flood.py ADDR PORT`. Ten thousand connections that say nothing are held as long as the door lets them;
meanwhile a thousand a second say garbage. Bounded: ten seconds."""
import random
import socket
import sys
import time

WHERE = (sys.argv[1], int(sys.argv[2]))
SECONDS, SILENT, GARBAGE_A_SECOND = 10, 10_000, 1_000
rng = random.Random(1)


def connection():
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(WHERE)
    return sock


silent = [connection() for _ in range(SILENT)]
print("FLOODING", len(silent), "silent connections", flush=True)
began, sent, told = time.monotonic(), 0, 0
while (now := time.monotonic() - began) < SECONDS:
    # A connection may take long where the door is crowded: then there are fewer, and not more time.
    while sent < now * GARBAGE_A_SECOND and time.monotonic() - began < SECONDS:
        sent += 1
        try:
            sock = socket.create_connection(WHERE, timeout=2)
            # What a TLS record begins with, and then not; or no TLS at all.
            sock.sendall(rng.choice((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"")) + rng.randbytes(300))
            sock.close()
        except OSError:
            told += 1
        # Who was closed comes again.
        again = rng.randrange(SILENT)
        silent[again].close()
        silent[again] = connection()
    time.sleep(0.001)
print("DONE", sent, "times garbage,", told, "not taken", flush=True)
