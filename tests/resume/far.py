"""What the near programs of tests/resume.rs talk to: `far.py DIR`.

DIR/echo says back what it hears, in order, and writes "fd N" into the N-th pipe that it is passed.
DIR/records is the same of records (SEQPACKET).
"""
import os
import socket
import sys
import threading


def serve(conn):
    number = 0
    while True:
        data, fds, _, _ = socket.recv_fds(conn, 1 << 16, 8)
        if not data:
            return conn.close()
        for fd in fds:
            with os.fdopen(fd, "wb") as pipe:
                pipe.write(b"fd %d" % number)
            number += 1
        conn.sendall(data)


def listen(name, kind):
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(os.path.join(sys.argv[1], name))
    listener.listen(64)
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=serve, args=(conn,), daemon=True).start()


for name, kind in ("echo", socket.SOCK_STREAM), ("records", socket.SOCK_SEQPACKET):
    threading.Thread(target=listen, args=(name, kind), daemon=True).start()
print("READY", flush=True)
threading.Event().wait()
