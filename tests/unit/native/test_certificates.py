"""Certificates: the development authority's and the user's files; which one a client gets, and how they are changed."""

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from tests.support.relaying import TlsClient, carried
from torpor.base.clock import SystemClock
from torpor.door.authority import DevelopmentAuthority
from torpor.door.encryption import CertificateFiles, Encryption
from torpor.door.relays import Relays
from torpor.model.encryption import TlsMode
from torpor.model.errors import BadSettings
from torpor.native import RELAY


def test_files_and_settings() -> None:
    assert CertificateFiles.from_settings("/a, /b", "").pairs == ((Path("/a"), Path("/a")), (Path("/b"), Path("/b")))
    with pytest.raises(BadSettings, match="one key for each"):
        CertificateFiles.from_settings("/a,/b", "/c")
    with pytest.raises(BadSettings, match="tls_cert /nowhere can't be read"):
        CertificateFiles.from_settings("/nowhere", "").load()


def _certificate(place: Path, *names: str) -> tuple[Path, Path, DevelopmentAuthority]:
    made = DevelopmentAuthority(place)
    made.ensure(names, time.time())
    return (*made.server, made)


async def _subject(relays: Relays, ca: Path, name: str) -> str:
    """Which certificate a client gets that asks for `name`."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    async with carried(relays, context=context, name=name) as one:
        assert isinstance(one.client, TlsClient)
        found = one.client.tls.getpeercert()
        assert found is not None
        return str(dict(part[0] for part in found["subject"])["commonName"])  # type: ignore[misc]


async def test_certificates_are_chosen_by_name_and_changed_while_sessions_go_on(tmp_path: Path) -> None:
    first, second = _certificate(tmp_path / "1", "one.test", "*.one.test"), _certificate(tmp_path / "2", "two.test")
    files = CertificateFiles(((first[0], first[1]), (second[0], second[1])))
    cas = tmp_path / "cas"
    cas.write_bytes(first[2].certificate.read_bytes() + second[2].certificate.read_bytes())
    run = tmp_path / "r"
    run.mkdir()
    made = Encryption(TlsMode.ALLOW, Relays(RELAY, run, 0, 1), files, SystemClock())
    await made.start()
    try:
        assert [await _subject(made.relays, cas, name) for name in ("one.test", "shop.one.test", "two.test", "other.test")] == [
            "one.test", "one.test", "two.test", "one.test",
        ]  # fmt: skip
        context = ssl.create_default_context(cafile=str(cas))
        async with carried(made.relays, context=context, name="two.test") as one:
            second[1].write_bytes(first[1].read_bytes())  # a key that doesn't fit
            await made.reload()
            assert await _subject(made.relays, cas, "two.test") == "two.test", "what can't be used changes nothing"
            third = _certificate(tmp_path / "3", "three.test")
            cas.write_bytes(cas.read_bytes() + third[2].certificate.read_bytes())
            for old, new in zip(second[:2], third[:2], strict=True):
                old.write_bytes(new.read_bytes())
            await made.reload()
            assert await _subject(made.relays, cas, "three.test") == "three.test"
            await one.send(b"still here")
            assert await one.hear() == b"still here"
    finally:
        await made.relays.stop(leave=False)


async def test_a_certificate_that_can_not_be_used_is_told_at_start(tmp_path: Path) -> None:
    chain, key, _ = _certificate(tmp_path / "1", "one.test")
    key.write_text("no key")
    files = CertificateFiles(((chain, key),))
    run = tmp_path / "r"
    run.mkdir()
    made = Encryption(TlsMode.ALLOW, Relays(RELAY, run, 0, 4), files, SystemClock())
    with pytest.raises(BadSettings, match="tls_cert and its key can't be used: there is no private key in PEM form"):
        await made.start()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "no worker is still being ended"
    assert list(run.iterdir()) == []
    await made.relays.stop(leave=True)


def test_the_authority_makes_only_what_is_needed(tmp_path: Path) -> None:
    made = DevelopmentAuthority(tmp_path / "tls")
    now = time.time()
    assert made.ensure(["localhost", "127.0.0.1"], now)
    ca, server = made.certificate.read_bytes(), made.server[0].read_bytes()
    assert not made.ensure(["localhost", "127.0.0.1"], now)
    assert made.ensure(["localhost", "127.0.0.1"], now + 350 * 86_400), "it is about to expire"
    assert made.ensure(["localhost", "db.test"], now), "other names"
    assert made.certificate.read_bytes() == ca
    assert made.server[0].read_bytes() != server
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600, "server.json": 0o644}
