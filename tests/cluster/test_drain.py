"""Which node an operator means."""

import re

import pytest

from cluster.drain import Gcs, Node, choose
from cluster.errors import ClusterUnreachable, ConfigError

HEAD = Node(id="aa" * 28, address="10.0.0.1", hostname="head", head=True)
ONE = Node(id="b1" * 28, address="10.0.0.2", hostname="worker-1")
TWIN = Node(id="b2" * 28, address="10.0.0.3", hostname="worker")
OTHER = Node(id="cc" * 28, address="10.0.0.3", hostname="worker")
NODES = (HEAD, ONE, TWIN, OTHER)


@pytest.mark.parametrize("text", ["10.0.0.2", "worker-1", "b1", "B1B1", "b1" * 28])
def test_a_node_by_address_name_or_id(text: str) -> None:
    assert choose(NODES, text) is ONE


@pytest.mark.parametrize("text", ["10.0.0.9", "work", "b1b2", ""])
def test_no_node_is_an_error_that_lists_them(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no node\. There are:") as error:
        choose(NODES, text)
    for node in NODES:
        assert f"{node.hostname} ({node.address}, {node.id[:8]}" in str(error.value)


@pytest.mark.parametrize("text", ["worker", "10.0.0.3"])
def test_several_nodes_are_told_apart_by_their_ids(text: str) -> None:
    with pytest.raises(ConfigError, match="names several nodes; say the id of one") as error:
        choose(NODES, text)
    assert TWIN.id[:8] in str(error.value)
    assert OTHER.id[:8] in str(error.value)
    assert ONE.id[:8] not in str(error.value)


def test_the_head_is_not_drained() -> None:
    with pytest.raises(ConfigError, match=r"head \(10.0.0.1, aaaaaaaa, the head\): without it"):
        choose(NODES, "head")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no..host:1"])
def test_no_cluster(address: str) -> None:
    with pytest.raises(ClusterUnreachable, match=rf"no Ray cluster at '{re.escape(address)}'"):
        Gcs(address)


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:1", "127.0.0.1:1"])
def test_rays_own_variable_may_name_no_cluster(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterUnreachable, match=r"no Ray cluster at "):
        Gcs("auto")


@pytest.mark.parametrize("address", ["", "local", "host", "host:port", "host:99999"])
def test_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--ray-address: want auto or HOST:PORT, got "):
        Gcs(address)
