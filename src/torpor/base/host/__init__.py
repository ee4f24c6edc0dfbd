"""What the host has, and giving it what it lacks: probing, findings for people, a plan, and the executors of that plan.

Belongs here: cgroups, swap and zram, reflinks and the copy-on-write pool (also an encrypted one), sandbox tools, packages, as facts about a
Linux machine.
Does not belong: anything about PostgreSQL or the daemon; callers add their own findings. `facts` and the executors do I/O, `findings`
and `plan` are pure. Nothing here is async: it runs in a command, or once at start-up before the loop.
"""
