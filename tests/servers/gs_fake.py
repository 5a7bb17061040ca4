"""A fake of Google Cloud Storage's JSON interface, as far as object clients use it.

usage: gs_fake.py PORT FOLDER BUCKET [TOKEN]

Pages, startOffset, delimiters, generation preconditions, multipart and resumable uploads (308, or 200 with an override header
for Go clients), ranges, media by both addresses. With TOKEN every request must carry it as bearer token, and POST /token hands it out
for the refresh token "refresh": what an authorized_user credentials file asks for. A token "forbidden" gets 403.
"""

import json
import re
import sys
import threading
import time
import urllib.parse
import uuid

from fake_http import Answer, Refused, Store, ranged, serve

PORT, FOLDER, BUCKET = int(sys.argv[1]), sys.argv[2], sys.argv[3]
TOKEN = sys.argv[4] if len(sys.argv) > 4 else None
PAGE = 1000
QUANTUM = 256 * 1024
REASONS = {400: "invalid", 401: "authError", 403: "forbidden", 404: "notFound", 410: "gone", 412: "conditionNotMet",
           416: "requestedRangeNotSatisfiable"}


def refuse(refused):
    body = {"error": {"code": refused.status, "message": refused.message,
                      "errors": [{"domain": "global", "reason": refused.code, "message": refused.message}]}}
    return Answer(refused.status, json.dumps(body), "application/json; charset=UTF-8")


def refusal(status, message):
    return Refused(status, REASONS[status], message)


class Fake:
    def __init__(self):
        self.store, self.sessions, self.lock = Store(FOLDER), {}, threading.RLock()

    def handle(self, method, path, query, headers, body):
        query = dict(query)
        if path == "/token":
            return self.token(body)
        if TOKEN:
            got = headers.get("Authorization", "").removeprefix("Bearer ")
            if got == "forbidden":
                raise refusal(403, "The account does not have storage.objects access.")
            if got != TOKEN:
                raise refusal(401, "Invalid Credentials")
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            self.bucket(match[1])
            return self.upload(method, query, headers, body)
        if match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?", path):
            self.bucket(match[1])
            return self.resource(method, urllib.parse.unquote(match[2] or ""), query, headers)
        if method == "GET" and (match := re.fullmatch(r"/([^/]+)/(.+)", path)):
            self.bucket(match[1])
            return self.resource(method, urllib.parse.unquote(match[2]), {"alt": "media"}, headers)
        raise refusal(404, "Not Found")

    def token(self, body):
        form = dict(urllib.parse.parse_qsl(body.decode()))
        try:
            form = form or json.loads(body)
        except ValueError:
            pass
        if form.get("refresh_token") not in ("refresh", "refresh-forbidden"):
            return Answer(400, json.dumps({"error": "invalid_grant", "error_description": "Bad Request"}), "application/json")
        token = "forbidden" if form["refresh_token"] == "refresh-forbidden" else TOKEN
        return Answer(200, json.dumps({"access_token": token, "expires_in": 3600, "token_type": "Bearer"}), "application/json")

    def bucket(self, name):
        if urllib.parse.unquote(name) != BUCKET:
            raise refusal(404, "The specified bucket does not exist.")

    @staticmethod
    def item(facts, data):
        return {"kind": "storage#object", "name": facts["name"], "bucket": BUCKET, "size": str(len(data)), **facts}

    def resource(self, method, name, query, headers):
        if not name:
            return self.list(query)
        if method == "DELETE":
            if not self.store.delete(name):
                raise refusal(404, f"No such object: {BUCKET}/{name}")
            return Answer(204)
        found = self.store.get(name)
        if not found:
            raise refusal(404, f"No such object: {BUCKET}/{name}")
        data, facts = found
        if query.get("alt") != "media":
            return Answer(200, json.dumps(self.item(facts, data)), "application/json")
        status, data, more = ranged(data, headers.get("Range"))
        return Answer(status, data, headers={"x-goog-generation": facts["generation"], "x-goog-metageneration": "1",
                                             "x-goog-stored-content-encoding": "identity",
                                             "x-goog-stored-content-length": str(len(found[0])), **more})

    def list(self, query):
        limit = min(int(query.get("maxResults") or PAGE), PAGE)
        found, dirs, last, more = self.store.page(query.get("prefix", ""), query.get("delimiter"), query.get("pageToken", ""),
                                                  query.get("startOffset", ""), limit)
        page = {"kind": "storage#objects"}
        if found:
            page["items"] = [self.item(facts, data) for _, data, facts in found]
        if dirs:
            page["prefixes"] = dirs
        if more:
            page["nextPageToken"] = last
        return Answer(200, json.dumps(page), "application/json")

    def create(self, name, data, described, query):
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now // 10**6 % 1000:03}Z"
        facts = {"generation": str(now), "timeCreated": stamp, "updated": stamp, "metadata": described.get("metadata") or {}}
        condition = query.get("ifGenerationMatch")
        if not self.store.put(name, data, facts, new_only=condition == "0"):
            raise refusal(412, "At least one of the pre-conditions you specified did not hold.")
        return Answer(200, json.dumps(self.item({**facts, "name": name}, data)), "application/json")

    def upload(self, method, query, headers, body):
        if "upload_id" in query:
            return self.session(method, query, headers, body)
        if query.get("uploadType") == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', headers["Content-Type"])[1].encode()
            parts = body.split(b"--" + boundary)
            # First and last are outside; a part is headers, a blank line, content, a line break.
            described = json.loads(parts[1].split(b"\r\n\r\n", 1)[1])
            data = (b"--" + boundary).join(parts[2:-1]).split(b"\r\n\r\n", 1)[1][:-2]
            return self.create(query.get("name") or described["name"], data, described, query)
        if query.get("uploadType") != "resumable":
            raise refusal(400, "uploadType")
        described = json.loads(body or b"{}")
        name = query.get("name") or described["name"]
        if query.get("ifGenerationMatch") == "0" and self.store.get(name):
            raise refusal(412, "At least one of the pre-conditions you specified did not hold.")
        upload = uuid.uuid4().hex
        with self.lock:
            self.sessions[upload] = (name, described, query, bytearray())
        return Answer(200, headers={"Location": f"http://{headers['Host']}/upload/storage/v1/b/{BUCKET}/o?upload_id={upload}"})

    def session(self, method, query, headers, body):
        with self.lock:
            upload = self.sessions.get(query["upload_id"])
            if not upload:
                raise refusal(404, "No such upload")
            if method == "DELETE":
                del self.sessions[query["upload_id"]]
                return Answer(499)
            name, described, began, data = upload
            said = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("Content-Range", ""))
            if not said:
                raise refusal(400, "Content-Range")
            if said[1]:
                first, last = int(said[1]), int(said[2])
                if first > len(data) or last - first + 1 != len(body):
                    raise refusal(400, "Content-Range")
                if said[3] == "*" and len(body) % QUANTUM:
                    raise refusal(400, "chunks must be multiples of 256 KiB")
                del data[first:]
                data += body
            if said[3] == "*" or len(data) < int(said[3]):
                return self.incomplete(data, headers)
            # A finished upload answers again when it is asked again.
            if not self.store.get(name) or not described.get("done"):
                answer = self.create(name, bytes(data), described, began)
                described["done"] = True
                return answer
            found, facts = self.store.get(name)
            return Answer(200, json.dumps(self.item(facts, found)), "application/json")

    @staticmethod
    def incomplete(data, headers):
        more = {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
        if headers.get("X-GUploader-No-308") == "yes":
            return Answer(200, headers={"X-Http-Status-Code-Override": "308", **more})
        return Answer(308, headers=more)


serve(PORT, Fake(), refuse)
