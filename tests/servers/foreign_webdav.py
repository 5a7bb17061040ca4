"""WsgiDAV on cheroot, with Digest authentication for user "u", password "p".

usage: foreign_webdav.py PORT FOLDER [replacing] -> with "replacing" the server never hears of `Overwrite`, as dufs does not
"""

import sys

from cheroot import wsgi
from wsgidav.wsgidav_app import WsgiDAVApp

PORT, FOLDER, REPLACING = int(sys.argv[1]), sys.argv[2], "replacing" in sys.argv[3:]
app = WsgiDAVApp({
    "provider_mapping": {"/": FOLDER},
    "simple_dc": {"user_mapping": {"*": {"u": {"password": "p"}}}},
    "http_authenticator": {"accept_basic": False, "accept_digest": True, "default_to_digest": True},
    "verbose": 1, "logging": {"enable": False},
})


def served(environ, start_response):
    if REPLACING:
        environ.pop("HTTP_OVERWRITE", None)
    return app(environ, start_response)


wsgi.Server(("127.0.0.1", PORT), served).start()
