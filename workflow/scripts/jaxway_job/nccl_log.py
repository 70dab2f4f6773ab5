"""Which transports NCCL used, read from its own log."""

import os
import re
from collections import Counter
from pathlib import Path

# "Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read", "... via SHM/direct/direct", and between nodes
# "... : 3[3] -> 4[0] [send] via NET/IB/0/GDRDMA" or "... via NET/Socket/0".
CHANNEL = re.compile(r"Channel \S+ ?: \S+ -> \S+ .*?via (NET/(?:IB|[A-Za-z]+)|\w+)")


def start(out: Path) -> None:
    """Have NCCL write its log beside ``out``, a file for each process. Before JAX starts NCCL."""
    file = f"{out}.nccl-{os.environ.get('SLURM_PROCID', '0')}.log"
    os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET,P2P,SHM,GRAPH"}
    os.environ["NCCL_DEBUG_FILE"] = file


def count_channels(out: Path) -> dict[str, int]:
    """Channels by transport, P2P, SHM, NET/IB, NET/Socket, in the logs of all processes."""
    logs = sorted(out.parent.glob(f"{out.name}.nccl-*.log"))
    return dict(Counter(CHANNEL.findall("".join(log.read_text() for log in logs))))
