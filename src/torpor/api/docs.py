"""The page that shows the OpenAPI document: Swagger UI out of a Python package, with nothing fetched from elsewhere.

Page, assets and document need a key, as everything does. A browser asks its user for a name and a password: any name will do, the
password is an API key or the host's token. For anything else than these pages that way is refused (`gate`).

Concurrency: assets are read from disk once, in a thread, and kept: 1.7 MB, only after somebody opened the page.
"""

import asyncio
from functools import cache
from importlib.resources import files

from torpor.api.asgi import Answer

_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Torpor API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
_BUNDLED = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}

PAGES = frozenset({"/docs", "/docs/start.js", *(f"/docs/{name}" for name in _BUNDLED)})
"""The paths that `page` answers."""


async def page(path: str) -> Answer:
    """The answer for one of PAGES."""
    if path == "/docs":
        return Answer(_PAGE, media="text/html; charset=utf-8", headers=_HEADERS)
    name = path.removeprefix("/docs/")
    if name == "start.js":
        return Answer(_START, media="text/javascript; charset=utf-8", headers=_HEADERS)
    content = await asyncio.to_thread(_bundled, name)
    return Answer(content, media=_BUNDLED[name], headers={**_HEADERS, "Cache-Control": "max-age=3600"})


@cache
def _bundled(name: str) -> bytes:
    [assets] = (files("swagger_ui_bundle") / "vendor").iterdir()  # one directory, named after Swagger UI's version
    return (assets / name).read_bytes()
