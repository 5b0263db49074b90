"""What `make bench-vllm` counts: whole answers of exactly the tokens that were asked for, and the loss that CPU time explains."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import replace
from threading import Thread

import pytest

from benchmarks.balanced import Round
from benchmarks.streams import Load, Way, undisturbed
from benchmarks.vllm import LOADS, Result, in_order, kept, line, machine_cpu, on_the_cores_of, table

LOAD = Load("tiny", 3, 16)


def answering(pieces: list[bytes]) -> socket.socket:
    """One end of a connection whose other end reads a request and answers so."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs:
            theirs.recv(65536)
            for piece in pieces:
                theirs.sendall(piece)
            theirs.recv(1)  # until it is closed

    Thread(target=answer, daemon=True).start()
    return ours


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = [chunk(b'data: {"usage":{"completion_tokens":16}}\n\n'), chunk(b"data: [DONE]\n\n"), b"0\r\n", b"\r\n"]


def test_a_block_is_of_whole_answers() -> None:
    """However their bytes are cut."""
    way = Way(lambda: answering([HEAD, *(bytes([byte]) for byte in b"".join(END))]), "key", time.process_time)
    assert 0 < way.block(LOAD) < 10
    assert len(way.spent) == len(way.undisturbed) == 1


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([HEAD, chunk(b'data: {"usage":{"completion_tokens":15}}\n\n'), b"0\r\n\r\n"], ValueError),
        ([HEAD.replace(b"200", b"503"), *END], ValueError),
    ],
)
def test_anything_else_is_no_measurement(pieces: list[bytes], error: type[Exception]) -> None:
    """Fewer tokens, and an error, end it."""
    with pytest.raises(error):
        Way(lambda: answering(pieces), "key", float).block(LOAD)


def result(lost: float, load: Load = LOAD) -> Result:
    """Of ten rounds in which the gateway was that much slower, as sure as can be."""
    seconds = 0.48  # of 48 tokens
    rounds = [Round("ab"[at % 2], (seconds, seconds), (seconds / (1 - lost),) * 2) for at in range(10)]
    return Result(load=load, rounds=rounds, undisturbed=rounds, cpu=0.0001, at_rest=0.001, others=0.25)


def test_what_a_line_says() -> None:
    """The rates, the ratio with its interval and what is known of the goal; a hundredth of a core for each token is lost at most so."""
    assert result(0.0).by_cpu == pytest.approx(0.0099, abs=1e-4)
    said = line(result(0.01))
    assert "| 100 | 99 | 0.990 | **0.990** (0.990 … 0.990) | met | **0.990** (0.990 … 0.990) | met |" in said
    assert "| **1.000** (1.000 … 1.000) | 100 µs | 0.990 | 0.1% | 25% | 10 |" in said
    assert "| **not met** |" in line(result(0.03))
    assert table([result(0.03)]).endswith(line(result(0.03)) + "\n")


def test_a_load_without_a_goal_fails_none() -> None:
    """The tiny model has none; the real one has, alone and eight at once."""
    unread = result(0.5, replace(LOAD, goal=None))
    assert not unread.failed
    assert line(unread).count("| none |") == 2
    assert result(0.03).failed
    assert not result(0.01).failed
    assert replace(result(0.01), undisturbed=result(0.03).rounds).failed
    goals = {(load.model, load.connections): load.goal for load in LOADS}
    assert goals == {
        ("SmolLM2-135M", 1): 0.02,
        ("SmolLM2-135M", 8): 0.02,
        ("tiny", 1): None,
        ("tiny", 8): None,
    }


def test_everything_measured_is_kept() -> None:
    """Every block stands in the JSON, beside what was made of them."""
    told = json.loads(json.dumps(kept(result(0.01))))
    assert len(told["rounds"]) == 10
    assert told["rounds"][1]["first"] == "b"
    assert told["found"]["loss"]["median"] == pytest.approx(0.01)
    assert told["found"]["loss"]["verdict"] == told["found"]["steps"]["verdict"] == "met"


def test_an_undisturbed_block_has_the_usual_step() -> None:
    """A stall in one of fifteen steps, and events of one step in two reads, change nothing; steps that all are slower do."""

    def arrivals(step: float, stall: float = 0.3) -> list[float]:
        times = [0.2 + number * step + (number > 4) * stall for number in range(16)]
        return sorted([*times, times[0] + 0.001, times[-1] + 0.002])

    for streams in (1, 8):
        assert undisturbed([arrivals(0.06)] * streams, 16) == pytest.approx(0.2 + 15 * 0.06, rel=0.01)
        assert undisturbed([arrivals(0.063)] * streams, 16) == pytest.approx(0.2 + 15 * 0.063, rel=0.01)
    assert undisturbed([[0.5]], 16) == 0.5


def test_another_number_of_the_same_blocks() -> None:
    """Each way's numbers are put where its blocks were, whichever began."""
    rounds = [Round("a", (1, 4), (2, 3)), Round("b", (6, 7), (5, 8))]
    assert in_order(rounds, [10, 40, 60, 70], [20, 30, 50, 80]) == [
        Round("a", (10, 40), (20, 30)),
        Round("b", (60, 70), (50, 80)),
    ]


def test_the_machine_s_time_only_grows() -> None:
    """What all processes used so far is never less than it was."""
    before = machine_cpu()
    assert 0 <= before <= machine_cpu()


def test_the_client_is_where_the_gateway_is() -> None:
    """While it measures, and no longer: what it starts later has every core again."""
    given = os.sched_getaffinity(0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        os.sched_setaffinity(process.pid, {min(given)})
        with on_the_cores_of(process.pid):
            assert os.sched_getaffinity(0) == {min(given)}
        assert os.sched_getaffinity(0) == given
