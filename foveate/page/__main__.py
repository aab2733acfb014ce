"""`python -m foveate.page`: serve the page on this machine."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve a page to ask a model about pictures under several methods. It needs "
        "pip install 'foveate[page]'.",
    )
    add = parser.add_argument
    add("--model", default="mini", help="'mini', 'small', a folder, or a hub model's name")
    add("--device", default="cpu", help="cpu, cuda, cuda:1")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    add("--host", default="127.0.0.1", help="0.0.0.0 serves other machines (default: this one)")
    add("--port", type=int, default=7860)
    add("--max-upload", type=int, default=64, metavar="MB", help="the largest file (64)")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m foveate.page") -> int:
    """Serve until interrupted; returns the exit status."""
    args = _parser(prog).parse_args(arguments)
    if find_spec("gradio") is None:
        print("the page needs Gradio: pip install 'foveate[page]'", file=sys.stderr)
        return 1
    if args.max_upload < 1:
        print(f"--max-upload is {args.max_upload}: expected 1 or more", file=sys.stderr)
        return 1
    try:
        _require_free(args.host, args.port)
    except OSError as error:
        print(f"--host {args.host} --port {args.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="foveate-page-") as folder:
        # Gradio reads these when it is imported: uploads go into our folder, nothing is reported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        return _serve(args, Path(folder))


def _require_free(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise OSError(f"port {port}: expected 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _serve(args: argparse.Namespace, folder: Path) -> int:
    import torch

    import vlm
    from foveate.page.layout import Page, launch_options
    from foveate.page.session import Session
    from vlm.families import adapter_of

    try:
        dtype = getattr(torch, args.dtype)
        model, processor = vlm.load(args.model, dtype=dtype, device=args.device)
        adapter_of(model)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    page = Page(Session(model, processor, args.model), folder)
    page.blocks.queue(max_size=32)
    page.blocks.launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size=f"{args.max_upload}mb",
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        **launch_options(),
    )
    print(f"http://{args.host}:{args.port}", flush=True)
    page.blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
