"""Read the commit that is checked out in a folder, without running git.

Git runs programs that the configuration of the folder names, and the folder may not be trusted. So this does not tell
whether files differ from the commit.
"""

from __future__ import annotations

import re
from pathlib import Path

from lightning_meta.errors import UserError
from lightning_meta.reading import LARGEST_TEXT, read_text

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BRANCH = re.compile(r"ref: (refs/[\w./+@-]+)")
_SHORT = 4096  # maximum size in bytes of a file with a name


def git_revision(folder: Path | None = None) -> str | None:
    """The commit that is checked out in a folder, by default the working directory; None outside a repository."""
    try:
        here = (folder or Path.cwd()).resolve()
        home = next((place / ".git" for place in (here, *here.parents) if (place / ".git").exists()), None)
        return None if home is None else _revision(home)
    except (OSError, UnicodeDecodeError, UserError):
        return None


def _revision(home: Path) -> str | None:
    if home.is_file():  # a worktree or a submodule
        home = home.parent / read_text(home, _SHORT).removeprefix("gitdir: ").strip()
    head = read_text(home / "HEAD", _SHORT).strip()
    if _HASH.fullmatch(head):
        return head
    branch = _BRANCH.fullmatch(head)
    if branch is None or ".." in branch[1]:
        return None
    shared = home / "commondir"
    common = home / read_text(shared, _SHORT).strip() if shared.is_file() else home
    for place in (home, common):
        if (place / branch[1]).is_file():
            commit = read_text(place / branch[1], _SHORT).strip()
            return commit if _HASH.fullmatch(commit) else None
    packed = common / "packed-refs"
    lines = read_text(packed, LARGEST_TEXT).splitlines() if packed.is_file() else []
    pairs = (line.partition(" ") for line in lines)
    return next((commit for commit, _, name in pairs if name == branch[1] and _HASH.fullmatch(commit)), None)
