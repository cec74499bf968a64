from pathlib import Path

from megatron_reason.launch.base import Job, Rendezvous
from megatron_reason.launch.local import torchrun_command
from megatron_reason.launch.node import read_step, write_step


def test_every_node_reads_the_same_step_and_knows_itself(tmp_path):
    job = Job(
        name="x", module="m", arguments=("a", "b"), processes=3, threads_per_process=2,
        log_file=tmp_path / "train.log", nodes=2,
    )  # fmt: skip
    meeting = Rendezvous(nodes=2, node=0, address="node1", port=20001, id="7.0.train")
    write_step(tmp_path / "step.json", job, meeting)
    read, where = read_step(tmp_path / "step.json", 1)
    assert (read.module, read.arguments, read.processes, read.nodes) == ("m", ("a", "b"), 3, 2)
    assert read.log_file == tmp_path / "train.node1.log"
    assert (where.node, where.address, where.port) == (1, "node1", 20001)
    command = " ".join(torchrun_command(read, where))
    assert "--nnodes 2 --node-rank 1 --master-addr node1 --master-port 20001" in command
    assert "--rdzv-id 7.0.train" in command
    assert f"--log-dir {Path(tmp_path, 'train.node1')} --tee 3 --nproc-per-node 3" in command
