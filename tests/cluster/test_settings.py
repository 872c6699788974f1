"""Flags and environment: what is read, what is refused, and that the secret stays secret."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.bridge.address import Address
from cluster.bridge_settings import (
    BridgeSettings,
    Orchestrator,
    Register,
    add_bridge_flags,
    bridge_settings,
    read_secret,
)
from cluster.cli import main
from cluster.errors import ConfigError
from cluster.settings import (
    Device,
    add_log_flags,
    add_models_flags,
    device,
)

SECRET = "hunter2-and-more"
TWO_PINS = f"{'ab' * 32},{'ab' * 32}"
ENOUGH = ["--orch-addr", "orchestrator.example:8935", "--orch-secret", SECRET]


def parse(*flags: str) -> BridgeSettings:
    parser = argparse.ArgumentParser()
    add_models_flags(parser)
    add_bridge_flags(parser)
    return bridge_settings(parser.parse_args(flags))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("orchestrator.example", Address("orchestrator.example", 8935)),
        ("orchestrator.example:1234", Address("orchestrator.example", 1234)),
        ("https://10.0.0.1:8935", Address("10.0.0.1", 8935)),
        ("[::1]:8935", Address("::1", 8935)),
        ("http://127.0.0.1:80/", Address("127.0.0.1", 80, tls=False)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected
    assert Address.parse(expected.url) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ":8935", "host:0", "host:99999", "host:port", "ftp://host:1", "host:1/path"),
        *("[::1", "two words", "host..example:1", "x" * 64 + ".example", "host\0"),
    ],
)
def test_bad_addresses_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="want HOST:PORT"):
        Address.parse(text)


def test_defaults() -> None:
    settings = parse(*ENOUGH)
    assert settings.deadlines.of("llm") == 540.0
    assert settings.advertise_version == "0.9.1"
    assert settings.orchestrators[0].fingerprint is None
    assert settings.ray_address == "auto"
    assert settings.state_listen == ("127.0.0.1", 4935)
    assert parse(*ENOUGH, "--state-listen", "none").state_listen is None
    assert parse(*ENOUGH, "--state-listen", "[::1]:80").state_listen == ("::1", 80)


def test_each_flag_has_a_variable_and_the_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEPEER_RAY_ORCH_ADDR", "from-environment:1")
    monkeypatch.setenv("LIVEPEER_RAY_ORCH_SECRET", SECRET)
    monkeypatch.setenv("LIVEPEER_RAY_DEADLINE_S", "12.5")
    settings = parse()
    assert settings.orchestrators == (Orchestrator(address=Address("from-environment", 1)),)
    assert settings.deadlines.of("llm") == 12.5
    deadlines = parse("--deadline-s", "3,llm=5").deadlines
    assert (deadlines.of("upscale"), deadlines.of("llm")) == (3.0, 5.0)


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse(
        *ENOUGH,
        "--orch-fingerprint",
        "AB:" * 31 + "AB",
        "--grace-s",
        "7",
        "--state-listen",
        "[::1]:80",
        "--deadline-s",
        "9,llm=5",
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert parse() == settings


@pytest.mark.parametrize(
    ("said", "json"), [("", False), ("0", False), ("False", False), ("off", False), ("1", True)]
)
def test_a_switch_may_be_off_in_many_words(
    monkeypatch: pytest.MonkeyPatch, said: str, json: bool
) -> None:
    monkeypatch.setenv("LIVEPEER_RAY_LOG_JSON", said)
    parser = argparse.ArgumentParser()
    add_log_flags(parser)
    assert parser.parse_args([]).log_json is json


def test_several_orchestrators(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = "AB" * 32, "CD" * 32
    secret = ["--orch-secret", SECRET]
    settings = parse(*secret, "--orch-addr", "a:1, b", "--orch-fingerprint", f"{first},{second}")
    assert settings.orchestrators == (
        Orchestrator(address=Address("a", 1), fingerprint=first.lower()),
        Orchestrator(address=Address("b", 8935), fingerprint=second.lower()),
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert parse() == settings


def test_the_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    assert read_secret(str(file)).get_secret_value() == SECRET


@pytest.mark.parametrize("content", ["", "\n", "two\nlines"])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "secret"
    file.write_text(content)
    with pytest.raises(ConfigError, match="empty or not one line"):
        read_secret(str(file))


def test_the_secret_is_in_no_repr() -> None:
    assert SECRET not in repr(parse(*ENOUGH))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--orch-secret", SECRET], "--orch-addr is missing"),
        (["--orch-addr", "host:1"], "--orch-secret is missing"),
        ([*ENOUGH, "--orch-fingerprint", "abc"], "--orch-fingerprint: want 64 hex digits"),
        (["--orch-secret", SECRET, "--orch-addr", "a:1,a:1"], "names one of them twice"),
        (["--orch-secret", SECRET, "--orch-addr", "a:1,"], "want HOST:PORT"),
        (
            [*ENOUGH, "--orch-fingerprint", TWO_PINS],
            "--orch-fingerprint: 2 for 1 orchestrators",
        ),
        (
            [*ENOUGH, "--orch-addr", "a:1,http://b:1", "--orch-fingerprint", TWO_PINS],
            "--orch-fingerprint: http://b:1 is plaintext and has no certificate",
        ),
        ([*ENOUGH, "--advertise-version", "new"], "--advertise-version: want a version"),
        ([*ENOUGH, "--deadline-s", "soon"], "--deadline-s: want 1 to 840 seconds, got 'soon'"),
        ([*ENOUGH, "--deadline-s", "nan"], "--deadline-s: want 1 to 840 seconds"),
        ([*ENOUGH, "--deadline-s", "900"], "cost the worker its registration"),
        ([*ENOUGH, "--deadline-s", "60,llama=5"], "--deadline-s: no pipeline 'llama'"),
        ([*ENOUGH, "--grace-s", "-1"], "--grace-s: want seconds"),
        ([*ENOUGH, "--state-listen", "4935"], "--state-listen '4935' is not HOST:PORT"),
    ],
)
def test_bad_flags_are_named_with_the_remedy(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bridge", *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert SECRET not in printed


def test_devices() -> None:
    assert device("auto") is Device.AUTO
    assert Device.AUTO.gpus(2)
    assert not Device.AUTO.gpus(0)
    assert Device.GPU.gpus(0)
    assert not Device.CPU.gpus(8)
    with pytest.raises(ConfigError, match="want gpu, cpu or auto"):
        device("tpu")


@pytest.mark.parametrize("code", ["import cluster", "from cluster.cli import main; main(['-h'])"])
def test_the_command_line_is_light(code: str) -> None:
    heavy = {"torch", "ray", "grpc", "diffusers", "transformers", "aiohttp", "numpy"}
    check = f"""
import sys
try:
    {code}
except SystemExit:
    pass
print(sorted({heavy!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        ((), "http://127.0.0.1:4936"),
        (("--runner-listen", "10.0.0.5:80"), "http://10.0.0.5:80"),
        (
            ("--runner-listen", "0.0.0.0:80", "--runner-url", "https://r.example/x/"),
            "https://r.example/x",
        ),
    ],
)
def test_how_orchestrators_reach_a_live_runner(flags: tuple[str, ...], url: str) -> None:
    assert parse(*ENOUGH, *flags).runner_url == url


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--register", "pigeon"), "--register: want worker, live-runner, static-runner, both"),
        (("--runner-listen", "0.0.0.0:80"), "--runner-url is missing: orchestrators cannot reach"),
        (("--runner-url", "r.example"), "--runner-url: want http"),
        (("--runner-url", "http://[::1"), "--runner-url: want http"),
        (("--runner-url", "http://r.example:99999"), "--runner-url: want http"),
        (("--runner-url", "http://r.example/#x"), "--runner-url: want http"),
    ],
)
def test_a_live_runner_that_nobody_could_reach_is_refused(
    flags: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(*ENOUGH, *flags)


def test_the_ways_to_register() -> None:
    ways = {way: (way.as_worker, way.as_live_runner, way.over_http) for way in Register}
    assert ways == {
        Register.WORKER: (True, False, False),
        Register.LIVE_RUNNER: (False, True, True),
        Register.STATIC_RUNNER: (False, False, True),
        Register.BOTH: (True, True, True),
    }
