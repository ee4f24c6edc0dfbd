"""Agreeing on the protocol's version before anything is handed over. Pure.

The door answers in PostgreSQL's place, because what it hands over must need no further answer.
"""

from torpor.pgwire.replies import negotiate_protocol_version
from torpor.pgwire.startup import EXTENSION_PREFIX, StartupMessage

_FIRST_MAJOR_WITH_3_2 = 18


def negotiate(startup: StartupMessage, major: int) -> tuple[StartupMessage, bytes]:
    """The message as PostgreSQL `major` understands it, and what to tell the client first (nothing when it asked for no more).

    PostgreSQL up to 17 speaks 3.0, from 18 on 3.2, and none knows a protocol extension.
    """
    newest = 2 if major >= _FIRST_MAJOR_WITH_3_2 else 0
    unknown = [name for name in startup.parameters if name.startswith(EXTENSION_PREFIX)]
    minor = min(startup.minor, newest)
    answer = negotiate_protocol_version(minor, unknown) if unknown or minor < startup.minor else b""
    parameters = {name: value for name, value in startup.parameters.items() if name not in unknown}
    return StartupMessage(parameters, minor), answer
