"""Prints the first of N neighbouring ports that are free on loopback."""
import random
import socket
import sys

n = int(sys.argv[1])
while True:
    base = random.randrange(18000, 30000)
    held = []
    try:
        for port in range(base, base + n):
            s = socket.socket()
            held.append(s)
            s.bind(("127.0.0.1", port))
    except OSError:
        continue
    finally:
        for s in held:
            s.close()
    print(base)
    break
