"""The commands: what they print for people and for programs, files they write, exit status."""

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import torch_trn_emu
import torch_trn_emu_cli as front
from torch_trn_emu.cli import main
from torch_trn_emu.cli.diff import difference
from torch_trn_emu.cli.doctor import CHECKS
from torch_trn_emu.cli.output import Report, Table, show
from torch_trn_emu.counters import COUNTERS
from torch_trn_emu.ops import OPS
from torch_trn_emu_cli import COMMANDS, STATUSES

SCRIPT = """
import sys
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8)).to("trn")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
x = torch.randn(32, 64, device="trn")
for step in range(int(sys.argv[1])):
    loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "train.py").write_text(SCRIPT)
    return folder


BEFORE = torch_trn_emu.current_precision(), sys.argv, list(sys.path)


@pytest.fixture(autouse=True)
def as_it_was():
    """Commands set the policy, sys.argv and sys.path, as a process of their own may."""
    yield
    torch.backends.trn.matmul.precision, sys.argv, sys.path[:] = BEFORE
    os.environ["TRN_EMU_MATMUL"] = BEFORE[0]


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "torch_trn_emu", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def runs(folder):
    """The same training under two policies."""
    for policy in ("bf16", "mxfp8"):
        profile = str(folder / policy)
        script = str(folder / "train.py")
        assert main(["run", "--matmul", policy, "--profile", profile, script, "3"]) == 0
    return folder / "bf16", folder / "mxfp8"


def record(path):
    return json.loads((path / "run.json").read_text())


def printed(capsys, *arguments):
    status = main([str(a) for a in arguments])
    return status, capsys.readouterr().out


def test_a_run_is_recorded(runs):
    found = record(runs[1])
    assert found["matmul"] == "mxfp8"
    assert found["chip"] == "trn3"
    assert found["ended"] == "well"
    assert found["counters"]["launch_count"] > 50
    assert [v["where"] for v in found["values"]] == ["train.py:15"] * 3
    assert found["values"][0]["value"] > found["values"][2]["value"]
    assert {row["op"] for row in found["ops"]} >= {"aten::addmm", "aten::mm"}
    assert sum(found["memory_peak_bytes"]["0"].values()) > 0
    assert {row["module"] for row in found["modules"]} >= {"Sequential.0", "Sequential.2"}
    assert {p.name for p in runs[1].iterdir()} == {"run.json", "report.html", "trace.json.gz"}


def test_two_runs_are_compared(runs, capsys):
    status, text = printed(capsys, "diff", *runs)
    assert status == 0
    assert "train.py:15 #3" in text
    assert "aten::mm" in text
    status, text = printed(capsys, "diff", "--json", *runs)
    data = json.loads(text)
    assert 0 < data["worst_relative"] < 0.1
    assert len(data["values"]) == 3
    assert data["counters"]["model_flops"]["a"] == data["counters"]["model_flops"]["b"]
    assert main(["diff", "--tolerance", "1e-9", *map(str, runs)]) == 1
    assert main(["diff", "--tolerance", "0.5", *map(str, runs)]) == 0


def test_a_run_equals_itself(runs):
    data = difference(record(runs[0]), record(runs[0]))
    assert data["worst_relative"] == 0
    assert data["values_missing"] == 0


def test_scripts_that_share_no_line_pair_up_by_order(runs):
    other = record(runs[0])
    for row in other["values"]:
        row["where"] = "compiled.py:99"
    data = difference(record(runs[0]), other)
    assert len(data["values"]) == 3
    assert data["worst_relative"] == 0


def test_a_terminal_gets_the_same_words(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    table = Table(title="Counters", head=("name", "value"), rows=[("a[b]", "1"), ("c", "2")])
    show(Report(data={}, lines=["[bold] is a word"], tables=[table]), as_json=False)
    text = capsys.readouterr().out
    for word in ("[bold] is a word", "Counters", "a[b]", "value"):
        assert word in text


def test_no_color_leaves_no_colour(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    show(Report(data={}, tables=[Table(title="T", head=("a",), rows=[("1",)])]), as_json=False)
    assert re.findall(r"\x1b\[(?:3|4|9)\d", capsys.readouterr().out) == []


def test_what_is_no_number_is_the_worst_difference(runs):
    wrong = record(runs[0])
    wrong["values"][1]["value"] = math.inf
    assert difference(record(runs[0]), wrong)["worst_relative"] == math.inf


def test_report_as_text_json_and_page(runs, folder, capsys):
    _, text = printed(capsys, "report", runs[1])
    assert "matmul policy mxfp8" in text
    assert "aten::addmm" in text
    assert "model_flops" in text
    _, text = printed(capsys, "report", "--json", runs[1] / "run.json")
    assert json.loads(text) == record(runs[1])
    main(["report", "--html", str(folder / "run.html"), str(runs[1])])
    page = (folder / "run.html").read_text()
    assert "aten::addmm" in page
    assert "<script" not in page


def test_coverage_of_the_table_and_of_a_run(runs, capsys):
    _, text = printed(capsys, "coverage", "--json")
    assert {row["op"] for row in json.loads(text)} == set(OPS)
    _, text = printed(capsys, "coverage", "--json", "--run", runs[1])
    rows = {row["op"]: row for row in json.loads(text)}
    assert rows["aten::addmm"]["calls"] == 6
    assert rows["aten::addmm"]["contract"] == "operands follow the policy (linear)"
    assert rows["aten::gelu"]["contract"] == "bitwise equal to the host"
    assert {row["price"] for row in rows.values()} <= set(STATUSES)
    _, text = printed(capsys, "coverage", "--status", "free", "--json")
    assert all(row["price"] == "free" for row in json.loads(text))


def test_info_and_doctor(capsys):
    status, text = printed(capsys, "info", "--json")
    assert status == 0
    assert json.loads(text)["chip"]["name"] == "AWS Trainium3 (emulated)"
    status, text = printed(capsys, "doctor", "--json")
    findings = json.loads(text)
    assert len(findings) == len(CHECKS)
    assert [f for f in findings if f["state"] != "ok" and not f["remedy"]] == []
    assert status == int(any(f["state"] == "wrong" for f in findings))
    assert {f["name"]: f["state"] for f in findings}["computes"] == "ok"
    host = {f["name"]: f["found"] for f in findings}["host backend"]
    assert "tested in Triton's interpreter only" in host


def test_doctor_reports_a_wrong_environment():
    done = process("doctor", "--json", TRN_EMU_CHIP="trn9")
    assert done.returncode == 1
    settings = {f["name"]: f for f in json.loads(done.stdout)}["settings"]
    assert settings["state"] == "wrong"
    assert "TRN_EMU_CHIP" in settings["found"]


def test_vectors_are_written(folder, capsys):
    status, text = printed(capsys, "vectors", "--json", folder / "vectors")
    assert status == 0
    assert set(json.loads(text)["files"]) == {"casts.safetensors", "mx.safetensors"}
    assert (folder / "vectors/manifest.json").exists()


def test_the_chip_is_chosen_before_torch_is_imported(folder):
    done = process("info", "--json", "--chip", "trn2", "--lnc", "1", TRN_EMU_MATMUL="")
    found = json.loads(done.stdout)
    assert found["chip"]["name"] == "AWS Trainium2 (emulated)"
    assert found["chip"]["devices"] == 8
    assert found["numerics"]["matmul policy"] == "bf16"


def test_estimate_prices_what_a_run_counts(folder, runs, capsys):
    script = folder / "train.py"
    status, text = printed(
        capsys, "estimate", "--json", "--steps", 3, "--matmul", "mxfp8", script, 100
    )
    assert status == 0
    found, ran = json.loads(text), record(runs[1])
    assert len(found["steps"]) == 3
    assert found["steps"][1]["launches"] == found["steps"][2]["launches"]
    # The run reads the last loss besides.
    for counter in ("model_flops", "hbm_read_bytes", "hbm_write_bytes", "host_dispatch_time"):
        assert found["counters"][counter] == pytest.approx(ran["counters"][counter], rel=0.02)
    assert found["time_us"] == pytest.approx(ran["elapsed_s"] * 1e6, rel=0.02)


@pytest.fixture(scope="module")
def compiled_run(folder):
    """The training with its model compiled, three steps of it counted."""
    compile_it = 'model = torch.compile(model, backend="trn")\noptimizer ='
    (folder / "compiled.py").write_text(SCRIPT.replace("optimizer =", compile_it))
    done = process("run", "--json", "--matmul", "mxfp8", folder / "compiled.py", 3)
    return json.loads(done.stdout[done.stdout.index("{") :])


def graphs_of(ops):
    names = {row["op"].removeprefix("trn::").replace(" ", "_"): row for row in ops}
    return {name: row for name, row in names.items() if name.startswith("graph")}


def test_numbers_are_those_that_the_script_reads(folder, capsys):
    (folder / "reads.py").write_text(
        "import torch\n"
        "w = torch.nn.Parameter(torch.ones(4, device='trn'))\n"
        "optimizer = torch.optim.AdamW([w, torch.nn.Parameter(w.detach() * 2)], foreach=False)\n"
        "for step in range(3):\n"
        "    loss = w.square().sum()\n"
        "    loss.backward()\n"
        "    optimizer.step()\n"
        "    print(loss.item(), f'{loss:.3f}', float(loss.detach().cpu()), loss.tolist())\n"
    )
    assert main(["run", "--profile", str(folder / "reads"), str(folder / "reads.py")]) == 0
    out, err = capsys.readouterr()
    found = record(folder / "reads")["values"]
    assert [v["where"] for v in found] == ["reads.py:8"] * 12
    assert found[0]["value"] == float(out.split()[0])
    lines = err.splitlines()[-4:]
    assert lines[0].startswith("verdict: ")
    assert lines[1].startswith("step time: ")
    assert "3 steps" in lines[1]
    assert lines[2].startswith("report, for a browser: ")
    assert lines[3].startswith("trace, for Perfetto: ")
    _, text = printed(capsys, "report", folder / "reads")
    assert "reads.py:8: " in text
    assert "(12 numbers)" in text


def test_the_first_divergence_is_named(runs, capsys):
    _, text = printed(capsys, "diff", *runs)
    assert "first divergence (relative difference above 0.001): train.py:15 #1" in text
    _, text = printed(capsys, "diff", runs[0], runs[0])
    assert "no divergence" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("values"), "field 'values' is missing"),
        (lambda r: r["values"][1].pop("where"), "field 'values[1].where' is missing"),
        (lambda r: r["ops"][0].update(calls="many"), "field 'ops[0].calls' is 'many', not a int"),
        (lambda r: r.update(verdict=[]), "field 'verdict' is not an object"),
        (lambda r: r.update(modules={}), "field 'modules' is not a list"),
        (lambda r: r["counters"].pop("core_busy_time"), "field 'counters.core_busy_time'"),
    ],
)
def test_a_malformed_record_is_refused_by_field(runs, folder, capsys, change, said):
    changed = record(runs[0])
    change(changed)
    (folder / "malformed.json").write_text(json.dumps(changed))
    for command in ("report", "diff"):
        files = [str(folder / "malformed.json")] * (1 + (command == "diff"))
        assert main([command, *files]) == 3
        assert said in capsys.readouterr().err


def test_what_a_script_names_is_escaped_in_pages(runs, folder):
    changed = record(runs[0])
    changed["command"] = ["<script>alert(1)</script>", "<img src=x>"]
    changed["values"][0]["where"] = changed["values"][1]["where"] = "<script>:1"
    changed["ops"][0]["op"] = "<script>x</script>"
    (folder / "odd.json").write_text(json.dumps(changed))
    assert main(["report", "--html", str(folder / "odd.html"), str(folder / "odd.json")]) == 0
    page = (folder / "odd.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_estimate_ends_with_the_step_and_marks_what_is_not_computed(folder, capsys):
    assert main(["estimate", "--steps", "2", str(folder / "train.py"), "9"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("about ")
    assert out.splitlines()[-1].endswith(" ms a step once settled")
    assert "are not computed" in err.splitlines()[0]


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_an_error_of_the_script_has_the_scripts_traceback(folder, command):
    (folder / "wrong.py").write_text(
        "import torch\n"
        "def step(x):\n"
        "    return x @ torch.ones(3, 3, device='trn')\n"
        "step(torch.ones(2, 2, device='trn'))\n"
    )
    done = process(command, folder / "wrong.py")
    assert done.returncode == 1
    files = [line for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert all("wrong.py" in line for line in files), done.stderr
    assert len(files) == 2
    assert "During handling" not in done.stderr


@pytest.mark.parametrize("name", ["cuda", "neuron"])
def test_estimate_takes_scripts_of_other_devices(folder, name):
    device = "cuda" if name == "cuda" else "neuron"
    (folder / f"{name}_script.py").write_text(SCRIPT.replace('"trn"', repr(device)))
    done = process(
        "estimate", "--json", "--steps", 1, f"--as-{name}", folder / f"{name}_script.py", 9
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"][0]["launches"] > 10


def test_help_and_wrong_usage_do_not_import_torch():
    for arguments in (["--help"], ["run", "--help"], ["rum"], ["run", "--chip", "trn9", "x.py"]):
        code = f"import sys; sys.argv = ['-m', *{arguments!r}]; sys.orig_argv = ['python', '-m', "
        code += "'torch_trn_emu']\ntry: import torch_trn_emu\nexcept SystemExit: pass\n"
        code += "print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "False", done


def test_the_front_knows_chips_policies_and_commands():
    from torch_trn_emu.chip import CHIPS
    from torch_trn_emu.estimation import MODES
    from torch_trn_emu.precision import POLICIES

    assert {name: chip.lnc_choices for name, chip in CHIPS.items()} == front.CHIPS
    assert set(POLICIES) == set(front.POLICIES)
    assert MODES == front.MODES


def test_versions_and_completion(capsys):
    for arguments, said in ((["--version"], torch.__version__), (["--print-completion", "bash"],
                                                                 "--profile")):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("script", ["train.py", "compiled.py"])
def test_estimate_of_graphs_is_what_a_compiled_run_counts(folder, compiled_run, script):
    arguments = ("--mode", "compile", "--steps", 3, "--matmul", "mxfp8", folder / script, 9)
    done = process("estimate", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mode"] == "compile"
    estimated, counted = graphs_of(found["ops"]), graphs_of(compiled_run["ops"])
    assert estimated.keys() == counted.keys() == {"graph_0_forward", "graph_0_backward"}
    for name, row in estimated.items():
        assert row["calls"] == counted[name]["calls"] == 3
        assert row["device_s"] == pytest.approx(counted[name]["device_s"], rel=1e-3)
    # The run reads the last loss besides.
    assert found["time_us"] == pytest.approx(compiled_run["elapsed_s"] * 1e6, rel=0.02)


def test_estimate_computes_nothing_and_touches_no_memory(folder, capsys):
    (folder / "large.py").write_text(
        "import torch\n"
        "x = torch.zeros(32768, 32768, device='trn')\n"  # 4 GiB
        "y = x @ x\n"
        "n = (torch.arange(4, device='trn') > 1).nonzero()\n"
        "print(y.shape, n.shape)\n"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["estimate", "--json", str(folder / "large.py")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["memory_peak_bytes"] >= 8 * 2**30
    assert "torch.Size([32768, 32768])" in err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_run_as_module_with_json(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    status, text = printed(capsys, "run", "--json", "-m", "train", "1")
    first, rest = text.split("\n", 1)
    assert status == 0
    assert first.startswith("0 ")
    assert json.loads(rest)["command"] == ["train", "1"]


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("raise SystemExit(7)", SystemExit, "7"),
        ("1 / 0", ZeroDivisionError, "division"),
        ("import torch; torch.ones(1, device='trn') + torch.ones(2)", RuntimeError, "same device"),
        ("def", SyntaxError, "invalid syntax"),
    ],
)
def test_an_error_of_the_script_passes_after_the_record_is_written(folder, body, error, said):
    (folder / "odd.py").write_text(body)
    with pytest.raises(error, match=said):
        main(["run", "--profile", str(folder / "odd"), str(folder / "odd.py")])
    assert record(folder / "odd")["ended"] == "with an error"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.py"], "nowhere.py not found. Give a script path, or -m MODULE."),
        (["report", "nowhere.json"], "nowhere.json not found. Record a run with"),
        (["run", "--chip", "trn1", "--lnc", "2", "nowhere.py"], "trn1 groups 1 physical core"),
        (["run", "--profile", "/proc/nowhere", __file__], "cannot write to the profile folder"),
        (["run", "--profile", "", __file__], "--profile needs the name of a folder"),
        (["run", "--profile", __file__, __file__], "cannot write to the profile folder"),
    ],
)
def test_refusals_say_why(arguments, said, capsys):
    assert main(arguments) in (2, 3)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "required: SCRIPT (see"),
        (["fly"], "invalid choice"),
        ([], "COMMAND"),
        (["estimate", "--steps", "0", "train.py"], "must be a positive integer, not '0' (see"),
        (["report", "--rows", "-3", "out"], "must be a positive integer, not '-3' (see"),
        (
            ["diff", "--tolerance", "nan", "a", "b"],
            "must be a relative difference such as 0.01, not 'nan'",
        ),
        (
            ["diff", "--tolerance", "-1", "a", "b"],
            "must be a relative difference such as 0.01, not '-1'",
        ),
        (["coverage", "--status", "exact"], "invalid choice"),
        (["info", "--matmul", "mxfp6"], "Did you mean mxfp8?"),
        (["run", "--proflie", "out", "train.py"], "Did you mean --profile?"),
        (["run", "--chip", "trn9", "train.py"], "Did you mean trn"),
        (["completion"], "Did you mean --print-completion?"),
        (["rum", "train.py"], "Did you mean run?"),
        (["info", "--lnc", "3"], "invalid choice: 3 (choose from"),
    ],
)
def test_wrong_command_lines_say_why(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_chip_that_is_not_there_is_refused():
    done = process("info", "--chip", "trn9")
    assert done.returncode == 2
    assert "invalid choice: 'trn9'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_another_file_is_no_record(folder, capsys):
    (folder / "other.json").write_text('{"format": 99}')
    assert main(["report", str(folder / "other.json")]) == 3
    assert "run --profile" in capsys.readouterr().err


def test_every_command_describes_itself(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "status", "said", "ended"),
    [
        (signal.SIGINT, 130, "Ctrl-C", "by Ctrl-C"),
        (signal.SIGTERM, 143, "SIGTERM", "by SIGTERM"),
    ],
)
def test_a_signal_leaves_a_whole_record(folder, number, status, said, ended):
    (folder / "endless.py").write_text(
        "import torch\n"
        "x = torch.ones(64, 64, device='trn')\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    x = x @ x\n"
    )
    script = folder / "endless.py"
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch_trn_emu",
            "run",
            "--profile",
            folder / "c",
            script,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a script ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.2)
        running.send_signal(number)
        assert running.wait(240) == status
        assert said in running.stderr.read()
    assert record(folder / "c")["ended"] == ended
    names = {p.name for p in (folder / "c").iterdir()}
    assert names == {"run.json", "report.html", "trace.json.gz"}


@pytest.fixture(params=[(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["SIGTERM", "SIGHUP"])
def ending(request):
    """A signal that ends processes, and the exit status; nohup would have it ignored."""
    number, status = request.param
    before = signal.signal(number, signal.SIG_DFL)
    yield number, status
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, before)


def test_a_signal_leaves_summary_and_record(tmp_path, capsys, ending):
    """They would otherwise end without a word."""
    number, status = ending
    script, out = tmp_path / "ends.py", tmp_path / "out"
    script.write_text(
        "import signal, torch\n"
        "torch.trn.reset_counters()\n"  # this process has those of other tests
        "torch.ones(2, device='trn').exp()\n"
        f"signal.raise_signal({int(number)})\n"
        "print('went on')\n"
    )
    assert main(["run", "--summary", str(script)]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert "aten::exp" in said.err
    assert said.err.endswith(f"terminated by {number.name}\n")
    assert main(["run", "--profile", str(out), str(script)]) == status
    assert record(out)["ended"] == f"by {number.name}"


def test_a_signal_that_is_ignored_ends_nothing(tmp_path, capsys):
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    script = tmp_path / "goes_on.py"
    script.write_text("import signal\nsignal.raise_signal(signal.SIGHUP)\nprint('went on')\n")
    try:
        assert main(["run", "--summary", str(script)]) == 0
    finally:
        assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN
    assert capsys.readouterr().out == "went on\n"


def test_counters_of_a_record_have_units(runs):
    assert list(record(runs[0])["counters"]) == list(COUNTERS)
