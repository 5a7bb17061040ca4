"""Makes a container and prints a SAS token for it: what an operator would do by hand. Standard library only.

usage: abs_boot.py ENDPOINT ACCOUNT KEY CONTAINER
"""

import base64
import hashlib
import hmac
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import formatdate

endpoint, account, key, container = sys.argv[1:]
VERSION = "2021-12-02"


def sign(text):
    return base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()


def create():
    date = formatdate(usegmt=True)
    path = urllib.parse.urlsplit(endpoint).path
    text = (f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{VERSION}\n"
            f"/{account}{path}/{container}\nrestype:container")
    request = urllib.request.Request(f"{endpoint}/{container}?restype=container", method="PUT", headers={
        "x-ms-date": date, "x-ms-version": VERSION, "Authorization": f"SharedKey {account}:{sign(text)}"})
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as e:
        if e.code != 409:
            sys.exit(f"create container: {e.code} {e.read().decode()}")


def sas(ends):
    """A service SAS for the container: all that a replica needs."""
    rights, protocol = "racwdl", "https,http"
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    fields = [rights, "", until, f"/blob/{account}/{container}", "", "", protocol, VERSION, "c", "", "", "", "", "", "", ""]
    return urllib.parse.urlencode({"sp": rights, "se": until, "spr": protocol, "sv": VERSION, "sr": "c",
                                   "sig": sign("\n".join(fields))})


create()
print(sas(time.time() + 86400))
