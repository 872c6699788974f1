"""GPUs that are there and GPUs that may come."""

from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.placement import GPUNode, Supply
from cluster.supply import autoscaler_most, supply

CONFIG = """
max_workers: 5
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4}, max_workers: 0}
  big: {resources: {CPU: 32, GPU: 8, "accelerator_type:H100": 1}, max_workers: 2}
  small: {resources: {CPU: 8, GPU: 1}, max_workers: 9}
"""
BIG, SMALL = GPUNode(gpus=8, accelerator_type="H100"), GPUNode(gpus=1)


def test_the_setting() -> None:
    assert autoscaler_most("2x8:H100, 1x1") == [BIG, BIG, SMALL]


@pytest.mark.parametrize("setting", ["4", "x1", "4x", "1x1,", "1x1:", "-1x1", "1x1 H100"])
def test_a_setting_that_makes_no_sense(setting: str) -> None:
    with pytest.raises(ConfigError, match="--autoscaler-gpus: want MACHINESxGPUS"):
        autoscaler_most(setting)


def test_what_ray_up_left_on_the_head(tmp_path: Path) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    assert autoscaler_most(None, bootstrap=file) == []
    file.write_text(CONFIG)
    assert autoscaler_most(None, bootstrap=file) == [BIG] * 2 + [SMALL] * 3
    assert autoscaler_most("1x1", bootstrap=file) == [SMALL]


@pytest.mark.parametrize("text", ["[1", "7", "max_workers: many"])
def test_a_file_that_ray_up_did_not_write(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"ray_bootstrap_config.yaml: not a cluster conf.*remove"):
        autoscaler_most(None, bootstrap=file)


def test_machines_that_are_there_no_longer_come() -> None:
    nodes = [
        {"CPU": 4.0},
        {"GPU": 8.0, "accelerator_type:H100": 1.0},
        {"GPU": 2.0, "accelerator_type:A100": 1.0},
    ]
    assert supply(nodes, [BIG, BIG, SMALL]) == Supply(
        nodes=(BIG, GPUNode(gpus=2, accelerator_type="A100")), addable=(BIG, SMALL)
    )
