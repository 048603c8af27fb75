"""Who is judged unfit by what the nodes say. tests/slurm plants real faults."""

from __future__ import annotations

from typing import Any

import pytest

from launch.preflight.verdict import Fault, Node, clocks, different, look_at, most, not_met, silent, trials

GOOD = {"run_dir": 100, "code": "a", "config": {"optim": "1"}, "corpus": "c", "versions": {"torch": "2"}, "gpus": ["H"]}


def cluster(**other: dict[str, Any]) -> dict[str, Node]:
    """Three nodes, ``n1`` the head; ``n2={"code": "b"}`` has another fact."""
    return {name: Node(facts={**GOOD, **other.get(name, {})}) for name in ("n1", "n2", "n3")}


def test_nodes_that_agree_have_no_fault() -> None:
    assert look_at(cluster(), needed_bytes=100) == []


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"code": "b"}, "its code is not that of the other nodes"),
        ({"config": {"optim": "2", "new": "x"}}, "other values in optim, new"),
        ({"corpus": "d"}, "another corpus"),
        ({"corpus": ""}, "no corpus"),
        ({"versions": {"torch": "3"}}, "torch 3 (the others 2)"),
        ({"gpus": ["A"]}, "its GPUs are A and those of the others are H"),
        ({"gpus": []}, "its GPUs are none that nvidia-smi lists"),
    ],
)
@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_the_odd_one_is_named_be_it_the_head(name: str, fact: dict[str, Any], said: str) -> None:
    (found,) = look_at(cluster(**{name: fact}))
    assert found.nodes == (name,)
    assert found.code == 76
    assert said in found.reason


@pytest.mark.parametrize(
    ("values", "usual"),
    [("aab", "a"), ("baa", "a"), ("ab", "a"), ("ba", "b"), ("abcd", "a"), ("bbaa", "b"), ("abbc", "a"), ("a", "a")],
)
def test_without_a_majority_the_head_is_right(values: str, usual: str) -> None:
    assert most([*values]) == usual
    nodes = {f"n{place}": Node(facts={"code": value}) for place, value in enumerate(values)}
    odd = different(nodes, "code", lambda mine, other: f"{mine} {other}")
    assert [fault.nodes[0] for fault in odd] == [f"n{place}" for place, value in enumerate(values) if value != usual]


def test_a_fact_that_a_node_could_not_tell_is_its_own_fault_and_no_difference() -> None:
    nodes = cluster()
    del nodes["n2"].facts["config"]
    nodes["n2"].faults["config"] = "optim.lrr: unknown key"
    assert look_at(nodes) == [Fault(("n2",), "optim.lrr: unknown key")]


@pytest.mark.parametrize(
    ("having", "nodes", "code"),
    [
        (["n2"], ("n2",), 76),
        (["n1"], ("n1",), 76),
        (["n1", "n2"], ("n1", "n2"), 76),
        (["n2", "n3"], (), 69),
        (["n1", "n2", "n3"], (), 69),
    ],
)
def test_what_all_but_the_head_have_is_of_no_single_node(having: list[str], nodes: tuple[str, ...], code: int) -> None:
    asked = cluster()
    for name in having:
        asked[name].faults["head"] = "it does not resolve"
    found = look_at(asked)
    assert tuple(name for fault in found for name in fault.nodes) == nodes
    assert {fault.code for fault in found} == {code}


def test_a_run_dir_that_only_the_head_has_is_73() -> None:
    asked = cluster()
    for name in ("n2", "n3"):
        asked[name].faults["run_dir"] = "it cannot write"
    assert look_at(asked) == [Fault((), "on n2, n3: it cannot write", 73)]


def test_of_two_nodes_the_other_one_is_named() -> None:
    assert look_at({"n1": Node(), "n2": Node(faults={"head": "x"})}) == [Fault(("n2",), "x")]


@pytest.mark.parametrize(
    ("offsets", "odd"),
    [
        ([0, -6, 0], ["n1"]),
        ([-60, 0, 0], ["n0"]),
        ([0, 4.9, 0], []),
        ([0, 6], ["n1"]),
        ([6, 6.5], []),
        ([6, 6, 6], []),
        ([0, 6, 6, 6], ["n0"]),
    ],
)
def test_clocks_are_compared_with_the_middle_one(offsets: list[float], odd: list[str]) -> None:
    nodes = {f"n{place}": Node(offset=offset) for place, offset in enumerate(offsets)}
    assert [fault.nodes[0] for fault in clocks(nodes)] == odd


def test_too_little_disk() -> None:
    assert look_at(cluster(), needed_bytes=101)[0].code == 74
    assert look_at(cluster(), needed_bytes=101)[0].nodes == ()
    (found,) = look_at(cluster(n3={"run_dir": 99}), needed_bytes=100)
    assert (found.nodes, found.code) == (("n3",), 76)


@pytest.mark.parametrize(
    ("bits", "devices", "said"),
    [
        ([["a"], ["b"], ["a"]], 0, "its CPU gives other bits"),
        ([["a", "a"], ["a", "b"], ["a", "a"]], 2, "GPU 1 there gives other bits"),
    ],
)
def test_other_bits_are_named_with_their_device(bits: list[list[str]], devices: int, said: str) -> None:
    nodes = {f"n{place}": Node(bits=each, devices=devices) for place, each in enumerate(bits)}
    (found,) = trials(nodes, devices, gpus=devices > 0)
    assert found.nodes == ("n1",)
    assert said in found.reason


def test_gpus_that_torch_does_not_see() -> None:
    nodes = {"n1": Node(devices=8), "n2": Node(devices=7), "n3": Node(devices=8)}
    (found,) = trials(nodes, 8, gpus=True)
    assert found.nodes == ("n2",)
    assert trials({name: Node() for name in ("n1", "n2")}, 8, gpus=True)[0].code == 69


def test_a_first_node_that_nobody_reaches_is_bad_itself() -> None:
    lost = {"reach": "it cannot reach the first node"}
    assert not_met({"n1": Node(), "n2": Node(faults=lost), "n3": Node(faults=lost)}, {"n2", "n3"})[0].nodes == ("n1",)
    assert [each.nodes for each in not_met({"n1": Node(), "n2": Node(faults=lost), "n3": Node()}, {"n2"})] == [("n2",)]
    assert [each.nodes for each in not_met({"n1": Node(), "n2": Node(), "n3": Node()}, {"n3"})] == [("n3",)]
    assert [each.nodes for each in not_met({name: Node(faults=lost) for name in ("n1", "n2", "n3")}, set())] == [()]


def test_silence_of_all_is_of_no_single_node() -> None:
    assert silent(["n1", "n2"], ["n1", "n2"])[0].nodes == ()
    assert [each.nodes for each in silent(["n2"], ["n1", "n2"])] == [("n2",)]
