"""librdkafka's options for a client that is none of its own: who we are, and whom we trust.

`drift` speaks to Kafka through aiokafka. It is given the same options as the others; what it cannot honour it refuses
by name, so that no process proves less than another.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from runtime import kafka_options
from runtime.lifecycle import ConfigurationError

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_HONOURED: Final = frozenset(
    {
        "client.id",
        "enable.ssl.certificate.verification",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.password",
        "sasl.username",
        "security.protocol",
        "ssl.ca.location",
        "ssl.ca.pem",
        "ssl.certificate.location",
        "ssl.certificate.pem",
        "ssl.cipher.suites",
        "ssl.crl.location",
        "ssl.endpoint.identification.algorithm",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.key.pem",
    }
)
_NO: Final = frozenset({"false", "f", "0"})


@dataclass(frozen=True, kw_only=True)
class Security:
    """How to be let in."""

    client_id: str
    mechanism: str | None
    """Of SASL; None = without."""
    username: str | None
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None
    """None = plain text."""


def security(options: Mapping[str, str], *, process: str) -> Security:
    """What the options say of it. `kafka_options.check` has passed them.

    :param process: who asks, and the name it has without `client.id`.
    :raises Usage: an option that cannot be honoured here, by its name; a file that cannot be read.
    """
    given = {kafka_options.plain_name(name): value for name, value in options.items()}
    protocol = given.get("security.protocol", "plaintext").upper()
    sasl, tls = protocol.startswith("SASL_"), protocol.endswith("SSL")
    _refuse_others(given, process=process, sasl=sasl, tls=tls)
    mechanism = given.get("sasl.mechanisms", given.get("sasl.mechanism", "GSSAPI")).upper()  # librdkafka's default
    if sasl and mechanism not in MECHANISMS:
        raise _cannot(process, f"sasl.mechanism={mechanism}", f"use {', '.join(MECHANISMS)}")
    name, password = given.get("sasl.username"), given.get("sasl.password")
    if sasl and (name is None or password is None):
        raise ConfigurationError(
            "SASL needs sasl.username and sasl.password", where=kafka_options.SETTING, hint="set what is missing"
        )
    return Security(
        client_id=given.get("client.id", f"driftline-{process}"),
        mechanism=mechanism if sasl else None,
        username=name if sasl else None,
        password=password if sasl else None,
        tls=_context(given) if tls else None,
    )


def ignored(options: Mapping[str, str]) -> list[str]:
    """The options that tune a librdkafka and mean nothing to another client."""
    return sorted(name for name in options if kafka_options.plain_name(name) not in kafka_options.SECURITY)


def _refuse_others(given: Mapping[str, str], *, process: str, sasl: bool, tls: bool) -> None:
    """What is given of a way that is not taken (ssl.* without TLS) has no meaning to any client."""
    unfit = sorted(
        name
        for name in given.keys() & kafka_options.SECURITY - _HONOURED
        if (tls and name.startswith("ssl.")) or (sasl and not name.startswith("ssl."))
    )
    if unfit:
        raise _cannot(process, ", ".join(unfit), f"use {', '.join(sorted(_HONOURED))}")


def _cannot(process: str, what: str, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"`{process}` cannot honour {what}: its client is aiokafka", where=kafka_options.SETTING, hint=hint
    )


def _context(given: Mapping[str, str]) -> ssl.SSLContext:
    """:raises Usage: a file that cannot be read, or of another content than it should have."""
    try:
        context = ssl.create_default_context()
        if "ssl.ca.location" in given or "ssl.ca.pem" in given:  # these and no others are trusted
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            location = given.get("ssl.ca.location")
            folder = location is not None and os.path.isdir(location)
            context.load_verify_locations(
                cafile=None if folder else location,
                capath=location if folder else None,
                cadata=given.get("ssl.ca.pem"),
            )
        if (revoked := given.get("ssl.crl.location")) is not None:
            context.load_verify_locations(cafile=revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if (ciphers := given.get("ssl.cipher.suites")) is not None:
            context.set_ciphers(ciphers)
        _prove(context, given)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ", ".join(sorted(name for name in given if name.startswith("ssl.")))
        raise ConfigurationError(f"{names}: {error}", where=kafka_options.SETTING, hint="correct it") from None
    verified = given.get("enable.ssl.certificate.verification", "true").lower() not in _NO
    context.check_hostname = verified and given.get("ssl.endpoint.identification.algorithm", "https").lower() != "none"
    context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
    return context


def _prove(context: ssl.SSLContext, given: Mapping[str, str]) -> None:
    """Our own certificate, if there is one."""
    with ExitStack() as files:
        certificate = given.get("ssl.certificate.location")
        key = given.get("ssl.key.location")
        if certificate is None and "ssl.certificate.pem" in given:
            certificate = files.enter_context(_file(given["ssl.certificate.pem"]))
        if key is None and "ssl.key.pem" in given:
            key = files.enter_context(_file(given["ssl.key.pem"]))
        if certificate is not None:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(certificate, key, password=given.get("ssl.key.password", ""))


@contextmanager
def _file(pem: str) -> Iterator[str]:
    """`ssl` reads certificates and keys from files only: one that nobody else may read, for a moment."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem", encoding="ascii") as file:
        file.write(pem)
        file.flush()
        yield file.name
