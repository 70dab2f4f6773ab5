"""List the containers that lie side by side, and remove those that nobody has used for long."""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxway_shared.container_record import ContainerRecord

from jaxway.config.containers import digest_path, record_path
from jaxway.config.load import add_arguments, read
from jaxway.container import store
from jaxway.files import remove

DAYS = 30  # without use, before a container may go
SECONDS_OF_A_DAY = 24 * 3600


@dataclass(frozen=True)
class Stored:
    """A container, the links beside it that lead to it, and the runs whose links do."""

    path: Path
    record: ContainerRecord
    links: tuple[str, ...]
    runs: tuple[Path, ...]

    @property
    def last_use(self) -> float:
        """Seconds since 1970: when it was last read, as far as the file system keeps that, or made,
        or a run started with it.
        """
        entries = list_folder(store.runs_folder(self.path))
        times = [entry.lstat().st_mtime for entry in entries]
        return max(*times, self.path.stat().st_atime, record_path(self.path).stat().st_mtime)

    @property
    def bytes(self) -> int:
        files = (self.path, *self.path.rglob("*"))
        return sum(file.lstat().st_size for file in files)

    def lines(self) -> Iterator[str]:
        """What people should know of it."""
        used = time.strftime("%Y-%m-%d", time.localtime(self.last_use))
        leads = f"  <- {', '.join(self.links)}" if self.links else ""
        yield f"{self.path.name}  {self.bytes / 1e9:,.1f} GB  used {used}{leads}"
        packages = self.record.packages
        added = f" with {' '.join((*packages.python, *packages.debian))}" if packages else ""
        yield f"    {self.record.image}{added}  {self.record.identity}"
        yield from (f"    run {run}" for run in self.runs)

    def remove(self) -> str:
        """Remove it; a sentence on that."""
        files = (self.path, record_path(self.path), digest_path(self.path))
        remove(*files, store.runs_folder(self.path))
        return f"{self.path} {'cannot be removed by you' if self.path.exists() else 'is removed'}"


def list_folder(folder: Path) -> list[Path]:
    return [*folder.iterdir()] if folder.is_dir() else []


def stored(sif: Path) -> list[Stored]:
    """All containers beside the site's link."""
    links = {link: os.path.realpath(link) for link in list_folder(sif.parent) if link.is_symlink()}
    found = []
    for path, record in store.containers(sif).items():
        real = os.path.realpath(path)
        here = tuple(sorted(link.name for link, container in links.items() if container == real))
        notes = [note for note in list_folder(store.runs_folder(path)) if note.is_symlink()]
        runs = sorted(link for link in map(Path.readlink, notes) if leads_to(link, path))
        found.append(Stored(path, record, here, tuple(runs)))
    return found


def leads_to(link: Path, container: Path) -> bool:
    """Whether a run's link leads to a container; yes, if this user may not know."""
    try:
        return os.path.realpath(link, strict=True) == os.path.realpath(container)
    except OSError as error:
        return isinstance(error, PermissionError)


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument(
        "--prune",
        action="store_true",
        help="only those unused for long to which no link beside them or of a run leads",
    )
    parser.add_argument("--days", type=int, default=DAYS, help=f"how long; default: {DAYS}")
    parser.add_argument("--yes", action="store_true", help="with --prune: remove them")


def run(args: argparse.Namespace) -> None:
    _, _, site = read(args)
    sif = Path(site.sif).absolute()
    found = stored(sif)
    if args.prune:
        latest = time.time() - args.days * SECONDS_OF_A_DAY
        found = [x for x in found if not (x.links or x.runs) and x.last_use < latest]
    for each in found:
        print(*([each.remove()] if args.prune and args.yes else each.lines()), sep="\n")
