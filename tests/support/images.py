"""A root image of three files, and a build of it that kills itself at a given step."""

import os
import signal
import sys
import traceback
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

from torpor.compute.sandbox.image.contents import Contents, Entry, Part
from torpor.compute.sandbox.image.images import Images

_STEPS = frozenset(
    ["chmod", "fsync", "mkdir", "mount", "pack", "rename", "replace", "rmdir", "rmtree", "run", "save", "symlink", "umount2", "utime"]
)


def tiny(place: Path) -> Contents:
    """The contents; the server is the shell of the host."""
    entries = (
        Entry(Part.SERVER, PurePosixPath("usr/bin/postgres"), source=Path(os.path.realpath("/bin/sh")), executable=True),
        Entry(Part.SYSTEM, PurePosixPath("bin"), link="usr/bin"),
        Entry(Part.SYSTEM, PurePosixPath("etc/passwd"), text=f"{place}\n"),
    )
    return Contents(18, "0", PurePosixPath("/usr/bin"), entries, ())


def build_and_die(images: Images, steps: int) -> bool:
    """Build the image of major 18 in another process, killed before the call number `steps` that changes something; True if it was."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the build failed"
        return os.WIFSIGNALED(status)
    left = steps

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        name = argument.__name__ if event == "c_call" else frame.f_code.co_name if event == "call" else ""
        if name in _STEPS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.setprofile(look)
        images.ensure(18)
        code = 0
    except BaseException:
        sys.setprofile(None)
        traceback.print_exc()
    finally:
        os._exit(code)
