"""The supervisor with real processes: restarts, crash loops, signals, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import CannotCreate
from launch.torchrun import ROOT, Job, child_environment, supervise, torchrun_command
from tests.launch.conftest import alive, processes_with, read_pids, until

MakeJob = Callable[..., Job]


def run(job: Job) -> tuple[int, str]:
    screen = io.BytesIO()
    return supervise(job, screen=screen).code, screen.getvalue().decode()


def attempts(job: Job) -> int:
    return len(list(job.run_dir.glob("exit/attempt-*-end.json")))


def test_a_clean_run_leaves_its_record_and_logs(job: MakeJob) -> None:
    played = job({"codes": [0, 0], "step": 7})
    code, screen = run(played)
    assert code == 0
    assert json.loads((played.run_dir / "exit.json").read_text())["step"] == 7
    assert "rank 0 of attempt 0" in screen
    assert "rank 0 of attempt 0" in (played.logs / "rank-0.log").read_text()
    assert "noise" not in screen
    assert "noise of torchrun" in (played.logs / "torchrun.log").read_text()
    assert json.loads((played.logs / "launches.jsonl").read_text())["python"]


@pytest.mark.parametrize("codes", [[75, 75], [76, 76], [76, None], [None, None], [0, None]])
def test_what_can_be_started_again_is(job: MakeJob, codes: list[int | None]) -> None:
    played = job({"codes": codes, "step": 3}, {"codes": [0, 0], "step": 9})
    assert run(played)[0] == 0
    assert attempts(played) == 2
    assert (played.logs / "rank-0.log").read_text().count("===") == 2, "the log of the first attempt is kept"


@pytest.mark.parametrize("code", [65, 66, 70, 71, 73, 74, 77, 78])
def test_what_needs_a_person_is_not_started_again(job: MakeJob, code: int) -> None:
    played = job({"codes": [code, 76]}, {"codes": [0, 0]})
    assert run(played)[0] == code
    assert attempts(played) == 1


def test_a_crash_loop_ends_with_70_and_names_the_step(job: MakeJob) -> None:
    played = job({"codes": [76, None], "step": 5}, max_restarts=2)
    assert run(played)[0] == 70
    assert attempts(played) == 3
    assert "step 5" in json.loads((played.run_dir / "exit.json").read_text())["reason"]


def test_progress_pays_for_restarts(job: MakeJob) -> None:
    dying = [{"codes": [None, None], "checkpoint": 10 * (n + 1)} for n in range(4)]
    played = job(*dying, {"codes": [0, 0], "step": 50}, max_restarts=1)
    assert run(played)[0] == 0
    assert attempts(played) == 5


def test_no_restarts_wanted_keeps_the_code(job: MakeJob) -> None:
    assert run(job({"codes": [76, 76]}, max_restarts=0))[0] == 76


def test_a_later_launch_counts_afresh(job: MakeJob) -> None:
    assert run(job({"codes": [76, 76], "step": 5}, max_restarts=1))[0] == 70
    played = job(*[{"codes": [76, 76], "step": 5}] * 3, {"codes": [0, 0], "step": 6}, max_restarts=1)
    assert run(played)[0] == 0
    assert attempts(played) == 4


def test_the_second_launcher_on_a_run_dir_is_refused_with_the_holder(job: MakeJob) -> None:
    played = job({"wait": True})
    first = in_process(played)
    pids = read_pids(played.run_dir)
    with pytest.raises(CannotCreate, match=r"another launcher \(process \d+\)"):
        supervise(played)
    first.send_signal(signal.SIGTERM)
    first.wait(20)
    assert not any(alive(pid) for pid in pids)


def hears_all_signals() -> None:
    """A test suite in the background of a shell ignores SIGINT, one under nohup SIGHUP, and children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def in_process(job: Job) -> subprocess.Popen[bytes]:
    """A launcher of its own, so that it can be signalled and killed."""
    code = (
        "import sys, json; from pathlib import Path; from launch.torchrun import Job, supervise; "
        "run_dir, world, command, restarts, environment = json.loads(sys.argv[1]); "
        "sys.exit(supervise(Job(Path(run_dir), world, command, restarts, environment)).code)"
    )
    arguments = json.dumps([str(job.run_dir), job.world, job.command, job.max_restarts, dict(job.environment)])
    return subprocess.Popen(
        [sys.executable, "-c", code, arguments],
        env={**os.environ, **child_environment(2)},
        stdout=subprocess.DEVNULL,
        preexec_fn=hears_all_signals,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_asked_to_stop_it_waits_for_the_checkpoint_and_is_not_restarted(job: MakeJob, number: signal.Signals) -> None:
    played = job({"wait": True})
    launcher = in_process(played)
    pids = read_pids(played.run_dir)
    launcher.send_signal(number)
    assert launcher.wait(20) == 75
    assert attempts(played) == 1
    assert not played.stop_file.exists()
    assert not any(alive(pid) for pid in pids)


def test_a_killed_launcher_leaves_no_process(job: MakeJob, tmp_path: Path) -> None:
    launcher = in_process(job({"wait": True}))
    read_pids(tmp_path / "run")
    # launcher, guard, played torchrun, two ranks
    until(lambda: len(processes_with(str(tmp_path))) == 5)
    launcher.kill()
    launcher.wait(10)
    until(lambda: not processes_with(str(tmp_path)), 10)


def test_a_third_signal_kills_ranks_that_do_not_listen(job: MakeJob, tmp_path: Path) -> None:
    played = job({"codes": [0, 0]})
    deaf = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); "
        f"open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(600)"
    )
    launcher = in_process(Job(played.run_dir, 2, [sys.executable, "-c", deaf], 3, played.environment))
    until((tmp_path / "up").exists)
    assert launcher.stderr is not None
    launcher.send_signal(signal.SIGTERM)
    assert b"send it again" in launcher.stderr.readline()
    launcher.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(0.5)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(10) == 76
    assert not processes_with(str(tmp_path / "up"))


TRAIN = """
import os, sys, time
from pathlib import Path
rank = os.environ["RANK"]
print("hello from rank", rank, sys.argv[1:], flush=True)
print("error stream of rank", rank, file=sys.stderr, flush=True)
Path(sys.argv[1], "pid-" + rank).write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))
from conf.exits import ExitRecord, write_rank_exit
write_rank_exit(Path(sys.argv[1]), int(rank), ExitRecord(0, "done", 1, "", int(os.environ["CORRAL_ATTEMPT"])))
"""


@pytest.fixture
def torchrun_job(tmp_path: Path) -> Callable[[str], Job]:
    """A job under the real torchrun, whose ``train`` is the few lines above."""
    package = tmp_path / "packages" / "train"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(TRAIN)

    def make(seconds: str) -> Job:
        search = f"{package.parent}{os.pathsep}{ROOT}"
        arguments = [str(tmp_path / "run"), seconds, "a=[1, 2]", "b='x y'", "$c", ""]
        environment = {**child_environment(2), "PYTHONPATH": search}
        return Job(tmp_path / "run", 2, torchrun_command(2, arguments), 3, environment)

    return make


@pytest.mark.slow
def test_real_torchrun_passes_arguments_and_sorts_output(torchrun_job: Callable[[str], Job]) -> None:
    played = torchrun_job("0")
    code, screen = run(played)
    assert code == 0
    assert "hello from rank 0" in screen
    assert "error stream of rank 0" in screen
    assert "rank 1" not in screen
    other = (played.logs / "rank-1.log").read_text()
    assert "['" + str(played.run_dir) in other
    assert "'a=[1, 2]', \"b='x y'\", '$c', ''" in other
    assert "error stream of rank 1" in other


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "guard", "torchrun"])
def test_under_real_torchrun_nothing_survives(torchrun_job: Callable[[str], Job], tmp_path: Path, victim: str) -> None:
    launcher = in_process(torchrun_job("600"))
    read_pids(tmp_path / "run")
    target = {"launcher": launcher.pid}
    for pid in processes_with(str(tmp_path)):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        target |= {"guard": pid} if b"launch.guard" in line else {}
        target |= {"torchrun": pid} if b"torch.distributed.run" in line and b"launch.guard" not in line else {}
    if victim != "launcher":  # so that it does not start again
        launcher.send_signal(signal.SIGTERM)
    os.kill(target[victim], signal.SIGKILL)
    assert launcher.wait(20) == (-signal.SIGKILL if victim == "launcher" else 76)
    until(lambda: not processes_with(str(tmp_path)), 10)
