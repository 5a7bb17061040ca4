"""Waits until something listens on a port of loopback. usage: wait_port.py PORT SECONDS"""
import socket
import sys
import time

port, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while True:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        break
    except OSError:
        if time.monotonic() > end:
            sys.exit(f"nothing listens on port {port}")
        time.sleep(0.05)
