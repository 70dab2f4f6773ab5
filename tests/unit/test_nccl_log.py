import os
from pathlib import Path

import pytest
from jaxway_job import nccl_log

# As NCCL 2.19 to 2.27 write them; the first and the last three name no channel's transport.
LOG = """\
jrc0101:1:2 [0] NCCL INFO Using network IB
jrc0101:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read
jrc0101:1:2 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM/read
jrc0101:1:2 [0] NCCL INFO Channel 00 : 3[3] -> 0[0] via SHM/direct/direct
jrc0101:1:2 [0] NCCL INFO Channel 01/0 : 3[3] -> 4[0] [send] via NET/IB/0/GDRDMA
jrc0101:1:2 [0] NCCL INFO Channel 02/0 : 4[0] -> 3[3] [receive] via NET/IB/1/GDRDMA
jrc0101:1:2 [0] NCCL INFO Channel 02/0 : 4[0] -> 3[3] [receive] via NET/Socket/0
jrc0101:1:2 [0] NCCL INFO Channel 00/02 : 0 1 2 3
jrc0101:1:2 [0] NCCL INFO Trees [0] 1/-1/-1->0->-1 [1] 1/-1/-1->0->-1
jrc0101:1:2 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB ib0:10.0.0.1<0>
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start the log as a process of a step; its file."""

    def run(process=None):
        monkeypatch.setattr(os, "environ", os.environ | {"SLURM_PROCID": str(process)})
        if process is None:
            del os.environ["SLURM_PROCID"]
        nccl_log.start(tmp_path / "collective.json")
        assert os.environ["NCCL_DEBUG"] == "INFO"
        return Path(os.environ["NCCL_DEBUG_FILE"])

    return run


def test_channels_are_counted(tmp_path, started):
    started().write_text(LOG)
    found = nccl_log.count_channels(tmp_path / "collective.json")
    assert found == {"P2P": 2, "SHM": 1, "NET/IB": 2, "NET/Socket": 1}


def test_hpcx_plugin_counts_as_infiniband(tmp_path, started):
    """HPC-X calls what it uses instead of NCCL's own IBext, IBext_v8 and so on."""
    line = "h:1:2 [0] NCCL INFO Channel 00/0 : 7[1] -> 0[0] [receive] via NET/{}/1/GDRDMA\n"
    started().write_text(line.format("IBext") + line.format("IBext_v8"))
    assert nccl_log.count_channels(tmp_path / "collective.json") == {"NET/IB": 2}


def test_processes_have_logs_of_their_own(tmp_path, started):
    for process in (0, 1, 10):
        started(process).write_text(LOG)
    other = tmp_path / "train.json.nccl-0.log"
    other.write_text(LOG)
    assert nccl_log.count_channels(tmp_path / "collective.json")["P2P"] == 2 * 3


def test_without_nccl(tmp_path, started):
    started(0)
    assert nccl_log.count_channels(tmp_path / "collective.json") == {}
