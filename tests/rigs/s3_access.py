#!/usr/bin/env python3
"""Getting in, and being kept out: credentials from everywhere they may come from, and every refusal said at once and clearly.

Run below `tests/servers/s3.sh`. *Ways in*: `replicate -once` and `restore` with credentials from configuration, environment, profile, process,
container, instance and web identity; certificates from `AWS_CA_BUNDLE`, `SSL_CERT_FILE`, or `skip-verify`. *Ways out*: wrong secret, unknown
key, no bucket, one denied permission, an untrusted certificate, nobody listening: the daemon says within seconds which bucket, which
operation, why, and what to do. *Passed on*: storage class and KMS key.
"""

import http.server
import json
import os
import re
import sys
import threading
import time
from urllib.parse import parse_qs

import common
from proxy import address, relay

SECONDS = 6


class Service:
    def __init__(self, rig, line):
        self.rig = rig
        self.name, self.endpoint, self.bucket, self.access, self.secret = line.split(" ")
        self.python = common.ROOT / "target/servers/bin/python"

    def admin(self, *words):
        argv = [self.python, common.ROOT / "tests/servers/s3_admin.py", self.endpoint, self.access, self.secret, *words]
        done = common.run(argv, 60, env={"PATH": os.environ["PATH"]})
        if done.code != 0:
            sys.exit(f"s3_admin {words}: {done.message}")
        return done.out.strip()


class Metadata(http.server.BaseHTTPRequestHandler):
    """Container and instance credentials, and a token service: whatever asks is given the keys."""

    keys = ()
    asked = []

    def log_message(self, *_):
        pass

    def answer(self, text, kind="application/json"):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-aws-ec2-metadata-token-ttl-seconds", "300")
        self.end_headers()
        self.wfile.write(body)

    def credentials(self):
        access, secret, token = self.keys
        return json.dumps({"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": access, "SecretAccessKey": secret, "Token": token,
                           "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600)), "LastUpdated": "2026-01-01T00:00:00Z"})

    def do_PUT(self):
        self.asked.append(self.path)
        self.answer("imds-token", "text/plain")

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.rstrip("/").endswith("security-credentials"):
            self.answer("role", "text/plain")
        else:
            self.answer(self.credentials())

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        action = form["Action"][0]
        self.asked.append(f"{action} {form.get('RoleArn', [''])[0]} {form.get('WebIdentityToken', [''])[0]}")
        access, secret, token = self.keys
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        self.answer(f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials><AccessKeyId>{access}</AccessKeyId>'
                    f"<SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{until}</Expiration></Credentials>"
                    f"<AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn><AssumedRoleId>x:s</AssumedRoleId></AssumedRoleUser></{action}Result></{action}Response>", "text/xml")


class Access:
    def __init__(self, rig):
        self.rig, self.n = rig, 0
        self.home = rig.dir / "home"
        self.home.mkdir()

    def scene(self, service, replica, levels=None):
        """A small database and a configuration. `replica` adds to or, with None, takes from the usual keys."""
        self.n += 1
        where = self.rig.dir / f"case-{self.n}"
        where.mkdir()
        db = where / "app.db"
        conn = common.Db(db)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("CREATE TABLE t (v)")
        conn.execute("INSERT INTO t VALUES (randomblob(2000))")
        conn.close()
        usual = {"type": "s3", "bucket": service.bucket, "path": f"access-{self.rig.seed}-{self.n}", "endpoint": service.endpoint,
                 "region": "us-east-1", "access-key-id": service.access, "secret-access-key": service.secret}
        keys = {key: value for key, value in {**usual, **replica}.items() if value is not None}
        return where, db, common.write_config(where / "litestream.yml", [{"path": str(db), "replica": keys}])

    def environment(self, more):
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "AWS_EC2_METADATA_DISABLED": "true", **more}

    def way_in(self, name, service, replica=(), env=(), check=None):
        where, db, config = self.scene(service, dict(replica))
        env = self.environment(dict(env))
        once = common.run([self.rig.bin.path, "replicate", "-once", "-config", config], 40, env=env, cwd=where)
        if once.code == 0:
            restored = common.run([self.rig.bin.path, "restore", "-config", config, "-o", where / "out.db", db], 40, env=env, cwd=where)
            right = restored.code == 0 and common.restored_rows(where / "out.db") == common.restored_rows(common.folded(db, where / "copy"))
            if right and check:
                right = check(where)
            return self.rig.case(f"in: {name}", bool(right), restored.message[:200])
        return self.rig.case(f"in: {name}", False, once.message)

    def way_out(self, name, service, words, replica=(), env=(), prepare=None):
        """The daemon must say all `words` in one line, in time; `-once` must fail with them."""
        where, db, config = self.scene(service, dict(replica))
        env = self.environment(dict(env))
        command = prepare(where, db, config) if prepare else [self.rig.bin.path, "replicate", "-config", config]
        daemon = common.Daemon(command, where / "daemon.log", env=env)
        began = time.monotonic()
        hinted = lambda text: re.search(r"hint[=:]", text, re.I)

        def told():
            text = daemon.log_text()
            line = next((line for line in text.splitlines() if all(word.lower() in line.lower() for word in words)), None)
            return line if hinted(text) else None

        line = common.wait_for(told, SECONDS, 0.05)
        took = time.monotonic() - began
        text = daemon.log_text()
        daemon.kill()
        secret = dict(replica).get("secret-access-key", service.secret)
        if secret and secret in text:
            return self.rig.case(f"out: {name}", False, "the secret is in the log")
        return self.rig.case(f"out: {name}", bool(line), f"{took:.1f} s: {(line or text)[-330:]}{'' if hinted(text) else ' (no hint)'}")


def policy(*denied, bucket=None):
    target = {"Principal": "*"} if bucket else {}
    resource = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"] if bucket else "*"
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": resource, **target}
    return json.dumps({"Version": "2012-10-17", "Statement": [allow, {"Effect": "Deny", "Action": list(denied), "Resource": resource, **target}]})


def credentials(access, service):
    """Every place credentials may come from; none of them in the configuration."""
    Metadata.keys = service.admin("session").split(" ")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_address[1]}"
    none = {"access-key-id": None, "secret-access-key": None}
    keys = f"aws_access_key_id = {service.access}\naws_secret_access_key = {service.secret}\n"
    files = access.rig.dir
    (files / "credentials").write_text(f"[default]\n{keys}\n[other]\n{keys}")
    (files / "wrong").write_text("[default]\naws_access_key_id = AKNOBODY\naws_secret_access_key = x\n")
    given = json.dumps({"Version": 1, "AccessKeyId": service.access, "SecretAccessKey": service.secret})
    (files / "process").write_text(given)
    (files / "config-process").write_text(f"[default]\ncredential_process = cat {files / 'process'}\n")
    (files / "config-role").write_text(f"[profile base]\n{keys}\n[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\nregion = us-east-1\n")
    (files / "token").write_text("web-token")

    def asked(word):
        Metadata.asked.clear()
        return lambda _: any(word in line for line in Metadata.asked)

    way = lambda name, env, check=None: access.way_in(f"credentials from {name}", service, none, env, check)
    access.way_in("credentials from the configuration", service, env={"AWS_ACCESS_KEY_ID": "AKNOBODY", "AWS_SECRET_ACCESS_KEY": "x"})
    access.way_in("endpoint from AWS_ENDPOINT_URL_S3", service, {"endpoint": None}, {"AWS_ENDPOINT_URL_S3": service.endpoint})
    way("AWS_ variables", {"AWS_ACCESS_KEY_ID": service.access, "AWS_SECRET_ACCESS_KEY": service.secret})
    way("LITESTREAM_ variables", {"LITESTREAM_ACCESS_KEY_ID": service.access, "LITESTREAM_SECRET_ACCESS_KEY": service.secret})
    way("a credentials file", {"AWS_SHARED_CREDENTIALS_FILE": str(files / "credentials")})
    way("a named profile", {"AWS_SHARED_CREDENTIALS_FILE": str(files / "credentials"), "AWS_PROFILE": "other"})
    way("a process", {"AWS_CONFIG_FILE": str(files / "config-process")})
    way("a container", {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{at}/creds"}, asked("/creds"))
    way("an instance's role", {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": at}, asked("security-credentials/role"))
    sts = {"AWS_ENDPOINT_URL_STS": at}
    way("web identity", {**sts, "AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": str(files / "token"), "AWS_REGION": "us-east-1"},
        asked("AssumeRoleWithWebIdentity arn:aws:iam::1:role/r web-token"))
    way("a profile that assumes a role", {**sts, "AWS_CONFIG_FILE": str(files / "config-role"), "AWS_PROFILE": "role"}, asked("AssumeRole arn:aws:iam::1:role/r"))
    access.way_out("no credentials at all", service, [service.bucket, "credentials"], none)
    access.way_out("a profile that does not exist", service, [service.bucket, "credentials"], none, {"AWS_PROFILE": "nope"})
    access.way_out("a profile with a wrong key", service, ["InvalidAccessKeyId", service.bucket], none, {"AWS_SHARED_CREDENTIALS_FILE": str(files / "wrong")})
    server.shutdown()


def refusals(access, service):
    rig, bucket = access.rig, service.bucket
    access.way_out(f"{service.name}: wrong secret", service, ["SignatureDoesNotMatch", bucket], {"secret-access-key": "wrong/secret"})
    access.way_out(f"{service.name}: unknown key", service, ["InvalidAccessKeyId", bucket], {"access-key-id": "AKNOBODY"})
    access.way_out(f"{service.name}: no bucket", service, ["NoSuchBucket", "no-such-bucket"], {"bucket": "no-such-bucket"})

    def denied(action):
        """Keys under which everything but `action` is allowed."""
        name = f"no-{action.lower()}-{rig.seed}"
        if service.name == "moto":
            keys = service.admin("user", name, policy(f"s3:{action}")).split(" ")
            return {"access-key-id": keys[0], "secret-access-key": keys[1]}
        service.admin("bucket", name, policy(f"s3:{action}", bucket=name))
        return {"bucket": name}

    def with_retention(where, db, config):
        """Something to delete every second."""
        text = json.loads(config.read_text())
        text.update({"levels": [{"interval": "1s"}], "l0-retention": "500ms", "l0-retention-check-interval": "500ms"})
        config.write_text(json.dumps(text))

        def application():
            conn = common.Db(db)
            for _ in range(2 * SECONDS):
                conn.execute("INSERT INTO t VALUES (randomblob(100))")
                time.sleep(0.4)
            conn.close()

        threading.Thread(target=application, daemon=True).start()
        return [rig.bin.path, "replicate", "-config", config]

    def reading(where, db, config):
        return [rig.bin.path, "restore", "-config", config, "-o", where / "out.db", db]

    def after_upload(where, db, config):
        done = common.run([rig.bin.path, "replicate", "-once", "-config", config], 40, env=access.environment({}), cwd=where)
        if done.code != 0:
            sys.exit(f"replicate -once: {done.message}")
        return reading(where, db, config)

    for action, words, prepare in [
        ("PutObject", ["AccessDenied", "PutObject", "write object"], None),
        ("ListBucket", ["AccessDenied", "ListObjectsV2", "list objects"], None),
        ("GetObject", ["GetObject", "get object"], after_upload),
        ("DeleteObject", ["delete files"], with_retention),
    ]:
        keys = denied(action)
        access.way_out(f"{service.name}: {action} denied", service, [*words, keys.get("bucket", bucket)], keys, prepare=prepare)
    access.way_out(f"{service.name}: nobody listens", service, [bucket, "refused"], {"endpoint": "http://127.0.0.1:9"})


def certificates(access, service, tls, bundle):
    ours = {"endpoint": tls}
    access.way_in("certificate from AWS_CA_BUNDLE", service, ours, {"AWS_CA_BUNDLE": bundle})
    access.way_in("certificate from SSL_CERT_FILE", service, ours, {"SSL_CERT_FILE": bundle})
    access.way_in("skip-verify", service, {**ours, "skip-verify": True})
    access.way_out("untrusted certificate", service, [service.bucket, "certificate"], ours)
    other = f"https://127.0.0.2:{relay('127.0.0.2', address(tls))}"
    access.way_out("certificate of another name", service, [service.bucket, "certificate"], {"endpoint": other}, {"AWS_CA_BUNDLE": bundle})
    access.way_out("TLS to a plain port", service, [service.bucket, "corrupt message"], {"endpoint": service.endpoint.replace("http:", "https:")})
    access.way_out("a bundle that is not there", service, ["AWS_CA_BUNDLE", "/nowhere.pem"], ours, {"AWS_CA_BUNDLE": "/nowhere.pem"})


def passed_on(access, service):
    def heads(where):
        prefix = json.loads((where / "litestream.yml").read_text())["dbs"][0]["replica"]["path"]
        found = json.loads(service.admin("heads", service.bucket, prefix)).values()
        return found and all(h.get("StorageClass") == "STANDARD_IA" and h.get("ServerSideEncryption") == "aws:kms" and h.get("SSEKMSKeyId") == "alias/k" for h in found)

    access.way_in("storage class and KMS key", service, {"storage-class": "STANDARD_IA", "sse-kms-key-id": "alias/k"}, check=heads)


def main():
    rig = common.Rig("s3_access", common.parser(__doc__).parse_args())
    services = os.environ.get("LITESTREAM_TEST_S3") or sys.exit("run this below tests/servers/s3.sh")
    access = Access(rig)
    for line in services.splitlines():
        service = Service(rig, line)
        refusals(access, service)
        if service.name == "moto":
            credentials(access, service)
            passed_on(access, service)
        elif os.environ.get("LITESTREAM_TEST_S3_TLS"):
            certificates(access, service, os.environ["LITESTREAM_TEST_S3_TLS"], os.environ["LITESTREAM_TEST_S3_CA"])
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
