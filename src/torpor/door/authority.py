"""The development authority: certificates of Torpor's own, made at first start, for who has none from a public authority.

Its key stays in the data directory (mode 0600), as does that of the server's certificate, which is made anew when it is about to expire
or the names change. Whoever gives clients `ca.crt` (`torpor tls ca`) makes `sslmode=verify-full` work.

Concurrency: blocking file work of some 10 ms, at start and once in months; `cryptography` is imported only when something is made.
"""

import ipaddress
import json
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from torpor.model.encryption import is_ip_address

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397  # the most that TLS libraries of some systems accept
_RENEW_BEFORE_DAYS = 60
_BACKDATED = timedelta(hours=1)  # clocks differ


class DevelopmentAuthority:
    """The authority in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"<DevelopmentAuthority {self._directory}>"

    @property
    def certificate(self) -> Path:
        """What clients must trust."""
        return self._directory / "ca.crt"

    @property
    def server(self) -> tuple[Path, Path]:
        """The server's chain and key."""
        return self._directory / "server.crt", self._directory / "server.key"

    def ensure(self, names: Sequence[str], now: float) -> bool:
        """Have an authority, and a server certificate for exactly `names` that is good for a while. Whether one was made."""
        self._directory.mkdir(mode=0o755, exist_ok=True)
        self._directory.chmod(0o755)
        about = self._directory / "server.json"
        try:
            facts = json.loads(about.read_text())
            lasts_s = float(facts["expires_at"]) - now
            is_good = facts["names"] == list(names) and lasts_s > _RENEW_BEFORE_DAYS * 86_400
        except (OSError, ValueError, KeyError, TypeError):
            is_good = False
        if is_good and all(path.exists() for path in (self.certificate, *self.server)):
            return False
        expires_at = self._make(names, datetime.fromtimestamp(now, UTC))
        _write(about, json.dumps({"names": list(names), "expires_at": expires_at}).encode(), 0o644)
        return True

    def _make(self, names: Sequence[str], now: datetime) -> float:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Torpor"), x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])

        def usage(signs_certificates: bool) -> x509.KeyUsage:
            others = dict.fromkeys(
                ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
            )
            return x509.KeyUsage(
                digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates, **others
            )

        def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
            return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

        def builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
            return (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(issuer)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - _BACKDATED)
                .not_valid_after(now + timedelta(days=days))
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            )

        authority_key = self._directory / "ca.key"
        try:
            key = serialization.load_pem_private_key(authority_key.read_bytes(), None)
            authority = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            is_usable = authority.not_valid_after_utc - now > timedelta(days=_SERVER_DAYS)
        except (OSError, ValueError):
            is_usable = False
        if not is_usable or not isinstance(key, ec.EllipticCurvePrivateKey):
            key = ec.generate_private_key(ec.SECP256R1())
            who = name(f"Torpor development authority of {socket.gethostname()}")
            authority = (
                builder(who, who, key, _AUTHORITY_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(usage(signs_certificates=True), critical=True)
                .sign(key, hashes.SHA256())
            )
            _write(authority_key, pem(key), 0o600)
            _write(self.certificate, authority.public_bytes(serialization.Encoding.PEM), 0o644)
        server_key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(text)) if is_ip_address(text) else x509.DNSName(text.encode("idna").decode())
            for text in names
        ]
        server = (
            builder(name(names[0]), authority.subject, server_key, _SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        chain, key_path = self.server
        _write(key_path, pem(server_key), 0o600)
        _write(chain, server.public_bytes(serialization.Encoding.PEM), 0o644)
        return server.not_valid_after_utc.timestamp()


def development_names(public_host: str, door_host: str) -> list[str]:
    """The names and addresses that the development certificate stands for."""
    names = ["localhost", "127.0.0.1", "::1"]
    hosts = [host.partition("%")[0] for host in (public_host, door_host) if host.strip("0.:*")]
    for host in hosts:
        names += [host] if is_ip_address(host) or host == "localhost" else [host, f"*.{host}"]
    return list(dict.fromkeys(names))


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once; nobody ever sees half of it, or it with a wider mode."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
