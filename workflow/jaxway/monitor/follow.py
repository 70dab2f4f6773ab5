"""`jaxway follow`: a line for each job of the run in this folder.

Refreshed on a terminal until the run ends or Ctrl-C; elsewhere printed once. Until the run ends it
writes event files for TensorBoard, if it is to.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from jaxway_shared.errors import UserError
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from jaxway import run_lock
from jaxway.config.jobs import Config
from jaxway.config.load import add_arguments, load, read
from jaxway.config.site import Site
from jaxway.monitor.event_files import EventFiles
from jaxway.monitor.slurm_queue import Queue
from jaxway.monitor.status import job_statuses, status_lines

QUEUE_INTERVAL_S = 10  # between two queries of Slurm, at least
FILES_INTERVAL_S = 2


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="folder for event files of trainings"
    )


def run(args: argparse.Namespace) -> None:
    _, settings, site = read(args)
    # Nothing is submitted, so it takes no account.
    config = load(settings, replace(site, account_variables=[]))
    if site.launcher and not shutil.which("squeue"):
        raise UserError("JW552", "there is no squeue in PATH")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # how it is ended on a terminal
        follow(config, site, EventFiles(args.tensorboard) if args.tensorboard else None)


def follow(config: Config, site: Site, events: EventFiles | None) -> None:
    queue = Queue(site, QUEUE_INTERVAL_S, with_positions=True)
    queue.refresh()
    if not is_running(queue):
        print(f"no run in {os.getcwd()}")
    elif sys.stdout.isatty():
        show_until_end(config, site, queue, events)
        print("the run has ended")
    else:
        print_once(config, site, queue)
        while events and is_running(queue):
            events.update(config.train)
            time.sleep(FILES_INTERVAL_S)
            queue.refresh()
    if events:
        events.update(config.train)


def is_running(queue: Queue) -> bool:
    return bool(run_lock.started() or queue.jobs or queue.problem)


def print_once(config: Config, site: Site, queue: Queue) -> None:
    if queue.pending():
        queue.refresh_positions()
    lines = status_lines(job_statuses(config, site, queue), queue)
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:{width}}  {text}".strip())


def show_until_end(config: Config, site: Site, queue: Queue, events: EventFiles | None) -> None:
    with Live(auto_refresh=False) as live:
        while is_running(queue):
            if events:
                events.update(config.train)
            table = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2))
            for label, text in status_lines(job_statuses(config, site, queue), queue):
                cut = Text(text, no_wrap=True, overflow="ellipsis")
                table.add_row(Text(label, "bold"), cut)
            live.update(table, refresh=True)
            time.sleep(FILES_INTERVAL_S)
            queue.refresh()
