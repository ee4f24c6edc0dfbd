"""An issuer of tokens: keys, tokens, and a key set that is served over HTTP on this machine."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://auth.example.com"


def b64(data: bytes) -> str:
    """As JSON Web Tokens write bytes."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """One key pair."""

    def __init__(self, kid: str = "k1", algorithm: str = "ES256") -> None:
        self.kid = kid
        self.algorithm = algorithm
        make: dict[str, Any] = {
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        self.key = make[algorithm]()

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key, as a set has it."""
        found: dict[str, Any] = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.key.public_key(), as_dict=True)
        return {**found, "kid": self.kid, "use": "sig", "alg": self.algorithm}

    def token(self, claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None, life_s: float = 600) -> str:
        """A token of ours; claims that are None are left out."""
        now = time.time()
        said = {"iss": ISSUER, "aud": "shop", "sub": "u1", "role": "web", "iat": int(now), "exp": now + life_s} | (claims or {})
        said = {name: value for name, value in said.items() if value is not None}
        headers = {name: value for name, value in ({"kid": self.kid} | (header or {})).items() if value is not None}
        return jwt.encode(said, self.key, algorithm=self.algorithm, headers=headers)


def key_set(*signers: Signer) -> str:
    """A JSON Web Key Set."""
    return json.dumps({"keys": [signer.jwk for signer in signers]})


class KeyServer:
    """Serves whatever `text` is now, and counts who asks."""

    def __init__(self) -> None:
        self.text = "{}"
        self.status = 200
        self.asked = 0
        self.url = ""


@contextmanager
def serving(text: str) -> Iterator[KeyServer]:
    """A key set on this machine."""
    served = KeyServer()
    served.text = text

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked += 1
            body = served.text.encode()
            self.send_response(served.status)
            self.send_header("location", "http://127.0.0.1:1/")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
