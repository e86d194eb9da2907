"""The files through which the kernel tells of itself; tests put folders in their place."""

from pathlib import Path


class System:
    """Reads /proc and /sys below `root`. What is not there, or may not be read, is the empty string."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def text(self, path: str) -> str:
        """A file's content without the space around it."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # EINVAL too: a NIC that is down has no speed
            return ""

    def number(self, path: str) -> int | None:
        """A file's content as a number; None when it is none."""
        try:
            return int(self.text(path))
        except ValueError:
            return None

    def names(self, folder: str) -> list[str]:
        """What lies in a folder."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.root / path).exists()

    def table(self, path: str) -> dict[str, str]:
        """Lines such as "MemTotal:  16 kB" as {"MemTotal": "16 kB"}."""
        pairs = (line.partition(":") for line in self.text(path).splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
