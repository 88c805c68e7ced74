"""Sockets on one machine, and who is let in from the other: `sockets.py serve`, `sockets.py ask`."""
import os
import socket
import sys
import threading

OPEN, CLOSED = "/var/tmp/open", "/var/tmp/closed"


def serve():
    for path in (f"{OPEN}/yes", f"{OPEN}/secret", f"{CLOSED}/no"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)
        threading.Thread(target=lambda of=listener: [of.accept() for _ in range(100)], daemon=True).start()
    os.symlink(f"{OPEN}/yes", f"{OPEN}/link-to-yes")
    os.symlink(f"{OPEN}/secret", f"{OPEN}/link-to-secret")
    os.symlink(CLOSED, f"{OPEN}/way")
    print("READY", flush=True)
    threading.Event().wait()


def ask():
    for name, path in (
        ("yes", f"{OPEN}/yes"),
        ("link-to-yes", f"{OPEN}/link-to-yes"),
        ("secret", f"{OPEN}/secret"),
        ("link-to-secret", f"{OPEN}/link-to-secret"),
        ("closed", f"{CLOSED}/no"),
        ("way-to-closed", f"{OPEN}/way/no"),
    ):
        print(name, socket.socket(socket.AF_UNIX).connect_ex(path), flush=True)


{"serve": serve, "ask": ask}[sys.argv[1]]()
