"""The command line. Subcommands live in `cluster.commands` and are imported when they run."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.bench.options import add_bench_flags, bench_options
from cluster.bridge_settings import (
    add_bridge_flags,
    add_register_flag,
    add_runner_flags,
    add_secret_flag,
    bridge_settings,
    read_secret,
    register,
    runner_url,
)
from cluster.errors import ClusterUnreachable, ConfigError
from cluster.http_api import add_http_flags, http_settings
from cluster.settings import (
    DRAIN_TIMEOUT_S,
    EXIT_CONFIG,
    EXIT_NO_CLUSTER,
    add_cluster_flags,
    add_flag,
    add_log_flags,
    add_models_dir_flag,
    add_models_flags,
    add_ray_address_flag,
    add_state_listen_flag,
    device,
    models_dir,
    seconds,
    state_listen,
)

Handler = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    arguments = _parser().parse_args(argv)
    handler: Handler = arguments.handler
    try:
        return handler(arguments)
    except ConfigError as error:
        print(f"livepeer-ray: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except ClusterUnreachable as error:
        print(f"livepeer-ray: {error}", file=sys.stderr)
        return EXIT_NO_CLUSTER
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="livepeer-ray",
        description="Turns any number of GPU machines into one Livepeer AI worker.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    start = _command(commands, "start", _start, "deploy the models and run the bridge, supervised")
    add_models_flags(start)
    add_cluster_flags(start)
    add_http_flags(start)
    add_bridge_flags(start, may_start=True)
    add_log_flags(start)

    bridge = _command(commands, "bridge", _bridge, "run the bridge to an orchestrator")
    add_models_flags(bridge)
    add_bridge_flags(bridge)
    add_log_flags(bridge)
    bridge.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    bridge.add_argument("--last-good", type=Path, help=argparse.SUPPRESS)

    serve_config = _command(
        commands, "serve-config", _serve_config, "print the config for serve run and serve deploy"
    )
    add_models_flags(serve_config)
    add_cluster_flags(serve_config)
    add_http_flags(serve_config)

    live_runner_config = _command(
        commands,
        "live-runner-config",
        _live_runner_config,
        "print the file for an orchestrator's -liveRunnerConfig",
    )
    add_models_flags(live_runner_config)
    add_secret_flag(live_runner_config)
    add_runner_flags(live_runner_config)

    validate = _command(commands, "validate", _validate, "check an aiModels.json")
    add_models_flags(validate)

    apply = _command(
        commands, "apply", _apply, "deploy an aiModels.json to a running cluster, once"
    )
    add_models_flags(apply)
    add_cluster_flags(apply)
    add_http_flags(apply)
    add_ray_address_flag(apply)

    status = _command(commands, "status", _status, "show models, nodes and registrations")
    add_ray_address_flag(status)
    add_state_listen_flag(status)
    status.add_argument("--json", action="store_true", help="as one JSON object")
    status.add_argument("--watch", action="store_true", help="again every two seconds")

    drain = _command(
        commands, "drain", _drain, "take a machine out of the cluster when its jobs are done"
    )
    drain.add_argument("node", help="its address, host name, or the beginning of its Ray node id")
    add_ray_address_flag(drain)
    add_flag(
        drain,
        "--drain-timeout-s",
        default=f"{DRAIN_TIMEOUT_S:g}",
        help="seconds for its jobs, after which the status is 1",
    )

    bench = _command(commands, "bench", _bench, "measure a model, without an orchestrator")
    add_bench_flags(bench)

    models = commands.add_parser("models", help="fetch models").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    download = _command(models, "download", _download, "fetch the files of every model")
    add_models_flags(download)
    add_models_dir_flag(download)
    add_ray_address_flag(download)
    download.add_argument("--all-nodes", action="store_true", help="on every node of the cluster")

    orchestrator = _command(
        commands, "orchestrator", _orchestrator, "run a loopback orchestrator, for development"
    )
    add_flag(orchestrator, "--listen", default="127.0.0.1:8935", help="HOST:PORT to listen on")
    add_flag(orchestrator, "--orch-secret", help="secret that workers must have, or its file")

    tiny_models = _command(
        commands, "tiny-models", _tiny_models, "write tiny random-weight models, for development"
    )
    tiny_models.add_argument("directory", type=Path, help="models directory to write to")
    tiny_models.add_argument(
        "--pipeline", action="append", default=[], help="only this pipeline; may be repeated"
    )

    demo = _command(commands, "demo", _demo, "show the whole path on this machine")
    demo.add_argument(
        "--all",
        action="store_true",
        dest="every_pipeline",
        help="a request to every pipeline, instead of three prompts to text-to-image",
    )
    add_register_flag(demo)
    demo.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="directory for what it makes"
    )
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    handler: Handler,
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(handler=handler)
    return parser


def _start(arguments: argparse.Namespace) -> int:
    from cluster.commands import start

    http_settings(arguments)  # before anything starts
    return start.run(
        bridge_settings(arguments),
        models_dir=models_dir(arguments.ai_models_dir),
        device=device(arguments.device),
        autoscaler_gpus=arguments.autoscaler_gpus,
        http=arguments.http,
        http_tokens=arguments.http_tokens,
        log_json=arguments.log_json,
    )


def _bridge(arguments: argparse.Namespace) -> int:
    from cluster import logs
    from cluster.bridge.journal import open_journal
    from cluster.bridge.left_over import answer_at_once

    settings = bridge_settings(arguments)
    logs.configure(as_json=arguments.log_json)
    addresses = [orchestrator.address for orchestrator in settings.orchestrators]
    journal = open_journal(settings.state_dir, addresses=addresses)
    answer_at_once(journal, secret=settings.orch_secret)
    # Imports Ray, which takes seconds.
    from cluster.commands import bridge

    return bridge.run(
        settings,
        journal=journal,
        log_json=arguments.log_json,
        supervised=arguments.supervised,
        last_good=arguments.last_good,
    )


def _serve_config(arguments: argparse.Namespace) -> int:
    from cluster.commands import serve_config

    return serve_config.run(
        arguments.ai_models,
        models_dir=models_dir(arguments.ai_models_dir),
        device=device(arguments.device),
        autoscaler_gpus=arguments.autoscaler_gpus,
        http=http_settings(arguments),
    )


def _live_runner_config(arguments: argparse.Namespace) -> int:
    from cluster.commands import live_runner_config

    return live_runner_config.run(
        arguments.ai_models,
        url=runner_url(arguments.runner_url, arguments.runner_listen),
        secret=read_secret(arguments.orch_secret),
    )


def _validate(arguments: argparse.Namespace) -> int:
    from cluster.commands import validate

    return validate.run(arguments.ai_models)


def _apply(arguments: argparse.Namespace) -> int:
    from cluster.commands import apply

    return apply.run(
        arguments.ai_models,
        ray_address=arguments.ray_address,
        models_dir=models_dir(arguments.ai_models_dir),
        device=device(arguments.device),
        autoscaler_gpus=arguments.autoscaler_gpus,
        http=http_settings(arguments),
    )


def _status(arguments: argparse.Namespace) -> int:
    from cluster.commands import status

    return status.run(
        ray_address=arguments.ray_address,
        bridge=state_listen(arguments.state_listen),
        as_json=arguments.json,
        watch=arguments.watch,
    )


def _drain(arguments: argparse.Namespace) -> int:
    from cluster.commands import drain

    return drain.run(
        arguments.node,
        ray_address=arguments.ray_address,
        timeout_s=seconds("--drain-timeout-s", arguments.drain_timeout_s, minimum_s=0),
    )


def _bench(arguments: argparse.Namespace) -> int:
    options = bench_options(arguments)
    from cluster.commands import bench

    return bench.run(
        options,
        ray_address=arguments.ray_address,
        models_dir=models_dir(arguments.ai_models_dir),
        device=device(arguments.device),
    )


def _download(arguments: argparse.Namespace) -> int:
    from cluster.commands import models

    return models.download(
        arguments.ai_models,
        models_dir=models_dir(arguments.ai_models_dir),
        ray_address=arguments.ray_address if arguments.all_nodes else None,
    )


def _orchestrator(arguments: argparse.Namespace) -> int:
    from cluster.commands import orchestrator

    return orchestrator.run(
        listen=arguments.listen,
        secret=read_secret(arguments.orch_secret).get_secret_value(),
    )


def _tiny_models(arguments: argparse.Namespace) -> int:
    from cluster.commands import tiny_models

    return tiny_models.run(arguments.directory, pipelines=arguments.pipeline)


def _demo(arguments: argparse.Namespace) -> int:
    from cluster.commands import demo

    return demo.run(
        arguments.output,
        every_pipeline=arguments.every_pipeline,
        register=register(arguments.register),
    )


if __name__ == "__main__":
    sys.exit(main())
