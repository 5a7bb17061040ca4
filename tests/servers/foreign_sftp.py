"""SFTP servers of Python libraries: as they come, below one directory.

usage: foreign_sftp.py asyncssh|paramiko PORT FOLDER -> serves user "u", password "p"; prints its host key first
"""

import asyncio
import os
import socket
import sys
import threading

LIBRARY, PORT, FOLDER = sys.argv[1], int(sys.argv[2]), os.path.realpath(sys.argv[3])


async def serve_asyncssh():
    import asyncssh

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username):
            return True

        def password_auth_supported(self):
            return True

        def validate_password(self, username, password):
            return (username, password) == ("u", "p")

    key = asyncssh.generate_private_key("ssh-ed25519")
    files = lambda channel: asyncssh.SFTPServer(channel, chroot=FOLDER.encode())  # noqa: E731
    await asyncssh.listen("127.0.0.1", PORT, server_factory=Server, server_host_keys=[key], sftp_factory=files)
    print(" ".join(key.export_public_key().decode().split()[:2]), flush=True)
    await asyncio.Event().wait()


def serve_paramiko():
    """With the stub server that its documentation shows: no extensions, RENAME replaces."""
    import paramiko

    class Server(paramiko.ServerInterface):
        def get_allowed_auths(self, username):
            return "password"

        def check_auth_password(self, username, password):
            return paramiko.AUTH_SUCCESSFUL if (username, password) == ("u", "p") else paramiko.AUTH_FAILED

        def check_channel_request(self, kind, chanid):
            return paramiko.OPEN_SUCCEEDED

    class Open(paramiko.SFTPHandle):
        def stat(self):
            return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))

        def chattr(self, attr):
            return paramiko.SFTP_OK

    def told(act, *args):
        try:
            act(*args)
        except OSError as err:
            return paramiko.SFTPServer.convert_errno(err.errno)
        return paramiko.SFTP_OK

    class Files(paramiko.SFTPServerInterface):
        def real(self, path):
            return FOLDER + self.canonicalize(path)

        def list_folder(self, path):
            try:
                found = []
                for name in os.listdir(self.real(path)):
                    facts = paramiko.SFTPAttributes.from_stat(os.stat(os.path.join(self.real(path), name)))
                    facts.filename = name
                    found.append(facts)
                return found
            except OSError as err:
                return paramiko.SFTPServer.convert_errno(err.errno)

        def stat(self, path):
            try:
                return paramiko.SFTPAttributes.from_stat(os.stat(self.real(path)))
            except OSError as err:
                return paramiko.SFTPServer.convert_errno(err.errno)

        lstat = stat

        def open(self, path, flags, attr):
            try:
                fd = os.open(self.real(path), flags, 0o600)
            except OSError as err:
                return paramiko.SFTPServer.convert_errno(err.errno)
            mode = "rb" if flags & (os.O_WRONLY | os.O_RDWR) == 0 else "r+b" if flags & os.O_RDWR else "wb"
            file = os.fdopen(fd, mode)
            handle = Open(flags)
            handle.filename, handle.readfile, handle.writefile = path, file, file
            return handle

        def remove(self, path):
            return told(os.remove, self.real(path))

        def rename(self, old, new):
            return told(os.replace, self.real(old), self.real(new))

        posix_rename = rename

        def mkdir(self, path, attr):
            return told(os.mkdir, self.real(path))

        def chattr(self, path, attr):
            return paramiko.SFTP_OK

    key = paramiko.RSAKey.generate(2048)
    listener = socket.create_server(("127.0.0.1", PORT), backlog=50)
    print(f"{key.get_name()} {key.get_base64()}", flush=True)

    def session(client):
        transport = paramiko.Transport(client)
        transport.add_server_key(key)
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files)
        transport.start_server(server=Server())

    while True:
        client, _ = listener.accept()
        threading.Thread(target=session, args=(client,), daemon=True).start()


asyncio.run(serve_asyncssh()) if LIBRARY == "asyncssh" else serve_paramiko()
