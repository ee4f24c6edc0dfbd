"""The root image: what a sandbox has as `/`, built from the installed PostgreSQL, shared by all computes of a major.

Belongs here: which files PostgreSQL needs (`contents`), reading ELF files (`elf`, `libraries`), making the tree and the image of it,
mounting, finding them again, and throwing old ones away (`images`). Does not belong: starting anything inside (that is the sandbox).
Everything but `Images.ready` is synchronous, and is called in threads or commands.
"""
