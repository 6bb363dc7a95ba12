"""Amazon SQS as moto plays it."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.servers.process import Server, free_port

#: moto takes any. The secret has what must be quoted in a URL, as real ones do.
ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "sec/ret+key"


class SqsServer(Server):
    """
    moto's server on a free loopback port.

    Its queues live in memory, apart for each region, and any name is a region. It refuses nobody until there is a user.
    """

    start_seconds = 30.0

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        super().__init__(argv, folder, env={"MOTO_ALLOW_NONEXISTENT_REGION": "true"}, name="sqs")

    def url(self, user: tuple[str, str] = (ACCESS_KEY, SECRET_KEY)) -> str:
        """The broker URL; the region is a transport option."""
        access_key, secret = user
        return f"sqs://{access_key}:{quote(secret, safe='')}@127.0.0.1:{self.port}"

    def client(self, region: str, service: str = "sqs", *, user: tuple[str, str] = (ACCESS_KEY, SECRET_KEY)) -> Any:
        """Return a boto3 client, to look at queues of one region with."""
        import boto3

        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key"), user, strict=True))
        return boto3.client(service, endpoint_url=self.endpoint, region_name=region, **keys)

    def add_user(self, statements: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """
        Make the first user, with the rights of a policy's *statements*; return access key and secret.

        From then on everybody else is refused. Rights hold for all queues: moto does not see which one is meant.
        """
        policy = {"Version": "2012-10-17", "Statement": [{**statement, "Resource": "*"} for statement in statements]}
        iam = self.client("us-east-1", "iam")
        iam.create_user(UserName="lookout")
        iam.put_user_policy(UserName="lookout", PolicyName="lookout", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="lookout")["AccessKey"]
        begin = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
        )
        with urllib.request.urlopen(begin, timeout=5):
            return key["AccessKeyId"], key["SecretAccessKey"]

    @property
    def endpoint(self) -> str:
        """The URL for boto3, and of moto's own pages."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        with urllib.request.urlopen(f"{self.endpoint}/moto-api/data.json", timeout=5) as answer:
            return bool(answer.status == 200)
