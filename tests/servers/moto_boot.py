# usage: moto_boot.py PORT BUCKET -> prints "ACCESS_KEY SECRET_KEY"; these four calls use up the unauthenticated allowance
import boto3, json, sys
a = dict(endpoint_url=f'http://127.0.0.1:{sys.argv[1]}', aws_access_key_id='x', aws_secret_access_key='y', region_name='us-east-1')
iam = boto3.client('iam', **a)
iam.create_user(UserName='u')
iam.put_user_policy(UserName='u', PolicyName='p', PolicyDocument=json.dumps({'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': '*', 'Resource': '*'}]}))
k = iam.create_access_key(UserName='u')['AccessKey']
boto3.client('s3', **a).create_bucket(Bucket=sys.argv[2])
print(k['AccessKeyId'], k['SecretAccessKey'])
