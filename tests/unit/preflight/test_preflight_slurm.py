"""Checks that ask Slurm: account, partition, queue, nodes. The cluster's tests ask a real one."""

from typing import Any

import pytest
from examples import make_job, make_site
from jaxway.preflight.account import check_account
from jaxway.preflight.finding import FAIL, PASS, WARN, Finding, failure, passed, warning
from jaxway.preflight.nodes import check_nodes
from jaxway.preflight.partition import check_partition
from jaxway.preflight.qos import parse_minutes
from jaxway.preflight.queue import check_queue
from jaxway.slurm.commands import EXIT_NOT_FOUND, EXIT_TIMEOUT

SHOW = "scontrol --all --oneliner show partition gpu"
JOB = make_job()

# -------------------------------------------------------------------------------------- partition


def partition(**placement: Any) -> list[Finding]:
    return [*check_partition("gpu", {"train.big": make_job(**placement)}, "training")]


def test_healthy_partition_passes(machine) -> None:
    assert partition() == [passed("gpu: 4 nodes with 4 GPUs, at most 24 h")]


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"nodes": 3}, "train.big.nodes: gpu gives at most 2 to a job, not 3"),
        ({"gpus_per_node": 8}, "train.big.gpus_per_node: a node of gpu has 4, not 8"),
        ({"walltime": 1441}, "train.big.walltime: gpu allows 1440 minutes, not 1441"),
        (
            {"walltime": 481, "trainings_per_node": 12},
            "train.big.walltime: gpu allows 1440 minutes, not 1443 (3 turns of 481)",
        ),
    ],
)
def test_job_over_a_limit_fails(machine, placement, message) -> None:
    assert partition(**placement) == [failure("JW505", message)]


def test_job_at_all_limits_passes(machine) -> None:
    (finding,) = partition(walltime=1440, nodes=2)
    assert finding.status is PASS


def test_closed_partition_fails_and_names_open_ones(machine) -> None:
    machine[SHOW] = machine[SHOW].replace("UP", "DRAIN")
    message = "train.big.partition: gpu is DRAIN and starts no job; open are gpu, other"
    assert partition() == [failure("JW504", message)]


@pytest.mark.parametrize(("max_nodes", "wanted", "given"), [("0", 1, 0), ("9", 3, 2)])
def test_max_nodes_counts_where_it_is_lower_than_the_nodes_there_are(
    machine, max_nodes, wanted, given
) -> None:
    machine[SHOW] = machine[SHOW].replace("UNLIMITED", max_nodes)
    message = f"train.big.nodes: gpu gives at most {given} to a job, not {wanted}"
    assert partition(nodes=wanted) == [failure("JW505", message)]


def test_partition_that_is_down_is_a_warning(machine) -> None:
    machine[SHOW] = machine[SHOW].replace("UP", "DOWN", 1)
    assert partition() == [warning("gpu is down, and jobs wait there until it is up")]


def test_controller_that_does_not_answer_is_a_warning(machine) -> None:
    machine[SHOW] = "!Unable to contact slurm controller (connect failure)"
    (finding,) = partition()
    assert finding.status is WARN


def test_partition_without_a_name_is_the_default_one(machine) -> None:
    (finding,) = check_partition(None, {"train.big": make_job(nodes=3)}, None)
    assert "gpu gives at most 2 to a job" in finding.message
    machine["sinfo --noheader --format=%P"] = "gpu\nother"
    assert not [*check_partition(None, {"train.big": JOB}, None)]


def test_one_of_several_partitions_is_slurm_s_choice(machine) -> None:
    """`sbatch --test-only` says whether one takes the job."""
    (finding,) = check_partition("gpu,other", {"train.big": make_job(nodes=3)}, None)
    assert finding.status is PASS


def test_unknown_partition_fails_and_names_open_ones(machine) -> None:
    machine[SHOW] = "!Partition gpu not found"
    message = "train.big.partition: Partition gpu not found; open are gpu, other"
    assert partition() == [failure("JW503", message)]


def test_many_jobs_with_one_problem_are_one_line(machine) -> None:
    jobs = {f"train.{k}": make_job(nodes=3) for k in range(1000)}
    (finding,) = check_partition("gpu", jobs, None)
    assert finding.message.startswith("train.0.nodes: gpu gives at most 2 to a job, not 3 (and 999")


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("1-00:00:00", 1440), ("02:00:30", 120.5), ("UNLIMITED", float("inf"))],
)
def test_time_limit_in_minutes(limit, minutes) -> None:
    assert parse_minutes(limit) == minutes


# -------------------------------------------------------------------------------------------- QoS

QOS = "sacctmgr --noheader --parsable2 show qos format=Name,Flags,MaxWall,MaxTRES,MaxSubmitJobs"
OWN = "sacctmgr --noheader --parsable2 show associations user=alice account=training format=Default"


@pytest.fixture
def with_qos(machine, monkeypatch) -> Any:
    """A partition with a QoS of its own, and a user who has another one."""
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.delenv("SBATCH_QOS", raising=False)
    machine[SHOW] = f"{machine[SHOW]} QoS=Part_gpu"
    for words in ("show qos", "show"):
        del machine[f"sacctmgr --noheader --parsable2 {words}"]
    machine[QOS] = (
        "normal||||\npart_gpu|DenyOnLimit|12:00:00||\nwide||1-00:00:00|cpu=9,node=1,gres/gpu=2|2\n"
        "first|OverPartQOS|00:10:00||"
    )
    machine[OWN] = ""
    return machine


def test_partition_says_the_time_of_its_qos(with_qos) -> None:
    assert partition(walltime=720) == [
        passed("gpu: 4 nodes with 4 GPUs, at most 12 h (QoS part_gpu)")
    ]


@pytest.mark.parametrize(
    ("own", "placement", "messages"),
    [
        ("", {"walltime": 721}, ["walltime: QoS part_gpu allows 720 minutes, not 721"]),
        ("normal", {"walltime": 721}, ["walltime: QoS part_gpu allows 720 minutes, not 721"]),
        ("first", {"walltime": 11}, ["walltime: QoS first allows 10 minutes, not 11"]),
        (
            "first",
            {"walltime": 6, "trainings_per_node": 8},
            ["walltime: QoS first allows 10 minutes, not 12 (2 turns of 6)"],
        ),
        (  # the partition's time, and its own nodes and GPUs, of which the partition's says nothing
            "wide",
            {"walltime": 721, "nodes": 2},
            [
                "walltime: QoS part_gpu allows 720 minutes, not 721",
                "nodes: QoS wide allows 1 nodes, not 2",
                "nodes: QoS wide allows 2 GPUs, not 8",
            ],
        ),
    ],
)
def test_job_over_a_limit_of_a_qos_fails(with_qos, own, placement, messages) -> None:
    with_qos[OWN] = own
    expected = [failure("JW505", f"train.big.{message}") for message in messages]
    assert partition(**placement) == expected


def test_qos_that_the_job_or_the_shell_names(with_qos, monkeypatch) -> None:
    message = "train.big.walltime: QoS first allows 10 minutes, not 30"
    assert partition(options=("--qos=first",)) == [failure("JW505", message)]
    monkeypatch.setenv("SBATCH_QOS", "first")
    assert partition() == [failure("JW505", message)]
    assert partition(options=("--qos=First",)) == [failure("JW505", message)]
    (finding,) = partition(options=("--qos=normal",))
    assert finding.status is PASS


@pytest.mark.parametrize(
    ("flags", "placement", "found"),
    [
        ("PartitionTimeLimit", {"walltime": 2880}, []),
        ("DenyOnLimit,PartitionTimeLimit", {"walltime": 2881}, ["QoS long allows 2880 minutes"]),
        ("PartitionMaxNodes", {"nodes": 2}, []),
        ("PartitionMaxNodes", {"nodes": 3}, ["gpu gives at most 2 to a job"]),  # nodes there are
        ("PartitionMaxNodes", {"walltime": 1441}, ["gpu allows 1440 minutes"]),
        ("PartitionTimeLimit", {"nodes": 2}, ["gpu gives at most 1 to a job"]),
        ("", {"walltime": 1441, "nodes": 2}, ["gpu gives at most 1", "gpu allows 1440 minutes"]),
    ],
)
def test_limit_of_the_partition_that_a_qos_lifts(machine, flags, placement, found) -> None:
    machine[SHOW] = machine[SHOW].replace("UNLIMITED", "1")
    machine["sacctmgr --noheader --parsable2 show qos"] = f"long|{flags}|2-00:00:00||"
    findings = partition(options=("--qos=long",), **placement)
    messages = [finding.message for finding in findings if finding.status is FAIL]
    assert len(messages) == len(found)
    for message, part in zip(messages, found, strict=True):
        assert part in message


def test_flags_of_a_partition_s_qos_lift_nothing(with_qos) -> None:
    """Only those of the QoS that the job uses do, see `man sacctmgr`."""
    with_qos[QOS] = "normal||||\npart_gpu|PartitionTimeLimit|||"
    assert partition(walltime=1441) == [
        failure("JW505", "train.big.walltime: gpu allows 1440 minutes, not 1441")
    ]


def test_limits_in_percent_are_no_numbers_of_nodes(machine) -> None:
    machine["sacctmgr --noheader --parsable2 show qos"] = "normal|Relative||node=1,gres/gpu=5|"
    assert [finding.status for finding in partition(nodes=2)] == [PASS]


def test_more_jobs_than_a_qos_takes_at_a_time_is_a_warning(with_qos) -> None:
    with_qos[OWN] = "wide"
    jobs = {f"train.{k}": make_job(gpus_per_node=2) for k in range(3)}
    _, finding = check_partition("gpu", jobs, "training")
    message = "gpu: QoS wide lets you have 2 jobs at a time, and there are 3: add `--jobs=2`"
    assert finding == warning(message)
    jobs = {name: make_job(gpus_per_node=2, trainings_per_node=2) for name in jobs}
    assert [finding.status for finding in check_partition("gpu", jobs, "training")] == [PASS]


def test_qos_that_slurm_does_not_report_is_a_warning(with_qos) -> None:
    for answer, message in (
        ("!slurmdbd is down", "slurmdbd is down"),
        ("normal", "sacctmgr printed 'normal'"),
    ):
        with_qos[QOS] = answer
        assert warning(f"gpu: QoS part_gpu: {message}") in partition()


# ---------------------------------------------------------------------------------------- account


def account(name: str = "training", budget_command: str | None = None) -> Finding:
    """Half an hour of one node with 128 cores."""
    site = make_site(cores_per_node=128, budget_command=budget_command)
    (finding,) = check_account(name, 0.5, site)
    return finding


def test_account_of_another_fails_and_names_the_user_s(machine) -> None:
    message = "you may not charge account 'forbidden': set `account` or $SBATCH_ACCOUNT to one of "
    assert account("forbidden") == failure("JW501", message + "other, training")


def test_account_may_be_written_in_capitals(machine) -> None:
    assert account("Training").status is PASS


def test_budget_that_slurm_does_not_report_passes(machine) -> None:
    left = "training; Slurm does not report what is left of its budget"
    assert account() == passed(left)
    assert account(budget_command="jutil") == passed(f"{left} (`jutil` does)")


def test_accounting_that_does_not_answer_is_a_warning(machine) -> None:
    machine["sacctmgr --noheader --parsable2 show"] = "!slurmdbd is down"
    assert account() == warning("training: Slurm did not report it (slurmdbd is down)")


@pytest.mark.parametrize(
    ("used", "status", "message"),
    [  # of 100 core-h; the job may take 64
        (0, PASS, "training has 100 CPU-h left"),
        (60 * 50, WARN, "training has 50 CPU-h left, less than this may take"),
        (60 * 100, FAIL, "training has 0 CPU-h left: its jobs would wait"),
    ],
)
def test_budget_is_compared_with_what_the_plan_may_take(machine, used, status, message) -> None:
    machine["sshare"] = f"CLUSTER: x\nalice|cpu=6|cpu=6\n|cpu=6000,gres/gpu=1|cpu={used},mem=3"
    finding = account()
    assert finding.status is status
    assert finding.message.startswith(message)


# ------------------------------------------------------------------------------------------ queue


def test_queue_reports_start_or_refusal_of_each_kind_of_job(machine) -> None:
    in_turns = make_job(walltime=10, trainings_per_node=12)
    jobs = {"train.a": JOB, "train.b": in_turns, "smoke_test": make_job(walltime=5)}
    jobs["benchmark.c"] = make_job(node="jrc0101", walltime=7)  # its node is checked instead
    kinds = "sbatch --test-only --nodes=1 --gres=gpu:4 --time="
    del machine["sbatch --test-only"]
    machine[f"{kinds}30 --partition=gpu --account=training"] = (
        "sbatch: Job 7 to start at 2099-01-01T10:00:00 using 128 processors"
    )
    machine[f"{kinds}5"] = "!allocation failure: Invalid qos specification"
    assert [*check_queue(jobs, "training")] == [
        passed("train.a and 1 more could start 2099-01-01 10:00:00"),
        failure("JW506", "smoke_test: Slurm would refuse it: Invalid qos specification"),
    ]


def test_excluded_node_that_does_not_exist_is_named_by_its_key(machine) -> None:
    del machine["sbatch --test-only"]
    excluding = (
        "sbatch --test-only --nodes=1 --gres=gpu:4 --time=30 --partition=gpu --exclude=n[1-2]"
    )
    machine[excluding] = "!allocation failure: Invalid node name specified"
    jobs = {"train.a": make_job(options=("--exclude=n[1-2]",))}
    message = "train.a: exclude: Slurm would refuse it: Invalid node name specified"
    assert [*check_queue(jobs, None)] == [failure("JW506", message)]


@pytest.mark.parametrize(
    "message",
    [
        "Requested node configuration is not available",
        "Requested partition configuration not available now",
        "Requested nodes are busy",
        "Job can not start due to maintenance reservation.",
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
    ],
)
def test_job_that_could_start_later_is_a_warning(machine, message) -> None:
    machine["sbatch --test-only"] = f"!sbatch: error: allocation failure: {message}"
    (finding,) = check_queue({"train.a": JOB}, "training")
    assert finding == warning(f"train.a: Slurm did not report a start: {message}")


def test_slurm_that_is_unreachable_is_asked_once(machine) -> None:
    machine["sbatch --test-only"] = "!Unable to contact slurm controller"
    jobs = {"train.a": JOB, "smoke_test": make_job(walltime=5)}
    assert len([*check_queue(jobs, "training")]) == 1


# ------------------------------------------------------------------------------------------ nodes


def test_nodes_that_start_jobs_pass(machine) -> None:
    machine["sinfo --all --noheader --Node"] = "n1 idle\nn3 mixed"
    assert [*check_nodes(["n1", "n3", "n1"])] == [passed("all 2 to check can start a job")]


def test_nodes_that_start_no_job_fail(machine) -> None:
    states = "n1 idle\nn2 drained\nn3 mixed\nn5 down\nn6 failing\nn7 idle*"
    machine["sinfo --all --noheader --Node"] = states
    (finding,) = check_nodes([f"n{number}" for number in range(1, 8)])
    unusable = "n2 (drained), n4 (unknown), n5 (down), n6 (failing), n7 (idle*)"
    message = f"node_check.nodes: no job can start on {unusable}; remove these"
    assert finding == failure("JW507", message)


# ---------------------------------------------------------------------------------------- outages


@pytest.mark.parametrize("exit_code", [EXIT_TIMEOUT, EXIT_NOT_FOUND])
@pytest.mark.parametrize("command", ["scontrol", "sinfo", "sbatch", "sacctmgr"])
def test_command_that_does_not_answer_fails_no_check(machine, command, exit_code) -> None:
    """The other answers are those of a healthy Slurm."""
    machine.exit_code = exit_code
    for key in [key for key in machine if key.startswith(command)]:
        machine[key] = f"!{command} did not answer"
    for findings in (
        check_partition("gpu", {"train.a": JOB}, None),
        check_queue({"train.a": JOB}, "training"),
        check_nodes(["n1"]) if command == "sinfo" else [],
        [account()],
    ):
        assert FAIL not in [finding.status for finding in findings]
