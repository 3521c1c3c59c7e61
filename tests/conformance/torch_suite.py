"""PyTorch's device-generic test files on trn, from a source tree of PyTorch as released.

    python tests/conformance/torch_suite.py SOURCE [--only test_view] [--ways trn,cuda] [-k rot90]

With `--state FOLDER` a file that takes longer than its time is continued by the next run.

A row of FILES names a file below SOURCE/test and the ways to run it; a row of REASONS says why a
test does not pass. Each file runs in a process of its own, in which a test that crashes or hangs is
recorded and left out of the next. Those that do not pass run once more on the CPU: a skipped test
counts if this twin passes, a failed one unless the twin fails too. Results are kept in
docs/torch_suite.json, from which a table of docs/conformance.md is made. Given to pytest as a
plug-in, this file writes a line for each test.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "torch_suite.json"
ONLY_FOR = "PYTORCH_TESTING_DEVICE_ONLY_FOR"
WAYS = {
    "trn": {ONLY_FOR: "privateuse1", "TRN_EMU_MATMUL": "fp32"},
    "cuda": {ONLY_FOR: "cuda", "TRN_EMU_MATMUL": "fp32", "TRN_EMU_AS": "cuda"},
    "cpu": {ONLY_FOR: "cpu", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
}
WRITTEN, DONE, CHOSEN = "TORCH_SUITE_WRITTEN", "TORCH_SUITE_DONE", "TORCH_SUITE_CHOSEN"
EVERY = "TORCH_SUITE_EVERY"
LARGEST_BYTES = 2 << 30  # tests that ask for more are skipped
NOT_COUNTED = (
    r"Only runs on|Insufficient .* memory|test is slow|Excluded from CUDA|CUDA.* available|"
    r"Test specific for CPU|CUDA implementation is not yet"
)
PYTEST = (  # neither settings nor plug-ins of the source tree
    f"-q --tb=native --disable-warnings -p torch_suite -p no:cacheprovider -p no:logging "
    f"--noconftest "
    f"-c {os.devnull} --rootdir . --timeout=300 --timeout-method=thread"
)


@dataclass(frozen=True)
class File:
    path: str  # below test/, without .py
    ways: tuple[str, ...] = ("trn",)
    every: int = 1  # one test in so many, chosen by name
    without: str = ""  # a test that takes gigabytes and minutes, which it does not declare


BOTH = ("trn", "cuda")

FILES = (
    File("test_view_ops", BOTH),
    File("test_indexing", BOTH),
    File("test_shape_ops", BOTH),
    File("test_type_promotion", BOTH),
    File("test_torch", BOTH),
    File("test_reductions", BOTH),
    File("test_sort_and_select", BOTH),
    File("test_sparse", BOTH),
    File("test_nn", BOTH),
    File("test_native_mha", BOTH),
    File("test_modules", BOTH),
    File("test_scatter_gather_ops", without="test_gather_large"),
    File("test_tensor_creation_ops"),
    File("test_segment_reductions"),
    File("test_transformers", ("cuda",)),
    File("test_sparse_csr"),
    File("test_nestedtensor"),
    File("test_masked"),
    File("test_maskedtensor", ("cuda",)),
    File("test_accelerator", BOTH),
    File("test_autocast"),
    File("test_complex"),
    File("test_dlpack"),
    File("test_autograd", BOTH),
    File("test_binary_ufuncs"),
    File("test_foreach"),
    File("test_linalg"),
    File("test_optim"),
    File("test_serialization"),
    File("test_spectral_ops"),
    File("test_unary_ufuncs"),
    File("test_utils", BOTH),
    File("nn/test_convolution"),
    File("nn/test_dropout"),
    File("nn/test_embedding", BOTH),
    File("nn/test_init"),
    File("nn/test_lazy_modules"),
    File("nn/test_load_state_dict"),
    File("nn/test_module_hooks"),
    File("nn/test_multihead_attention"),
    File("nn/test_packed_sequence"),
    File("nn/test_parametrization"),
    File("nn/test_pooling"),
    File("nn/test_pruning"),
    File("test_content_store"),
    File("test_custom_ops", ("cuda",)),
    File("test_decomp", every=20),
    File("test_expanded_weights"),
    File("test_fake_tensor", ("cuda",), every=10),
    File("test_functionalization_of_rng_ops", ("cuda",)),
    File("test_fx"),
    File("test_fx_experimental"),
    File("test_legacy_vmap"),
    File("test_matmul_cuda"),
    File("test_meta", every=50),
    File("test_namedtensor"),
    File("test_numpy_interop"),
    File("test_ops", every=80),
    File("test_ops_fwd_gradients", every=20),
    File("test_ops_gradients", every=20),
    File("test_ops_jit", every=10),
    File("test_prims"),
    File("test_proxy_tensor", ("cuda",), every=20),
    File("test_python_dispatch"),
    File("test_scaled_matmul_cuda"),
    File("test_schema_check", ("cuda",), every=10),
    File("test_stateless_rng", ("cuda",)),
    File("test_testing"),
    File("test_varlen_attention", ("cuda",)),
    File("complex_tensor/test_complex_tensor"),
    File("functorch/test_aotdispatch", ("cuda",), every=20),
    File("functorch/test_eager_transforms", ("cuda",)),
    File("functorch/test_ops", ("cuda",), every=40),
    File("functorch/test_vmap", ("cuda",), every=10),
)


@dataclass(frozen=True)
class Reason:
    tests: str  # a pattern of way/file::class::test
    text: str
    why: str = ""  # a pattern of the message


REASONS = (
    Reason(
        r"::test_(broadcast_fn_)?map2?_",
        "`map_` exists: PyTorch has it for the CPU only.",
    ),
    Reason(
        r"test_tensor_storage_type",
        "`torch.FloatStorage` for every device but CUDA and XPU.",
    ),
    Reason(
        r"test_grad_scaling_state_dict",
        "`torch.FloatTensor` for every device but CUDA and XPU.",
    ),
    Reason(
        r"test_grad_scaler_deprecated_warning",
        "`torch.<device>.amp.GradScaler` or `torch.cpu.amp.GradScaler`.",
    ),
    Reason(
        r"test_stable_sort_against_numpy",
        "Index tensors of `index_fill` on the host, which CUDA refuses: it leaves the test before.",
        why="at least two devices",
    ),
    Reason(
        r"^cuda/test_indexing::.*test_index_put_deterministic_with_optional_tensors",
        "The text of CUDA's error and, of the same call on the host, the host's, which trn gives.",
        why="must match",
    ),
    Reason("^cuda/", "The test leaves out CUDA, on which a kernel asserts.", why="CUDA.* asserts"),
    Reason(
        r"test_masked::.*test_mask_layout_sparse_coo_masked_prod_.*_float16",
        "A tolerance for the CPU by name, of products in float16 in two orders.",
        why="not close",
    ),
    Reason(
        r"test_expanded_weights::TestExpandedWeightModule",
        "On the CPU by name, with an input that a later test of the pair marks as requiring a "
        "gradient: `_multiple_inputs_trn` sorts before `_trn`, but not before `_cpu`.",
        why="'NoneType' object has no attribute 'clone'",
    ),
    Reason(
        r"test_nn::.*test_upsamplingBiMode2d_.*(_uint8_|_lanczos_)",
        "Images of uint8 and Lanczos resizing for the CPU by name: trn has what the host has.",
        why="not raised|only supported on CPU",
    ),
    Reason(
        r"test_prims::.*test_functional_rng_wrappers",
        "A table inside of `torch._prims.rng_prims` that has the CPU, CUDA, HPU and XPU.",
        why="Backend not supported",
    ),
    Reason(
        r"test_nestedtensor::.*test_dummy_mha_with_nt",
        "Attention of jagged tensors without a kernel of CUDA, which the test skips on the CPU "
        "(pytorch/pytorch issue 133644).",
        why="NestedTensorImpl doesn't support sizes",
    ),
    Reason(
        r"^cuda/functorch/.*TestHigherOrderOperatorInteraction.*(_sum_|_sum$)",
        "An operator of the test's own with kernels for the CPU's and CUDA's dispatch keys.",
        why="could not find kernel for HigherOrderOperator mysum",
    ),
    Reason(
        r"^cuda/functorch/test_vmap::.*_linalg_lstsq_",
        "A check for MAGMA, a library of builds with CUDA.",
        why="no MAGMA",
    ),
    Reason(
        r"test_spectral_ops::.*test_fft_half_and_bfloat16_errors_.*_float16",
        "FFT of float16 raises on every device but CUDA: trn has what CUDA has.",
    ),
    Reason(
        r"test_linalg::.*test_linalg_lstsq_input_checks",
        "The text of CUDA's error: trn has all drivers that the host has.",
        why="not supported on CUDA",
    ),
    Reason(
        r"test_linalg::.*test_svd_",
        "A table of drivers that has the CPU and CUDA.",
        why="KeyError: 'trn",
    ),
    Reason(
        r"test_autograd::.*test_unused_output_device",
        "`torch._C._broadcast_coalesced`, which copies between GPUs in builds with CUDA.",
    ),
    Reason(
        r"^trn/test_autograd::.*test_consumer_to_single_producer_case_3",
        "The device cuda by name.",
        why="not compiled with CUDA",
    ),
    Reason(
        r"^cuda/test_autograd::TestAutogradMultipleDispatch",
        "Kernels registered for CUDA's dispatch keys; trn's are those of PrivateUse1.",
    ),
    Reason(
        r"^cuda/test_autograd::.*test_reentrant_parent_error_on_cpu",
        "Backward passes of two devices at once: trn's run on the calling thread, one by one "
        "(docs/decisions/0004).",
    ),
    Reason(
        r"test_foreach::.*test_parity__foreach_pow_slowpath_inplace_.*complex64",
        "Where a complex `pow` overflows, PyTorch's kernel gives inf or NaN by the layout of the "
        "operand, on the CPU too.",
        why="nan at index",
    ),
    Reason(
        r"test_binary_ufuncs::.*test_type_promotion__refs_copysign",
        "A reference in Python that takes no scalar of the CPU, on any device.",
        why="on the same device",
    ),
    Reason(
        r"^cuda/test_utils::.*test_infer_device_state_recursive_multi_gpu",
        "The name of the device inside of `torch.utils.checkpoint`, which hears the real one.",
    ),
    Reason(
        r"test_modules::.*test_gradgrad_nn_Transformer",
        "Skipped for the CPU by name, whose fused attention, as that of trn, lacks a derivative.",
        why="flash_attention_for_cpu_backward is not implemented",
    ),
    Reason(
        r"test_sparse::.*test_empty_like_",
        "The text of an error, which has the backends SparseCPU, SparseCUDA and SparseMPS.",
        why="empty_strided",
    ),
    Reason(
        r"test_sparse::.*test_print_(un)?coalesced_",
        "Printed tensors, kept in files (`test/expect`) for the CPU and CUDA.",
        why="I got this output",
    ),
    Reason(
        r"test_sparse_csr::.*test_block_triangular_solve_",
        "Unit diagonals, left out for the CPU by name: MKL, which trn calls too, lacks them.",
        why="without blocksize",
    ),
    Reason(
        r"test_sparse_csr::.*shape_and_device_inference___from_list_",
        "Lists, whose device can't be inferred: the test leaves them out for CUDA by name.",
        why="device",
    ),
    Reason(
        r"^cuda/test_torch::.*(test_cuda_not_built|test_no_cuda_monkeypatch)",
        "Errors of a build without CUDA, which the alias stands in for.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*test_pickle_generator",
        "The offset of CUDA's Philox generator: trn draws the numbers of the CPU's.",
        why="does not use offset",
    ),
    Reason(
        r"^cuda/test_torch::.*test_dim_order$",
        "`Tensor.dim_order` of torch 2.13 loses its argument under any torch function mode, which "
        "the alias is.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*test_print$",
        "Tensor types of `torch._tensor_classes`, which a build with CUDA fills.",
        why="not available",
    ),
    Reason(
        r"^cuda/test_torch::.*test_addcmul_cuda_errors_with_cpu_scalars",
        "CUDA refuses a scalar of the CPU as some of the operands: trn takes it, as the CPU does.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*test_scatter_reduce_multiply_unsupported_dtypes_",
        "CUDA refuses these types: trn has what the host has.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*(test_dtypetensor_warnings|test_set_default_tensor_type_warnings)",
        "Warnings of deprecated tensor types, which PyTorch's C++ gives for CUDA's own.",
        why="no warning caught",
    ),
    Reason(
        r"^cuda/test_torch::.*test_storage_meta_errors_",
        "The text of an error in sharing a storage, which a build without CUDA words otherwise.",
        why="CUDA is not available",
    ),
    Reason(
        r"^cuda/test_torch::.*test_sync_warning",
        "`torch.cuda.set_sync_debug_mode`, which raises an error that says why.",
        why="not watched",
    ),
    Reason(
        r"^cuda/test_torch::.*test_advancedindex_mixed_devices_error",
        "The name of the device in an error's text: trn.",
        why="must match|does not match",
    ),
    Reason(
        r"^cuda/test_nn::.*test_upsamplingNearest2d_launch_fail",
        "An expected failure: more rows than CUDA can launch, which trn computes.",
        why="Unexpected success",
    ),
    Reason(
        r"^cuda/test_nn::.*test_spectral_norm$",
        "`DataParallel` over two devices, which needs CUDA's collectives and is refused.",
        why="DataParallel",
    ),
    Reason(
        r"^cuda/test_nn::.*test_(RNN|LSTM|GRU)_grad_and_gradgrad",
        "The second derivative of cuDNN's layers raises an error: trn has it, as the CPU does.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_nn::.*test_ctc_loss_cudnn",
        "The name of cuDNN's node in the graph of autograd.",
        why="CudnnCtcLossBackward",
    ),
    Reason(
        r"^cuda/test_modules::.*test_memory_format_nn_LazyConv",
        "An expected failure of CUDA's, where trn passes.",
        why="Unexpected success",
    ),
    Reason(
        r"^cuda/test_native_mha::.*test_native_multihead_self_attention_.*_float16",
        "A tolerance for CUDA's random numbers: logits are rounded to float16. The values are "
        "those of the CPU, bit for bit, on which the test runs in float32 alone.",
        why="not close",
    ),
    Reason(
        r"^cuda/test_native_mha::.*test_transform_bias_rescale_qkv_nested",
        "The padding inside of an operator, which CUDA's kernel fills with zeros up to a multiple "
        "of 8 and the CPU's, on which the test does not run, fills with the bias.",
        why="not close",
    ),
    Reason(
        r"test_autograd::.*test_current_graph_task_execution_order",
        "An error where another thread runs the backward pass: trn's runs on the calling thread "
        "(docs/decisions/0004).",
        why="not raised",
    ),
    Reason(
        r"^trn/test_autograd::.*test_thread_shutdown",
        "A thread of autograd's, which the test expects of CUDA, XPU and MPS alone.",
        why="thread_shutdown",
    ),
    Reason(
        r"test_autograd::.*test_dataparallel_saved_tensors_hooks",
        "`torch._C._scatter`, which copies between GPUs in builds with CUDA.",
        why="_scatter",
    ),
    Reason(
        r"test_optim::.*test_fused_error_on_params_on_meta_",
        "A table of devices that have fused optimizers; trn has them.",
        why="not supported for fused",
    ),
    Reason(
        r"test_nondeterministic_alert_",
        "A table of kernel names that has CUDA's and XPU's.",
    ),
)


@dataclass(frozen=True)
class Outcome:
    word: str  # passed, skipped, failed, crashed, hung
    why: str = ""


def twin(test: str) -> str:
    """The name of a test without its device, which is all that twins differ in."""
    name = re.sub(r"(PRIVATEUSE1|TRN|CUDA|CPU)(?=::)", "", test)
    return test if name == test else re.sub(r"_(trn|cuda|cpu)(?=_|$)", "", name)


# As a plug-in of pytest: one line of JSON when a test begins, and one when it ends.


def _write(line: dict[str, str]) -> None:
    with open(os.environ[WRITTEN], "a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_configure() -> None:
    from torch.testing._internal import common_device_type as devices
    from torch.testing._internal import common_methods_invocations as operators

    devices._has_sufficient_memory = lambda device, size: size <= LARGEST_BYTES
    if not hasattr(operators, "skipOps"):  # torch 2.13 moved it, and takes the last argument alone
        operators.skip, operators.xfail = devices.skip, devices.xfail
        operators.skipOps = lambda *args: devices.skipOps(args[-1])


def pytest_collection_modifyitems(items: list[Any]) -> None:
    done = set(Path(os.environ[DONE]).read_text().split("\n"))
    chosen = set(Path(os.environ[CHOSEN]).read_text().split("\n")) - {""}
    every = int(os.environ[EVERY])
    items[:] = [
        item
        for item in items
        if item.nodeid not in done
        and (
            twin(item.nodeid) in chosen
            if chosen
            else crc32(twin(item.nodeid).encode()) % every == 0
        )
    ]


def pytest_runtest_logstart(nodeid: str) -> None:
    _write({"test": nodeid, "word": "begun"})


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    why = "" if report.outcome == "passed" else _short(report)
    word = (
        "passed" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
    )
    _write({"test": report.nodeid, "word": word, "why": why})


def _short(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return " ".join(text.partition("To execute this test")[0].split())[:300]


# The driver.


def run(
    source: Path,
    file: File,
    way: str,
    until: float,
    chosen: Set[str] = frozenset(),
    k: str = "",
    state: Path | None = None,
) -> dict[str, Outcome]:
    """Outcomes of a file's tests; after a crash or a hang the rest run in a new process.

    `state` is a file of outcomes to begin with, which is written again.
    """
    found: dict[str, Outcome] = {}
    if state and state.exists():
        found = {test: Outcome(*pair) for test, pair in json.loads(state.read_text()).items()}
    with TemporaryDirectory() as folder:
        written, done, only = (Path(folder) / name for name in ("written", "done", "chosen"))
        only.write_text("\n".join(chosen))
        while time.monotonic() < until:
            written.write_text("")
            done.write_text("\n".join(found))
            names = {
                WRITTEN: str(written),
                DONE: str(done),
                CHOSEN: str(only),
                EVERY: str(file.every),
            }
            status, last = _run_rest(source, file, way, names, until, k)
            begun = _read(written, found)
            if state:
                pairs = {test: (outcome.word, outcome.why) for test, outcome in found.items()}
                state.write_text(json.dumps(pairs))
            if status == 124 or (not begun and status not in (0, 1, 5)):  # 5: no tests
                found[f"{file.path}.py"] = Outcome("failed", last)
            if status == 124 or not begun:
                break
            found[begun] = Outcome("hung" if "Timeout" in last else "crashed", last)
    return found


def _run_rest(
    source: Path, file: File, way: str, names: dict[str, str], until: float, k: str
) -> tuple[int, str]:
    left_out = f"not {file.without}" if file.without else ""
    named = ["-k", " and ".join(filter(None, (k and f"({k})", left_out)))]
    command = [sys.executable, "-m", "pytest", f"{file.path}.py", *PYTEST.split(), *named]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | names | WAYS[way]
    try:
        ran = subprocess.run(
            command, cwd=source / "test", env=env, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=until - time.monotonic(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "the time for the file is over"
    lines = [line for line in ran.stdout.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"Error\b|Timeout|Fatal|terminate|what\(\)", line)]
    return ran.returncode, (told or lines or [""])[-1][:300]


def _read(written: Path, found: dict[str, Outcome]) -> str:
    """Adds the outcomes of a process, and returns the test that had only begun."""
    begun = ""
    for line in map(json.loads, written.read_text().splitlines()):
        if line["word"] == "begun":
            begun = line["test"]
        elif line["test"] not in found or line["word"] == "failed":
            found[line["test"]] = Outcome(line["word"], line["why"])
        if line["word"] != "begun":
            begun = ""
    return begun


def record(
    source: Path, file: File, way: str, seconds: float, k: str = "", state: Path | None = None
) -> dict[str, Any]:
    """What docs/torch_suite.json keeps of a file: counts, and each test that should pass."""
    so_far = state and state / f"{way}.{file.path.replace('/', '.')}.{file.every}.json"
    found = run(source, file, way, time.monotonic() + seconds, k=k, state=so_far)
    others = {
        twin(test)
        for test, outcome in found.items()
        if outcome.word != "passed" and not re.match(NOT_COUNTED, outcome.why)
    }
    for test, outcome in found.items():
        if twin(test) in others:
            print(f"  {outcome.word} {test}: {outcome.why}", flush=True)
    twins = {}
    if others and f"{file.path}.py" not in found:
        ran = run(source, file, "cpu", time.monotonic() + seconds, others, k)
        twins = {twin(test): outcome.word for test, outcome in ran.items()}
    row: dict[str, Any] = {"passed": 0, "not counted": 0, "other": {}}
    if file.every > 1 or file.without:
        row["part"] = _part(file)
    for test, outcome in sorted(found.items()):
        beside = twins.get(twin(test), "skipped")
        if outcome.word == "passed":
            row["passed"] += 1
        elif beside == "passed" or (outcome.word != "skipped" and beside == "skipped"):
            row["other"][test.partition("::")[2] or test] = [outcome.word, outcome.why]
        else:
            row["not counted"] += 1
    return row


def _part(file: File) -> str:
    sampled = f", one test in {file.every}" if file.every > 1 else ""
    return sampled + (f", without `{file.without}`" if file.without else "")


def reason(name: str, why: str) -> str:
    """Why a test does not pass, or nothing where a reason is owed."""
    rows = (row for row in REASONS if re.search(row.tests, name) and re.search(row.why, why))
    return next((row.text for row in rows), "")


def owed(results: dict[str, Any]) -> list[str]:
    """Tests that do not pass and have no reason, a line each."""
    return [
        f"{way}/{file}::{test} {word}: {why}"
        for way, files in results["ways"].items()
        for file, row in files.items()
        for test, (word, why) in row["other"].items()
        if not reason(f"{way}/{file}::{test}", why)
    ]


def summary(results: dict[str, Any]) -> str:
    """Passed of counted for each file, then the tests that do not pass, by reason."""
    lines = ["| file | way | passed | of |", "| --- | --- | --- | --- |"]
    listed: dict[str, list[str]] = {}
    for way, files in sorted(results["ways"].items(), reverse=True):
        for file, row in files.items():
            counted = row["passed"] + len(row["other"])
            lines.append(f"| `{file}`{row.get('part', '')} | {way} | {row['passed']} | {counted} |")
            for test, (_, why) in row["other"].items():
                text = reason(f"{way}/{file}::{test}", why) or "No reason yet."
                listed.setdefault(text, []).append(f"{way} `{file}` `{test}`")
    for text, tests in listed.items():
        lines += ["", text, "", *(f"- {test}" for test in tests)]
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("source", type=Path, help="a source tree of PyTorch, as released")
    options.add_argument("--only", default="", help="a pattern of files")
    options.add_argument("--ways", default="trn,cuda")
    options.add_argument("--seconds", type=float, default=720, help="limit of a file and way")
    options.add_argument("-k", default="", help="of these tests only; nothing is recorded")
    options.add_argument("--every", type=int, default=0, help="one test in so many")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--state", type=Path, help="a folder of outcomes, to continue files")
    chosen = options.parse_args()
    if not (chosen.source / "test").is_dir():
        options.error(f"{chosen.source} has no folder test: give a source tree of PyTorch")
    if chosen.state:
        chosen.state.mkdir(parents=True, exist_ok=True)
    now: dict[str, Any] = {"ways": {}}
    for file in FILES:
        for way in file.ways:
            if way not in chosen.ways.split(",") or not re.search(chosen.only, file.path):
                continue
            if chosen.every:
                file = replace(file, every=chosen.every)
            row = record(chosen.source, file, way, chosen.seconds, chosen.k, chosen.state)
            print(way, file.path, row["passed"], "passed,", len(row["other"]), "others", flush=True)
            now["ways"].setdefault(way, {})[file.path] = row
            if not chosen.k and f"{file.path}.py" not in row["other"]:  # whole files only
                keep(chosen.results, chosen.source, way, file, row)
    print(*owed(now), sep="\n")
    return bool(owed(now))


def keep(path: Path, source: Path, way: str, file: File, row: dict[str, Any]) -> None:
    import torch

    version = source / "version.txt"
    named = re.search(r"\d+\.\d+\.\d+", source.resolve().name)
    results = json.loads(path.read_text()) if path.exists() else {"ways": {}}
    results["source"] = (
        version.read_text().strip() if version.exists()
        else named[0] if named else "(unknown version)"
    )  # fmt: skip
    results["torch"] = torch.__version__
    results["ways"].setdefault(way, {})[file.path] = row
    order = [each.path for each in FILES]
    results["ways"] = {
        each: dict(sorted(rows.items(), key=lambda pair: order.index(pair[0])))
        for each, rows in sorted(results["ways"].items())
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
