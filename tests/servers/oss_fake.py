"""A fake of Alibaba Cloud OSS, as far as object clients use it: version 4 signatures checked, objects, listings, multipart uploads.

usage: oss_fake.py PORT FOLDER ACCESS_KEY SECRET REGION BUCKET

Addresses in path style (http://127.0.0.1:PORT/BUCKET/KEY) and with the bucket before a name ending in .oss.test.
"""

import base64
import datetime
import hashlib
import hmac
import re
import sys
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from email.utils import formatdate
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from fake_http import Answer, Refused, Store, ranged, serve

PORT, FOLDER, ACCESS, SECRET, REGION, BUCKET = int(sys.argv[1]), *sys.argv[2:]
PAGE = 100
SUFFIX = ".oss.test"


def xml(text, status=200, **headers):
    return Answer(status, '<?xml version="1.0" encoding="UTF-8"?>' + text, "application/xml",
                  {"x-oss-request-id": "R", **{k.replace("_", "-"): v for k, v in headers.items()}})


def refuse(refused):
    return xml(f"<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message><RequestId>R</RequestId>"
               f"<HostId>oss</HostId></Error>", refused.status)


def encoded(text):
    return quote(text, safe="-_.~")


def sha256(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256)


def check_signature(method, bucket, key, query, headers):
    said = re.fullmatch(r"OSS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/oss/aliyun_v4_request,\s*"
                        r"(?:AdditionalHeaders=([^,]*),\s*)?Signature=([0-9a-f]{64})", headers.get("Authorization", ""))
    if not said:
        raise Refused(403, "AccessDenied", "Anonymous access is forbidden for this operation.")
    access, day, region, additional, signature = said.groups()
    if access != ACCESS:
        raise Refused(403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist in our records.")
    date = headers.get("x-oss-date", "")
    try:
        at = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        raise Refused(403, "AccessDenied", "Invalid x-oss-date.") from None
    if abs(time.time() - at.timestamp()) > 900:
        raise Refused(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
    if region != REGION or not date.startswith(day):
        raise Refused(400, "InvalidArgument", "Invalid signing region in Authorization header.")
    more = sorted(name.lower() for name in (additional or "").split(";") if name)
    signed = {}
    for name, value in headers.items():
        name = name.lower()
        if name in ("content-type", "content-md5") or name.startswith("x-oss-") or name in more:
            signed[name] = value.strip()
    pairs = sorted((encoded(name), encoded(value)) for name, value in query)
    request = "\n".join([
        method,
        f"/{bucket}/{quote(key, safe='/-_.~')}",
        "&".join(f"{name}={value}" if value else name for name, value in pairs),
        "".join(f"{name}:{signed[name]}\n" for name in sorted(signed)),
        ";".join(more),
        headers.get("x-oss-content-sha256", ""),
    ])
    text = "\n".join(["OSS4-HMAC-SHA256", date, f"{day}/{region}/oss/aliyun_v4_request",
                      hashlib.sha256(request.encode()).hexdigest()])
    derived = ("aliyun_v4" + SECRET).encode()
    for step in (day, region, "oss", "aliyun_v4_request"):
        derived = sha256(derived, step).digest()
    if sha256(derived, text).hexdigest() != signature:
        raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")


class Fake:
    def __init__(self):
        self.store, self.uploads, self.lock = Store(FOLDER), {}, threading.RLock()

    def handle(self, method, path, query, headers, body):
        host = headers.get("Host", "").rsplit(":", 1)[0]
        if host.endswith(SUFFIX):
            bucket, key = host[:-len(SUFFIX)], unquote(path[1:])
        else:
            bucket, _, key = path[1:].partition("/")
            bucket, key = unquote(bucket), unquote(key)
        check_signature(method, bucket, key, query, headers)
        if bucket != BUCKET:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        if sum_said := headers.get("Content-MD5"):
            if base64.b64decode(sum_said) != hashlib.md5(body).digest():
                raise Refused(400, "InvalidDigest", "The Content-MD5 you specified was invalid.")
        query = dict(query)
        if not key:
            if method == "GET":
                return self.list(query)
            if method == "POST" and "delete" in query:
                return self.delete_many(query, headers, body)
            raise Refused(501, "NotImplemented")
        if method == "POST" and "uploads" in query:
            return self.begin(key, headers)
        if "uploadId" in query:
            return self.upload(method, key, query, headers, body)
        return self.object(method, key, headers, body)

    def create(self, key, data, facts, headers):
        forbid = headers.get("x-oss-forbid-overwrite") == "true"
        if not self.store.put(key, data, facts, new_only=forbid):
            raise Refused(409, "FileAlreadyExists", "The object you specified already exists and can not be overwritten.")

    @staticmethod
    def facts(headers, etag):
        metadata = {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-oss-meta-")}
        return {"metadata": metadata, "etag": etag, "modified": time.time()}

    def object(self, method, key, headers, body):
        if method == "PUT":
            etag = hashlib.md5(body).hexdigest().upper()
            self.create(key, body, self.facts(headers, etag), headers)
            return xml("", ETag=f'"{etag}"')
        if method == "DELETE":
            self.store.delete(key)
            return Answer(204)
        found = self.store.get(key)
        if not found:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        data, facts = found
        more = {"ETag": f'"{facts["etag"]}"', "Last-Modified": formatdate(facts["modified"], usegmt=True), **facts["metadata"]}
        if method == "HEAD":
            return Answer(200, data, headers=more)
        status, data, content_range = ranged(data, headers.get("Range"))
        return Answer(status, data, headers={**more, **content_range})

    def list(self, query):
        if query.get("list-type") != "2":
            raise Refused(501, "NotImplemented")
        token = base64.b64decode(query.get("continuation-token", "")).decode()
        after = max(token, query.get("start-after", ""), key=str.encode)
        limit = min(int(query.get("max-keys") or PAGE), 1000)
        found, dirs, last, more = self.store.page(query.get("prefix", ""), query.get("delimiter"), after, "", limit)
        name = (lambda s: quote(s, safe="/")) if query.get("encoding-type") == "url" else escape
        text = "".join(
            f"<Contents><Key>{name(key)}</Key><LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(facts['modified']))}.000Z"
            f"</LastModified><ETag>\"{facts['etag']}\"</ETag><Type>Normal</Type><Size>{len(data)}</Size></Contents>"
            for key, data, facts in found)
        text += "".join(f"<CommonPrefixes><Prefix>{name(d)}</Prefix></CommonPrefixes>" for d in dirs)
        if more:
            text += f"<NextContinuationToken>{base64.b64encode(last.encode()).decode()}</NextContinuationToken>"
        if query.get("encoding-type") == "url":
            text += "<EncodingType>url</EncodingType>"
        return xml(f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>{str(more).lower()}</IsTruncated>"
                   f"<KeyCount>{len(found) + len(dirs)}</KeyCount>{text}</ListBucketResult>")

    def delete_many(self, query, headers, body):
        if not headers.get("Content-MD5"):
            raise Refused(400, "MissingArgument", "Missing Some Required Arguments.")
        root = ET.fromstring(body)
        keys = [entry.findtext("Key") for entry in root.findall("Object")]
        if len(keys) > 1000:
            raise Refused(400, "MalformedXML")
        for key in keys:
            self.store.delete(key)
        name = encoded if query.get("encoding-type") == "url" else escape
        quiet = root.findtext("Quiet") == "true"
        return xml("<DeleteResult>" + ("" if quiet else "".join(f"<Deleted><Key>{name(key)}</Key></Deleted>" for key in keys))
                   + "</DeleteResult>")

    def begin(self, key, headers):
        if headers.get("x-oss-forbid-overwrite") == "true" and self.store.get(key):
            raise Refused(409, "FileAlreadyExists")
        upload = uuid.uuid4().hex.upper()
        with self.lock:
            self.uploads[upload] = (key, self.facts(headers, ""), {})
        return xml(f"<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key>"
                   f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")

    def upload(self, method, key, query, headers, body):
        with self.lock:
            upload = self.uploads.get(query["uploadId"])
            if not upload or upload[0] != key:
                raise Refused(404, "NoSuchUpload", "The specified upload does not exist.")
            _, facts, parts = upload
            if method == "PUT":
                etag = hashlib.md5(body).hexdigest().upper()
                parts[int(query["partNumber"])] = (body, etag)
                return xml("", ETag=f'"{etag}"')
            if method == "DELETE":
                del self.uploads[query["uploadId"]]
                return Answer(204)
            said = [(int(p.findtext("PartNumber")), p.findtext("ETag").strip('"').upper()) for p in ET.fromstring(body).findall("Part")]
            if [n for n, _ in said] != sorted({n for n, _ in said}):
                raise Refused(400, "InvalidPartOrder")
            for i, (n, etag) in enumerate(said):
                if n not in parts or parts[n][1] != etag:
                    raise Refused(400, "InvalidPart")
                if i < len(said) - 1 and len(parts[n][0]) < 100 * 1024:
                    raise Refused(400, "EntityTooSmall")
            etag = hashlib.md5("".join(e for _, e in said).encode()).hexdigest().upper() + f"-{len(said)}"
            self.create(key, b"".join(parts[n][0] for n, _ in said), {**facts, "etag": etag, "modified": time.time()}, headers)
            del self.uploads[query["uploadId"]]
            return xml(f"<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key><ETag>\"{etag}\"</ETag>"
                       f"</CompleteMultipartUploadResult>")


serve(PORT, Fake(), refuse)
