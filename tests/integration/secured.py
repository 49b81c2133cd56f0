"""A real Kafka that asks who you are: SASL, TLS, both, and plain text for the person who runs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from runtime import kafka
from runtime.kafka import KafkaConfig
from tests.conftest import SHARED

USER, PASSWORD = "ann", "right-and-secret"
LIMITED = "bob"
"""May read and write, but see no topic's settings; same password."""

_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass(frozen=True)
class Secured:
    """Where it listens, and whom to trust."""

    plain: str
    sasl: str
    tls: str
    sasl_tls: str
    ca: Path
    foreign_ca: Path

    def sasl_options(
        self, mechanism: str = "SCRAM-SHA-256", user: str = USER, password: str = PASSWORD
    ) -> dict[str, str]:
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": password,
        }

    def tls_options(self, ca: Path | None = None) -> dict[str, str]:
        return {"security.protocol": "SSL", "ssl.ca.location": str(ca or self.ca)}


@contextmanager
def secured_kafka(folder: Path) -> Iterator[Secured]:
    """One of its own; skips where that cannot be."""
    script = SHARED / "kafka" / "kafka"
    for needed in ("java", "openssl"):
        if not script.exists() or shutil.which(needed) is None:
            pytest.skip(f"a Kafka with SASL and TLS needs {script}, Java 17 and openssl")
    server, ca, foreign = _certificates(folder)
    with ExitStack() as held:
        ports = [held.enter_context(socket.socket()) for _ in range(5)]
        for port in ports:
            port.bind(("127.0.0.1", 0))
        plain, sasl, tls, sasl_tls, controller = (f"127.0.0.1:{port.getsockname()[1]}" for port in ports)
    listeners = f"PLAINTEXT://{plain},SASL_PLAINTEXT://{sasl},SSL://{tls},SASL_SSL://{sasl_tls}"
    users = "".join(f' user_{name}="{PASSWORD}"' for name in (USER, LIMITED))
    # A colon instead of the equals sign: the script looks for its own lines by the latter.
    properties = [
        f"listeners:{listeners},CONTROLLER://{controller}",
        f"advertised.listeners:{listeners}",
        f"controller.quorum.voters=1@{controller}",
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,"
        "SSL:SSL,SASL_SSL:SASL_SSL",
        "inter.broker.listener.name=PLAINTEXT",
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256",
        *(
            line
            for listener in ("sasl_plaintext", "sasl_ssl")
            for line in (
                f"listener.name.{listener}.plain.sasl.jaas.config={_PLAIN}{users};",
                f"listener.name.{listener}.scram-sha-256.sasl.jaas.config={_SCRAM}",
            )
        ),
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={server}",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS",
        "allow.everyone.if.no.acl.found=true",
    ]
    environment = {**os.environ, "KAFKA_PROPERTIES": "\n".join(line.replace(" ", r"\u0020") for line in properties)}
    data = folder / "kafka"
    try:
        subprocess.run(
            [script, "start", data, plain.rpartition(":")[2]],
            check=True, capture_output=True, text=True, timeout=90, env=environment,
        )  # fmt: skip
        _users(KafkaConfig(plain))
        yield Secured(plain, sasl, tls, sasl_tls, ca, foreign)
    finally:
        subprocess.run([script, "kill", data], check=True, timeout=30)


def let_in(config: KafkaConfig, *names: str, password: str = PASSWORD) -> None:
    """By SCRAM."""
    scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    wanted: list[UserScramCredentialAlteration] = [
        UserScramCredentialUpsertion(name, scram, password.encode()) for name in names
    ]
    client = kafka.admin(config)
    for answer in client.alter_user_scram_credentials(wanted).values():
        answer.result(20)


def _users(config: KafkaConfig) -> None:
    client = kafka.admin(config)
    let_in(config, USER, LIMITED)
    rights = [
        (f"User:{LIMITED}", AclOperation.DESCRIBE_CONFIGS, AclPermissionType.DENY),
        ("User:*", AclOperation.ALL, AclPermissionType.ALLOW),
    ]
    for who, what, how in rights:
        binding = AclBinding(ResourceType.TOPIC, "*", ResourcePatternType.LITERAL, who, "*", what, how)
        for given in client.create_acls([binding]).values():
            given.result(20)


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """(server's key and chain, its CA, another CA)."""

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2")
    for name in ("ca", "foreign"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")
    openssl(
        *new, "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE",
        "-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "broker.key", "-out", "broker.crt",
    )  # fmt: skip
    store = folder / "broker.pem"
    store.write_text((folder / "broker.key").read_text() + (folder / "broker.crt").read_text())
    return store, folder / "ca.crt", folder / "foreign.crt"
