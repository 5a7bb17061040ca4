"""What tests ask of an S3 service beside replication. Runs under target/servers, which has boto3; `tests/servers/s3.sh` makes it.

    s3_admin.py ENDPOINT ACCESS SECRET user NAME POLICY      -> "ACCESS SECRET" of a new user (moto)
    s3_admin.py ENDPOINT ACCESS SECRET session               -> "ACCESS SECRET TOKEN" that end some time (moto)
    s3_admin.py ENDPOINT ACCESS SECRET bucket NAME [POLICY]  a new bucket with that policy
    s3_admin.py ENDPOINT ACCESS SECRET heads BUCKET PREFIX   -> one JSON object with the head of every object below PREFIX
"""
import json
import os
import sys

import boto3

endpoint, access, secret, what, *rest = sys.argv[1:]
keys = dict(endpoint_url=endpoint, aws_access_key_id=access, aws_secret_access_key=secret, region_name="us-east-1")
if what == "user":
    iam = boto3.client("iam", **keys)
    iam.create_user(UserName=rest[0])
    iam.put_user_policy(UserName=rest[0], PolicyName="p", PolicyDocument=rest[1])
    made = iam.create_access_key(UserName=rest[0])["AccessKey"]
    print(made["AccessKeyId"], made["SecretAccessKey"])
elif what == "session":
    allow = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
    trust = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}]})
    iam = boto3.client("iam", **keys)
    name = f"r-{os.getpid()}"
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=allow)
    made = boto3.client("sts", **keys).assume_role(RoleArn=role, RoleSessionName="session")["Credentials"]
    print(made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])
elif what == "bucket":
    s3 = boto3.client("s3", **keys)
    s3.create_bucket(Bucket=rest[0])
    if len(rest) > 1:
        s3.put_bucket_policy(Bucket=rest[0], Policy=rest[1])
elif what == "heads":
    s3 = boto3.client("s3", **keys)
    found = s3.list_objects_v2(Bucket=rest[0], Prefix=rest[1]).get("Contents", [])
    print(json.dumps({o["Key"]: s3.head_object(Bucket=rest[0], Key=o["Key"]) for o in found}, default=str))
else:
    sys.exit(f"unknown: {what}")
