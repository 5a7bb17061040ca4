"""Keys and configurations for the servers of nats.sh; or the buckets on those that run; or one more bucket.

    nats_setup.py DIRECTORY FIRST_PORT [buckets | bucket NAME]
"""
import asyncio
import base64
import hashlib
import json
import os
import ssl
import sys
import time

import nats
import nkeys
from nats.js.api import ObjectStoreConfig

USER, PASSWORD, TOKEN = "ls", "lsPass-1", "tokenTest-1"


def key_pair(prefix):
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    pair = nkeys.from_seed(seed)
    return pair, seed.decode(), pair.public_key.decode()


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


def token(claims, signer, issuer):
    """A JWT as NATS signs them."""
    claims = {**claims, "iss": issuer, "iat": int(time.time()), "jti": ""}
    claims["jti"] = base64.b32encode(hashlib.sha512(compact(claims)).digest()[:32]).decode().rstrip("=")
    text = b64(compact({"typ": "JWT", "alg": "ed25519-nkey"})) + "." + b64(compact(claims))
    return text + "." + b64(signer.sign(text.encode()))


def configurations(d, first):
    def write(name, text):
        with open(f"{d}/{name}", "w") as f:
            f.write(text)

    def server(name, index, rest):
        write(f"{name}.conf", f"listen: 127.0.0.1:{first + index}\n"
              f"jetstream {{ store_dir: \"{d}/js-{name}\", max_mem: 64MB, max_file: 4GB }}\n{rest}\n")

    server("password", 0, f"authorization {{ users = [ {{ user: {USER}, password: {PASSWORD} }},\n"
           f"  {{ user: reader, password: {PASSWORD}, permissions: {{ publish: {{ deny: [\"$O.>\"] }} }} }} ] }}")
    server("token", 1, f"authorization {{ token: {TOKEN} }}")
    _, seed, public = key_pair(nkeys.PREFIX_BYTE_USER)
    write("nkey.seed", seed)
    write("nkey.pub", public)
    server("nkey", 2, f"authorization {{ users = [ {{ nkey: {public} }} ] }}")
    server("tls", 4, f"tls {{ cert_file: \"{d}/server.pem\", key_file: \"{d}/server.key\", ca_file: \"{d}/ca.pem\", "
           f"verify: true }}\nauthorization {{ users = [ {{ user: {USER}, password: {PASSWORD} }} ] }}")

    operator, _, operator_name = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    account, _, account_name = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    _, _, system_name = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    _, seed, user_name = key_pair(nkeys.PREFIX_BYTE_USER)
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    storage = {"mem_storage": 1 << 25, "disk_storage": 1 << 31, "streams": -1, "consumer": -1}
    by_operator = lambda claims: token(claims, operator, operator_name)
    operator_jwt = by_operator({"sub": operator_name, "name": "op",
                                "nats": {"type": "operator", "version": 2, "system_account": system_name}})
    account_jwt = by_operator({"sub": account_name, "name": "app",
                               "nats": {"type": "account", "version": 2, "limits": {**limits, **storage}}})
    system_jwt = by_operator({"sub": system_name, "name": "SYS",
                              "nats": {"type": "account", "version": 2, "limits": limits}})
    user_jwt = token({"sub": user_name, "name": "ls",
                      "nats": {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}}, account, account_name)
    server("jwt", 3, f"operator: {operator_jwt}\nsystem_account: {system_name}\nresolver: MEMORY\n"
           f"resolver_preload: {{ {account_name}: {account_jwt}\n{system_name}: {system_jwt} }}")
    write("user.jwt", user_jwt)
    write("user.seed", seed)
    write("user.creds", f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
          f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n")


async def buckets(d, first):
    trust = ssl.create_default_context(cafile=f"{d}/ca.pem")
    trust.load_cert_chain(f"{d}/client.pem", f"{d}/client.key")
    user = {"user": USER, "password": PASSWORD}
    logins = [user, {"token": TOKEN}, {"nkeys_seed": f"{d}/nkey.seed"}, {"user_credentials": f"{d}/user.creds"},
              {**user, "tls": trust}]
    for index, login in enumerate(logins):
        # The server may not be up yet, and JetStream later than the server.
        for attempt in range(100):
            try:
                client = await nats.connect(f"nats://localhost:{first + index}", max_reconnect_attempts=1, **login)
                for name in ("litestream", "second"):
                    await client.jetstream().create_object_store(name, config=ObjectStoreConfig(storage="file"))
                await client.close()
                break
            except Exception:
                if attempt == 99:
                    raise
                await asyncio.sleep(0.1)


async def bucket(port, name):
    client = await nats.connect(f"nats://127.0.0.1:{port}", user=USER, password=PASSWORD)
    await client.jetstream().create_object_store(name, config=ObjectStoreConfig(storage="file"))
    await client.close()


if sys.argv[3:4] == ["bucket"]:
    asyncio.run(bucket(int(sys.argv[2]), sys.argv[4]))
elif len(sys.argv) > 3:
    asyncio.run(buckets(sys.argv[1], int(sys.argv[2])))
else:
    configurations(sys.argv[1], int(sys.argv[2]))
