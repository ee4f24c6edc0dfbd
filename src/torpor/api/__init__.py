"""The HTTP API: JSON over HTTP for everything that the command line can do, its OpenAPI document, and metrics.

Belongs here: turning requests into calls of `ports.Databases` and answers into bytes, authentication, documentation of the API.
Does not belong: any decision about databases (control), anything that other packages would need.

Plain ASGI under an embedded uvicorn, with msgspec: measured beside asyncio and structlog, importing Litestar costs 600 ms more,
Starlette 130 ms and 4 MB; the daemon has 2 s to start. The table in `operations` is routing, checking and documentation at once.
"""
